"""Who gets in, what gets in, and what must never get out."""

from __future__ import annotations

import gzip
import json
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from devtools.upstream import behaviours as do
from tests.endpoints.support import (
    CHAT,
    HEALTH,
    METRICS,
    MODELS,
    USAGE_JSON,
    check_error,
    fresh_token,
    message,
)
from tests.host.daemon import PROJECT_ROOT, PluginProcess
from tests.nodes.support import KEY_MARK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.endpoints.support import Endpoint
    from tests.host.daemon import HttpCall

GUARDED = [("POST", CHAT), ("GET", MODELS), ("GET", USAGE_JSON), ("GET", METRICS)]
STATIC = ["/dashboard", "/dashboard/style.css", "/dashboard/script.js"]
JSON = {"Content-Type": "application/json"}
PAUSE_MS = 500
"""How long a wrong token is kept waiting."""

guarded = pytest.mark.parametrize(("method", "path"), GUARDED, ids=[path for _, path in GUARDED])


def body_for(method: str) -> bytes:
    return json.dumps(message()).encode() if method == "POST" else b""


# --- tokens -------------------------------------------------------------------------------------


NO_BEARER: list[dict[str, str]] = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer "},
    {"Authorization": "TOKEN"},
    {"Authorization": "Basic TOKEN"},
    {"Authorization": "Token TOKEN"},
    {"Authorization": "Bearer: TOKEN"},
    {"X-Api-Key": "TOKEN"},
    {"Api-Key": "TOKEN"},
    {"Cookie": "access_token=TOKEN; token=TOKEN; Authorization=Bearer TOKEN"},
    {"Proxy-Authorization": "Bearer TOKEN"},
]


@guarded
def test_nothing_but_the_bearer_header_opens(endpoint: Endpoint, method: str, path: str) -> None:
    tries = [
        {name: value.replace("TOKEN", endpoint.token) for name, value in given.items()}
        for given in NO_BEARER
    ]
    calls = [
        endpoint.start(method, path, headers={**JSON, **given}, body=body_for(method))
        for given in tries
    ]
    for given, call in zip(tries, calls, strict=True):
        answer = endpoint.checked(call.result())
        assert answer.status == 401, given
        assert answer.headers["Www-Authenticate"].startswith("Bearer")
        check_error(answer, 401)
    assert endpoint.upstream.requests() == []


@guarded
def test_token_in_the_query_is_refused(endpoint: Endpoint, method: str, path: str) -> None:
    names = ("access_token", "token", "api_key", "key", "authorization", "bearer")
    targets = [f"{path}?{name}={endpoint.token}" for name in names]
    calls = [endpoint.start(method, to, headers=JSON, body=body_for(method)) for to in targets]
    assert {endpoint.checked(call.result()).status for call in calls} == {401}
    assert endpoint.upstream.requests() == []


