"""Images: what counts as one, and how a file is fetched from the host."""

import base64
import gzip
import time
from typing import Any

import pytest

from holysheep import config
from holysheep.errors import InputError
from holysheep.media import Image, fetch_file, image_from_bytes
from holysheep.ports import SystemClock
from tests.engine.raw_servers import (
    Link,
    RawServer,
    answer,
    chunked,
    closed_port,
    forget_proxies,
    full_backlog,
    replies,
)

CLOCK = SystemClock()
PNG = b"\x89PNG\r\n\x1a\n" + b"rest"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_proxies(monkeypatch)


def fetch(url: Any, name: str = "a.png", *, timeout_s: float = 5.0) -> bytes:
    return fetch_file(url, name, clock=CLOCK, deadline_s=CLOCK.monotonic() + timeout_s)


class TestImages:
    @pytest.mark.parametrize(
        ("content", "mime_type"),
        [
            (PNG, "image/png"),
            (b"\xff\xd8\xff\xe0rest", "image/jpeg"),
            (b"GIF87arest", "image/gif"),
            (b"GIF89arest", "image/gif"),
            (b"RIFF\x00\x00\x00\x00WEBPrest", "image/webp"),
        ],
    )
    def test_the_content_says_what_it_is(self, content: bytes, mime_type: str) -> None:
        head, _, encoded = image_from_bytes(content, "a.txt").url.partition(",")
        assert head == f"data:{mime_type};base64"
        assert base64.b64decode(encoded) == content

    @pytest.mark.parametrize(
        "content", [b"", b"text", b"%PDF-1.7", b"<svg>", b"RIFF\x00\x00\x00\x00WAVE", b"\x89PNG"]
    )
    def test_others_are_refused(self, content: bytes) -> None:
        with pytest.raises(InputError, match=r"'a\.png' is no image \(PNG, JPEG, GIF or WebP\)"):
            image_from_bytes(content, "a.png")

    def test_one_that_is_too_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(config, "MAX_FILE_BYTES", 2 * 1024 * 1024)
        image_from_bytes(PNG.ljust(2 * 1024 * 1024, b"x"))
        with pytest.raises(InputError, match="larger than 2 MB"):
            image_from_bytes(PNG.ljust(2 * 1024 * 1024 + 1, b"x"))

    def test_its_content_does_not_show_in_logs(self) -> None:
        assert "data:" not in repr(image_from_bytes(PNG))
        assert repr(Image("https://host/a.png?sign=x")) == "Image()"

    def test_a_long_or_odd_name_keeps_the_message_short(self) -> None:
        with pytest.raises(InputError) as caught:
            image_from_bytes(b"", "a\nb\x1b" * 1000)
        assert len(caught.value.message) < 200
        assert caught.value.message.isprintable()


