"""Runs a search: plan, trials under Ray Tune, finalists, final training, export."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from optuna.trial import FrozenTrial
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.tune import TuneError
from rich.console import Console

import search_spaces
from hpo.cluster import trial_slots
from hpo.cluster.budget import COST, BudgetAction, TimeAndCostBudget, create_budget
from hpo.policy import leaderboard, pruning, sampling, trial_attributes
from hpo.policy.estimates import expected_epochs
from hpo.policy.leaderboard import kept_trials
from hpo.policy.retry_policy import classify_failure
from hpo.policy.search_config import SEARCH_FILE, SearchConfig, check_name
from hpo.run import export, on_finish
from hpo.run.process_control import delete_search
from hpo.run.shutdown import HEAD_GONE, ShutdownHandler, Stop
from hpo.search_controller import ATTEMPTS, Listener, SearchController
from hpo.store import layout, search_results
from hpo.store.checkpoint_retention import Retention
from hpo.store.checkpoint_sync import was_trained_with
from hpo.store.object_storage import Storage, StorageError
from hpo.store.record import Record, check_compatible, check_free
from hpo.store.replication import StorageReplicator, acquire, find_search, open_storage, similar_name
from hpo.store.study_database import StudyAwayError
from hpo.tune import ray_session
from hpo.tune.budget_stopper import CostLimitStopper
from hpo.tune.errors import FatalDriverError
from hpo.tune.hang_watchdog import HangWatchdog
from hpo.tune.on_demand_fallback import OnDemandFallback
from hpo.tune.preemption import PreemptionHandler
from hpo.tune.scheduler import ControllerScheduler, overhead
from hpo.tune.searcher import ControllerSearcher
from hpo.tune.trainable import FinalTraining, Pix2PixTrial, measure
from hpo.views.formatting import collapse_message
from hpo.views.html_report import write_report
from hpo.views.live_table import cost
from hpo.views.progress import Progress
from hpo.views.terminal import Terminal
from model.checkpoint import CheckpointError
from model.common.errors import ConfigError, ErrorCollector, MachineError
from model.common.files import describe_os_error
from model.config import TrainConfig
from model.data.image_folder import check_layout
from model.data.image_sets import Images
from model.data.memory_mapped import PixelFiles
from model.export_quality import compare_with_slides, quality_table
from model.generator import Generator
from model.run_layout import BEST, LAST, LEARNING_RATES
from model.training_report import EvalReport, Objective, failure_reason, objective_value

if TYPE_CHECKING:
    from hpo.tracking.tensorboard import TensorBoard
    from hpo.tracking.wandb_tracker import Tracker
from hpo.exit_codes import EXIT_DONE, EXIT_MACHINE, EXIT_NOTHING_VALID, EXIT_RESUMABLE

NOTHING_VALID = "No trial came to a valid result"
_WIDE = 32  # channels from which a second thread of a training pays (docs/quality.md)
_LOWER_RATES = 2  # times that a final training goes on with half the rates after a collapse


@dataclass(frozen=True, kw_only=True, slots=True)
class _Context:
    """What every phase of a search needs."""

    record: Record
    copies: StorageReplicator
    images: Images
    images_ref: ray.ObjectRef
    cluster: trial_slots.Cluster
    console: Console
    progress: Progress
    budget: TimeAndCostBudget
    tracker: Tracker | None = None

    def ray_config(self, number: int, train: dict[str, Any], folder: Path, cpus: float) -> dict[str, Any]:
        """What a trial, a measurement or the final training is set up with in its own process."""
        search, inside = self.record.search, folder.relative_to(self.record.folder)
        elsewhere = self.copies.worker_config(inside.as_posix())
        return {
            "number": number,
            "train": train,
            "folder": str(Path(self.cluster.scratch) / inside if elsewhere else folder.absolute()),
            "storage": elsewhere,
            "needs": str(self.record.folder.absolute() / SEARCH_FILE),
            "noise": search.noise,
            "objective": search.objective,
            "cpus": cpus,
            "gpus": self.cluster.gpus_per_trial,
            "allow_cpu": search.allow_cpu,
        }

    def fallback(self) -> OnDemandFallback:
        """From spot nodes to on-demand nodes."""
        return OnDemandFallback(self.cluster, self.progress.print_line, 60 * self.record.search.on_demand_after_minutes)

    def note_cost(self) -> None:
        """So that the next driver goes on from it."""
        if self.budget.usd is not None:
            self.record.set_metadata(COST, self.budget.usd)
            self.copies.mark_dirty()


def run_search(
    name: str,
    runs: Path,
    asked: Mapping[str, Any],
    *,
    address: str | None = None,
    mistakes: ErrorCollector | None = None,
    quiet: bool = False,
) -> int:
    """Start the search `name`, or continue it; asked: options that differ from the defaults or from search.json.

    address: of its storage. mistakes: those that the request is known to have. Gives the exit code. Raises ConfigError
    before anything is started, with all mistakes; MachineError, OSError.
    """
    storage, exists, asked = _checked(name, runs, asked, address, mistakes or ErrorCollector())
    stopping = ShutdownHandler(name, runs, storage.address if storage else None)
    try:
        # Beside the search's folder, which is there only once the images have been found good.
        with PixelFiles(runs, name) as store:
            return _held(name, runs, asked, store, exists=exists, storage=storage, stopping=stopping, quiet=quiet)
    except (StorageError, StudyAwayError) as error:
        return stopping.end(_left(error))


def _checked(
    name: str, runs: Path, asked: Mapping[str, Any], address: str | None, mistakes: ErrorCollector
) -> tuple[Storage | None, bool, Mapping[str, Any]]:
    """The storage, whether the search exists, and what is asked of it with what it was set to before, once the request
    has no mistake that can be found without reading images. Raises ConfigError, RecordError, StorageError."""
    storage, found, place = None, None, ErrorCollector()
    with place.catch():
        check_name(name)
    with place.catch():
        storage = open_storage(address, runs)
    if not place:
        found = find_search(runs, name, storage)
        with place.catch():
            if not found:
                check_free(runs / name)
    if not place and not found and not asked and (like := similar_name(name, runs, storage)):
        place.add(
            f"{name}: there is no such search, but there is {like}, which `hpo search {like}` continues. To begin one "
            f"of a name so near, say anything of it, such as --trials {SearchConfig().trials}"
        )
    mistakes.include(place)
    was, search = found[1] if found else SearchConfig(), None
    if "set" in asked:  # one setting of several, said again, takes none of the others back
        asked = {**asked, "set": {**was.set, **asked["set"]}}
    with mistakes.catch():
        search = replace(was, **asked)
    with mistakes.catch():
        if found:
            check_compatible(name, *found, asked)
    with mistakes.catch():
        base = search.base_config() if search else TrainConfig()
        search_spaces.load(asked.get("space", was.space)).check(base, asked.get("set", was.set))
    with mistakes.catch():
        if search:
            sampling.check_plugins(search)
    with mistakes.catch():
        check_layout(asked.get("data", was.data))
    if search:
        with mistakes.catch():
            ray_session.check_address(search, is_new=not found)
    mistakes.raise_if_any()
    return storage, found is not None, asked


def _left(error: Exception) -> Stop:
    """The storage or the database is away, or the search is somebody else's."""
    from_ray = getattr(error, "cause", None)  # the final training's
    return Stop(classify_failure(error).error if from_ray else str(error), EXIT_RESUMABLE)


