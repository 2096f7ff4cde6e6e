"""What a reviewer will ask about is told with the reason."""

from devtools.preflight.capabilities import REASONS, signals
from devtools.preflight.code import named_like_secrets
from devtools.preflight.notes import notes
from devtools.preflight.secrets import literals_for_secrets
from tests.package.preflight import Change, field, file, whole


def note(change: Change, beginning: str) -> str:
    """The one note that begins like this."""
    (found,) = (one for one in notes(change(whole())) if one.startswith(beginning))
    return found


def unchanged(package):
    return package


def test_signals_are_those_that_have_a_reason() -> None:
    assert set(signals(whole())) == set(REASONS)
    for kind, reason in REASONS.items():
        assert note(unchanged, f"Signal {kind!r}").endswith(f": {reason}.")


def test_signal_is_told_with_its_places() -> None:
    source = "# os.system(x)\nos.system(x)\n" + "subprocess.run(x)\n" * 4
    assert note(file("nodes/a.py", source), "Signal 'command execution'") == (
        "Signal 'command execution' at nodes/a.py:2, nodes/a.py:3, nodes/a.py:4 and 2 more places:"
        " not explained."
    )


def test_destinations_that_the_user_chooses_are_told() -> None:
    assert "(base_url, redis_url of the credential)" in note(unchanged, "Network: the user")
    without = field("provider/holysheep.yaml", "credentials_for_provider", {"api_key": {}})
    assert not [one for one in notes(without(whole())) if one.startswith("Network: the user")]


def test_hosts_are_told_beside_those_that_are_declared() -> None:
    told = note(file("nodes/a.js", "f('https://a.dify.ai')"), "Network: hosts")
    named, _, declared = told.partition("; declared as network.domains: ")
    assert named.endswith("api.holysheep.ai, a.dify.ai")
    assert declared == "api.holysheep.ai."


def test_permissions_are_told() -> None:
    for permission, asked in whole().manifest["resource"]["permission"].items():
        told = [one for one in notes(whole()) if one.startswith(f"Permission {permission}:")]
        assert len(told) == asked["enabled"], permission


def test_names_like_secrets_are_counted() -> None:
    source = "def f():\n    return api_key\nTOKEN_NAME = 'token'\n"
    changed = file("nodes/a.py", source)(whole())
    assert set(named_like_secrets(changed)) - set(named_like_secrets(whole())) == {"nodes/a.py:2"}
    assert set(literals_for_secrets(changed)) - set(literals_for_secrets(whole())) == {
        "nodes/a.py:3"
    }
    for beginning in ("Names like secrets", "Texts beside names like secrets"):
        assert "more places" in note(unchanged, beginning)


def test_readme_is_counted() -> None:
    assert note(file("README.md", "one two three"), "README.md").startswith("README.md has 3 words")
