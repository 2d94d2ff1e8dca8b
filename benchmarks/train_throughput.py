"""Training speed, against plain pix2pix: python benchmarks/train_throughput.py

Whole epochs with validation of both alternate on one device: the machine is noisy, their ratio is not. The peer is
plain_pix2pix.py; both must reach the same quality.

--tensorflow PYTHON, an interpreter with TensorFlow, adds its tutorial's training; tensorflow_peer.py describes how to
make one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as hpo.tune.ray_session

import torch
from plain_pix2pix import NOISE_STD, PlainPix2Pix, loader
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from model.common.machine import processor
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import Images
from model.data.pixel_format import EIGHT_BITS
from model.gan import autocast_dtype
from model.trainer import SEARCH_VALIDATION_IMAGES, Trainer, validate

NOISE = f"gaussian:{NOISE_STD}"
MATRIX = 2048  # rows of the matrix product that measures the machine's peak


def plain_epoch(
    plain: PlainPix2Pix, batches: DataLoader[tuple[torch.Tensor, torch.Tensor]], placed: DeviceImages
) -> float:
    """Train an epoch and return PSNR on validation images."""
    plain.generator.train()
    for noisy, clean in batches:
        plain.step(noisy, clean)
    return validate(plain.generator.eval(), placed)["psnr_db"]


@contextmanager
def tensorflow_training(
    python: str, config: TrainConfig, threads: int
) -> Iterator[tuple[dict[str, int], Callable[[], float]]]:
    """Run tensorflow_peer.py in its own process; yield the sizes of its networks, and an epoch, which returns PSNR."""
    options = {"width": config.width, "batch": config.batch_size, "images": config.images_per_epoch, "threads": threads}
    command = [python, str(Path(__file__).with_name("tensorflow_peer.py"))]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def answer() -> dict[str, Any]:
            if line := process.stdout.readline():
                return json.loads(line)
            raise SystemExit("The TensorFlow peer ended; its output is above.")

        def run_epoch() -> float:
            print(file=process.stdin, flush=True)
            return answer()["psnr_db"]

        yield answer(), run_epoch
        process.stdin.close()


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of five."""
    a = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
    return max(2 * MATRIX**3 / seconds for seconds in _timed(lambda: a @ a, device, 5))


def _timed(work: Callable[[], Any], device: torch.device, repeats: int) -> Iterator[float]:
    for repeat in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        if repeat:  # the first one warms up
            yield time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flop_per_image(trainer: Trainer) -> float:
    """Floating-point operations of one step for each image: both networks, forward and backward."""
    rows = torch.arange(trainer.config.batch_size, device=trainer.images.device)
    draw = torch.Generator(trainer.images.device)
    with FlopCounterMode(display=False) as counter:
        trainer.gan.step(*trainer.images.batch(rows, draw))
    return counter.get_total_flops() / trainer.config.batch_size


def measure(
    config: TrainConfig, images: Images, device: torch.device, *, epochs: int, threads: int, tensorflow: str | None
) -> dict[str, Any]:
    """Measure all trainings, an epoch of each in turn; the first epoch of each is not timed."""
    torch.set_num_threads(threads)
    placed = DeviceImages.to_device(images, NOISE, device, num_validation=SEARCH_VALIDATION_IMAGES)
    assert config.images_per_epoch is not None
    few = replace(placed, train=placed.train[: config.images_per_epoch])
    ours = Trainer(config, few)
    plain = PlainPix2Pix(config, channels=1, image_size=32, device=device)
    batches = loader(EIGHT_BITS.to_unit(images.train[: config.images_per_epoch]), config.batch_size)
    flop = flop_per_image(Trainer(config, few))
    runs: dict[str, Callable[[], float]] = {
        "ours": lambda: ours.run_epoch().psnr_db,
        "plain": lambda: plain_epoch(plain, batches, placed),
    }
    with ExitStack() as stack:
        if tensorflow:
            sizes, runs["tensorflow"] = stack.enter_context(tensorflow_training(tensorflow, config, threads))
            for name in ("generator", "discriminator"):
                assert sizes[name] == sum(p.numel() for p in getattr(ours.gan, name).parameters()), name
        seconds, psnr_db = _taking_turns(runs, device, epochs)
    shown = config.images_per_epoch // config.batch_size * config.batch_size
    speed = {name: shown / statistics.median(times) for name, times in seconds.items()}
    ratios = {
        name: statistics.median(theirs / mine for theirs, mine in zip(times, seconds["ours"], strict=True))
        for name, times in seconds.items()
        if name != "ours"
    }
    dtype = autocast_dtype(config.precision, device) or torch.float32
    peak = matrix_peak(device, dtype)
    evaluation = statistics.median(report.eval_seconds for report in ours.reports[1:])
    return {
        "width": config.width,
        "batch_size": config.batch_size,
        "threads": threads,
        "dtype": str(dtype).removeprefix("torch."),
        "images_per_second": speed,
        "ratios": ratios,
        "gflop_per_second": flop * speed["ours"] / 1e9,
        "share_of_peak": flop * speed["ours"] / peak,
        "evaluation_share": evaluation / statistics.median(seconds["ours"]),
        "psnr_db": psnr_db,
    }


def _taking_turns(
    runs: dict[str, Callable[[], float]], device: torch.device, epochs: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the seconds of each training's timed epochs, and the result of its last epoch."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    last: dict[str, float] = {}
    for epoch in range(epochs + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            last[name] = run()
            _wait(device)
            if epoch:
                seconds[name].append(time.perf_counter() - began)
    return seconds, last


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--images", type=int, default=2048, help="an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs; their median counts")
    parser.add_argument("--tensorflow", metavar="PYTHON", help="beside TensorFlow's tutorial, run by this interpreter")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, rows = DataConfig().load(), []
    if not given.json:
        name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
        print(f"{name}, torch {torch.__version__}; {given.images} images an epoch, validation on 1,000 included\n")
        peers = ["plain", "ratio", *["TensorFlow", "ratio"] * bool(given.tensorflow)]
        columns = ["width", "batch", "threads", "ours, images/s", *peers, "GFLOP/s", "of peak", "validation", "PSNR dB"]
        print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    base = TrainConfig(images_per_epoch=given.images, epochs=given.epochs + 1, average_decay=0.0)
    for width, batch, threads in itertools.product(given.widths, given.batches, given.threads):
        config = replace(base, width=width, batch_size=batch)
        row = measure(config, images, device, epochs=given.epochs, threads=threads, tensorflow=given.tensorflow)
        rows.append(row)
        if not given.json:
            print(_line(row), flush=True)
    if given.json:
        print(json.dumps({"machine": processor(), "device": str(device), "rows": rows}, indent=2))


def _line(row: dict[str, Any]) -> str:
    speed, psnr_db = row["images_per_second"], row["psnr_db"]
    peers = " | ".join(f"{speed[name]:.0f} | {ratio:.2f}" for name, ratio in row["ratios"].items())
    return (
        f"| {row['width']} | {row['batch_size']} | {row['threads']} | {speed['ours']:.0f} | {peers} "
        f"| {row['gflop_per_second']:.0f} | {row['share_of_peak']:.0%} ({row['dtype']}) "
        f"| {row['evaluation_share']:.0%} | {' / '.join(f'{value:.2f}' for value in psnr_db.values())} |"
    )


if __name__ == "__main__":
    main()
