"""The table of benchmarks/gpu_check.py: its rows, their verdicts and the exit code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.common.text import sanitize_for_terminal

OK, DIFFERS, NOT_AVAILABLE = "ok", "differs", "not available"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table."""

    what: str
    figure: str = ""
    beside: str = ""
    verdict: str = OK
    why: str = ""
    excused: bool = False  # not available for a reason that is not a failure
    numbers: dict[str, float] = field(default_factory=dict)


def measured(what: str, figure: str, beside: str, problem: str = "", **numbers: float) -> Row:
    """A row with a figure; problem: why it is not ok, or empty."""
    verdict = DIFFERS if problem else OK
    return Row(what=what, figure=figure, beside=beside, verdict=verdict, why=shorten(problem), numbers=numbers)


def unavailable(what: str, why: object, *, excused: bool = False) -> Row:
    """A row without a figure, with the reason."""
    return Row(what=what, verdict=NOT_AVAILABLE, why=shorten(why), excused=excused)


def shorten(why: object) -> str:
    """The first words of a reason, for a cell of a table."""
    text = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else why
    return " ".join(sanitize_for_terminal(text).split()).replace("|", "/")[:200]


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")


def exit_code(rows: Sequence[Row]) -> int:
    """1 where something differs, or is missing without an excuse; else 0."""
    wrong = [row for row in rows if row.verdict == DIFFERS or (row.verdict == NOT_AVAILABLE and not row.excused)]
    return int(bool(wrong) or not rows)


def finite_or_none(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Replace numbers that JSON cannot represent."""
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def markdown(document: Mapping[str, Any]) -> str:
    """The machine, and the table."""
    lines = [
        f"- machine: {document['machine']}",
        f"- device: {document['device']}",
        f"- torch {document['torch']}, CUDA {document['cuda'] or 'none'}",
        f"- {document['seconds']:.0f} s; tolerances times {document['tolerance']:g}",
        "",
        "| what | figure | beside | verdict |",
        "|---|---|---|---|",
    ]
    for row in document["rows"]:
        verdict = ": ".join(filter(None, (row["verdict"], row["why"])))
        lines.append(f"| {row['what']} | {row['figure']} | {row['beside']} | {verdict} |")
    return "\n".join(lines)
