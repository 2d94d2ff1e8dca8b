"""The third phase of a search: the best finalist's configuration, trained longer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from hpo.policy import leaderboard, trial_attributes
from hpo.policy.retry_policy import MAX_ATTEMPTS
from hpo.run.context import SearchContext
from hpo.store import file_names, search_results
from hpo.store.checkpoint_upload import was_trained_with
from hpo.store.record import Record
from hpo.tune.trainable import Training
from hpo.views.formatting import collapse_message
from model.config import TrainConfig
from model.training_files import BEST, LAST, LEARNING_RATES
from model.training_report import EvalReport, Objective, failure_reason

MAX_RESTORES = 2  # times that a final training returns to its best epoch, each time with half the learning rates
_WIDE = 32  # channels from which a second thread speeds up a training (docs/quality.md)

Collapse = Mapping[str, Any]  # an element of search_results.collapses


def train_final(context: SearchContext) -> None:
    """Train the best finalist's configuration longer, and measure it.

    Learning rates that are right for few epochs may be too high for many. A training that collapses returns to its best
    epoch with half the rates, MAX_RESTORES times; after that the next finalist's configuration is trained.
    """
    record = context.record
    record.set_metadata(file_names.FINAL, None)  # the checkpoint of an earlier one is about to be overwritten
    for number in search_results.ranked_finalists(record):
        while True:
            key = (number, record.search.final_epochs)  # a final training of another length is another training
            collapses = [e for e in search_results.collapses(record) if (e["trial"], e["epochs"]) == key]
            if collapses and collapses[-1]["back_to"] is None:
                break
            event = train_longer(context, number, collapses)
            if event is None:
                return
            record.set_metadata(file_names.COLLAPSES, [*search_results.collapses(record), event])
            context.replicator.flush()
            context.say(collapse_message(event))


def train_longer(context: SearchContext, number: int, collapses: Sequence[Collapse]) -> dict[str, Any] | None:
    """Train the configuration of a trial for the epochs of a final training, and measure the best checkpoint.

    The earlier collapses of the same final training are given oldest first. Returns the collapse that ended it, in the
    form of search_results.collapses, or None.
    """
    record = context.record
    config = TrainConfig.from_dict(record.trial(number).user_attrs[trial_attributes.CONFIG])
    rates = {name: collapses[-1][name] for name in LEARNING_RATES} if collapses else {}
    config = replace(config, epochs=record.search.final_epochs, **rates)
    _delete_other_training(record, config, is_restore=bool(collapses))
    context.progress.show_final_training(number, [], config.epochs)
    training = _start_process(context, number, config, is_restore=bool(collapses))
    reports = _run_epochs(context, training, number, config)
    reason = _failure(reports, config)
    if reports and reason is None:
        metrics = ray.get(training.measured.remote(context.images_ref))
        record.set_metadata(file_names.FINAL, {"trial": number, **context.with_value(metrics)})
        context.replicator.flush()
    ray.kill(training)
    if reason is None:
        return None
    event = {"trial": number, "epochs": config.epochs, "reason": reason, "epoch": len(reports)}
    return {**event, **plan_restore(reports, config, len(collapses), record.search.objective)}


def plan_restore(
    reports: Sequence[EvalReport], config: TrainConfig, restores: int, objective: Objective
) -> dict[str, Any]:
    """Decide how a training that collapsed, and has returned to its best epoch `restores` times, continues.

    Returns:
        `back_to`, the best epoch, and half the learning rates. `back_to` is None if the training is given up: it has no
        restore left, or the best epoch is the one in which it collapsed.
    """
    best = leaderboard.best_of(reports, objective)
    if restores == MAX_RESTORES or best is None or best.is_dead or best is reports[-1]:
        return {"back_to": None}
    return {"back_to": best.epoch, **{name: getattr(config, name) / 2 for name in LEARNING_RATES}}


def _delete_other_training(record: Record, config: TrainConfig, *, is_restore: bool) -> None:
    """Delete the checkpoints of a final training with another configuration."""
    folder = record.folder / file_names.FINAL
    if record.storage is not None:
        return  # the process of the training looks for itself
    other_rates = LEARNING_RATES if is_restore else ()
    if not any(was_trained_with(folder / name, config, other_rates) for name in (LAST, BEST)):
        shutil.rmtree(folder, ignore_errors=True)


def _start_process(context: SearchContext, number: int, config: TrainConfig, *, is_restore: bool) -> Any:
    resources = context.cluster.exclusive_node_options
    # A narrow network has as many threads as a trial, although it has the node to itself: at width 16 a second thread
    # costs more than it gains, and beside other work ten times as much (docs/log.md).
    threads = context.cluster.cpus_per_trial if config.width < _WIDE else resources["num_cpus"]
    setup = context.training_config(number, config.as_dict(), context.record.folder / file_names.FINAL, threads)
    # Ray restarts a process that died, from its last checkpoint, as often as the search restarts a trial.
    options = {**resources, "max_restarts": MAX_ATTEMPTS - 1, "max_task_retries": MAX_ATTEMPTS - 1}
    return Training.options(**options).remote(setup, back_to_best=is_restore)  # type: ignore[attr-defined]


def _run_epochs(context: SearchContext, training: Any, number: int, config: TrainConfig) -> list[EvalReport]:
    """Train until the last epoch, a collapse or the cost limit; return all reports, also those of earlier drivers."""
    reports = [EvalReport.from_dict(report) for report in ray.get(training.reports.remote(context.images_ref))]
    context.progress.show_final_training(number, reports, config.epochs)
    tensorboard = context.tensorboard()
    if tensorboard:
        tensorboard.final(reports)
    while len(reports) < config.epochs and context.budget.allows_final_epoch() and _failure(reports, config) is None:
        reports.append(EvalReport.from_dict(ray.get(training.report.remote(len(reports) + 1, context.images_ref))))
        context.save_cost()
        if tensorboard:
            tensorboard.final(reports)
        context.progress.show_final_training(number, reports, config.epochs)
    if tensorboard:
        tensorboard.close()
    return reports


def _failure(reports: Sequence[EvalReport], config: TrainConfig) -> str | None:
    return failure_reason(reports, is_last=len(reports) == config.epochs)
