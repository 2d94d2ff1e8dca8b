"""Finalists are compared image by image: what is compared has the figure that is shown as its mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from plain_search import command, photographs, without_ray
from scipy import stats

from hpo.cli.commands import main
from hpo.run.finalists import with_comparisons
from hpo.store import file_names, search_results
from hpo.store.record import Record
from model.data.device_images import DeviceImages
from model.trainer import load_generator, validate_images
from model.training_files import BEST
from model.training_report import objective_of_images


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder: Path = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        assert main(command(photographs(folder / "images"), folder / "runs")) == 0
    return Record(folder / "runs", "first")


def test_each_finalist_is_compared_with_the_best_on_the_images_that_its_figure_is_of(searched):
    data = searched.search.data_config()
    images = data.load()
    placed = DeviceImages.to_device(images, data.noise, torch.device("cpu"), num_validation=len(images.validation))
    values = {}
    measured = searched.metadata()[file_names.FINALISTS]
    for number, of in measured.items():
        generator, _ = load_generator(searched.trial_folder(int(number)) / BEST, channels=1, image_size=16)
        values[number] = objective_of_images(
            {name: each.numpy() for name, each in validate_images(generator, placed)[1].items()}, "balanced"
        )
        assert values[number].mean() == pytest.approx(of["value"], rel=1e-6)
        assert of["parameters"] == sum(p.numel() for p in generator.parameters())
    best = max(measured, key=lambda number: measured[number]["value"])
    assert "compared" not in measured[best]
    for number in measured.keys() - {best}:
        told = measured[number]["compared"]
        assert told["with"] == int(best)
        assert told["count"] == len(images.validation)
        assert told["difference"] == pytest.approx(measured[number]["value"] - measured[best]["value"], abs=1e-6)
    assert search_results.winner(searched) in map(int, measured)


def test_the_verdicts_are_those_of_a_paired_test_for_all_pairs_together():
    rng = np.random.default_rng(0)
    images = 28 + 3 * rng.standard_normal(2_000)
    values = {n: images + shift + 0.5 * rng.standard_normal(2_000) for n, shift in (("4", 0.0), ("7", 0.1), ("2", 0.1))}
    measured = {number: {"value": float(of.mean())} for number, of in values.items()}
    found = with_comparisons(measured, values)
    best = max(measured, key=lambda number: measured[number]["value"])
    for number in found.keys() - {best}:
        interval = stats.ttest_rel(values[number], values[best]).confidence_interval(1 - 0.05 / 3)
        told = found[number]["compared"]
        assert (told["low"], told["high"]) == pytest.approx((interval.low, interval.high), abs=3e-3)
        assert told["verdict"] == ("worse" if interval.high < 0 else "tie")
    assert found["4"]["compared"]["verdict"] == "worse"
