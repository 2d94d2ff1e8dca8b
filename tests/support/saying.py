"""Runs `hpo` in this process and returns what it prints."""

from __future__ import annotations

import pytest

from hpo.cli.commands import main


class RayStartedError(BaseException):
    """Raised instead of starting Ray. Not an Exception, so that no code mistakes it for a Ray that does not start."""


def hpo_says(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str, str]:
    """Return exit code, stdout and stderr."""
    try:
        code = main(argv)
    except SystemExit as stop:  # argparse's own
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err
