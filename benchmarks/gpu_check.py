"""What a GPU makes of this project, in one table and at most eight minutes: python benchmarks/gpu_check.py

Nothing is downloaded: the images are smooth random blobs of Fashion-MNIST's shape (uint8, 28x28, padded to 32x32), made
from a seed. The first half is the product's own step (model/gan.py) and needs torch and NumPy alone. The second half is
`hpo search` itself, and is left out where something that it needs is missing.

Every part has a process of its own and a share of the time: what fails, or takes longer, is a row that says why, and
the check goes on. An agreement is ok within its tolerance, a speed where it was measured and every loss was finite:
what is fast enough is the reader's to say. Exit code 0: all was ok, or not available for a reason that is no fault (no
Ray, or no torch.compile); 1: something differs, or a part failed; 2: bad arguments, or no GPU.

    python benchmarks/gpu_check.py --minutes 4               # shorter measurements, and less patience with each part
    python benchmarks/gpu_check.py --only agreement speed    # these parts alone
    python benchmarks/gpu_check.py --cpu                     # a reduced form that shows that the check itself works
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as hpo.tune.ray_session
sys.path.append(str(Path(__file__).resolve().parents[1]))  # where the package is not installed

import numpy as np
import torch
from machine import processor
from plain_pix2pix import NOISE_STD, PlainPix2Pix, loader, with_plain_layers
from torch.utils.flop_counter import FlopCounterMode

from model import metrics
from model.common.text import sanitize_for_terminal
from model.config import TrainConfig
from model.gan import LOSS_NAMES, Gan

ROOT = Path(__file__).resolve().parents[1]
SIDE, PADDING = 32, 2
OK, DIFFERS, NOT_AVAILABLE = "ok", "differs", "not available"
CPU = torch.device("cpu")
_NO_BFLOAT16, _NOT_FINITE, _TOO_FAR = "this GPU does not multiply it", "a loss is not finite", "too far apart"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of what is measured."""

    widths: tuple[int, ...]
    batches: tuple[int, ...]
    width: int  # of the parts that take one size
    batch: int
    together: int  # trainings side by side
    images: int
    matrix: int  # rows of the product that tells the peak
    measurements: float  # in the whole of the time: each has its part of it
    epoch: int  # images of an epoch of the search
    compiler: str


ON_GPU = Sizes(
    widths=(16, 32, 64), batches=(64, 256), width=32, batch=64, together=8, images=8192, matrix=8192,
    measurements=80, epoch=24_000, compiler="inductor",
)  # fmt: skip
ON_CPU = Sizes(
    widths=(2, 4), batches=(16,), width=4, batch=16, together=2, images=256, matrix=256,
    measurements=4000, epoch=512, compiler="aot_eager",  # inductor compiles C++ for a minute or more
)  # fmt: skip