@pytest.mark.parametrize("where", ["query", "cookie"])
def test_token_in_query_or_cookie_is_no_token_for_health_either(
    endpoint: Endpoint, where: str
) -> None:
    path = f"{HEALTH}?access_token={endpoint.token}" if where == "query" else HEALTH
    headers = {"Cookie": f"access_token={endpoint.token}"} if where == "cookie" else {}
    answer = endpoint.ask("GET", path, headers=headers)
    assert answer.status in {400, 401} or answer.json() == {"status": "ok"}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_scheme_is_read_without_regard_to_case(endpoint: Endpoint, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {endpoint.token}"}
    assert endpoint.ask("GET", MODELS, headers=headers).status == 200


def wrong_tokens(token: str) -> dict[str, str]:
    return {
        "prefix": token[:-1],
        "longer": token + "x",
        "case": token.upper(),
        "other": fresh_token(),
        "list": f"{token}, {token}",
        "quoted": f'"{token}"',
        "non-ascii": "té" * 10,
        "latin": "\xff" * 20,
        "long": "x" * 8000,
    }


def test_wrong_token_is_refused_and_slowed_down(endpoint: Endpoint) -> None:
    wrong = wrong_tokens(endpoint.token)
    calls = {
        kind: endpoint.start(
            "POST",
            CHAT,
            headers={"Authorization": f"Bearer {given}", **JSON},
            body=body_for("POST"),
        )
        for kind, given in wrong.items()
    }
    for kind, call in calls.items():
        answer = endpoint.checked(call.result())
        assert answer.elapsed_ms >= PAUSE_MS - 20, kind
        check_error(answer, 401, code="invalid_api_key")
    assert endpoint.calls == 0


def test_many_wrong_tokens_are_not_all_kept_waiting_and_the_right_one_is_not_slowed(
    endpoint: Endpoint,
) -> None:
    wrong = {"Authorization": f"Bearer {fresh_token()}"}
    began_s = time.perf_counter()
    calls: list[HttpCall] = [endpoint.start("GET", MODELS, headers=wrong) for _ in range(100)]
    right = endpoint.get(MODELS)
    assert right.status == 200
    assert right.elapsed_ms < 400
    answers = [endpoint.checked(call.result()) for call in calls]
    assert time.perf_counter() - began_s < 2.5
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {401, 429}
    assert statuses.count(401) == 20
    for answer in answers:
        if answer.status == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            check_error(answer, 429)
    late = endpoint.ask("GET", MODELS, headers=wrong)
    assert late.status == 401, "there is room again"


def test_wrong_tokens_of_one_endpoint_leave_another_alone(endpoint: Endpoint) -> None:
    wrong = {"Authorization": f"Bearer {fresh_token()}"}
    calls = [endpoint.start("GET", MODELS, headers=wrong) for _ in range(60)]
    answer = endpoint.like(access_token=fresh_token()).get(MODELS)
    assert answer.status == 200
    for call in calls:
        call.result()


def test_token_that_is_long_and_full_of_signs_works(endpoint: Endpoint) -> None:
    token = fresh_token() + "!#$%&'()*+-./:;<=>?@[]^_`{|}~" * 8
    assert endpoint.like(access_token=token).get(MODELS).status == 200


def test_white_space_round_a_pasted_token_does_no_harm(endpoint: Endpoint) -> None:
    token = fresh_token()
    pasted = endpoint.like(access_token=f" {token}\n")
    answer = pasted.ask("GET", MODELS, headers={"Authorization": f"Bearer {token}"})
    assert answer.status == 200


# --- what every answer carries ------------------------------------------------------------------


@pytest.mark.parametrize("path", STATIC)
def test_page_holds_no_data_and_no_script_inside(endpoint: Endpoint, path: str) -> None:
    endpoint.ok(message("a secret question"))
    answer = endpoint.ask("GET", path)
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    for secret in (endpoint.token, endpoint.key, endpoint.model, endpoint.upstream.url, "secret"):
        assert secret not in answer.text
    if path == "/dashboard":
        assert answer.headers["Content-Type"].startswith("text/html")
        assert " style=" not in answer.text
        assert " onclick" not in answer.text
        assert "<script>" not in answer.text


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/dashboard", "text/html"),
        ("/dashboard/style.css", "text/css"),
        ("/dashboard/script.js", "text/javascript"),
        (HEALTH, "application/json"),
    ],
)
def test_static_parts_have_their_type_and_ask_for_no_token(
    endpoint: Endpoint, path: str, kind: str
) -> None:
    answer = endpoint.ask("GET", path)
    assert answer.status == 200
    assert kind in answer.headers["Content-Type"]


@pytest.mark.parametrize(
    "path",
    [
        "/dashboard/../manifest.yaml",
        "/dashboard/..%2f..%2fmanifest.yaml",
        "/dashboard/%2e%2e/%2e%2e/etc/passwd",
        "/dashboard/nothing.js",
        "/dashboard//script.js",
        "/",
        "/v1",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models/gpt-4.1",
        "/v1/chat/completions/",
        "/usage",
        "/metrics/x",
        "/.env",
    ],
)
def test_unknown_routes_are_not_found_and_tell_nothing(endpoint: Endpoint, path: str) -> None:
    answer = endpoint.start("GET", path, headers=endpoint.bearer).result()
    assert answer.status in {404, 405, 308}
    assert answer.error is None
    for secret in (endpoint.token, endpoint.key, "Traceback", "manifest.yaml:", "root:"):
        assert secret not in answer.text


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_other_methods_than_post_do_not_reach_the_chat(endpoint: Endpoint, method: str) -> None:
    answer = endpoint.start(
        method, CHAT, headers={**endpoint.bearer, **JSON}, body=body_for("POST")
    ).result()
    assert answer.status in {404, 405, 200}
    assert answer.error is None
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert endpoint.calls == 0


