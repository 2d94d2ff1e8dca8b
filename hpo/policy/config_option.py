"""A configuration field that documents itself: its help, unit and default stand once, beside the field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SEARCHED, RESOURCES = "what is searched (fixed once the search exists)", "how much, and where"


@dataclass(frozen=True, slots=True)
class Option:
    """What a field of SearchConfig means, for the command line and for error messages."""

    help: str  # a phrase for `--help`, with the unit, without the default
    metavar: str | tuple[str, str] | None  # what stands for the value in `--help`; None: a switch without a value
    default: str  # for people
    group: str  # the heading in `--help`, SEARCHED or RESOURCES
    changeable: bool  # whether the value may differ when a search is continued
    example: Any  # a valid value for error messages; None: the default is one

    @property
    def help_with_default(self) -> str:
        """For example "maximum epochs per trial (default: 12)"."""
        return f"{self.help} (default: {self.default})" if self.metavar else self.help


def option(
    default: Any,
    help: str,
    *,
    metavar: str | tuple[str, str] | None = None,
    default_text: str = "",
    group: str = RESOURCES,
    changeable: bool | None = None,
    example: Any = None,
) -> Any:
    """A field of SearchConfig with its documentation; see Option. By default, only resources are changeable."""
    changeable = group == RESOURCES if changeable is None else changeable
    described = Option(help, metavar, default_text or str(default), group, changeable, example)
    metadata = {"option": described}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)
