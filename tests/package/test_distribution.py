"""What ``pip install`` takes of the tree: the engine, whole, and its command.

By the rules of setuptools, which is not installed here and would want a network to build.
"""

import importlib
import tomllib
from pathlib import Path

from devtools.package import project_tree
from holysheep.cli import main
from tests.package.declared import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FILES = project_tree(ROOT).files


def test_the_engine_alone_is_installed() -> None:
    (pattern,) = SETUPTOOLS["packages"]["find"]["include"]
    folders = {name.split("/")[0] for name in FILES if "/" in name}
    assert {name for name in folders if Path(name).match(pattern)} == {"holysheep"}


def test_every_file_of_the_engine_is_installed() -> None:
    engine = ROOT / "holysheep"
    ours = {
        Path(name).relative_to("holysheep")
        for name in FILES
        if name.startswith("holysheep/") and not name.endswith(".py")
    }
    installed = {
        path.relative_to(engine)
        for pattern in SETUPTOOLS["package-data"]["holysheep"]
        for path in engine.glob(pattern)
    }
    assert ours == installed
    assert {Path("prices.yaml"), Path("py.typed")} < installed
    assert {path.parent.as_posix() for path in installed} == {".", "shared/lua", "web"}


def test_the_command_is_installed() -> None:
    module, _, name = PYPROJECT["project"]["scripts"]["holysheep"].partition(":")
    assert getattr(importlib.import_module(module), name) is main
