"""The second phase of a search: the best trials, measured on all validation images and compared image by image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError

from hpo.policy import leaderboard, trial_attributes
from hpo.policy.comparison import compare_images, num_pairs
from hpo.policy.leaderboard import kept_trials
from hpo.run.context import SearchContext
from hpo.store import file_names
from hpo.tune.trainable import measure
from model.checkpoint import CheckpointError
from model.common.errors import MachineError
from model.training_report import objective_of_images


def measure_finalists(context: SearchContext) -> None:
    """Measure the best trials' checkpoints on all 5,000 validation images; the trials' own 1,000 choose less surely.

    A trial whose checkpoint is damaged or gone makes room for the next best.

    Raises:
        MachineError: No checkpoint of the best trials is intact.
    """
    record, trials, search = context.record, context.record.trials(), context.record.search
    with_checkpoint = kept_trials(trials, search) | {
        trial.number for trial in trials if trial_attributes.is_unfinished(trial)
    }
    measured: dict[str, dict[str, Any]] = {}
    values: dict[str, np.ndarray] = {}  # of each image
    lost: list[int] = []
    while True:
        numbers = leaderboard.finalists(trials, search, lost)
        number = next((number for number in numbers if str(number) not in measured), None)
        if number is None or number not in with_checkpoint:
            break
        context.progress.show_finalist(number, len(measured), len(numbers))
        try:
            metrics, each = _measure(context, number)
            measured[str(number)] = context.with_value(metrics)
            values[str(number)] = objective_of_images(each, search.objective)
        except CheckpointError as error:
            lost.append(number)
            context.say(f"Trial {number} cannot win: {error}")
    if not measured:
        raise MachineError(f"{record.name}: no checkpoint of its best trials is intact; run more --trials")
    record.set_metadata(file_names.FINALISTS, with_comparisons(measured, values))
    if lost or file_names.LOST in record.metadata():
        record.set_metadata(file_names.LOST, lost)
    context.replicator.flush()


def with_comparisons(
    measured: Mapping[str, Mapping[str, Any]], values: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """The measurements, and for all but the best one how it compares with that, image by image, on the same noise.

    Args:
        measured: of each finalist, by its number.
        values: the objective of each image, whose mean is the `value` that was measured.
    """
    best = max(measured, key=lambda number: measured[number]["value"])
    pairs = num_pairs(len(measured))
    compared = {
        number: {"with": int(best), **compare_images(values[number], values[best], pairs=pairs).as_dict()}
        for number in measured
        if number != best
    }
    return {n: {**of, **({"compared": compared[n]} if n in compared else {})} for n, of in measured.items()}


def _measure(context: SearchContext, number: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measure one trial in a process of its own, see `measure`; raises CheckpointError."""
    resources = context.cluster.exclusive_node_options
    config = context.training_config(number, {}, context.record.trial_folder(number), resources["num_cpus"])
    try:
        measured: tuple[dict[str, Any], dict[str, np.ndarray]] = ray.get(
            measure.options(**resources).remote(config, context.images_ref)
        )
    except RayTaskError as error:
        if isinstance(error.cause, CheckpointError):
            raise error.cause from None
        raise
    return measured
