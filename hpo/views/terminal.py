"""A rich console that shows foreign text safely. The only module that uses a private name of rich."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from model.common.text import sanitize_for_terminal


class Terminal(Console):
    """A console in which no name, parameter or error can be markup or a control sequence: only rich's own are sent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        """Overrides rich's private method, through which all output passes (rich 13.9 to 15)."""
        return super()._render_buffer(
            Segment(text if control else sanitize_for_terminal(text), style, control) for text, style, control in buffer
        )
