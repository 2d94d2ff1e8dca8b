"""Quality of images on [-1, 1] in torch: L1, PSNR and SSIM. model.export_quality measures exports by scikit-image."""

from __future__ import annotations

import functools

import torch

DATA_RANGE = 2.0
EXACT_DB = 100.0  # an error of 1e-5 of the range, the precision of float32 on [-1, 1]
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2


def l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of each image, (N,), of two batches (N, C, H, W)."""
    return (a - b).abs().mean(dim=(1, 2, 3))


def psnr_db(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, (N,), of two batches (N, C, H, W); infinite where equal."""
    return 10 * torch.log10(DATA_RANGE**2 / (a - b).square().mean(dim=(1, 2, 3)))


def mean_psnr_db(images: torch.Tensor, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Mean PSNR in dB of images (N, C, H, W) against the clean ones.

    Images without noise (such as black ones with Poisson noise) do not count: their infinite PSNR would be the mean. An
    image that is restored exactly counts 100 dB.
    """
    has_noise = (noisy != clean).flatten(1).any(dim=1)
    each = psnr_db(images, clean).clamp(max=EXACT_DB)
    counts = torch.where(has_noise.any(), has_noise, True).to(each.dtype)  # a branch would synchronise with the device
    return (each * counts).sum() / counts.sum()


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image (Wang et al. 2004), (N,), of two float32 batches (N, C, H, W).

    11x11 Gaussian window, sigma 1.5, valid positions only, population covariance: the numbers of scikit-image's
    structural_similarity(..., gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2) and of
    tf.image.ssim(..., max_val=2). Differentiable. Raises ValueError for images below 11 pixels.
    """
    if min(a.shape[-2:]) < _WINDOW:
        raise ValueError(f"SSIM needs images of at least {_WINDOW}x{_WINDOW} pixels, not {tuple(a.shape[-2:])}")
    # The window is separable, and filtering is two matrix products: several times faster on CPUs than a convolution
    # with one channel, and in float32 on GPUs, where convolutions default to TF32 (10 bits).
    rows = _window_matrix(a.shape[-2], a.device)
    columns = _window_matrix(a.shape[-1], a.device)
    moments = torch.stack([a, b, a * a + b * b, a * b])
    mean_a, mean_b, power, product = rows @ moments @ columns.T
    means_product, means_power = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    luminance = (2 * means_product + _C1) / (means_power + _C1)
    structure = (2 * (product - means_product) + _C2) / (power - means_power + _C2)
    similarity: torch.Tensor = luminance * structure
    return similarity.mean(dim=(1, 2, 3))


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # the cached matrix may be created in validation and used in training
def _window_matrix(size: int, device: torch.device) -> torch.Tensor:
    """(size - 10, size): row i weighs the pixels i to i + 10."""
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    window = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    matrix = torch.zeros(size - _WINDOW + 1, size, dtype=torch.float64)
    for i in range(len(matrix)):
        matrix[i, i : i + _WINDOW] = window / window.sum()
    return matrix.float().to(device)
