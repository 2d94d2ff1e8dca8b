import json
import math
from dataclasses import asdict, replace
from typing import get_args

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn.functional import conv2d

from model import export_quality, metrics
from model.data.image_sets import NOISE_SEEDS
from model.data.noise import parse_noise
from model.data.pixel_format import EIGHT_BITS
from model.export_quality import compare_with_slides, quality, quality_table
from model.training_report import EvalReport, Objective, failure_reason, objective_of_images, objective_value

SSIM_SETTINGS = {"data_range": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@pytest.fixture(scope="module", params=["32x32 grey", "64x48 RGB"])
def pair(request, images, mosaic) -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean, (N, C, H, W)."""
    if request.param == "32x32 grey":
        clean = EIGHT_BITS.to_unit(images.validation.clean[:40])
    else:
        tiles = [mosaic[y : y + 64, x : x + 48] for y in (0, 70, 136) for x in (0, 50, 130, 251)]
        clean = EIGHT_BITS.to_unit(np.stack(tiles).transpose(0, 3, 1, 2))
    return parse_noise("gaussian:30").fixed(clean, seed=1), clean


def test_l1_psnr_and_ssim_agree_with_scikit_image(pair, monkeypatch):
    noisy, clean = pair
    monkeypatch.setattr(export_quality, "_STACK", 7)
    l1 = np.abs(noisy - clean).mean(axis=(1, 2, 3))
    psnr_db = [peak_signal_noise_ratio(b, a, data_range=2) for a, b in zip(noisy, clean, strict=True)]
    ssim = [structural_similarity(a, b, channel_axis=0, **SSIM_SETTINGS) for a, b in zip(noisy, clean, strict=True)]
    tensors = torch.from_numpy(noisy), torch.from_numpy(clean)
    np.testing.assert_allclose(metrics.l1(*tensors), l1, atol=1e-6)
    np.testing.assert_allclose(metrics.psnr_db(*tensors), psnr_db, atol=1e-4)
    np.testing.assert_allclose(metrics.ssim(*tensors), ssim, atol=1e-4)
    measured = quality(noisy, clean)
    assert measured.l1 == pytest.approx(np.mean(l1), abs=1e-6)
    assert measured.psnr_db == pytest.approx(np.mean(psnr_db), abs=1e-6)
    assert measured.ssim == pytest.approx(np.mean(ssim), abs=1e-6)
    assert measured.haarpsi == pytest.approx(metrics.haarpsi(*tensors).mean().item(), abs=1e-6)


def test_what_has_no_noise_is_left_out_of_psnr_and_what_is_exact_does_not_outweigh_the_rest(pair):
    noisy, clean = (array[:8].copy() for array in pair)
    denoised = clean + 0.3 * (noisy - clean)
    clean[:3] = noisy[:3] = -1.0  # black under Poisson's noise
    denoised[:3] += 0.01
    denoised[3] = clean[3]
    one_by_one = [peak_signal_noise_ratio(b, a, data_range=2) for a, b in zip(denoised[4:], clean[4:], strict=True)]
    expected = pytest.approx((sum(one_by_one) + 100) / 5, abs=1e-4)
    assert metrics.mean_psnr_db(*map(torch.from_numpy, (denoised, noisy, clean))).item() == expected
    assert quality(denoised, clean, has_noise=np.arange(8) > 2).psnr_db == expected
    assert quality(clean, clean).psnr_db == math.inf


def conv_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The textbook's: moments by a convolution with the 11x11 window (Wang et al. 2004)."""
    offsets = torch.arange(-5, 6, dtype=a.dtype)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    kernel = torch.outer(window, window) / window.sum() ** 2

    def mean(x: torch.Tensor) -> torch.Tensor:
        return conv2d(x.flatten(0, 1)[:, None], kernel[None, None])

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def test_the_gradient_of_ssim_is_that_of_a_float64_convolution(pair):
    noisy, clean = (torch.from_numpy(array[:8]) for array in pair)
    ours = noisy.clone().requires_grad_()
    metrics.ssim(ours, clean).mean().backward()
    theirs = noisy.double().requires_grad_()
    conv_ssim(theirs, clean.double()).backward()
    assert theirs.grad.abs().max() > 0
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=1e-3 * theirs.grad.abs().max().item())


def test_ssim_can_be_trained_on_after_it_was_measured_in_inference_mode(pair):
    # Trials share a process: an L1 trial only measures SSIM, the next one may train on it.
    noisy, clean = (torch.from_numpy(array[:2]) for array in pair)
    metrics._window_matrix.cache_clear()
    with torch.inference_mode():
        metrics.ssim(noisy, clean)
    noisy = noisy.clone().requires_grad_()
    metrics.ssim(noisy, clean).sum().backward()
    assert noisy.grad.abs().max() > 0


