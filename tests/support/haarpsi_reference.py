"""HaarPSI of real images by others' code: python tests/support/haarpsi_reference.py DIR > tests/data/haarpsi.json

DIR has haarPsi.py of github.com/rgcda/haarpsi (the authors', commit 3b9599b); piq 0.8.0 must be installed. Its colours
(YIQ) have coefficients of four digits, the authors' of three: with theirs, piq's values are the authors' to 1e-8.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import skimage.data
import torch
from scipy.ndimage import uniform_filter

from model.data.data_config import DataConfig
from model.data.noise import parse_noise
from model.data.pixel_format import EIGHT_BITS


def clean_images() -> dict[str, np.ndarray]:
    """uint8 (N, C, H, W) by name: grey and RGB, even and odd sizes."""
    fashion = DataConfig().load_test().clean[:6]
    astronaut = skimage.data.astronaut().transpose(2, 0, 1)
    crops = np.stack([astronaut[:, y : y + 64, x : x + 64] for y, x in ((100, 190), (300, 60), (20, 430))])
    return {
        "fashion 32x32": fashion,
        "fashion 28x28": fashion[:, :, 2:-2, 2:-2],
        "grey 29x33": astronaut[None, :1, 100:129, 190:223],
        "rgb 64x64": crops,
        "rgb 131x120": astronaut[None, :, 90:221, 170:290],
    }


def distorted(clean: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 images like the clean ones, by the name of what was done to them."""
    noisy = parse_noise("gaussian:30").fixed(EIGHT_BITS.to_unit(clean), seed=1)
    dots, colour = clean.copy(), clean.copy()
    dots.reshape(-1)[::17] = 255
    colour[:, 0] = np.minimum(colour[:, 0], 225) + 30
    return {
        "equal": clean,
        "noise of the protocol": EIGHT_BITS.from_unit(noisy),
        "blur": uniform_filter(clean, size=(1, 1, 3, 3), mode="nearest"),
        "brighter": np.minimum(clean, 225) + 30,
        "four levels": clean // 64 * 64 + 32,
        "white dots": dots,
        "first channel brighter": colour,
        "shifted": np.roll(clean, 1, axis=3),
        "black": np.zeros_like(clean),
    }


def cases() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the name, the clean and the distorted images of each case."""
    for name, clean in clean_images().items():
        for what, images in distorted(clean).items():
            yield f"{name}, {what}", clean, images


def main() -> None:
    """Print both implementations' value of each image."""
    sys.path.insert(0, sys.argv[1])
    haar_psi, haarpsi = import_module("haarPsi").haar_psi, import_module("piq").haarpsi
    values: dict[str, Any] = {}
    for name, clean, images in cases():
        pairs = zip(*(of.transpose(0, 2, 3, 1) for of in (clean, images)), strict=True)
        piq = haarpsi(
            *(torch.from_numpy(of.astype(np.float64)) for of in (images, clean)), reduction="none", data_range=255
        )
        values[name] = {
            "authors": [round(float(haar_psi(np.squeeze(a), np.squeeze(b))[0]), 8) for a, b in pairs],
            "piq": [round(value, 8) for value in piq.tolist()],
        }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(of)}" for name, of in values.items())
    print(f"{{\n{lines}\n}}")


if __name__ == "__main__":
    main()
