import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from model import losses
from model.config import TrainConfig
from model.data.noise import parse_noise
from model.data.pixel_format import EIGHT_BITS


def cross_entropy(logits: np.ndarray, label: float) -> float:
    probability = 1 / (1 + np.exp(-logits))
    return float(-(label * np.log(probability) + (1 - label) * np.log(1 - probability)).mean())


@pytest.mark.parametrize(
    ("loss", "label"),
    [(losses.generator_adversarial, 1.0), (losses.discriminator_real, 1.0), (losses.discriminator_fake, 0.0)],
    ids=["adversarial", "real", "generated"],
)
def test_the_adversarial_losses_are_sigmoid_cross_entropy(loss, label):
    logits = np.random.default_rng(0).normal(0, 3, (4, 1, 6, 6))
    assert loss(torch.from_numpy(logits)).item() == pytest.approx(cross_entropy(logits, label), rel=1e-9)


@pytest.mark.parametrize("kind", ["least_squares", "hinge"])
def test_the_other_adversarial_losses_are_those_of_their_papers(kind):
    logits = np.random.default_rng(0).normal(0, 3, (4, 1, 6, 6))
    expected = {
        "least_squares": [((logits - 1) ** 2).mean(), ((logits - 1) ** 2).mean(), (logits**2).mean()],
        "hinge": [-logits.mean(), np.maximum(0, 1 - logits).mean(), np.maximum(0, 1 + logits).mean()],
    }[kind]
    given = [
        loss(torch.from_numpy(logits), kind).item()
        for loss in (losses.generator_adversarial, losses.discriminator_real, losses.discriminator_fake)
    ]
    np.testing.assert_allclose(given, expected, rtol=1e-9)


def test_a_certain_discriminator_gives_large_but_finite_losses():
    logits = torch.full((2, 1, 6, 6), -500.0)
    assert losses.generator_adversarial(logits).item() == 500
    assert losses.discriminator_fake(logits).item() == 0


@pytest.mark.parametrize(
    ("config", "l1_part", "ssim_part", "mse_part"),
    [
        (TrainConfig(loss="l1", l1_weight=70.0, ssim_weight=9.0), 70, 0, 0),
        (TrainConfig(loss="ssim", l1_weight=70.0, ssim_weight=9.0), 0, 9, 0),
        (TrainConfig(loss="both", l1_weight=70.0, ssim_weight=9.0), 70, 9, 0),
        (TrainConfig(loss="mse", mse_weight=30.0), 0, 0, 30),
    ],
    ids=lambda value: getattr(value, "loss", str(value)),
)
def test_the_reconstruction_loss_is_the_weighted_sum_of_what_takes_part(config, l1_part, ssim_part, mse_part, images):
    clean = EIGHT_BITS.to_unit(images.validation.clean[:8])
    noisy = parse_noise("gaussian:30").fixed(clean, seed=1)
    l1 = np.abs(noisy - clean).mean(dtype=np.float64)
    settings = {"data_range": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = np.mean([structural_similarity(a[0], b[0], **settings) for a, b in zip(noisy, clean, strict=True)])
    mse = ((noisy - clean) ** 2).mean(dtype=np.float64)
    loss = losses.reconstruction(torch.from_numpy(noisy), torch.from_numpy(clean), config)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(l1_part * l1 + ssim_part * (1 - ssim) + mse_part * mse, rel=1e-5)
