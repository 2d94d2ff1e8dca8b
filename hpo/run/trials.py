"""The first phase of a search: all its trials, under Ray Tune."""

from __future__ import annotations

import time
from typing import Any

from optuna.trial import FrozenTrial
from ray import tune

from hpo.policy import trial_attributes
from hpo.policy.trial_objectives import needs_figures
from hpo.run.context import SearchContext
from hpo.search_controller import Listener, SearchController
from hpo.store.checkpoint_retention import Retention
from hpo.tune.cost_limit_stopper import CostLimitStopper
from hpo.tune.errors import FatalDriverError
from hpo.tune.hang_watchdog import HangWatchdog
from hpo.tune.preemption import PreemptionHandler
from hpo.tune.scheduler import ControllerScheduler, overhead
from hpo.tune.searcher import ControllerSearcher
from hpo.tune.trainable import Pix2PixTrial
from search_spaces import Space


def run_trials(context: SearchContext, space: Space) -> None:
    """Run the trials that are left, until all have ended or the budget is spent.

    Raises:
        ConfigError, MachineError, OSError: What the searcher or the scheduler raised inside Tune.
        RayError, TuneError: Ray failed.
    """
    record, began, fallback = context.record, time.monotonic(), context.on_demand_fallback()
    # These listeners end with the trials; the live table and the tracker also serve the later phases.
    listeners = list[Listener](filter(None, (Retention(record, context.replicator.remove), context.tensorboard())))
    try:
        # The replicator is first: the storage has a trial before it is handed out.
        observers = (context.replicator, context.progress, *listeners, context.tracker)
        controller = SearchController(record, space, list(filter(None, observers)), context.budget)
        controller.replay_history()
        if controller.trials_left == 0 or not context.budget.allows_running_trials():
            return
        watchdog = HangWatchdog(is_away=lambda: record.storage is not None and record.storage.is_away)
        preemption = PreemptionHandler(context.cluster, fallback, context.progress.set_pending_message)
        scheduler = ControllerScheduler(controller, context.cluster, watchdog, preemption)
        context.progress.set_overhead_source(scheduler.overhead_share)
        _create_tuner(context, controller, scheduler, watchdog, preemption).fit()
    except FatalDriverError as carrier:
        raise carrier.error from None
    finally:
        fallback.close()
        for listener in listeners:
            listener.close()
    if measured := overhead(scheduler.steps, context.cluster.slots, began):
        context.say(
            f"Overhead: {100 * measured.share:.1f} % of the slots' time between the first trial's start and the last "
            f"one's; before it {measured.setup_seconds:.0f} s of set-up, after it {measured.tail_seconds:.0f} s of tail"
        )


def _create_tuner(
    context: SearchContext,
    controller: SearchController,
    scheduler: ControllerScheduler,
    watchdog: HangWatchdog,
    preemption: PreemptionHandler,
) -> tune.Tuner:
    record, cluster = context.record, context.cluster

    def config_of(trial: FrozenTrial) -> dict[str, Any]:
        folder, train = record.trial_folder(trial.number), trial.user_attrs[trial_attributes.CONFIG]
        config = context.training_config(trial.number, train, folder, cluster.cpus_per_trial)
        if needs_figures(record.search) and trial_attributes.KNOWN not in trial.user_attrs:
            config["figures"] = {"size": record.search.latency_size, "threads": record.search.latency_threads}
        return config

    # The reference is in a tuple: Tune would put the images into the object store again.
    trainable = tune.with_parameters(Pix2PixTrial, images=(context.images_ref,))
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": cluster.cpus_per_trial, "gpu": cluster.gpus_per_trial}),
        tune_config=tune.TuneConfig(
            search_alg=ControllerSearcher(controller, config_of),
            scheduler=scheduler,
            num_samples=-1,  # the searcher ends the run; a trial that failed and runs again is another sample
            max_concurrent_trials=cluster.slots,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=record.name,
            storage_path=cluster.scratch,
            verbose=0,
            callbacks=[watchdog, preemption],
            stop=CostLimitStopper(context.budget, preemption.stop_all, context.save_cost),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the trials save their own
        ),
    )