@pytest.mark.parametrize("path", [MODELS, USAGE_JSON, METRICS, HEALTH, "/dashboard"])
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST", "PUT", "DELETE"])
def test_other_methods_than_get_give_nothing_away(
    endpoint: Endpoint, method: str, path: str
) -> None:
    answer = endpoint.start(method, path).result()
    assert answer.status in {200, 401, 404, 405}
    assert answer.error is None
    assert "holysheep_" not in answer.text
    assert "gpt-4.1" not in answer.text
    if method == "HEAD":
        assert answer.body == b""


# --- bodies -------------------------------------------------------------------------------------

NO_BODY: dict[str, bytes] = {
    "empty": b"",
    "no json": b"hello",
    "cut": b'{"messages": [{"role": "user", "content": "hi"',
    "more": b'{"messages": [{"role": "user", "content": "hi"}]} {}',
    "list": b"[]",
    "text": b'"hi"',
    "null": b"null",
    "number": b"1",
    "nothing in it": b"{}",
    "nan": b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
    "infinity": b'{"messages": [{"role": "user", "content": "hi"}], "top_p": -Infinity}',
    "huge float": b'{"messages": [{"role": "user", "content": "hi"}], "top_p": 1e999}',
    "huge integer": b'{"messages": [{"role":"user","content":"hi"}], "seed": ' + b"9" * 5000 + b"}",
    "latin-1": '{"messages": [{"role": "user", "content": "é"}]}'.encode("latin-1"),
    "utf-16": json.dumps(message()).encode("utf-16"),
    "utf-32": json.dumps(message()).encode("utf-32-le"),
    "surrogates": b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
    "deep list": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"messages": [], "x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "deep and cut": b"[" * 3_000_000,
    "single quotes": b"{'messages': []}",
    "comment": b'{"messages": [] /* x */}',
    "trailing comma": b'{"messages": [{"role": "user", "content": "hi"}],}',
    "control": b'{"messages": [{"role": "user", "content": "a\nb"}]}',
    "gzip": gzip.compress(json.dumps(message()).encode()),
    "zeros": b"\0" * 100,
    "form": b"messages=hi&model=x",
}


@pytest.mark.parametrize("body", NO_BODY.values(), ids=NO_BODY)
def test_body_that_is_no_request_is_refused(endpoint: Endpoint, body: bytes) -> None:
    error = endpoint.refusal(body)
    assert error["type"] == "invalid_request_error"
    said = error["message"]
    assert len(said) < 300
    for word in ("codec", "recursion", "start byte", "object at 0x"):
        assert word not in said.lower(), "the words of Python"


@pytest.mark.parametrize("depth", [101, 200, 500, 900, 1000, 1500, 3000, 20_000])
@pytest.mark.parametrize("brackets", ["[]", '{"a":1}'], ids=["lists", "objects"])
def test_deep_values_are_refused_at_every_depth(
    endpoint: Endpoint, depth: int, brackets: str
) -> None:
    opening, closing = ("[", "]") if brackets == "[]" else ('{"a":', "}")
    deep = opening * depth + "1" + closing * depth
    body = json.dumps(message())[:-1] + f', "x": {deep}}}'
    endpoint.refusal(body.encode())


def test_value_as_deep_as_a_schema_may_be_is_passed_on(endpoint: Endpoint) -> None:
    deep: Any = 1
    for _ in range(90):
        deep = {"a": deep}
    endpoint.ok(message(x=deep))
    assert endpoint.bodies[-1]["x"] == deep


NO_FIELD: dict[str, tuple[dict[str, Any], str]] = {
    "messages null": ({"messages": None}, "messages"),
    "messages text": ({"messages": "hi"}, "messages"),
    "messages empty": ({"messages": []}, "messages"),
    "messages object": ({"messages": {}}, "messages"),
    "message text": ({"messages": ["hi"]}, "messages"),
    "message null": ({"messages": [None]}, "messages"),
    "message list": ({"messages": [[]]}, "messages"),
    "model number": ({"model": 1}, "model"),
    "model list": ({"model": ["a"]}, "model"),
    "model object": ({"model": {}}, "model"),
    "model nothing": ({"model": []}, "model"),
    "model zero": ({"model": 0}, "model"),
    "model false": ({"model": False}, "model"),
    "stream text": ({"stream": "yes"}, "stream"),
    "stream number": ({"stream": 2}, "stream"),
    "stream_options text": ({"stream": True, "stream_options": "x"}, "stream_options"),
}


@pytest.mark.parametrize(("fields", "param"), NO_FIELD.values(), ids=NO_FIELD)
def test_field_of_a_wrong_type_is_named(
    endpoint: Endpoint, fields: dict[str, Any], param: str
) -> None:
    error = endpoint.refusal(message() | fields)
    assert (error["param"] or "").startswith(param)


@pytest.mark.parametrize(
    "fields",
    [
        *({"temperature": "hot"}, {"temperature": [1]}, {"max_tokens": "many"}, {"max_tokens": -1}),
        *({"max_tokens": 10**30}, {"max_tokens": True}, {"n": "two"}, {"n": -5}, {"n": 10**9}),
        *({"tools": "x"}, {"tools": {}}, {"tools": [None]}, {"stop": 5}, {"seed": 1.5}),
        *({"logprobs": "x"}, {"response_format": "x"}, {"response_format": []}, {"user": {}}),
        *({"max_completion_tokens": []}, {"top_p": None}, {"stream": None}, {"model": None}),
        *({"stream_options": None}, {"messages": [{}]}, {"messages": [{"role": 1}]}),
        *({"messages": [{"role": "user", "content": 5}]},),
        *({"messages": [{"role": "user", "content": [None, "x", {"type": "image_url"}]}]},),
        *({"messages": [{"role": "user", "content": None, "tool_calls": "x"}]},),
        {"": 1},
        {"\0": "\0"},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"model": "\udfff"},
    ],
    ids=lambda fields: ascii(fields)[:40],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_odd_field_is_passed_on_or_refused_but_breaks_nothing(
    endpoint: Endpoint, fields: dict[str, Any], stream: bool
) -> None:
    answer = endpoint.chat({**message(), "stream": stream, **fields})
    assert answer.status in {200, 400, 422}
    if answer.status != 200:
        check_error(answer, answer.status)


def test_fields_that_clash_with_the_client_s_own_are_data(endpoint: Endpoint) -> None:
    odd = {"url": "http://x", "headers": {"a": "b"}, "timeout": 0, "extra_body": {"stream": True}}
    endpoint.ok(message(**odd))
    (sent,) = endpoint.bodies
    assert {name: sent[name] for name in odd} == odd


def test_doubled_key_counts_once(endpoint: Endpoint) -> None:
    answer = endpoint.chat(b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}]}')
    assert answer.status in {200, 400}
    if answer.status == 200:
        assert endpoint.bodies[-1]["model"] == "b"


