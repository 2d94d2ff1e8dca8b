"""Exported networks with smaller numbers: float16, or integers of 8 bits. By onnxruntime's own tools."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from .common.errors import ConfigError, ErrorCollector
from .common.text import did_you_mean, truncated_repr
from .common.validation import matches_type
from .data.device_images import DeviceImages
from .data.image_sets import Images
from .latency import check_measuring

PRECISIONS = ("fp32", "fp16", "int8")
Precision = Literal["fp32", "fp16", "int8"]
MAX_LOSS_DB = 0.1
CALIBRATION_IMAGES = 512
_BATCH, _BATCH_PIXELS = 32, 1 << 18  # at most; a layer of 64 channels then has 67 MB
# Sums stay in float: as integers they lose more (0.035 instead of 0.018 dB at width 16), and gain no time.
_QUANTISED = ("Conv", "ConvTranspose", "Relu", "LeakyRelu", "Concat", "Resize")
_LAYERS = ("Conv", "ConvTranspose")


class PrecisionLossError(ConfigError):
    """A network with smaller numbers loses more than it may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkOptions:
    """In which precision the ONNX file of an export is written, and how its latency is measured.

    Raises:
        ConfigError: with all errors at once, but for those that depend on the network.
    """

    precision: Precision = "fp32"  # of its numbers; its input and output are float32 in any case
    max_loss_db: float | None = None  # how much PSNR that may cost on the validation images; None: MAX_LOSS_DB
    latency_size: int | None = None  # pixels a side of the image that is denoised; None: those of the training images
    latency_threads: int = 1  # of the CPU

    def __post_init__(self) -> None:
        errors = ErrorCollector()
        limit = self.max_loss_db
        if self.precision not in PRECISIONS:
            hint = did_you_mean(str(self.precision), PRECISIONS)
            errors.add(f"precision={truncated_repr(self.precision)}: {hint}")
        if limit is not None and not (matches_type(limit, float) and 0 <= limit < math.inf):
            shown = truncated_repr(limit)
            errors.add(f"max_loss_db={shown}: must be a number of dB, 0 or above, such as {MAX_LOSS_DB}")
        elif limit is not None and self.precision == "fp32":
            errors.add("max_loss_db: is for --precision fp16 or int8; fp32 loses nothing")
        errors.attempt(check_measuring, 1 if self.latency_size is None else self.latency_size, self.latency_threads)
        errors.raise_if_any()


def check_loss(precision: str, validation: dict[str, Any], float32: dict[str, Any], max_loss_db: float) -> float:
    """Return the loss of PSNR on the validation images, from two tables of model.export_quality.

    Raises:
        PrecisionLossError: it is above the limit.
    """
    mine, theirs = (float(rows["denoised"]["psnr_db"]) for rows in (validation, float32))
    loss_db = 0.0 if mine == theirs else theirs - mine
    if not loss_db <= max_loss_db:
        more = f"allow it with --max-loss-db {math.ceil(loss_db * 100) / 100:g}, or " if loss_db < math.inf else ""
        raise PrecisionLossError(
            f"precision={precision}: loses {loss_db:.3f} dB on {validation['images']:,} validation images "
            f"({mine:.3f} dB instead of {theirs:.3f}), above max_loss_db={max_loss_db:g}. Nothing was written; "
            f"{more}take --precision {'fp16' if precision == 'int8' else 'fp32'}"
        )
    return loss_db


def reduced(content: bytes, precision: Precision, images: Images, noise: str) -> bytes:
    """The network of a float32 ONNX file in another precision; it still takes and gives float32.

    Args:
        images: int8 is calibrated on noisy training images or crops.
    """
    network = onnx.load_from_string(content)
    if precision == "fp16":
        halved = ONNXModel(convert_float_to_float16(network, keep_io_types=True))
        halved.topological_sort()  # it appends the conversion of the input, where other runtimes do not find it
        smaller = halved.model
    else:
        smaller = _quantised(network, calibration_images(images, noise))
    onnx.checker.check_model(smaller, full_check=True)
    saved: bytes = smaller.SerializeToString()
    return saved


def _quantised(network: onnx.ModelProto, noisy: np.ndarray) -> onnx.ModelProto:
    """Quantise to 8 bits: activations without a sign, weights with one and a scale for each channel.

    The first and the last layer stay in float: that halves the loss and costs neither time nor size, because one side
    of them has as many channels as an image. Weights have 7 bits, because CPUs without VNNI overflow at 8; that costs
    0.007 dB. Ranges are a moving average over batches: the extremes of all images lose 0.001 to 0.004 dB more
    (docs/log.md).
    """
    layers = [node.name for node in network.graph.node if node.op_type in _LAYERS]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            network,
            path,
            _Reader(network.graph.input[0].name, noisy),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[layers[0], layers[-1]],
            extra_options={"CalibMovingAverage": True},
        )
        return onnx.load(path)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
    def __init__(self, name: str, noisy: np.ndarray) -> None:
        step = max(1, min(_BATCH, _BATCH_PIXELS // (noisy.shape[2] * noisy.shape[3])))
        self._batches = iter([{name: noisy[i : i + step]} for i in range(0, len(noisy), step)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """See onnxruntime."""
        return next(self._batches, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice to optimise the network first, which only fuses what it fuses later anyway."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def calibration_images(images: Images, noise: str) -> np.ndarray:
    """Noisy training images or crops, float32 (N, C, H, W) in [-1, 1]; always the same."""
    placed = DeviceImages.to_device(images, noise, torch.device("cpu"), num_validation=1)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(placed.train), generator=generator)[:CALIBRATION_IMAGES]
    noisy, _ = placed.batch(rows, generator)
    values: np.ndarray = noisy.numpy()
    return values
