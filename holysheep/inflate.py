"""Decompression that cannot be made to fill the memory.

A few kilobytes of gzip can stand for gigabytes. Here a body is inflated in pieces of bounded size,
so whoever counts them can stop in time.
"""

import zlib
from collections.abc import Iterator

PIECE_BYTES = 64 * 1024
ACCEPTED = "gzip, deflate"
"""What to say in an ``accept-encoding`` header."""

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


def inflated(pieces: Iterator[bytes], content_encoding: str) -> Iterator[bytes]:
    """The pieces of a body without its content encodings, none larger than ``PIECE_BYTES``.

    Raises ``zlib.error`` for a body that is not what its header says, or in an encoding that was
    not asked for.
    """
    for encoding in reversed(content_encoding.lower().split(",")):
        match encoding.strip():
            case "" | "identity":
                continue
            case "gzip" | "x-gzip" | "deflate":
                pieces = _inflated(pieces)
            case other:
                raise zlib.error(f"unknown content encoding {other[:40]!r}")
    return pieces


def _inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
    for piece in pieces:
        left = piece
        while left:
            if decoder.eof:
                # A gzip body may have several members, one behind the other.
                decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
            part = decoder.decompress(left, PIECE_BYTES)
            left = decoder.unconsumed_tail or decoder.unused_data
            if part:
                yield part
    yield decoder.flush()
    if not decoder.eof:
        raise zlib.error("the body ends early")
