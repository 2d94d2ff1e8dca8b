"""Denoises arrays of any size with an exported folder. Of third-party packages it needs onnxruntime and numpy."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .common.errors import ConfigError
from .common.text import truncated_repr
from .common.validation import matches_type
from .config import ValueRange
from .data.pixel_format import PixelFormat
from .latency import Latency
from .onnx_session import open_session

MANIFEST = "manifest.json"
_BLACK_FRAME = -0.75  # mean on [-1, 1]; clipped noise of 30/255 lifts black to -0.9
_BATCH_PIXELS = 1 << 18  # a batch of tiles; 256 of 32x32


class DenoiseError(ConfigError):
    """A model folder or an image cannot be used; the message names the broken rule."""


class Denoiser:
    """The generator of an exported folder: `Denoiser(folder)(image)`.

    Raises:
        DenoiseError: the folder is not an export, differs from its manifest's digests, or its network does not run.
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
            self._session = open_session(content)
        except Exception as error:  # onnxruntime's exceptions have no other common base
            raise DenoiseError(f"{path}: onnxruntime cannot load it: {error}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            raise DenoiseError(f"{path}: must take one input, float32 (N, C, H, W)")
        self._path, self._input = path, inputs[0].name
        self._run(np.zeros((1, self.channels, self.image_size, self.image_size), np.float32))  # fails early if broken

    def pixel_format(self, dtype: np.dtype[Any]) -> PixelFormat:
        """The format of images of this type: with the range of the training, if it had the same type."""
        return self._pixel_format if dtype == self._pixel_format.dtype else PixelFormat(str(dtype))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Denoise one image of any size, and return one of the same shape and type.

        A model of grey images denoises each channel of a colour image separately; a model of colour images denoises a
        grey image in all channels and takes their mean.

        Args:
            image: (H, W) or (H, W, C); uint8, uint16 or float in [-1, 1]. Black and white of uint16 are 0 and 65535, or
                those of the training.

        Raises:
            DenoiseError: the image has another shape or type, or the network fails.
        """
        planes = self._planes(image)
        pixel_format = None if np.issubdtype(image.dtype, np.floating) else self.pixel_format(image.dtype)
        noisy = np.clip(pixel_format.to_unit(planes), -1, 1) if pixel_format else planes
        denoised: np.ndarray = np.clip(self._tiled(np.ascontiguousarray(noisy, np.float32)), -1, 1)
        if planes.size > image.size:
            denoised = denoised.mean(axis=1)
        denoised = pixel_format.from_unit(denoised) if pixel_format else denoised
        pixels = denoised.reshape(-1, *image.shape[:2]).astype(image.dtype)
        return pixels[0] if image.ndim == 2 else pixels.transpose(1, 2, 0)

    def batch(self, noisy: np.ndarray) -> np.ndarray:
        """Run the network on float32 (N, C, H, W) in [-1, 1]. Raises DenoiseError.

        H and W must be multiples of the manifest's size_multiple.
        """
        step = max(1, _BATCH_PIXELS // (noisy.shape[2] * noisy.shape[3]))
        parts = [self._run(noisy[i : i + step]) for i in range(0, len(noisy), step)]
        return np.concatenate(parts)

    def _run(self, noisy: np.ndarray) -> np.ndarray:
        try:
            denoised: np.ndarray = self._session.run(None, {self._input: noisy})[0]
        except Exception as error:  # no other common base
            raise DenoiseError(f"{self._path}: onnxruntime cannot run it: {error}") from error
        if getattr(denoised, "shape", None) != noisy.shape or not np.isfinite(denoised).all():
            raise DenoiseError(f"{self._path}: its output is not an image, or has values that are not finite")
        return denoised

    def _planes(self, image: np.ndarray) -> np.ndarray:
        """Check an image, and return it as (N, C, H, W) with C the model's channels."""
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
        """Denoise (N, C, H, W) by tiles of the training size that overlap by half, blended by a raised cosine.

        Larger tiles would be wrong: at full depth the innermost layers see one pixel at the training size, and the
        weights for its neighbours are untrained. A network of fewer levels could take them, but its quality was
        measured at the training size.
        """
        size, half = self.image_size, self.image_size // 2
        height, width = noisy.shape[2:]
        if (height, width) == (size, size) and self._has_black_frame(noisy):
            return self.batch(noisy)
        rows, columns = math.ceil(height / half) + 1, math.ceil(width / half) + 1
        down, right = rows * half - height, columns * half - width
        padded = np.pad(noisy, ((0, 0), (0, 0), (half, down), (half, right)), mode="reflect")
        blended = np.zeros_like(padded)
        ramp = np.sin(np.pi * (np.arange(size, dtype=np.float32) + 0.5) / size) ** 2  # two overlapping ones add up to 1
        window = ramp[:, None] * ramp
        all_corners = [(row * half, column * half) for row in range(rows) for column in range(columns)]
        step = max(1, _BATCH_PIXELS // size**2)
        for start in range(0, len(all_corners), step):
            corners = all_corners[start : start + step]
            tiles = np.stack([padded[:, :, y : y + size, x : x + size] for y, x in corners])
            denoised = self.batch(tiles.reshape(-1, *tiles.shape[2:])).reshape(tiles.shape) * window
            for (y, x), tile in zip(corners, denoised, strict=True):
                blended[:, :, y : y + size, x : x + size] += tile
        return blended[:, :, half : half + height, half : half + width]

    def _has_black_frame(self, noisy: np.ndarray) -> bool:
        """Whether images of the training size have the black frame of the training images.

        With it the network alone is 0.3 dB better than tiles; without it, it blackens edges and is 7 dB worse.
        """
        frame = self.padding
        if frame == 0:
            return True
        inside = noisy[:, :, frame:-frame, frame:-frame]
        return bool((noisy.sum() - inside.sum()) / (noisy.size - inside.size) < _BLACK_FRAME)


def _pixel_format_of(manifest: Mapping[str, Any]) -> PixelFormat:
    """Parse it from an untrusted manifest; old ones have 8 bits only. Raises DenoiseError."""
    dtype, value_range = manifest["model"].get("depth", "uint8"), manifest["data"].get("range")
    try:
        if not (isinstance(dtype, str) and matches_type(value_range, ValueRange | None)):
            raise ConfigError(f"depth={truncated_repr(dtype)}, range={truncated_repr(value_range)}: not valid")
        return PixelFormat(dtype, value_range and tuple(value_range))
    except ConfigError as error:
        raise DenoiseError(f"{MANIFEST}: damaged or not ours ({error})") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check a folder's manifest. Raises DenoiseError."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(_read(path))
    except FileNotFoundError:
        inside = folder / "export"  # of a search or a training
        hint = f"did you mean {inside}?" if (inside / MANIFEST).is_file() else "`hpo export` writes one"
        raise DenoiseError(f"{folder}: not an export (it has no {MANIFEST}); {hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DenoiseError(f"{path}: damaged or not ours ({type(error).__name__}: {error})") from error
    if wrong := _wrong_parts(manifest):
        raise DenoiseError(f"{path}: damaged or not ours (its {', '.join(wrong)})")
    return manifest


def _wrong_parts(manifest: Any) -> list[str]:
    """The names of invalid parts of an untrusted manifest."""
    if not isinstance(manifest, dict):
        return ["top level must be a mapping"]
    files: Any = manifest.get("files")
    model, strip = manifest.get("model"), manifest.get("strip")
    parts = {
        "files": isinstance(files, dict) and all(_is_name(n) and isinstance(d, str) for n, d in files.items()),
        "model": isinstance(model, dict) and _is_model(model),
        "origin": isinstance(manifest.get("origin"), dict),
        "data": isinstance(manifest.get("data"), dict),
        "metrics": _are_tables(manifest.get("metrics")),
        "strip": strip is None or _is_row(strip),
        # These are not in old manifests.
        "latency": manifest.get("latency") is None or _is_measured(manifest),
        "loss": (loss := manifest.get("loss")) is None
        or (isinstance(loss, dict) and matches_type(loss.get("psnr_db"), float)),
        "float32": (float32 := manifest.get("float32")) is None
        or (isinstance(float32, dict) and _are_tables(float32.get("metrics")) and _is_measured(float32)),
    }
    wrong = [name for name, is_right in parts.items() if not is_right]
    named = [model["file"], *([strip.get("file")] if strip else [])] if not wrong else []  # type: ignore[index]
    return wrong + [f"file {truncated_repr(name)}" for name in named if not isinstance(name, str) or name not in files]


def _is_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..", MANIFEST)


_LARGEST = 4096  # pixels a side of a tile


def _is_model(model: Mapping[str, Any]) -> bool:
    numbers: list[Any] = [model.get(name) for name in ("channels", "image_size", "padding")]
    channels, image_size, padding = numbers
    are_numbers = all(matches_type(number, int) for number in (*numbers, model.get("size_multiple", 1)))
    if not are_numbers or model.get("size_multiple", 1) < 1:
        return False
    return channels in (1, 3) and 2 <= image_size <= _LARGEST and 0 <= 2 * padding < image_size


def _is_measured(network: Mapping[str, Any]) -> bool:
    """Whether it has the precision, the size and the latency of a network."""
    try:
        Latency.from_dict(network.get("latency"))
    except ConfigError:
        return False
    return isinstance(network.get("precision"), str) and matches_type(network.get("size_mb"), float)


def _are_tables(metrics: Any) -> bool:
    return isinstance(metrics, dict) and all(map(_is_table, metrics.values()))


def _is_table(rows: Any) -> bool:
    """Whether it is a table of model.export_quality, or None for not measured."""
    if rows is None:
        return True
    names = ("noisy", "denoised", "ground_truth")
    return (
        isinstance(rows, dict)
        and matches_type(rows.get("images"), int)
        and all(_is_row(rows.get(name)) for name in names)
    )


def _is_row(row: Any) -> bool:
    """Whether it is a row of such a table, whose PSNR may be the string inf. Older ones have no HaarPSI."""
    if not isinstance(row, dict):
        return False
    names = ("l1", "ssim", *(["haarpsi"] if "haarpsi" in row else []))
    if not all(matches_type(row.get(name), float) for name in names):
        return False
    return matches_type(row.get("psnr_db"), float) or row.get("psnr_db") in ("inf", "nan")


def verify_files(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder with exactly the files that it names, undamaged. Raises DenoiseError."""
    manifest = read_manifest(folder)
    for name, digest in manifest["files"].items():
        _verified(folder / name, digest)
    for path in sorted(folder.iterdir()):
        if path.name not in {MANIFEST, *manifest["files"]}:
            raise DenoiseError(f"{path}: is not in the manifest; the folder was changed after the export")
    return manifest


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise OSError("not a file")  # reading a pipe would wait
    return path.read_bytes()


def _verified(path: Path, digest: str) -> bytes:
    try:
        content = _read(path)
    except OSError as error:
        raise DenoiseError(f"{path}: cannot be read ({error})") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DenoiseError(f"{path}: its SHA-256 differs from the manifest's; it was damaged or replaced")
    return content
