"""Checkpoints: one safetensors file each, written atomically, with a digest of everything inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from .common.errors import MachineError
from .common.files import write_atomically

_DIGEST, _STATE = "sha256", "state"


class CheckpointError(MachineError):
    """A checkpoint is missing, damaged or not of this program."""


def save_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a state as one file, atomically: a reader sees the old file or the new one.

    The file includes its digest, since two files could not be replaced in one step.

    Args:
        tensors: of any shape and device, by name.
        state: JSON-ready.

    Raises:
        OSError: it cannot be written.
    """
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state, allow_nan=False)
    content = save(packed, metadata={_STATE: text, _DIGEST: _digest(packed, text)})
    write_atomically(path, content)


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the state. Nothing is unpickled. Raises CheckpointError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: checkpoint not found") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        text, digest = metadata[_STATE], metadata[_DIGEST]
        is_whole = _digest(tensors, text) == digest
        state = json.loads(text) if is_whole else {}
    except Exception as error:  # of safetensors, json, or torch for impossible tensors
        raise CheckpointError(f"{path}: damaged ({error})") from error
    if not is_whole:
        raise CheckpointError(f"{path}: damaged (its SHA-256 does not match)")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint of this program (its state must be a mapping)")
    return tensors, state


def _digest(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