def test_equal_images_are_perfect(pair):
    clean = torch.from_numpy(pair[1])
    assert metrics.l1(clean, clean).max() == 0
    assert (metrics.psnr_db(clean, clean) == math.inf).all()
    torch.testing.assert_close(metrics.ssim(clean, clean), torch.ones(len(clean)))
    assert quality(pair[1], pair[1]).as_dict() == {
        "l1": 0.0,
        "ssim": 1.0,
        "psnr_db": "inf",
        "haarpsi": pytest.approx(1, abs=1e-6),
    }


def test_ssim_refuses_images_below_its_window():
    assert metrics.ssim(*torch.zeros(2, 1, 1, 11, 11)).shape == (1,)
    with pytest.raises(ValueError, match="11x11"):
        metrics.ssim(*torch.zeros(2, 1, 1, 32, 10))


def test_the_noisy_test_images_measure_as_on_the_slides(all_test_images):
    clean = EIGHT_BITS.to_unit(all_test_images)
    noisy = parse_noise("gaussian:30").fixed(clean, seed=NOISE_SEEDS["test"])
    tensors = torch.from_numpy(noisy), torch.from_numpy(clean)
    assert metrics.l1(*tensors).mean().item() == pytest.approx(0.1238, abs=0.001)
    assert metrics.ssim(*tensors).mean().item() == pytest.approx(0.6815, abs=0.003)
    assert metrics.psnr_db(*tensors).mean().item() == pytest.approx(20.55, abs=0.03)


def row(ssim: float, psnr_db: float | str) -> dict[str, float | str]:
    return {"l1": 0.05, "ssim": ssim, "psnr_db": psnr_db, "haarpsi": ssim - 0.1}


def test_the_table_has_the_slides_rows_and_columns():
    test = {"images": 10_000, "noisy": row(0.68, 20.5), "denoised": row(0.88, 26.4), "ground_truth": row(1.0, "inf")}
    assert quality_table({"validation": None, "test": test}).splitlines() == [
        "| test, 10,000 images | L1 (MAE) | SSIM | PSNR dB | HaarPSI |",
        "|---|---|---|---|---|",
        "| Noisy images | 0.0500 | 0.6800 | 20.50 | 0.5800 |",
        "| Denoised | 0.0500 | 0.8800 | 26.40 | 0.7800 |",
        "| Ground truth | 0.0500 | 1.0000 | inf | 0.9000 |",
    ]


def test_a_model_that_makes_images_worse_is_told_as_that_below_its_table():
    test = {"images": 10, "noisy": row(0.68, 20.5), "denoised": row(0.7, 18.25), "ground_truth": row(1.0, "inf")}
    assert quality_table({"test": test}).splitlines()[-2:] == [
        "",
        "WORSE than the noisy images, by 2.25 dB on test: do not use it.",
    ]
    clean = {**test, "noisy": row(1.0, "inf"), "denoised": row(1.0, "inf")}
    assert "WORSE" not in quality_table({"test": clean})


@pytest.mark.parametrize(
    ("ssim", "psnr_db", "verdict"),
    [(0.88, 26.2, " beats "), (0.87, 26.2, "DOES NOT BEAT"), (0.88, 26.0, "DOES NOT BEAT")],
)
def test_the_slides_are_beaten_by_both_numbers_only(ssim, psnr_db, verdict):
    assert verdict in compare_with_slides({"denoised": row(ssim, psnr_db)})


REPORT = EvalReport(
    epoch=2,
    images=40_000,
    ssim=0.8,
    psnr_db=25.0,
    l1=0.06,
    noisy_psnr_db=20.55,
    output_std=0.4,
    gen_total=8.0,
    gen_adversarial=2.0,
    gen_reconstruction=6.0,
    disc_real=0.5,
    disc_generated=0.4,
    seconds=4.0,
    eval_seconds=1.0,
)


def test_a_report_comes_back_from_json_as_it_was():
    assert REPORT.as_dict().items() <= asdict(REPORT).items()
    assert "haarpsi" not in REPORT.as_dict()
    assert replace(REPORT, haarpsi=0.8).as_dict() == asdict(replace(REPORT, haarpsi=0.8))
    assert repr(EvalReport.from_dict(json.loads(json.dumps(REPORT.as_dict(), allow_nan=False)))) == repr(REPORT)


def test_a_report_of_values_that_are_not_finite_is_valid_json_and_comes_back():
    report = replace(REPORT, psnr_db=math.inf, gen_total=-math.inf, ssim=math.nan)
    again = EvalReport.from_dict(json.loads(json.dumps(report.as_dict(), allow_nan=False)))
    assert again.psnr_db == math.inf
    assert again.gen_total == -math.inf
    assert math.isnan(again.ssim)
    assert again.as_dict() == report.as_dict()


def test_training_speed_counts_one_epochs_images():
    assert REPORT.images_per_second == 5_000
    assert replace(REPORT, seconds=0.5).images_per_second == 40_000
    assert replace(REPORT, seconds=0.0).images_per_second == math.inf


