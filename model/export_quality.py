"""Measures an exported folder: L1, SSIM, PSNR and HaarPSI of noisy, denoised and clean images.

SSIM and PSNR are scikit-image's numbers, so that they do not depend on the code of the training. HaarPSI, which is not
in scikit-image, is that of model.metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from model.denoise import DenoiseError, Denoiser, verify_files
from model.metrics import EXACT_DB, haarpsi

from .common.errors import ConfigError
from .common.text import sanitize_for_terminal
from .data.image_reading import read_image
from .data.image_sets import ImagePairs
from .data.pixel_format import EIGHT_BITS, PixelFormat
from .latency import Latency
from .picture_strip import SCALE, split_strip

ROWS = {"noisy": "Noisy images", "denoised": "Denoised", "ground_truth": "Ground truth"}
_STACK, _WINDOW = 500, 11  # images measured at once; pixels a side
_HAAR_STACK = 100
_TOLERANCES = {"l1": 1e-3, "ssim": 1e-3, "psnr_db": 0.02, "haarpsi": 1e-3}  # onnxruntime differs between machines
SLIDES_TEST = {"ssim": 0.871, "psnr_db": 26.09}  # each the better one of the slides' two networks


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Means over images."""

    l1: float  # on [-1, 1]
    ssim: float
    psnr_db: float  # infinite for the ground truth itself
    haarpsi: float

    def as_dict(self) -> dict[str, float | str]:
        """JSON-ready: infinity is the string "inf"."""
        psnr_db = self.psnr_db if math.isfinite(self.psnr_db) else str(self.psnr_db)
        return {"l1": self.l1, "ssim": self.ssim, "psnr_db": psnr_db, "haarpsi": self.haarpsi}


def quality(
    images: np.ndarray, clean: np.ndarray, pixel_format: PixelFormat = EIGHT_BITS, has_noise: np.ndarray | None = None
) -> Quality:
    """Measure images against clean ones of the same shape.

    Args:
        images: (N, C, H, W) float32 in [-1, 1].
        pixel_format: PSNR and SSIM of 16-bit and float32 images are of the values that their files would have; those of
            8-bit images, as in the slides, are on [-1, 1], and so are L1 and HaarPSI of all.
        has_noise: (N,) bool, the images that count for PSNR, as in model.metrics; None: all.
    """
    l1, haar, width = float(np.abs(images - clean).mean()), _mean_haarpsi(images, clean), 2.0
    if pixel_format.dtype != "uint8":
        images, clean = (pixel_format.from_unit(column).astype(np.float64) for column in (images, clean))
        width = pixel_format.high - pixel_format.low
    counted = slice(None) if has_noise is None or not has_noise.any() else has_noise
    pairs = zip(images[counted], clean[counted], strict=True)
    with np.errstate(divide="ignore"):
        psnr_db = np.array([peak_signal_noise_ratio(truth, image, data_range=width) for image, truth in pairs])
    mean_db = psnr_db.mean() if np.isinf(psnr_db).all() else np.minimum(psnr_db, EXACT_DB).mean()
    ssim = [_ssim(images[i : i + _STACK], clean[i : i + _STACK], width) for i in range(0, len(images), _STACK)]
    return Quality(l1=l1, ssim=float(np.concatenate(ssim).mean()), psnr_db=float(mean_db), haarpsi=haar)


def _ssim(images: np.ndarray, clean: np.ndarray, width: float) -> np.ndarray:
    """SSIM of each channel of each image, (N, C).

    scikit-image measures all channels as one tall image, in a fifth of the time. The means use only positions whose
    window lies within one channel, so the values are the same.
    """
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


def _mean_haarpsi(images: np.ndarray, clean: np.ndarray) -> float:
    stacks = zip(*(torch.split(torch.from_numpy(of), _HAAR_STACK) for of in (images, clean)), strict=True)
    return float(torch.cat([haarpsi(*stack) for stack in stacks]).mean())


def evaluate(denoiser: Denoiser, images: ImagePairs, noise: str, split: str) -> dict[str, Any]:
    """The table of one split. Noise, unless it is real, is drawn from the split's fixed seed."""
    noisy, clean = images.with_noise(noise, split)
    columns = {"noisy": noisy, "denoised": denoiser.batch(noisy), "ground_truth": clean}
    has_noise = (noisy != clean).any(axis=(1, 2, 3))
    rows = {name: quality(column, clean, images.pixel_format, has_noise).as_dict() for name, column in columns.items()}
    return {"images": len(images), **rows}


def measure_strip(denoiser: Denoiser, path: Path) -> dict[str, Any]:
    """Measure the model on the noisy images of its export's picture strip. Raises ImageError, ValueError."""
    pixels = read_image(path).pixels[::SCALE, ::SCALE]
    noisy, clean = (_as_floats(column) for column in split_strip(pixels)[:2])
    return {"file": path.name, "images": len(noisy), **quality(denoiser.batch(noisy), clean).as_dict()}


