"""What `hpo` says, in this process."""

from __future__ import annotations

import pytest

from hpo.cli.commands import main


class RayStartedError(BaseException):
    """In the place of Ray's start; nobody takes it for a Ray that does not start."""


def hpo_says(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str, str]:
    """Exit code, stdout, stderr."""
    try:
        code = main(argv)
    except SystemExit as stop:  # argparse's own
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err
