import pytest
import torch
from torch import nn

from model.discriminator import Discriminator

PATCHES = [34, 14]


def make(patch: int, *, channels: int = 1) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(channels=channels, width=8, patch=patch)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", PATCHES)
def test_images_of_32_pixels_give_the_slides_grid_of_6_by_6(patch, channels):
    pair = torch.randn(2, 2, channels, 32, 32)
    assert make(patch, channels=channels)(*pair).shape == (2, 1, 6, 6)


@pytest.mark.parametrize("patch", PATCHES)
def test_one_logit_sees_exactly_its_patch_of_both_images(patch):
    # In eval mode: BatchNorm's statistics would let every logit see the whole batch.
    discriminator = make(patch).eval().double()
    noisy, candidate = torch.randn(2, 1, 1, 128, 128, dtype=torch.float64).requires_grad_().unbind()
    logits = discriminator(noisy, candidate)
    middle = logits.shape[2] // 2
    gradients = torch.autograd.grad(logits[0, 0, middle, middle], (noisy, candidate))
    for gradient in gradients:
        rows, columns = (gradient[0, 0].abs().sum(dim=dim).nonzero().flatten() for dim in (1, 0))
        assert 0 < rows[0] < rows[-1] < 127  # the border cuts nothing off
        assert len(rows) == len(columns) == rows[-1] - rows[0] + 1 == patch


@pytest.mark.parametrize("patch", PATCHES)
def test_batch_norm_is_in_the_middle_blocks_only(patch):
    convolutions, normed = [], []
    for layer in make(patch).layers:
        if isinstance(layer, nn.Conv2d):
            convolutions.append(layer)
            normed.append(False)
        elif isinstance(layer, nn.BatchNorm2d):
            normed[-1] = True
    assert normed == [False, *[True] * (len(convolutions) - 2), False]


def test_logits_are_float32_under_autocast():
    pair = torch.randn(2, 1, 1, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert make(14)(*pair).dtype == torch.float32
