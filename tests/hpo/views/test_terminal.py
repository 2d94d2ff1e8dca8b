"""The console through which all output goes, and rich's private method that it overrides."""

from __future__ import annotations

import inspect
import io
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from hpo.views.terminal import Terminal

VERSION = f"rich {version('rich')}: adapt hpo/views/terminal.py"


def test_rich_still_has_the_private_method_through_which_all_output_passes():
    assert list(inspect.signature(Console._render_buffer).parameters) == ["self", "buffer"], VERSION
    table = Table("name")
    table.add_row("\x1b]0;hidden\x07[red]x")
    for terminal in (True, False):
        console = Terminal(file=io.StringIO(), width=40, force_terminal=terminal)
        console.print("\x1b[2J")
        console.print(table)
        printed = console.file.getvalue()
        assert "\x1b[2J" not in printed, VERSION
        assert "\x1b]0;" not in printed, VERSION
        assert "[red]x" in printed, VERSION
