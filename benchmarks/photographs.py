"""RGB photographs: python benchmarks/photographs.py --to DIR [--picture FILE]

Trains on crops of 64 of some of the photographs that scikit-image ships, noise gaussian:30, and denoises whole others:
beside scikit-image's non-local means, total variation and wavelets, each given the noise's true standard deviation and
the parameter that is best on a photograph of neither set. And whether tiles leave seams: the error along their borders
beside the error elsewhere, the gain on whole photographs beside the gain on their crops. A finished training is not
done again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image
from skimage.metrics import structural_similarity
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

from model.data import Pairs
from model.denoise import Denoiser
from model.evaluate import quality
from model.pictures import strip

ROOT = Path(__file__).parent.parent
NOISE, SIGMA, CROP = "gaussian:30", 30 / 255, 64
TRAIN = ["motorcycle_left", "motorcycle_right", "ihc", "hubble_deep_field", "retina"]
TRAIN += ["camera", "brick", "grass", "gravel", "coins", "page", "moon"]  # grey ones
VALIDATION, TEST = ["rocket"], ["astronaut", "chelsea", "coffee"]
EPOCHS, IMAGES = 16, 2_000
SETTINGS = (
    "blocks=1 depth=3 width=16 output=residual dropout=0 loss=mse adversarial=none batch_size=16 "
    "lr_schedule=cosine lr_g=0.002 beta1=0.9"
)
SHOWN = (slice(60, 188), slice(150, 278))  # of each test photograph


def photograph(name: str) -> Image.Image:
    """As RGB; one of those that scikit-image's wheel has in itself."""
    (path,) = Path(skimage.data.__file__).parent.glob(f"{name}.*")
    return Image.open(path).convert("RGB")


def write_folder(folder: Path) -> None:
    """train/, validation/ and test/, as `--data` takes them."""
    for split, names in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            photograph(name).save(folder / split / f"{name}.png")