# The largest difference to the CPU's float32, as a share of the largest value; of losses, each of its own. The CPU
# computes another way: contiguous memory, and ordinary convolutions where the trainer multiplies matrices. On a CPU
# that leaves 3e-6 of float32, and of bfloat16, emulated, at most half of what is allowed here. TF32, with three bits
# more than bfloat16, would be above the first line.
TOLERANCES = {
    "float32": {"output": 2e-4, "losses": 5e-5, "metric": 5e-5, "gradients": 1e-3, "after steps": 1e-3},
    "bfloat16": {"output": 0.03, "losses": 5e-3, "metric": 0.01, "gradients": 0.1, "after steps": 0.02},
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Of the table. excused: not available, and no fault."""

    what: str
    figure: str = ""
    beside: str = ""
    verdict: str = OK
    why: str = ""
    excused: bool = False
    numbers: dict[str, float] = field(default_factory=dict)


def measured(what: str, figure: str, beside: str, wrong: str = "", **numbers: float) -> Row:
    """wrong: why it is not ok."""
    verdict = DIFFERS if wrong else OK
    return Row(what=what, figure=figure, beside=beside, verdict=verdict, why=in_short(wrong), numbers=numbers)


def unavailable(what: str, why: object, *, excused: bool = False) -> Row:
    """With its reason."""
    return Row(what=what, verdict=NOT_AVAILABLE, why=in_short(why), excused=excused)


def in_short(why: object) -> str:
    """The first words of a reason, for a cell of a table."""
    told = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else why
    return " ".join(sanitize_for_terminal(told).split()).replace("|", "/")[:200]


@dataclass(frozen=True, kw_only=True)
class Check:
    """What every part is given."""

    device: torch.device
    sizes: Sizes
    seconds: float  # of one measurement
    tolerance: float  # all tolerances times this
    words: tuple[str, ...] = ()  # that say the same to a process of this check

    def config(self, width: int | None = None, batch: int | None = None, **settings: Any) -> TrainConfig:
        """The slides' networks and losses, in the precision that `auto` would choose on a GPU."""
        precision = "float32" if self.device == CPU or self.lacks("bfloat16") else "bfloat16"
        base = {"width": width or self.sizes.width, "batch_size": batch or self.sizes.batch, "precision": precision}
        return TrainConfig(**{**base, **settings})

    def begin(self, config: TrainConfig, *, capturable: bool = False) -> tuple[Training, Shown]:
        """A training, and the images that it is shown."""
        training = Training(config, self.device, capturable=capturable)
        return training, Shown(blobs(self.sizes.images), config.batch_size, self.device)

    def lacks(self, precision: str) -> bool:
        """Whether it is bfloat16, and the GPU itself does not multiply it. What CPUs emulate is enough for figures."""
        on_gpu = self.device.type == "cuda"
        return precision == "bfloat16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False)

    @property
    def size(self) -> str:
        """Of the parts that take one."""
        return f"width {self.sizes.width}, batch {self.sizes.batch}"


# --- images and trainings -------------------------------------------------------------------------------------------


def blobs(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random images, uint8 (N, 1, 32, 32): six Gaussian bumps each, on black, and a black edge."""
    random, side = np.random.default_rng(seed), SIDE - 2 * PADDING
    centre, spread = random.uniform(0, side, (2, count, 6, 1)), random.uniform(2, 7, (2, count, 6, 1))
    rows, columns = np.exp(-0.5 * ((np.arange(side) - centre) / spread) ** 2)
    images = np.einsum("nk,nky,nkx->nyx", random.uniform(40, 200, (count, 6)), rows, columns)
    edge = (PADDING, PADDING)
    return np.pad(images.clip(0, 255).astype(np.uint8), ((0, 0), edge, edge))[:, None]


class Shown:
    """Images on a device, batch after batch in one shuffled order, noised there: what model.data.image_sets does."""

    def __init__(self, images: np.ndarray, batch: int, device: torch.device) -> None:
        self.images, self.draw = torch.from_numpy(images).to(device), torch.Generator(device).manual_seed(1)
        order = torch.from_numpy(np.random.default_rng(2).permutation(len(images))).to(device)
        self._batches, self._next = torch.split(order, batch)[: len(images) // batch], 0

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy and clean, float32 (N, 1, 32, 32) in [-1, 1]."""
        rows = self._batches[self._next % len(self._batches)]
        self._next += 1
        clean = self.images[rows].float().div_(127.5).sub_(1)
        normal = torch.empty_like(clean).normal_(generator=self.draw)
        return clean.add(normal, alpha=NOISE_STD * 2 / 255).clamp(-1, 1), clean


class Training:
    """The product's networks and optimisers, stepped without reports, checkpoints and schedule."""

    def __init__(self, config: TrainConfig, device: torch.device, *, capturable: bool = False) -> None:
        self.gan = Gan(config, channels=1, image_size=SIDE, device=device, capturable=capturable)
        self.steps = 0
        self.totals = torch.zeros(len(LOSS_NAMES), device=device)

    def advance(self, shown: Shown) -> None:
        """One step on the next batch."""
        self.totals += self.step(*shown.batch())

    def step(self, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """One update of both networks and of the moving average; gives the five losses."""
        found = self.gan.step(noisy, clean)
        self.gan.update_ema(self.steps)
        self.steps += 1
        return found


class Plain:
    """The peer, batch after batch."""

    def __init__(self, config: TrainConfig, images: np.ndarray, device: torch.device) -> None:
        self._plain = PlainPix2Pix(config, channels=1, image_size=SIDE, device=device)
        self._loader = loader(images.astype(np.float32) / 127.5 - 1, config.batch_size)
        self._batches = iter(self._loader)
        self.last = (0.0, 0.0)

    def advance(self) -> None:
        """One step on the next batch."""
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self._loader)
            batch = next(self._batches)
        self.last = self._plain.step(*batch)


# --- how fast -------------------------------------------------------------------------------------------------------

_ROUNDS, _WARM = 5, 5


def steps_per_second(
    works: Mapping[str, Callable[[], object]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Of each one, round by round: they take turns, since machines are noisy and ratios are not. seconds: of each."""
    counts, measured = {}, {name: [0.0] * _ROUNDS for name in works}
    for name, work in works.items():
        _timed(work, _WARM, device)
        counts[name] = max(1, round(seconds / _ROUNDS * _WARM / _timed(work, _WARM, device)))
    for turn in range(_ROUNDS):
        for name, work in works.items():
            measured[name][turn] = counts[name] / _timed(work, counts[name], device)
    return measured


def _timed(work: Callable[[], object], count: int, device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def matrix_peak(check: Check, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best round."""
    rows = check.sizes.matrix
    a = torch.randn(rows, rows, device=check.device).to(dtype)
    speeds = steps_per_second({"product": lambda: a @ a}, check.device, check.seconds / 3)
    return 2 * rows**3 * max(speeds["product"])


def speed(check: Check) -> Iterator[Row]:
    """The trainer's step beside plain pix2pix, and as a share of what the device multiplies at most."""
    peaks: dict[str, float] = {}
    for name in TOLERANCES:
        if check.lacks(name):
            yield unavailable(f"matrix peak, {name}", _NO_BFLOAT16, excused=True)
            continue
        peak = peaks[name] = matrix_peak(check, getattr(torch, name))
        beside = f"a product of two {check.sizes.matrix}x{check.sizes.matrix} matrices"
        yield measured(f"matrix peak, {name}", f"{peak / 1e12:.3g} TFLOP/s", beside, flop_per_second=peak)
    for width in check.sizes.widths:
        for batch in check.sizes.batches:
            yield _throughput(check, check.config(width, batch), peaks)


def _throughput(check: Check, config: TrainConfig, peaks: Mapping[str, float]) -> Row:
    ours, shown = check.begin(config)
    with FlopCounterMode(display=False) as counter:
        ours.advance(shown)
    plain = Plain(config, blobs(check.sizes.images), check.device)
    works = {"ours": partial(ours.advance, shown), "plain": plain.advance}
    speeds = steps_per_second(works, check.device, check.seconds)
    per_second = {name: config.batch_size * statistics.median(rounds) for name, rounds in speeds.items()}
    times = ratio(speeds["ours"], speeds["plain"])
    share = counter.get_total_flops() / config.batch_size * per_second["ours"] / peaks[config.precision]
    finite = all(map(math.isfinite, [*ours.totals.tolist(), *plain.last]))
    return measured(
        f"training, width {config.width}, batch {config.batch_size}",
        f"{per_second['ours']:,.0f} images/s, {share:.2%} of the {config.precision} peak",
        f"plain pix2pix in float32: {per_second['plain']:,.0f} images/s; ratio {times:.2f}",
        "" if finite else _NOT_FINITE,
        **{"images_per_second": per_second["ours"], "plain": per_second["plain"], "ratio": times, "share": share},
    )


# --- the same figures as on the CPU ---------------------------------------------------------------------------------

_VALIDATING = "generator's image, validating"
_KINDS = {
    "generator's image": "output", "discriminator's logits": "output", "losses": "losses", "SSIM": "metric",
    "PSNR": "metric", "generator's gradients": "gradients", "discriminator's gradients": "gradients",
    _VALIDATING: "output",
}  # fmt: skip


def agreement(check: Check) -> Iterator[Row]:
    """Two networks after a few steps on the CPU, and what both devices then make of one batch."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    config = check.config(dropout=0.0, precision="float32")  # dropout draws other numbers on each device
    shown, trained = Shown(blobs(check.sizes.images), config.batch_size, CPU), Training(config, CPU)
    for _ in range(10):
        trained.advance(shown)
    for network in (trained.gan.generator, trained.gan.discriminator):
        with_plain_layers(network.to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]
    weights = [copy.deepcopy(net.state_dict()) for net in (trained.gan.generator, trained.gan.discriminator)]
    batch = shown.batch()
    reference = outcome(trained, *batch)
    for precision, tolerances in TOLERANCES.items():
        if check.lacks(precision):
            yield unavailable(f"{precision} beside the CPU", _NO_BFLOAT16, excused=True)
            continue
        training = on_device(check.config(dropout=0.0, precision=precision), check.device, weights)
        for name, value in outcome(training, *(tensor.to(check.device) for tensor in batch)).items():
            if name != _VALIDATING or precision == "float32":  # which it always has
                limit = check.tolerance * tolerances[_KINDS[name]]
                yield compared(f"{precision}, {name}", value, reference[name], limit)


def on_device(config: TrainConfig, device: torch.device, weights: Sequence[Mapping[str, torch.Tensor]]) -> Training:
    """A training that begins with these weights."""
    training = Training(config, device)
    for network, state in zip((training.gan.generator, training.gan.discriminator), weights, strict=True):
        network.load_state_dict(state)
    return training


def outcome(training: Training, noisy: torch.Tensor, clean: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything that a step and a validation compute. The first clipping limits nothing: gradients are as they are."""
    generator, discriminator = training.gan.generator, training.gan.discriminator
    with torch.no_grad():
        validated = generator.eval()(noisy)
        generator.train()
        with training.gan.autocast():
            image = generator(noisy)
            logits = discriminator(noisy, image)
        ssim, psnr_db = metrics.ssim(image, clean), metrics.psnr_db(image, clean)
    training.gan.mean_norm_g.zero_()
    training.gan.mean_norm_d.zero_()
    of_step = training.step(noisy, clean)
    gradients = [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (generator, discriminator)]  # type: ignore[union-attr]
    values = (image, logits, of_step, ssim, psnr_db, *gradients, validated)
    return {name: value.cpu() for name, value in zip(_KINDS, values, strict=True)}


def difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest, as a share of the reference's largest value."""
    return ((value - reference).abs().max() / reference.abs().max()).item()


def of_any(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Of losses, some of which are a hundred times the others: the largest, each as a share of its own value."""
    return difference(value / reference, torch.ones_like(reference))


def compared(what: str, value: torch.Tensor, reference: torch.Tensor, limit: float) -> Row:
    """Not finite is never ok."""
    found = (of_any if what.endswith("losses") else difference)(value, reference)
    beside, wrong = f"the CPU's float32; at most {limit:.1e}", "" if found <= limit else _TOO_FAR
    return measured(what, f"{found:.1e} apart", beside, wrong, apart=found, limit=limit)


# --- what is not used yet: would it help? ---------------------------------------------------------------------------


def graphs(check: Check) -> Iterator[Row]:
    """A whole step as one CUDA graph; learning rates and the average's decay are then those of the capture."""
    what = f"CUDA graph of a step, {check.size}"
    if check.device.type != "cuda":
        yield unavailable(what, "no GPU", excused=True)
        return
    config = check.config(dropout=0.0)
    graphed, shown = check.begin(config, capturable=True)
    noisy, clean = shown.batch()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM):
            graphed.step(noisy, clean)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = graphed.step(noisy, clean)

    def advance() -> None:
        for static, fresh in zip((noisy, clean), shown.batch(), strict=True):
            static.copy_(fresh)
        graph.replay()

    def again() -> torch.Tensor:
        graph.replay()
        return found.clone()

    yield _beside_eager(check, what, config=config, batch=(noisy.clone(), clean.clone()), again=again, advance=advance)


def compiled(check: Check) -> Iterator[Row]:
    """Both networks through torch.compile."""
    import torch._functorch.config as functorch  # noqa: PLC0415 - loads the compiler

    functorch.donated_buffer = False  # a buffer given away is missing where D(fake) serves two losses
    config, backend = check.config(dropout=0.0), check.sizes.compiler
    training, shown = check.begin(config)
    for network in (training.gan.generator, training.gan.discriminator):
        network.compile(backend=backend)
    noisy, clean = shown.batch()
    began = time.perf_counter()
    for _ in range(_WARM):
        training.step(noisy, clean)
    _wait(check.device)
    told = f"; compiled in {time.perf_counter() - began:.0f} s"
    what = f"torch.compile ({backend}), {check.size}"
    again, advance = partial(training.step, noisy, clean), partial(training.advance, shown)
    yield _beside_eager(check, what, config=config, batch=(noisy, clean), again=again, advance=advance, told=told)


def _beside_eager(
    check: Check,
    what: str,
    *,
    config: TrainConfig,
    batch: tuple[torch.Tensor, torch.Tensor],
    again: Callable[[], torch.Tensor],
    advance: Callable[[], None],
    told: str = "",
) -> Row:
    """Faster, and still the same? again: the losses of the step after the first few, on the same batch."""
    eager, shown = check.begin(config)
    for _ in range(_WARM):
        eager.step(*batch)
    limit = check.tolerance * TOLERANCES[config.precision]["after steps"]
    apart = of_any(again(), eager.step(*batch))
    speeds = steps_per_second({"it": advance, "eager": partial(eager.advance, shown)}, check.device, check.seconds)
    times = ratio(speeds["it"], speeds["eager"])
    per_second = {name: config.batch_size * statistics.median(rounds) for name, rounds in speeds.items()}
    numbers = {"images_per_second": per_second["it"], "eager": per_second["eager"], "ratio": times}
    return measured(
        what,
        f"{per_second['it']:,.0f} images/s; losses {apart:.1e} apart, at most {limit:.1e}",
        f"without: {per_second['eager']:,.0f} images/s; ratio {times:.2f}{told}",
        "" if apart <= limit else _TOO_FAR,
        **numbers | {"apart": apart, "limit": limit},
    )


# --- several at once ------------------------------------------------------------------------------------------------


def together(check: Check) -> Iterator[Row]:
    """Trainings in as many processes, as Ray's trials are, beside one of them alone."""
    count, before = check.sizes.together, _in_use(check.device)
    with ExitStack() as running:
        first = running.enter_context(closing(Side(check)))
        first.expect("ready")
        first.go()
        alone = first.expect("measured")
        sides = [first, *(running.enter_context(closing(Side(check))) for _ in range(count - 1))]
        for side in sides[1:]:
            side.expect("ready")
        for side in sides:
            side.go()
        found = [side.expect("measured") for side in sides]
        after = _in_use(check.device)  # they wait, and hold what they have
    total, one = sum(each["images_per_second"] for each in found), alone["images_per_second"]
    yield measured(
        f"{count} trainings side by side, {check.size}",
        f"{total:,.0f} images/s in all",
        f"one alone: {one:,.0f} images/s; ratio {total / one:.2f}",
        "" if all(each["finite"] for each in found) else _NOT_FINITE,
        **{"images_per_second": total, "alone": one, "ratio": total / one, "processes": len(found)},
    )
    of_each, in_use = "memory of each of them", "memory in use on the device"
    if check.device.type != "cuda":
        yield unavailable(of_each, "no GPU", excused=True)
        yield unavailable(in_use, "no GPU", excused=True)
        return
    most = {name: max(each[name] for each in found) for name in ("allocated", "reserved")}
    told = [f"at most {_mib(size)} {name} by torch" for name, size in most.items()]
    yield measured(of_each, told[0], told[1], **most)
    yield measured(
        in_use,
        f"{_mib(after)} with {count} trainings, {_mib((after - before) / count)} for each",
        f"{_mib(before)} before; the device has {_mib(torch.cuda.mem_get_info(check.device)[1])}",
        before=before,
        after=after,
    )


def _in_use(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


class Side:
    """A training in a process of its own, which measures whenever it is told to."""

    def __init__(self, check: Check) -> None:
        command = [sys.executable, __file__, *check.words, "--part", _SIDE]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def go(self) -> None:
        """Measure now."""
        assert self._process.stdin
        print(file=self._process.stdin, flush=True)

    def expect(self, what: str) -> dict[str, Any]:
        """What it says next. Raises RuntimeError where that is something else."""
        assert self._process.stdout
        said = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(said) if said else {"said": "nothing: it ended"}
        if answer["said"] != what:
            raise RuntimeError(f"one of the trainings said {answer['said']}")
        return answer

    def close(self) -> None:
        """It ends where its input does."""
        self._process.communicate()


def measure_when_told(check: Check, out: IO[str]) -> None:
    """The other end."""

    def say(said: str, **values: Any) -> None:
        print(json.dumps({"said": said, **values}), file=out, flush=True)

    try:
        config = check.config()
        training, shown = check.begin(config)
        advance = partial(training.advance, shown)
        _timed(advance, _WARM, check.device)
        slice_steps = max(1, round(check.seconds / 10 * _WARM / _timed(advance, _WARM, check.device)))
        say("ready")
        for _ in sys.stdin:
            steps, began = 0, time.perf_counter()
            while time.perf_counter() - began < check.seconds:
                _timed(advance, slice_steps, check.device)
                steps += slice_steps
            seconds = time.perf_counter() - began
            finite = all(map(math.isfinite, training.totals.tolist()))
            on_gpu = check.device.type == "cuda"
            say(
                "measured",
                images_per_second=steps * config.batch_size / seconds,
                finite=finite,
                allocated=torch.cuda.max_memory_allocated() if on_gpu else 0,
                reserved=torch.cuda.max_memory_reserved() if on_gpu else 0,
            )
    except Exception as error:
        say(in_short(error))  # out of memory, for one


# --- the second half: the product itself ----------------------------------------------------------------------------

_TRIALS, _EPOCHS = 4, 4
# Rates at which none diverges.
_SPACE = """from dataclasses import replace


def suggest(trial, base):
    return replace(base, lr_g=trial.suggest_float("lr_g", 1e-4, 4e-4, log=True))
"""


def search(check: Check) -> Iterator[Row]:
    """Four trials on quarters of the GPU, by `hpo search`, on PNGs in a folder that is gone afterwards."""
    try:
        from PIL import Image  # noqa: PLC0415

        import hpo.run.search  # noqa: F401, PLC0415 - needs Ray and more
    except ImportError as error:
        yield unavailable(_TITLES["search"], f"left out: {error}", excused=True)
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        pictures, space, runs = Path(folder, "images"), Path(folder, "space.py"), Path(folder, "runs")
        pictures.mkdir()
        for number, image in enumerate(blobs(400)):
            Image.fromarray(image[0]).save(pictures / f"{number}.png")
        space.write_text(_SPACE)
        own = ["--allow-cpu", "--address", running.enter_context(_gpu_by_word())] if check.device == CPU else []
        settings = {"width": check.sizes.width, "batch_size": check.sizes.batch, "dropout": 0.0, "output": "residual"}
        options = {
            "--runs": runs, "--space": space, "--data": pictures, "--crop": SIDE, "--noise": f"gaussian:{NOISE_STD:g}",
            "--trials": _TRIALS, "--epochs": _EPOCHS, "--images-per-epoch": check.sizes.epoch, "--sampler": "random",
            "--pruner": "none", "--gpus-per-trial": 0.25, "--cpus-per-trial": 0.25, "--wandb": "disabled",
        }  # fmt: skip
        words = [str(word) for option in options.items() for word in option]
        words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        command = [sys.executable, "-m", "hpo.cli", "search", "check", *words, *own]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        yield from _of_trials(runs, _watched(command, os.environ | {"PYTHONPATH": path}), check.device == CPU)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A search."""

    code: int
    seconds: float
    last_words: str
    at_once: int  # processes of trials


def _watched(command: Sequence[str], environment: Mapping[str, str]) -> Ended:
    import psutil  # type: ignore[import-untyped]  # noqa: PLC0415 - Ray brings it

    began, at_once = time.perf_counter(), 0
    with ExitStack() as opened:
        said = opened.enter_context(tempfile.TemporaryFile("w+"))
        process = opened.enter_context(
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        )
        while process.poll() is None:
            now = 0
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    now += "Trainable" in " ".join(child.cmdline()[:1])  # as Ray calls them
            at_once = max(at_once, now)
            time.sleep(0.5)
        said.seek(0)
        sys.stderr.write(text := said.read())
    seconds = time.perf_counter() - began
    return Ended(code=process.returncode, seconds=seconds, last_words=_last_line(text), at_once=at_once)


@contextmanager
def _gpu_by_word() -> Iterator[str]:
    """The address of a node with a GPU that exists for Ray alone."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else trials have what other processes leave: minutes
    node = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=node)
    signal.signal(signal.SIGTERM, _leave)  # Ray has set its own
    try:
        yield nodes.address
    finally:
        nodes.shutdown()


def _of_trials(runs: Path, ended: Ended, on_cpu: bool) -> Iterator[Row]:
    from hpo.policy import leaderboard  # noqa: PLC0415
    from hpo.store.record import Record  # noqa: PLC0415

    trials = []
    if (runs / "check").exists():
        trials = Record(runs, "check", read_only=True).trials()
    rows = [leaderboard.row(trial, "balanced") for trial in trials]
    whole = sum(row["stop_reason"] == "finished" for row in rows)
    yield measured(
        _TITLES["search"],
        f"{whole} of {_TRIALS} trained to their end",
        f"hpo search: exit code {ended.code} after {ended.seconds:.0f} s",
        "" if ended.code == 0 and whole == _TRIALS else ended.last_words,
        **{"finished": whole, "exit_code": ended.code, "seconds": ended.seconds},
    )
    if whole < _TRIALS:
        return
    # When a trial began is not on record; what it trained lies right before its end.
    ends = [trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete]
    spent = [sum(report.seconds + report.eval_seconds for report in leaderboard.reports_of(trial)) for trial in trials]
    shared = max(0.0, min(ends) - max(end - trained for end, trained in zip(ends, spent, strict=True)))
    together = ended.at_once >= _TRIALS and (shared > 0 or on_cpu)  # a CPU may train them one after the other
    yield measured(
        "these trials at the same time",
        f"{ended.at_once} processes, all of which trained for {shared:.1f} s",
        f"each trained for {min(spent):.1f} to {max(spent):.1f} s",
        "" if together else "they did not all run at once",
        **{"processes": ended.at_once, "seconds": shared, "shortest": min(spent), "longest": max(spent)},
    )
    speeds = [row["images_per_second"] for row in rows]
    figure = ", ".join(f"{per_second:,.0f}" for per_second in speeds)
    numbers = {f"trial {number}": per_second for number, per_second in enumerate(speeds)}
    yield measured("images/s of each of them", figure, f"{sum(speeds):,.0f} in all, without validation", **numbers)


# --- all parts, each in its own process -----------------------------------------------------------------------------

Part = Callable[[Check], Iterator[Row]]
PARTS: dict[str, Part] = {
    "agreement": agreement,
    "speed": speed,
    "graphs": graphs,
    "compile": compiled,
    "together": together,
    "search": search,
}
# Of the time; a part has what those before it left over, too, and a twentieth is for ending what takes longer.
_SHARES = {"agreement": 0.1, "speed": 0.27, "graphs": 0.08, "compile": 0.18, "together": 0.12, "search": 0.2}
_TITLES = {
    "agreement": "the CPU's figures",
    "speed": "training",
    "graphs": "CUDA graph of a step",
    "compile": "torch.compile",
    "together": "trainings side by side",
    "search": "hpo search, four trials on quarter GPUs",
}
_EXCUSED = ("graphs", "compile")  # the product uses neither
_SIDE = "side"


def rows_of(name: str, check: Check) -> Iterator[Row]:
    """Of one part; where it fails, a last one says so."""
    try:
        yield from PARTS[name](check)
    except Exception as error:
        traceback.print_exc()
        yield unavailable(_TITLES[name], error, excused=name in _EXCUSED)


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def in_its_process(name: str, check: Check, limit: float) -> list[Row]:
    """All rows of a part, or those that it had when its seconds were over. What it said is told where not all is ok."""
    command = [sys.executable, __file__, *check.words, "--part", name]
    visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    environment = {"CUDA_VISIBLE_DEVICES": visible_gpus.split(",")[0]} if check.device != CPU else {}
    with ExitStack() as opened:
        out, errors = (opened.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
        process = opened.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=errors, env=os.environ | environment, process_group=0
            )
        )
        why = ""
        try:
            process.wait(max(limit, 0))
        except subprocess.TimeoutExpired:
            why = f"not done after {max(limit, 0):.0f} s"
        finally:
            _end(process)
        out.seek(0)
        errors.seek(0)
        rows = [Row(**json.loads(line)) for line in out.read().splitlines() if line.endswith("}")]
        said = errors.read()
        if why or process.returncode:
            told = why or f"exit code {process.returncode}: {_last_line(said)}"
            rows.append(unavailable(_TITLES[name], told, excused=name in _EXCUSED))
        if any(row.verdict != OK for row in rows):
            sys.stderr.write(said)
    return rows


def _end(process: subprocess.Popen[bytes]) -> None:
    """And all that it started: at first so that it can clear up."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)


def exit_code(rows: Sequence[Row]) -> int:
    """1: something differs, or is missing without an excuse."""
    wrong = [row for row in rows if row.verdict == DIFFERS or (row.verdict == NOT_AVAILABLE and not row.excused)]
    return int(bool(wrong) or not rows)


def about(check: Check) -> dict[str, Any]:
    """Where and with what."""
    on_gpu = check.device.type == "cuda"
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "device": torch.cuda.get_device_name(check.device) if on_gpu else "the CPU, in the reduced form",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def markdown(document: Mapping[str, Any]) -> str:
    """What it was measured on, and the table."""
    lines = [
        f"- machine: {document['machine']}",
        f"- device: {document['device']}",
        f"- torch {document['torch']}, CUDA {document['cuda'] or 'none'}",
        f"- {document['seconds']:.0f} s; tolerances times {document['tolerance']:g}",
        "",
        "| what | figure | beside | verdict |",
        "|---|---|---|---|",
    ]
    for row in document["rows"]:
        verdict = ": ".join(filter(None, (row["verdict"], row["why"])))
        lines.append(f"| {row['what']} | {row['figure']} | {row['beside']} | {verdict} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See above."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together (8)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="these parts (all)")
    parser.add_argument("--tolerance", type=float, default=1, metavar="FACTOR", help="on all tolerances (1)")
    parser.add_argument("--cpu", action="store_true", help="the reduced form, on the CPU")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--part", choices=[*PARTS, _SIDE], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    for name in ("minutes", "tolerance"):
        if not 0 < getattr(given, name) < math.inf:
            parser.error(f"--{name} must be a number above 0")
    if not given.cpu and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} finds no GPU here (CUDA build: {torch.version.cuda or 'no'}). --cpu runs a "
            "reduced form on the CPU, which shows that the check works, and nothing of a GPU"
        )
    sizes = ON_CPU if given.cpu else ON_GPU
    check = Check(
        device=CPU if given.cpu else torch.device("cuda", 0),
        sizes=sizes,
        seconds=60 * given.minutes / sizes.measurements,
        tolerance=given.tolerance,
        words=("--minutes", str(given.minutes), "--tolerance", str(given.tolerance), *["--cpu"] * given.cpu),
    )
    if given.part:
        return _one_part(given.part, check)
    rows: list[Row] = []
    parts = [name for name in PARTS if name in given.only]
    for place, name in enumerate(parts):
        print(f"{name} ...", file=sys.stderr, flush=True)
        until = 0.95 - sum(_SHARES[later] for later in parts[place + 1 :])
        rows += in_its_process(name, check, 60 * given.minutes * until - (time.perf_counter() - began))
    document = {
        **about(check),
        "seconds": time.perf_counter() - began,
        "tolerance": given.tolerance,
        "agrees": not exit_code(rows),
        "rows": [asdict(row) | {"numbers": _for_json(row.numbers)} for row in rows],
    }
    print(json.dumps(document, indent=2) if given.json else markdown(document))
    return exit_code(rows)


def _for_json(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no nan."""
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def _leave(*_: object) -> None:
    """What has begun is then cleared up."""
    sys.exit(128 + signal.SIGTERM)


def _end_with_its_parent() -> None:
    """Whatever that one ended by: only it has the other end of stdin."""
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGTERM)


def _one_part(name: str, check: Check) -> int:
    """In the process of a part: a row a line, as soon as it is known."""
    signal.signal(signal.SIGTERM, _leave)
    if check.device == CPU:
        torch.set_num_threads(1)
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        if name == _SIDE:
            measure_when_told(check, out)
        else:
            threading.Thread(target=_end_with_its_parent, daemon=True).start()
            for row in rows_of(name, check):
                print(json.dumps(asdict(row)), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
