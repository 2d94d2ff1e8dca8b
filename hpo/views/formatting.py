"""Words and tables for trials, for the live table, `hpo show` and the report."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.policy import leaderboard, trial_attributes
from hpo.policy.leaderboard import best_report, row
from hpo.policy.search_config import SearchConfig
from hpo.store import search_results
from hpo.store.record import Record
from hpo.views.comparison_text import comparison_lines
from hpo.views.objectives_text import (
    domination,
    extra_cell,
    extra_columns,
    figures,
    front_lines,
    limit_lines,
    limit_reason,
)
from model.training_report import EvalReport, Objective

_STYLES = {"COMPLETE": "green", "PRUNED": "dim", "FAIL": "red"}
_BAR_FROM, _SPEED_FROM = 64, 100  # columns that a terminal needs for them
_SHOWN_IF_SEARCHED = {"l1": "L1", "haarpsi": "HaarPSI"}  # SSIM and PSNR are always shown


def trial_table(
    trials: Sequence[FrozenTrial],
    search: SearchConfig,
    *,
    width: int = 80,
    progress: Mapping[int, float] | None = None,
    one_line: bool = False,
    front: Collection[int] = (),
) -> Table:
    """A table of trials in the order given, each with the metrics of its best epoch.

    Args:
        width: columns of the terminal. Below 64 the table has no parameters.
        progress: by running trial, the epochs done with a fraction for the present one; adds a column of bars.
        front: trials to be marked, those of the front of several objectives.
        one_line: cut parameters that do not fit, so that each row is one line.
    """
    number: dict[str, Any] = {"justify": "right", "no_wrap": True}
    columns = {
        "trial": number,
        "epoch": number,
        **({"": {"width": width // 10}} if progress and width >= _BAR_FROM else {}),
        **dict.fromkeys(_searched(search).values(), number),
        "SSIM": number,
        "PSNR": number,
        **dict.fromkeys(extra_columns(search).values(), number),
        **({"images/s": number} if width >= _SPEED_FROM else {}),
        "state": {"no_wrap": True},
        **({"parameters": {"overflow": "fold"}} if width >= _BAR_FROM else {}),
    }
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header, options in columns.items():
        table.add_column(header, **options)
    for trial in trials:
        cells = _cells(trial, search, (progress or {}).get(trial.number), one_line)
        is_on_front = trial.number in front
        cells["trial"] = f"{'*' * is_on_front}{cells['trial']}"
        table.add_row(*(cells[header] for header in columns), style="bold" if is_on_front else None)
    return table


def _cells(trial: FrozenTrial, search: SearchConfig, done: float | None, one_line: bool) -> dict[str, Any]:
    """The cells of a trial by the column's header. done: epochs of a running trial."""
    r, best = row(trial, search.objective), best_report(trial, search.objective)
    return {
        "trial": str(r["number"]),
        "epoch": f"{r['epochs']}/{search.epochs}",
        "": "" if done is None else ProgressBar(total=search.epochs, completed=done, complete_style="cyan"),
        **{header: f"{getattr(best, name):.4f}" if best else "" for name, header in _searched(search).items()},
        "SSIM": f"{best.ssim:.4f}" if best else "",
        "PSNR": f"{best.psnr_db:.2f}" if best else "",
        **{header: extra_cell(trial, name) for name, header in extra_columns(search).items()},
        "images/s": f"{r['images_per_second']:,.0f}" if r["images_per_second"] else "",
        "state": Text(outcome(trial), style=_STYLES.get(r["state"], "cyan")),
        # Text, because a str would be read as markup. The column may wrap, or rich would cut other columns too.
        "parameters": Text(parameters(trial), no_wrap=one_line, overflow="ellipsis" if one_line else "fold"),
    }


def _searched(search: SearchConfig) -> dict[str, str]:
    """The headers of the search's metrics that are only shown where they are objectives, by the report's fields."""
    return {name: header for name, header in _SHOWN_IF_SEARCHED.items() if name in search.objectives}


