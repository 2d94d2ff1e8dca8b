"""Leaderboard and winner."""

from __future__ import annotations

import copy
import io
import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from curves import SPACE, append_report, report
from optuna.trial import TrialState
from plain_search import command
from rich.console import Console

import hpo.run.export
from hpo.cli.commands import main
from hpo.policy import leaderboard
from hpo.policy.report_decision import Decision
from hpo.policy.search_config import SearchConfig
from hpo.policy.suggestions import suggest
from hpo.policy.trial_attributes import DECISION
from hpo.run import final_training
from hpo.store import file_names, search_results
from hpo.store.record import Record
from hpo.store.search_file import RecordError
from hpo.views.formatting import collapse_message, headline
from model.checkpoint import load_checkpoint
from model.config import TrainConfig
from model.denoise import MANIFEST
from model.trainer import Trainer
from model.training_files import BEST, LAST

OBJECTIVE = "ssim"


def rewritten(record: Record, number: int, decision: Decision, **changes: Any) -> None:
    """As if the trial had ended so."""
    trial = copy.copy(record.trial(number))
    trial.user_attrs = {**trial.user_attrs, DECISION: asdict(decision)}
    for name, value in changes.items():
        setattr(trial, name, value)
    record._write(trial)


@pytest.fixture
def record(runs) -> Record:
    """Trials with an end of every kind, none in the order of its quality."""
    search = SearchConfig(trials=7, epochs=3, pruner="none", objectives=(OBJECTIVE,), final_epochs=2)
    record = Record.create(runs, "first", search)
    told = {
        0: [0.5, 0.6, 0.55],  # complete; best in epoch 2
        1: [0.7],  # pruned
        2: [0.9],  # failed
        3: [0.95, math.nan],  # diverged
        4: [0.65, 0.65, 0.65],  # complete; its best checkpoint is the last of equals
        5: [],
        6: [0.8],  # running
    }
    for number, values in told.items():
        record.add(suggest(record.trials(), SPACE, search))
        for epoch, value in enumerate(values, start=1):
            append_report(record, number, report(epoch, value))
    decision = Decision(action="prune", reason="asha", epoch=1, value=0.7)
    rewritten(record, 1, decision, state=TrialState.PRUNED, values=[0.7])
    record.fail(2, "its node is gone")
    return record


def test_the_leaderboard_is_in_the_order_of_the_best_epochs(record):
    board = leaderboard.leaderboard(record.trials(), OBJECTIVE)
    assert [(r["number"], r["value"], r["best_epoch"]) for r in board] == [
        (3, 0.95, 1),
        (2, 0.9, 1),
        (6, 0.8, 1),
        (1, 0.7, 1),
        (4, 0.65, 3),
        (0, 0.6, 2),
        (5, None, None),
    ]
    assert [r["stop_reason"] for r in board] == ["diverged", "error", None, "asha", "finished", "finished", None]
    trained = {r["number"]: (r["epochs"], r["images"], r["images_per_second"]) for r in board}
    assert (trained[0], trained[1], trained[5]) == ((3, 3000, 500.0), (1, 1000, 500.0), (0, 0, None))
    json.dumps(search_results.document(record), allow_nan=False)


def test_neither_a_failed_nor_a_diverged_trial_wins(record):
    assert leaderboard.finalists(record.trials(), record.search) == [6, 1, 4]
    assert search_results.winner(record) == 6


def test_no_winner_comes_out_of_nothing_valid(runs):
    record = Record.create(runs, "none", SearchConfig(objectives=(OBJECTIVE,)))
    assert search_results.winner(record) is None
    record.add(suggest([], SPACE, record.search))
    append_report(record, 0, report(1, math.nan))
    assert search_results.winner(record) is None


def test_finalists_measured_on_all_validation_images_decide(record):
    record.set_metadata(file_names.FINALISTS, {"6": {"value": 0.70}, "1": {"value": 0.72}, "4": {"value": 0.72}})
    assert search_results.winner(record) == 1  # of equals, the one with the better reports


