"""The same search by stock Ray Tune with OptunaSearch and ASHA: python benchmarks/stock.py FOLDER

A script as Ray's documentation shows it: `with_parameters` for the images, a checkpoint with every report, trials that
are tried again (`max_failures`), and "auto-resume": the same command begins, or restores what is there. It is what
benchmarks/faults.py compares `hpo search` with. The training is this project's own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune import Checkpoint
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from survival import EPOCHS, GRACE, REDUCTION, TRIALS

from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import Images
from model.generator import Generator
from model.trainer import SEARCH_VALIDATION_IMAGES, Trainer, validate
from model.training_report import EvalReport
from search_spaces import losses_and_rates

NAME, FILE, IMAGES = "first", "model.pt", 256
SMALL = {"width": 4, "dropout": 0.0, "batch_size": 16}  # TrainConfig fields


def suggest(trial: Any) -> dict[str, Any]:
    """The default space of `hpo search`."""
    base = TrainConfig(epochs=EPOCHS, images_per_epoch=IMAGES, **SMALL)
    return {"train": losses_and_rates.suggest(trial, base).as_dict()}


def place(images: Images, device: torch.device) -> DeviceImages:
    """As trials see them."""
    return DeviceImages.to_device(images, "gaussian:30", device, num_validation=SEARCH_VALIDATION_IMAGES)


def train(config: dict[str, Any], images: Images) -> None:
    """One trial."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    trainer = Trainer(TrainConfig.from_dict(config["train"]), place(images, device))
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder) / FILE)
        for name, tensor in trainer.gan.tensors().items():
            tensor.copy_(saved["tensors"][name])
        trainer.reports = [EvalReport.from_dict(report) for report in saved["reports"]]
    while trainer.epoch < trainer.config.epochs:
        report = trainer.run_epoch()
        with tempfile.TemporaryDirectory() as folder:
            reports = [report.as_dict() for report in trainer.reports]
            torch.save({"tensors": trainer.gan.tensors(), "reports": reports}, Path(folder) / FILE)
            figures = {"epoch": report.epoch, "ssim": report.ssim, "psnr_db": report.psnr_db}
            tune.report(figures, checkpoint=Checkpoint.from_directory(folder))


def search(folder: Path, address: str, gpus: int) -> None:
    """Begin it, or go on with it."""
    # Seconds between snapshots of the experiment; the default of 10 suits epochs of minutes, here they take a second.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    ray.init(address=address, log_to_driver=False, **({"include_dashboard": False} if address == "local" else {}))
    with_images = tune.with_parameters(train, images=DataConfig().load())
    trainable = tune.with_resources(with_images, {"cpu": 1, "gpu": gpus})
    if tune.Tuner.can_restore(folder / NAME):
        tuner = tune.Tuner.restore(str(folder / NAME), trainable=trainable, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(suggest, metric="ssim", mode="max", seed=0),
                scheduler=ASHAScheduler(
                    metric="ssim", mode="max", max_t=EPOCHS, grace_period=GRACE, reduction_factor=REDUCTION
                ),
                num_samples=TRIALS,
                max_concurrent_trials=2,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=NAME, storage_path=str(folder), failure_config=tune.FailureConfig(max_failures=3)
            ),
        )
    results = tuner.fit()
    if results.errors:
        sys.exit(f"{len(results.errors)} trials failed")
    best = results.get_best_result("ssim", "max")
    print(f"best: SSIM {best.metrics['ssim']:.4f}, {best.checkpoint}")


def best(folder: Path) -> tune.Result:
    """Of the trials that are there."""
    return tune.ResultGrid(tune.ExperimentAnalysis(str(folder.absolute() / NAME))).get_best_result("ssim", "max")


def load(file: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors."""
    tensors: dict[str, torch.Tensor] = torch.load(file)["tensors"]
    return tensors


def best_again(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """What is recorded of the best trial's checkpoint, and what is measured on it now."""
    found = best(folder)
    generator = Generator(TrainConfig.from_dict(found.config["train"]), channels=1, image_size=32)
    with found.checkpoint.as_directory() as at:
        tensors = load(Path(at) / FILE)
    weights = {name.removeprefix("average."): t for name, t in tensors.items() if name.startswith("average.")}
    generator.load_state_dict(weights)
    return {name: found.metrics[name] for name in ("ssim", "psnr_db")}, measured(generator)


def measured(generator: Generator) -> dict[str, float]:
    """As its trial did."""
    return validate(generator.eval(), place(DataConfig().load(), torch.device("cpu")))


def states(folder: Path) -> list[str]:
    """Of the trials, as Optuna has them."""
    searcher = OptunaSearch()
    searcher.restore(str(max((folder / NAME).glob("searcher-state-*.pkl"))))
    return [trial.state.name for trial in searcher._ot_study.trials]


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--address", default="local", help="of a Ray cluster")
    parser.add_argument("--gpus", type=int, default=0, help="a trial")
    parser.add_argument("--evaluate", action="store_true", help="measure the best again, instead of searching")
    given = parser.parse_args()
    if given.evaluate:
        print("recorded {}, measured {}".format(*best_again(given.folder)))
    else:
        search(given.folder.absolute(), given.address, given.gpus)


if __name__ == "__main__":
    from stock import main  # Ray pickles a function of __main__ by its value, which OptunaSearch can then not save

    main()
