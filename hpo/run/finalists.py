"""The second phase of a search: the best trials, measured on all validation images."""

from __future__ import annotations

import ray
from ray.exceptions import RayTaskError

from hpo.policy import leaderboard, trial_attributes
from hpo.policy.leaderboard import kept_trials
from hpo.run.context import SearchContext
from hpo.store import file_names
from hpo.tune.trainable import measure
from model.checkpoint import CheckpointError
from model.common.errors import MachineError


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
    measured: dict[str, dict[str, float]] = {}
    lost: list[int] = []
    while True:
        numbers = leaderboard.finalists(trials, search, lost)
        number = next((number for number in numbers if str(number) not in measured), None)
        if number is None or number not in with_checkpoint:
            break
        context.progress.show_finalist(number, len(measured), len(numbers))
        try:
            measured[str(number)] = context.with_value(_measure(context, number))
        except CheckpointError as error:
            lost.append(number)
            context.say(f"Trial {number} cannot win: {error}")
    if not measured:
        raise MachineError(f"{record.name}: no checkpoint of its best trials is intact; run more --trials")
    record.set_metadata(file_names.FINALISTS, measured)
    if lost or file_names.LOST in record.metadata():
        record.set_metadata(file_names.LOST, lost)
    context.replicator.flush()


def _measure(context: SearchContext, number: int) -> dict[str, float]:
    """Measure one trial in a process of its own; raises CheckpointError."""
    resources = context.cluster.exclusive_node_options
    config = context.training_config(number, {}, context.record.trial_folder(number), resources["num_cpus"])
    try:
        metrics: dict[str, float] = ray.get(measure.options(**resources).remote(config, context.images_ref))
    except RayTaskError as error:
        if isinstance(error.cause, CheckpointError):
            raise error.cause from None
        raise
    return metrics