def test_finalists_that_were_measured_before_a_better_trial_came_decide_nothing(record):
    record.set_metadata(file_names.FINALISTS, {"1": {"value": 0.72}, "4": {"value": 0.74}, "0": {"value": 0.7}})
    assert search_results.winner(record) == 6


@pytest.mark.parametrize(
    ("final", "wins"),
    [
        ({"trial": 1, "value": 0.73}, True),
        ({"trial": 1, "value": 0.71}, False),
        ({"trial": 4, "value": 0.73}, True),  # the configuration of the best had collapsed
        ({"trial": 0, "value": 0.99}, False),  # of an earlier end: no finalist any more
        (None, False),
    ],
)
def test_the_final_training_wins_where_it_is_better_than_every_finalist(record, final, wins):
    record.set_metadata(file_names.FINALISTS, {"6": {"value": 0.5}, "1": {"value": 0.72}, "4": {"value": 0.6}})
    if final:
        record.set_metadata(file_names.FINAL, final)
    assert search_results.final_wins(record) == wins
    assert search_results.winner(record) == (final["trial"] if wins else 1)
    record.update_config({"final_epochs": 0})
    assert not search_results.final_wins(record)


def collapse(trial: int, back_to: int | None, **changed: Any) -> dict[str, Any]:
    rates = {} if back_to is None else {"lr_g": 1e-3 / 2**back_to, "lr_d": 1e-4 / 2**back_to}
    event = {"trial": trial, "epochs": 2, "epoch": 2, "reason": "collapsed", "back_to": back_to, **rates}
    return {**event, **changed}


def trained_finally(record: Record, monkeypatch: pytest.MonkeyPatch, *events: dict[str, Any] | None) -> list[Any]:
    """The trials and the rates of each final training; events: what became of them."""
    trained, left = [], list(events)

    def train(_, number: int, collapses: list[dict[str, Any]]) -> dict[str, Any] | None:
        trained.append((number, collapses[-1]["lr_g"] if collapses else None))
        assert search_results.winner(record) == 1
        assert not search_results.final_wins(record)
        return left.pop(0)

    monkeypatch.setattr(final_training, "train_longer", train)
    console = Console(file=io.StringIO())
    replicator = SimpleNamespace(flush=lambda: None)
    context = SimpleNamespace(record=record, replicator=replicator, say=partial(console.print, soft_wrap=True))
    final_training.train_final(context)
    assert not left
    return [*trained, *console.file.getvalue().splitlines()]


def test_a_final_training_that_collapses_goes_back_with_half_the_rates_twice_before_another_is_tried(
    record, monkeypatch
):
    record.set_metadata(file_names.FINALISTS, {"6": {"value": 0.5}, "1": {"value": 0.72}, "4": {"value": 0.6}})
    record.set_metadata(file_names.FINAL, {"trial": 1, "value": 0.99})  # of an earlier end, its checkpoint overwritten
    events = [collapse(1, 1), collapse(1, 2), collapse(1, None)]
    began = "The final training of trial 1's configuration collapsed in epoch 2 of 2"
    assert trained_finally(record, monkeypatch, *events, None) == [
        (1, None),
        (1, 5e-4),
        (1, 2.5e-4),
        (4, None),
        f"{began}; it went back to epoch 1 with half the learning rates (lr_g 0.0005, lr_d 5e-05)",
        f"{began}; it went back to epoch 2 with half the learning rates (lr_g 0.00025, lr_d 2.5e-05)",
        f"{began}, and was given up",
    ]
    assert search_results.collapses(record) == search_results.document(record)[file_names.COLLAPSES] == events
    assert f"{began}, and was given up" in str(headline(record))


