"""`make package` and `make preflight` on a copy of this tree: what they say, write and return."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from devtools import package as packaging
from devtools.package import packed_files
from devtools.preflight.__main__ import main as preflight
from devtools.preflight.opened import Package
from devtools.preflight.report import Report
from devtools.preflight.rule import Finding, Severity
from devtools.preflight.start import Start
from tests.package.declared import EXAMPLE_FILES, MANIFEST, ROOT
from tests.package.preflight import OWNER

NAME = f"{MANIFEST['name']}-{MANIFEST['version']}.difypkg"
VARIABLES = {
    "HOLYSHEEP_REPO": OWNER.repo,
    "HOLYSHEEP_CONTACT": OWNER.contact,
    "HOLYSHEEP_AUTHOR": OWNER.author,
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this project, as far as packages are concerned, in which one was built before."""
    others = [".difyignore", ".gitignore", *EXAMPLE_FILES]
    linked = [path for path in (ROOT / "docs").rglob("*") if path.is_file()]
    names = [*others, *(path.relative_to(ROOT).as_posix() for path in linked), "CONTRIBUTING.md"]
    there = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    old = {f"dist/{NAME}": b"old", "dist/examples/old.yml": b"old"}
    for name, content in {**packed_files(ROOT), **there, **old}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")  # without Dify's command line, wherever this runs
    return tmp_path


@pytest.fixture
def run(tree: Path) -> Callable[..., int]:
    return lambda *arguments: preflight(["--root", str(tree), "--no-start", *arguments])


def opened(tree: Path) -> Package:
    return Package.opened((tree / "dist" / NAME).read_bytes(), packaging.project_tree(tree))


def test_without_the_owners_values_they_are_listed(
    tree: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    said = capsys.readouterr().out
    for name in VARIABLES:
        assert name in said.partition("Left to the owner:")[2]
    content = (tree / "dist" / NAME).read_bytes()
    assert f"{NAME}: {len(content):,} bytes" in said
    assert hashlib.sha256(content).hexdigest() in said
    assert opened(tree).files == packed_files(tree)


def test_release_without_the_owners_values_fails(
    tree: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--release") == 1
    assert "No package was written." in capsys.readouterr().err
    assert list((tree / "dist").iterdir()) == []


def test_release_with_them_is_the_owners(
    tree: Path,
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = packed_files(tree)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert run("--release") == 0
    said = capsys.readouterr().out
    assert "Left to the owner" not in said
    assert f"{OWNER.author}/holysheep/{NAME}" in said
    assert opened(tree).manifest["contact"] == OWNER.contact
    assert packed_files(tree) == before
    examples = sorted(path.name for path in (tree / "dist" / "examples").glob("*.yml"))
    assert [f"examples/{name}" for name in examples] == EXAMPLE_FILES
    assert f"still name {MANIFEST['author']}" in said


def test_wrong_value_of_the_owner_is_a_violation(
    tree: Path,
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOLYSHEEP_CONTACT", "nobody")
    assert run() == 1
    assert "contact 'nobody' is no e-mail address" in capsys.readouterr().out
    assert not (tree / "dist" / NAME).exists()


BROKEN = {
    "LICENSE": ("", "LICENSE is missing or empty"),
    "manifest.yaml": ("a: [b", "manifest.yaml cannot be read"),
    ".difyignore": ("tests/\n!docs/\n", "'!docs/'"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("command", ["package", "preflight"])
def test_broken_tree_leaves_no_package(
    tree: Path, capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    text, said = BROKEN[name]
    (tree / name).write_text(text, encoding="utf-8")
    output = tree / "dist" / "x.difypkg"
    output.write_bytes(b"old")
    arguments = ["--root", str(tree), "--output", str(output)]
    done = preflight([*arguments, "--no-start"]) if command == "preflight" else None
    assert (packaging.main(arguments) if done is None else done) == 1
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
    assert not output.exists()


def test_packager_on_the_path_is_asked(
    tree: Path,
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = tree / "dist" / "dify"  # a folder that is not packaged
    program.write_text("#!/bin/sh\necho 'It has no icon.'; exit 1\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    assert run() == 1
    assert "refuses the unpacked package: It has no icon." in capsys.readouterr().out
    assert not (tree / "dist" / NAME).exists()


def test_package_needs_nothing_of_the_owner(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert packaging.main(["--root", str(tree)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert NAME in printed.out
    assert opened(tree).files == packed_files(tree)


def test_plugin_that_does_not_start_is_a_violation() -> None:
    report = Report({}, [Start("requirements.txt", 30, 2.04), Start("pyproject.toml", error="No.")])
    assert report.findings(Severity.BLOCKS) == [Finding(Severity.BLOCKS, "No.")]
    said = "\n".join(report.lines())
    assert "requirements.txt: answers after 2.0 s (installed in 30 s)" in said
    assert "pyproject.toml: fails" in said


def test_packager_that_refuses_is_a_violation() -> None:
    refused = Finding(Severity.BLOCKS, "It refuses.")
    report = Report({}, packager=[refused])
    assert report.findings(Severity.BLOCKS) == [refused]
    assert "1 blocking" in "\n".join(report.lines())
