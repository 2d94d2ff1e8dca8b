"""The progress of a search as its driver sees it: times, speed and what is left, drawn once a second."""

from __future__ import annotations

import contextlib
import heapq
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial
from rich.console import Console

from hpo.policy import trial_attributes
from hpo.policy.leaderboard import NUM_FINALISTS, reports_of
from hpo.policy.report_decision import epochs_left
from hpo.policy.search_config import SearchConfig
from hpo.views.formatting import duration, epoch_line
from hpo.views.live_table import Display
from hpo.views.status_file import Status
from model.training_report import EvalReport

if TYPE_CHECKING:
    from hpo.cluster.budget import TimeAndCostBudget

_TICK_SECONDS = 1.0
_PENDING_SECONDS = 60.0  # between two lines about trials that wait
_DRAWING_SHARE = 0.02  # of the driver's time, at most, is spent on drawing


class Progress:
    """A listener that shows the search from its first trial to the export.

    It draws once a second in a thread of its own: epochs may take minutes, and the loop that hands out trials must not
    wait for the terminal.

    Args:
        slots: how many trials run at once.
        folder: the search's folder, which gets the Status for `hpo watch`; None writes no Status.
        budget: knows what the cluster has cost.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        search: SearchConfig,
        name: str,
        slots: int,
        console: Console,
        *,
        folder: Path | None = None,
        budget: TimeAndCostBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._search, self._slots, self._folder, self._budget, self._clock = search, slots, folder, budget, clock
        self._display = Display(name, search, console)
        self._status, self._began = Status(), clock()
        self._overhead_share: Callable[[], float | None] = lambda: None
        self._pending, self._pending_printed = "", -math.inf
        self._expectation_printed = False
        self._epochs, self._epoch_seconds = 0, 0.0  # of all trials, under earlier drivers too
        self._final_seconds = 0.0
        self._replicate_epochs_left = 0
        self._last_seen: dict[int, float] = {}  # by trial: when it began, or reported last
        self._images = 0  # in the reports to this driver
        self._first_began = self._last_ended = 0.0  # of the epochs that were reported to this driver
        self._lock, self._closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._draw_every_second, name="progress", daemon=True).start()

    def set_overhead_source(self, share: Callable[[], float | None]) -> None:
        """Show the share of the slots' time that was not spent on trials. `share` is called in the drawing thread."""
        self._overhead_share = share

    def print_line(self, line: str) -> None:
        """Print an event as a plain line, unless there is a live table."""
        self._display.print_line(line)

    def set_pending_message(self, line: str) -> None:
        """Show what trials wait for; an empty line if none waits. It is printed as a plain line once a minute."""
        self._pending = line
        if line and self._clock() - self._pending_printed >= _PENDING_SECONDS:
            self._pending_printed = self._clock()
            self._display.print_line(line)

    def on_trial_update(self, trial: FrozenTrial) -> None:
        """See Listener."""
        with self._lock:
            self._count(self._display.trials.get(trial.number), trial)
            self._display.update(trial)
            if not self._expectation_printed and (seconds := self._seconds_left()) is not None:
                self._expectation_printed = True
                self._display.print_line(f"Expected: about {duration(seconds)} more, {self._parts_of_expectation()}")

    def show_finalist(self, number: int, done: int, total: int) -> None:
        """A finalist is about to be measured, after `done` of `total` others."""
        self._set_status(Status(phase="finalists", trial=number, done=done, of=total))
        self._display.print_line(f"Measuring trial {number} on all validation images, {done + 1} of {total}")

    def show_replicates(self, done: int, total: int, running: Sequence[str], epochs_left: int) -> None:
        """So many of the replicates are done; what the running ones do, and the epochs that are left of all."""
        begins = self._status.phase != "replicates"
        self._replicate_epochs_left = epochs_left
        self._set_status(Status(phase="replicates", done=done, of=total, detail=", ".join(running)))
        if begins and done < total:
            self._display.print_line(f"\nTraining the finalists' settings with fresh seeds: {total - done} trainings")

    def show_replicate_epoch(self, name: str, report: EvalReport, epochs: int) -> None:
        """A replicate has reported."""
        self._display.print_line(f"{name}: {epoch_line(report, epochs)}")

    def show_final_training(self, number: int, reports: Sequence[EvalReport], epochs: int) -> None:
        """The final training of a trial's configuration has begun or reported; `reports` are all so far."""
        begins = (self._status.phase, self._status.trial) != ("final training", number)
        self._final_seconds = sum(report.seconds + report.eval_seconds for report in reports)
        last = reports[-1].as_dict() if reports else None
        self._set_status(Status(phase="final training", trial=number, done=len(reports), of=epochs, report=last))
        if begins:
            self._display.print_line(f"\nFinal training of trial {number}'s configuration: {epochs} epochs")
        elif reports:
            self._display.print_line(f"final: {epoch_line(reports[-1], epochs)}")

    def show_export(self, number: int | None = None, done: int = 0, total: int = 0) -> None:
        """The winner is about to be exported, or trial `number` of a front after `done` of `total` others."""
        self._set_status(Status(phase="export", trial=number, done=done, of=total))
        what = "" if number is None else f" trial {number} of the front ({done + 1} of {total})"
        begins = "" if done else "\n"
        line = f"{begins}Exporting{what}, and measuring the exported file on validation and test images ..."
        self._display.print_line(line)

    def close(self) -> None:
        """Stop drawing when this driver ends. The table stays as it is now."""
        if not self._closed.is_set():
            self._closed.set()
            self._set_status(Status(phase="ended"))
            self._display.close()

    def _set_status(self, status: Status) -> None:
        with self._lock:
            self._status = status
            self._draw()

    def _draw_every_second(self) -> None:
        pause = _TICK_SECONDS
        while not self._closed.wait(pause):
            began = time.thread_time()
            with self._lock:
                self._draw()
            pause = max(_TICK_SECONDS, (time.thread_time() - began) / _DRAWING_SHARE)

    def _draw(self) -> None:
        status = self.current_status()
        self._display.draw(status)
        if self._folder:
            with contextlib.suppress(OSError):  # a full disk is reported by what needs the file
                status.write(self._folder)

    def current_status(self) -> Status:
        """The Status at this moment."""
        now, trained = self._clock(), self._last_ended - self._first_began
        unfinished = filter(trial_attributes.is_unfinished, self._display.trials.values())
        return replace(
            self._status,
            seconds=now - self._began,
            seconds_left=self._seconds_left(),
            images_per_second=self._images / trained if trained > 0 else None,
            overhead=self._overhead_share(),
            waits=self._pending if self._status.phase == "trials" else "",
            cost_usd=self._budget.usd if self._budget else None,
            running={trial.number: self._epochs_done(trial, now) for trial in unfinished},
        )

    def _count(self, before: FrozenTrial | None, trial: FrozenTrial) -> None:
        now, num_counted = self._clock(), len(before.user_attrs[trial_attributes.REPORTS]) if before else 0
        new = reports_of(trial)[num_counted:]
        self._last_seen[trial.number] = now
        self._epochs += len(new)
        self._epoch_seconds += sum(report.seconds + report.eval_seconds for report in new)
        if before and new:  # otherwise the reports went to an earlier driver
            self._first_began = self._first_began or now - new[0].seconds - new[0].eval_seconds
            self._images += sum(report.images // report.epoch for report in new)
            self._last_ended = now

    def _epochs_done(self, trial: FrozenTrial, now: float) -> float:
        """Epochs with a fraction for the present one, which is expected to last as long as the trial's last epoch, or
        as the mean epoch of all trials."""
        reports = trial.user_attrs[trial_attributes.REPORTS]
        if reports:
            expected = reports[-1]["seconds"] + reports[-1]["eval_seconds"]
        else:
            expected = self._epoch_seconds / self._epochs if self._epochs else math.inf
        elapsed = now - self._last_seen[trial.number]
        return len(reports) + (min(0.99, elapsed / expected) if expected else 0.0)

    def _seconds_left(self) -> float | None:
        """Expected seconds of what is left: trials, with pruning taken into account, replicates and final training.

        None before the first reports, and once only the export is left.
        """
        phase, done = self._status.phase, self._status.done
        if phase in ("export", "ended") or self._epochs < self._slots:
            return None
        per_epoch = self._epoch_seconds / self._epochs
        if phase == "final training":
            return (self._status.of - done) * (self._final_seconds / done if done else per_epoch)
        final = self._search.final_epochs * per_epoch
        if phase == "replicates":
            return self._replicate_epochs_left / self._slots * per_epoch + final
        later = self._replicates_seconds(per_epoch) + final
        return later if phase == "finalists" else self._trials_seconds_left(per_epoch) + later

    def _replicates_seconds(self, per_epoch: float) -> float:
        """Expected seconds of all replicates, if the race drops no finalist."""
        trainings = NUM_FINALISTS * self._search.replicates
        return math.ceil(trainings / self._slots) * self._search.epochs * per_epoch

    def _parts_of_expectation(self) -> str:
        parts, budget = "pruning taken into account", self._search.time_budget_minutes
        if budget is not None:
            parts += f"; no new trial begins after {duration(60 * budget)}"
        per_epoch = self._epoch_seconds / self._epochs
        if self._search.replicates:
            parts = f"{duration(self._replicates_seconds(per_epoch))} of it for the replicates; {parts}"
        if self._search.final_epochs:
            parts = f"{duration(self._search.final_epochs * per_epoch)} of it for the final training; {parts}"
        return parts

    def _trials_seconds_left(self, per_epoch: float) -> float:
        trials = list(self._display.trials.values())
        left = epochs_left(trials, self._search)
        # Each slot takes the next trial when it becomes free. Trials that wait for a retry count as running.
        unfinished = filter(trial_attributes.is_unfinished, trials)
        running = [left[len(trial.user_attrs[trial_attributes.REPORTS])] for trial in unfinished]
        new = max(0, self._search.trials - len(trials))
        if self._search.time_budget_minutes is not None:
            until = 60 * self._search.time_budget_minutes - (self._clock() - self._began)
            new = min(new, math.ceil(max(0.0, until) * self._slots / (left[0] * per_epoch)))
        slots = [0.0] * self._slots
        for epochs in [*sorted(running, reverse=True), *[left[0]] * new]:
            heapq.heappush(slots, heapq.heappop(slots) + epochs)
        return max(slots) * per_epoch