def headline(record: Record) -> Text:
    """The lines above the leaderboard in `hpo show`: counts, duration and the winner."""
    trials, search = record.trials(), record.search
    lines = [Text.assemble((record.name, "bold"), f"  {counts(trials, search)}")]
    done = sum(len(trial.user_attrs[trial_attributes.REPORTS]) for trial in trials)
    starts = [trial.datetime_start.timestamp() for trial in trials if trial.datetime_start]
    ends = [trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete]
    took = f", {duration(max(ends) - min(starts))} from the first start to the last end" if ends else ""
    lines.append(Text(f"{done} of {len(trials) * search.epochs} epochs were run{took}"))
    if lost := search_results.lost_trials(record.metadata()):
        numbers = ", ".join(map(str, lost))
        lines.append(Text(f"checkpoints damaged or missing, so these trials cannot win: {numbers}"))
    lines += [Text(collapse_message(event)) for event in search_results.collapses(record)]
    lines += map(Text, limit_lines(trials, search))
    if search.is_multi_objective:
        first, *others = front_lines(record)
        return Text("\n").join([*lines, Text(first, style="bold green"), *map(Text, others)])
    known = comparison_lines(search_results.comparison(record))
    return Text("\n").join([*lines, _winner_line(record), *map(Text, known)])


def _winner_line(record: Record) -> Text:
    number = search_results.winner(record)
    if number is None:
        return Text("no trial has a valid result yet")
    best = best_report(record.trial(number), record.search.objective)
    assert best is not None
    measured = f", {metrics(best, record.search.objective)}"
    if search_results.final_wins(record):
        final = {"ssim": math.nan, "psnr_db": math.nan, **(search_results.final_result(record) or {})}
        measured = (
            f" (the final training of its configuration), SSIM {final['ssim']:.4f}, PSNR {final['psnr_db']:.2f} dB on "
            f"all validation images; as a trial SSIM {best.ssim:.4f}, PSNR {best.psnr_db:.2f} dB on some of them"
        )
    so_far = "" if search_results.is_over(record) else " so far"
    return Text.assemble((f"winner{so_far}: trial {number}", "bold green"), measured)


def collapse_message(event: Mapping[str, Any]) -> str:
    """One of search_results.collapses in a sentence: what happened to the final training, and what was done."""
    what = f"The final training of trial {event['trial']}'s configuration {event['reason']}"
    when = f"in epoch {event['epoch']} of {event['epochs']}"
    if event["back_to"] is None:
        return f"{what} {when}, and was given up"
    rates = f"lr_g {event['lr_g']:.3g}, lr_d {event['lr_d']:.3g}"
    return f"{what} {when}; it went back to epoch {event['back_to']} with half the learning rates ({rates})"


def metrics(report: EvalReport, objective: Objective) -> str:
    """`SSIM 0.8812, PSNR 27.31 dB, 6.8 dB above the noisy images`; L1 or HaarPSI in SSIM's place if it is searched."""
    name = objective if objective in _SHOWN_IF_SEARCHED else "ssim"
    gain = report.psnr_db - report.noisy_psnr_db
    than = f"{abs(gain):.1f} dB {'above' if gain >= 0 else 'below'} the noisy images"
    value = f"{_SHOWN_IF_SEARCHED.get(name, 'SSIM')} {getattr(report, name):.4f}"
    return f"{value}, PSNR {report.psnr_db:.2f} dB, {than}"


def epoch_line(report: EvalReport, epochs: int) -> str:
    """`epoch 3/12  SSIM 0.8812  PSNR 27.31 dB  301 images/s`."""
    return (
        f"epoch {report.epoch}/{epochs}  SSIM {report.ssim:.4f}  PSNR {report.psnr_db:.2f} dB  "
        f"{report.images_per_second:.0f} images/s"
    )


def counts(trials: Sequence[FrozenTrial], search: SearchConfig) -> str:
    """`11/16 trials: 3 finished, 6 pruned, 2 diverged, 0 failed, 2 running`. The first number counts ended trials."""
    by_outcome = Counter(leaderboard.outcome_of(trial) for trial in trials)
    shown = [
        f"{by_outcome[outcome]} {outcome}"
        for outcome in ("finished", "pruned", *leaderboard.DEAD, "infeasible", "failed", "running")
        if outcome in ("finished", "pruned", "failed") or by_outcome[outcome]
    ]
    return f"{len(trials) - by_outcome['running']}/{search.trials} trials: {', '.join(shown)}"


