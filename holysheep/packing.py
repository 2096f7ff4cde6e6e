"""JSON texts as bytes to be stored: compressed where that is worth it."""

import zlib

_COMPRESSED_FROM_BYTES = 1024
_MAX_UNPACKED_BYTES = 64 * 1024 * 1024


def compressed(text: bytes, level: int = 1) -> bytes:
    """A JSON text in fewer bytes, if it is not short; ``level`` is from 1 (quick) to 9 (small)."""
    # To compress a little takes as long as to compress a lot: the memory for it is cleared first.
    return zlib.compress(text, level) if len(text) > _COMPRESSED_FROM_BYTES else text


def decompressed(packed: bytes) -> bytes:
    """What ``compressed`` was given. Raises ``ValueError`` for what it has not made."""
    if packed.startswith(b"{"):
        return packed
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(packed, _MAX_UNPACKED_BYTES)
    except zlib.error as error:
        raise ValueError(f"it is not compressed ({error})") from None
    if not reader.eof:
        raise ValueError("it is cut off, or too large")
    return text