WORSE = {"psnr_db": 20.54}  # than the noisy input
DEAD = {"output_std": 0.009}
NO_WORSE = {"psnr_db": 20.55, "output_std": 0.01}


@pytest.mark.parametrize("name", ["ssim", "psnr_db", "l1", "gen_total", "disc_real", "disc_generated"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_value_that_is_not_finite_is_divergence_at_once(name, value):
    assert failure_reason([replace(REPORT, epoch=1, images=64, **{name: value})]) == "diverged"


def reports(*of: tuple[int, dict[str, float]]) -> list[EvalReport]:
    return [replace(REPORT, epoch=epoch, images=images, **bad) for epoch, (images, bad) in enumerate(of, start=1)]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ((30_001, WORSE), (60_000, WORSE), "collapsed"),
        ((30_001, DEAD), (60_000, DEAD), "collapsed"),
        ((30_001, DEAD), (60_000, WORSE), "collapsed"),
        ((30_000, WORSE), (60_000, WORSE), None),  # the first was still within its grace
        ((30_001, {}), (60_000, WORSE), None),  # one bad epoch is no reason
        ((30_001, WORSE), (60_000, {}), None),
        ((30_001, NO_WORSE), (60_000, NO_WORSE), None),
    ],
)
def test_a_training_that_never_lived_has_30000_images_before_two_bad_epochs_are_a_collapse(first, second, reason):
    assert failure_reason(reports((64, WORSE), first, second)) == reason


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([{}, WORSE, DEAD], "collapsed"),
        ([WORSE, {}, WORSE, WORSE], "collapsed"),
        ([{}, WORSE], None),
        ([{}, WORSE, {}, WORSE], None),
        ([WORSE, WORSE, WORSE], None),
        # A residual output begins at the noisy input: it has not lived yet (benchmarks/tables/photographs.json.gz).
        ([NO_WORSE, {"psnr_db": 20.65}, WORSE, WORSE], None),
        ([{"psnr_db": 21.56}, WORSE, WORSE], "collapsed"),
    ],
)
def test_who_lived_once_has_collapsed_after_two_bad_epochs_in_a_row_whatever_the_number_of_images(bad, reason):
    assert failure_reason(reports(*((64 * epoch, of) for epoch, of in enumerate(bad, start=1)))) == reason


def test_after_the_last_epoch_one_bad_one_is_enough_for_who_lived_before():
    assert failure_reason(reports((64, {}), (128, WORSE)), is_last=True) == "collapsed"
    assert failure_reason(reports((64, WORSE), (128, {})), is_last=True) is None
    assert failure_reason(reports((64, WORSE), (128, WORSE)), is_last=True) is None


def test_no_or_one_report_is_no_reason_to_stop():
    assert failure_reason([]) is None
    assert failure_reason(reports((60_000, WORSE)), is_last=True) is None


def test_objectives_are_what_they_are_called():
    metrics = {"ssim": 0.8, "psnr_db": 24.0, "l1": 0.05, "haarpsi": 0.7}
    assert objective_value(metrics, "ssim") == 0.8
    assert objective_value(metrics, "psnr") == 24
    assert objective_value(metrics, "balanced") == pytest.approx(0.8 + 24 / 40)
    assert objective_value(metrics, "l1") == -0.05
    assert objective_value(metrics, "haarpsi") == 0.7


@pytest.mark.parametrize("objective", get_args(Objective))
def test_a_training_that_diverged_is_worse_than_any_that_did_not(objective):
    names = ("ssim", "psnr_db", "l1", "haarpsi")
    worst = objective_value(dict(zip(names, (-1.0, 0.0, 2.0, 0.0), strict=True)), objective)
    for value in (math.nan, math.inf, -math.inf):
        assert objective_value(dict.fromkeys(names, value), objective) <= worst


def test_the_values_of_the_images_have_the_metric_as_their_mean(pair):
    """Also where images without noise do not count for PSNR, and one is restored exactly."""
    noisy, clean = (torch.from_numpy(array[:8].copy()) for array in pair)
    clean[:3] = noisy[:3] = -1.0
    denoised = clean + 0.3 * (noisy - clean)
    denoised[3] = clean[3]
    shares = metrics.shares_of_psnr_db(denoised, noisy, clean)
    assert shares.mean().item() == pytest.approx(metrics.mean_psnr_db(denoised, noisy, clean).item(), rel=1e-6)
    assert (shares[:3] == 0).all()
    plain = metrics.shares_of_psnr_db(denoised[4:], noisy[4:], clean[4:])
    torch.testing.assert_close(plain, metrics.psnr_db(denoised[4:], clean[4:]))


@pytest.mark.parametrize("objective", get_args(Objective))
def test_the_objective_of_each_image_has_the_objective_as_its_mean(objective):
    each = {name: np.random.default_rng(1).random(50) for name in ("ssim", "psnr_db", "l1", "haarpsi")}
    means = {name: values.mean() for name, values in each.items()}
    assert objective_of_images(each, objective).mean() == pytest.approx(objective_value(means, objective))
