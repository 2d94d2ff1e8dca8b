import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from haarpsi_reference import cases

from model import metrics
from model.data.image_sets import NOISE_SEEDS
from model.data.noise import parse_noise
from model.data.pixel_format import EIGHT_BITS

REFERENCE = json.loads((Path(__file__).parents[1] / "data/haarpsi.json").read_text())
CASES = {name: tuple(torch.from_numpy(EIGHT_BITS.to_unit(of)) for of in pair) for name, *pair in cases()}


def test_every_reference_value_has_its_images():
    assert list(CASES) == list(REFERENCE)


@pytest.mark.parametrize("name", REFERENCE)
def test_haarpsi_is_that_of_its_authors(name):
    clean, images = CASES[name]
    expected = REFERENCE[name]["authors"]
    for values in (metrics.haarpsi(images, clean), metrics.haarpsi(clean, images)):
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)
    # piq rounds the colours' coefficients otherwise; see tests/support/haarpsi_reference.py.
    np.testing.assert_allclose(values, REFERENCE[name]["piq"], rtol=0, atol=0.002 if "rgb" in name else 1e-6)


def test_two_black_images_are_equal_and_do_not_disturb_their_batch():
    # The authors' 0/0.
    clean, images = (of.clone() for of in CASES["rgb 64x64, blur"])
    clean[1] = images[1] = -1
    values = metrics.haarpsi(images, clean)
    assert values[1] == 1
    np.testing.assert_allclose(values[[0, 2]], np.array(REFERENCE["rgb 64x64, blur"]["authors"])[[0, 2]], atol=1e-6)


def test_a_value_that_is_not_finite_makes_its_own_image_nan_and_no_other():
    a, b = (of.clone() for of in CASES["fashion 32x32, blur"])
    a[2, 0, 20, 11] = float("nan")
    a[4] = float("inf")
    assert metrics.haarpsi(a, b).isnan().tolist() == [False, False, True, False, True, False]


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 3, 2, 2), (2, 1, 2, 40), (2, 3, 9, 5)], ids=str)
def test_images_smaller_than_the_largest_filter_have_a_value(shape):
    a, b = torch.rand(2, *shape) * 2 - 1
    assert ((metrics.haarpsi(a, b) > 0) & (metrics.haarpsi(a, b) <= 1)).all()
    assert metrics.haarpsi(a, a).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_more_noise_is_less_alike(all_test_images):
    clean = EIGHT_BITS.to_unit(all_test_images[:200])
    means = [
        metrics.haarpsi(*(torch.from_numpy(of) for of in (parse_noise(f"gaussian:{std}").fixed(clean, seed=1), clean)))
        for std in (5, 15, 30, 60)
    ]
    assert all((less > more).all() for less, more in itertools.pairwise(means))


def test_the_noisy_test_images_have_the_mean_that_the_authors_code_gives(all_test_images):
    clean = EIGHT_BITS.to_unit(all_test_images)
    noisy = parse_noise("gaussian:30").fixed(clean, seed=NOISE_SEEDS["test"])
    value = metrics.haarpsi(torch.from_numpy(noisy), torch.from_numpy(clean)).mean().item()
    assert value == pytest.approx(0.468829, abs=2e-5)