def decision_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """The table of `hpo show --decisions` for the trials of search_results.decisions, readable at 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    # With several objectives no single value decides, and the result has all of them.
    has_vectors = any("objectives" in decision for trial in trials for decision in trial["decisions"])
    values = () if has_vectors else ("value", "cutoff")
    for column in ("trial", "epoch", *values):
        table.add_column(column, justify="right")
    for column in (*(() if has_vectors else ("set by",)), "rivals", "result"):
        table.add_column(column, overflow="fold")
    headers = [str(column.header) for column in table.columns]
    for trial in trials:
        for texts, style in _decision_rows(trial):
            cells: list[Any] = [texts.get(header, "") for header in headers]
            table.add_row(*cells[:-1], Text(cells[-1], style=style))
    return table


def _decision_rows(trial: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], str]]:
    """The rows of a trial by the column's header, and the style of the result."""
    number = {"trial": str(trial["number"])}
    values = {decision["epoch"]: decision["value"] for decision in trial["decisions"]}
    for decision in trial["decisions"]:
        value = values.get(decision["compared"], decision["value"])  # it was compared with the cutoff
        row = {**number, "epoch": str(decision["epoch"]), "result": _result(decision)}
        row |= {"value": "" if value is None else f"{value:.4f}"}
        row |= {"cutoff": "" if decision["cutoff"] is None else f"{decision['cutoff']:.4f}"}
        if decision["set_by"] is not None:
            row |= {"set by": f"trial {decision['set_by']}"}
        if decision["rivals"] is not None:
            row |= {"rivals": str(decision["rivals"])}
        yield row, "dim" if decision["action"] == "prune" else ""
    events = [(str(e["epoch"]), f"worker failed: {e['error']}", "red") for e in trial["failures"]]
    events += [(str(e["epoch"]), f"migrated: {e['why']}", "dim") for e in trial["moves"]]
    if trial["error"]:
        events.append(("", f"failed: {trial['error']}", "red"))
    if not trial["agrees"]:
        recorded = trial["recorded"]
        events.append(("", f"recorded: {recorded['reason']} after epoch {recorded['epoch']}", "red"))
    for epoch, text, style in events:
        yield {**number, "epoch": epoch, "result": text}, style


def _result(decision: Mapping[str, Any]) -> str:
    if violated := decision.get("violates"):
        return f"not trained: {limit_reason(violated)}"
    if "objectives" in decision:
        return _result_of_vectors(decision)
    by_another = decision["compared"] not in (None, decision["epoch"])
    return _RESULTS[decision["reason"]] + (f", by epoch {decision['compared']}" if by_another else "")


def _result_of_vectors(decision: Mapping[str, Any]) -> str:
    if decision["set_by"] is None:
        return f"continues, on the front: {figures(decision['objectives'])}"
    if decision["action"] == "prune":
        return (
            f"{'pruned' if decision['reason'] == 'dominated' else _RESULTS[decision['reason']]}: {domination(decision)}"
        )
    return f"continues, one of the best {decision['places']}, though {domination(decision)}"


_RESULTS = {
    "passed": "continues",
    "asha": "pruned: below the cutoff",
    "leaders": "pruned: below the cutoff",
    "dominated": "pruned: dominated",
    "limit": "not trained: violates a limit",
    "pruner": "pruned",
    "finished": "finished",
    "diverged": "pruned: diverged",
    "collapsed": "pruned: collapsed",
}


def parameters(trial: FrozenTrial) -> str:
    """`loss=l1 l1_weight=100 lr_g=0.0002`."""
    return " ".join(f"{n}={v:.3g}" if isinstance(v, float) else f"{n}={v}" for n, v in trial.params.items())


def outcome(trial: FrozenTrial) -> str:
    """`running`, `finished`, `pruned at 3`, `diverged`, `collapsed`, `failed`."""
    outcome = leaderboard.outcome_of(trial)
    return f"pruned at {trial.user_attrs[trial_attributes.DECISION]['epoch']}" if outcome == "pruned" else outcome


def duration(seconds: float) -> str:
    """`03:12`, `1:00:00`."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")


def command_to_continue(name: str, runs: Path, storage: str | None = None) -> str:
    """The command that continues a search. Its other options are in search.json."""
    return shlex.join(["hpo", "search", name, *place_options(runs, storage)])


def place_options(runs: Path, storage: str | None) -> list[str]:
    """The options with which a command finds a search."""
    return [*([] if runs == Path("runs") else ["--runs", str(runs)]), *(["--storage", storage] if storage else [])]
