"""The only seam between Ray and the training: a Trainable for trials, and an actor for the final training."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray import tune

from hpo.store.checkpoint_sync import CheckpointSync
from model.common.errors import ConfigError
from model.config import TrainConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import Images
from model.run_layout import BEST
from model.trainer import SEARCH_VALIDATION_IMAGES, load_generator, validate
from model.training_run import TrainingRun


class DeviceMissingError(ConfigError):
    """A GPU was asked for and there is none that works."""


class Pix2PixTrial(tune.Trainable):  # type: ignore[misc]
    """One trial, an epoch a step. The actor is used again for the next trial: a new one costs 2.5 s."""

    def setup(self, config: dict[str, Any], images: Sequence[ray.ObjectRef]) -> None:
        """images: where they lie in Ray's store, once on each node. The rest is the first step's: Ray tells what that
        died of, and the driver notices when it hangs."""
        self._given = images
        self._run: TrainingRun | None = None
        self._place: CheckpointSync | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The same actor, images and device for another trial."""
        self.cleanup()
        return True  # Ray has exchanged self.config

    def cleanup(self) -> None:
        """Nothing is held for the trial any more."""
        self._run = None  # its networks, before those of the next are made: both might not fit
        if self._place:
            self._place.clean_up()

    def step(self) -> dict[str, Any]:
        """One epoch. After a restart, first what the checkpoint knows: the record may lack the last report."""
        is_first = self._run is None
        run = self._run = self._run or self._begin()
        started = time.monotonic()
        trains = not (is_first and run.reports)
        if trains:
            run.run_epoch()
            assert self._place is not None
            self._place.upload_epoch(len(run.reports))
        return {
            "epoch": len(run.reports),
            "reports": [report.as_dict() for report in run.reports],
            "node": platform.node() if trains else None,
            "step_seconds": time.monotonic() - started,
        }

    def _begin(self) -> TrainingRun:
        """Take up what an earlier attempt, or an earlier driver, left in the trial's folder."""
        config = self.config
        if not hasattr(self, "_placed"):
            self._placed = _place(ray.get(self._given[0]), config)
        self._place, train = CheckpointSync(config), TrainConfig.from_dict(config["train"])
        self._place.restore(train)
        run = TrainingRun(train, self._placed, self._place.folder, config["objective"], number=config["number"])
        self._place.promote_best()
        return run


@ray.remote
class FinalTraining:
    """The winner's configuration trained longer: not a trial, never in the study. Every call brings the images, since
    Ray warns of a constructor that gets them: after a death it could miss them. back_to_best: it collapsed before, and
    goes on from its best checkpoint with lower rates."""

    def __init__(self, config: dict[str, Any], *, back_to_best: bool) -> None:
        self._config, self._place, self._back_to_best = config, CheckpointSync(config), back_to_best
        self._run: TrainingRun | None = None

    def reports(self, images: Images) -> list[dict[str, Any]]:
        """Those that an earlier run left behind."""
        return [report.as_dict() for report in self._begun(images).reports]

    def report(self, epoch: int, images: Images) -> dict[str, Any]:
        """Of that epoch, trained up to it where it is not there yet: to ask twice, after a death, does no harm."""
        run = self._begun(images)
        while len(run.reports) < epoch:
            run.run_epoch()
            self._place.upload_epoch(len(run.reports))
        return run.reports[epoch - 1].as_dict()

    def measured(self, images: Images) -> dict[str, float]:
        """As below; another process would take longer to start than to measure."""
        return _measured(self._config, images)

    def _begun(self, images: Images) -> TrainingRun:
        if self._run is None:
            train = TrainConfig.from_dict(self._config["train"])
            self._place.restore(train, back_to_best=self._back_to_best)
            self._run = TrainingRun(
                train,
                _place(images, self._config),
                self._place.folder,
                self._config["objective"],
                back_to_best=self._back_to_best,
            )
            self._place.promote_best()
        return self._run


@ray.remote  # type: ignore[untyped-decorator]
def measure(config: dict[str, Any], images: Images) -> dict[str, float]:
    """The generator of the folder's best checkpoint on all validation images."""
    return _measured(config, images)


def _measured(config: dict[str, Any], images: Images) -> dict[str, float]:
    placed = _place(images, config, num_validation=len(images.validation))
    channels, size, _ = images.shape
    workplace = CheckpointSync(config)
    generator, _ = load_generator(workplace.download(BEST), channels=channels, image_size=size)
    workplace.clean_up()
    return validate(generator.to(placed.device), placed)


def _place(images: Images, config: dict[str, Any], num_validation: int = SEARCH_VALIDATION_IMAGES) -> DeviceImages:
    device = _device(config)
    if device.type == "cpu":
        torch.set_num_threads(max(1, math.floor(config["cpus"])))
    return DeviceImages.to_device(images, config["noise"], device, num_validation=num_validation)


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
