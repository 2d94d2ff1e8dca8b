"""The objectives of a search and its limits: their directions, their units, and which are known before training."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from model.common.errors import ConfigError
from model.common.text import did_you_mean, truncated_repr
from model.training_report import Objective

Direction: TypeAlias = Literal["minimize", "maximize"]  # in the words of Optuna
TRAINED: tuple[Objective, ...] = get_args(Objective)  # each needs a training; the rest is known before it
MINIMIZED = ("l1", "latency", "params", "size_mb")
UNITS = {"psnr": " dB", "latency": " ms", "params": " parameters", "size_mb": " MB"}
OBJECTIVES = (*TRAINED, "latency", "params", "size_mb")
_LIMIT = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=)\s*(\S+)\s*")
_LIMIT_RULE = "a limit is NAME<=NUMBER or NAME>=NUMBER, such as latency<=20 (milliseconds)"


def is_known_before_training(name: str) -> bool:
    """Whether the untrained network has the final value of an objective."""
    return name not in TRAINED


def to_maximize(name: str, value: float) -> float:
    """The value, or its negative where smaller is better. It is its own inverse."""
    return -value if name in MINIMIZED else value


def describe(name: str, value: float) -> str:
    """A value in its unit, such as 28.31 dB; milliseconds and megabytes with three digits that count."""
    if name in ("latency", "size_mb"):
        size = math.floor(math.log10(value)) if value > 0 else 0
        digits = max(0, 2 - size)
    else:
        digits = {"psnr": 2, "params": 0}.get(name, 4)
    return f"{value:,.{digits}f}{UNITS.get(name, '')}"


def objectives_problem(names: Sequence[str]) -> str:
    """Why these cannot be the objectives of a search; empty if they can."""
    if unknown := [name for name in names if name not in OBJECTIVES]:
        return f"must be of {', '.join(OBJECTIVES)}. {did_you_mean(unknown[0], OBJECTIVES)}"
    if len(set(names)) < len(names):
        return "must be different ones"
    if not set(names) & set(TRAINED):
        return f"must have at least one of {', '.join(TRAINED)}: the others say nothing about the images"
    return ""


@dataclass(frozen=True, slots=True)
class Limit:
    """A constraint on a trial: an objective, whether the bound is the largest or the smallest value, and the bound."""

    name: str
    is_upper: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Parse NAME<=NUMBER or NAME>=NUMBER. Raises ConfigError."""
        match = _LIMIT.fullmatch(text)
        if not match:
            raise ConfigError(f"limit={truncated_repr(text)}: {_LIMIT_RULE}")
        name, sign, number = match.groups()
        if name not in OBJECTIVES:
            raise ConfigError(f"limit={text}: {name} is not an objective. {did_you_mean(name, OBJECTIVES)}")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound):
            raise ConfigError(f"limit={text}: {_LIMIT_RULE}")
        return cls(name, sign == "<=", bound)

    def excess(self, value: float) -> float:
        """By how much a value violates the limit; at most 0 if it does not, as in Optuna's constraints."""
        return value - self.bound if self.is_upper else self.bound - value

    def __str__(self) -> str:
        return f"{self.name}{'<=' if self.is_upper else '>='}{self.bound:g}"
