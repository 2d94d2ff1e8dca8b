"""What a search says while it runs: a live table in a terminal, plain lines elsewhere. All of it on stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpo import decide
from hpo.config import SearchConfig
from hpo.results import best_report, leaderboard, reports_of, row

_SHOWN = 8  # rows below the running ones


class Progress:
    """A listener with the live table, or one line per event where there is no terminal."""

    def __init__(self, search: SearchConfig, name: str, slots: int, console: Console) -> None:
        self._search, self._name, self._slots, self._console = search, name, slots, console
        self._trials: dict[int, FrozenTrial] = {}
        self._began = time.monotonic()
        self._expectation = ""
        self._next_draw = 0.0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        if self._live:
            self._live.start()

    def changed(self, trial: FrozenTrial) -> None:
        """See Listener."""
        before = self._trials.get(trial.number)
        self._trials[trial.number] = trial
        for line in self._deaths(before, trial):
            self._console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
        if self._live:
            if (began := time.monotonic()) >= self._next_draw:
                self._live.update(self._picture(), refresh=True)
                now = time.monotonic()
                self._next_draw = now + 20 * (now - began)  # 5 % of the driver's time; a table of 1,000 takes 0.2 s
        elif before is not None or not trial.state.is_finished():  # else an earlier driver has told of it
            for line in self._lines(before, trial):
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        if not self._expectation and not self._live and (seconds := self._seconds_left()) is not None:
            self._expectation = f"Expected: about {_duration(seconds)} more, pruning taken into account"
            self._console.print(self._expectation, highlight=False)

    def close(self) -> None:
        """Leave the table as it stands."""
        if self._live:
            self._live.update(self._picture(), refresh=True)
            self._live.stop()

    def _deaths(self, before: FrozenTrial | None, trial: FrozenTrial) -> list[str]:
        failures = trial.user_attrs.get(decide.FAILURES, [])
        told = len(before.user_attrs.get(decide.FAILURES, []) if before else failures)  # else an earlier driver told
        then = "given up" if trial.state == TrialState.FAIL else "to be taken up from there"
        return [
            f"trial {trial.number}: died after epoch {failure['epoch']}, {then}: {failure['error']}"
            for failure in failures[told:]
        ]

    def _lines(self, before: FrozenTrial | None, trial: FrozenTrial) -> list[str]:
        lines = []
        if before is None:
            lines.append(f"trial {trial.number}: {parameters(trial)}")
        told = len(reports_of(before)) if before else 0
        for report in reports_of(trial)[told:]:
            lines.append(
                f"trial {trial.number}: epoch {report.epoch}/{self._search.epochs}  SSIM {report.ssim:.4f}  "
                f"PSNR {report.psnr_db:.2f} dB  {report.images_per_second:.0f} images/s"
            )
        if trial.state.is_finished():
            lines.append(f"trial {trial.number}: {outcome(trial)}")
        return lines

    def _picture(self) -> Group:
        trials = list(self._trials.values())
        ended = [trial for trial in trials if trial.state.is_finished()]
        counts = {state: sum(trial.state == state for trial in ended) for state in TrialState}
        seconds = self._seconds_left()
        head = Text.assemble(
            (self._name, "bold"),
            f"  {len(ended)}/{self._search.trials} trials: {counts[TrialState.COMPLETE]} finished, "
            f"{counts[TrialState.PRUNED]} pruned, {counts[TrialState.FAIL]} failed  "
            f"{_duration(time.monotonic() - self._began)}",
            f", about {_duration(seconds)} left" if seconds is not None else "",
        )
        running = [trial for trial in trials if decide.is_open(trial)]
        best = leaderboard(ended, self._search.objective)[:_SHOWN]
        by_number = {trial.number: trial for trial in ended}
        return Group(head, trial_table([*running, *(by_number[r["number"]] for r in best)], self._search))

    def _seconds_left(self) -> float | None:
        """From the epochs that trials took so far, pruned ones included; None before the first reports."""
        reports = [report for trial in self._trials.values() for report in reports_of(trial)]
        if len(reports) < self._slots:
            return None
        per_epoch = sum(report.seconds + report.eval_seconds for report in reports) / len(reports)
        ended = [len(reports_of(trial)) for trial in self._trials.values() if trial.state.is_finished()]
        expected = sum(ended) / len(ended) if len(ended) >= self._slots else expected_epochs(self._search)
        running = [len(reports_of(trial)) for trial in self._trials.values() if decide.is_open(trial)]
        to_start = max(0, self._search.trials - len(self._trials))
        epochs: float = to_start * expected + sum(max(0.0, expected - done) for done in running)
        return epochs * per_epoch / self._slots


def expected_epochs(search: SearchConfig) -> float:
    """Epochs of a mean trial, when one in `reduction` goes on after grace."""
    stops = [*decide.rungs(search), search.epochs]
    lengths = zip([0, *stops[:-1]], stops, strict=True)
    survivors = (float(search.reduction) ** -i for i in range(len(stops)))
    return sum((end - start) * share for (start, end), share in zip(lengths, survivors, strict=True))


def trial_table(trials: Sequence[FrozenTrial], search: SearchConfig) -> Table:
    """In the order given; each with the metrics of its best epoch. Readable at 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right")
    table.add_column("epoch", justify="right")
    table.add_column("SSIM", justify="right")
    table.add_column("PSNR", justify="right")
    table.add_column("state")
    table.add_column("parameters", overflow="fold")
    for trial in trials:
        r = row(trial, search.objective)
        measured = best_report(trial, search.objective)
        table.add_row(
            str(r["number"]),
            f"{r['epochs']}/{search.epochs}",
            f"{measured.ssim:.4f}" if measured else "",
            f"{measured.psnr_db:.2f}" if measured else "",
            Text(outcome(trial), style={"COMPLETE": "green", "PRUNED": "dim", "FAIL": "red"}.get(r["state"], "cyan")),
            Text(parameters(trial)),  # a str would be read as markup
        )
    return table