def _held(
    name: str,
    runs: Path,
    asked: Mapping[str, Any],
    store: PixelFiles,
    *,
    exists: bool,
    storage: Storage | None,
    stopping: ShutdownHandler,
    quiet: bool,
) -> int:
    if not exists:
        search = SearchConfig(**asked)
        loaded = _loaded(search, store)
        # In numbers: what is black and white is to outlive the default.
        Record.create(runs, name, replace(search, range=loaded[1].pixel_format.explicit.range))

    def over(error: StorageError) -> None:
        stopping.now(_left(error))

    ours = False  # what this driver has begun, and nobody else has taken up
    try:
        with acquire(runs, name, storage, over) as copies:
            record, ours = copies.record, not exists
            if exists:
                search = replace(record.search, **asked)
                loaded = _loaded(search, store)
                search_results.check_images(record, loaded[1], search.data)
                record.update_config(asked)
            space, images = loaded
            store.delete_leftovers()
            record.set_metadata(layout.IMAGES, images.digest)
            copies.start()
            try:
                return _searched(copies, space, images, Terminal(stderr=True, quiet=quiet), stopping)
            finally:
                copies.stop()
    except ConfigError:  # such as a cluster's, that has no room for a trial
        if ours and not Record(runs, name).trials():
            delete_search(runs, name, storage)
        raise


