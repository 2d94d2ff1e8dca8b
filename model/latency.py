"""Measures how long an exported network takes for one image, by onnxruntime."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .common.errors import ConfigError
from .common.machine import processor
from .common.text import truncated_repr
from .common.validation import matches_type, wrong_fields
from .config import TrainConfig
from .onnx_session import open_session

CPU = "CPUExecutionProvider"
_LARGEST_SIZE = 4096  # pixels a side
_MOST_THREADS = 1024
_ROUNDS = 10  # each measures every file, so that a busy minute hits all of them alike
_RUNS, _MOST_RUNS = 3, 100  # of one file in a round
_SECONDS = (
    0.05  # a round continues with a file until then: 30 runs of the smallest networks take 2 ms, as does a hiccup
)
_ONNX_LIMIT = 2**31 - 2**24  # bytes of weights; an ONNX file of more than 2 GiB needs a second one


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """How long one image takes, and on what that was measured. Raises ConfigError."""

    median_ms: float
    p95_ms: float  # 95 % of the runs took less
    runs: int
    size: int  # pixels a side of the image
    threads: int  # of the CPU
    device: str  # cpu, or the GPU's name
    processor: str  # the CPU's name
    provider: str  # onnxruntime's, such as CPUExecutionProvider
    onnxruntime: str  # its version

    def __post_init__(self) -> None:
        errors = wrong_fields(Latency, dataclasses.asdict(self))
        if not errors:
            errors = [
                f"{name}={value}: must be {rule}"
                for name, value, is_right, rule in (
                    ("median_ms", self.median_ms, 0 < self.median_ms < math.inf, "finite and above 0"),
                    (
                        "p95_ms",
                        self.p95_ms,
                        self.median_ms <= self.p95_ms < math.inf,
                        "finite, not below median_ms",
                    ),
                    ("runs", self.runs, self.runs >= 1, "at least 1"),
                    ("size", self.size, self.size >= 1, "at least 1"),
                    ("threads", self.threads, self.threads >= 1, "at least 1"),
                )
                if not is_right
            ]
        if errors:
            raise ConfigError("\n".join(errors))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Latency:
        """Parse the values of an untrusted manifest. Raises ConfigError."""
        if wrong := wrong_fields(cls, values):
            raise ConfigError("\n".join(wrong))
        return cls(**values)

    @property
    def conditions(self) -> str:
        """What was measured, and on what, for people."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        where = self.processor if self.device == "cpu" else f"{self.device} with {self.processor}"
        return (
            f"{self.size}x{self.size} pixels, {self.runs} runs, {threads}, {where}, {self.provider} of "
            f"onnxruntime {self.onnxruntime}"
        )

    def __str__(self) -> str:
        return f"{self.median_ms:.3g} ms (95th percentile {self.p95_ms:.3g} ms): {self.conditions}"


def check_measuring(size: int, threads: int, size_multiple: int = 1) -> None:
    """Raise ConfigError where a network of this size multiple cannot be measured at a size or with these threads."""
    errors = []
    if not (matches_type(size, int) and 1 <= size <= _LARGEST_SIZE):
        errors.append(f"latency size={truncated_repr(size)}: must be at least 1 and at most {_LARGEST_SIZE} pixels")
    elif size % size_multiple:
        nearest = max(round(size / size_multiple), 1) * size_multiple
        errors.append(
            f"latency size={size}: must be a multiple of {size_multiple}, because the network halves the image; "
            f"the nearest is {nearest}"
        )
    if not (matches_type(threads, int) and 1 <= threads <= _MOST_THREADS):
        cores = len(os.sched_getaffinity(0))
        errors.append(
            f"latency threads={truncated_repr(threads)}: must be at least 1 and at most {_MOST_THREADS}; "
            f"this machine has {cores} core{'s' * (cores > 1)}"
        )
    if errors:
        raise ConfigError("\n".join(errors))


def measure_latency(file: Path | bytes, *, size: int, threads: int = 1) -> Latency:
    """Measure one ONNX file; see measure_latencies."""
    return measure_latencies([file], size=size, threads=threads)[0]


def measure_latencies(
    files: Sequence[Path | bytes], *, size: int, threads: int = 1, counts_waiting: bool = True
) -> list[Latency]:
    """Measure ONNX files, in turns, on one image: median and 95th percentile of 30 to 1,000 runs after a warm-up.

    The image is in the CPU's memory before and after each run. With a GPU a run includes both copies.

    Args:
        files: paths or contents, of networks with one input (N, C, H, W).
        size: pixels a side, a multiple of each network's size_multiple.
        threads: threads of the CPU for one operator.
        counts_waiting: whether a run lasts longer while other processes have the CPU. If not, it is with one thread
            that thread's time on the CPU, which is the same on a machine that does nothing else.

    Raises:
        ConfigError: onnxruntime cannot run a file, or not at this size.
    """
    return _measure(files, size, threads, time.perf_counter if counts_waiting else _own_clock(threads))


def _own_clock(threads: int) -> Callable[[], float]:
    return time.thread_time if threads == 1 else time.perf_counter