def decision_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """What results.decisions tells of each trial. Readable at 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("trial", "epoch", "value", "cutoff"):
        table.add_column(column, justify="right")
    for column in ("set by", "of", "and so"):
        table.add_column(column, overflow="fold")
    for trial in trials:
        number = str(trial["number"])
        values = {decision["epoch"]: decision["value"] for decision in trial["decisions"]}
        for decision in trial["decisions"]:
            asha = decision["cutoff"] is not None
            table.add_row(
                number,
                str(decision["epoch"]),
                f"{values.get(decision['compared'], decision['value']):.4f}",  # what was compared with the cutoff
                f"{decision['cutoff']:.4f}" if asha else "",
                f"trial {decision['set_by']}" if asha else "",
                str(decision["rivals"]) if asha else "",
                Text(_and_so(decision), style="dim" if decision["action"] == "prune" else ""),
            )
        for failure in trial["failures"]:
            table.add_row(number, str(failure["epoch"]), "", "", "", "", Text(f"died: {failure['error']}", style="red"))
        if trial["error"]:
            table.add_row(number, "", "", "", "", "", Text(f"failed: {trial['error']}", style="red"))
        if not trial["agrees"]:
            text = f"on record: {trial['recorded']['reason']} after epoch {trial['recorded']['epoch']}"
            table.add_row(number, "", "", "", "", "", Text(text, style="red"))
    return table


def _and_so(decision: Mapping[str, Any]) -> str:
    by_another = decision["compared"] not in (None, decision["epoch"])
    return _SO[decision["reason"]] + (f", by epoch {decision['compared']}" if by_another else "")


_SO = {
    "passed": "goes on",
    "asha": "pruned: below the cutoff",
    "leaders": "pruned: below the cutoff",
    "finished": "finished",
    "diverged": "pruned: diverged",
    "collapsed": "pruned: collapsed",
}


def parameters(trial: FrozenTrial) -> str:
    """`loss=l1 l1_weight=100 lr_g=0.0002`."""
    values = ((n, f"{v:.3g}" if isinstance(v, float) else str(v)) for n, v in trial.params.items())
    return " ".join(f"{name}={value}" for name, value in values)


def outcome(trial: FrozenTrial) -> str:
    """`running`, `finished`, `pruned at 3`, `diverged`, `collapsed`, `failed`."""
    reason = trial.user_attrs.get(decide.DECISION, {}).get("reason")
    if trial.state == TrialState.FAIL:
        return "failed"
    if reason in ("asha", "leaders"):
        return f"pruned at {trial.user_attrs[decide.DECISION]['epoch']}"
    return reason or "running"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
