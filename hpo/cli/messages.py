"""Messages to the user, on stderr."""

from __future__ import annotations

import sys

from model.common.text import sanitize_for_terminal


def say(message: object) -> None:
    print(sanitize_for_terminal(message), file=sys.stderr)