def _searched(
    copies: StorageReplicator, space: search_spaces.Space, images: Images, console: Console, stopping: ShutdownHandler
) -> int:
    record = copies.record
    if search_results.is_exported(record):
        record.fetch(record.folder / layout.EXPORT)
        if record.search.tensorboard:
            from hpo.tracking.tensorboard import draw_finished  # noqa: PLC0415 - an optional service

            draw_finished(record)
        with _tracked(record, console) as tracker:  # what a driver that was killed at the end had not logged
            if tracker:
                tracker.export()
        console.print(f"{record.name} is finished; its winner is in {record.folder / layout.EXPORT}. More: --trials N")
        return EXIT_DONE

    try:
        code = _until_its_end(copies, space, images, console, stopping)
    except (MachineError, OSError) as error:
        _finish(record, EXIT_MACHINE, describe_os_error(error) if isinstance(error, OSError) else str(error))
        raise
    if code in (EXIT_DONE, EXIT_NOTHING_VALID):  # else somebody ended it, and it goes on some day
        _finish(record, code, "exported" if code == EXIT_DONE else NOTHING_VALID)
    return code


def _until_its_end(
    copies: StorageReplicator, space: search_spaces.Space, images: Images, console: Console, stopping: ShutdownHandler
) -> int:
    record = copies.record
    for line in images.messages:
        console.print(f"{record.search.data}: {line}", highlight=False, soft_wrap=True)
    try:
        with stopping.on_signals(), _tracked(record, console) as tracker:
            code = _run(copies, space, images, console, stopping, tracker=tracker)
            _write_report(copies, console)
            return code
    except ray_session.RayHalfStartedError:
        stopping.leave()
    except KeyboardInterrupt:
        return stopping.end()
    except ray_session.HeadGoneError:
        return stopping.end(HEAD_GONE)
    except (StorageError, StudyAwayError) as error:
        return stopping.end(_left(error))
    except (RayError, TuneError) as error:
        if isinstance(getattr(error, "cause", None), StorageError):
            return stopping.end(_left(error))
        death = classify_failure(error)
        raise MachineError(death.error if death.then == "stop" else f"Ray failed: {death.error}") from error


def _finish(record: Record, code: int, reason: str) -> None:
    """--on-finish, where it was asked for."""
    if not record.search.on_finish:
        return
    try:
        result = search_results.document(record)
        export = search_results.export_document(record) if code == EXIT_DONE else None
    except (MachineError, OSError):  # perhaps what ended the search
        result, export = {"name": record.name, "id": record.id}, None
    on_finish.run(record.search.on_finish, {**result, "exit_code": code, "reason": reason, "export": export})


