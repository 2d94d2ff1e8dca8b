"""The live table of a finished search, played back from its record: python benchmarks/terminal.py RUNS/NAME

Tells how well the time left was foreseen at each trial's begin. --at N --svg FILE: the table as it stood when trial N
had run for half an epoch (docs/terminal.svg). When reports came is worked out from the trials' starts and the seconds
that their epochs took, so that what lay between two epochs counts to the later one.
"""

from __future__ import annotations

import argparse
import copy
import io
import re
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from hpo.policy.leaderboard import reports_of
from hpo.policy.trial_attributes import DECISION, REPORTS
from hpo.store.record import Record
from hpo.tune.scheduler import Step, overhead
from hpo.views.live_table import Progress, render


def as_it_was(trial: FrozenTrial, reports: int) -> FrozenTrial:
    """After so many reports."""
    was = copy.copy(trial)
    if reports < len(trial.user_attrs[REPORTS]):
        was.state, was.values = TrialState.RUNNING, None
        was.user_attrs = {k: v for k, v in trial.user_attrs.items() if k != DECISION}
    was.user_attrs = {**was.user_attrs, REPORTS: trial.user_attrs[REPORTS][:reports]}
    was.intermediate_values = {e: v for e, v in trial.intermediate_values.items() if e <= reports}
    return was


def events(trials: list[FrozenTrial]) -> list[tuple[float, int, int, float]]:
    """When, whose, how many reports by then, and the seconds that the last one took."""
    found: list[tuple[float, int, int, float]] = []
    for trial in trials:
        took = [report.seconds + report.eval_seconds for report in reports_of(trial)]
        begin, end = trial.datetime_start.timestamp(), trial.datetime_complete.timestamp()
        found.append((begin, trial.number, 0, 0.0))
        stretch = (end - begin) / max(sum(took), 1e-9)
        found += [(begin + stretch * sum(took[: i + 1]), trial.number, i + 1, took[i]) for i in range(len(took))]
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", type=Path)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--at", type=int, metavar="TRIAL")
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    record = Record(arguments.search.parent, arguments.search.name, read_only=True)
    trials, slots = record.trials(), arguments.slots
    told = events(trials)
    now, end = told[0][0], max(trial.datetime_complete.timestamp() for trial in trials)
    progress = Progress(record.search, record.name, slots, Console(file=io.StringIO()), clock=lambda: now)
    final = record.search.final_epochs  # what follows the trials is not in their record: left out on both sides
    steps: list[Step] = []
    print("| trial begins | seconds left, foreseen | and in truth |\n|---|---|---|")
    for when, number, reports, took in told:
        now = when
        if reports:
            steps.append(Step(number, when - took, when))
        progress.on_trial_update(as_it_was(trials[number], reports))
        status = progress._now()
        if not reports and status.seconds_left is not None:
            per_epoch = progress._epoch_seconds / progress._epochs
            print(f"| {number} | {status.seconds_left - final * per_epoch:.0f} | {end - now:.0f} |")
        if number == arguments.at and reports == 0 and arguments.svg:
            now += 0.5 * progress._epoch_seconds / progress._epochs
            spent = overhead(steps, slots, told[0][0])
            progress.set_overhead_source(lambda spent=spent: spent.share if spent else None)
            draw(record, progress, arguments.svg)
    progress.close()


def draw(record: Record, progress: Progress, to: Path) -> None:
    """As an 80 column terminal shows it."""
    console = Console(record=True, width=80, height=24, file=io.StringIO(), force_terminal=True)
    trials: list[Any] = list(progress._display.trials.values())
    console.print(render(record.name, record.search, trials, progress._now(), width=80, height=24))
    svg = console.export_svg(title=f"hpo search {record.name}")
    to.write_text(re.sub(r"@font-face {.*?}", "", svg, flags=re.DOTALL))  # they would be fetched from elsewhere


if __name__ == "__main__":
    main()
