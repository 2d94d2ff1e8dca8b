"""Text for people: safe for a terminal, shortened, and with suggestions for misspelled words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_LINES, _LENGTH = 100, 2_000  # limits of a message
_MAX_REPR = 200  # characters of a value in a message


def sanitize_for_terminal(text: object) -> str:
    """Replace control characters by visible ones and limit the length: names and errors of others may contain anything.

    ESC and its like are commands to a terminal, a carriage return overwrites the line, and the marks for right-to-left
    text show one text as another.
    """
    lines = str(text).split("\n")
    if len(lines) > _LINES:
        lines[_LINES:] = ["... and more"]
    return "\n".join(map(_visible_line, lines))


def _visible_line(line: str) -> str:
    if len(line) > _LENGTH:
        line = f"{line[: _LENGTH - 200]} ... {line[-100:]}"
    # Unicode has a picture for each of the first 32 characters.
    return "".join(c if c.isprintable() else chr(0x2400 + ord(c)) if c < " " else "\ufffd" for c in line)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence with the most similar choice, or with all choices."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=1)
    return f"Did you mean {close[0]}?" if close else f"There are: {', '.join(choices)}."


def truncated_repr(value: Any) -> str:
    """The repr of any value, shortened."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of levels
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= _MAX_REPR else f"{text[:_MAX_REPR]}..."
