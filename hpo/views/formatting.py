"""How trials are told: words, headline, leaderboard, table of decisions. For the live table and `hpo show`."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from hpo.policy import leaderboard, trial_attributes
from hpo.policy.leaderboard import best_report, reports_of, row
from hpo.policy.search_config import SearchConfig
from hpo.store import search_results
from hpo.store.record import Record
from model.common.text import sanitize_for_terminal
from model.training_report import EvalReport

_STYLES = {"COMPLETE": "green", "PRUNED": "dim", "FAIL": "red"}
_BAR_FROM, _SPEED_FROM = 64, 100  # columns of the terminal from which there is room for them


class Terminal(Console):
    """Colours and cursor are ours alone: no name, parameter or error is markup, nor a command to the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, **options)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            Segment(text if control else sanitize_for_terminal(text), style, control) for text, style, control in buffer
        )


def trial_table(
    trials: Sequence[FrozenTrial],
    search: SearchConfig,
    *,
    width: int = 80,
    progress: Mapping[int, float] | None = None,
    one_line: bool = False,
) -> Table:
    """In the order given; each with the metrics of its best epoch. Below 64 columns without their parameters.

    progress: epochs done by the trials that run, with the fraction of the present one. one_line: parameters that do not
    fit are cut, so that a row is a line.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("epoch", justify="right", no_wrap=True)
    bars = bool(progress) and width >= _BAR_FROM
    if bars:
        table.add_column("", width=width // 10)
    table.add_column("SSIM", justify="right", no_wrap=True)
    table.add_column("PSNR", justify="right", no_wrap=True)
    if width >= _SPEED_FROM:
        table.add_column("images/s", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    if width >= _BAR_FROM:
        table.add_column("parameters", overflow="fold")
    for trial in trials:
        r = row(trial, search.objective)
        done = (progress or {}).get(trial.number)
        cells: list[Any] = [str(r["number"]), f"{r['epochs']}/{search.epochs}"]
        if bars:
            cells.append(
                "" if done is None else ProgressBar(total=search.epochs, completed=done, complete_style="cyan")
            )
        measured = best_report(trial, search.objective)
        cells += [f"{measured.ssim:.4f}", f"{measured.psnr_db:.2f}"] if measured else ["", ""]
        if width >= _SPEED_FROM:
            cells.append(f"{r['images_per_second']:,.0f}" if r["images_per_second"] else "")
        cells.append(Text(outcome(trial), style=_STYLES.get(r["state"], "cyan")))
        if len(cells) < len(table.columns):
            # A str would be read as markup. The column itself may wrap, so that others are not cut in its stead.
            cells.append(Text(parameters(trial), no_wrap=one_line, overflow="ellipsis" if one_line else "fold"))
        table.add_row(*cells)
    return table


def headline(record: Record) -> Text:
    """Of `hpo show`: how many trials, what became of them, how long it took, who won."""
    trials, search = record.trials(), record.search
    lines = [Text.assemble((record.name, "bold"), f"  {counts(trials, search)}")]
    done = sum(len(reports_of(trial)) for trial in trials)
    starts = [trial.datetime_start.timestamp() for trial in trials if trial.datetime_start]
    ends = [trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete]
    took = f", {duration(max(ends) - min(starts))} from the first start to the last end" if ends else ""
    lines.append(Text(f"{done} of {len(trials) * search.epochs} epochs were run{took}"))
    if lost := search_results.lost(record.metadata()):
        lines.append(Text(f"cannot win, their checkpoints being damaged or gone: trials {', '.join(map(str, lost))}"))
    lines += [Text(collapse_message(event)) for event in search_results.collapses(record)]
    number = search_results.winner(record)
    if number is None:
        lines.append(Text("no trial has a valid result yet"))
    else:
        best = best_report(record.trial(number), search.objective)
        assert best is not None
        found = f", {metrics(best)}"
        if search_results.final_wins(record):
            final = {"ssim": math.nan, "psnr_db": math.nan, **(search_results.final_of(record) or {})}
            found = (
                f" (the final training of its configuration), SSIM {final['ssim']:.4f}, PSNR {final['psnr_db']:.2f} dB "
                f"on all validation images; as a trial SSIM {best.ssim:.4f}, PSNR {best.psnr_db:.2f} dB on some"
            )
        so_far = "" if search_results.is_over(record) else " so far"
        lines.append(Text.assemble((f"winner{so_far}: trial {number}", "bold green"), found))
    return Text("\n").join(lines)


def collapse_message(event: Mapping[str, Any]) -> str:
    """What happened to a final training (results.collapses), and what was done."""
    told = (
        f"The final training of trial {event['trial']}'s configuration {event['reason']} in epoch {event['epoch']} of "
    )
    if event["back_to"] is None:
        return f"{told}{event['epochs']}, and was given up"
    rates = f"lr_g {event['lr_g']:.3g}, lr_d {event['lr_d']:.3g}"
    return f"{told}{event['epochs']}; it went back to epoch {event['back_to']} with half the learning rates ({rates})"


def metrics(report: EvalReport) -> str:
    """`SSIM 0.8812, PSNR 27.31 dB, 6.8 dB above the noisy images`."""
    gain = report.psnr_db - report.noisy_psnr_db
    than = f"{abs(gain):.1f} dB {'above' if gain >= 0 else 'below'} the noisy images"
    return f"SSIM {report.ssim:.4f}, PSNR {report.psnr_db:.2f} dB, {than}"


def counts(trials: Sequence[FrozenTrial], search: SearchConfig) -> str:
    """`11/16 trials: 3 finished, 6 pruned, 2 dead, 0 failed, 2 under way`; of trials those that have ended. Dead ones
    diverged or collapsed."""
    of = Counter(leaderboard.outcome_of(trial) for trial in trials)
    dead = sum(of[outcome] for outcome in leaderboard.DEAD)
    told = [f"{of['finished']} finished", f"{of['pruned']} pruned", *([f"{dead} dead"] if dead else [])]
    told += [f"{of['failed']} failed", *([f"{of['running']} under way"] if of["running"] else [])]
    return f"{len(trials) - of['running']}/{search.trials} trials: {', '.join(told)}"


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
            compared = decision["cutoff"] is not None
            table.add_row(
                number,
                str(decision["epoch"]),
                f"{values.get(decision['compared'], decision['value']):.4f}",  # what was compared with the cutoff
                f"{decision['cutoff']:.4f}" if compared else "",
                f"trial {decision['set_by']}" if compared else "",
                str(decision["rivals"]) if compared else "",
                Text(_and_so(decision), style="dim" if decision["action"] == "prune" else ""),
            )
        for failure in trial["failures"]:
            table.add_row(number, str(failure["epoch"]), "", "", "", "", Text(f"died: {failure['error']}", style="red"))
        for move in trial["moves"]:
            table.add_row(number, str(move["epoch"]), "", "", "", "", Text(f"moved: {move['why']}", style="dim"))
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
    "pruner": "pruned",
    "finished": "finished",
    "diverged": "pruned: diverged",
    "collapsed": "pruned: collapsed",
}


def parameters(trial: FrozenTrial) -> str:
    """`loss=l1 l1_weight=100 lr_g=0.0002`."""
    values = ((n, f"{v:.3g}" if isinstance(v, float) else str(v)) for n, v in trial.params.items())
    return " ".join(f"{name}={value}" for name, value in values)


def outcome(trial: FrozenTrial) -> str:
    """`under way`, `finished`, `pruned at 3`, `diverged`, `collapsed`, `failed`."""
    word = leaderboard.outcome_of(trial)
    if word == "pruned":
        return f"pruned at {trial.user_attrs[trial_attributes.DECISION]['epoch']}"
    return "under way" if word == "running" else word


def duration(seconds: float) -> str:
    """`03:12`, `1:00:00`."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")


def command_to_continue(name: str, runs: Path, storage: str | None = None) -> str:
    """Whatever else was asked for is in search.json."""
    where = [] if runs == Path("runs") else ["--runs", str(runs)]
    return shlex.join(["hpo", "search", name, *where, *(["--storage", storage] if storage else [])])
