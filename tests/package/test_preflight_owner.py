"""What the owner gives is written into the package, and nowhere else."""

import re

import pytest
import yaml

from devtools.package import packed_files
from devtools.preflight.examples import files_with_author, write_examples
from devtools.preflight.forges import FORGES, is_repository, link_to_source
from devtools.preflight.owner import Owner, plugin_author
from tests.package.declared import EXAMPLE_FILES, MANIFEST, NODE_FILES, PROVIDER_FILES, ROOT
from tests.package.preflight import OWNER, whole

FILES = packed_files(ROOT)
README = """# A plugin

What it is, see [the policy](PRIVACY.md) and [nodes](docs/nodes.md#llm).

![a](_assets/a.png) [b](https://example.org/) [c](#use)

## Use
"""


def readme(text: str, owner: Owner = OWNER, name: str = "README.md") -> str:
    return owner.applied({name: text.encode()})[name].decode()


def test_values_come_from_three_variables() -> None:
    given = {"HOLYSHEEP_REPO": " r ", "HOLYSHEEP_CONTACT": "c", "HOLYSHEEP_AUTHOR": "a"}
    assert Owner.from_environment(given) == Owner("r", "c", "a")
    assert Owner.from_environment({}) == Owner()


def test_without_values_nothing_changes() -> None:
    assert Owner().applied(FILES) == FILES


def test_manifest_gets_them() -> None:
    manifest = whole().manifest
    assert (manifest["repo"], manifest["contact"]) == (OWNER.repo, OWNER.contact)
    given = ("repo", "contact", "author")
    rest = {key: value for key, value in manifest.items() if key not in given}
    assert rest == {key: value for key, value in MANIFEST.items() if key not in given}


def test_fields_that_are_there_are_replaced() -> None:
    written = b"author: old\nrepo: https://example.org\nname: x\ncontact: y\n"
    done = OWNER.applied({"manifest.yaml": written})["manifest.yaml"]
    assert yaml.safe_load(done) == {
        "author": OWNER.author,
        "repo": OWNER.repo,
        "name": "x",
        "contact": OWNER.contact,
    }
    assert done.count(b"\n") == 4


def test_author_is_the_same_everywhere() -> None:
    for name in ("manifest.yaml", *PROVIDER_FILES, *NODE_FILES):
        declared = whole().yaml(name)
        assert declared.get("identity", declared)["author"] == OWNER.author, name
    changed = {name for name, content in OWNER.applied(FILES).items() if content != FILES[name]}
    expected = {"manifest.yaml", "README.md", *PROVIDER_FILES, *NODE_FILES}
    assert {name for name in changed if not name.startswith("readme/")} == expected


def test_bytes_that_are_no_text_are_kept() -> None:
    assert OWNER.applied({"readme/README_pt_BR.md": b"\xff"}) == {"readme/README_pt_BR.md": b"\xff"}


def test_author_of_something_else_is_left() -> None:
    files = {"manifest.yaml": b"author: old\n", "nodes/a.yaml": b"identity:\n  author: third\n"}
    assert OWNER.applied(files)["nodes/a.yaml"] == files["nodes/a.yaml"]


def test_readme_names_the_source_before_its_first_section() -> None:
    lines = readme(README).splitlines()
    assert lines[lines.index("## Use") - 2] == f"Source code and issues: <{OWNER.repo}>"
    assert readme("# A plugin\n").endswith(f"<{OWNER.repo}>\n\n")


def test_readme_that_names_the_source_gets_no_second_line() -> None:
    text = f"# A plugin\n\nSee {OWNER.repo}\n\n## Use\n"
    assert readme(text) == text


def test_links_into_the_repository_become_absolute() -> None:
    done = readme(README)
    assert f"[the policy]({OWNER.repo}/blob/HEAD/PRIVACY.md)" in done
    assert f"[nodes]({OWNER.repo}/blob/HEAD/docs/nodes.md#llm)" in done
    assert "![a](_assets/a.png) [b](https://example.org/) [c](#use)" in done


def test_links_of_a_translation_start_from_its_folder() -> None:
    text = "[a](../README.md) [b](README_ja_JP.md) ![c](../_assets/c.png)\n"
    assert readme(text, name="readme/README_pt_BR.md") == (
        f"[a]({OWNER.repo}/blob/HEAD/README.md) [b]({OWNER.repo}/blob/HEAD/readme/README_ja_JP.md)"
        " ![c](_assets/c.png)\n"
    )


def test_no_relative_link_is_left_in_the_package() -> None:
    for name in ("README.md", *(name for name in whole().files if name.startswith("readme/"))):
        targets = re.findall(r"\]\(([^)\s]+)\)", whole().text(name))
        assert [t for t in targets if not t.startswith(("https://", "#", "_assets/"))] == [], name


@pytest.mark.parametrize("host", FORGES)
def test_every_forge_has_repositories_and_links(host: str) -> None:
    for repo in (f"https://{host}/a/b", f"https://{host}/a/b.git", f"https://{host}/a/b/"):
        assert is_repository(repo)
        link = link_to_source(repo, "docs/x.md")
        assert link.startswith(f"https://{host}/a/b/")
        assert link.endswith("/docs/x.md")


def test_examples_of_another_author_call_that_ones_plugin(tmp_path) -> None:
    author = plugin_author(FILES)
    written = write_examples(ROOT, tmp_path / "examples", author, "someone")
    flows = [path for path in written if path.suffix == ".yml"]
    assert [f"examples/{path.name}" for path in flows] == EXAMPLE_FILES
    for path in flows:
        before = (ROOT / "examples" / path.name).read_text(encoding="utf-8")
        after = path.read_text(encoding="utf-8")
        assert after == before.replace(f"{author}/holysheep", "someone/holysheep")
        assert f"{author}/" not in after


def test_files_that_name_the_author_are_found() -> None:
    found = files_with_author(ROOT, MANIFEST["author"])
    assert {"manifest.yaml", *PROVIDER_FILES, *NODE_FILES} <= set(found)
    assert not [name for name in found if name.startswith("tests/")]
