"""The live table of a search in a terminal, or plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.policy import leaderboard, trial_attributes
from hpo.policy.leaderboard import best_report, rank, reports_of
from hpo.policy.search_config import SearchConfig
from hpo.views.formatting import counts, duration, epoch_line, metrics, outcome, parameters, trial_table
from hpo.views.objectives_text import live_line
from hpo.views.status_file import Status
from model.training_report import EvalReport, Objective

_BEST = 8  # ended trials in the live table


class Display:
    """Shows trials as they run: a live table in a terminal, else a plain line for each event."""

    def __init__(self, name: str, search: SearchConfig, console: Console) -> None:
        self.name, self.search, self.console = name, search, console
        self.trials: dict[int, FrozenTrial] = {}
        self._live: Live | None = None
        if console.is_terminal and not console.quiet:
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()

    def update(self, trial: FrozenTrial, *, is_new: bool = False) -> None:
        """Take the trial's new state and print what is new in it.

        An earlier driver has printed the lines of a trial that had ended when it was first seen, unless `is_new`.
        """
        before = self.trials.get(trial.number)
        self.trials[trial.number] = trial
        action = "giving up" if trial.state == TrialState.FAIL else "retrying from there"
        for event in _new_events(before, trial, trial_attributes.FAILURES):
            line = f"trial {trial.number}: failed after epoch {event['epoch']}, {action}: {event['error']}"
            self.console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
        for event in _new_events(before, trial, trial_attributes.MIGRATIONS):
            line = f"trial {trial.number} migrates: {event['why']}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        if is_new or before is not None or not trial.state.is_finished():
            for line in _lines(before, trial, self.search.epochs):
                self.print_line(line)

    def print_line(self, line: str) -> None:
        """Print a line, unless there is a live table: that shows the same in another way."""
        if not self._live:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def draw(self, status: Status, notice: str = "") -> None:
        """Draw the table again, with an optional notice below its head."""
        if self._live:
            size = self.console.size
            trials = list(self.trials.values())
            table = render(self.name, self.search, trials, status, width=size.width, height=size.height, notice=notice)
            self._live.update(table, refresh=True)

    def close(self) -> None:
        """Leave the table as it is."""
        if self._live:
            self._live.stop()


def render(
    name: str,
    search: SearchConfig,
    trials: Sequence[FrozenTrial],
    status: Status,
    *,
    width: int,
    height: int,
    notice: str = "",
) -> Group:
    """Render the live table: the head, an optional notice, the running trials, and the best of the ended ones.

    Width and height are those of the terminal in characters; the table is not higher.
    """
    parts = _head(name, search, trials, status, width)
    parts += [Text(line, style="yellow") for line in (status.waits, notice) if line]
    room = max(2, height - len(parts) - 5)  # five lines for the table's own head and for lines that wrap
    running = [trial for trial in trials if trial_attributes.is_unfinished(trial)]
    hidden = max(0, len(running) - max(room - _BEST, room // 2))
    running = running[: len(running) - hidden]
    ended = [trial for _, trial in _ranked(trials) if trial.state.is_finished()]
    shown = [*running, *ended[: min(_BEST, room - len(running))]]
    if shown:
        front = leaderboard.front(trials, search) if search.is_multi_objective else ()
        progress = {} if status.phase == "ended" else status.running
        parts += ["", trial_table(shown, search, width=width, progress=progress, one_line=True, front=front)]
    if hidden:
        parts.append(Text(f"and {hidden} more running", style="dim"))
    return Group(*parts)


def _head(
    name: str, search: SearchConfig, trials: Sequence[FrozenTrial], status: Status, width: int
) -> list[RenderableType]:
    parts: list[RenderableType] = [Text.assemble((name, "bold"), f"  {counts(trials, search)}")]
    seconds_left = None if status.phase == "ended" else status.seconds_left
    if seconds_left is not None:
        bar = Table.grid()  # a bar alone does not end its line
        total = status.seconds + seconds_left
        bar.add_row(ProgressBar(total=total, completed=status.seconds, width=min(width, 80), complete_style="cyan"))
        parts.append(bar)
    figures = [
        duration(status.seconds) if status.seconds else "",
        f"about {duration(seconds_left)} left" if seconds_left is not None else "",
        f"{status.images_per_second:,.0f} images/s" if status.images_per_second else "",
        f"overhead {100 * status.overhead:.1f} %" if status.overhead is not None else "",
        cost(status.cost_usd, search) if status.cost_usd is not None else "",
    ]
    if any(figures):
        parts.append(Text("   ".join(filter(None, figures))))
    ranked = _ranked(trials)
    if ranked and (best := best_report(ranked[0][1], search.objective)):
        line = f", {metrics(best, search.objective)}"
        of = f" {search.objective}" if search.is_multi_objective else ""
        parts.append(Text.assemble((f"best{of}: trial {ranked[0][1].number}", "bold green"), line))
        if search.is_multi_objective:
            parts.append(Text(live_line(trials, search)))
    if phase := phase_message(status, search.objective):
        parts.append(Text(phase, style="cyan"))
    return parts


def _ranked(trials: Sequence[FrozenTrial]) -> list[tuple[tuple[float, int], FrozenTrial]]:
    return sorted((place, trial) for trial in trials if (place := rank(trial)))


def phase_message(status: Status, objective: Objective) -> str:
    """What the search does after its trials, in a line; empty while trials run."""
    if status.phase == "finalists":
        return f"measuring trial {status.trial} on all validation images, {status.done + 1} of {status.of}"
    if status.phase == "replicates":
        now = f" ({status.detail})" if status.detail else ""
        return f"training the finalists' settings with fresh seeds, {status.done} of {status.of} done{now}"
    if status.phase == "final training":
        last = EvalReport.from_dict(status.report) if status.report else None
        measured = f": {metrics(last, objective)}, {last.images_per_second:,.0f} images/s" if last else ""
        return f"final training of trial {status.trial}'s configuration, epoch {status.done}/{status.of}{measured}"
    if status.phase == "export":
        return "exporting, and measuring the exported file on validation and test images"
    return ""


def cost(usd: float, search: SearchConfig) -> str:
    """`3.21 of 5.00 USD`, or `3.21 USD` where there is no limit."""
    return f"{usd:.2f} of {search.max_cost:.2f} USD" if search.max_cost is not None else f"{usd:.2f} USD"


def _new_events(before: FrozenTrial | None, trial: FrozenTrial, key: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = trial.user_attrs.get(key, [])
    return events[len(before.user_attrs.get(key, [])) :] if before else []  # else an earlier driver has printed them


def _lines(before: FrozenTrial | None, trial: FrozenTrial, epochs: int) -> list[str]:
    num_printed = len(reports_of(before)) if before else 0
    lines = [] if before else [parameters(trial)]
    lines += [epoch_line(report, epochs) for report in reports_of(trial)[num_printed:]]
    lines += [outcome(trial)] if trial.state.is_finished() else []
    return [f"trial {trial.number}: {line}" for line in lines]