@pytest.mark.parametrize(
    "kind",
    [
        *("application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"),
        *('application/json; charset="utf-8"', "application/json ; q=1"),
    ],
)
def test_json_is_taken_however_it_is_spelt(endpoint: Endpoint, kind: str) -> None:
    endpoint.ok(content_type=kind)


@pytest.mark.parametrize(
    "kind",
    [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        *("text/json", "application/jsonx", "text/html", "*/*", ""),
        *("application/json; charset=latin-1", "application/octet-stream"),
    ],
)
def test_other_content_types_are_refused(endpoint: Endpoint, kind: str) -> None:
    endpoint.refusal(message(), 415, content_type=kind)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "gzip, gzip"])
def test_packed_bodies_are_refused(endpoint: Endpoint, coding: str) -> None:
    packed = gzip.compress(json.dumps(message()).encode())
    endpoint.refusal(packed, 415, content_encoding=coding)


@pytest.mark.parametrize("size", [10_000_001, 10 * 1024 * 1024 - 1, 10 * 1024 * 1024, 11_000_000])
def test_body_above_the_limit_is_refused(endpoint: Endpoint, size: int) -> None:
    frame = len(json.dumps(message("")).encode())
    body = json.dumps(message("x" * (size - frame))).encode()
    assert len(body) == size
    endpoint.refusal(body, 413)


def test_body_below_the_limit_is_taken(endpoint: Endpoint) -> None:
    frame = len(json.dumps(message("")).encode())
    endpoint.ok(message("x" * (9_999_999 - frame)))
    assert endpoint.calls == 1


