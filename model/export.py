"""A checkpoint -> a deployable folder: ONNX, safetensors, manifest, model card, pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.torch import save

from model.denoise import MANIFEST, DenoiseError, Denoiser, read_manifest
from model.generator import Generator
from model.trainer import load_generator

from .common.errors import ConfigError, MachineError
from .common.files import check_writable, write_atomically, writing
from .common.git import git_commit
from .data.data_config import DataConfig
from .data.image_sets import ImagePairs, Images
from .data.noise import REAL, parse_noise
from .data.pixel_format import EIGHT_BITS, PixelFormat
from .export_quality import compare_with_slides, evaluate, measure_strip, quality_table
from .picture_strip import draw_strip

ONNX_FILE, WEIGHTS_FILE, CARD_FILE, STRIP_FILE = "generator.onnx", "generator.safetensors", "README.md", "strip.png"
TRAINABLE_FILE = "checkpoint.safetensors"
_OTHER_COLOURS = {  # what Denoiser does with them
    1: "It takes grey images; of a colour image each channel is denoised by itself.",
    3: "It takes colour images; a grey image is given to it three times, and the mean of the three is the result.",
}
_TOLERANCE = 1e-4  # onnxruntime against torch, on [-1, 1]
_STRIP_IMAGES = 6
_PACKAGES = ("torch", "onnx", "onnxruntime", "numpy", "scikit-image", "safetensors")


class ExportError(MachineError):
    """An export that would not be what was trained."""


def export(
    checkpoint: Path,
    to: Path,
    *,
    data: DataConfig,
    images: Images,
    test: ImagePairs | None,
    origin: Mapping[str, Any],
    trainable: bool = False,
) -> dict[str, Any]:
    """Write the folder `to` and give its manifest. The ONNX file itself is what is measured.

    test: None while nothing may look at the test images yet. origin: where the checkpoint comes from (search, trial),
    copied into the manifest. The folder appears whole or not at all; an export that stands there is replaced.
    Raises ConfigError where something else stands there; CheckpointError, ExportError, OSError.
    """
    check_target(to)
    channels, image_size, _ = images.shape
    generator, state = load_generator(checkpoint, channels=channels, image_size=image_size)
    depth = images.pixel_format.explicit

    with _beside(to) as folder:
        weights = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
        (folder / WEIGHTS_FILE).write_bytes(save(weights))
        _write_onnx(generator, folder / ONNX_FILE, images.shape)
        if trainable:
            shutil.copyfile(checkpoint, folder / TRAINABLE_FILE)
        manifest = {
            "format": 1,
            "origin": {**origin, "epoch": len(state["reports"])},
            "model": _describe_model(generator, images),
            "config": state["config"],
            "data": dataclasses.asdict(data) | {"range": depth.range and [*depth.range]},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            "git_commit": git_commit(),
            "images": list(images.messages),
            "metrics": {},
            "files": _digests(folder),
        }
        _write_manifest(folder, manifest)  # for the Denoiser that measures; the last one has the figures
        denoiser = Denoiser(folder)
        _compare(denoiser, generator, images.validation[:_STRIP_IMAGES], data.noise)
        manifest["metrics"] = {
            "validation": evaluate(denoiser, images.validation, data.noise, "validation"),
            "test": None if test is None else evaluate(denoiser, test, data.noise, "test"),
        }
        split, pictured = ("validation", images.validation) if test is None else ("test", test)
        _write_strip(denoiser, pictured, data.noise, split, folder / STRIP_FILE)
        manifest["strip"] = measure_strip(denoiser, folder / STRIP_FILE)
        (folder / CARD_FILE).write_text(_card(manifest))
        manifest["files"] = _digests(folder)
        _write_manifest(folder, manifest)
        replace_folder(to, folder)
    return manifest


def _describe_model(generator: Generator, images: Images) -> dict[str, Any]:
    channels, image_size, _ = images.shape
    return {
        "file": ONNX_FILE,
        "channels": channels,
        "image_size": image_size,
        "padding": images.padding,
        "depth": images.pixel_format.explicit.dtype,
        "size_multiple": generator.size_multiple,
        "value_range": [-1, 1],
        "parameters": sum(p.numel() for p in generator.parameters()),
    }


@contextmanager
def _beside(to: Path) -> Iterator[Path]:
    """A folder that is to take its place; gone at the end, if it has not."""
    with writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        folder = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
        folder.mkdir()  # readable by whom the umask lets
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_target(to: Path) -> None:
    """Raises ConfigError where an export may not stand, or cannot be written."""
    check_writable(to, "--to")
    if to.exists() and not _is_replaceable(to):
        raise ConfigError(f"{to}: there is something else; name another folder, or an empty one, with --to")


def _is_replaceable(path: Path) -> bool:
    """An empty folder, or an export that nobody put anything beside."""
    if not path.is_dir():
        return False
    names = {file.name for file in path.iterdir()}
    try:
        return not names or names <= {MANIFEST, *read_manifest(path)["files"]}
    except DenoiseError:  # a manifest of another program
        return False


def _write_onnx(generator: Generator, path: Path, shape: tuple[int, ...]) -> None:
    """One file with the weights inside; batch, height and width stay free."""
    multiple = generator.size_multiple
    free = {
        0: torch.export.Dim("batch"),
        2: multiple * torch.export.Dim("rows", min=1),
        3: multiple * torch.export.Dim("columns", min=1),
    }
    example = torch.zeros(2, shape[0], 2 * multiple, 3 * multiple)
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # "torchvision is missing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            generator,
            (example,),
            path,
            input_names=["noisy"],
            output_names=["denoised"],
            dynamic_shapes=(free,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(path, full_check=True)


def _compare(denoiser: Denoiser, generator: Generator, images: ImagePairs, noise: str) -> None:
    noisy, _ = images.with_noise(noise, "validation")
    with torch.inference_mode():
        expected = generator(torch.from_numpy(noisy)).numpy()
    distance = float(np.abs(denoiser.batch(noisy) - expected).max())
    if not distance <= _TOLERANCE:
        raise ExportError(f"onnxruntime's output differs from torch's by {distance:.2g}, above {_TOLERANCE}")


def _write_strip(denoiser: Denoiser, images: ImagePairs, noise: str, split: str, path: Path) -> None:
    noisy, clean = images[:_STRIP_IMAGES].with_noise(noise, split)
    draw_strip([noisy, clean, denoiser.batch(noisy)]).save(path)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=2, allow_nan=False)
    write_atomically(folder / MANIFEST, text.encode())


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def replace_folder(target: Path, folder: Path) -> None:
    """At once, and instead of an earlier export."""
    old = target.with_name(f".{target.name}.old.{os.getpid()}")
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _card(manifest: Mapping[str, Any]) -> str:
    origin, model, config = manifest["origin"], manifest["model"], manifest["config"]
    metrics, data = manifest["metrics"], manifest["data"]
    noise = data["noise"]
    where = ", ".join(f"{name} {value}" for name, value in origin.items() if value is not None)
    settings = "\n".join(f"| {name} | {value} |" for name, value in config.items() if value is not None)
    units = "of the noisy images of its pairs" if noise == REAL else parse_noise(noise).units()
    is_slides = metrics["test"] and DataConfig(**data).is_slides
    depth = PixelFormat(model["depth"], DataConfig(**data).range)
    verdict = f"\n{compare_with_slides(metrics['test'])}.\n" if is_slides else ""
    scale = "[-1, 1]" if depth == EIGHT_BITS else f"the values of {depth}, but for L1, which is on [-1, 1]"
    return f"""# Image denoiser (pix2pix U-Net)