def test_a_driver_that_was_killed_goes_on_with_the_rates_that_its_final_training_had(record, monkeypatch):
    record.set_metadata(file_names.FINALISTS, {"6": {"value": 0.5}, "1": {"value": 0.72}, "4": {"value": 0.6}})
    earlier = [collapse(4, None), collapse(1, None, epochs=9), collapse(1, 1)]  # another length is another training
    record.set_metadata(file_names.COLLAPSES, earlier)
    assert trained_finally(record, monkeypatch, None) == [(1, 5e-4)]
    record.set_metadata(file_names.COLLAPSES, [*earlier, collapse(1, None), collapse(6, None)])
    assert trained_finally(record, monkeypatch) == []  # all were tried


class Killed(BaseException):
    pass


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_final_training_that_falls_below_the_noisy_images_is_continued_from_its_best_epoch(
    is_killed, pictures, tmp_path, plainly, monkeypatch
):
    """The training and its checkpoints are real, its metrics are not: at the trial's own rates all is lost from epoch 3
    on. is_killed: the driver is, before the training goes on."""
    evaluate, rate = Trainer._evaluate, TrainConfig().lr_g

    def metrics(trainer: Trainer) -> dict[str, float]:
        epoch, is_lost = trainer.epoch + 1, trainer.config.lr_g == rate and trainer.epoch >= 2
        found = {"psnr_db": 8.7 if is_lost else 25 + epoch / 10, "ssim": 0.1 if is_lost else 0.5, "output_std": 0.2}
        return {**evaluate(trainer), **(found if trainer.config.epochs == 5 else {})}

    def killed(_: object) -> str:
        monkeypatch.setattr(final_training, "collapse_message", collapse_message)
        raise Killed

    monkeypatch.setattr(Trainer, "_evaluate", metrics)
    (tmp_path / "space.py").write_text(
        "from dataclasses import replace\n\ndef suggest(trial, base):\n"
        "    return replace(base, l1_weight=trial.suggest_float('l1_weight', 50, 200))\n"
    )
    words = command(pictures, tmp_path / "runs", "--space", str(tmp_path / "space.py"), "--final-epochs", "5")
    if is_killed:
        monkeypatch.setattr(final_training, "collapse_message", killed)
        with pytest.raises(Killed):
            main(words)
    assert main(words) == 0
    found = Record(tmp_path / "runs", "first")
    [event] = search_results.collapses(found)
    told = {"reason": "collapsed", "epoch": 4, "back_to": 2, "lr_g": rate / 2, "lr_d": TrainConfig().lr_d / 2}
    assert event.items() >= told.items()
    _, state = load_checkpoint(found.folder / file_names.FINAL / LAST)
    assert state["config"].items() >= {"lr_g": rate / 2, "lr_d": event["lr_d"], "epochs": 5}.items()
    assert [report["psnr_db"] for report in state["reports"]] == [25.1, 25.2, 25.3, 25.4, 25.5]
    assert search_results.final_result(found)["trial"] == event["trial"]


@pytest.mark.parametrize(
    ("ssim", "last", "times", "back_to"),
    [
        ((0.5, 0.6, 0.4), {}, 0, 2),
        ((0.5, 0.6, 0.4), {}, 2, None),  # so often it went back before
        ((0.5, 0.6, 0.7), {"gen_total": math.nan}, 0, None),  # it diverged in its best epoch: there is no way back
        ((), {}, 0, None),
    ],
)
def test_a_training_goes_back_to_its_best_epoch_at_half_the_rates_where_that_one_lived(ssim, last, times, back_to):
    reports = [report(epoch, value) for epoch, value in enumerate(ssim, start=1)]
    reports[-1:] = [replace(at, **last) for at in reports[-1:]]
    config = TrainConfig(lr_g=4e-3, lr_d=2e-4)
    rates = {} if back_to is None else {"lr_g": 2e-3, "lr_d": 1e-4}
    assert final_training.plan_restore(reports, config, times, OBJECTIVE) == {"back_to": back_to, **rates}