def test_many_messages_are_taken_quickly(endpoint: Endpoint) -> None:
    many = {"messages": [{"role": "user", "content": "x"}] * 100_000}
    assert endpoint.ok(many).elapsed_ms < 5000


# --- headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [90, 150, 1000, 20_000])
def test_header_flood_is_refused_or_borne(endpoint: Endpoint, count: int) -> None:
    flood = [(f"X-Flood-{number}", "x" * 20) for number in range(count)]
    answer = endpoint.ask("GET", MODELS, headers=[*flood, *endpoint.bearer.items()])
    assert answer.status in {200, 400, 401, 431}
    assert endpoint.get(MODELS).status == 200


@pytest.mark.parametrize("size", [10_000, 65_530, 70_000, 1_000_000])
def test_huge_header_is_refused_or_borne(endpoint: Endpoint, size: int) -> None:
    answer = endpoint.ask("GET", MODELS, headers={**endpoint.bearer, "X-Huge": "x" * size})
    assert answer.status in {200, 400, 401, 431}
    assert endpoint.get(MODELS).status == 200


@pytest.mark.parametrize(
    "query", ["a=" + "x" * 100_000, "&".join(f"a{n}=b" for n in range(20_000))]
)
def test_huge_query_is_refused_or_borne(endpoint: Endpoint, query: str) -> None:
    answer = endpoint.ask("GET", f"{USAGE_JSON}?{query}", headers=endpoint.bearer)
    assert answer.status in {200, 400, 414, 431}


def test_nothing_of_the_caller_is_put_into_headers(endpoint: Endpoint) -> None:
    evil = "x\r\nSet-Cookie: a=b"
    for answer in (
        endpoint.chat(message(model=evil)),
        endpoint.chat(message(), x_request_id="evil-id"),
        endpoint.chat(message() | {"stream": True, "model": evil}),
    ):
        shown = repr(answer.headers)
        assert "Set-Cookie" not in shown
        assert "evil" not in shown


def test_nothing_of_upstream_s_headers_comes_back(endpoint: Endpoint) -> None:
    hostile = {
        "set-cookie": "a=b",
        "access-control-allow-origin": "*",
        "x-powered-by": "evil",
        "content-security-policy": "default-src *",
        "x-upstream": "inside",
        "server": "evil",
    }
    endpoint.upstream.script(do.ok(headers=hostile), do.ok(headers=hostile))
    for form in ({}, {"stream": True}):
        answer = endpoint.ok(message(f"{form}") | form)
        assert not {"Set-Cookie", "X-Powered-By", "X-Upstream"} & set(answer.headers)


def test_hostile_request_id_of_upstream_does_no_harm(endpoint: Endpoint) -> None:
    endpoint.upstream.script(do.ok(headers={"x-request-id": "é" * 10 + "<script>" + "x" * 5000}))
    shown = endpoint.ok().headers["X-Request-Id"]
    assert len(shown) <= 256
    assert shown.isascii()
    assert "<" not in shown


# --- what must never get out --------------------------------------------------------------------


def repeating(told: str, style: Any) -> dict[str, do.Behaviour]:
    """Failures whose bodies say ``told``."""
    named: dict[str, Any] = {"message": told, "body_style": style}
    codes = {"error_code": told, "error_type": told, "param": told}
    return {
        **{str(code): do.status(code, **named, **codes) for code in (400, 401, 402, 403, 404)},
        "429": do.rate_limited(retry_after_ms=1, **named),
        "529": do.status(529, **named, **codes),
    }


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "stream"])
@pytest.mark.parametrize("style", ["openai", "string", "text", "html"])
@pytest.mark.parametrize("status", ["400", "401", "402", "403", "404", "429"])
def test_key_that_upstream_repeats_is_not_told(
    endpoint: Endpoint, status: str, style: Any, form: dict[str, Any]
) -> None:
    told = f"Incorrect API key provided: {endpoint.key} (Authorization: Bearer {endpoint.key})"
    endpoint.upstream.default(repeating(told, style)[status])
    answer = endpoint.chat(message() | form)
    assert answer.status >= 400
    assert endpoint.key[len(KEY_MARK) : len(KEY_MARK) + 12] not in answer.text