def _run(
    copies: StorageReplicator,
    space: search_spaces.Space,
    images: Images,
    console: Console,
    stopping: ShutdownHandler,
    *,
    tracker: Tracker | None,
) -> int:
    record = copies.record
    with ExitStack() as shown:  # the table: until the export is there
        with ray_session.RaySession(record.search, stopping.head_is_gone) as cluster:
            console.print(_plan(record, cluster), highlight=False, soft_wrap=True)
            budget = _budget(record, cluster)
            progress = Progress(record.search, record.name, cluster.slots, console, folder=record.folder)
            shown.callback(progress.close)
            progress.set_cost_source(budget)
            context = _Context(
                record=record,
                copies=copies,
                images=images,
                images_ref=ray.put(images),
                cluster=cluster,
                console=console,
                progress=progress,
                budget=budget,
                tracker=tracker,
            )
            shown.callback(context.note_cost)
            _run_trials(context, space)
            if search_results.winner(record) is None:
                print(f"{NOTHING_VALID}: there is nothing to export.", file=sys.stderr)
                return EXIT_NOTHING_VALID
            with closing(context.fallback()) as fallback:
                cluster.monitor.subscribe(lambda _: fallback.update_for_task())
                _measure_finalists(context)
                if record.search.final_epochs:
                    _train_final(context)
        progress.show_export()
        test = export.export_winner(record, images, over=True)["metrics"]["test"]
        copies.upload(record.folder / layout.EXPORT)
    print(quality_table({"test": test}))
    if record.search.data_config().is_slides:
        print(f"\n{compare_with_slides(test)}")
    console.print(f"Exported to {record.folder / layout.EXPORT}", soft_wrap=True)
    if (usd := budget.usd) is not None:
        console.print(f"Cost: {cost(usd, record.search)}, while drivers of this search ran", highlight=False)
        if budget.cost_action() is not BudgetAction.CONTINUE and not search_results.is_over(record):
            console.print("It ended for its cost; a higher --max-cost goes on with the trials that are left")
    if tracker:
        tracker.export()
    return EXIT_DONE


def _write_report(copies: StorageReplicator, console: Console) -> None:
    """Whatever happens to it, the search is done."""
    try:
        copies.upload(path := write_report(copies.record))
        told = f"Report: {path}"
    except Exception as error:
        why = describe_os_error(error) if isinstance(error, OSError) else error
        told = f"No report: {why}. `hpo report {copies.record.name}` tries again"
    console.print(told, highlight=False, soft_wrap=True)


def _loaded(search: SearchConfig, store: PixelFiles) -> tuple[search_spaces.Space, Images]:
    """What a search needs, looked at before Ray starts. Raises ConfigError."""
    mistakes, base, space = ErrorCollector(), search.base_config(), search_spaces.load(search.space)
    with mistakes.catch():
        images = search.data_config().load(store)
        for sample in space.check(base, search.set)["samples"]:
            config = TrainConfig.from_dict({**base.as_dict(), **sample["yields"]})
            with _of_a_sample(sample):
                _check_fit(config, images)
    with mistakes.catch():
        from hpo.tracking.wandb_runs import leave_out, log_in  # noqa: PLC0415 - an optional service

        leave_out(search.wandb)
        if search.wandb == "online":
            log_in()
    mistakes.raise_if_any()
    return space, images


def _check_fit(config: TrainConfig, images: Images) -> None:
    """Of a training to its images. Raises ConfigError."""
    if config.batch_size > len(images.train):
        raise ConfigError(f"batch_size={config.batch_size}: above the {len(images.train):,} training images")
    channels, size, _ = images.shape
    with torch.device("meta"):  # costs no memory
        Generator.from_config(replace(config, width=1), channels=channels, image_size=size)


@contextmanager
def _of_a_sample(sample: Mapping[str, Any]) -> Iterator[None]:
    """Of a space, where what it suggests is to blame."""
    try:
        yield
    except ConfigError as error:
        if not sample["yields"].keys() & {"batch_size", "depth", "blocks"}:
            raise
        told = f"the space suggests {sample['params']}, of which nothing can be trained"
        raise ConfigError(f"{told}: {error}") from None


