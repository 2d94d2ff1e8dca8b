"""Photographs, against classical methods: python benchmarks/photographs.py --to DIR [--export DIR] [--depths]

Trains on crops of photographs in scikit-image's wheel, denoises other photographs whole, from files to files, by
`hpo train` and `hpo denoise`, and compares with scikit-image's non-local means, total variation and wavelets. Each of
them gets the true sigma and the parameters that are best on the training photographs. It also measures whether a whole
photograph gains as much as its crops, and whether tiles leave seams.

With --depths instead: the same photographs as files of 8 and of 16 bits, bright and at a sixteenth of the light, with
the same noise and seed; both models on the 16-bit test photographs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as hpo.tune.ray_session

import imagecodecs
import numpy as np
import skimage.data
from PIL import Image
from skimage.metrics import structural_similarity
from skimage.restoration import cycle_spin, denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

from model.data.data_config import DataConfig
from model.data.image_sets import NOISE_SEEDS
from model.data.noise import parse_noise
from model.data.pixel_format import EIGHT_BITS
from model.denoise import Denoiser
from model.export_quality import quality
from model.picture_strip import draw_strip, to_uint8

ROOT = Path(__file__).parent.parent
SIGMA, CROP = 30, 64
COLOUR = ["motorcycle_left.png", "motorcycle_right.png", "ihc.png", "hubble_deep_field.jpg", "retina.jpg"]
GREY = ["camera.png", "brick.png", "grass.png", "gravel.png", "coins.png", "page.png"]  # shown as RGB
VALIDATION, TEST = ["rocket.jpg"], ["astronaut.png", "chelsea.png", "coffee.png"]
TUNED_ON = ("motorcycle_left", "ihc", "retina", "camera")
TUNED_SIDE, SHOWN_SIDE = 256, 144
SHOWN = {"astronaut": (30, 180), "chelsea": (60, 130), "coffee": (130, 330)}  # top and left of what is pictured
SETTINGS = (
    "blocks=1 depth=3 width=16 output=residual dropout=0 loss=mse adversarial=none batch_size=16 "
    "lr_schedule=cosine beta1=0.9 lr_g=0.002"
)

Method = Callable[..., np.ndarray]  # a noisy photograph, (H, W, 3) in [0, 1], and the method's parameters


def nl_means(noisy: np.ndarray, *, h: float, patch: int, distance: int, fast: bool) -> np.ndarray:
    """Non-local means; h: in sigmas."""
    sigma = SIGMA / 255
    sizes = {"patch_size": patch, "patch_distance": distance}
    return denoise_nl_means(noisy, h=h * sigma, sigma=sigma, fast_mode=fast, channel_axis=-1, **sizes)


def total_variation(noisy: np.ndarray, *, weight: float) -> np.ndarray:
    """Total variation; weight: in sigmas."""
    return denoise_tv_chambolle(noisy, weight * SIGMA / 255, channel_axis=-1)


def wavelets(noisy: np.ndarray, *, method: str, sigma: float, wavelet: str, ycbcr: bool) -> np.ndarray:
    """Wavelets, the mean over 16 shifts, which gains 1 dB; sigma: a multiple of the true one."""
    settings = {"sigma": sigma * SIGMA / 255, "method": method, "wavelet": wavelet, "convert2ycbcr": ycbcr}
    settings["channel_axis"] = -1
    return cycle_spin(noisy, max_shifts=3, func=denoise_wavelet, func_kw=settings, channel_axis=-1)


METHODS: dict[str, tuple[Method, dict[str, tuple[Any, ...]]]] = {
    "non-local means": (
        nl_means,
        {"h": (0.4, 0.5, 0.6, 0.7, 0.8), "patch": (5, 7), "distance": (5, 8), "fast": (True, False)},
    ),
    "total variation": (total_variation, {"weight": (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6)}),
    "wavelets, BayesShrink": (
        wavelets,
        {"method": ("BayesShrink",), "sigma": (1.0,), "wavelet": ("db1", "db2", "db3", "sym4"), "ycbcr": (True, False)},
    ),
    "wavelets, VisuShrink": (
        wavelets,
        {
            "method": ("VisuShrink",),
            "sigma": (0.2, 0.25, 0.3, 0.4, 0.5, 1.0),
            "wavelet": ("db1", "db2", "db3", "sym4"),
            "ycbcr": (True, False),
        },
    ),
}
OURS = "**Pix2Pix Search**"


def prepare(to: Path) -> None:
    """Write the photographs as a folder with splits, and the test photographs with noise, all as 8-bit files."""
    shipped = Path(skimage.data.__file__).parent
    for split, names in {"train": COLOUR + GREY, "validation": VALIDATION, "test": TEST}.items():
        (to / "photographs" / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            image = Image.open(shipped / name).convert("RGB")
            if name == "retina.jpg":  # 2 million pixels of one smooth surface: half of all crops
                image = image.reduce(2)
            # No training photograph is blue, and a network trained on them turns skies grey. In all orders of their
            # channels they have every hue.
            for number, order in enumerate(itertools.permutations(range(3)) if name in COLOUR else [range(3)]):
                stem = Path(name).stem + (f"-{number}" if number else "")
                permuted = Image.merge("RGB", [image.getchannel(channel) for channel in order])
                permuted.save(to / "photographs" / split / f"{stem}.png")
    (to / "noisy").mkdir(exist_ok=True)
    for path in sorted((to / "photographs" / "test").iterdir()):
        Image.fromarray(noised(_read(path), "test")).save(to / "noisy" / path.name)


def noised(image: np.ndarray, split: str) -> np.ndarray:
    """Add noise to an image, (H, W, 3) uint8."""
    unit = EIGHT_BITS.to_unit(image.transpose(2, 0, 1))[None]
    noisy = parse_noise(f"gaussian:{SIGMA}").fixed(unit, seed=NOISE_SEEDS[split])
    return to_uint8(noisy)[0].transpose(1, 2, 0)


def hpo(*words: str) -> float:
    """Show a command, run it, and return its seconds."""
    print(f"hpo {shlex.join(words)}", file=sys.stderr)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "hpo.cli", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def tuned(name: str, folder: Path) -> dict[str, Any]:
    """The parameters with the best mean PSNR on the middles of some training photographs."""
    method, grid = METHODS[name]
    pairs = []
    for stem in TUNED_ON:
        image = _read(folder / f"{stem}.png")
        top, left = ((side - TUNED_SIDE) // 2 for side in image.shape[:2])
        clean = image[top : top + TUNED_SIDE, left : left + TUNED_SIDE]
        pairs.append((noised(clean, "train"), clean))

    def mean_psnr_db(parameters: dict[str, Any]) -> float:
        return float(np.mean([psnr_db(applied(method, noisy, parameters), clean) for noisy, clean in pairs]))

    return max(_combinations(grid), key=mean_psnr_db)


def applied(method: Method, noisy: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
    """Denoise a uint8 image to a uint8 image."""
    return np.rint(255 * np.clip(method(noisy / 255, **parameters), 0, 1)).astype(np.uint8)


def psnr_db(image: np.ndarray, clean: np.ndarray) -> float:
    """PSNR of uint8 arrays."""
    return float(10 * np.log10(255**2 / np.square(image.astype(float) - clean).mean()))


def row(name: str, images: dict[str, np.ndarray], clean: dict[str, np.ndarray], seconds: float | None) -> str:
    """A line of the table: means over the photographs, each measured whole."""
    measured = []
    for stem, image in images.items():
        ours, truth = (EIGHT_BITS.to_unit(x.transpose(2, 0, 1))[None] for x in (image, clean[stem]))
        on_unit = quality(ours, truth)
        ssim = structural_similarity(
            image / 255,
            clean[stem] / 255,
            channel_axis=-1,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        measured.append((on_unit.psnr_db, ssim, on_unit.ssim, on_unit.l1))
    each = " / ".join(f"{m[0]:.2f}" for m in measured)
    mean = np.mean(measured, axis=0)
    took = "" if seconds is None else f"{seconds:.1f}"
    return f"| {name} | {mean[0]:.2f} | {each} | {mean[1]:.3f} | {mean[2]:.3f} | {mean[3]:.4f} | {took} |"


# --- seams ----------------------------------------------------------------------------------------------------------


def seams(denoiser: Denoiser, noisy: dict[str, np.ndarray], clean: dict[str, np.ndarray]) -> list[str]:
    """Compare whole photographs with the same pixels as crops, and the error at tile borders with that elsewhere."""
    side = denoiser.image_size
    squared: dict[str, list[np.ndarray]] = {"noisy": [], "whole": [], "crops": []}
    for stem, image in noisy.items():
        height, width = (size // side * side for size in image.shape[:2])
        truth = clean[stem][:height, :width].astype(float)
        crops = _cut(image[:height, :width], side)
        alone = to_uint8(denoiser.batch(EIGHT_BITS.to_unit(crops.transpose(0, 3, 1, 2)))).transpose(0, 2, 3, 1)
        for name, result in (
            ("noisy", image[:height, :width]),
            ("whole", denoiser(image)[:height, :width]),
            ("crops", _joined(alone, height, width)),
        ):
            squared[name].append(np.square(result - truth).mean(axis=2))
    lines = ["| | PSNR dB | error at tile borders / elsewhere |", "|---|---|---|"]
    for name, errors in squared.items():
        mean = np.mean([10 * np.log10(255**2 / e.mean()) for e in errors])
        lines.append(f"| {name} | {mean:.2f} | {border_ratio(errors, side // 2):.3f} |")
    return lines


def border_ratio(errors: list[np.ndarray], spacing: int) -> float:
    """Mean squared error at the borders of tiles, two pixels on each side, divided by that of all other pixels.

    Args:
        errors: squared, (H, W) of each image.
        spacing: of the borders, pixels.
    """
    at, elsewhere = [], []
    for error in errors:
        rows, columns = (_beside_a_line(size, spacing) for size in error.shape)
        border = rows[:, None] | columns
        at.append(error[border])
        elsewhere.append(error[~border])
    return float(np.concatenate(at).mean() / np.concatenate(elsewhere).mean())


def _beside_a_line(size: int, spacing: int) -> np.ndarray:
    place = (np.arange(size) + 2) % spacing
    return (place < 4) & (np.arange(size) >= 2) & (np.arange(size) < size - 2)  # an image's own edge is no seam


def _cut(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    return image.reshape(height // side, side, width // side, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)


def _joined(crops: np.ndarray, height: int, width: int) -> np.ndarray:
    side = crops.shape[1]
    tiles = crops.reshape(height // side, width // side, side, side, 3)
    return tiles.swapaxes(1, 2).reshape(height, width, 3)


# --- 8 and 16 bits --------------------------------------------------------------------------------------------------


def depths(to: Path, much: list[str]) -> None:
    """Train for each depth and each light, and print the PSNR of each model on the same noisy crops.

    The photographs have half the size: the mean of four pixels has values between the 256, which 16 bits keep.
    """
    print(f"| {CROP}x{CROP} crops, PSNR dB; noise gaussian:{SIGMA}, if white is 255 | noisy | 8 bits | 16 bits |")
    print("|---|---|---|---|")
    for light, name in ((1, "white is 65535"), (16, "white is 4096")):
        white, folders = (65536 // light, {bits: to / f"light-{light}-{bits}-bits" for bits in (8, 16)})
        for path in (to / "photographs").glob("*/*.png"):
            pixels = _read(path).astype(float)
            height, width = (side // 2 for side in pixels.shape[:2])
            mean = pixels[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean(axis=(1, 3)) / light
            for bits, folder in folders.items():
                place = folder / path.parent.name / path.name
                place.parent.mkdir(parents=True, exist_ok=True)
                deep = np.rint(257 * mean).astype(np.uint16) if bits == 16 else np.rint(mean).astype(np.uint8)
                place.write_bytes(imagecodecs.png_encode(deep))
        noises = {8: f"gaussian:{SIGMA / light}", 16: f"gaussian:{SIGMA}"}  # as much of white
        ranges = {8: [], 16: ["--range", "0", str(min(white, 65535))]}
        test = DataConfig(data=str(folders[16]), crop=CROP, noise=noises[8]).load_test()
        noisy, clean = test.with_noise(noises[8], "test")  # on the scale that 8 bits have
        figures = [f"{_mean_psnr_db(noisy, clean, light):.2f}"]
        for bits, folder in folders.items():
            export = to / f"trained-{light}-{bits}-bits"
            data = ["--data", str(folder), "--crop", str(CROP), "--noise", noises[bits], *ranges[bits]]
            settings = [word for pair in SETTINGS.split() for word in ("--set", pair)]
            hpo("train", "--to", str(export), "--export", *data, *much, *settings)
            # White is 1 for the model of 16 bits; for that of 8 bits 1 is the end of the range.
            factor = light if bits == 16 else 1
            made = Denoiser(export / "export").batch(np.clip(np.float32(factor) * (noisy + 1) - 1, -1, 1))
            figures.append(f"{_mean_psnr_db((made + 1) / factor - 1, clean, light):.2f}")
        print(f"| {name} | {' | '.join(figures)} |", flush=True)


def _mean_psnr_db(images: np.ndarray, clean: np.ndarray, light: float) -> float:
    """Mean PSNR of (N, C, H, W) on [-1, 1], of which -1 to 2 / light - 1 are black to white."""
    errors = np.square(np.clip(images, -1, 2 / light - 1).astype(float) - clean).mean(axis=(1, 2, 3))
    return float((10 * np.log10((2 / light) ** 2 / errors)).mean())


# --- main ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="output folder; the same folder continues a training")
    parser.add_argument("--export", type=Path, help="measure this export of a model of photographs instead of training")
    parser.add_argument("--depths", action="store_true", help="compare 8 and 16 bits")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images-per-epoch", type=int, default=4000)
    given = parser.parse_args()
    to: Path = given.to.resolve()
    prepare(to)
    much = ["--epochs", str(given.epochs), "--images-per-epoch", str(given.images_per_epoch)]
    if given.depths:
        depths(to, much)
        return
    export, train_seconds = given.export, 0.0
    if export is None:
        settings = [word for pair in SETTINGS.split() for word in ("--set", pair)]
        data = ["--data", str(to / "photographs"), "--crop", str(CROP), "--noise", f"gaussian:{SIGMA}"]
        train_seconds = hpo("train", "--to", str(to / "training"), "--export", *data, *much, *settings)
        export = to / "training" / "export"
    clean = {path.stem: _read(path) for path in sorted((to / "photographs" / "test").iterdir())}
    noisy = {stem: _read(to / "noisy" / f"{stem}.png") for stem in clean}
    results, seconds, best = {"noisy": noisy}, {}, []
    for name, (method, _) in METHODS.items():
        parameters = tuned(name, to / "photographs" / "train")
        began = time.perf_counter()
        results[name] = {stem: applied(method, image, parameters) for stem, image in noisy.items()}
        seconds[name] = time.perf_counter() - began
        best.append(f"- {name}: {', '.join(f'{key}={value}' for key, value in parameters.items())}")
    seconds[OURS] = hpo("denoise", str(export), str(to / "noisy"), "--to", str(to / "denoised"))
    results[OURS] = {stem: _read(to / "denoised" / f"{stem}.png") for stem in clean}

    print(f"| whole photographs, noise gaussian:{SIGMA} | PSNR dB | {' / '.join(clean)} | SSIM on [0, 1] | ", end="")
    print("SSIM on [-1, 1] | L1 on [-1, 1] | s |\n|---|---|---|---|---|---|---|")
    for name, images in results.items():
        print(row(name, images, clean, seconds.get(name)))
    print("\nBest on the training photographs:\n" + "\n".join(best))
    print("\n" + "\n".join(seams(Denoiser(export), noisy, clean)))
    if train_seconds:
        print(f"\n{train_seconds / 60:.1f} minutes of training and export")
    picture(to / "photographs.jpg", [*results.values(), clean])


def picture(path: Path, columns: list[dict[str, np.ndarray]]) -> None:
    """Draw a part of each test photograph: noisy, denoised by each method, clean."""

    def part(images: dict[str, np.ndarray]) -> np.ndarray:
        cut = [images[stem][t : t + SHOWN_SIDE, le : le + SHOWN_SIDE] for stem, (t, le) in SHOWN.items()]
        return EIGHT_BITS.to_unit(np.stack(cut).transpose(0, 3, 1, 2))

    draw_strip([part(images) for images in columns], scale=1).save(path, quality=92)


def _read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def _combinations(grid: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


if __name__ == "__main__":
    main()
