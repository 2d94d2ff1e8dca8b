"""The only seam between Ray and the training: a Trainable for trials, and an actor for the final training."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from model.config import TrainConfig
from model.data import DeviceImages, Images
from model.run import TrainingRun
from model.trainer import SEARCH_VALIDATION_IMAGES, load_generator, validate


class DeviceMissingError(RuntimeError):
    """A GPU was asked for and there is none that works."""


class Pix2PixTrial(tune.Trainable):  # type: ignore[misc]
    """One trial, an epoch a step. The actor is used again for the next trial: a new one costs 2.5 s."""

    def setup(self, config: dict[str, Any], images: Images) -> None:
        """Take up what an earlier attempt, or an earlier driver, left in the trial's folder."""
        if not hasattr(self, "_images"):
            self._images = _place(images, config)
        self._run = TrainingRun(
            TrainConfig.from_dict(config["train"]),
            self._images,
            Path(config["folder"]),
            config["objective"],
            number=config["number"],
        )
        self._untold = bool(self._run.reports)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The same actor, images and device for another trial."""
        del self._run  # its networks, before those of the next are made: both might not fit
        self.setup(new_config)  # type: ignore[call-arg]  # Ray's wrapper adds the images
        return True

    def step(self) -> dict[str, Any]:
        """One epoch. After a restart, first what the checkpoint knows: the record may lack the last report."""
        started = time.monotonic()
        if self._untold:
            self._untold = False
        else:
            self._run.run_epoch()
        return {
            "epoch": len(self._run.reports),
            "reports": [report.as_dict() for report in self._run.reports],
            "step_seconds": time.monotonic() - started,
        }


@ray.remote
class FinalTraining:
    """The winner's configuration trained longer: not a trial, never in the study."""

    def __init__(self, config: dict[str, Any], images: Images) -> None:
        self._run = TrainingRun(
            TrainConfig.from_dict(config["train"]), _place(images, config), Path(config["folder"]), config["objective"]
        )

    def reports(self) -> list[dict[str, Any]]:
        """Those that an earlier run left behind."""
        return [report.as_dict() for report in self._run.reports]

    def run_epoch(self) -> dict[str, Any]:
        """One more."""
        return self._run.run_epoch().as_dict()


@ray.remote  # type: ignore[untyped-decorator]
def measure(checkpoint: str, config: dict[str, Any], images: Images) -> dict[str, float]:
    """A checkpoint's generator on all validation images."""
    placed = _place(images, config, num_validation=len(images.validation))
    channels, size = images.validation.shape[1:3]
    generator, _ = load_generator(Path(checkpoint), channels=channels, image_size=size)
    return validate(generator.to(placed.train.device), placed)


def _place(images: Images, config: dict[str, Any], num_validation: int = SEARCH_VALIDATION_IMAGES) -> DeviceImages:
    device = _device(config)
    if device.type == "cpu":
        torch.set_num_threads(max(1, math.floor(config["cpus"])))
    return DeviceImages.place(images, config["noise"], device, num_validation=num_validation)


def _device(config: dict[str, Any]) -> torch.device:
    """What Ray assigned. Ray hides the other GPUs, so that ours is the first."""
    if not config["gpus"]:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if config["allow_cpu"]:
        return torch.device("cpu")
    raise DeviceMissingError(
        f"asked for {config['gpus']} GPUs, and torch {torch.__version__} finds none here "
        f"(CUDA build: {torch.version.cuda or 'no'}). --allow-cpu trains on the CPU, --gpus-per-trial 0 asks for none"
    )
