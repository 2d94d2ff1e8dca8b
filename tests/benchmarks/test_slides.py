"""The slides' experiment, small: a recipe of seconds in place of the one of minutes; the drawings of its networks."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawings
import numpy as np
import pytest
import slides
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.image_sets import ImagePairs
from model.denoise import Denoiser
from model.discriminator import Discriminator
from model.export import read_manifest
from model.generator import Generator
from model.picture_strip import to_uint8
from model.training_run import TrainingRun

FEW = 40
ARGUMENTS = ["--width", "2", "--noise", "gaussian:30", "--patch", "14", "--loss", "ssim"]
NAME = "width-2_gaussian-30_patch-14_ssim"


@pytest.fixture(scope="module")
def patch() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    """One part: stopped after three epochs, and continued."""
    test, train = DataConfig().load_test()[:FEW], DataConfig().load_train()[:FEW]
    patch.setattr(DataConfig, "load_test", lambda _: test)
    patch.setattr(DataConfig, "load_train", lambda _: train)
    patch.setattr(slides, "WATCHED", FEW)
    patch.setattr(slides, "RECIPE", replace(slides.RECIPE, images_per_epoch=256, batch_size=16))
    folder, run_epoch = tmp_path_factory.mktemp("slides"), TrainingRun.run_epoch

    def stopped(run: TrainingRun) -> Any:
        if len(run.reports) == 3:
            raise KeyboardInterrupt
        return run_epoch(run)

    with pytest.MonkeyPatch.context() as stopping:
        stopping.setattr(TrainingRun, "run_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            slides.main(["--to", str(folder), *ARGUMENTS])
    slides.main(["--to", str(folder), *ARGUMENTS])
    return folder


def test_all_training_images_are_trained_on_and_no_test_image():
    images = slides.all_images()
    assert images.train.shape == (60_000, 1, 32, 32)
    assert {image.tobytes() for image in images.train}.isdisjoint(
        image.tobytes() for image in DataConfig().load_test().clean
    )
    assert (images.validation.clean == images.train[-len(images.validation) :]).all()


@pytest.mark.slow
def test_what_is_finished_is_not_done_again_and_the_last_epoch_is_what_was_measured(done, monkeypatch, capsys):
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("was done again")

    monkeypatch.setattr(TrainingRun, "run_epoch", refuse)
    monkeypatch.setattr(slides, "export", refuse)
    slides.main(["--to", str(done), *ARGUMENTS, "--json"])
    told = json.loads(capsys.readouterr().out)
    (part,) = told["parts"]
    assert (part["noise"], part["patch"], part["loss"]) == ("gaussian:30", 14, "ssim")
    manifest = read_manifest(done / NAME / "export")
    assert manifest["origin"]["epoch"] == told["recipe"]["epochs"] == 5
    noisy, clean = DataConfig().load_test().with_noise("gaussian:30", "test")
    denoised = Denoiser(done / NAME / "export").batch(noisy)
    psnr_db = [peak_signal_noise_ratio(a, b, data_range=2) for a, b in zip(clean, denoised, strict=True)]
    assert part["test"]["denoised"]["psnr_db"] == pytest.approx(np.mean(psnr_db))
    assert part["train"]["images"] == part["test"]["images"] == FEW


@pytest.mark.slow
def test_the_pictures_show_the_images_themselves_and_three_epochs_that_differ(done):
    noisy, clean = DataConfig().load_test().with_noise("gaussian:30", "test")
    with Image.open(done / "pictures" / f"{NAME}_epochs.png") as picture:
        pixels = np.asarray(picture)
    pixels = pixels[20:, pixels.shape[1] - (6 * 102 - 6) :]  # below the titles, beside the names of the rows
    shown = [[pixels[y : y + 96 : 3, x : x + 96 : 3] for x in range(0, 612, 102)] for y in range(0, 306, 102)]
    for row in shown:
        for i in (0, 1):
            assert (row[3 * i] == to_uint8(noisy[i, 0])).all()
            assert (row[3 * i + 1] == to_uint8(clean[i, 0])).all()
    before, middle, late = (row[2].astype(int) for row in shown)
    assert before.std() < 1  # an untrained network's grey
    assert middle.std() > 1
    assert (middle != late).any()


def test_a_table_has_the_slides_figures_and_tells_what_reaches_them():
    def row(loss: str, **figures: float) -> dict[str, Any]:
        noisy, truth = {"l1": 0.124, "ssim": 0.68, "psnr_db": 20.5}, {"l1": 0.0, "ssim": 1.0, "psnr_db": "inf"}
        split = {"images": 10, "noisy": noisy, "denoised": figures, "ground_truth": truth}
        return {"width": 16, "noise": "gaussian:30", "patch": 34, "loss": loss, "train": split, "test": split}

    text = slides.tables(
        [row("l1", l1=0.0464, ssim=0.8604, psnr_db=26.2), row("ssim", l1=0.0481, ssim=0.888, psnr_db=25.9)]
    )
    test = text.partition("width 16, test")[2]
    assert "| cGAN + L1 | **0.0464** | 0.8604 | **26.20** | 0.046 | 0.861 | 26.09 |" in test
    assert "| cGAN + SSIM | **0.0481** | **0.8880** | **25.90** | 0.048 | 0.871 | 25.86 |" in test
    train = text.partition("width 16, test")[0]
    assert "| cGAN + L1 | 0.0464 | 0.8604 | **26.20** | 0.045 | 0.865 | 26.19 |" in train
    assert "| Ground truth | 0.0000 | 1.0000 | inf | 0.0 | 1.0 | inf |" in train
    assert text.endswith("7 of 12 cells.")


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_drawing_of_the_generator_has_the_numbers_of_the_slides_network():
    """16.65 million weights at the tutorial's width, four skips, dropout in the first three blocks of the decoder."""
    noisy, clean = (
        drawings.torch.from_numpy(p)
        for p in ImagePairs(DataConfig().load_test().clean[:2]).with_noise("gaussian:30", "test")
    )
    generator = Generator(TrainConfig(width=64), channels=1, image_size=32)
    shown = texts(drawings.draw_generator(generator, noisy))
    assert re.sub(r"\D", "", shown[0]) == str(sum(p.numel() for p in generator.parameters()))
    sizes = [text for text in shown if re.fullmatch(r"\d+x\d+x\d+", text)]
    down, up = ["16x16x64", "8x8x128", "4x4x256", "2x2x512", "1x1x512"], ["2x2x512", "4x4x256", "8x8x128", "16x16x64"]
    assert sizes == down + up
    assert [text for text in shown if "skip" in text] == [f"skip: together {c} channels" for c in (1024, 512, 256, 128)]
    decoder = [text for text in shown if text.startswith("TransposedConv")]
    assert ["Dropout 0.5" in text for text in decoder] == [True, True, True, False, False]
    assert decoder[-1].endswith("tanh")
    judged = texts(drawings.draw_discriminators({14: Discriminator(channels=1, width=64, patch=14)}, noisy, clean))
    assert "6x6x1 logits, each sees 14x14 pixels" in judged