def _plan(record: Record, cluster: trial_slots.Cluster) -> str:
    search, before = record.search, len(record.trials())
    images = f"{search.images_per_epoch:,}" if search.images_per_epoch else "all training"
    rule = "none is pruned"
    if search.pruner.endswith(".py"):
        rule = f"pruned by {search.pruner}"
    elif (first := pruning.next_comparison(0, search)) is not None:
        expected = search.trials * expected_epochs(search)
        rule = f"weak ones are pruned from epoch {first} on, so that about {expected:.0f} epochs are run"
    gpus = f"{cluster.gpus_per_trial:g} GPUs and " if cluster.gpus_per_trial else ""
    like = similar_name(record.name, record.home.parent, None)
    begins = f"a new search{f', and not {like}, which is there, too' if like else ''}"
    lines = [
        f"{record.name}: {f'continues with {before} trials on record' if before else begins}",
        f"  {search.trials} trials of up to {search.epochs} epochs of {images} images; {rule}",
        f"  space {search.space}, objective {search.objective}, noise {search.noise}, seed {search.seed}",
        f"  {cluster.slots} at a time with {gpus}{search.cpus_per_trial:g} CPUs each; W&B {search.wandb}",
    ]
    if search.final_epochs:
        lines.append(f"  then {search.final_epochs} epochs of the winner's configuration, and the export")
    if cluster.slots_now < cluster.slots:
        lines.append(f"  {cluster.slots_now} of them now; the cluster grows")
    if cluster.head_cpus:
        lines.append(
            f"  the head has {cluster.head_cpus:g} CPUs, so trials run there, too, and may take it down; "
            "`ray start --head --num-cpus=0` keeps them off"
        )
    where = f", a copy of what is in {record.storage}" if record.storage else ""
    return "\n".join([*lines, f"  folder {record.folder}{where}"])


def _budget(record: Record, cluster: trial_slots.Cluster) -> TimeAndCostBudget:
    """Raises ConfigError where the cost limit allows no trial to begin."""
    spent = record.metadata().get(COST, 0.0)
    budget = create_budget(record.search, spent, record.trials, cluster.monitor, cluster.limits)
    if not budget.allows_running_trials() and search_results.winner(record) is None:
        raise ConfigError(
            f"max_cost={record.search.max_cost:g}: {spent:.2f} USD are spent, and finalists, final training and export "
            "are expected to cost the rest; no trial can begin"
        )
    return budget


def _run_trials(context: _Context, space: search_spaces.Space) -> None:
    record, cluster, began = context.record, context.cluster, time.monotonic()
    listeners, fallback = _listeners(context), context.fallback()
    try:
        conductor = SearchController(
            record,
            space,
            [context.copies, context.progress, *listeners, *([context.tracker] if context.tracker else [])],
            time_is_up=lambda: not context.budget.allows_new_trials(),
            money_is_up=lambda: not context.budget.allows_running_trials(),
        )
        if conductor.trials_left == 0 or not context.budget.allows_running_trials():
            return
        watch = HangWatchdog(is_away=lambda: record.storage is not None and record.storage.is_away)
        placement = PreemptionHandler(cluster, fallback, context.progress.set_pending_message)
        scheduler = ControllerScheduler(conductor, cluster, watch, placement)
        context.progress.set_overhead_source(scheduler)

        def to_ray(trial: FrozenTrial) -> dict[str, Any]:
            folder, train = record.trial_folder(trial.number), trial.user_attrs[trial_attributes.CONFIG]
            return context.ray_config(trial.number, train, folder, cluster.cpus_per_trial)

        # In a tuple: Tune would put them into the store again.
        trainable = tune.with_parameters(Pix2PixTrial, images=(context.images_ref,))
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": cluster.cpus_per_trial, "gpu": cluster.gpus_per_trial}),
            tune_config=tune.TuneConfig(
                search_alg=ControllerSearcher(conductor, to_ray),
                scheduler=scheduler,
                num_samples=-1,  # the searcher knows; a trial that died is a sample again
                max_concurrent_trials=cluster.slots,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=record.name,
                storage_path=cluster.scratch,
                verbose=0,
                callbacks=[watch, placement],
                stop=CostLimitStopper(context.budget, placement.stop_all, context.note_cost),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
            ),
        )
        tuner.fit()
    except FatalDriverError as carrier:
        raise carrier.error from None
    finally:
        fallback.close()
        for listener in listeners:
            listener.close()
    spent = overhead(scheduler.steps, cluster.slots, began)
    if spent:
        context.console.print(
            f"Overhead: {100 * spent.share:.1f} % of the slots' time between the first trial's start and the last "
            f"one's; before it {spent.setup_seconds:.0f} s of set-up, after it {spent.tail_seconds:.0f} s of tail",
            highlight=False,
            soft_wrap=True,
        )


