"""Text for people: safe for a terminal, values in part, and the nearest word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_LINES, _LENGTH = 100, 2_000  # of a message that is for people


def sanitize_for_terminal(text: object) -> str:
    """For a terminal, which no name, file or error of others is to steer or to flood: letters and line ends alone, in
    the place of anything else a picture as wide as one letter; and so many and so long lines."""
    lines = str(text).split("\n")
    if len(lines) > _LINES:
        lines[_LINES:] = ["... and more"]
    return "\n".join(map(_visible_line, lines))


def _visible_line(line: str) -> str:
    if len(line) > _LENGTH:
        line = f"{line[: _LENGTH - 200]} ... {line[-100:]}"
    return line if line.isprintable() else "".join(c if c.isprintable() else _picture(c) for c in line)


def _picture(character: str) -> str:
    """ESC and its like are commands to a terminal, a carriage return overwrites what stands there, and the marks for
    right-to-left text show one text as another."""
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence with the choice that looks most like the word, or with all of them."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"Did you mean {close[0]}?" if close else f"There are: {', '.join(choices)}."


def truncated_repr(value: Any) -> str:
    """A value of whatever type and size, as Python writes it, in part."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_SHOWN = 200  # characters of a value in a message
