"""What a search says while it runs: a live table in a terminal, plain lines elsewhere. All of it on stderr."""

from __future__ import annotations

import contextlib
import heapq
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.policy import trial_attributes
from hpo.policy.estimates import epochs_left
from hpo.policy.leaderboard import best_report, rank, reports_of
from hpo.policy.search_config import SearchConfig
from hpo.views.formatting import counts, duration, metrics, outcome, parameters, trial_table
from hpo.views.status_file import Status
from model.training_report import EvalReport

_BEST = 8  # ended trials in the live table
_TICK_SECONDS = 1.0
_WAITS_SECONDS = 60.0
_SHARE = 0.02  # of the driver's time, at most, goes into drawing


# --- drawing --------------------------------------------------------------------------------------------------------


class Display:
    """Trials as they come: a live table where there is a terminal, else a plain line for each event."""

    def __init__(self, name: str, search: SearchConfig, console: Console) -> None:
        self.name, self.search, self.console = name, search, console
        self.trials: dict[int, FrozenTrial] = {}
        self._live: Live | None = None
        if console.is_terminal and not console.quiet:
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()

    def tell(self, trial: FrozenTrial, *, is_news: bool = False) -> None:
        """It began, reported or ended. is_news: even if it had ended when it was first seen."""
        before = self.trials.get(trial.number)
        self.trials[trial.number] = trial
        for line in _deaths(before, trial):
            self.console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
        for line in _moves(before, trial):
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        if is_news or before is not None or not trial.state.is_finished():  # else an earlier driver has told of it
            for line in _lines(before, trial, self.search.epochs):
                self.say(line)

    def say(self, line: str) -> None:
        """Where there is no live table, which shows it in its way."""
        if not self._live:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def draw(self, status: Status, notice: str = "") -> None:
        """The table as it is now. notice: what else there is to say below its head."""
        if self._live:
            size = self.console.size
            trials = list(self.trials.values())
            shown = render(self.name, self.search, trials, status, width=size.width, height=size.height, notice=notice)
            self._live.update(shown, refresh=True)

    def close(self) -> None:
        """Leave the table as it stands."""
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
    """The live table, for a terminal of so many columns and lines: head, running trials, the best of the others."""
    parts: list[RenderableType] = [Text.assemble((name, "bold"), f"  {counts(trials, search)}")]
    over = status.phase == "ended"
    if status.seconds_left is not None and not over:
        total = status.seconds + status.seconds_left
        bar = Table.grid()  # a bar alone ends no line
        bar.add_row(ProgressBar(total=total, completed=status.seconds, width=min(width, 80), complete_style="cyan"))
        parts.append(bar)
    figures = [
        duration(status.seconds) if status.seconds else "",
        f"about {duration(status.seconds_left)} left" if status.seconds_left is not None and not over else "",
        f"{status.images_per_second:,.0f} images/s" if status.images_per_second else "",
        f"overhead {100 * status.overhead:.1f} %" if status.overhead is not None else "",
        cost(status.cost_usd, search) if status.cost_usd is not None else "",
    ]
    if any(figures):
        parts.append(Text("   ".join(filter(None, figures))))
    ranked = sorted((place, trial) for trial in trials if (place := rank(trial)))
    if ranked and (best := best_report(ranked[0][1], search.objective)):
        parts.append(Text.assemble((f"best: trial {ranked[0][1].number}", "bold green"), f", {metrics(best)}"))
    if phase := phase_message(status):
        parts.append(Text(phase, style="cyan"))
    if status.waits:
        parts.append(Text(status.waits, style="yellow"))
    if notice:
        parts.append(Text(notice, style="yellow"))

    room = max(2, height - len(parts) - 5)  # the head's own lines, wrapped ones too
    running = [trial for trial in trials if trial_attributes.is_unfinished(trial)]
    hidden = max(0, len(running) - max(room - _BEST, room // 2))
    running = running[: len(running) - hidden]
    ended = [trial for _, trial in ranked if trial.state.is_finished()]
    shown = [*running, *ended[: min(_BEST, room - len(running))]]
    if shown:
        parts += ["", trial_table(shown, search, width=width, progress={} if over else status.running, one_line=True)]
    if hidden:
        parts.append(Text(f"and {hidden} more under way", style="dim"))
    return Group(*parts)


def phase_message(status: Status) -> str:
    """After the trials, in a line; empty before."""
    if status.phase == "finalists":
        return f"measuring trial {status.trial} on all validation images, {status.done + 1} of {status.of}"
    if status.phase == "final training":
        last = EvalReport.from_dict(status.report) if status.report else None
        told = f": {metrics(last)}, {last.images_per_second:,.0f} images/s" if last else ""
        return f"final training of trial {status.trial}'s configuration, epoch {status.done}/{status.of}{told}"
    if status.phase == "export":
        return "exporting, and measuring the exported file on validation and test images"
    return ""


def _deaths(before: FrozenTrial | None, trial: FrozenTrial) -> list[str]:
    then = "given up" if trial.state == TrialState.FAIL else "to be taken up from there"
    return [
        f"trial {trial.number}: died after epoch {failure['epoch']}, {then}: {failure['error']}"
        for failure in _new(before, trial, trial_attributes.FAILURES)
    ]


def _moves(before: FrozenTrial | None, trial: FrozenTrial) -> list[str]:
    return [f"trial {trial.number} moves: {move['why']}" for move in _new(before, trial, trial_attributes.MIGRATIONS)]


def _new(before: FrozenTrial | None, trial: FrozenTrial, events: str) -> list[dict[str, Any]]:
    now: list[dict[str, Any]] = trial.user_attrs.get(events, [])
    told = len(before.user_attrs.get(events, []) if before else now)  # else an earlier driver told
    return now[told:]


def cost(usd: float, search: SearchConfig) -> str:
    """`3.21 of 5.00 USD`; the limit where there is one."""
    return f"{usd:.2f} of {search.max_cost:.2f} USD" if search.max_cost is not None else f"{usd:.2f} USD"


def _lines(before: FrozenTrial | None, trial: FrozenTrial, epochs: int) -> list[str]:
    lines = []
    if before is None:
        lines.append(f"trial {trial.number}: {parameters(trial)}")
    told = len(reports_of(before)) if before else 0
    lines += [f"trial {trial.number}: {_told(report, epochs)}" for report in reports_of(trial)[told:]]
    if trial.state.is_finished():
        lines.append(f"trial {trial.number}: {outcome(trial)}")
    return lines


def _told(report: EvalReport, epochs: int) -> str:
    return (
        f"epoch {report.epoch}/{epochs}  SSIM {report.ssim:.4f}  PSNR {report.psnr_db:.2f} dB  "
        f"{report.images_per_second:.0f} images/s"
    )


# --- the driver's side ----------------------------------------------------------------------------------------------


class Progress:
    """A listener, from the first trial to the export. Draws in a thread of its own, once a second: epochs may take
    minutes, and the loop that hands out trials does not wait for it.

    folder: the search's, for its Status; None: nowhere.
    """

    def __init__(
        self,
        search: SearchConfig,
        name: str,
        slots: int,
        console: Console,
        *,
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._search, self._slots, self._folder, self._clock = search, slots, folder, clock
        self._display = Display(name, search, console)
        self._status, self._began = Status(), clock()
        self._overhead: Callable[[], float | None] = lambda: None
        self._cost: Callable[[], float | None] = lambda: None
        self._waits, self._waits_told = "", -math.inf
        self._expectation_told = False
        self._epochs, self._epoch_seconds = 0, 0.0  # of all trials, in earlier drivers too
        self._final_seconds = 0.0
        self._heard: dict[int, float] = {}  # when a trial began, or reported last
        self._images = 0  # of this driver's reports
        self._first = self._last = 0.0  # when those began, and ended
        self._lock, self._over = threading.Lock(), threading.Event()
        threading.Thread(target=self._tick, name="progress", daemon=True).start()

    def set_overhead_source(self, overhead: Callable[[], float | None]) -> None:
        """Whom to ask for the share of the slots' time that was not work. Called in the drawing thread."""
        self._overhead = overhead

    def set_cost_source(self, usd: Callable[[], float | None]) -> None:
        """Whom to ask for what the cluster has cost, as above."""
        self._cost = usd

    def say(self, line: str) -> None:
        """What happened, as a plain line."""
        self._display.say(line)

    def waits(self, line: str) -> None:
        """What trials wait for now; empty when none does. As a plain line once a minute."""
        self._waits = line
        if line and self._clock() - self._waits_told >= _WAITS_SECONDS:
            self._waits_told = self._clock()
            self._display.say(line)

    def on_trial_update(self, trial: FrozenTrial) -> None:
        """See Listener."""
        with self._lock:
            self._count(self._display.trials.get(trial.number), trial)
            self._display.tell(trial)
            if not self._expectation_told and (seconds := self._seconds_left()) is not None:
                self._expectation_told = True
                self._display.say(f"Expected: about {duration(seconds)} more, {self._parts()}")

    def measuring(self, number: int, done: int, of: int) -> None:
        """A finalist; so many were measured before it."""
        self._enter(Status(phase="finalists", trial=number, done=done, of=of))
        self._display.say(f"Measuring trial {number} on all validation images, {done + 1} of {of}")

    def training(self, number: int, reports: Sequence[EvalReport], epochs: int) -> None:
        """The final training of a trial's configuration: all reports so far."""
        begins = (self._status.phase, self._status.trial) != ("final training", number)
        self._final_seconds = sum(report.seconds + report.eval_seconds for report in reports)
        last = reports[-1].as_dict() if reports else None
        self._enter(Status(phase="final training", trial=number, done=len(reports), of=epochs, report=last))
        if begins:
            self._display.say(f"\nFinal training of trial {number}'s configuration: {epochs} epochs")
        elif reports:
            self._display.say(f"final: {_told(reports[-1], epochs)}")

    def exporting(self) -> None:
        """All is chosen."""
        self._enter(Status(phase="export"))
        self._display.say("\nExporting, and measuring the exported file on validation and test images ...")

    def close(self) -> None:
        """This driver ends, or its search does; the table stays as it is now."""
        if not self._over.is_set():
            self._over.set()
            self._enter(Status(phase="ended"))
            self._display.close()

    def _enter(self, status: Status) -> None:
        with self._lock:
            self._status = status
            self._show()

    def _tick(self) -> None:
        pause = _TICK_SECONDS
        while not self._over.wait(pause):
            began = time.thread_time()
            with self._lock:
                self._show()
            pause = max(_TICK_SECONDS, (time.thread_time() - began) / _SHARE)

    def _show(self) -> None:
        status = self._now()
        self._display.draw(status)
        if self._folder:
            with contextlib.suppress(OSError):  # a full disk is told by who needs it
                status.write(self._folder)

    def _now(self) -> Status:
        now, trained = self._clock(), self._last - self._first
        trials = self._display.trials.values()
        return replace(
            self._status,
            seconds=now - self._began,
            seconds_left=self._seconds_left(),
            images_per_second=self._images / trained if trained > 0 else None,
            overhead=self._overhead(),
            waits=self._waits if self._status.phase == "trials" else "",
            cost_usd=self._cost(),
            running={trial.number: self._done(trial, now) for trial in trials if trial_attributes.is_unfinished(trial)},
        )

    def _count(self, before: FrozenTrial | None, trial: FrozenTrial) -> None:
        now, told = self._clock(), len(before.user_attrs[trial_attributes.REPORTS]) if before else 0
        new = reports_of(trial)[told:]
        self._heard[trial.number] = now
        self._epochs += len(new)
        self._epoch_seconds += sum(report.seconds + report.eval_seconds for report in new)
        if before and new:  # else an earlier driver has heard them
            self._first = self._first or now - new[0].seconds - new[0].eval_seconds
            self._images += sum(report.images // report.epoch for report in new)
            self._last = now

    def _done(self, trial: FrozenTrial, now: float) -> float:
        """Epochs, with the fraction of the one under way: as long as the trial's last, or as the mean one."""
        reports = trial.user_attrs[trial_attributes.REPORTS]
        if reports:
            expected = reports[-1]["seconds"] + reports[-1]["eval_seconds"]
        else:
            expected = self._epoch_seconds / self._epochs if self._epochs else math.inf
        since = now - self._heard[trial.number]
        return len(reports) + (min(0.99, since / expected) if expected else 0.0)

    def _seconds_left(self) -> float | None:
        """Of the trials, pruned ones taken into account, and of the final training; None before the first reports, and
        once nothing follows but the export."""
        phase, of = self._status.phase, self._status.of
        if phase in ("export", "ended") or self._epochs < self._slots:
            return None
        per_epoch = self._epoch_seconds / self._epochs
        if phase == "final training":
            done = self._status.done
            return (of - done) * (self._final_seconds / done if done else per_epoch)
        final = self._search.final_epochs * per_epoch
        return final if phase == "finalists" else self._trials_seconds_left(per_epoch) + final

    def _parts(self) -> str:
        """What the time left is made of."""
        parts, budget = "pruning taken into account", self._search.time_budget_minutes
        if budget is not None:
            parts += f"; no new trial begins after {duration(60 * budget)}"
        if self._search.final_epochs:
            per_epoch = self._epoch_seconds / self._epochs
            parts = f"{duration(self._search.final_epochs * per_epoch)} of it for the final training; {parts}"
        return parts

    def _trials_seconds_left(self, per_epoch: float) -> float:
        trials = list(self._display.trials.values())
        left = epochs_left(trials, self._search)
        # Each slot as it gets free takes the next trial. Those that wait to be taken up again are among the running.
        busy = [
            left[len(trial.user_attrs[trial_attributes.REPORTS])]
            for trial in trials
            if trial_attributes.is_unfinished(trial)
        ]
        new = max(0, self._search.trials - len(trials))
        if self._search.time_budget_minutes is not None:
            until = 60 * self._search.time_budget_minutes - (self._clock() - self._began)
            new = min(new, math.ceil(max(0.0, until) * self._slots / (left[0] * per_epoch)))
        slots = [0.0] * self._slots
        for epochs in [*sorted(busy, reverse=True), *[left[0]] * new]:
            heapq.heappush(slots, heapq.heappop(slots) + epochs)
        return max(slots) * per_epoch
