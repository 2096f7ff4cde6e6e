"""Files of the LLM node: images travel in the request, and everything else is refused."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from tests.nodes.servers import Exchange, LoopbackServer, closed_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.nodes.support import Llm

MAX_BYTES = 20 * 1024 * 1024
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(64))
GIF = b"GIF89a" + bytes(range(64))
WEBP = b"RIFF\x40\x00\x00\x00WEBPVP8 " + bytes(range(64))
PDF = b"%PDF-1.7\n" + bytes(range(64))
IMAGES = {"png": PNG, "jpeg": JPEG, "gif": GIF, "webp": WEBP}


def content_of(exchange: Exchange) -> bytes:
    name = exchange.path.rpartition("/")[2].partition("?")[0].partition(".")[0]
    if name.startswith("size-"):
        size = int(name.removeprefix("size-"))
        return PNG + bytes(size - len(PNG))
    return {**IMAGES, "pdf": PDF, "text": b"just text", "empty": b""}[name]


def serve(exchange: Exchange) -> None:
    exchange.answer(200, content_of(exchange), {"content-type": "application/octet-stream"})


def serve_without_end(exchange: Exchange) -> None:
    """A body without a length, for as long as the client reads it, up to 100 MB."""
    exchange.begin(200, {"content-type": "image/png"})
    exchange.send(PNG)
    piece = bytes(1024 * 1024)
    for _ in range(100):
        exchange.send(piece)
    exchange.server.seen.append(("END", exchange.path))


def announce_100_mb(exchange: Exchange) -> None:
    """A head that says how large the file is, and a client that need not read any of it."""
    exchange.send_response(200)
    exchange.send_header("content-length", str(100 * 1024 * 1024))
    exchange.end_headers()
    piece = bytes(1024 * 1024)
    for _ in range(100):
        exchange.send(piece)
    exchange.server.seen.append(("END", exchange.path))


def break_off(exchange: Exchange) -> None:
    exchange.send_response(200)
    exchange.send_header("content-length", "5000")
    exchange.end_headers()
    exchange.send(PNG)
    exchange.close_connection = True


@pytest.fixture(scope="module")
def file_server() -> Iterator[LoopbackServer]:
    with LoopbackServer(
        {
            "*": serve,
            "/files/endless": serve_without_end,
            "/files/announced": announce_100_mb,
            "/files/broken": break_off,
            "/files/gone": lambda exchange: exchange.answer(404, b"signature expired"),
            "/files/forbidden": lambda exchange: exchange.answer(403, b"no"),
            "/files/failing": lambda exchange: exchange.answer(500, b"no"),
            "/files/moved": lambda exchange: exchange.answer(302, b"", {"location": "/files/png"}),
        }
    ) as server:
        yield server


@pytest.fixture
def files(file_server: LoopbackServer) -> LoopbackServer:
    """A file server as Dify has one, nothing fetched from it yet."""
    file_server.seen.clear()
    return file_server


def a_file(url: str, *, name: str = "picture.png", kind: str = "image") -> dict[str, Any]:
    """A file as the host hands it to a plugin."""
    return {
        "dify_model_identity": "__dify__file__",
        "url": url,
        "filename": name,
        "mime_type": "image/png",
        "extension": ".png",
        "size": 72,
        "type": kind,
    }


def image(server: LoopbackServer, path: str = "png", **names: str) -> dict[str, Any]:
    return a_file(f"{server.url}/files/{path}?timestamp=1&nonce=2&sign=do-not-show", **names)


def data_url(kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(IMAGES[kind]).decode()}"


@pytest.mark.parametrize("kind", IMAGES)
def test_image_is_sent_with_its_bytes_and_its_real_type(
    llm: Llm, files: LoopbackServer, kind: str
) -> None:
    assert llm.body("What is this?", files=[image(files, kind)])["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": data_url(kind)}},
            ],
        }
    ]


def test_images_keep_their_order_and_come_with_the_query_only(
    llm: Llm, files: LoopbackServer
) -> None:
    body = llm.body(
        "Compare",
        system_prompt="Be brief.",
        history=[{"role": "user", "content": "Hello"}],
        files=[image(files, kind) for kind in IMAGES],
    )
    *before, last = body["messages"]
    assert [message["content"] for message in before] == ["Be brief.", "Hello"]
    urls = [part["image_url"]["url"] for part in last["content"][1:]]
    assert urls == [data_url(kind) for kind in IMAGES]


@pytest.mark.parametrize("none", [[], None, ""], ids=["list", "null", "text"])
def test_without_files_the_query_stays_a_text(llm: Llm, none: Any) -> None:
    assert llm.body("Why?", files=none)["messages"][0]["content"] == "Why?"


def test_a_single_file_is_as_good_as_a_list_of_one(llm: Llm, files: LoopbackServer) -> None:
    body = llm.body(files=image(files))
    assert body["messages"][0]["content"][1]["image_url"]["url"] == data_url("png")


def test_same_image_under_a_newly_signed_address_is_a_cache_hit(
    llm: Llm, files: LoopbackServer
) -> None:
    llm.ok(files=[a_file(f"{files.url}/files/png?sign=one")])
    again = llm.ok(files=[a_file(f"{files.url}/files/png?sign=two")])
    assert again.variables["meta"]["cache"] == "hit"
    other = llm.ok(files=[a_file(f"{files.url}/files/gif?sign=one")])
    assert other.variables["meta"]["cache"] == "miss"
    assert llm.calls == 2


@pytest.mark.parametrize("on_error", ["fail", "continue"])
@pytest.mark.parametrize("path", ["pdf", "text", "empty"])
def test_file_that_is_no_image_is_refused_by_name(
    llm: Llm, files: LoopbackServer, path: str, on_error: str
) -> None:
    message = llm.refusal(files=[image(files), image(files, path, name="b.png")], on_error=on_error)
    assert "b.png" in message


def test_twenty_images_are_sent(llm: Llm, files: LoopbackServer) -> None:
    content = llm.body(files=[image(files)] * 20)["messages"][0]["content"]
    assert len(content) == 21


def test_more_than_twenty_images_are_refused_before_any_is_fetched(
    llm: Llm, files: LoopbackServer
) -> None:
    message = llm.refusal(files=[image(files)] * 21)
    assert "21" in message
    assert "20" in message
    assert files.seen == []


def test_file_of_exactly_20_mb_is_sent(llm: Llm, files: LoopbackServer) -> None:
    llm.ok(files=[image(files, f"size-{MAX_BYTES}")])
    (sent,) = llm.bodies
    assert len(sent["messages"][0]["content"][1]["image_url"]["url"]) > MAX_BYTES * 4 // 3


def test_file_one_byte_above_20_mb_is_refused(llm: Llm, files: LoopbackServer) -> None:
    message = llm.refusal(files=[image(files, f"size-{MAX_BYTES + 1}", name="huge.png")])
    assert "huge.png" in message
    assert "20 MB" in message


@pytest.mark.parametrize("path", ["endless", "announced"])
def test_file_that_is_far_too_large_is_not_read_to_its_end(
    llm: Llm, files: LoopbackServer, path: str
) -> None:
    assert "20 MB" in llm.refusal(files=[image(files, path)])
    assert ("END", files.seen[0][1]) not in files.seen


@pytest.mark.parametrize("path", ["gone", "forbidden", "failing", "broken"])
def test_file_that_cannot_be_had_is_refused_by_name(
    llm: Llm, files: LoopbackServer, path: str
) -> None:
    message = llm.refusal(files=[image(files, path, name="lost.png")])
    assert "lost.png" in message
    assert "do-not-show" not in message


def test_file_server_that_is_down_is_named_as_a_setting_of_dify(llm: Llm) -> None:
    url = f"http://127.0.0.1:{closed_port()}/files/a?sign=do-not-show"
    message = llm.refusal(files=[a_file(url, name="lost.png")])
    assert "lost.png" in message
    assert "FILES_URL" in message
    assert "do-not-show" not in message


@pytest.mark.parametrize(
    "url",
    [
        "/files/a.png?sign=do-not-show",
        "",
        "ftp://host/a.png",
        "file:///etc/hosts",
        "http://",
        "h:p",
    ],
    ids=["no_host", "empty", "ftp", "file", "no_name", "no_scheme"],
)
def test_file_without_a_usable_address_is_refused_by_name(llm: Llm, url: str) -> None:
    message = llm.refusal(files=[a_file(url, name="lost.png")])
    assert "lost.png" in message
    assert "FILES_URL" in message
    assert "do-not-show" not in message


@pytest.mark.parametrize(
    "given",
    ["https://example.com/a.png", ["https://example.com/a.png"], [5], [None], {"url": "x"}, [{}]],
    ids=["text", "texts", "numbers", "nulls", "mapping", "mappings"],
)
def test_files_that_are_no_files_are_refused(llm: Llm, given: Any) -> None:
    assert "files" in llm.refusal(files=given)


def test_file_server_that_hangs_is_cut_at_the_deadline(llm: Llm) -> None:
    def hang(exchange: Exchange) -> None:
        exchange.rfile.read(1)  # until the client leaves

    with LoopbackServer({"*": hang}) as server:
        result = llm.start(files=[image(server, name="lost.png")], timeout_s=1).result()
    assert result.error is not None
    llm.check_error(result.error)
    assert "lost.png" in result.error.message
    assert "did not arrive from Dify in time" in result.error.message
    assert "FILES_URL" not in result.error.message
    assert 900 <= result.elapsed_ms <= 1500
    assert llm.calls == 0


def test_bad_parameter_is_refused_before_a_file_is_fetched(llm: Llm, files: LoopbackServer) -> None:
    llm.refusal(files=[image(files)], temperature=3)
    assert files.seen == []
