"""Denoising as a step of preprocessing: python benchmarks/preprocessing.py EXPORT

Measures a small classifier, trained on clean Fashion-MNIST and then frozen, on clean, noisy and denoised test images:
the share of the accuracy lost to the noise that an exported denoiser restores.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as hpo.tune.ray_session

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from model.data.data_config import DataConfig
from model.data.pixel_format import EIGHT_BITS
from model.denoise import Denoiser

LABELS = {"train": "train-labels-idx1-ubyte.gz", "test": "t10k-labels-idx1-ubyte.gz"}
FOLDER = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
BATCH = 128


def labels(split: str, folder: Path) -> torch.Tensor:
    """Read the labels, (N,) int64 from 0 to 9."""
    content = gzip.decompress((folder / LABELS[split]).read_bytes())
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))


def classifier() -> nn.Module:
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10)),
    )


def train(images: torch.Tensor, targets: torch.Tensor, epochs: int, seed: int) -> nn.Module:
    """Train a classifier and freeze it."""
    torch.manual_seed(seed)
    network = classifier()
    adam = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            adam.zero_grad()
            cross_entropy(network(images[rows]), targets[rows]).backward()
            adam.step()
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def accuracy(network: nn.Module, images: np.ndarray, targets: torch.Tensor) -> float:
    """Share of images (N, 1, 32, 32) float32 in [-1, 1] that are classified correctly."""
    right = [
        (network(part).argmax(dim=1) == truth).sum().item()
        for part, truth in zip(torch.from_numpy(images).split(1000), targets.split(1000), strict=True)
    ]
    return sum(right) / len(targets)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="+", help="exported folders")
    parser.add_argument("--labels", type=Path, default=FOLDER)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1, help="classifiers")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    data = DataConfig()
    noisy, clean = data.load_test().with_noise(data.noise, "test")
    shown = {"clean": clean, "noisy": noisy}
    shown |= {str(folder): Denoiser(folder).batch(noisy) for folder in given.model}
    train_images, test_labels = data.load().train, labels("test", given.labels)
    targets = labels("train", given.labels)[: len(train_images)]
    accuracies: dict[str, list[float]] = {name: [] for name in shown}
    began = time.perf_counter()
    for seed in range(given.seeds):
        network = train(torch.from_numpy(EIGHT_BITS.to_unit(train_images)), targets, given.epochs, seed)
        for name, images in shown.items():
            accuracies[name].append(accuracy(network, images, test_labels))
    means = {name: float(np.mean(values)) for name, values in accuracies.items()}
    lost = means["clean"] - means["noisy"]
    back = {name: (means[name] - means["noisy"]) / lost for name in means if name not in ("clean", "noisy")}
    if given.json:
        print(json.dumps({"accuracy": accuracies, "brought_back": back}, indent=2))
        return
    seconds = time.perf_counter() - began
    print(f"{len(clean):,} test images, noise {data.noise}, {given.seeds} classifiers, {seconds:.0f} s\n")
    print("| test images | accuracy | of the loss brought back |")
    print("|---|---|---|")
    for name, value in means.items():
        print(f"| {name} | {value:.2%} | {f'{back[name]:.0%}' if name in back else ''} |")


if __name__ == "__main__":
    main()