@pytest.mark.parametrize("note", [{}, [3], [{"trial": 1}], [{**collapse(1, 1), "lr_g": "high"}]])
def test_a_damaged_note_of_collapses_is_told(record, note):
    record.set_metadata(file_names.COLLAPSES, note)
    with pytest.raises(RecordError, match="the search's note final_collapses: damaged"):
        search_results.collapses(record)


def test_a_search_is_over_when_all_that_was_asked_for_has_ended(record):
    assert not search_results.is_over(record)
    for number in (5, 6):
        record.fail(number, "gone")
    assert search_results.is_over(record)
    record.update_config({"trials": 8})
    assert not search_results.is_over(record)


def test_an_export_looks_at_the_test_images_only_once_the_search_is_over(record, runs, monkeypatch, tmp_path):
    """And is of the winner so far, or of its configuration's final training."""
    given: list[dict[str, Any]] = []

    def export(checkpoint: Path, to: Path, **rest: Any) -> dict[str, Any]:
        given.append({"checkpoint": checkpoint, "to": to, **rest})
        return {"metrics": {"validation": None, "test": None}}

    def asked(*options: str) -> dict[str, Any]:
        assert main(["export", "first", "--runs", str(runs), *options]) == 0
        return given[-1]

    monkeypatch.setattr(hpo.run.export, "export", export)
    of = {"search": "first", "search_id": record.id, "final_training": False, "trials": 7, "final_epochs": 2}
    early = asked()
    assert (early["test"], early["origin"]) == (None, {**of, "trial": 6})
    for number in (5, 6):
        record.fail(number, "gone")
    late = asked("--to", str(tmp_path / "model"))
    assert (len(late["test"]), late["origin"]) == (10_000, {**of, "trial": 1})
    assert (late["checkpoint"], late["to"]) == (record.trial_folder(1) / BEST, tmp_path / "model")
    record.set_metadata(file_names.FINALISTS, {"1": {"value": 0.72}, "4": {"value": 0.6}, "0": {"value": 0.5}})
    record.set_metadata(file_names.FINAL, {"trial": 1, "value": 0.73})
    final = asked()
    assert final["origin"] == {**of, "trial": 1, "final_training": True}
    assert (final["checkpoint"], final["to"]) == (
        record.folder / file_names.FINAL / BEST,
        record.folder / file_names.EXPORT,
    )
    (record.trial_folder(1)).mkdir(parents=True)
    (record.trial_folder(1) / BEST).write_bytes(b"")
    assert asked("--trial", "1")["checkpoint"] == record.trial_folder(1) / BEST  # its own, not the final training's