class TestFetch:
    def test_content(self) -> None:
        with RawServer(replies(answer(PNG))) as server:
            assert fetch(f"{server.origin}/files/1?sign=a%2Fb&x=1") == PNG
            assert server.requests[0].line == "GET /files/1?sign=a%2Fb&x=1 HTTP/1.1"
            assert "authorization" not in server.requests[0].headers

    def test_nothing_stays_open(self) -> None:
        with RawServer(replies(answer(PNG))) as server:
            for _ in range(3):
                fetch(server.origin)
            assert server.connections == 3

    def test_a_chunked_and_a_compressed_file(self) -> None:
        plain = chunked(PNG[:3], PNG[3:])
        packed = answer(gzip.compress(PNG), headers={"content-encoding": "gzip"})
        with RawServer(replies(plain, packed)) as server:
            assert [fetch(server.origin) for _ in range(2)] == [PNG, PNG]

    @pytest.mark.parametrize("status", [204, 206, 301, 302, 401, 403, 404, 500])
    def test_other_answers(self, status: int) -> None:
        odd = answer(b"", status, {"location": "http://127.0.0.1:1/"})
        with RawServer(replies(odd)) as server, pytest.raises(InputError) as caught:
            fetch(server.origin)
        assert caught.value.message == (
            f"The file 'a.png' could not be fetched from Dify (HTTP {status})."
        )

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "files/1",
            "/files/1",
            "file:///etc/passwd",
            "ftp://host/x",
            "http://",
            "http:///x",
            "http://[::1",
            "http://host:port/",
            "http://host\x00/",
            "data:image/png;base64,AAAA",
        ],
    )
    def test_an_address_that_can_be_none(self, url: str) -> None:
        with pytest.raises(InputError, match=r"no usable address\. Set FILES_URL"):
            fetch(url)

    @pytest.mark.parametrize("url", ["http://a..b/", "http://127.0.0.1:99999/x"])
    def test_an_address_that_leads_nowhere(self, url: str) -> None:
        with pytest.raises(InputError):
            fetch(url, timeout_s=1.0)

    def test_nobody_listens(self) -> None:
        with pytest.raises(InputError, match="must be able to reach FILES_URL"):
            fetch(f"http://127.0.0.1:{closed_port()}/files/1?sign=secret")

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"nonsense\r\n\r\n",
            answer(PNG, length=500),
            chunked(PNG, end=False),
            answer(b"no gzip", headers={"content-encoding": "gzip"}),
        ],
        ids=["nothing", "no HTTP", "short", "no end", "no gzip"],
    )
    def test_a_broken_answer(self, raw: bytes) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            link.send(raw)

        with RawServer(serve) as server, pytest.raises(InputError) as caught:
            fetch(f"{server.origin}/x?sign=secret")
        assert "secret" not in caught.value.message
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("compressed", [False, True])
    def test_a_large_file_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, *, compressed: bool
    ) -> None:
        monkeypatch.setattr(config, "MAX_FILE_BYTES", 1024 * 1024)
        content = bytes(3 * 1024 * 1024)
        large = answer(content)
        if compressed:
            large = answer(gzip.compress(content), headers={"content-encoding": "gzip"})
        with (
            RawServer(replies(large)) as server,
            pytest.raises(InputError, match=r"'a\.png' is larger than 1 MB"),
        ):
            fetch(server.origin)

    @pytest.mark.parametrize("beginning", [b"", chunked(PNG, end=False)], ids=["head", "body"])
    def test_a_server_that_stops_is_cut_off(self, beginning: bytes) -> None:
        def serve(link: Link) -> None:
            link.read_request()
            link.send(beginning)
            link.wait_for_end()

        with RawServer(serve) as server:
            began_s = time.monotonic()
            with pytest.raises(InputError) as caught:
                fetch(server.origin, timeout_s=0.2)
            assert 0.2 <= time.monotonic() - began_s < 0.6
        assert caught.value.message == (
            "The file 'a.png' did not arrive from Dify in time. Raise timeout_s, or use a smaller"
            " file."
        )

    def test_an_address_that_lets_nobody_in_is_no_slow_server(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listener, waiting = full_backlog("127.0.0.1")
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/files/1"
        try:
            with pytest.raises(InputError, match="did not arrive from Dify in time"):
                fetch(url, timeout_s=0.1)
            monkeypatch.setattr(config, "CONNECT_TIMEOUT_S", 0.1)
            with pytest.raises(InputError, match="must be able to reach FILES_URL"):
                fetch(url)
        finally:
            for sock in (listener, *waiting):
                sock.close()

    def test_a_proxy_of_the_environment_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with RawServer(replies(answer(PNG))) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.origin)
            assert fetch("http://files.test/1") == PNG

    @pytest.mark.parametrize("proxy", ["http://proxy:port", "ftp://x", "socks4://127.0.0.1:1"])
    def test_a_proxy_setting_that_cannot_be_used(
        self, monkeypatch: pytest.MonkeyPatch, proxy: str
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with pytest.raises(InputError):
            fetch("http://files.test/1")
