import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.config import ConfigError
from model.data import to_unit
from model.noise import GaussianNoise


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [("gaussian:30", 30, 30), ("gaussian:30-50", 30, 50), ("gaussian:0.5-255", 0.5, 255), ("gaussian:7-7", 7, 7)],
)
def test_a_spec_gives_its_standard_deviations(spec, low, high):
    assert GaussianNoise.parse(spec) == GaussianNoise(low, high)


@pytest.mark.parametrize(
    "spec",
    [
        *("", "gaussian", "gaussian:", "gaussian:0", "gaussian:-5", "gaussian:256", "gaussian:50-30", "gaussian:30-"),
        *("gaussian:1.2.3", "gaussian:.", "gaussian:nan", "gaussian:inf", "gaussian:30 ", "gaussian:30\n"),
        *("Gaussian:30", "poisson:30", "gaussian:30-50-70", "gaussian:0-30", "gaussian:３０"),  # noqa: RUF001
    ],
)
def test_a_bad_spec_is_named_and_shown_a_right_one(spec):
    with pytest.raises(ConfigError) as caught:
        GaussianNoise.parse(spec)
    assert str(caught.value).startswith(f"noise={spec}: ")
    assert "gaussian:30" in str(caught.value)


@given(st.text() | st.from_regex(r"gaussian:[-0-9.]{0,12}", fullmatch=True))
def test_any_text_is_a_valid_noise_or_a_config_error(spec):
    try:
        noise = GaussianNoise.parse(spec)
    except ConfigError:
        return
    assert 0 < noise.std_low <= noise.std_high <= 255


def numpy_noise(clean: np.ndarray) -> np.ndarray:
    """L' = clip(L + N) on the scale of 8-bit images, as the slides have it."""
    pixels = clean.astype(np.float64) + np.random.default_rng(0).normal(0, 30, clean.shape)
    return np.clip(pixels, 0, 255) / 127.5 - 1


@pytest.mark.parametrize("kind", ["drawn", "fixed"])
def test_noise_on_real_images_has_the_statistics_of_numpys(kind, images):
    noise, clean = GaussianNoise.parse("gaussian:30"), to_unit(images.train[:500])
    if kind == "fixed":
        noisy = noise.fixed(clean, seed=5)
    else:
        noisy = noise(torch.from_numpy(clean), torch.Generator().manual_seed(5)).numpy()
    expected = numpy_noise(images.train[:500])
    assert noisy.dtype == np.float32
    assert noisy.shape == clean.shape
    assert np.abs(noisy).max() == 1
    for statistic in (lambda d: d.mean(), lambda d: d.std(), lambda d: np.abs(d).mean(), lambda d: (d > 0.4).mean()):
        assert statistic(noisy - clean) == pytest.approx(statistic(expected - clean), rel=0.015)


@pytest.mark.parametrize("kind", ["drawn", "fixed"])
def test_a_range_gives_each_image_its_own_standard_deviation(kind):
    noise, grey = GaussianNoise.parse("gaussian:30-50"), np.zeros((400, 1, 32, 32), np.float32)
    if kind == "fixed":
        noisy = noise.fixed(grey, seed=5)
    else:
        noisy = noise(torch.from_numpy(grey), torch.Generator().manual_seed(5)).numpy()
    stds = noisy.std(axis=(1, 2, 3), dtype=np.float64) * 127.5
    assert 28 < stds.min() < 31
    assert 47 < stds.max() < 53
    assert stds.mean() == pytest.approx(40, abs=1)
    assert stds.std() == pytest.approx(20 / math.sqrt(12), abs=0.7)


def test_drawn_noise_is_new_for_every_image_and_batch():
    noise, grey, draw = GaussianNoise.parse("gaussian:30"), torch.zeros(2, 1, 32, 32), torch.Generator().manual_seed(1)
    first, second = noise(grey, draw), noise(grey, draw)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("spec", ["gaussian:30", "gaussian:30-50"])
def test_fixed_noise_depends_on_seed_and_index_alone(spec, images):
    noise, clean = GaussianNoise.parse(spec), to_unit(images.validation)
    noisy = noise.fixed(clean, seed=1)
    assert np.array_equal(noise.fixed(clean[:7], seed=1), noisy[:7])
    assert not np.array_equal(noise.fixed(clean, seed=2), noisy)
    grey = noise.fixed(np.zeros_like(clean[:2]), seed=1)
    assert not np.array_equal(grey[0], grey[1])
    unclipped = np.abs(noisy[0]) < 1
    np.testing.assert_allclose((noisy[0] - clean[0])[unclipped], grey[0][unclipped], atol=1e-6)


def test_fixed_noise_is_what_it_always_was():
    # Figures of searches and exports are comparable only as long as these numbers stay.
    noisy = GaussianNoise.parse("gaussian:30").fixed(np.zeros((2, 1, 1, 2), np.float32), seed=2)
    np.testing.assert_allclose(noisy.ravel(), [0.3764726, -0.1751540, -0.0845349, 0.3521821], atol=1e-6)
