"""Quality of images on [-1, 1] in torch: L1, PSNR, SSIM and HaarPSI; for exports see model.export_quality."""

from __future__ import annotations

import functools

import torch
from torch.nn.functional import avg_pool2d, pad

DATA_RANGE = 2.0
EXACT_DB = 100.0  # an error of 1e-5 of the range, the precision of float32 on [-1, 1]
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
_HAAR_C, _HAAR_ALPHA, _HAAR_SCALES = 30.0, 4.2, 3  # of HaarPSI's paper, for images on 0 ... 255
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


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
    each, counts = _counted_psnr_db(images, noisy, clean)
    return (each * counts).sum() / counts.sum()


def shares_of_psnr_db(images: torch.Tensor, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """What each image adds, (N,), so that the mean is mean_psnr_db: 0 for images that do not count, and the others'
    PSNR is scaled up by as much. Where all count it is their PSNR."""
    each, counts = _counted_psnr_db(images, noisy, clean)
    return each * counts * (len(counts) / counts.sum())


def _counted_psnr_db(
    images: torch.Tensor, noisy: torch.Tensor, clean: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The PSNR of each image, (N,), and 1 for those that count, else 0."""
    has_noise = (noisy != clean).flatten(1).any(dim=1)
    each = psnr_db(images, clean).clamp(max=EXACT_DB)
    counts = torch.where(has_noise.any(), has_noise, True).to(each.dtype)  # a branch would synchronise with the device
    return each, counts


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


def haarpsi(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Haar wavelet-based perceptual similarity index of each image (Reisenhofer et al. 2018, arXiv 1607.06140), (N,).

    From 0 to 1, which equal images have: the numbers of the authors' haarPsi.py (github.com/rgcda/haarpsi) for the
    images on 0 ... 255.

    Args:
        a: float32 (N, C, H, W); grey or RGB.
        b: the same shape. The order of the two does not matter.
    """
    height, width = a.shape[-2:]
    images = pad((torch.cat([a, b]) + 1) * 127.5, (0, width % 2, 0, height % 2))
    halved = avg_pool2d(images, 2)  # as at a usual distance of an image from its viewer
    if halved.shape[1] == 3:
        red, green, blue = halved.unbind(1)
        halved = torch.stack([r * red + g * green + b * blue for r, g, b in _YIQ], dim=1)
    luma, chroma = halved[:, 0], halved[:, 1:]
    (row_sums, row_steps), (sums, steps) = (_haar_matrices(size, a.device) for size in halved.shape[-2:])
    edges = [
        torch.stack([row_steps[i] @ luma @ sums[i].T, row_sums[i] @ luma @ steps[i].T]).abs().chunk(2, dim=1)
        for i in range(_HAAR_SCALES)
    ]  # of a and b; horizontal and vertical ones, (2, N, h, w)
    similarity = (_haar_similarity(*edges[0]) + _haar_similarity(*edges[1])) / 2
    weights = torch.maximum(*edges[2])
    if chroma.shape[1]:
        colours = (row_sums[0] @ chroma @ sums[0].mT / 4).abs().chunk(2)
        similarity = torch.cat([similarity, _haar_similarity(*colours).mean(dim=1)[None]])
        weights = torch.cat([weights, weights.mean(dim=0, keepdim=True)])
    # From 1 - sigmoid, which keeps its digits in float32 where images are alike.
    total = weights.sum(dim=(0, 2, 3))
    missing = (torch.sigmoid(-_HAAR_ALPHA * similarity) * weights).sum(dim=(0, 2, 3)) / total
    values: torch.Tensor = (torch.log(1 / missing - 1) / _HAAR_ALPHA).square()
    return torch.where(total == 0, 1.0, values)  # two black images are equal, and have no edges


def _haar_similarity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (2 * x * y + _HAAR_C) / (x * x + y * y + _HAAR_C)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _haar_matrices(size: int, device: torch.device) -> torch.Tensor:
    """(2, scales, size, size): row i adds the 2, 4 or 8 pixels around i, or subtracts those before it from those after.

    The paper's filters are the outer products of the two. What is outside an image is black.
    """
    matrices = torch.zeros(2, _HAAR_SCALES, size, size)
    offsets = torch.arange(size) - torch.arange(size)[:, None]
    for scale in range(_HAAR_SCALES):
        half = 2**scale
        before, after = (offsets > -half) & (offsets <= 0), (offsets > 0) & (offsets <= half)
        matrices[0, scale] = (before | after).float()
        matrices[1, scale] = (after.float() - before.float()) / (2 * half)
    return matrices.to(device)