def test_key_that_a_failing_upstream_repeats_is_not_told(endpoint: Endpoint) -> None:
    endpoint.upstream.default(repeating(f"no {endpoint.key}", "openai")["529"])
    assert endpoint.chat().status == 502


def test_key_in_the_middle_of_a_stream_s_error_is_not_told(endpoint: Endpoint) -> None:
    error = {"message": f"bad key {endpoint.key}", "code": endpoint.key}
    endpoint.upstream.script(do.sse(chunks=["a ", "b "], error=error, error_after=2))
    endpoint.chat(message() | {"stream": True})


def test_inside_of_the_network_is_not_told(endpoint: Endpoint) -> None:
    """To whoever has the token the address may be told, not what stands behind it."""
    port = urlsplit(endpoint.upstream.url).port
    gone = endpoint.like(base_url="http://user:pass-word@127.0.0.1:9/v1?secret=query-secret")
    text = gone.chat().text
    assert "pass-word" not in text
    assert "query-secret" not in text
    assert str(port) not in text


def test_storage_that_fails_shows_no_inside(endpoint: Endpoint) -> None:
    endpoint.plugin.storage.fail_next(50, message="disk /var/lib/secret-path is on fire")
    for answer in (endpoint.chat(), endpoint.get(METRICS), endpoint.get(HEALTH)):
        assert answer.status < 500
        assert "secret-path" not in answer.text


FAULTS = {
    '    """OpenAI\'s list of models."""\n': "    {fault}\n",
    "                    yield from self._ending(event)\n": "                    {fault}\n",
}
"""Lines of the gateway's code, and what then stands after them: a bug."""


@pytest.fixture(scope="module")
def broken_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PluginProcess]:
    """The plugin with two bugs: in its list of models, and at the end of a stream."""
    folder = tmp_path_factory.mktemp("broken_plugin")
    for name in ("main.py", "manifest.yaml", "_assets", "nodes", "provider", "host", "group"):
        (folder / name).symlink_to(PROJECT_ROOT / name)
    for name in ("endpoints", "holysheep"):
        (folder / name).mkdir()
        for path in (PROJECT_ROOT / name).iterdir():
            (folder / name / path.name).symlink_to(path)
    gateway = folder / "holysheep" / "gateway.py"
    code = gateway.read_text(encoding="utf-8")
    for line, bug in FAULTS.items():
        assert code.count(line) == 1
        code = code.replace(line, line + bug.format(fault='raise KeyError("inside-of-it")'))
    gateway.unlink()
    gateway.write_text(code, encoding="utf-8")
    with PluginProcess(folder) as process:
        yield process


@pytest.fixture
def broken(endpoint: Endpoint, broken_process: PluginProcess) -> Endpoint:
    """The endpoint in that process."""
    endpoint.plugin = broken_process
    return endpoint


def test_bug_is_told_to_the_log_alone(broken: Endpoint) -> None:
    error = check_error(broken.get(MODELS), 500, type="server_error")
    assert "inside-of-it" not in str(error)
    assert "KeyError: 'inside-of-it'" in broken.plugin.logged
    assert broken.plugin.stderr == ""


def test_bug_in_mid_stream_ends_it_without_done(broken: Endpoint) -> None:
    answer = broken.ok(message() | {"stream": True})
    assert b"inside-of-it" not in answer.body
    assert b"[DONE]" not in answer.body
    broken.ok(message("another"))


# --- on the socket ------------------------------------------------------------------------------


def talk(endpoint: Endpoint, *parts: bytes, close: bool = False) -> bytes:
    """Send parts of a request one after another; what comes back until the end or a close."""
    address = urlsplit(endpoint.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as client:
        for part in parts:
            client.sendall(part)
        if close:
            return b""
        client.shutdown(socket.SHUT_WR)
        received = b""
        while part := client.recv(65536):
            received += part
        return received


def head_of(endpoint: Endpoint, length: int) -> bytes:
    path = urlsplit(endpoint.url).path + CHAT
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {endpoint.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_body_that_never_comes_to_its_end_reaches_nobody(endpoint: Endpoint) -> None:
    body = json.dumps(message()).encode()
    assert talk(endpoint, head_of(endpoint, len(body) + 10), body) == b""
    talk(endpoint, head_of(endpoint, len(body) + 10), body[:10], close=True)
    assert endpoint.calls == 0
    endpoint.ok()