Removes noise `{noise}` ({units}) from images like those of
{data["data"]} ({depth}). {model["parameters"]:,} parameters. From {where}.

![Input, ground truth, predicted]({STRIP_FILE})

Input / Ground Truth / Predicted, images that it was not trained on.

## Quality

Measured on `{ONNX_FILE}` itself with scikit-image, on {scale}: SSIM with an 11x11 Gaussian window, sigma 1.5.

{quality_table(metrics)}
{verdict}
## Use

```python
from pix2pix_search import Denoiser     # needs onnxruntime, numpy, pillow

denoised = Denoiser("path/to/this/folder")(noisy)     # (H, W) or (H, W, C) of any size; uint8, uint16, float in [-1, 1]
```

{_OTHER_COLOURS[model["channels"]]}

Any ONNX runtime: input `noisy` and output `denoised` are float32 (N, {model["channels"]}, H, W) in [-1, 1], H and W
multiples of {model["size_multiple"]}. It was trained on {model["image_size"]}x{model["image_size"]}
pixels; larger images are best cut into overlapping tiles of that size, which is what `Denoiser` does.

## Training

| setting | value |
|---|---|
{settings}

## Limits

It knows only the noise and the kind of images above; on others it may blur or invent structure. Don't use it where
an invented detail does harm (medicine, evidence).
"""
