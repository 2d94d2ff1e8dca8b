"""An exported folder -> the slides' table, by scikit-image: noisy, denoised, ground truth; L1, SSIM, PSNR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from model.denoise import DenoiseError, Denoiser, verify_files
from model.metrics import EXACT_DB

from .common.errors import ConfigError
from .data.image_reading import read_image
from .data.image_sets import ImagePairs
from .data.pixel_format import EIGHT_BITS, PixelFormat
from .picture_strip import SCALE, split_strip

ROWS = {"noisy": "Noisy images", "denoised": "Denoised", "ground_truth": "Ground truth"}
_STACK, _WINDOW = 500, 11  # images measured at once; pixels a side
_TOLERANCES = {"l1": 1e-3, "ssim": 1e-3, "psnr_db": 0.02}  # another machine's onnxruntime; it rounds otherwise
SLIDES_TEST = {"ssim": 0.871, "psnr_db": 26.09}  # the best of the slides' two networks, each for itself


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Means over images, each measured by itself."""

    l1: float  # on [-1, 1]
    ssim: float
    psnr_db: float  # infinite for the ground truth itself

    def as_dict(self) -> dict[str, float | str]:
        """JSON-ready: infinity is the string "inf"."""
        return {
            "l1": self.l1,
            "ssim": self.ssim,
            "psnr_db": self.psnr_db if math.isfinite(self.psnr_db) else str(self.psnr_db),
        }


def quality(
    images: np.ndarray, clean: np.ndarray, depth: PixelFormat = EIGHT_BITS, has_noise: np.ndarray | None = None
) -> Quality:
    """Of images (N, C, H, W) float32 in [-1, 1] against the clean ones.

    Args:
        images: what is measured.
        clean: what they should be.
        depth: of 16-bit and float32 images PSNR and SSIM are scikit-image's of the values that their files would have;
            of 8-bit ones, as in the slides, those on [-1, 1].
        has_noise: (N,) bool, those that PSNR is the mean of, as in model.metrics; None: all.
    """
    l1, width = float(np.abs(images - clean).mean()), 2.0
    if depth.dtype != "uint8":
        images, clean = (depth.from_unit(column).astype(np.float64) for column in (images, clean))
        width = depth.high - depth.low
    counted = slice(None) if has_noise is None or not has_noise.any() else has_noise
    pairs = zip(images[counted], clean[counted], strict=True)
    with np.errstate(divide="ignore"):
        psnr_db = np.array([peak_signal_noise_ratio(truth, image, data_range=width) for image, truth in pairs])
    mean_db = psnr_db.mean() if np.isinf(psnr_db).all() else np.minimum(psnr_db, EXACT_DB).mean()
    ssim = [_ssim(images[i : i + _STACK], clean[i : i + _STACK], width) for i in range(0, len(images), _STACK)]
    return Quality(l1=l1, ssim=float(np.concatenate(ssim).mean()), psnr_db=float(mean_db))


def _ssim(images: np.ndarray, clean: np.ndarray, width: float) -> np.ndarray:
    """scikit-image's, of each channel of each image (N, C). All of them are one tall image to it, which takes a fifth
    of the time: where the window lies within one of them, and nowhere else does its mean look, nothing changes."""
    _, similarity = structural_similarity(
        images.reshape(-1, images.shape[-1]),
        clean.reshape(-1, clean.shape[-1]),
        data_range=width,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    valid = slice(_WINDOW // 2, -(_WINDOW // 2))
    means: np.ndarray = similarity.reshape(images.shape)[:, :, valid, valid].mean(axis=(2, 3), dtype=np.float64)
    return means


def evaluate(denoiser: Denoiser, images: ImagePairs, noise: str, split: str) -> dict[str, Any]:
    """The table of one split; the noise, where it is not real, is drawn from the split's own fixed seed."""
    noisy, clean = images.with_noise(noise, split)
    columns = {"noisy": noisy, "denoised": denoiser.batch(noisy), "ground_truth": clean}
    has_noise = (noisy != clean).any(axis=(1, 2, 3))
    rows = {name: quality(column, clean, images.pixel_format, has_noise).as_dict() for name, column in columns.items()}
    return {"images": len(images), **rows}


def measure_strip(denoiser: Denoiser, path: Path) -> dict[str, Any]:
    """What the model makes of the noisy images of an export's picture: a few, which travel with it. Raises ImageError,
    ValueError."""
    pixels = read_image(path).pixels[::SCALE, ::SCALE]
    noisy, clean = (_as_floats(column) for column in split_strip(pixels)[:2])
    return {"file": path.name, "images": len(noisy), **quality(denoiser.batch(noisy), clean).as_dict()}


def _as_floats(pictures: np.ndarray) -> np.ndarray:
    """uint8 (N, S, S) or (N, S, S, C) to float32 (N, C, S, S) in [-1, 1]."""
    planes = pictures[:, None] if pictures.ndim == 3 else pictures.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(planes, np.float32) / np.float32(127.5) - 1


def verify_export(folder: Path) -> dict[str, Any]:
    """The manifest of an export that came from elsewhere, if every file has its digest, and the model does here what it
    did there. Raises DenoiseError."""
    manifest = verify_files(folder)
    there = manifest.get("strip")
    if there is None:
        raise DenoiseError(f"{folder}: its manifest has no figures of a few images; export it anew with this version")
    try:
        here = measure_strip(Denoiser(folder), folder / there["file"])
    except ConfigError:
        raise
    except ValueError as error:
        raise DenoiseError(f"{folder / there['file']}: is not the picture of an export ({error})") from error
    figures = {name: (float(here[name]), float(there[name])) for name in _TOLERANCES}  # "inf" and "nan" are strings
    wrong = [
        f"{name} {mine:.4f} instead of {theirs:.4f}"
        for name, (mine, theirs) in figures.items()
        if not abs(mine - theirs) <= _TOLERANCES[name]
    ]
    if wrong:
        raise DenoiseError(
            f"{folder}: the model does not do here what it did where it was exported: {', '.join(wrong)}"
        )
    return manifest


def quality_table(splits: Mapping[str, dict[str, Any] | None]) -> str:
    """As Markdown, in the slides' order of rows and columns; and a line where denoising makes images worse."""
    lines = []
    for split, rows in splits.items():
        if rows is None:
            continue
        lines += [f"| {split}, {rows['images']:,} images | L1 (MAE) | SSIM | PSNR dB |", "|---|---|---|---|"]
        for name, title in ROWS.items():
            row = rows[name]
            lines.append(f"| {title} | {row['l1']:.4f} | {row['ssim']:.4f} | {float(row['psnr_db']):.2f} |")
        noisy, denoised = (float(rows[name]["psnr_db"]) for name in ("noisy", "denoised"))
        if denoised < noisy:
            lines += ["", f"WORSE than the noisy images, by {noisy - denoised:.2f} dB on {split}: not to be used."]
        lines.append("")
    return "\n".join(lines).rstrip()


def compare_with_slides(test: dict[str, Any]) -> str:
    """One plain sentence: does the test row beat both of the slides' best numbers?"""
    row = test["denoised"]
    won = row["psnr_db"] > SLIDES_TEST["psnr_db"] and row["ssim"] > SLIDES_TEST["ssim"]
    verdict = "beats" if won else "DOES NOT BEAT"
    return (
        f"PSNR {row['psnr_db']:.2f} dB and SSIM {row['ssim']:.4f} on test: {verdict} both of the slides' numbers "
        f"({SLIDES_TEST['psnr_db']} dB, {SLIDES_TEST['ssim']})"
    )
