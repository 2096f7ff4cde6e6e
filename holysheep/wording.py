"""How values are put into messages that people read."""


def shortened(text: str, limit: int = 200) -> str:
    """``text``, or its first ``limit`` characters and an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def span(seconds: float) -> str:
    """A span of time: ``0.4 s``, ``42 s``, ``3600 s (1 h)``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    shown = f"{seconds:.0f} s"
    if seconds < 120:
        return shown
    minutes = seconds / 60
    return f"{shown} ({minutes:.0f} min)" if minutes < 120 else f"{shown} ({minutes / 60:.1f} h)"
