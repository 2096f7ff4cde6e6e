"""The command line as a script sees it: output, error line, exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from devtools.upstream import Upstream
from devtools.upstream import behaviours as do
from holysheep import errors
from holysheep.cli import main
from holysheep.cli_support import exit_code
from holysheep.config import VERSION
from tests.engine.raw_servers import (
    KEY,
    RawServer,
    answer,
    chat_body,
    closed_port,
    forget_proxies,
    replies,
)

ROOT = Path(__file__).parents[2]


class Shell:
    """Runs the command line against one gateway."""

    def __init__(self, url: str) -> None:
        self.environment: dict[str, str | None] = {
            "HOLYSHEEP_API_KEY": KEY,
            "HOLYSHEEP_BASE_URL": url,
        }

    def __call__(self, *arguments: str, stdin: str | bytes | None = None, **env: Any) -> Result:
        """The result of a command within this process."""
        runner = CliRunner(env={**self.environment, **env})
        return runner.invoke(main, arguments, input=stdin)

    def process(self, *arguments: str | bytes, **options: Any) -> Any:
        """The result of a command as a process of its own."""
        env = {**os.environ, **self.environment, **options.pop("env", {})}
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "holysheep", *arguments],
            cwd=ROOT,
            env={name: value for name, value in env.items() if value is not None},
            capture_output=True,
            check=False,
            timeout=20,
            **options,
        )


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


@pytest.fixture
def shell(upstream: Upstream) -> Shell:
    return Shell(upstream.url)


def in_bash(shell: Shell, line: str, *arguments: str) -> Any:
    """The result of a command whose streams the shell has redirected."""
    return subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, "-m", "holysheep", *arguments],
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in shell.environment.items()}},
        capture_output=True,
        check=False,
        timeout=20,
    )


def fails(result: Result, code: int, kind: str, words: str = "") -> str:
    """Check what a script relies on, and return the error's line."""
    assert result.exit_code == code, result.output
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"error: {kind}: ")
    assert words in result.stderr
    assert KEY not in result.output
    return result.stderr


class TestChat:
    def test_the_answer_and_nothing_else_is_printed(self, shell: Shell) -> None:
        result = shell("chat", "Hello")
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith("You said: Hello [")
        assert result.stdout.endswith("]\n")
        assert len(result.stdout.splitlines()) == 1

    def test_a_stream_prints_the_same(self, upstream: Upstream, shell: Shell) -> None:
        assert shell("chat", "Hello", "--stream").stdout == shell("chat", "Hello").stdout
        assert [request["json"].get("stream") for request in upstream.requests()] == [True, None]

    def test_options_become_parameters(self, upstream: Upstream, shell: Shell) -> None:
        shell(
            *("chat", "Hi", "-m", "my-model", "-s", "Be brief.", "-t", "0.25"),
            *("--max-tokens", "7", "--timeout", "9", "--retries", "1"),
        )
        sent = upstream.requests()[-1]["json"]
        assert sent["messages"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
        ]
        assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("my-model", 0.25, 7)

    def test_temperature_zero_is_not_lost(self, upstream: Upstream, shell: Shell) -> None:
        shell("chat", "Hi", "--temperature", "0")
        assert upstream.requests()[-1]["json"]["temperature"] == 0

    def test_a_prompt_from_standard_input(self, upstream: Upstream, shell: Shell) -> None:
        shell("chat", "-", stdin="Grüße\nvon hier")
        assert upstream.requests()[-1]["json"]["messages"][-1]["content"] == "Grüße\nvon hier"

    def test_a_prompt_that_looks_like_an_option(self, upstream: Upstream, shell: Shell) -> None:
        shell("chat", "--", "--stream")
        assert upstream.requests()[-1]["json"]["messages"][-1]["content"] == "--stream"

    def test_json_is_the_whole_result(self, shell: Shell) -> None:
        for extra in ([], ["--stream"]):
            result = json.loads(shell("chat", "Hi ü", "--json", *extra).stdout)
            assert result["text"].startswith("You said: Hi ü")
            assert result["meta"]["attempts"] == 1

    def test_fallbacks(self, upstream: Upstream, shell: Shell) -> None:
        upstream.default(do.unknown_model(), model="gone")
        upstream.default(do.unknown_model(), model="gone-too")
        shell("chat", "Hi", "-m", "gone", "--fallback", "gone-too", "--fallback", "gpt-4.1")
        assert upstream.stats().calls_by_model == {"gone": 1, "gone-too": 1, "gpt-4.1": 1}

    def test_a_schema(self, shell: Shell, tmp_path: Path) -> None:
        schema = tmp_path / "schema.json"
        schema.write_text('{"type": "object", "properties": {"a": {"type": "integer"}}}')
        assert "a" in json.loads(shell("chat", "Hi", "--schema", str(schema)).stdout)


