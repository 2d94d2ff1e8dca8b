"""Replays the live table of a finished search from its record: python benchmarks/terminal.py RUNS/NAME

It prints how well the time left was predicted at the start of each trial. --at N --svg FILE draws the table as it was
when trial N had run for half an epoch (docs/terminal.svg). The times of the reports are computed from the trials'
starts and the seconds of their epochs; time between two epochs counts to the later one.
"""

from __future__ import annotations

import argparse
import copy
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from hpo.policy.leaderboard import reports_of
from hpo.policy.trial_attributes import DECISION, REPORTS
from hpo.store.record import Record
from hpo.tune.scheduler import Step, overhead
from hpo.views.live_table import render
from hpo.views.progress import Progress


def as_it_was(trial: FrozenTrial, reports: int) -> FrozenTrial:
    """The trial after its first `reports` reports."""
    was = copy.copy(trial)
    if reports < len(trial.user_attrs[REPORTS]):
        was.state, was.values = TrialState.RUNNING, None
        was.user_attrs = {k: v for k, v in trial.user_attrs.items() if k != DECISION}
    was.user_attrs = {**was.user_attrs, REPORTS: trial.user_attrs[REPORTS][:reports]}
    was.intermediate_values = {e: v for e, v in trial.intermediate_values.items() if e <= reports}
    return was


def replayed_events(trials: list[FrozenTrial]) -> list[tuple[float, int, int, float]]:
    """For each event the time, the trial, its number of reports by then, and the seconds of the last epoch."""
    events: list[tuple[float, int, int, float]] = []
    for trial in trials:
        took = [report.seconds + report.eval_seconds for report in reports_of(trial)]
        begin, end = trial.datetime_start.timestamp(), trial.datetime_complete.timestamp()
        events.append((begin, trial.number, 0, 0.0))
        stretch = (end - begin) / max(sum(took), 1e-9)
        events += [(begin + stretch * sum(took[: i + 1]), trial.number, i + 1, took[i]) for i in range(len(took))]
    return sorted(events)


@dataclass
class Overhead:
    """The share of idle slots after the steps so far, for Progress."""

    steps: list[Step]
    slots: int

    def overhead_share(self) -> float | None:
        spent = overhead(self.steps, self.slots, began=0.0)
        return spent.share if spent else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", type=Path)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--at", type=int, metavar="TRIAL")
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    record = Record(arguments.search.parent, arguments.search.name, read_only=True)
    trials, slots = record.trials(), arguments.slots
    events = replayed_events(trials)
    now, end = events[0][0], max(trial.datetime_complete.timestamp() for trial in trials)
    progress = Progress(record.search, record.name, slots, Console(file=io.StringIO()), clock=lambda: now)
    final = record.search.final_epochs  # not in the record of the trials, so left out of prediction and truth
    steps: list[Step] = []
    print("| trial begins | seconds left, predicted | actual |\n|---|---|---|")
    for when, number, reports, took in events:
        now = when
        if reports:
            steps.append(Step(number, when - took, when))
        progress.on_trial_update(as_it_was(trials[number], reports))
        status = progress.current_status()
        if not reports and status.seconds_left is not None:
            per_epoch = progress._epoch_seconds / progress._epochs
            print(f"| {number} | {status.seconds_left - final * per_epoch:.0f} | {end - now:.0f} |")
        if number == arguments.at and reports == 0 and arguments.svg:
            now += 0.5 * progress._epoch_seconds / progress._epochs
            progress.set_overhead_source(Overhead(steps, slots).overhead_share)
            draw(record, progress, arguments.svg)
    progress.close()


def draw(record: Record, progress: Progress, to: Path) -> None:
    """Draw it as a terminal of 80 columns shows it."""
    console = Console(record=True, width=80, height=24, file=io.StringIO(), force_terminal=True)
    trials: list[Any] = list(progress._display.trials.values())
    console.print(render(record.name, record.search, trials, progress.current_status(), width=80, height=24))
    svg = console.export_svg(title=f"hpo search {record.name}")
    to.write_text(re.sub(r"@font-face {.*?}", "", svg, flags=re.DOTALL))  # the browser would download the fonts


if __name__ == "__main__":
    main()