def _listeners(context: _Context) -> list[Listener]:
    """Those that end with the trials. What follows is shown and logged, too."""
    board = _tensorboard(context.record)
    return [Retention(context.record, context.copies.remove), *([board] if board else [])]


@contextmanager
def _tracked(record: Record, console: Console) -> Iterator[Tracker | None]:
    """Runs in W&B, until after the export."""
    if record.search.wandb == "disabled":
        yield None
        return
    from hpo.tracking.wandb_tracker import Tracker  # noqa: PLC0415 - an optional service

    tracker = Tracker(record, lambda line: console.print(line, highlight=False, soft_wrap=True))
    try:
        yield tracker
    finally:
        tracker.close()


def _tensorboard(record: Record) -> TensorBoard | None:
    if not record.search.tensorboard:
        return None
    from hpo.tracking.tensorboard import TensorBoard  # noqa: PLC0415 - an optional service

    return TensorBoard(record)


# --- after the trials -----------------------------------------------------------------------------------------------


def _measure_finalists(context: _Context) -> None:
    """The best trials' checkpoints on all validation images: 1,000 of them choose less surely than 5,000."""
    record, trials, search = context.record, context.record.trials(), context.record.search
    there = kept_trials(trials, search.keep_checkpoints) | {
        trial.number for trial in trials if trial_attributes.is_unfinished(trial)
    }
    measured: dict[str, dict[str, float]] = {}
    lost: list[int] = []
    while True:
        numbers = leaderboard.finalists(trials, search.objective, lost)
        number = next((number for number in numbers if str(number) not in measured), None)
        if number is None or number not in there:
            break
        context.progress.show_finalist(number, len(measured), len(numbers))
        try:
            measured[str(number)] = _with_value(record, _measured(context, number))
        except CheckpointError as error:
            lost.append(number)
            context.console.print(f"Trial {number} cannot win: {error}", highlight=False, soft_wrap=True)
    if not measured:
        raise MachineError(f"{record.name}: no checkpoint of its best trials is whole; more --trials bring others")
    record.set_metadata(layout.FINALISTS, measured)
    if lost or layout.LOST in record.metadata():
        record.set_metadata(layout.LOST, lost)
    context.copies.flush()


def _measured(context: _Context, number: int) -> dict[str, float]:
    """Raises CheckpointError."""
    alone = context.cluster.exclusive_node_options
    config = context.ray_config(number, {}, context.record.trial_folder(number), alone["num_cpus"])
    try:
        metrics: dict[str, float] = ray.get(measure.options(**alone).remote(config, context.images_ref))
    except RayTaskError as error:
        if isinstance(error.cause, CheckpointError):
            raise error.cause from None
        raise
    return metrics


def _with_value(record: Record, metrics: dict[str, float]) -> dict[str, float]:
    value = objective_value(metrics["ssim"], metrics["psnr_db"], record.search.objective)
    return {**metrics, "value": value}