class TestModels:
    def test_one_a_line(self, upstream: Upstream, shell: Shell) -> None:
        upstream.script(do.model_list("b", "a"), model="@models")
        assert shell("models").stdout == "a\nb\n"

    def test_ids_are_lines_whatever_they_contain(self) -> None:
        body = json.dumps({"data": [{"id": "a\nb"}, {"id": "c\x1b[31m"}, {"id": "d"}]}).encode()
        with RawServer(replies(answer(body))) as server:
            lines = Shell(server.url)("models").stdout.splitlines()
        assert "d" in lines
        assert "b" not in lines
        assert all(line.isprintable() for line in lines)

    def test_what_is_no_id_is_left_out(self) -> None:
        body = b'{"data": [{"id": null}, {"id": "a"}, {}, "b", {"id": {"x": 1}}]}'
        with RawServer(replies(answer(body))) as server:
            assert Shell(server.url)("models").stdout == "a\n"


class TestErrors:
    @pytest.mark.parametrize(
        ("behaviour", "code", "kind", "words"),
        [
            (do.status(400, message="No."), 6, "bad_request", "HTTP 400"),
            (do.status(401), 3, "auth", "HTTP 401"),
            (do.status(403), 3, "auth", "HTTP 403"),
            (do.unknown_model(), 6, "bad_request", "HTTP 404"),
            (do.quota_exhausted(), 4, "quota_exhausted", "HTTP 402"),
            (do.rate_limited(0.01), 4, "rate_limited", "HTTP 429"),
            (do.rate_limited(3600), 4, "quota_exhausted", "after the deadline"),
            (do.server_error(), 5, "server_error", "HTTP 500"),
            (do.status(409), 5, "server_error", "HTTP 409"),
            (do.malformed("not_json"), 5, "bad_response", "not valid JSON"),
            (do.redirect("http://127.0.0.1:1/"), 5, "bad_response", "HTTP 307"),
            (do.reset("headers"), 5, "connection_failed", "broke"),
        ],
    )
    @pytest.mark.parametrize("extra", [[], ["--stream"], ["--json"]], ids=["", "stream", "json"])
    def test_what_the_gateway_does(
        self,
        upstream: Upstream,
        shell: Shell,
        behaviour: Any,
        code: int,
        kind: str,
        words: str,
        extra: list[str],
    ) -> None:
        upstream.default(behaviour)
        result = shell("chat", "Hi", "--retries", "0", *extra)
        fails(result, code, kind, words)
        assert result.stdout == ""

    def test_the_deadline(self, upstream: Upstream, shell: Shell) -> None:
        upstream.default(do.stall("headers", 5))
        fails(shell("chat", "Hi", "--timeout", "1", "--retries", "0"), 5, "timeout", "deadline")

    def test_nobody_listens(self) -> None:
        shell = Shell(f"http://127.0.0.1:{closed_port()}/v1")
        fails(shell("chat", "Hi", "--retries", "0"), 5, "connection_failed", "base URL")
        fails(shell("models"), 5, "connection_failed")

    def test_after_some_text(self, upstream: Upstream, shell: Shell) -> None:
        upstream.default(do.sse(error="Lost it", error_after=2))
        result = shell("chat", "Hi", "--stream")
        assert result.exit_code == 5
        assert result.stdout.startswith("You said: ")
        assert result.stderr.startswith("error: server_error: ")
        assert "Lost it" in result.stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--temperature", "5"],
            ["--max-tokens", "0"],
            ["--timeout", "0"],
            ["--timeout", "nan"],
            ["--retries", "-1"],
            ["--model", "x" * 300],
            ["--base-url", "ftp://x"],
            ["--api-key", "short"],
        ],
    )
    def test_wrong_input(self, upstream: Upstream, shell: Shell, arguments: list[str]) -> None:
        result = shell("chat", "Hi", *arguments)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert upstream.stats().calls == 0

    @pytest.mark.parametrize(
        "arguments",
        [
            ["chat"],
            ["chat", "Hi", "--temperature", "warm"],
            ["chat", "Hi", "--nonsense"],
            ["chat", "Hi", "--schema", "/nonexistent/schema.json"],
            ["nonsense"],
        ],
    )
    def test_wrong_usage(self, upstream: Upstream, shell: Shell, arguments: list[str]) -> None:
        result = shell(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert upstream.stats().calls == 0

    def test_a_schema_that_is_none(self, shell: Shell, tmp_path: Path) -> None:
        schema = tmp_path / "schema.json"
        for content in (b"{", b"[]", b'{"type": 5}', b"\xff\xfe"):
            schema.write_bytes(content)
            result = shell("chat", "Hi", "--schema", str(schema))
            assert result.exit_code == 2, content
            assert len(result.stderr.splitlines()) == 1

    def test_input_that_is_no_utf_8(self, shell: Shell) -> None:
        result = shell("chat", "-", stdin=b"\xff\xfe\xfd")
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1

    @pytest.mark.parametrize("key", [None, "", " "])
    @pytest.mark.parametrize("command", [["chat", "Hi"], ["models"]])
    def test_no_key(
        self, upstream: Upstream, shell: Shell, key: str | None, command: list[str]
    ) -> None:
        told = fails(shell(*command, HOLYSHEEP_API_KEY=key), 2, "settings", "HOLYSHEEP_API_KEY")
        assert "--api-key" in told
        assert upstream.stats().calls == 0

    def test_a_key_that_is_none(self, upstream: Upstream, shell: Shell) -> None:
        fails(shell("models", HOLYSHEEP_API_KEY="short"), 2, "settings", "api_key is too short")
        assert upstream.stats().models_calls == 0

    @pytest.mark.parametrize("prompt", ["", " ", "\n\t"], ids=repr)
    @pytest.mark.parametrize("stdin", [False, True], ids=["argument", "stdin"])
    def test_a_prompt_that_asks_nothing(
        self, upstream: Upstream, shell: Shell, prompt: str, *, stdin: bool
    ) -> None:
        result = shell("chat", "-", stdin=prompt) if stdin else shell("chat", prompt)
        fails(result, 2, "invalid_input", "empty")
        assert upstream.stats().calls == 0

    def test_a_prompt_that_is_too_long(self, upstream: Upstream, shell: Shell) -> None:
        result = shell("chat", "-", stdin="x" * 1_000_001)
        fails(result, 2, "invalid_input", "at most 1,000,000")
        assert upstream.stats().calls == 0

    def test_a_key_that_is_wrong(self, shell: Shell) -> None:
        for command in (["chat", "Hi"], ["models"]):
            fails(shell(*command, HOLYSHEEP_API_KEY="test-key-wrong-0123456789"), 3, "auth")

    def test_terminal_commands_of_the_gateway_are_not_carried_out(self) -> None:
        body = json.dumps({"error": {"message": "\x1b]0;title\x07 \x1b[2J gone"}}).encode()
        with RawServer(replies(answer(body, 400))) as server:
            line = fails(Shell(server.url)("chat", "Hi"), 6, "bad_request")
        assert line.strip().isprintable()

    @pytest.mark.parametrize("extra", [[], ["--stream"], ["--json"]], ids=["", "stream", "json"])
    def test_an_answer_with_half_a_character(self, extra: list[str]) -> None:
        half = chat_body().replace(b"hello", b"a\\ud83d")
        with RawServer(replies(answer(half))) as server:
            result = Shell(server.url)("chat", "Hi", *extra)
        assert result.exit_code == 0
        assert "a" in result.stdout

    def test_every_error_has_a_code(self) -> None:
        codes = {
            "SettingsError": 2,
            "InputError": 2,
            "AuthError": 3,
            "RateLimited": 4,
            "QuotaExhausted": 4,
            "LimitBeyondDeadline": 4,
            "LimiterTimeout": 4,
            "BudgetExceeded": 4,
            "ServerError": 5,
            "TransientConflict": 5,
            "ConnectFailed": 5,
            "TimedOut": 5,
            "BadResponse": 5,
            "Redirected": 5,
            "CircuitOpen": 5,
            "DeadlineExceeded": 5,
            "SharedAnswerLate": 5,
            "BadRequest": 6,
            "UnknownModel": 6,
            "InvalidOutput": 6,
        }
        leaves = {
            kind.__name__: exit_code(kind("told"))
            for kind in vars(errors).values()
            if isinstance(kind, type)
            and issubclass(kind, errors.HolySheepError)
            and kind.error_type != "error"
        }
        assert leaves == codes


class TestProcess:
    """What only a process of its own shows: arguments as bytes, output encodings, signals."""

    def test_a_call(self, shell: Shell) -> None:
        ended = shell.process("chat", "Grüße", "--json")
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert json.loads(ended.stdout)["text"].startswith("You said: Grüße")

    @pytest.mark.parametrize("locale", [None, "C"])
    @pytest.mark.parametrize("utf8_mode", [None, "0"])
    def test_bytes_that_are_no_utf_8(
        self, upstream: Upstream, shell: Shell, locale: str | None, utf8_mode: str | None
    ) -> None:
        env = {"LC_ALL": locale, "LANG": locale, "PYTHONUTF8": utf8_mode}
        if utf8_mode:
            env["PYTHONCOERCECLOCALE"] = "0"
        for arguments, stdin in (
            (("chat", b"caf\xe9"), b""),
            (("chat", "Hi", "--system", b"caf\xe9"), b""),
            (("chat", "-"), b"caf\xe9"),
        ):
            ended = shell.process(*arguments, env=env, input=stdin)
            assert ended.stderr == b"error: invalid_input: The input is not UTF-8 text.\n"
            assert ended.returncode == 2
        assert upstream.stats().calls == 0

    @pytest.mark.parametrize("utf8_mode", [None, "0"])
    def test_utf_8_is_read_as_such_in_any_locale(
        self, upstream: Upstream, shell: Shell, utf8_mode: str | None
    ) -> None:
        env = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": utf8_mode}
        if utf8_mode:
            env["PYTHONCOERCECLOCALE"] = "0"
        shell.process("chat", "-", env=env, input="\ufeffGrüße".encode())
        shell.process("chat", "Grüße", env=env)
        assert [request["json"]["messages"][0]["content"] for request in upstream.requests()] == [
            "Grüße",
            "Grüße",
        ]

    @pytest.mark.parametrize("command", [["chat", "Hi"], ["chat", "Hi", "--stream"], ["models"]])
    def test_an_output_that_is_full(self, shell: Shell, command: list[str]) -> None:
        ended = in_bash(shell, '"$@" > /dev/full', *command)
        told = b"error: output: The answer could not be written: No space left on device.\n"
        assert (ended.returncode, ended.stderr) == (1, told)

    @pytest.mark.parametrize("command", [["chat", "Hi"], ["chat", "Hi", "--stream"], ["models"]])
    def test_an_output_that_is_closed_costs_no_call(
        self, upstream: Upstream, shell: Shell, command: list[str]
    ) -> None:
        ended = in_bash(shell, '"$@" >&-', *command)
        told = b"error: output: The answer could not be written: Bad file descriptor.\n"
        assert (ended.returncode, ended.stderr) == (1, told)
        assert upstream.requests() == []

    @pytest.mark.parametrize("command", [["chat", "Hi"], ["chat", "Hi", "--stream"], ["models"]])
    def test_a_reader_that_never_reads(self, shell: Shell, command: list[str]) -> None:
        ended = in_bash(shell, '("$@"; echo $? >&2) | true', *command)
        assert ended.stderr == b"1\n"

    def test_an_input_that_is_closed(self, shell: Shell) -> None:
        ended = in_bash(shell, '"$@" <&-', "chat", "-")
        assert ended.returncode == 2
        assert ended.stderr.startswith(b"error: invalid_input: Standard input is closed")

    def test_a_terminal_that_knows_no_unicode(self, upstream: Upstream, shell: Shell) -> None:
        upstream.script(do.ok("Grüße 🐑"))
        ended = shell.process("chat", "Hi", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
        assert b"Traceback" not in ended.stderr
        assert ended.returncode == 0

    def test_a_reader_that_leaves(self, shell: Shell, upstream: Upstream) -> None:
        upstream.script(do.ok(chunks=["x" * 1000] * 200, chunk_delay_ms=1))
        with subprocess.Popen(
            [sys.executable, "-m", "holysheep", "chat", "Hi", "--stream"],
            cwd=ROOT,
            env={**os.environ, **{k: str(v) for k, v in shell.environment.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as running:
            assert running.stdout is not None
            assert running.stderr is not None
            running.stdout.read(10)
            running.stdout.close()
            told = running.stderr.read()
            assert running.wait(10) == 1
        assert b"Traceback" not in told


def test_version_and_help() -> None:
    assert VERSION in CliRunner().invoke(main, ["--version"]).stdout
    for arguments in (["--help"], ["chat", "-h"], ["models", "-h"]):
        result = CliRunner(env={"HOLYSHEEP_API_KEY": KEY}).invoke(main, arguments)
        assert result.exit_code == 0
        assert KEY not in result.output


class TestCost:
    def test_a_load_is_estimated_without_a_key(self) -> None:
        ran = CliRunner().invoke(
            main,
            ["cost", "-m", "gpt-4.1", "--prompt-tokens", "1000", "--completion-tokens", "500"],
            env={"HOLYSHEEP_API_KEY": ""},
        )
        assert ran.exit_code == 0, ran.stderr
        assert "| gpt-4.1 | 0.002 USD | 0 USD | 0.004 USD | 0.006 USD |" in ran.stdout

    def test_prices_of_a_file_count_first(self) -> None:
        prices = Path(__file__).parents[2] / "examples" / "article_prices.yaml"
        ran = CliRunner().invoke(
            main, ["cost", "--prompt-tokens", "1000", "--prices", str(prices), "--json"]
        )
        savings = {row["model"]: row["saving_percent"] for row in json.loads(ran.stdout)}
        assert sorted(value for value in savings.values() if value) == [66.7, 75.0, 85.0, 86.7]

    def test_a_text_may_come_from_standard_input(self) -> None:
        ran = CliRunner().invoke(
            main, ["cost", "-m", "gpt-4.1", "--text", "-"], input="word " * 400
        )
        assert ran.exit_code == 0, ran.stderr
        assert "about 501 prompt tokens" in ran.stdout

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ([], "give input_text, or prompt_tokens"),
            (["--prompt-tokens", "-1"], "prompt_tokens must be"),
            (["--prompt-tokens", "1", "--hit-rate", "2"], "cache_hit_rate must be"),
        ],
    )
    def test_a_load_that_is_none_is_refused(self, options: list[str], words: str) -> None:
        ran = CliRunner().invoke(main, ["cost", *options])
        assert ran.exit_code == 2
        assert words in ran.stderr
