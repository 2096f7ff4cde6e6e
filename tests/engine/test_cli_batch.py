"""Batches and benchmarks on the command line: files, exit codes, Ctrl-C, and what a kill leaves."""

import csv
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from devtools.upstream import Upstream
from devtools.upstream import behaviours as do
from holysheep.cli import main
from tests.engine.raw_servers import KEY, closed_port, forget_proxies

ROOT = Path(__file__).parents[2]
WAY_ON = "The same command with --resume asks for the missing rows only."


class Shell:
    """Runs the command line in a folder of its own, against one gateway."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.environment = {"HOLYSHEEP_API_KEY": KEY, "HOLYSHEEP_BASE_URL": url}

    def __call__(self, *arguments: str | Path) -> Result:
        """The result of a command within this process."""
        return CliRunner(env=self.environment).invoke(main, list(map(str, arguments)))

    def batch(self, source: str | Path, *options: str | Path, output: str = "out.jsonl") -> Result:
        """The result of a batch without a limit of its own."""
        limit = ("--requests-per-minute", "0")
        return self("batch", self.folder / source, "-o", self.folder / output, *limit, *options)

    @contextmanager
    def running(self, *options: str, output: str = "out.jsonl") -> Iterator[subprocess.Popen[str]]:
        """A batch over ``in.txt`` as a process of its own, one row at a time."""
        limits = ("--requests-per-minute", "0", "--concurrency", "1")
        process = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-m", "holysheep", "batch"),
                *(self.folder / "in.txt", "-o", self.folder / output, *limits, *options),
            ],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def questions(self, count: int) -> None:
        """Make ``in.txt`` so many rows."""
        self.write("in.txt", "".join(f"question {number}\n" for number in range(count)))

    def rows(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        """The rows of a result file, which must be in order."""
        path = self.folder / name
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        assert [int(row["index"]) for row in rows] == list(range(len(rows)))
        return rows

    def statuses(self, name: str = "out.jsonl") -> list[str]:
        return [row["status"] for row in self.rows(name)]

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


@pytest.fixture
def shell(upstream: Upstream, tmp_path: Path) -> Shell:
    return Shell(upstream.url, tmp_path)


def asked(upstream: Upstream) -> list[str]:
    """What was asked, sorted."""
    return sorted(request["json"]["messages"][-1]["content"] for request in upstream.requests())


def refused(result: Result, words: str) -> None:
    """Check that a command was refused with one line before it did anything."""
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: invalid_input: ")
    assert words in result.stderr
    assert result.stdout == ""


# --- input, template, output ----------------------------------------------------------------------


INPUTS = {
    "in.txt": "Ulm\n\nLinz\n",
    "in.csv": "city;country\nUlm;DE\nLinz;AT\n",
    "in.tsv": "city\tcountry\nUlm\tDE\nLinz\tAT\n",
    "in.jsonl": '{"city": "Ulm"}\n{"city": "Linz"}\n',
    "in.ndjson": '"Ulm"\n"Linz"\n',
    "in.json": '[{"city": "Ulm"}, {"city": "Linz"}]',
}


class TestFiles:
    @pytest.mark.parametrize("name", INPUTS)
    def test_every_kind_of_input_is_asked(
        self, upstream: Upstream, shell: Shell, name: str
    ) -> None:
        shell.write(name, INPUTS[name])
        name_of_city = "item" if name in {"in.txt", "in.ndjson"} else "city"
        template = f"Where is {{{{ {name_of_city} }}}}?"
        result = shell.batch(name, "--template", template)
        assert (result.exit_code, result.stdout) == (0, "")
        assert asked(upstream) == ["Where is Linz?", "Where is Ulm?"]
        assert [row["query"] for row in shell.rows()] == ["Where is Ulm?", "Where is Linz?"]

    @pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
    def test_the_result_file_has_every_row_with_its_figures(
        self, upstream: Upstream, shell: Shell, name: str
    ) -> None:
        upstream.script(do.ok('Grüße, "you"\nthere'), do.status(400))
        shell.questions(3)
        result = shell.batch("in.txt", "-c", "1", "-m", "gpt-4.1", output=name)
        assert result.exit_code == 7
        first, second, third = shell.rows(name)
        assert first["response"] == 'Grüße, "you"\nthere'
        assert (first["status"], first["model"]) == ("ok", "gpt-4.1")
        assert float(first["cost_usd"]) > 0
        assert int(first["tokens_used"]) > 0
        assert (second["status"], second["error_type"]) == ("error", "bad_request")
        assert third["response"].startswith("You said: question 2 [")

    def test_options_become_parameters(self, upstream: Upstream, shell: Shell) -> None:
        shell.questions(1)
        shell.batch(
            "in.txt",
            *("-m", "my-model", "-s", "Be brief.", "-t", "0", "--max-tokens", "7"),
        )
        sent = upstream.requests()[-1]["json"]
        assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("my-model", 0, 7)

    def test_fallbacks(self, upstream: Upstream, shell: Shell) -> None:
        upstream.default(do.unknown_model(), model="gone")
        shell.questions(1)
        assert shell.batch("in.txt", "-m", "gone", "--fallback", "gpt-4.1").exit_code == 0
        assert shell.rows()[0]["model"] == "gpt-4.1"

    def test_a_schema(self, shell: Shell) -> None:
        schema = shell.write(
            "schema.json", '{"type": "object", "properties": {"a": {"type": "integer"}}}'
        )
        shell.questions(1)
        shell.batch("in.txt", "--schema", schema)
        assert "a" in json.loads(shell.rows()[0]["response"])

    @pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
    def test_a_template_in_a_file(self, upstream: Upstream, shell: Shell, mark: str) -> None:
        shell.questions(1)
        template = shell.write("template.txt", f"{mark}Grüße, {{{{ item }}}}!")
        shell.batch("in.txt", "--template-file", template)
        assert asked(upstream) == ["Grüße, question 0!"]

    def test_no_template_is_the_row_itself(self, upstream: Upstream, shell: Shell) -> None:
        shell.questions(1)
        for output, options in (("a.jsonl", ()), ("b.jsonl", ("--template", " "))):
            shell.batch("in.txt", *options, output=output)
            assert shell.rows(output)[0]["query"] == "question 0"
            # Taken up, it is the same prompt.
            shell.batch("in.txt", *options, "--resume", output=output)
        assert upstream.stats().calls == 2

    def test_as_many_rows_are_in_flight_as_were_asked_for(
        self, upstream: Upstream, shell: Shell
    ) -> None:
        upstream.default(do.ok(latency_ms=60))
        shell.questions(60)
        assert shell.batch("in.txt", "--concurrency", "30").exit_code == 0
        assert upstream.stats().max_in_flight == 30

    def test_rows_wait_for_the_limit_of_the_key(self, upstream: Upstream, shell: Shell) -> None:
        shell.questions(20)
        result = shell.batch("in.txt", "--requests-per-minute", "2", "--deadline", "0.5")
        statuses = shell.statuses()
        assert result.exit_code == 7
        assert 0 < statuses.count("ok") == upstream.stats().calls < 20
        assert statuses.count("ok") + statuses.count("skipped") == 20


class TestRefusals:
    def test_a_file_that_is_there_is_not_overwritten(
        self, upstream: Upstream, shell: Shell
    ) -> None:
        shell.questions(1)
        shell.write("out.jsonl", "mine")
        refused(shell.batch("in.txt"), "out.jsonl exists. Choose another name, or take it up")
        assert (shell.folder / "out.jsonl").read_text() == "mine"
        assert upstream.stats().calls == 0

    @pytest.mark.parametrize("content", ['{"a": "x"}\n', '"a text"\n'])
    def test_the_input_is_no_output(self, upstream: Upstream, shell: Shell, content: str) -> None:
        shell.write("in.jsonl", content)
        refused(shell.batch("in.jsonl", output="in.jsonl"), "exists")
        refused(shell.batch("in.jsonl", "--resume", output="in.jsonl"), "is no result file")
        assert (shell.folder / "in.jsonl").read_text() == content
        assert upstream.stats().calls == 0

    @pytest.mark.parametrize(
        ("output", "words"),
        [
            ("missing/out.jsonl", "No such file or directory"),
            ("in.txt/out.jsonl", "Not a directory"),
            ("/proc/out.jsonl", "cannot be written"),
            ("out.txt", "must end in .jsonl or .csv"),
            ("out.JSONL", "must end in .jsonl or .csv"),
            ("", "must end in .jsonl or .csv"),
            ("/dev/full", "must end in .jsonl or .csv"),
        ],
    )
    @pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
    def test_an_output_that_cannot_be_made_costs_no_call(
        self, upstream: Upstream, shell: Shell, output: str, words: str, resume: tuple[str, ...]
    ) -> None:
        shell.questions(2)
        refused(shell.batch("in.txt", *resume, output=output), words)
        assert upstream.stats().calls == 0
        assert shell.files() == {"in.txt"}

    def test_a_device_behind_a_link_is_no_output(self, upstream: Upstream, shell: Shell) -> None:
        shell.questions(1)
        (shell.folder / "out.jsonl").symlink_to("/dev/full")
        refused(shell.batch("in.txt"), "/dev/full")
        refused(shell.batch("in.txt", "--resume"), "/dev/full")
        assert upstream.stats().calls == 0

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("missing.csv", None, "missing.csv cannot be read: No such file or directory"),
            (".", None, "cannot be read: Is a directory"),
            ("in.txt", "", "has no rows"),
            ("in.csv", "a,b\n", "has no rows"),
            ("in.csv", "a,a\n1,2\n", "two columns are named 'a'"),
            ("in.jsonl", "{\n", "is no JSON"),
            ("in.json", "[1, {}]", "all must be alike"),
            ("in.xlsx", b"PK\x03\x04", "spreadsheet"),
            ("in.pdf", "x", "unknown kind"),
        ],
        ids=lambda value: str(value)[:12],
    )
    def test_an_input_that_is_none(
        self, upstream: Upstream, shell: Shell, name: str, content: Any, words: str
    ) -> None:
        if content is not None:
            shell.write(name, content)
        refused(shell.batch(name), words)
        assert upstream.stats().calls == 0
        assert not (shell.folder / "out.jsonl").exists()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--template", "{{ item"), "prompt_template is no usable template"),
            (("--template", "{{ town }}"), "uses town, which no row has"),
            (("--concurrency", "0"), "concurrency must be a whole number from 1 to 100, got 0"),
            (("--concurrency", "101"), "concurrency"),
            (("--deadline", "0"), "deadline_s must be a number above 0"),
            (("--deadline", "nan"), "deadline_s must be a number above 0"),
            (("--row-timeout", "0"), "row_timeout_s"),
            (("--temperature", "3"), "temperature"),
            (("--retries", "11"), "max_retries"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_options_that_cannot_be_used(
        self, upstream: Upstream, shell: Shell, options: tuple[str, ...], words: str
    ) -> None:
        shell.questions(1)
        refused(shell.batch("in.txt", *options), words)
        assert upstream.stats().calls == 0
        assert shell.files() == {"in.txt"}

    def test_two_templates(self, shell: Shell) -> None:
        shell.questions(1)
        file = shell.folder / "in.txt"
        refused(shell.batch("in.txt", "--template", "x", "--template-file", file), "not both")

    def test_a_template_file_that_is_no_text(self, shell: Shell) -> None:
        shell.questions(1)
        file = shell.write("template.txt", b"caf\xe9")
        refused(shell.batch("in.txt", "--template-file", file), "not UTF-8")

    @pytest.mark.parametrize("options", [("--nonsense",), ("--schema", "/nonexistent")])
    def test_wrong_usage(self, upstream: Upstream, shell: Shell, options: tuple[str, ...]) -> None:
        shell.questions(1)
        result = shell.batch("in.txt", *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert shell("batch", shell.folder / "in.txt").exit_code == 2
        assert upstream.stats().calls == 0

    def test_no_key(self, shell: Shell) -> None:
        shell.questions(1)
        shell.environment["HOLYSHEEP_API_KEY"] = ""
        result = shell.batch("in.txt")
        assert result.exit_code == 2
        assert "HOLYSHEEP_API_KEY" in result.stderr
        assert shell.files() == {"in.txt"}


class TestExitCodes:
    @pytest.mark.parametrize(
        ("behaviour", "code", "kind"),
        [
            (do.status(401), 3, "auth"),
            (do.quota_exhausted(), 4, "quota_exhausted"),
            (do.outage(), 5, "server_error"),
            (do.malformed("not_json"), 5, "bad_response"),
            (do.status(400), 6, "bad_request"),
        ],
        ids=lambda value: str(value) if isinstance(value, str | int) else "",
    )
    def test_no_answer_at_all_ends_as_its_first_failure_does(
        self, upstream: Upstream, shell: Shell, behaviour: Any, code: int, kind: str
    ) -> None:
        upstream.default(behaviour)
        shell.questions(3)
        result = shell.batch("in.txt", "--retries", "0", "-c", "1")
        assert (result.exit_code, result.stdout) == (code, "")
        assert result.stderr.splitlines()[-1].startswith(f"error: {kind}: No row was answered")
        assert len(shell.rows()) == 3
        assert KEY not in result.output

    def test_nobody_listens(self, tmp_path: Path) -> None:
        shell = Shell(f"http://127.0.0.1:{closed_port()}/v1", tmp_path)
        shell.questions(1)
        result = shell.batch("in.txt", "--retries", "0")
        assert result.exit_code == 5
        assert result.stderr.splitlines()[-1].startswith("error: connection_failed: ")

    def test_the_deadline_before_any_answer(self, upstream: Upstream, shell: Shell) -> None:
        upstream.default(do.stall("headers", 60))
        shell.questions(2)
        result = shell.batch("in.txt", "--deadline", "0.2")
        assert result.exit_code == 5
        assert result.stderr.splitlines()[-1].startswith("error: timeout: No row was answered")
        assert shell.statuses() == ["skipped", "skipped"]

    def test_rows_none_of_which_has_a_prompt(self, upstream: Upstream, shell: Shell) -> None:
        shell.write("in.jsonl", '{"a": " "}\n{"a": ""}\n')
        assert shell.batch("in.jsonl", "--template", "{{ a }}").exit_code == 2
        assert upstream.stats().calls == 0

    def test_some_rows_without_an_answer(self, upstream: Upstream, shell: Shell) -> None:
        upstream.script(do.ok(), do.status(400))
        shell.questions(3)
        result = shell.batch("in.txt", "-c", "1")
        assert result.exit_code == 7
        assert "**2 of 3 rows answered**, 1 failed (bad_request 1)" in result.stderr
        assert WAY_ON in result.stderr
        assert "error: " not in result.stderr

    def test_stop_on_error(self, upstream: Upstream, shell: Shell) -> None:
        upstream.script(do.ok(), do.status(400))
        shell.questions(4)
        assert shell.batch("in.txt", "-c", "1", "--stop-on-error").exit_code == 7
        assert shell.statuses() == ["ok", "error", "skipped", "skipped"]
        assert upstream.stats().calls == 2

    def test_all_rows_answered(self, shell: Shell) -> None:
        shell.questions(3)
        result = shell.batch("in.txt")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "**3 of 3 rows answered**" in result.stderr
        assert f"All rows: {shell.folder / 'out.jsonl'}" in result.stderr
        assert WAY_ON not in result.stderr

    def test_a_deadline_may_be_later_than_a_node_s(self, shell: Shell) -> None:
        shell.questions(1)
        assert shell.batch("in.txt", "--deadline", "100000").exit_code == 0


# --- taking up ------------------------------------------------------------------------------------


class TestResume:
    @pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
    def test_only_rows_that_failed_or_were_skipped_are_asked(
        self, upstream: Upstream, shell: Shell, name: str
    ) -> None:
        upstream.script(do.ok(), do.ok(), do.status(400))
        shell.questions(5)
        shell.batch("in.txt", "-c", "1", "--stop-on-error", output=name)
        assert shell.statuses(name) == ["ok", "ok", "error", "skipped", "skipped"]
        answers = [row["response"] for row in shell.rows(name)[:2]]
        upstream.reset()
        result = shell.batch("in.txt", "-c", "1", "--resume", output=name)
        assert (result.exit_code, result.stdout) == (0, "")
        assert asked(upstream) == ["question 2", "question 3", "question 4"]
        assert shell.statuses(name) == ["ok"] * 5
        assert [row["response"] for row in shell.rows(name)[:2]] == answers
        assert "2 taken over from the file" in result.stderr
        assert shell.files() == {"in.txt", name}

    def test_a_complete_file_costs_no_call(self, upstream: Upstream, shell: Shell) -> None:
        shell.questions(3)
        shell.batch("in.txt")
        before = (shell.folder / "out.jsonl").read_bytes()
        upstream.reset()
        assert shell.batch("in.txt", "--resume").exit_code == 0
        assert upstream.stats().calls == 0
        assert (shell.folder / "out.jsonl").read_bytes() == before

    def test_without_a_file_it_begins_one(self, upstream: Upstream, shell: Shell) -> None:
        shell.questions(2)
        assert shell.batch("in.txt", "--resume").exit_code == 0
        assert upstream.stats().calls == 2

    def test_rows_that_fail_again_are_still_there(self, upstream: Upstream, shell: Shell) -> None:
        upstream.script(do.ok())
        upstream.default(do.status(400))
        shell.questions(3)
        for options in ((), ("--resume",), ("--resume",)):
            assert shell.batch("in.txt", "-c", "1", *options).exit_code == 7
            assert shell.statuses() == ["ok", "error", "error"]
        assert upstream.stats().calls == 5 + 2

    def test_rows_with_another_template_are_asked_again(
        self, upstream: Upstream, shell: Shell
    ) -> None:
        shell.write("in.csv", "city,note\nUlm,\nLinz,please\nGraz,\n")
        shell.batch("in.csv", "--template", "{{ city }}?")
        upstream.reset()
        # The prompt of two rows stays what it was.
        changed = "{{ city }}?{% if note %} {{ note }}{% endif %}"
        assert shell.batch("in.csv", "--template", changed, "--resume").exit_code == 0
        assert asked(upstream) == ["Linz? please"]
        assert [row["query"] for row in shell.rows()] == ["Ulm?", "Linz? please", "Graz?"]

    @pytest.mark.parametrize(
        ("now", "expected"),
        [
            ("one\ntwo\nthree\nfour\n", ["four"]),
            ("one\n2\nthree\n", ["2"]),
            ("one\ntwo\n", []),
            ("zero\none\ntwo\nthree\n", ["one", "three", "two", "zero"]),
        ],
        ids=["longer", "changed", "shorter", "shifted"],
    )
    def test_the_input_may_have_changed(
        self, upstream: Upstream, shell: Shell, now: str, expected: list[str]
    ) -> None:
        shell.write("in.txt", "one\ntwo\nthree\n")
        shell.batch("in.txt")
        shell.write("in.txt", now)
        upstream.reset()
        assert shell.batch("in.txt", "--resume").exit_code == 0
        assert asked(upstream) == expected
        assert [row["query"] for row in shell.rows()] == now.split()
        assert all(
            row["response"].startswith(f"You said: {row['query']} [") for row in shell.rows()
        )

    def test_a_result_file_is_its_own_input(self, upstream: Upstream, shell: Shell) -> None:
        upstream.script(do.ok(), do.status(400))
        shell.questions(3)
        shell.batch("in.txt", "-c", "1")
        upstream.reset()
        assert shell.batch("out.jsonl", "--resume").exit_code == 0
        assert asked(upstream) == ["question 1"]
        assert shell.statuses() == ["ok"] * 3

    @pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
    def test_half_a_row_at_the_end_is_asked_again(
        self, upstream: Upstream, shell: Shell, name: str
    ) -> None:
        upstream.default(do.ok('two\n"lines"\n'))
        shell.questions(3)
        shell.batch("in.txt", output=name)
        path = shell.folder / name
        upstream.reset()
        path.write_bytes(path.read_bytes()[:-30])
        assert shell.batch("in.txt", "--resume", output=name).exit_code == 0
        assert asked(upstream) == ["question 2"]
        assert shell.statuses(name) == ["ok"] * 3


# --- signals --------------------------------------------------------------------------------------


def ends(process: subprocess.Popen[str], code: int) -> str:
    """Wait for the end of a process; what it told on standard error, with nothing on the other."""
    shown, told = process.communicate(timeout=8)
    assert "Traceback" not in told
    assert (process.returncode, shown) == (code, ""), told
    return told


@pytest.fixture
def in_flight(upstream: Upstream, shell: Shell) -> Callable[[int, str], None]:
    """Waits until so many rows are in the file and the next one is at the gateway."""

    def wait(count: int, name: str) -> None:
        path = shell.folder / name
        upstream.wait_for(
            lambda stats: (
                stats.in_flight == 1
                and (not count or (path.exists() and path.read_bytes().count(b"\n") == count))
            ),
            timeout_s=10,
        )

    return wait


class TestInterrupted:
    def test_ctrl_c_leaves_a_file_that_resume_completes(
        self, upstream: Upstream, shell: Shell, in_flight: Any
    ) -> None:
        upstream.script(do.ok(), do.ok())
        upstream.default(do.stall("headers", 60))
        shell.questions(6)
        with shell.running() as process:
            in_flight(2, "out.jsonl")
            process.send_signal(signal.SIGINT)
            told = ends(process, 1)
        assert "**2 of 6 rows answered**, 4 skipped" in told
        assert WAY_ON in told
        assert shell.statuses() == ["ok"] * 2 + ["skipped"] * 4
        assert {row["error"] for row in shell.rows()[2:]} == {"Interrupted."}
        upstream.wait_for(lambda stats: stats.in_flight == 0 and stats.aborted_by_client == 1)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # nobody is left of its group
        upstream.reset()
        assert shell.batch("in.txt", "--resume").exit_code == 0
        assert asked(upstream) == [f"question {number}" for number in range(2, 6)]
        assert shell.statuses() == ["ok"] * 6

    def test_many_rows_in_flight_are_given_up_at_once(
        self, upstream: Upstream, shell: Shell
    ) -> None:
        upstream.default(do.stall("headers", 60))
        shell.questions(40)
        with shell.running("--concurrency", "20") as process:
            upstream.wait_for(lambda stats: stats.in_flight == 20, timeout_s=10)
            process.send_signal(signal.SIGINT)
            ends(process, 1)
        assert shell.statuses() == ["skipped"] * 40
        assert upstream.stats().calls == 20

    def test_ctrl_c_on_a_resumed_run_loses_nothing(
        self, upstream: Upstream, shell: Shell, in_flight: Any
    ) -> None:
        # Answered: 0, 1 and 5. The resumed run gets to 3.
        shell.write("in.txt", "question 0\nquestion 1\n \n \n \nquestion 5\n")
        shell.write(
            "in.jsonl",
            "".join(json.dumps({"a": f"question {n}"}) + "\n" for n in range(6)),
        )
        template = "{% if a in ['question 0', 'question 1', 'question 5'] %}{{ a }}{% endif %}"
        shell.batch("in.jsonl", "--template", template)
        assert [row["status"] == "ok" for row in shell.rows()] == [True] * 2 + [False] * 3 + [True]
        shell.questions(6)
        upstream.reset()
        upstream.script(do.ok())
        upstream.default(do.stall("headers", 60))
        with shell.running("--resume") as process:
            in_flight(3, "out.resumed.jsonl")
            process.send_signal(signal.SIGINT)
            ends(process, 1)
        assert shell.statuses() == ["ok"] * 3 + ["skipped"] * 2 + ["ok"]
        assert shell.files() == {"in.txt", "in.jsonl", "out.jsonl"}
        upstream.reset()
        assert shell.batch("in.txt", "--resume").exit_code == 0
        assert asked(upstream) == ["question 3", "question 4"]

    def test_while_the_benchmark_runs(self, upstream: Upstream, shell: Shell) -> None:
        upstream.default(do.stall("headers", 60))
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "holysheep", "benchmark"],
            cwd=ROOT,
            env={**os.environ, **shell.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                upstream.wait_for(lambda stats: stats.in_flight == 1, timeout_s=10)
                process.send_signal(signal.SIGINT)
                ends(process, 1)
            finally:
                process.kill()


class TestKilled:
    @pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
    def test_what_was_answered_is_in_the_file(
        self, upstream: Upstream, shell: Shell, in_flight: Any, name: str
    ) -> None:
        upstream.script(do.ok(), do.ok())
        upstream.default(do.stall("headers", 60))
        shell.questions(5)
        with shell.running(output=name) as process:
            in_flight(2 if name == "out.jsonl" else 3, name)
            process.kill()
        path = shell.folder / name
        assert shell.statuses(name) == ["ok", "ok"]
        # As if it had been in the middle of the next one.
        path.write_bytes(path.read_bytes() + b'{"index": 2, "status": "ok", "query": "que')
        upstream.reset()
        assert shell.batch("in.txt", "--resume", output=name).exit_code == 0
        assert asked(upstream) == ["question 2", "question 3", "question 4"]
        assert shell.statuses(name) == ["ok"] * 5

    def test_neither_the_old_run_s_answers_are_lost_nor_the_resumed_one_s(
        self, upstream: Upstream, shell: Shell, in_flight: Any
    ) -> None:
        upstream.script(do.status(400), do.status(400), do.ok(), do.ok())
        upstream.default(do.status(400))
        shell.questions(5)
        shell.batch("in.txt", "-c", "1")
        before = (shell.folder / "out.jsonl").read_bytes()
        assert shell.statuses() == ["error", "error", "ok", "ok", "error"]
        upstream.reset()
        upstream.script(do.ok())
        upstream.default(do.stall("headers", 60))
        with shell.running("--resume") as process:
            in_flight(1, "out.resumed.jsonl")
            process.kill()
        assert (shell.folder / "out.jsonl").read_bytes() == before
        assert shell.statuses("out.resumed.jsonl") == ["ok"]
        # Without --resume neither is touched.
        refused(shell.batch("in.txt"), "exists")
        # A third run is killed before it has got anywhere.
        upstream.wait_for(lambda stats: stats.in_flight == 0)
        with shell.running("--resume") as process:
            in_flight(1, "out.resumed.jsonl")
            process.kill()
        upstream.reset()
        assert shell.batch("in.txt", "--resume").exit_code == 0
        assert asked(upstream) == ["question 1", "question 4"]
        assert shell.statuses() == ["ok"] * 5
        assert shell.files() == {"in.txt", "out.jsonl"}


# --- streams --------------------------------------------------------------------------------------


class TestOutput:
    def test_a_disk_that_fills_up_ends_it_with_one_clear_line(
        self, upstream: Upstream, shell: Shell
    ) -> None:
        upstream.default(do.ok(size_bytes=1500))
        shell.questions(4)
        # A file may have two kilobytes, so the second row does not fit.
        command = [
            *("bash", "-c", 'ulimit -f 2; exec "$@"', "bash"),
            *(sys.executable, "-W", "error", "-m", "holysheep", "batch"),
            *(shell.folder / "in.txt", "-o", shell.folder / "out.jsonl"),
            *("--requests-per-minute", "0", "-c", "1"),
        ]
        environment = {**os.environ, **shell.environment, "PYTHONDONTWRITEBYTECODE": "1"}
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            check=False,
            timeout=10,
            text=True,
        )
        path = shell.folder / "out.jsonl"
        told = f"error: output: {path} could not be written: File too large. {WAY_ON}"
        assert ended.stderr.strip() == told
        assert (ended.returncode, ended.stdout) == (1, "")
        upstream.reset()
        assert shell.batch("in.txt", "--resume").exit_code == 0
        assert asked(upstream) == ["question 1", "question 2", "question 3"]

    def test_progress_is_shown_to_a_terminal_and_nothing_on_standard_output(
        self, shell: Shell
    ) -> None:
        shell.questions(20)
        for command, expected in (
            (("batch", shell.folder / "in.txt", "-o", shell.folder / "out.jsonl"), b""),
            (("benchmark", "-n", "7"), b"Answered | 7 of 7"),
        ):
            controller, terminal = pty.openpty()
            with os.fdopen(controller, "rb", buffering=0) as screen:
                ended = subprocess.run(
                    [sys.executable, "-m", "holysheep", *command],
                    cwd=ROOT,
                    env={**os.environ, **shell.environment, "TERM": "xterm"},
                    stdout=subprocess.PIPE,
                    stderr=terminal,
                    check=False,
                    timeout=10,
                )
                os.close(terminal)
                shown = read_all(screen)
            assert ended.returncode == 0
            assert b"100%" in shown
            assert expected in ended.stdout
            assert bool(ended.stdout) is bool(expected)
            assert b"%" not in ended.stdout


def read_all(screen: Any) -> bytes:
    """What was shown on a terminal that nobody writes to any more."""
    shown = b""
    try:
        while piece := screen.read(65536):
            shown += piece
    except OSError:
        pass  # how Linux says that the other end is closed
    return shown


class TestBenchmark:
    def test_it_prints_a_table(self, upstream: Upstream, shell: Shell) -> None:
        upstream.default(do.ok(latency_ms=30))
        result = shell(
            *("benchmark", "-n", "12", "-c", "4", "-m", "gpt-4.1"),
            *("--prompt", "Grüße", "--max-tokens", "9"),
        )
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        assert lines[0] == "| gpt-4.1 | 4 at a time |"
        assert lines[2] == "| Answered | 12 of 12 |"
        assert {"P50", "P95", "P99", "Minimum", "Maximum", "Throughput", "Cost"} <= {
            line.split("|")[1].strip() for line in lines if line.startswith("|")
        }
        assert "nearest-rank" in result.stdout
        assert result.stderr.strip() == ""
        stats = upstream.stats()
        assert (stats.calls, stats.max_in_flight) == (12, 4)
        sent = upstream.requests()[-1]["json"]
        assert (sent["messages"][0]["content"], sent["max_tokens"]) == ("Grüße", 9)

    def test_more_calls_at_a_time_than_an_ordinary_credential_allows(
        self, upstream: Upstream, shell: Shell
    ) -> None:
        upstream.default(do.ok(latency_ms=150))
        assert shell("benchmark", "-n", "100", "-c", "50").exit_code == 0
        stats = upstream.stats()
        assert (stats.calls, stats.max_in_flight) == (100, 50)

    def test_failures_are_told_by_type(self, upstream: Upstream, shell: Shell) -> None:
        upstream.script(do.status(400), do.ok())
        result = shell("benchmark", "-n", "2")
        assert result.exit_code == 0
        assert "| Answered | 1 of 2 |" in result.stdout
        assert "Failed: bad_request 1." in result.stdout

    @pytest.mark.parametrize(
        ("behaviour", "code"), [(do.status(401), 3), (do.quota_exhausted(), 4), (do.outage(), 5)]
    )
    def test_no_answer_at_all_is_an_error(
        self, upstream: Upstream, shell: Shell, behaviour: Any, code: int
    ) -> None:
        upstream.default(behaviour)
        result = shell("benchmark", "-n", "2")
        assert (result.exit_code, result.stdout) == (code, "")
        assert result.stderr.strip().startswith("error: ")
        assert "No call was answered (2 failed)" in result.stderr

    @pytest.mark.parametrize(
        "options",
        [("-n", "0"), ("-n", "501"), ("-c", "0"), ("-c", "101"), ("--deadline", "581")],
        ids=" ".join,
    )
    def test_options_that_cannot_be_used(
        self, upstream: Upstream, shell: Shell, options: tuple[str, ...]
    ) -> None:
        refused(shell("benchmark", *options), "must be")
        assert upstream.stats().calls == 0
