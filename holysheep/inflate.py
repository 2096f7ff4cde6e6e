"""Decompression that cannot be made to fill the memory.

A few kilobytes of gzip can stand for gigabytes. Here a body is inflated in pieces of bounded size,
so whoever counts them can stop in time.
"""

import zlib
from collections.abc import Iterator

PIECE_BYTES = 64 * 1024
ACCEPTED = "gzip, deflate"
"""What to say in an ``accept-encoding`` header."""

_MAX_ENCODINGS = 4
_GZIP_START = 0x1F
_ZLIB_START = 0x08
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


def inflated(pieces: Iterator[bytes], content_encoding: str) -> Iterator[bytes]:
    """The pieces of a body without its content encodings, none larger than ``PIECE_BYTES``.

    Raises ``zlib.error`` for a body that is not what its header says, or in an encoding that was
    not asked for.
    """
    encodings = [name.strip() for name in content_encoding.lower().split(",")]
    if len(encodings) > _MAX_ENCODINGS:
        raise zlib.error("compressed too many times")
    for encoding in reversed(encodings):
        match encoding:
            case "" | "identity":
                continue
            case "gzip" | "x-gzip" | "deflate":
                pieces = _inflated(pieces)
            case other:
                raise zlib.error(f"unknown content encoding {other[:40]!r}")
    return pieces


def _inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    decoder = None
    for piece in pieces:
        left = piece
        while left:
            if decoder is None:
                # "deflate" comes with a zlib header, as the standard says, or without one.
                is_raw = left[0] != _GZIP_START and left[0] & 0x0F != _ZLIB_START
                decoder = zlib.decompressobj(-zlib.MAX_WBITS if is_raw else _GZIP_OR_ZLIB)
            elif decoder.eof:
                # A gzip body may have several members, or padding, one behind the other.
                if left[0] != _GZIP_START:
                    return
                decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
            part = decoder.decompress(left, PIECE_BYTES)
            left = decoder.unconsumed_tail or decoder.unused_data
            if part:
                yield part
    if decoder is not None and not decoder.eof:
        raise zlib.error("the body ends early")
