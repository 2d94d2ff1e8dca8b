"""Rules that pick one member of a front, such as fastest-within:0.1dB."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hpo.policy.front_members import FrontMember, best_member
from hpo.policy.objectives import UNITS, describe, to_maximize
from hpo.policy.search_config import SearchConfig
from model.common.errors import ConfigError
from model.common.text import did_you_mean, truncated_repr
from model.training_report import Objective

EXAMPLES = (
    "best",
    "fastest",
    "smallest",
    "fastest-within:0.1dB",
    "smallest-within:0.1dB",
    "best-below:20ms",
    "best-below:2MB",
)
_WITHIN: dict[Objective, str] = {  # a loss that few people see, to begin with
    "balanced": "0.1dB",
    "psnr": "0.1dB",
    "ssim": "0.002",
    "l1": "0.0005",
    "haarpsi": "0.002",
}
_RULES = tuple(dict.fromkeys(example.partition(":")[0] for example in EXAMPLES))
_FIGURES = {"fastest": "latency", "smallest": "size_mb"}
_BOUNDS = {"ms": "latency", "mb": "size_mb", "params": "params", "parameters": "params"}  # by unit
_RULE = re.compile(r"\s*([a-z-]+)\s*(?::\s*(.*?)\s*)?", re.IGNORECASE)
_AMOUNT = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)
_ALL = f"{', '.join(EXAMPLES[:-1])} or {EXAMPLES[-1]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """A rule, parsed. Which of its numbers are used depends on the rule."""

    text: str
    rule: str  # one of _RULES
    amount: float = 0.0
    is_db: bool = False  # of `within`: PSNR rather than the first trained objective
    figure: str = ""  # latency, size_mb or params

    @classmethod
    def parse(cls, text: str) -> Pick:
        """Parse a rule. Raises ConfigError."""
        match = _RULE.fullmatch(text)
        rule, given = (match[1].lower(), match[2]) if match else ("", None)
        if rule not in _RULES:
            hint = did_you_mean(text.partition(":")[0].strip().lower(), _RULES)
            raise ConfigError(f"pick={truncated_repr(text)}: must be {_ALL}. {hint if 'mean' in hint else ''}".rstrip())
        if rule in ("best", *_FIGURES):
            if given is not None:
                nearest = next(example for example in EXAMPLES if example.startswith(f"{rule}-"))
                raise ConfigError(f"pick={truncated_repr(text)}: {rule} takes no number. Did you mean {nearest}?")
            return cls(text=text, rule=rule, figure=_FIGURES.get(rule, ""))
        example = next(example for example in EXAMPLES if example.startswith(f"{rule}:"))
        amount, unit = _amount(text, rule, given, example)
        if rule == "best-below":
            if unit not in _BOUNDS:
                raise ConfigError(f"pick={truncated_repr(text)}: needs a unit, ms, MB or parameters, such as {example}")
            return cls(text=text, rule=rule, amount=amount, figure=_BOUNDS[unit])
        if unit not in ("", "db"):
            raise ConfigError(
                f"pick={truncated_repr(text)}: the loss is in dB, or without a unit in that of the first trained "
                f"objective, such as {example}"
            )
        return cls(text=text, rule=rule, amount=amount, is_db=unit == "db", figure=_FIGURES[rule.partition("-")[0]])

    def choose(self, members: Sequence[FrontMember], search: SearchConfig) -> FrontMember:
        """The member that the rule picks. Raises ConfigError if none fits, or what the rule needs was not measured."""
        objective = search.objective
        if self.rule == "best":
            return best_member(members, objective)
        if self.is_db:
            objective = "psnr"
        known = {member.trial: value for member in members if (value := member.figure(self.figure)) is not None}
        if not known:
            raise ConfigError(
                f"pick={self.text}: no {self.figure} was measured yet. It is when the search ends, and before "
                f"each training with --objectives {search.objective},{self.figure}"
            )
        members = [member for member in members if member.trial in known]
        if self.rule == "best-below":
            return self._best_below(members, known, search)
        least = best_member(members, objective).quality(objective) - (self.amount if "-" in self.rule else math.inf)
        good = [member for member in members if member.quality(objective) >= least - 1e-9]  # 28.3 - 0.1 is inexact
        return min(good, key=lambda member: (known[member.trial], -member.quality(objective), member.trial))

    def _best_below(self, members: Sequence[FrontMember], known: dict[int, float], search: SearchConfig) -> FrontMember:
        below = [member for member in members if known[member.trial] <= self.amount]
        if below:
            return best_member(below, search.objective)
        nearest = min(members, key=lambda member: known[member.trial])
        raise ConfigError(
            f"pick={self.text}: no member is below {_bound_text(self)}; the nearest is trial {nearest.trial}: "
            f"{figures_of(nearest, self.figure, search)}"
        )


def _amount(text: str, rule: str, given: str | None, example: str) -> tuple[float, str]:
    """The number and the unit after the colon. Raises ConfigError."""
    match = _AMOUNT.fullmatch(given or "")
    try:
        amount = float(match[1]) if match else math.nan
    except ValueError:
        amount = math.nan
    if not match or not (math.isfinite(amount) and amount >= 0) or (rule == "best-below" and amount == 0):
        raise ConfigError(f"pick={truncated_repr(text)}: {rule} needs a number after a colon, such as {example}")
    return amount, match[2].lower()


def figures_of(member: FrontMember, figure: str, search: SearchConfig) -> str:
    """`3.21 ms, 27.95 dB`: a figure that is known before training, and the first trained objective."""
    value, objective = member.figure(figure), search.objective
    quality = describe(objective, to_maximize(objective, member.quality(objective)))
    named = quality if objective == "psnr" else f"{objective} {quality}"
    return named if value is None else f"{describe(figure, value)}, {named}"


def _bound_text(pick: Pick) -> str:
    return f"{pick.amount:g}{UNITS[pick.figure]}"


def recommendations(members: Sequence[FrontMember], search: SearchConfig) -> list[tuple[Pick, FrontMember]]:
    """What most people choose between: the fastest or smallest that is nearly as good as the best, and the best below a
    limit. Empty without an objective that is known before training."""
    asked = [*search.objectives, *(limit.name for limit in search.limits())]
    figure = next((name for name in ("latency", "size_mb", "params") if name in asked), None)
    if figure is None or not members:
        return []
    rule = "fastest" if figure == "latency" else "smallest"
    picks = [f"{rule}-within:{_WITHIN[search.objective]}"]
    if (bound := _bound(members, search, figure)) is not None:
        picks.append(f"best-below:{bound:.10g}{UNITS[figure].strip()}")
    found = []
    for pick in map(Pick.parse, picks):
        try:
            found.append((pick, pick.choose(members, search)))
        except ConfigError:  # none is below the limit
            continue
    return found


def _bound(members: Sequence[FrontMember], search: SearchConfig, figure: str) -> float | None:
    """A limit on the figure: the search's, or the largest of 1, 2, 5, 10, 20, ... that the best member exceeds and
    another one keeps."""
    limits = [limit.bound for limit in search.limits() if limit.name == figure and limit.is_upper]
    best, values = best_member(members, search.objective).figure(figure), [m.figure(figure) for m in members]
    if limits or best is None:
        return min(limits, default=None)
    steps = [digit * 10.0**power for power in range(-6, 13) for digit in (1, 2, 5)]
    kept = [step for step in steps if step < best and any(value is not None and value <= step for value in values)]
    return max(kept, default=None)


def sentences(members: Sequence[FrontMember], search: SearchConfig) -> list[str]:
    """The recommendations for people, a sentence each."""
    return [_sentence(pick, member, members, search) for pick, member in recommendations(members, search)]


def _sentence(pick: Pick, member: FrontMember, members: Sequence[FrontMember], search: SearchConfig) -> str:
    is_best = member is best_member(members, search.objective)
    if pick.rule == "best-below":
        subject = f"The best below {_bound_text(pick)}"
    else:
        loss = f"{pick.amount:g} dB" if pick.is_db else f"{pick.amount:g}"
        subject = f"The {pick.rule.partition('-')[0]} within {loss} of the best{' is the best itself' * is_best}"
    return f"{subject}: trial {member.trial}, {figures_of(member, pick.figure, search)}"
