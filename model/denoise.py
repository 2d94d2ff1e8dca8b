"""A deployable folder -> arrays of any size denoised. Needs onnxruntime and numpy, nothing else."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would call home, and keep what it tells below ~/.cache

import onnxruntime

from .common.errors import ConfigError
from .common.text import truncated_repr
from .common.validation import matches_type
from .config import ValueRange
from .data.pixel_format import PixelFormat

MANIFEST = "manifest.json"
_OUTSIDE = "session.model_external_initializers_file_folder_path"
_BLACK_FRAME = -0.75  # mean on [-1, 1]; clipped noise of 30/255 lifts black to -0.9
_BATCH_PIXELS = 1 << 18  # a batch of tiles; 256 of 32x32


class DenoiseError(ConfigError):
    """A model folder or an image that cannot be used; the message says which rule it breaks."""


class Denoiser:
    """The generator of an exported folder: `Denoiser(folder)(image)`.

    Its files must match the manifest's digests. Raises DenoiseError.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        model = self.manifest["model"]
        self.channels: int = model["channels"]
        self.image_size: int = model["image_size"]
        self.padding: int = model["padding"]
        self._pixel_format = _pixel_format_of(self.manifest)
        path = self.folder / model["file"]
        content = _verified(path, self.manifest["files"][model["file"]])
        try:
            options = onnxruntime.SessionOptions()
            # Weights outside the file have no digest, and would be looked for in the folder that happens to be current.
            options.add_session_config_entry(_OUTSIDE, "/dev/null/no-weights-outside-the-file")
            providers = onnxruntime.get_available_providers()
            self._session = onnxruntime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions have no common base but this
            raise DenoiseError(f"{path}: onnxruntime cannot load it: {error}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            raise DenoiseError(f"{path}: takes other inputs than one of float32 (N, C, H, W)")
        self._path, self._input = path, inputs[0].name
        self._try()

    def pixel_format(self, dtype: np.dtype[Any]) -> PixelFormat:
        """What the values of such images mean: of the depth that it was trained on what they meant there."""
        return self._pixel_format if dtype == self._pixel_format.dtype else PixelFormat(str(dtype))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Denoise one image of any size: (H, W) or (H, W, C), uint8, uint16 or float in [-1, 1]; gives the same shape
        and type. Black and white of uint16 are 0 and 65535, or those that the model was trained on.

        A model of grey images takes colour ones channel by channel; one of colour images takes a grey one three times,
        and gives the mean. Raises DenoiseError.
        """
        planes = self._planes(image)
        depth = None if np.issubdtype(image.dtype, np.floating) else self.pixel_format(image.dtype)
        noisy = np.clip(depth.to_unit(planes), -1, 1) if depth else planes
        denoised: np.ndarray = np.clip(self._tiled(np.ascontiguousarray(noisy, np.float32)), -1, 1)  # blending rounds
        if planes.size > image.size:
            denoised = denoised.mean(axis=1)
        denoised = depth.from_unit(denoised) if depth else denoised
        pixels = denoised.reshape(-1, *image.shape[:2]).astype(image.dtype)
        return pixels[0] if image.ndim == 2 else pixels.transpose(1, 2, 0)

    def batch(self, noisy: np.ndarray) -> np.ndarray:
        """The network itself: float32 (N, C, H, W) in [-1, 1], H and W multiples of the manifest's size_multiple.
        Raises DenoiseError."""
        step = max(1, _BATCH_PIXELS // (noisy.shape[2] * noisy.shape[3]))
        parts = [self._run(noisy[i : i + step]) for i in range(0, len(noisy), step)]
        return np.concatenate(parts)

    def _run(self, noisy: np.ndarray) -> np.ndarray:
        try:
            denoised: np.ndarray = self._session.run(None, {self._input: noisy})[0]
        except Exception as error:  # as above
            raise DenoiseError(f"{self._path}: onnxruntime cannot run it: {error}") from error
        if getattr(denoised, "shape", None) != noisy.shape or not np.isfinite(denoised).all():
            raise DenoiseError(f"{self._path}: its output is no image, or has values that are not finite")
        return denoised

    def _try(self) -> None:
        """Once, on grey: a network of another architecture, or that is broken, is told before it denoises anything."""
        self._run(np.zeros((1, self.channels, self.image_size, self.image_size), np.float32))

    def _planes(self, image: np.ndarray) -> np.ndarray:
        """(N, C, H, W) with C the model's channels."""
        if image.ndim not in (2, 3) or 0 in image.shape:
            raise DenoiseError(f"an image has the shape (H, W) or (H, W, C), not {image.shape}")
        if image.dtype not in (np.uint8, np.uint16):
            if not np.issubdtype(image.dtype, np.floating):
                raise DenoiseError(f"an image is uint8, uint16 or float in [-1, 1], not {image.dtype}")
            if not (np.isfinite(image).all() and image.min() >= -1 and image.max() <= 1):
                raise DenoiseError(
                    "a float image has finite values in [-1, 1]; images of 8 and 16 bits may come as uint8 and uint16"
                )
        planes = (image[None] if image.ndim == 2 else image.transpose(2, 0, 1))[:, None]
        if self.channels == 1:
            return planes
        if len(planes) == 1:
            planes = np.repeat(planes, self.channels, axis=0)
        if len(planes) != self.channels:
            raise DenoiseError(f"the model takes images of {self.channels} channels, not {len(planes)}")
        return planes.transpose(1, 0, 2, 3)

    def _tiled(self, noisy: np.ndarray) -> np.ndarray:
        """(N, C, H, W) of any size by tiles of the training size, half overlapping, blended by a raised cosine.

        Larger tiles would be worse than slower: at full depth the innermost layers see one pixel of the training size,
        and the weights for its neighbours have never learned anything. A network of fewer levels could take them, but
        the training size is what its quality was measured at.
        """
        size, half = self.image_size, self.image_size // 2
        height, width = noisy.shape[2:]
        if (height, width) == (size, size) and self._has_black_frame(noisy):
            return self.batch(noisy)
        rows, columns = math.ceil(height / half) + 1, math.ceil(width / half) + 1
        down, right = rows * half - height, columns * half - width
        padded = np.pad(noisy, ((0, 0), (0, 0), (half, down), (half, right)), mode="reflect")
        blended = np.zeros_like(padded)
        ramp = np.sin(np.pi * (np.arange(size, dtype=np.float32) + 0.5) / size) ** 2  # two of them add up to 1
        window = ramp[:, None] * ramp
        for corners in _chunks(rows * columns, max(1, _BATCH_PIXELS // size**2)):
            places = [(i // columns * half, i % columns * half) for i in corners]
            tiles = np.stack([padded[:, :, y : y + size, x : x + size] for y, x in places])
            denoised = self.batch(tiles.reshape(-1, *tiles.shape[2:])).reshape(tiles.shape) * window
            for (y, x), tile in zip(places, denoised, strict=True):
                blended[:, :, y : y + size, x : x + size] += tile
        return blended[:, :, half : half + height, half : half + width]

    def _has_black_frame(self, noisy: np.ndarray) -> bool:
        """Whether images of the training size have the frame that all training images had. Where they have, the network
        by itself is 0.3 dB better than tiles; where not, it blackens their edges and is 7 dB worse."""
        frame = self.padding
        if frame == 0:
            return True
        inside = noisy[:, :, frame:-frame, frame:-frame]
        return bool((noisy.sum() - inside.sum()) / (noisy.size - inside.size) < _BLACK_FRAME)


def _pixel_format_of(manifest: Mapping[str, Any]) -> PixelFormat:
    """Of a manifest, which may come from anywhere, or from before there was any but 8 bits. Raises DenoiseError."""
    dtype, value_range = manifest["model"].get("depth", "uint8"), manifest["data"].get("range")
    try:
        if not (isinstance(dtype, str) and matches_type(value_range, ValueRange | None)):
            raise ConfigError(f"depth={truncated_repr(dtype)}, range={truncated_repr(value_range)}: are none")
        return PixelFormat(dtype, value_range and tuple(value_range))
    except ConfigError as error:
        raise DenoiseError(f"{MANIFEST}: damaged or not ours ({error})") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises DenoiseError where the folder is no export."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(_read(path))
    except FileNotFoundError:
        inside = folder / "export"  # where searches and trainings have theirs
        hint = f"did you mean {inside}?" if (inside / MANIFEST).is_file() else "`hpo export` writes one"
        raise DenoiseError(f"{folder}: no export there (it has no {MANIFEST}); {hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DenoiseError(f"{path}: damaged or not ours ({type(error).__name__}: {error})") from error
    if wrong := _wrong_parts(manifest):
        raise DenoiseError(f"{path}: damaged or not ours (its {', '.join(wrong)})")
    return manifest


def _wrong_parts(manifest: Any) -> list[str]:
    """Of a manifest, which may come from anywhere."""
    if not isinstance(manifest, dict):
        return ["top: no mapping"]
    files: Any = manifest.get("files")
    model, strip = manifest.get("model"), manifest.get("strip")
    parts = {
        "files": isinstance(files, dict) and all(_is_name(n) and isinstance(d, str) for n, d in files.items()),
        "model": isinstance(model, dict) and _is_model(**{name: model.get(name) for name in _MODEL}),
        "origin": isinstance(manifest.get("origin"), dict),
        "data": isinstance(manifest.get("data"), dict),
        "metrics": isinstance(metrics := manifest.get("metrics"), dict) and all(map(_is_table, metrics.values())),
        "strip": strip is None or _is_row(strip),
    }
    wrong = [name for name, is_right in parts.items() if not is_right]
    named = [model["file"], *([strip.get("file")] if strip else [])] if not wrong else []  # type: ignore[index]
    return wrong + [f"file {truncated_repr(name)}" for name in named if not isinstance(name, str) or name not in files]


def _is_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..", MANIFEST)


_MODEL = ("file", "channels", "image_size", "padding")
_LARGEST = 4096  # pixels a side of a tile


def _is_model(file: Any, channels: Any, image_size: Any, padding: Any) -> bool:
    are_numbers = all(matches_type(number, int) for number in (channels, image_size, padding))
    return are_numbers and channels in (1, 3) and 2 <= image_size <= _LARGEST and 0 <= 2 * padding < image_size


def _is_table(rows: Any) -> bool:
    """See model.export_quality; None: not measured."""
    if rows is None:
        return True
    names = ("noisy", "denoised", "ground_truth")
    return (
        isinstance(rows, dict)
        and matches_type(rows.get("images"), int)
        and all(_is_row(rows.get(name)) for name in names)
    )


def _is_row(row: Any) -> bool:
    """PSNR can be the word inf."""
    if not isinstance(row, dict) or not all(matches_type(row.get(name), float) for name in ("l1", "ssim")):
        return False
    return matches_type(row.get("psnr_db"), float) or row.get("psnr_db") in ("inf", "nan")


def verify_files(folder: Path) -> dict[str, Any]:
    """The manifest, if all that it names is there and undamaged, and nothing else. Raises DenoiseError."""
    manifest = read_manifest(folder)
    for name, digest in manifest["files"].items():
        _verified(folder / name, digest)
    for path in sorted(folder.iterdir()):
        if path.name not in {MANIFEST, *manifest["files"]}:
            raise DenoiseError(f"{path}: is not in the manifest: this folder is not as it was exported")
    return manifest


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise OSError("no file")  # a pipe would be waited for
    return path.read_bytes()


def _verified(path: Path, digest: str) -> bytes:
    try:
        content = _read(path)
    except OSError as error:
        raise DenoiseError(f"{path}: cannot be read ({error})") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DenoiseError(f"{path}: its SHA-256 is not the manifest's: it was damaged or exchanged")
    return content


def _chunks(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
