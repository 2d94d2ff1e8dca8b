"""Exports a checkpoint as a deployable folder: ONNX, safetensors, manifest, model card, pictures."""

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
from .export_quality import evaluate, measure_strip
from .latency import check_measuring, measure_latencies
from .model_card import model_card
from .picture_strip import draw_strip
from .quantization import MAX_LOSS_DB, NetworkOptions, check_loss, reduced

ONNX_FILE, WEIGHTS_FILE, CARD_FILE, STRIP_FILE = "generator.onnx", "generator.safetensors", "README.md", "strip.png"
TRAINABLE_FILE = "checkpoint.safetensors"
_TOLERANCE = 1e-4  # onnxruntime against torch, on [-1, 1]
_STRIP_IMAGES = 6
_PACKAGES = ("torch", "onnx", "onnxruntime", "numpy", "scikit-image", "safetensors")


class ExportError(MachineError):
    """The exported network does not compute what the checkpoint computes."""


def export(
    checkpoint: Path,
    to: Path,
    *,
    data: DataConfig,
    images: Images,
    test: ImagePairs | None,
    origin: Mapping[str, Any],
    trainable: bool = False,
    network: NetworkOptions | None = None,
    certificate: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Export a checkpoint, measure the ONNX file itself, and return the manifest.

    Args:
        to: the folder, which appears whole or not at all; an earlier export is replaced.
        images: what was trained on, and the validation images.
        test: the test images; None while nothing may use them.
        origin: where the checkpoint comes from (search, trial), for the manifest.
        trainable: whether it includes the checkpoint.
        network: the precision of the ONNX file, and how its latency is measured; None: the defaults.
        certificate: for the manifest, how it was chosen; its `statement`, a list of sentences, is in the model card.

    Raises:
        ConfigError: something other than an export is at `to`, or the latency cannot be measured so.
        PrecisionLossError: the precision costs more.
        CheckpointError: the checkpoint is damaged.
        ExportError: the exported network computes something else than the checkpoint.
        OSError: the folder cannot be written.
    """
    check_target(to)
    network = network or NetworkOptions()
    channels, image_size, _ = images.shape
    generator, state = load_generator(checkpoint, channels=channels, image_size=image_size)
    size = image_size if network.latency_size is None else network.latency_size
    check_measuring(size, network.latency_threads, generator.size_multiple)
    with _temporary_folder(to) as folder:
        _write_weights(generator, folder / WEIGHTS_FILE)
        if trainable:
            shutil.copyfile(checkpoint, folder / TRAINABLE_FILE)
        manifest = _manifest(generator, state, data, images, origin)
        if certificate is not None:
            manifest["certificate"] = dict(certificate)
        networks = _write_network(folder, manifest, generator, network, images=images, test=test, noise=data.noise)
        _measure(manifest, network.precision, networks, size, network.latency_threads)
        manifest["strip"] = _draw_strip(folder / STRIP_FILE, Denoiser(folder), images, test, data.noise)
        (folder / CARD_FILE).write_text(model_card(manifest, onnx_file=ONNX_FILE, strip_file=STRIP_FILE))
        _write_manifest(folder, manifest)
        replace_folder(to, folder)
    return manifest


def _write_network(
    folder: Path,
    manifest: dict[str, Any],
    generator: Generator,
    options: NetworkOptions,
    *,
    images: Images,
    test: ImagePairs | None,
    noise: str,
) -> list[bytes]:
    """Write the ONNX file and its metrics; return the float32 network, and the one in a smaller precision after it."""
    _write_onnx(generator, folder / ONNX_FILE, images.shape)
    denoiser = _denoiser(folder, manifest)
    _compare(denoiser, generator, images.validation[:_STRIP_IMAGES], noise)
    manifest["metrics"] = _metrics(denoiser, images, test, noise)
    networks = [(folder / ONNX_FILE).read_bytes()]
    if options.precision != "fp32":
        networks.append(reduced(networks[0], options.precision, images, noise))
        (folder / ONNX_FILE).write_bytes(networks[1])
        denoiser = _denoiser(folder, manifest)
        _add_loss(manifest, _metrics(denoiser, images, test, noise), options)
    return networks


def _write_weights(generator: Generator, path: Path) -> None:
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in generator.state_dict().items()}))


def _denoiser(folder: Path, manifest: dict[str, Any]) -> Denoiser:
    """The Denoiser that measures; the final manifest has its figures."""
    _write_manifest(folder, manifest)
    return Denoiser(folder)


def _metrics(denoiser: Denoiser, images: Images, test: ImagePairs | None, noise: str) -> dict[str, Any]:
    return {
        "validation": evaluate(denoiser, images.validation, noise, "validation"),
        "test": None if test is None else evaluate(denoiser, test, noise, "test"),
    }


def _add_loss(manifest: dict[str, Any], metrics: dict[str, Any], options: NetworkOptions) -> None:
    """Replace the metrics of the float32 network, which stay beside. Raises PrecisionLossError."""
    limit = MAX_LOSS_DB if options.max_loss_db is None else options.max_loss_db
    loss_db = check_loss(options.precision, metrics["validation"], manifest["metrics"]["validation"], limit)
    manifest["float32"] = {"metrics": manifest["metrics"]}
    manifest["metrics"] = metrics
    manifest["loss"] = {"psnr_db": loss_db, "max_loss_db": limit}


def _draw_strip(path: Path, denoiser: Denoiser, images: Images, test: ImagePairs | None, noise: str) -> dict[str, Any]:
    """Draw a few test or validation images, and return the figures of the picture."""
    split, shown = ("validation", images.validation) if test is None else ("test", test)
    noisy, clean = shown[:_STRIP_IMAGES].with_noise(noise, split)
    draw_strip([noisy, clean, denoiser.batch(noisy)]).save(path)
    return measure_strip(denoiser, path)


def _measure(manifest: dict[str, Any], precision: str, networks: list[bytes], size: int, threads: int) -> None:
    """Add precision, size and latency of a float32 network, and of one in a smaller precision after it, in turns."""
    latencies = measure_latencies(networks, size=size, threads=threads)
    figures = [
        {"precision": name, "size_mb": len(content) / 1e6, "latency": latency.as_dict()}
        for name, content, latency in zip(("fp32", precision), networks, latencies, strict=False)
    ]
    manifest |= figures[-1]
    if "float32" in manifest:
        manifest["float32"] |= figures[0]


def _manifest(
    generator: Generator, state: Mapping[str, Any], data: DataConfig, images: Images, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest before anything is measured; its keys and their order are a file format."""
    channels, image_size, _ = images.shape
    pixel_format = images.pixel_format.explicit
    return {
        "format": 1,
        "origin": {**origin, "epoch": len(state["reports"])},
        "model": {
            "file": ONNX_FILE,
            "channels": channels,
            "image_size": image_size,
            "padding": images.padding,
            "depth": pixel_format.dtype,
            "size_multiple": generator.size_multiple,
            "value_range": [-1, 1],
            "parameters": sum(p.numel() for p in generator.parameters()),
        },
        "config": state["config"],
        "data": dataclasses.asdict(data) | {"range": pixel_format.range and [*pixel_format.range]},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "git_commit": git_commit(),
        "images": list(images.messages),
        "metrics": {},
    }


@contextmanager
def _temporary_folder(to: Path) -> Iterator[Path]:
    """Yield a folder beside the target, which is deleted at the end unless it was moved."""
    with writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        folder = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
        folder.mkdir()  # tempfile would ignore the umask
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_target(to: Path) -> None:
    """Raise ConfigError where an export cannot be written, or would replace something else."""
    check_writable(to, "--to")
    if to.exists() and not _is_replaceable(to):
        raise ConfigError(f"{to}: exists and is not an export; choose another folder, or an empty one, with --to")


def _is_replaceable(path: Path) -> bool:
    """Whether it is an empty folder, or an export without further files."""
    if not path.is_dir():
        return False
    names = {file.name for file in path.iterdir()}
    try:
        return not names or names <= {MANIFEST, *read_manifest(path)["files"]}
    except DenoiseError:  # the manifest of another program
        return False


def _write_onnx(generator: Generator, path: Path, shape: tuple[int, ...]) -> None:
    """Write one file that includes the weights; batch size, height and width are dynamic."""
    multiple = generator.size_multiple
    dynamic = {
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
            dynamic_shapes=(dynamic,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    onnx.save(_without_metadata(onnx.load(path)), path)
    onnx.checker.check_model(path, full_check=True)


def _without_metadata(network: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the exporter's notes on each operator: paths on this machine, and 80 of the 2,448 KB of a small network."""
    graph = network.graph
    for part in (network, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    return network


def _compare(denoiser: Denoiser, generator: Generator, images: ImagePairs, noise: str) -> None:
    """Raise ExportError where onnxruntime and torch give different images."""
    noisy, _ = images.with_noise(noise, "validation")
    with torch.inference_mode():
        expected = generator(torch.from_numpy(noisy)).numpy()
    distance = float(np.abs(denoiser.batch(noisy) - expected).max())
    if not distance <= _TOLERANCE:
        raise ExportError(f"onnxruntime's output differs from torch's by {distance:.2g}, above {_TOLERANCE}")


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["files"] = _digests(folder)
    text = json.dumps(manifest, indent=2, allow_nan=False)
    write_atomically(folder / MANIFEST, text.encode())


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def replace_folder(target: Path, folder: Path) -> None:
    """Move a complete folder to its target; an earlier export there is deleted."""
    old = target.with_name(f".{target.name}.old.{os.getpid()}")
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def copy_export(source: Path, to: Path) -> None:
    """Copy an export to another folder, which appears whole or not at all. Raises ConfigError, OSError."""
    check_target(to)
    with _temporary_folder(to) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        replace_folder(to, folder)


def update_manifest(path: Path, **parts: Any) -> None:
    """Replace parts of an export's manifest, and write its model card anew. Raises OSError."""
    with _temporary_folder(path) as folder:
        shutil.copytree(path, folder, dirs_exist_ok=True)
        manifest = read_manifest(folder) | parts
        (folder / CARD_FILE).write_text(model_card(manifest, onnx_file=ONNX_FILE, strip_file=STRIP_FILE))
        manifest["files"] = _digests(folder)
        _write_manifest(folder, manifest)
        replace_folder(path, folder)
