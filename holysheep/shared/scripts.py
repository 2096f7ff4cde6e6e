"""The Lua scripts, each with what stands before it."""

from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files

from holysheep import config
from holysheep.gate import Gate

PREFIX = "holysheep:1"
"""Of all keys. The number is the version of what lies behind them."""
NEWS = f"{PREFIX}:news"
"""The channel on which processes tell each other what has changed."""
CHECK_KEY = f"{PREFIX}:check"
"""What ``check`` writes."""

SERVER_TIME = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
"""

_CONSTANTS = f"""
local NEWS = '{NEWS}'
local REFUSAL_S = {config.REFUSAL_S}
local PAUSE_BASE_S = {config.PAUSE_BASE_S}
local PAUSE_MAX_S = {config.PAUSE_MAX_S}
local FULLY_OPEN = {Gate.FULLY_OPEN}
local LINE_SWEEP_S = {config.LINE_SWEEP_S}
local LINE_DEAD_S = {config.LINE_DEAD_S}
local LINE_EARLY_S = {config.LINE_EARLY_S}
"""

_BEFORE = {
    "reserve": ("limits",),
    "settle": ("limits",),
    "quit": ("limits",),
    "alive": ("limits",),
    "leave": ("limits",),
    "pause": ("limits",),
    "admit": ("breaker",),
    "report": ("breaker",),
    "spend": ("spending",),
    "spent": ("spending",),
}


@dataclass(frozen=True, slots=True)
class Script:
    """A script as Redis runs it. ``sha`` is the name under which Redis remembers it."""

    name: str
    text: str
    sha: str


@cache
def script(name: str, time: str = SERVER_TIME) -> Script:
    """The script ``lua/NAME.lua``; ``time`` says in Lua what time it is."""
    parts = ("prelude", *_BEFORE.get(name, ()), name)
    text = _CONSTANTS + time + "".join(_read(part) for part in parts)
    # What Redis calls scripts by; nothing depends on its being hard to forge.
    sha = sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script(name, text, sha)


def root_of(tag: str) -> str:
    """What keys of one credential, or one breaker, begin with; a cluster keeps them together."""
    return f"{PREFIX}:{{{tag}}}"


def _read(name: str) -> str:
    return files("holysheep.shared").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