def _as_floats(pictures: np.ndarray) -> np.ndarray:
    """uint8 (N, S, S) or (N, S, S, C) to float32 (N, C, S, S) in [-1, 1]."""
    planes = pictures[:, None] if pictures.ndim == 3 else pictures.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(planes, np.float32) / np.float32(127.5) - 1


def verify_export(folder: Path) -> dict[str, Any]:
    """Check every file's digest and the model's figures on its picture strip, and return the manifest.

    Raises:
        DenoiseError: a file differs, or the model computes something else on this machine.
    """
    manifest = verify_files(folder)
    expected = manifest.get("strip")
    if expected is None:
        raise DenoiseError(
            f"{folder}: its manifest has no figures of its picture strip; export it again with this version"
        )
    try:
        measured = measure_strip(Denoiser(folder), folder / expected["file"])
    except ConfigError:
        raise
    except ValueError as error:
        raise DenoiseError(f"{folder / expected['file']}: is not the picture strip of an export ({error})") from error
    wrong = []
    for name, tolerance in _TOLERANCES.items():
        if name == "haarpsi" and name not in expected:  # an older export
            continue
        mine, theirs = float(measured[name]), float(expected[name])  # "inf" and "nan" are strings
        if not abs(mine - theirs) <= tolerance:
            wrong.append(f"{name} {mine:.4f} instead of {theirs:.4f}")
    if wrong:
        raise DenoiseError(
            f"{folder}: the model's figures on this machine differ from those of its export: {', '.join(wrong)}"
        )
    return manifest


def quality_table(splits: Mapping[str, dict[str, Any] | None]) -> str:
    """Markdown in the slides' order of rows and columns, with a warning where denoising makes images worse."""
    lines = []
    for split, rows in splits.items():
        if rows is None:
            continue
        has_haarpsi = all("haarpsi" in rows[name] for name in ROWS)  # older exports lack it
        lines.append(f"| {split}, {rows['images']:,} images | L1 (MAE) | SSIM | PSNR dB |{' HaarPSI |' * has_haarpsi}")
        lines.append("|---|---|---|---|" + "---|" * has_haarpsi)
        for name, title in ROWS.items():
            row = rows[name]
            last = f" {row['haarpsi']:.4f} |" if has_haarpsi else ""
            lines.append(f"| {title} | {row['l1']:.4f} | {row['ssim']:.4f} | {float(row['psnr_db']):.2f} |{last}")
        noisy, denoised = (float(rows[name]["psnr_db"]) for name in ("noisy", "denoised"))
        if denoised < noisy:
            lines += ["", f"WORSE than the noisy images, by {noisy - denoised:.2f} dB on {split}: do not use it."]
        lines.append("")
    return "\n".join(lines).rstrip()


def network_table(manifest: Mapping[str, Any]) -> str:
    """Markdown: size, latency and PSNR of an exported network, and of the float32 one that it was made of.

    Empty for an export of an old version, which has no latency.
    """
    if manifest.get("latency") is None:
        return ""
    networks = (
        [manifest] if manifest.get("float32") is None else [{"precision": "fp32", **manifest["float32"]}, manifest]
    )
    lines = ["| network | MB | median ms | 95th percentile ms | PSNR dB |", "|---|---|---|---|---|"]
    for network in networks:
        latency = Latency.from_dict(network["latency"])
        tables = network["metrics"].get("test"), network["metrics"].get("validation")
        rows: dict[str, Any] = next((each for each in tables if each is not None), {})
        psnr = f"{float(rows['denoised']['psnr_db']):.2f}" if rows else "not measured"
        name = sanitize_for_terminal(network["precision"])
        lines.append(f"| {name} | {network['size_mb']:.2f} | {latency.median_ms:.3g} | {latency.p95_ms:.3g} | {psnr} |")
    lines += ["", f"Latency of one image, in memory: {sanitize_for_terminal(latency.conditions)}."]
    if manifest.get("loss") is not None:
        loss = float(manifest["loss"]["psnr_db"])
        change = f"loses {loss:.3f} dB" if loss >= 0.0005 else f"gains {max(-loss, 0.0):.3f} dB"
        lines.append(f"{name} {change} on the validation images.")
    return "\n".join(lines)


def compare_with_slides(test: dict[str, Any]) -> str:
    """A sentence that says whether the test row beats both of the slides' best numbers."""
    row = test["denoised"]
    won = row["psnr_db"] > SLIDES_TEST["psnr_db"] and row["ssim"] > SLIDES_TEST["ssim"]
    verdict = "beats" if won else "DOES NOT BEAT"
    return (
        f"PSNR {row['psnr_db']:.2f} dB and SSIM {row['ssim']:.4f} on test: {verdict} both of the slides' numbers "
        f"({SLIDES_TEST['psnr_db']} dB, {SLIDES_TEST['ssim']})"
    )
