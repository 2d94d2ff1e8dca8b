"""Sets larger than memory: the same images, batches and reports as in memory, and no more memory than is allowed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from model.common.errors import ConfigError, MachineError
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import Images
from model.data.memory_mapped import IN_MEMORY, PixelFiles
from model.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clean/ and noisy/: photographs of different sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, name in enumerate(("astronaut", "chelsea", "coffee", "rocket", "retina")):
        pixels = getattr(skimage.data, name)()[100:200, 100 : 200 + 7 * number]
        for kind, content in (("clean", pixels), ("noisy", pixels ^ 5)):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(content).save(folder / kind / f"{name}.png")
    return folder


@pytest.fixture(params=["gaussian:30", "real"])
def data(request: pytest.FixtureRequest, folder: Path) -> DataConfig:
    where = folder if request.param == "real" else folder / "clean"
    return DataConfig(data=str(where), noise=request.param, crop=32)


# Bytes in memory: every image is written on its own; two at a time, and the last one; what is one too many at the end.
@pytest.fixture(params=[0, 70_000, 150_000])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PixelFiles]:
    with PixelFiles(tmp_path / "runs", "first") as store:
        store.in_memory = request.param
        yield store
    assert not list((tmp_path / "runs").iterdir())


def placed(images: Images, noise: str) -> DeviceImages:
    return DeviceImages.to_device(images, noise, CPU, num_validation=4)


def test_a_streamed_set_is_the_same_to_the_bit_as_in_memory(data, store):
    expected, images = data.load(), data.load(store)
    assert images.digest == expected.digest
    assert np.array_equal(images.validation.clean, expected.validation.clean)
    assert isinstance(placed(images, data.noise).train.pixels, torch.Tensor)
    draws = [torch.Generator().manual_seed(7) for _ in range(2)]
    rows = torch.arange(len(expected.train)).flip(0)
    for one, other in zip(
        placed(images, data.noise).batch(rows, draws[0]),
        placed(expected, data.noise).batch(rows, draws[1]),
        strict=True,
    ):
        assert torch.equal(one, other)
    again = replace(images, train=pickle.loads(pickle.dumps(images.train)))  # as a trial gets it
    assert again.digest == expected.digest
    assert len(pickle.dumps(images.train)) < 5_000  # without its pixels


def test_test_images_and_measured_training_images_are_the_same(data, store):
    assert np.array_equal(data.load_test(store).clean, data.load_test().clean)
    assert np.array_equal(data.load_train(store).clean, data.load_train().clean)


def test_a_training_on_a_streamed_set_gives_the_same_reports(data, store):
    config = TrainConfig(width=4, batch_size=4, images_per_epoch=12, epochs=2, precision="float32")

    def reports(images: Images) -> list[dict[str, object]]:
        trainer = Trainer(config, placed(images, data.noise))
        return [replace(trainer.run_epoch(), seconds=0.0, eval_seconds=0.0).as_dict() for _ in range(config.epochs)]

    assert reports(data.load(store)) == reports(data.load())


def test_what_fits_into_memory_stays_there(data, tmp_path):
    with PixelFiles(tmp_path) as store:
        assert isinstance(data.load(store).train.pixels, np.ndarray)
        assert not list(tmp_path.iterdir())


def test_pixels_that_are_gone_or_cut_short_are_a_clear_error(data, tmp_path):
    with PixelFiles(tmp_path) as store:
        store.in_memory = 0
        images = data.load(store)
        path = images.train.pixels.path
        os.truncate(path, 100)
        with pytest.raises(MachineError, match=r"100 bytes instead of .*all nodes need access to this folder"):
            placed(images, data.noise)
    with pytest.raises(MachineError, match=r"No such file.*all nodes need access to this folder"):
        placed(images, data.noise)


def test_only_what_a_killed_run_of_the_same_name_left_is_removed(tmp_path, folder):
    data, killed = DataConfig(data=str(folder / "clean"), crop=32), PixelFiles(tmp_path, "first")
    with PixelFiles(tmp_path, "first") as store, PixelFiles(tmp_path, "first.b") as other:
        kept = []
        for files in (killed, store, other):
            files.in_memory = 0
            kept.append(data.load(files).train.pixels.path)
        store.delete_leftovers()
        assert [path.exists() for path in kept] == [False, True, True]


def test_pixels_are_for_nobody_elses_eyes(data, tmp_path):
    """`hpo evaluate` has them in the system's folder for temporary files."""
    with PixelFiles(tmp_path) as store:
        store.in_memory = 0
        data.load(store)
        assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.pixels")} == {0o600}
        assert list(tmp_path.glob(".images~*.pixels"))


def test_a_limit_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv(IN_MEMORY, "4GB")
    with pytest.raises(ConfigError, match="PIX2PIX_IN_MEMORY_MB=4GB: must be a whole number of megabytes"):
        PixelFiles()


@pytest.mark.slow
def test_training_takes_no_more_memory_than_is_allowed_however_large_the_set(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):  # 500 MB of pixels
        waves = np.sin(np.arange(2048) / rng.uniform(20, 90, (3, 1)) + rng.uniform(0, 6, (3, 1)))
        pixels = (127 + 120 * waves[:, :, None] * waves[:, None, :]).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    # Pages of a mapped file count as resident, though the kernel drops them when others need room: so not the peak of
    # RSS is looked at; the kernel refuses the process more memory of its own.
    code = textwrap.dedent("""
        import json, re, resource, sys, torch
        from pathlib import Path
        from model.config import TrainConfig
        from model.data.data_config import DataConfig
        from model.data.image_sets import DeviceImages
        from model.data.memory_mapped import PixelFiles
        from model.trainer import Trainer

        torch.set_num_threads(1)
        folder = Path(sys.argv[1])

        def train(data):
            with PixelFiles(folder) as store:
                images = DeviceImages.to_device(data.load(store), "gaussian:30", torch.device("cpu"), num_validation=50)
                config = TrainConfig(width=4, batch_size=8, images_per_epoch=80, epochs=1, precision="float32")
                return Trainer(config, images).run_epoch().psnr_db

        before = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (before + 350_000_000, resource.RLIM_INFINITY))
        print(json.dumps(train(DataConfig(data=str(folder), crop=32))))
    """)

    def run(megabytes: int) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, IN_MEMORY: str(megabytes)}
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)

    streamed, in_memory = run(50), run(10_000)
    assert streamed.returncode == 0, streamed.stderr
    assert json.loads(streamed.stdout) > 0
    assert in_memory.returncode != 0
    assert "memory" in in_memory.stderr.lower()  # MemoryError, or an image that does not fit
