"""Building: what is shipped, always in the same bytes."""

import io
import zipfile
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

from devtools.package import PackageError, file_name, packed, packed_files, project_tree
from tests.package.declared import MANIFEST, ROOT

IGNORE = GitIgnoreSpec.from_lines((ROOT / ".difyignore").read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    "name",
    [
        ".git/config",
        ".venv/bin/python",
        "venv/bin/python",
        "tests/package/test_yaml.py",
        "devtools/x.py",
        "examples/x.yml",
        "docs/x.md",
        ".ci/x.yml",
        ".github/x.yml",
        "nodes/__pycache__/x.pyc",
        ".mypy_cache/x",
        ".ruff_cache/x",
        ".pytest_cache/x",
        "dist/x.difypkg",
        "x.difypkg",
        "Makefile",
        ".env",
        ".env.local",
        ".env.example",
        "signing.private.pem",
    ],
)
def test_package_leaves_out(name: str) -> None:
    assert IGNORE.match_file(name)


def project(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_files_that_a_pattern_matches_are_left_out(tmp_path: Path) -> None:
    ignored = ".difyignore\ndocs/\n*.log\n!keep.log\n"
    project(tmp_path, **{".difyignore": ignored, "a.py": "a", "docs/b": "b", "keep.log": "c"})
    assert packed_files(tmp_path) == {"a.py": b"a"}


def test_gitignore_counts_where_there_is_no_difyignore(tmp_path: Path) -> None:
    project(tmp_path, **{".gitignore": "*.log\n", "a.py": "a", "b.log": "b"})
    assert set(packed_files(tmp_path)) == {".gitignore", "a.py"}


def test_links_are_refused(tmp_path: Path) -> None:
    (project(tmp_path, **{"a.py": "a"}) / "b.py").symlink_to("a.py")
    with pytest.raises(PackageError, match=r"b\.py is a symbolic link"):
        packed_files(tmp_path)


def test_tree_is_what_git_would_keep(tmp_path: Path) -> None:
    files = {".gitignore": "dist/\n", ".git/config": "", "dist/a": "", "docs/b": ""}
    tree = project_tree(project(tmp_path, **files, **{".difyignore": "docs/\n\n"}))
    assert tree.files == {".gitignore", ".difyignore", "docs/b"}
    assert tree.ignore_lines == ("docs/",)
    assert tree.holds("docs")
    assert not tree.holds("doc")


def test_same_files_give_the_same_bytes() -> None:
    files = {"b.py": b"b", "a/c.py": b"c"}
    content = packed(files)
    assert content == packed(dict(reversed(files.items())))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
    assert [info.filename for info in infos] == ["a/c.py", "b.py"]
    assert {info.external_attr >> 16 for info in infos} == {0o100644}
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}


def test_package_is_named_after_the_manifest() -> None:
    assert file_name(ROOT) == f"{MANIFEST['name']}-{MANIFEST['version']}.difypkg"


@pytest.mark.parametrize("manifest", ["name: a", "a", "a: ["])
def test_project_without_name_or_version_is_no_plugin(tmp_path: Path, manifest: str) -> None:
    with pytest.raises(PackageError, match="does not give a name and a version"):
        file_name(project(tmp_path, **{"manifest.yaml": manifest}))


def test_folder_without_a_manifest_is_no_plugin(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="does not give a name and a version"):
        file_name(tmp_path)