def test_an_export_is_the_searchs_until_more_is_asked_for(done):
    folder, origin = done.folder / file_names.EXPORT, {"trial": 1, "trials": 8, "final_epochs": 0}
    assert not search_results.is_exported(done)
    folder.mkdir()
    model = {"file": "generator.onnx", "channels": 1, "image_size": 32, "padding": 2}
    manifest = {"model": model, "files": {"generator.onnx": ""}, "data": {}, "metrics": {"test": None}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert not search_results.is_exported(done)  # it does not say whose it is
    (folder / MANIFEST).write_text(json.dumps({**manifest, "origin": origin}))
    told = {"folder": str(folder.resolve()), "origin": origin, "metrics": {"test": None}}
    assert search_results.export_document(done) == told
    assert search_results.is_exported(done)
    for more in ({"final_epochs": 2}, {"final_epochs": 0, "trials": 9}):
        done.update_config(more)
        assert not search_results.is_exported(done)


def test_decisions_taken_again_are_those_on_record(done):
    told = search_results.decisions(done)
    assert [trial["number"] for trial in told["trials"]] == list(range(8))
    for trial in told["trials"]:
        assert trial["agrees"]
        assert trial["decisions"][-1] == trial["recorded"]
        assert all(decision["action"] == "continue" for decision in trial["decisions"][:-1])
    assert {trial["suggested_by"] for trial in told["trials"]} >= {"starting point", "random"}


def test_a_decision_that_the_record_does_not_bear_out_is_told(done):
    pruned = next(trial for trial in done.trials() if trial.user_attrs[DECISION]["reason"] == "asha")
    rewritten(done, pruned.number, Decision(**{**pruned.user_attrs[DECISION], "cutoff": 0.0}))
    assert [trial["number"] for trial in search_results.decisions(done)["trials"] if not trial["agrees"]] == [
        pruned.number
    ]


def test_a_tie_with_the_best_network_goes_to_the_smaller_one(record):
    def compared(verdict: str) -> dict[str, Any]:
        ends = {"low": -0.1, "high": 0.1, "confidence": 0.98, "probability": 0.4, "count": 5000}
        return {"with": 6, "difference": -0.01, **ends, "verdict": verdict}

    best = {"value": 0.72, "parameters": 900, "images": 5000, "sha256": "ab"}
    smaller, worse = {"value": 0.71, "parameters": 500}, {"value": 0.70, "parameters": 10}
    notes = {"6": best, "1": {**smaller, "compared": compared("tie")}, "4": {**worse, "compared": compared("worse")}}
    record.set_metadata(file_names.FINALISTS, notes)
    assert search_results.ranked_finalists(record) == [1, 6, 4]
    notes["1"] = {**smaller, "parameters": 900, "compared": compared("tie")}
    record.set_metadata(file_names.FINALISTS, notes)
    assert search_results.ranked_finalists(record) == [6, 1, 4]
    record.set_metadata(file_names.FINALISTS, {**notes, "1": {**smaller, "compared": {"with": "six"}}})
    with pytest.raises(RecordError, match=file_names.FINALISTS):
        search_results.ranked_finalists(record)


def replicate(value: float, outcome: str = "finished") -> dict[str, Any]:
    return {"seed": 5, "outcome": outcome, "epochs": 4, "value": value, "psnr_db": 28.0, "ssim": 0.9, "sha256": "cd"}


def test_the_means_of_fresh_seeds_choose_the_winner(record):
    finalists = {n: {"value": v, "parameters": 500} for n, v in (("6", 0.72), ("1", 0.71), ("4", 0.70))}
    record.set_metadata(file_names.FINALISTS, finalists)
    record.update_config({"replicates": 2})
    values = {"6": (0.70, 0.71), "1": (0.73, 0.72), "4": (0.60, 0.61)}
    noted = {n: {str(i): replicate(v) for i, v in enumerate(row)} for n, row in values.items()}
    record.set_metadata(file_names.REPLICATES, {n: {"0": row["0"]} for n, row in noted.items()})
    assert search_results.ranked_finalists(record) == [6, 1, 4]  # one seed decides nothing
    record.set_metadata(file_names.REPLICATES, noted)
    assert search_results.ranked_finalists(record) == [1, 6, 4]
    told = search_results.document(record)[file_names.REPLICATES]
    assert (told["winner"], told["seeds"], told["is_over"]) == (1, 2, True)
    assert told["finalists"]["1"]["means"]["value"]["mean"] == pytest.approx(0.725)
    json.dumps(told, allow_nan=False)
    record.update_config({"replicates": 0})
    assert search_results.ranked_finalists(record) == [6, 1, 4]
    assert search_results.document(record)[file_names.REPLICATES] is None


def test_a_damaged_note_of_replicates_is_told(record):
    record.set_metadata(file_names.FINALISTS, {"6": {"value": 0.7}, "1": {"value": 0.6}, "4": {"value": 0.5}})
    record.update_config({"replicates": 2})
    for damaged in ([], {"6": []}, {"6": {"0": {**replicate(0.7), "value": "0.7"}}}, {"6": {"0": {"value": 0.7}}}):
        record.set_metadata(file_names.REPLICATES, damaged)
        with pytest.raises(RecordError, match=file_names.REPLICATES):
            search_results.winner(record)
