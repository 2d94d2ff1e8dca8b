"""The names that options and their values had before 2026-12, in search.json and on command lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMER_NAMES = {
    "objective": "objectives",
    "scheduler": "pruner",
    "grace": "grace_period",
    "reduction": "reduction_factor",
    "time_budget": "time_budget_minutes",
    "on_demand_after": "on_demand_after_minutes",
    "keep": "keep_checkpoints",
    "concurrent": "max_concurrent",
}
_FORMER_VALUES = {("sampler", "surrogate"): "gp", ("scheduler", "asha"): "former-asha"}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace former names of options and of their values by the present ones."""
    return {
        FORMER_NAMES.get(name, name): _FORMER_VALUES.get((name, str(value)), value) for name, value in values.items()
    }