def _train_final(context: _Context) -> None:
    """The best finalist's configuration, trained longer.

    Rates that are right for few epochs may be too high for many: where it collapses it goes back to its best epoch with
    half the rates, twice at most, before the next finalist's configuration is trained.
    """
    record = context.record
    record.set_metadata(layout.FINAL, None)  # the checkpoint of an earlier one is about to go
    for number in search_results.ranked(record):
        while True:
            before = [event for event in search_results.collapses(record) if _is_of(event, number, record.search)]
            if before and before[-1]["back_to"] is None:
                break
            event = _train_longer(context, number, before)
            if event is None:
                return
            record.set_metadata(layout.COLLAPSES, [*search_results.collapses(record), event])
            context.copies.flush()
            context.console.print(collapse_message(event), highlight=False, soft_wrap=True)


def _is_of(event: Mapping[str, Any], number: int, search: SearchConfig) -> bool:
    return bool(event["trial"] == number and event["epochs"] == search.final_epochs)


def _train_longer(context: _Context, number: int, before: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """And measure it; where it collapses, what happened (results.collapses). before: its earlier collapses."""
    record, progress, alone = context.record, context.progress, context.cluster.exclusive_node_options
    config = TrainConfig.from_dict(record.trial(number).user_attrs[trial_attributes.CONFIG])
    config = replace(config, epochs=record.search.final_epochs)
    if before:
        config = replace(config, **{name: before[-1][name] for name in LEARNING_RATES})
    folder = record.folder / layout.FINAL
    # Else its process looks.
    if record.storage is None and not any(
        was_trained_with(folder / name, config, LEARNING_RATES if before else ()) for name in (LAST, BEST)
    ):
        shutil.rmtree(folder, ignore_errors=True)
    # A narrow network has as many threads as a trial, though the node is its own: at width 16 a second one costs more
    # than it gives, and beside other work ten times as much (docs/log.md).
    threads = context.cluster.cpus_per_trial if config.width < _WIDE else alone["num_cpus"]
    setup = context.ray_config(number, config.as_dict(), folder, threads)
    # Ray begins again what dies, from its last checkpoint, as often as a trial.
    options = {**alone, "max_restarts": ATTEMPTS - 1, "max_task_retries": ATTEMPTS - 1}
    progress.show_final_training(number, [], config.epochs)
    training = FinalTraining.options(**options).remote(setup, back_to_best=bool(before))  # type: ignore[attr-defined]
    reports = [EvalReport.from_dict(report) for report in ray.get(training.reports.remote(context.images_ref))]
    progress.show_final_training(number, reports, config.epochs)
    board = _tensorboard(record)
    if board:
        board.final(reports)

    def died_of() -> str | None:
        return failure_reason(reports, is_last=len(reports) == config.epochs)

    def goes_on() -> bool:
        left = len(reports) < config.epochs and context.budget.allows_final_epoch()
        return left and died_of() is None

    while goes_on():
        reports.append(EvalReport.from_dict(ray.get(training.report.remote(len(reports) + 1, context.images_ref))))
        context.note_cost()
        if board:
            board.final(reports)
        progress.show_final_training(number, reports, config.epochs)
    if board:
        board.close()
    reason = died_of()
    if reports and reason is None:
        metrics = ray.get(training.measured.remote(context.images_ref))
        record.set_metadata(layout.FINAL, {"trial": number, **_with_value(record, metrics)})
        context.copies.flush()
    ray.kill(training)
    if reason is None:
        return None
    event = {"trial": number, "epochs": config.epochs, "reason": reason, "epoch": len(reports)}
    return {**event, **_way_back(reports, config, len(before), record.search.objective)}


def _way_back(reports: Sequence[EvalReport], config: TrainConfig, times: int, objective: Objective) -> dict[str, Any]:
    """After a collapse: the best epoch and half the rates, unless it went back so many times before, or that epoch is
    the very one in which it died."""
    best = leaderboard.best_of(reports, objective)
    if times == _LOWER_RATES or best is None or best.is_dead or best is reports[-1]:
        return {"back_to": None}
    return {"back_to": best.epoch, **{name: getattr(config, name) / 2 for name in LEARNING_RATES}}