def _measure(files: Sequence[Path | bytes], size: int, threads: int, cpu_clock: Callable[[], float]) -> list[Latency]:
    check_measuring(size, threads)
    try:
        sessions = [open_session(f if isinstance(f, bytes) else f.read_bytes(), threads=threads) for f in files]
        images = [_image(session, size) for session in sessions]
        for session, image in zip(sessions, images, strict=True):
            session.run(None, image)  # a first run plans the memory, and takes several times as long
        seconds: list[list[float]] = [[] for _ in files]
        for _ in range(_ROUNDS):
            for session, image, so_far in zip(sessions, images, seconds, strict=True):
                clock = cpu_clock if _provider(session) == CPU else time.perf_counter
                so_far.extend(_round(session, image, clock))
    except OSError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no other common base
        raise ConfigError(f"onnxruntime cannot run the network on one image of {size}x{size}: {error}") from error
    return [_summary(*each, size, threads) for each in zip(sessions, seconds, strict=True)]


def _provider(session: onnxruntime.InferenceSession) -> str:
    name: str = session.get_providers()[0]
    return name


def _image(session: onnxruntime.InferenceSession, size: int) -> dict[str, np.ndarray]:
    (noisy,) = session.get_inputs()
    image = np.random.default_rng(0).uniform(-1, 1, (1, noisy.shape[1], size, size))
    return {noisy.name: image.astype(np.float32)}


def _round(
    session: onnxruntime.InferenceSession, image: dict[str, np.ndarray], clock: Callable[[], float]
) -> list[float]:
    """Seconds of some runs in a row, without the first: it may find another network's weights in the CPU's cache."""
    session.run(None, image)
    taken: list[float] = []
    ends = time.perf_counter() + _SECONDS
    while len(taken) < _RUNS or (time.perf_counter() < ends and len(taken) < _MOST_RUNS):
        started = clock()
        session.run(None, image)
        taken.append(clock() - started)
    return taken


def _summary(session: onnxruntime.InferenceSession, seconds: list[float], size: int, threads: int) -> Latency:
    median, p95 = np.percentile(seconds, [50, 95])
    provider = _provider(session)
    return Latency(
        median_ms=float(median) * 1e3,
        p95_ms=float(p95) * 1e3,
        runs=len(seconds),
        size=size,
        threads=threads,
        device="cpu" if provider == CPU else _gpu_name(provider),
        processor=processor(),
        provider=provider,
        onnxruntime=onnxruntime.__version__,
    )


def _gpu_name(provider: str) -> str:
    import torch  # noqa: PLC0415 - only who denoises on a GPU and measures needs it

    return torch.cuda.get_device_name() if torch.cuda.is_available() else provider.removesuffix("ExecutionProvider")


def untrained_figures(
    config: TrainConfig, shape: Sequence[int], *, size: int | None = None, threads: int = 1
) -> dict[str, float]:
    """What is known of a generator before it is trained: latency (ms), params (number), size_mb (MB of its ONNX file).

    The weights are random. torch's former exporter writes the file: in 0.1 s instead of 4 s, with the same latency
    (docs/log.md); what is exported in the end is measured again. Other trials share the CPU, so with one thread the
    latency is the thread's time on the CPU, which waiting does not lengthen.

    Args:
        shape: (C, H, W) of the training images.
        size: pixels a side of the image that is denoised; None: that of the training images.

    Raises:
        ConfigError: the network does not take such images, or is too large for an ONNX file.
    """
    import torch  # noqa: PLC0415 - Denoiser works without it, and reads manifests with a Latency

    from .generator import Generator  # noqa: PLC0415 - as above

    channels, image_size, _ = shape
    with torch.device("meta"):  # needs no memory
        planned = Generator(config, channels=channels, image_size=image_size)
    size = image_size if size is None else size
    check_measuring(size, threads, planned.size_multiple)
    params = sum(p.numel() for p in planned.parameters())
    if 4 * params > _ONNX_LIMIT:
        raise ConfigError(f"width={config.width}: makes {params:,} parameters, too many for an ONNX file (2 GiB)")
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # the training's random numbers stay what they are
        generator = Generator(config, channels=channels, image_size=image_size).eval()
        for tensor in generator.state_dict().values():
            if tensor.is_floating_point():  # weights that begin as zeros would be stored once for all layers
                tensor.add_(0.02 * torch.randn_like(tensor).abs())
        content = _former_export(generator, channels)
    (latency,) = _measure([content], size, threads, _own_clock(threads))
    return {"latency": latency.median_ms, "params": params, "size_mb": len(content) / 1e6}


def _former_export(generator: Any, channels: int) -> bytes:
    """An ONNX file for any size, by torch's exporter of before 2.5, which runs the network once."""
    import torch  # noqa: PLC0415 - as above

    file: Any = io.BytesIO()  # which its types deny
    multiple = generator.size_multiple
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is the former one
        torch.onnx.export(
            generator,
            (torch.zeros(2, channels, 2 * multiple, 2 * multiple),),
            file,
            input_names=["noisy"],
            output_names=["denoised"],
            dynamic_axes={name: {0: "batch", 2: "rows", 3: "columns"} for name in ("noisy", "denoised")},
            dynamo=False,
            opset_version=20,
        )
    content: bytes = file.getvalue()
    return content
