"""Survival of trainings at high learning rates: random configurations of the default space with both rates in the upper
half of their ranges, each trained with and without a change of TrainConfig.

    python benchmarks/stability.py --to runs/stability                       # without gradient clipping, and with it
    python benchmarks/stability.py --to runs/stability --arms grad_clip=1.2  # another change

The other settings are those of `make search` before 2026-12, with half the images an epoch. A training fails if it
diverges or collapses (model.training_report), or ends below the noisy input: the trainings are shorter than the 30,000
images of grace. Finished trainings are kept under --to: the same command continues.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from scipy.stats import binomtest

import search_spaces
from model.common.files import write_atomically
from model.common.machine import processor
from model.config import TrainConfig, parse_setting
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.trainer import Trainer
from model.training_report import failure_reason

SETTINGS: dict[str, Any] = {
    "width": 16, "blocks": 1, "depth": 3, "batch_size": 32, "dropout": 0.0, "output": "residual",
    "lr_schedule": "cosine", "adversarial_weight": 0.1, "images_per_epoch": 1000,
}  # fmt: skip
WITHOUT, WITH = "grad_clip=0", "grad_clip=2"


def configurations(count: int) -> list[dict[str, Any]]:
    """Sample the default space uniformly, without rates in the lower half of their logarithmic range."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, chosen = search_spaces.load("losses_and_rates"), []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    while len(chosen) < count:
        trial = study.ask()
        space.sample(trial, TrainConfig())
        ranges = {name: trial.distributions[name] for name in ("lr_g", "lr_d")}
        if all(trial.params[name] >= math.sqrt(values.low * values.high) for name, values in ranges.items()):
            chosen.append(trial.params)
    return chosen


def train(params: dict[str, Any], arm: str, seed: int, epochs: int, data: DataConfig) -> dict[str, Any]:
    """Train on one thread; return the PSNR of every epoch and the reason of a failure."""
    torch.set_num_threads(1)
    images = DeviceImages.to_device(data.load(), data.noise, torch.device("cpu"), num_validation=500)
    changes = dict(parse_setting(word) for word in arm.split(","))
    config = TrainConfig.from_dict({**SETTINGS, **params, "epochs": epochs, "seed": seed, **changes})
    trainer = Trainer(config, images)
    reason: str | None = None
    while reason is None and trainer.epoch < epochs:
        trainer.run_epoch()
        reason = failure_reason(trainer.reports, is_last=trainer.epoch == epochs)
    if reason is None and trainer.reports[-1].is_dead:
        reason = "ended below the noisy input"
    return {"died": reason, "psnr_db": [report.psnr_db for report in trainer.reports]}


def trained(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run all trainings, but for those of earlier runs, and return the results by configuration, seed and arm."""
    data = DataConfig(data=options.data, noise=options.noise)
    path: Path = options.to / "trained.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    with ProcessPoolExecutor(options.workers) as pool:
        jobs = {
            pool.submit(train, params, arm, seed, options.epochs, data): key
            for number, params in enumerate(configurations(options.configurations))
            for seed in range(options.seeds)
            for arm in options.arms
            if (key := f"{number} {seed} {arm} {options.epochs}") not in done
        }
        for job in as_completed(jobs):
            done[jobs[job]] = job.result()
            print(jobs[job], done[jobs[job]]["died"] or "lives", flush=True)
            write_atomically(path, json.dumps(done, indent=1).encode())
    return done


def share(count: int, total: int) -> str:
    """Format a share with Wilson's 95 % interval."""
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return f"{count} of {total}: {count / total:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def rows(done: dict[str, dict[str, Any]], options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of a Markdown table. The comparison is paired, over trainings that survived in both arms."""
    keys = [f"{number} {seed} {{}} {options.epochs}" for number in range(options.configurations)
            for seed in range(options.seeds)]  # fmt: skip
    first = options.arms[0]
    yield f"| | died | last PSNR, dB: difference to {first} where both lived, mean and 95 % interval | pairs |"
    yield "|---|---|---|---|"
    for arm in options.arms:
        mine = [done[key.format(arm)] for key in keys]
        pairs = zip(mine, (done[key.format(first)] for key in keys), strict=True)
        apart = np.array([a["psnr_db"][-1] - b["psnr_db"][-1] for a, b in pairs if not a["died"] and not b["died"]])
        half = 1.96 * apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
        died = share(sum(bool(training["died"]) for training in mine), len(mine))
        yield f"| {arm} | {died} | {apart.mean():+.3f} ({apart.mean() - half:+.3f} to {apart.mean() + half:+.3f}) " + (
            f"| {len(apart)} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("runs/stability"))
    parser.add_argument("--configurations", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument(
        "--arms", nargs="+", default=[WITHOUT, WITH], help="NAME=VALUE,... each; the first is the baseline"
    )
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--noise", default="gaussian:30")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    done = trained(options)
    print(f"\n{options.configurations} configurations, {options.seeds} seeds, {options.epochs} epochs; {processor()}\n")
    print("\n".join(rows(done, options)))


if __name__ == "__main__":
    main()
