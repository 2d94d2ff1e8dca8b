"""`hpo train`: one configuration, without Ray."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from hpo.cli.arguments import TRAIN_OPTIONS
from hpo.cli.messages import say
from hpo.cli.search_options import read_search_options
from hpo.exit_codes import EXIT_DONE, EXIT_NOTHING_VALID
from model.common.errors import ErrorCollector
from model.config import TrainConfig, reject_duplicate_settings
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.data.image_folder import check_layout
from model.data.image_sets import Images
from model.data.memory_mapped import PixelFiles
from model.export import export
from model.trainer import SEARCH_VALIDATION_IMAGES
from model.training_files import BEST
from model.training_report import failure_reason
from model.training_run import TrainingRun

_SIZES = ("epochs", "images_per_epoch")  # fields of TrainConfig that have an option


def train(arguments: argparse.Namespace) -> int:
    """Run the command, and return its exit code."""
    config, data = _read_options(arguments)
    with PixelFiles(arguments.to) as store:
        store.delete_leftovers()
        images = data.load(store)
        for line in images.messages:
            say(f"{data.data}: {line}")
        run = _run_epochs(config, images, data.noise, arguments)
    reason = failure_reason(run.reports)
    metrics = _export(arguments.to, data, images) if arguments.export and not reason else None
    if arguments.json:
        epochs = [{**r.as_dict(), "images_per_second": r.images_per_second} for r in run.reports]
        result = {"config": config.as_dict(), "stop_reason": reason, "epochs": epochs, "export": metrics}
        print(json.dumps(result, indent=2))
    if reason:
        say(f"The training {reason} after epoch {len(run.reports)}.")
    return EXIT_NOTHING_VALID if reason else EXIT_DONE


def _read_options(arguments: argparse.Namespace) -> tuple[TrainConfig, DataConfig]:
    """Raises ConfigError with all errors."""
    errors = ErrorCollector()
    options = {k: v for k, v in read_search_options(arguments, errors).items() if k in TRAIN_OPTIONS}
    settings = options.pop("set", {})
    sizes = {name: options.pop(name) for name in _SIZES if name in options}
    errors.attempt(reject_duplicate_settings, settings, _SIZES)
    config = errors.attempt(TrainConfig.from_dict, {**settings, **sizes})
    data = errors.attempt(DataConfig, **options)
    if "data" in options:
        errors.attempt(check_layout, options["data"])
    if errors or config is None or data is None:
        raise errors.as_error()
    return config, data


def _run_epochs(config: TrainConfig, images: Images, noise: str, arguments: argparse.Namespace) -> TrainingRun:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    placed = DeviceImages.to_device(images, noise, device, num_validation=SEARCH_VALIDATION_IMAGES)
    run = TrainingRun(config, placed, arguments.to, "balanced")
    events = None
    if arguments.tensorboard:
        from hpo.tracking import tensorboard  # noqa: PLC0415 - it loads Optuna

        events = tensorboard.Events(arguments.to / tensorboard.FOLDER)
        events.write(run.reports)
    while len(run.reports) < config.epochs and failure_reason(run.reports) is None:
        report = run.run_epoch()
        if events:
            events.write(run.reports)
        say(
            f"epoch {report.epoch}/{config.epochs}  SSIM {report.ssim:.4f}  PSNR {report.psnr_db:.2f} dB  "
            f"L1 {report.l1:.4f}  HaarPSI {report.haarpsi:.4f}  {report.images_per_second:.0f} images/s on {device}"
        )
    return run


def _export(folder: Path, data: DataConfig, images: Images) -> Any:
    """Export the best epoch to folder/export, and return its metrics."""
    with PixelFiles(folder) as store:
        test = data.load_test(store)
    to, origin = folder / "export", {"training": folder.name}
    manifest = export(folder / BEST, to, data=data, images=images, test=test, origin=origin)
    say(f"Exported to {to}")
    return manifest["metrics"]
