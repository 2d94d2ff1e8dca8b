"""Real images, and one small trained and exported model, made once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import ImagePairs, Images
from model.export import export
from model.trainer import Trainer

NOISE = "gaussian:30"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The machine is shared, and networks this small gain nothing from a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def all_images() -> Images:
    return DataConfig().load()


@pytest.fixture(scope="session")
def all_test_images() -> np.ndarray:
    return DataConfig().load_test().clean


@pytest.fixture(scope="session")
def images(all_images: Images) -> Images:
    return replace(all_images, train=all_images.train[:4000], validation=all_images.validation[:200])


@pytest.fixture(scope="session")
def test_images(all_test_images: np.ndarray) -> np.ndarray:
    return all_test_images[:200]


@pytest.fixture(scope="session")
def mosaic(all_test_images: np.ndarray) -> np.ndarray:
    """A colour picture of Fashion-MNIST images, (200, 300, 3) uint8: 7 rows of 10, other images in each channel."""
    sheets = all_test_images[:210, 0].reshape(3, 7, 10, 32, 32).transpose(1, 3, 2, 4, 0).reshape(224, 320, 3)
    return np.ascontiguousarray(sheets[:200, :300])


@pytest.fixture(scope="session")
def trained(one_thread: None, images: Images) -> Trainer:
    """400 steps at width 8."""
    config = TrainConfig(
        width=8,
        batch_size=16,
        images_per_epoch=1600,
        epochs=4,
        lr_g=2e-3,
        dropout=0.0,
        average_decay=0.99,
        precision="float32",
    )
    trainer = Trainer(config, DeviceImages.to_device(images, NOISE, torch.device("cpu"), num_validation=200))
    for _ in range(config.epochs):
        trainer.run_epoch()
    return trainer


@dataclass(frozen=True)
class Export:
    checkpoint: Path
    folder: Path
    manifest: dict[str, Any]
    arguments: dict[str, Any]  # that it was made with


@pytest.fixture(scope="session")
def exported(
    trained: Trainer, images: Images, test_images: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Export:
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = folder / "checkpoint.safetensors"
    trained.save(checkpoint)
    arguments = {
        "data": DataConfig(noise=NOISE),
        "images": images,
        "test": ImagePairs(test_images),
        "origin": {"search": "first", "trial": 7},
    }
    manifest = export(checkpoint, folder / "model", **arguments)
    return Export(checkpoint, folder / "model", manifest, arguments)
