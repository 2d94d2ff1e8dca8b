import logging
from dataclasses import replace

import pytest
import torch
from PIL import Image

from model.checkpoint import load_checkpoint
from model.common.errors import ConfigError
from model.config import TrainConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import Images
from model.training_files import BEST, LAST, should_log_images
from model.training_run import TrainingRun

CONFIG = TrainConfig(width=4, batch_size=16, images_per_epoch=64, epochs=4, precision="float32")


@pytest.fixture(scope="module")
def few(images) -> DeviceImages:
    few = Images(train=images.train[:100], validation=images.validation[:20])
    return DeviceImages.to_device(few, "gaussian:30", torch.device("cpu"), num_validation=20)


def epochs_in(path) -> int:
    return len(load_checkpoint(path)[1]["reports"])


def test_a_killed_run_goes_on_and_ends_as_the_undisturbed_one(few, tmp_path):
    undisturbed = TrainingRun(CONFIG, few, tmp_path / "a", "ssim", trial=7)
    for _ in range(3):
        undisturbed.run_epoch()
    for _ in range(3):  # a new process for each epoch
        run = TrainingRun(CONFIG, few, tmp_path / "b", "ssim", trial=7)
        run.run_epoch()
    assert [report.epoch for report in run.reports] == [1, 2, 3]
    (expected, expected_state), (tensors, state) = (load_checkpoint(tmp_path / name / LAST) for name in "ab")
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert state["notes"] == expected_state["notes"] == {"trial": 7}
    for epoch in (1, 2, 3):
        with Image.open(tmp_path / "b" / f"epoch-{epoch:04}.png") as picture:
            assert picture.size == (3 * 34 - 2, 6 * 34 - 2)
    assert len(list((tmp_path / "b").iterdir())) == 5  # no parts are left


def test_the_best_checkpoint_is_that_of_the_best_epoch_and_of_equals_the_last(few, tmp_path, monkeypatch):
    run = TrainingRun(replace(CONFIG, epochs=5), few, tmp_path, "ssim")
    evaluate, ssims = run.trainer._evaluate, iter([0.5, 0.2, 0.4, 0.5, float("nan")])
    monkeypatch.setattr(run.trainer, "_evaluate", lambda: {**evaluate(), "ssim": next(ssims)})
    best = []
    for _ in range(5):
        run.run_epoch()
        best.append(epochs_in(tmp_path / BEST))
    assert best == [1, 1, 1, 4, 4]
    assert epochs_in(tmp_path / LAST) == 5


def test_a_damaged_last_checkpoint_falls_back_on_the_best_and_says_so(few, tmp_path, monkeypatch, caplog):
    run = TrainingRun(CONFIG, few, tmp_path, "ssim")
    assert caplog.text == ""  # a folder without checkpoints is no news
    evaluate, ssims = run.trainer._evaluate, iter([0.5, 0.4])
    monkeypatch.setattr(run.trainer, "_evaluate", lambda: {**evaluate(), "ssim": next(ssims)})
    run.run_epoch()
    run.run_epoch()
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        again = TrainingRun(CONFIG, few, tmp_path, "ssim")
    assert again.trainer.epoch == 1
    assert str(tmp_path / LAST) in caplog.text


def test_after_a_collapse_a_run_goes_back_to_its_best_epoch_with_lower_rates_however_often_it_is_begun(
    few, tmp_path, monkeypatch
):
    run = TrainingRun(CONFIG, few, tmp_path, "ssim")
    evaluate, ssims = run.trainer._evaluate, iter([0.5, 0.1, 0.1])
    monkeypatch.setattr(run.trainer, "_evaluate", lambda: {**evaluate(), "ssim": next(ssims)})
    for _ in range(3):
        run.run_epoch()
    lower = replace(CONFIG, lr_g=CONFIG.lr_g / 2, lr_d=CONFIG.lr_d / 2)
    with pytest.raises(ConfigError, match="lr_g was"):
        TrainingRun(lower, few, tmp_path, "ssim")
    for _ in range(2):  # killed before it had trained
        again = TrainingRun(lower, few, tmp_path, "ssim", back_to_best=True)
        assert [report.ssim for report in again.reports] == [0.5]
    again.run_epoch()
    assert load_checkpoint(tmp_path / LAST)[1]["config"]["lr_g"] == lower.lr_g
    assert TrainingRun(lower, few, tmp_path, "ssim", back_to_best=True).trainer.epoch == 2
    with pytest.raises(ConfigError, match="width was"):
        TrainingRun(replace(lower, width=8), few, tmp_path, "ssim", back_to_best=True)


def test_a_run_that_diverges_still_has_its_picture_and_checkpoint(few, tmp_path):
    run = TrainingRun(replace(CONFIG, seed=1), few, tmp_path, "psnr")
    with torch.no_grad():
        run.trainer.gan.generator.last.bias.fill_(float("nan"))
    run.run_epoch()
    assert (tmp_path / "epoch-0001.png").exists()
    assert epochs_in(tmp_path / LAST) == 1


def test_where_pictures_cost_those_of_a_few_epochs_and_of_the_last_are_shown():
    assert [epoch for epoch in range(1, 8) if should_log_images(epoch, last=epoch == 7)] == [1, 2, 4, 7]
