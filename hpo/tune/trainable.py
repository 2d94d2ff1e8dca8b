"""What runs on the workers: a Trainable for trials, an actor for other trainings, and a task that measures."""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray import tune

from hpo.store.checkpoint_upload import CheckpointSync
from model.common.errors import ConfigError
from model.config import TrainConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import Images
from model.latency import measure_latencies, untrained_figures
from model.trainer import SEARCH_VALIDATION_IMAGES, load_generator, validate, validate_images
from model.training_files import BEST
from model.training_run import TrainingRun


class DeviceMissingError(ConfigError):
    """A GPU was requested, and torch finds none."""


class Pix2PixTrial(tune.Trainable):  # type: ignore[misc]
    """One trial; a step is an epoch. The actor is reused for the next trial: a new one costs 2.5 s."""

    def setup(self, config: dict[str, Any], images: Sequence[ray.ObjectRef]) -> None:
        """Called once per actor. The first step does the work: only then does Ray report what an error was, and the
        driver notice that the trial hangs. images: a reference into Ray's object store, which has them once per node.
        """
        self._images_refs = images
        self._device_images: DeviceImages | None = None
        self._shape: tuple[int, ...] = ()
        self._run: TrainingRun | None = None
        self._checkpoints = CheckpointSync(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepare the actor, its images and its device for another trial."""
        self.cleanup()
        self._checkpoints = CheckpointSync(new_config)
        return True  # Ray has replaced self.config

    def cleanup(self) -> None:
        """Release what the trial has used. Its networks must go before those of the next: both might not fit."""
        self._run = None
        self._checkpoints.clean_up()

    def step(self) -> dict[str, Any]:
        """Train one epoch. The first step trains nothing if it measures what is known before training, or after a
        restart: then it returns the reports of the checkpoint, since the record may lack the last one."""
        is_first, known = self._run is None, None
        run = self._run = self._run or self._begin()
        started = time.monotonic()
        if is_first and (figures := self.config["figures"]):
            known = untrained_figures(run.trainer.config, self._shape, **figures)
        trains = not (is_first and (run.reports or known))
        if trains:
            run.run_epoch()
            self._checkpoints.upload_epoch(len(run.reports))
        return {
            "epoch": len(run.reports),
            "reports": [report.as_dict() for report in run.reports],
            "known": [*known.items()] if known else None,  # Tune would flatten a dictionary
            "node": platform.node() if trains else None,
            "step_seconds": time.monotonic() - started,
        }

    def _begin(self) -> TrainingRun:
        """Continue from what an earlier attempt, or an earlier driver, left in the trial's folder."""
        if self._device_images is None:
            images = ray.get(self._images_refs[0])
            self._shape, self._device_images = images.shape, _to_device(images, self.config)
        return _restore_run(self.config, self._checkpoints, self._device_images, number=self.config["number"])


@ray.remote
class Training:
    """Trains a configuration that is not a trial and never in the study: the final training, or a replicate.

    Every call passes the images: Ray warns of a constructor that gets them, which might miss them after a restart.
    """

    def __init__(self, config: dict[str, Any], *, back_to_best: bool) -> None:
        """back_to_best: the training collapsed before, and continues from its best checkpoint with lower rates."""
        self._config, self._checkpoints, self._back_to_best = config, CheckpointSync(config), back_to_best
        self._run: TrainingRun | None = None

    def reports(self, images: Images) -> list[dict[str, Any]]:
        """The reports of earlier drivers."""
        return [report.as_dict() for report in self._begun(images).reports]

    def report(self, epoch: int, images: Images) -> dict[str, Any]:
        """Train up to an epoch and return its report. Calling it again after a restart does no harm."""
        run = self._begun(images)
        while len(run.reports) < epoch:
            run.run_epoch()
            self._checkpoints.upload_epoch(len(run.reports))
        return run.reports[epoch - 1].as_dict()

    def measured(self, images: Images) -> dict[str, Any]:
        """The first part of `measure`; another process would take longer to start than to measure."""
        self._run = None  # its networks and images need not be in memory twice
        return _measured(self._config, images)[0]

    def noisy(self, images: Images) -> dict[str, float]:
        """The metrics of the noisy images, as of a network that does nothing."""
        return validate(torch.nn.Identity(), _to_device(images, self._config, num_validation=len(images.validation)))

    def _begun(self, images: Images) -> TrainingRun:
        if self._run is None:
            device_images = _to_device(images, self._config)
            self._run = _restore_run(self._config, self._checkpoints, device_images, back_to_best=self._back_to_best)
        return self._run


@ray.remote  # type: ignore[untyped-decorator]
def measure(config: dict[str, Any], images: Images) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measure the folder's best checkpoint on all validation images.

    Returns:
        The metrics, the number of `parameters` and of `images`, and the `sha256` of the file; each metric's values of
        the images.
    """
    return _measured(config, images)


@ray.remote  # type: ignore[untyped-decorator]
def measure_exports(networks: Sequence[bytes], size: int, threads: int) -> list[dict[str, Any]]:
    """The latency of ONNX files, measured in turns on this node; see model.latency.measure_latencies.

    The search has the node for itself, but perhaps not the machine: beside other work a run took four times as long on
    the wall (docs/log.md).
    """
    latencies = measure_latencies(networks, size=size, threads=threads, counts_waiting=False)
    return [latency.as_dict() for latency in latencies]


def _measured(config: dict[str, Any], images: Images) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    device_images = _to_device(images, config, num_validation=len(images.validation))
    channels, size, _ = images.shape
    checkpoints = CheckpointSync(config)
    path = checkpoints.download(BEST)
    generator, _ = load_generator(path, channels=channels, image_size=size)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    checkpoints.clean_up()
    means, each = validate_images(generator.to(device_images.device), device_images)
    about = {
        "parameters": sum(p.numel() for p in generator.parameters()),
        "images": len(images.validation),
        "sha256": digest,
    }
    return {**means, **about}, {name: values.cpu().numpy() for name, values in each.items()}


def _restore_run(
    config: dict[str, Any],
    checkpoints: CheckpointSync,
    images: DeviceImages,
    *,
    number: int | None = None,
    back_to_best: bool = False,
) -> TrainingRun:
    train = TrainConfig.from_dict(config["train"])
    checkpoints.restore(train, back_to_best=back_to_best)
    run = TrainingRun(train, images, checkpoints.folder, config["objective"], number=number, back_to_best=back_to_best)
    checkpoints.promote_best()
    return run


def _to_device(images: Images, config: dict[str, Any], num_validation: int = SEARCH_VALIDATION_IMAGES) -> DeviceImages:
    device = _device(config)
    if device.type == "cpu":
        torch.set_num_threads(max(1, math.floor(config["cpus"])))
    return DeviceImages.to_device(images, config["noise"], device, num_validation=num_validation)


def _device(config: dict[str, Any]) -> torch.device:
    """The device that Ray assigned. Ray hides the other GPUs, so it is the first."""
    if not config["gpus"]:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if config["allow_cpu"]:
        return torch.device("cpu")
    raise DeviceMissingError(
        f"the trial needs {config['gpus']} GPUs, and torch {torch.__version__} finds none "
        f"(CUDA build: {torch.version.cuda or 'no'}). --allow-cpu trains on the CPU, --gpus-per-trial 0 requests none"
    )