def train(to: Path) -> dict[str, Any]:
    """What `hpo train --json` tells; its export is in training/export."""
    done = to / "training.json"
    if not done.exists():
        write_folder(to / "photographs")
        command = [sys.executable, "-m", "hpo.cli", "train", "--to", str(to / "training"), "--export", "--json"]
        command += ["--data", str(to / "photographs"), "--crop", str(CROP), "--noise", NOISE]
        command += ["--epochs", str(EPOCHS), "--images-per-epoch", str(IMAGES)]
        command += [word for setting in SETTINGS.split() for word in ("--set", setting)]
        done.write_bytes(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    result: dict[str, Any] = json.loads(done.read_text())
    return result


def noised(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean (1, 3, H, W) in [-1, 1]."""
    pixels = np.asarray(photograph(name)).transpose(2, 0, 1)
    return Pairs(pixels[None]).noised(NOISE, "test")


# --- scikit-image's ---------------------------------------------------------------------------------------------------

# Each takes (H, W, 3) in [0, 1] and its parameter.
CLASSICAL: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], tuple[float, ...]]] = {
    "non-local means": (
        lambda image, h: denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=h * SIGMA, sigma=SIGMA, fast_mode=True, channel_axis=2
        ),
        (0.4, 0.5, 0.6, 0.7, 0.8, 1.0),
    ),
    "total variation": (
        lambda image, weight: denoise_tv_chambolle(image, weight=weight, channel_axis=2),
        (0.05, 0.075, 0.1, 0.125, 0.15, 0.2),
    ),
    "wavelets, BayesShrink": (
        lambda image, factor: denoise_wavelet(
            image, sigma=factor * SIGMA, method="BayesShrink", convert2ycbcr=True, rescale_sigma=True, channel_axis=2
        ),
        (0.5, 0.75, 1.0, 1.25, 1.5),
    ),
    "wavelets, VisuShrink": (
        lambda image, factor: denoise_wavelet(
            image, sigma=factor * SIGMA, method="VisuShrink", convert2ycbcr=True, rescale_sigma=True, channel_axis=2
        ),
        (0.25, 0.33, 0.5, 0.75, 1.0),
    ),
}


def as_method(denoise: Callable[[np.ndarray, float], np.ndarray], parameter: float) -> Callable[..., np.ndarray]:
    """Of and to (1, 3, H, W) in [-1, 1]."""

    def method(noisy: np.ndarray) -> np.ndarray:
        image = denoise((noisy[0].transpose(1, 2, 0) + 1) / 2, parameter)
        return np.clip(image.transpose(2, 0, 1)[None] * 2 - 1, -1, 1).astype(np.float32)

    return method


def best_parameter(denoise: Callable[[np.ndarray, float], np.ndarray], choices: tuple[float, ...]) -> float:
    """By PSNR on the photograph that the network's best epoch is chosen by."""
    noisy, clean = noised(VALIDATION[0])
    return max(choices, key=lambda choice: quality(as_method(denoise, choice)(noisy), clean).psnr_db)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(image: np.ndarray, clean: np.ndarray) -> tuple[float, float, float, float]:
    """L1 and SSIM on [-1, 1], SSIM on [0, 1], PSNR."""
    one = quality(image, clean)
    on_unit = structural_similarity(
        *((each[0] + 1) / 2 for each in (image, clean)),
        channel_axis=0,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return one.l1, one.ssim, float(on_unit), one.psnr_db


def seams(denoised: np.ndarray, clean: np.ndarray) -> float:
    """Mean squared error on the two pixels at each tile's border over that everywhere."""
    error = np.square(denoised - clean).mean(axis=(0, 1))
    at = [np.isin(np.arange(length) % (CROP // 2), (0, CROP // 2 - 1)) for length in error.shape]
    border: float = error[at[0][:, None] | at[1]].mean()
    return border / float(error.mean())


def crops(image: np.ndarray) -> np.ndarray:
    """(1, 3, H, W) cut into (N, 3, CROP, CROP), what is left over at the right and below dropped."""
    _, channels, height, width = image.shape
    rows, columns = height // CROP, width // CROP
    cut = image[0, :, : rows * CROP, : columns * CROP].reshape(channels, rows, CROP, columns, CROP)
    return cut.transpose(1, 3, 0, 2, 4).reshape(-1, channels, CROP, CROP)


def psnr_db(images: np.ndarray, clean: np.ndarray) -> float:
    """Of all their pixels together."""
    return float(10 * np.log10(4 / np.square(images - clean).mean()))


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="(None: picture.png there)")
    given = parser.parse_args()
    result = train(given.to.resolve())
    denoiser = Denoiser(given.to / "training/export")
    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {"noisy": lambda noisy: noisy}
    for name, (denoise, choices) in CLASSICAL.items():
        parameter = best_parameter(denoise, choices)
        methods[f"{name} ({parameter})"] = as_method(denoise, parameter)
    methods["ours"] = lambda noisy: denoiser(noisy[0].transpose(1, 2, 0)).transpose(2, 0, 1)[None]

    photographs = {name: noised(name) for name in TEST}
    print(f"| | {' | '.join(f'{name}, PSNR dB' for name in TEST)} | mean PSNR dB | L1 | SSIM | SSIM on [0, 1] | s |")
    print("|---|" + "---|" * (len(TEST) + 5))
    columns: dict[str, dict[str, np.ndarray]] = {}
    for name, method in methods.items():
        began = time.perf_counter()
        columns[name] = {each: method(noisy) for each, (noisy, _) in photographs.items()}
        seconds = time.perf_counter() - began
        rows = [measure(columns[name][each], clean) for each, (_, clean) in photographs.items()]
        l1, ssim, ssim_unit, psnr = (statistics.mean(values) for values in zip(*rows, strict=True))
        single = " | ".join(f"{row[-1]:.2f}" for row in rows)
        print(f"| {name} | {single} | {psnr:.2f} | {l1:.4f} | {ssim:.3f} | {ssim_unit:.3f} | {seconds:.1f} |")

    seconds = sum(epoch["seconds"] + epoch["eval_seconds"] for epoch in result["epochs"])
    print(f"\nTraining: {seconds / 60:.1f} minutes, {os.cpu_count()} cores. On crops by the network alone, and whole:")
    for name, (noisy, clean) in photographs.items():
        cut, whole = denoiser.batch(crops(noisy)), columns["ours"][name]
        alone, tiled = psnr_db(cut, crops(clean)), psnr_db(crops(whole), crops(clean))
        print(
            f"- {name}: {alone:.2f} dB, {tiled:.2f} dB; error at tiles' borders {seams(whole, clean):.3f} of the mean"
        )
    pictures = [np.concatenate([columns[name][each][:, :, *SHOWN] for each in TEST]) for name in columns]
    pictures.append(np.concatenate([clean[:, :, *SHOWN] for _, clean in photographs.values()]))
    strip(pictures, scale=1).save(given.picture or given.to / "picture.png", optimize=True)


if __name__ == "__main__":
    main()
