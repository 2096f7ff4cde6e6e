"""How values are put into messages that people read."""


def shortened(text: str, limit: int = 200) -> str:
    """``text``, or its first ``limit`` characters and an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


_YEAR_S = 365 * 86_400


def span(seconds: float) -> str:
    """A span of time: ``0.4 s``, ``42 s``, ``7200 s (2.0 h)``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds > _YEAR_S:
        return "more than a year"
    shown = f"{seconds:.0f} s"
    if seconds < 120:
        return shown
    minutes = seconds / 60
    return f"{shown} ({minutes:.0f} min)" if minutes < 90 else f"{shown} ({minutes / 60:.1f} h)"
