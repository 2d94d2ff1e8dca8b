"""`hpo search` without Ray: the same command, record, decisions, trainings, finalists and export, one after another, on
three small photographs; a second for all of it but the export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import skimage.data
import torch
from curves import controller
from optuna.trial import FrozenTrial
from PIL import Image
from ray.exceptions import RayTaskError

from hpo import exit_codes
from hpo.cluster.budget import TimeAndCostBudget
from hpo.policy import leaderboard, trial_attributes
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_objectives import needs_figures
from hpo.run import export, final_training, finalists, front, replicates
from hpo.run.context import SearchContext
from hpo.run.search import SearchRun
from hpo.store import search_results
from hpo.store.checkpoint_retention import Retention
from hpo.store.record import Record
from hpo.tune import trainable
from model.config import TrainConfig
from model.data.device_images import DeviceImages
from model.latency import Latency
from model.trainer import SEARCH_VALIDATION_IMAGES, load_generator, validate
from model.training_files import BEST
from model.training_run import TrainingRun

TRIALS, EPOCHS = 5, 3


def photographs(folder: Path) -> Path:
    folder.mkdir()
    for name in ("coffee", "chelsea", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()[:48, :48]).convert("L").save(folder / f"{name}.png")
    return folder


def command(folder: Path, runs: Path, *more: str) -> list[str]:
    """The command line of a search on the photographs in `folder`."""
    options = {"trials": str(TRIALS), "epochs": str(EPOCHS), "reduction-factor": "2", "seed": "9", "data": str(folder)}
    options |= {"crop": "16", "images-per-epoch": "8", "wandb": "disabled", "runs": str(runs)}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return ["search", "first", *words, "--set", "width=4", "--set", "batch_size=2", "--set", "dropout=0", *more]


def without_ray(patch: pytest.MonkeyPatch, *, exports: bool = False) -> None:
    """Patch `hpo search` to run without Ray. exports: the search also exports, which takes longer than all the rest."""

    def search(run: SearchRun, _: object) -> int:
        record, replicator = run.record, run.replicator
        loop = controller(record, replicator, Retention(record, replicator.remove), space=run.space)
        placed = place(record.search)
        while (next_trial := loop.next_trial()) is not None:
            train(loop, next_trial, placed)
        if search_results.winner(record) is None:
            return exit_codes.EXIT_NOTHING_VALID
        context = local_context(run)
        finalists.measure_finalists(context)
        if record.search.replicates:
            replicates.train_replicates(context, search_results.ranked_finalists(record))
        if record.search.final_epochs:
            final_training.train_final(context)
        if exports and record.search.is_multi_objective:
            front.export_front(context, run.images)
        elif exports:
            export.export_winner(record, run.images, is_over=True, is_driver=True)
        return exit_codes.EXIT_DONE

    torch.set_num_threads(1)  # as trials with one CPU: sums of other lengths round differently
    patch.setattr(SearchRun, "search", search)
    patch.setattr(finalists, "measure", SimpleNamespace(options=lambda **_: _Remote(trainable._measured)))
    patch.setattr(front, "measure_exports", SimpleNamespace(options=lambda **_: _Remote(_measure_exports)))
    training = _RemoteClass(trainable.Training.__ray_metadata__.modified_class)
    patch.setattr(final_training, "Training", training)
    patch.setattr(replicates, "Training", training)
    patch.setattr(ray, "wait", lambda calls, **_: (calls[:1], calls[1:]))
    patch.setattr(ray, "get", lambda call: call())
    patch.setattr(ray, "kill", lambda _: None)


def train(loop: Any, trial: FrozenTrial, placed: DeviceImages) -> None:
    """Train as Pix2PixTrial does, an epoch a step; the first step reports what the checkpoint has."""
    config, number = TrainConfig.from_dict(trial.user_attrs[trial_attributes.CONFIG]), trial.number
    if needs_figures(loop.record.search) and trial_attributes.KNOWN not in trial.user_attrs:
        known = {"latency": config.width / 10, "params": 100 * config.width**2, "size_mb": config.width / 100}
        if loop.on_start(number, known).action != "continue":
            return
    run = TrainingRun(config, placed, loop.record.trial_folder(number), loop.record.search.objective, number=number)
    if not run.reports:
        run.run_epoch()
    while loop.on_report(number, run.reports).action == "continue":
        run.run_epoch()


def local_context(run: SearchRun) -> SearchContext:
    """What the later phases need, without a cluster."""
    resources = {"num_cpus": 1.0, "num_gpus": 0.0}
    cluster: Any = SimpleNamespace(
        exclusive_node_options=resources, cpus_per_trial=1.0, gpus_per_trial=0.0, scratch="", slots=2
    )
    shown = ("show_finalist", "show_final_training", "show_replicates", "show_replicate_epoch", "show_export")
    progress: Any = SimpleNamespace(**dict.fromkeys((*shown, "print_line"), lambda *_: None))
    return SearchContext(
        record=run.record,
        replicator=run.replicator,
        images_ref=run.images,
        console=run.console,
        cluster=cluster,
        progress=progress,
        budget=TimeAndCostBudget(run.record.search, run.record.trials, None),
    )


def _measure_exports(networks: Sequence[bytes], size: int, threads: int) -> list[dict[str, Any]]:
    """Larger files take longer, and always as long."""
    how = {"runs": 1000, "size": size, "threads": threads, "device": "cpu", "processor": "a CPU", "provider": "none"}
    times = [len(network) / 1e4 for network in networks]
    return [Latency(median_ms=ms, p95_ms=2 * ms, onnxruntime="1", **how).as_dict() for ms in times]


class _Remote:
    """A remote function that runs in this process; errors are wrapped as Ray wraps them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *arguments: Any) -> Callable[[], Any]:
        def run() -> Any:
            try:
                return self._function(*arguments)
            except Exception as error:
                raise RayTaskError("measure", f"{type(error).__name__}: {error}", error).as_instanceof_cause() from None

        return run


class _RemoteClass:
    """A remote class whose actors live in this process."""

    def __init__(self, actor_class: type) -> None:
        self._actor_class = actor_class

    def options(self, **_: object) -> _RemoteClass:
        return self

    def remote(self, *arguments: Any, **named: Any) -> Any:
        actor = self._actor_class(*arguments, **named)
        return SimpleNamespace(
            **{name: _Remote(getattr(actor, name)) for name in ("reports", "report", "measured", "noisy")}
        )


def place(search: SearchConfig) -> DeviceImages:
    data = search.data_config()
    return DeviceImages.to_device(data.load(), data.noise, torch.device("cpu"), num_validation=SEARCH_VALIDATION_IMAGES)


def assert_best_checkpoints_are_as_recorded(record: Record) -> None:
    """Check the finalists' digests and epochs, and measure them again."""
    placed = place(record.search)
    numbers = leaderboard.finalists(record.trials(), record.search)
    assert numbers
    for number in numbers:
        best = leaderboard.best_report(record.trial(number), record.search.objective)
        assert best
        generator, state = load_generator(record.trial_folder(number) / BEST, channels=1, image_size=16)
        assert len(state["reports"]) == best.epoch
        measured = validate(generator, placed)
        assert measured == pytest.approx({name: getattr(best, name) for name in measured}, rel=1e-5)
