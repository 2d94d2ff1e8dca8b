"""Exports that are written in a moment, with networks that multiply by a constant."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.denoise import MANIFEST


def save_model(folder: Path, *, weight: float = 1.0, channels: int = 1) -> None:
    """Write an export whose network multiplies by the weight."""
    value = numpy_helper.from_array(np.full((1, channels, 1, 1), weight, np.float32), "weight")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "h", "w"])
        for name in ("noisy", "denoised")
    ]
    node = helper.make_node("Mul", ["noisy", "weight"], ["denoised"])
    graph = helper.make_graph([node], "generator", ends[:1], ends[1:], [value])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir(exist_ok=True)
    onnx.save(made, folder / "generator.onnx")
    describe(folder, channels=channels)


def describe(folder: Path, **model: object) -> None:
    """Write a manifest with the right digests."""
    described = {"file": "generator.onnx", "channels": 1, "image_size": 16, "padding": 0, **model}
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("generator*")}
    rest = {"data": {"data": "photos", "noise": "gaussian:30", "crop": 16}, "origin": {}, "metrics": {}}
    (folder / MANIFEST).write_text(json.dumps({"model": described, "files": files, **rest}))
