"""Several objectives and limits in words, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from hpo.policy import leaderboard
from hpo.policy.front_members import FrontMember
from hpo.policy.objectives import UNITS, describe, is_known_before_training
from hpo.policy.pick import sentences
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_objectives import best_epoch, objective_values, value_at, violations
from hpo.store import search_results
from hpo.store.record import Record

_HEADERS = {"l1": "L1", "haarpsi": "HaarPSI", "latency": "ms", "params": "params", "size_mb": "MB"}
_MOST_LISTED = 8


def extra_columns(search: SearchConfig) -> dict[str, str]:
    """The objectives and limits that a table of SSIM and PSNR lacks, and the headers of their columns."""
    names = [*search.objectives, *(limit.name for limit in search.limits())]
    is_wanted = search.is_multi_objective or bool(search.limit)
    return {name: _HEADERS[name] for name in dict.fromkeys(names) if is_wanted and name in _HEADERS}


def extra_cell(trial: FrozenTrial, name: str) -> str:
    """A trial's figure without its unit; empty if there is none yet."""
    value = value_at(trial, name, best_epoch(trial))
    return "" if value is None else describe(name, value).removesuffix(UNITS.get(name, ""))


def figures(values: Mapping[str, float]) -> str:
    """`28.31 dB, 1.36 ms, ssim 0.8812`: values by objective, each with its unit or its name."""
    return ", ".join(
        describe(name, v) if name in UNITS else f"{name} {describe(name, v)}" for name, v in values.items()
    )


def front_lines(record: Record) -> list[str]:
    """The front in `hpo show`: its members with their figures, and which of them most people choose between."""
    search, trials = record.search, record.trials()
    members = search_results.current_members(record)
    if not members:
        return ["no trial has a valid result yet"]
    is_exported = members[0].folder is not None
    size, so_far = len(leaderboard.front(trials, search)), "" if search_results.is_over(record) else " so far"
    which = f", {len(members)} of them exported:" if is_exported and len(members) < size else ":"
    lines = [f"front of {' and '.join(search.objectives)}{so_far}: {_trials(size)}{which}"]
    lines += [f"  trial {member.trial}: {member_figures(member)}" for member in members[:_MOST_LISTED]]
    if more := len(members) - _MOST_LISTED:
        lines += [f"  and {more} more"] if more > 0 else []
    if machine := latency_words(members[0]):
        lines.append(machine)
    return [*lines, *(f"{sentence}." for sentence in sentences(members, search))]


def member_figures(member: FrontMember) -> str:
    """The objectives of a member, and what else is known of its size and its latency."""
    others = {"params": member.parameters, "size_mb": member.size_mb}
    more = {name: float(value) for name, value in others.items() if value is not None and name not in member.values}
    values, p95 = {**member.values, **more}, (member.latency or {}).get("p95_ms")
    if p95 is None:
        return figures(values)
    tail = f" (95 %: {describe('latency', p95)})"
    return ", ".join(f"{figures({name: value})}{tail * (name == 'latency')}" for name, value in values.items())


def latency_words(member: FrontMember) -> str:
    """On what a member's latency was measured; empty if that is not known."""
    latency = member.latency or {}
    if "size" not in latency:
        return ""
    threads, where = latency["threads"], latency["processor" if latency["device"] == "cpu" else "device"]
    on = f"{threads} thread{'s' * (threads > 1)} of {where}" if latency["device"] == "cpu" else where
    return f"latency: median of {latency['runs']} runs, one {latency['size']}x{latency['size']} image, {on}"


def limit_lines(trials: Sequence[FrozenTrial], search: SearchConfig) -> list[str]:
    """For each limit the trials that violate it."""
    found: dict[str, list[int]] = {str(limit): [] for limit in search.limits()}
    for trial in trials:
        for limit in violations(trial, search):
            found[limit].append(trial.number)
    known = {str(limit) for limit in search.limits() if is_known_before_training(limit.name)}
    return [
        f"limit {limit}: violated by {numbered(numbers)}{', never trained' if limit in known else ''}"
        if numbers
        else f"limit {limit}: no trial violates it"
        for limit, numbers in found.items()
    ]


def numbered(numbers: Sequence[int]) -> str:
    """`trials 4, 6 and 9`; of many the first ones."""
    shown = [str(number) for number in numbers[:_MOST_LISTED]]
    if len(numbers) > len(shown):
        return f"trials {', '.join(shown)} and {len(numbers) - len(shown)} more"
    return f"trials {', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else f"trial {shown[0]}"


def live_line(trials: Sequence[FrozenTrial], search: SearchConfig) -> str:
    """The front so far in one line of the live table; empty before there is one."""
    front = leaderboard.front(trials, search)
    by_number = {trial.number: trial for trial in trials}
    ends = [objective_values(by_number[number], search) for number in dict.fromkeys([*front[:1], *front[-1:]])]
    return f"front: {_trials(len(front))}, {' to '.join(figures(values) for values in ends if values)}" if front else ""


def _trials(count: int) -> str:
    return f"{count} trial{'s' * (count != 1)}"


def limit_reason(violated: Mapping[str, float]) -> str:
    """Why a trial was not trained: `66,946 parameters, and the limit is params<=60000`."""
    texts = [f"{describe(_name(limit), value)}, and the limit is {limit}" for limit, value in violated.items()]
    return " and ".join(texts)


def _name(limit: str) -> str:
    return limit.partition("<=")[0].partition(">=")[0]


def domination(decision: Mapping[str, Any]) -> str:
    """`trial 3 is nowhere worse: 20.16 dB, 1.36 ms; this trial: 7.40 dB, 1.40 ms`, of search_results.decisions."""
    by, own = decision["objectives_of_set_by"], decision["objectives"]
    return f"trial {decision['set_by']} is nowhere worse: {figures(by)}; this trial: {figures(own)}"
