"""The steps of a rendering: what keeps a template from taking long or much.

A rendering has a number of steps. A step is one item that is read, one part of a loop's body that
is run, or 32 characters of a text. They are taken before the work is done, so that neither time
nor memory goes beyond them; a step takes half a microsecond at most.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn

from jinja2.exceptions import TemplateRuntimeError

from holysheep.config import MAX_PROMPT_CHARS

_MAX_STEPS = 500_000
CHARS_PER_STEP = 32

# Not set outside a rendering: Jinja computes constants ahead and leaves those that fail.
_steps_left: ContextVar[int] = ContextVar("_steps_left")


@contextmanager
def counted() -> Iterator[None]:
    """All steps anew, for one rendering."""
    token = _steps_left.set(_MAX_STEPS)
    try:
        yield
    finally:
        _steps_left.reset(token)


def refuse(text: str) -> NoReturn:
    """End the rendering."""
    raise TemplateRuntimeError(text)


def steps_left() -> int:
    """What the rendering can still pay for."""
    return _steps_left.get()


def take(steps: int) -> None:
    """Take steps for work that is about to be done: one at least."""
    left = _steps_left.get() - max(steps, 1)
    if left < 0:
        refuse(f"it takes more than {_MAX_STEPS} steps; loop over less or shorten the texts")
    _steps_left.set(left)


def take_chars(chars: int) -> None:
    """Take the steps for reading a text."""
    take(1 + chars // CHARS_PER_STEP)


def make_text(chars: int) -> None:
    """Take the steps for a text that is about to be made."""
    if chars > MAX_PROMPT_CHARS:
        refuse(f"a text would have more than {MAX_PROMPT_CHARS} characters")
    take_chars(chars)


def take_search(text: str, word: str) -> None:
    """Take the steps for looking for a word in a text."""
    # Python's search compares up to a whole word at every place of a text below 30,000 characters,
    # and is linear in longer ones.
    take_chars(len(text) * (1 + (min(len(word), 625) // 16 if len(text) < 30_000 else 0)))
