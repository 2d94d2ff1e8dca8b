"""Parts of benchmarks/gpu_check.py about one training: the CPU's figures, speed, CUDA graphs and torch.compile."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from gpu_table import Row, measured, unavailable
from gpu_training import (
    CPU,
    NO_BFLOAT16,
    NOT_FINITE,
    TOLERANCES,
    TOO_FAR,
    WARM_UP_STEPS,
    Check,
    ImageBatches,
    PlainTraining,
    Training,
    blobs,
    ratio,
    steps_per_second,
    synchronize,
)
from plain_pix2pix import with_plain_layers
from torch.utils.flop_counter import FlopCounterMode

from model import metrics
from model.config import TrainConfig

_VALIDATING = "generator's image, validating"
_KINDS = {
    "generator's image": "output", "discriminator's logits": "output", "losses": "losses", "SSIM": "metric",
    "PSNR": "metric", "HaarPSI": "metric", "generator's gradients": "gradients",
    "discriminator's gradients": "gradients", _VALIDATING: "output",
}  # fmt: skip

# --- the CPU's figures ----------------------------------------------------------------------------------------------


def agreement(check: Check) -> Iterator[Row]:
    """Compare what both devices compute for one batch, from the weights of a few steps on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    config = check.config(dropout=0.0, precision="float32")  # dropout draws other numbers on each device
    shown, trained = ImageBatches(blobs(check.sizes.images), config.batch_size, CPU), Training(config, CPU)
    for _ in range(10):
        trained.next_step(shown)
    for network in (trained.gan.generator, trained.gan.discriminator):
        with_plain_layers(network.to(memory_format=torch.contiguous_format))  # type: ignore[call-overload]
    weights = [copy.deepcopy(net.state_dict()) for net in (trained.gan.generator, trained.gan.discriminator)]
    batch = shown.batch()
    reference = compute_all(trained, *batch)
    for precision, tolerances in TOLERANCES.items():
        if check.lacks_support(precision):
            yield unavailable(f"{precision} beside the CPU", NO_BFLOAT16, excused=True)
            continue
        training = on_device(check.config(dropout=0.0, precision=precision), check.device, weights)
        for name, value in compute_all(training, *(tensor.to(check.device) for tensor in batch)).items():
            if name != _VALIDATING or precision == "float32":  # which it always has
                limit = check.tolerance * tolerances[_KINDS[name]]
                yield compare(f"{precision}, {name}", value, reference[name], limit)


def on_device(config: TrainConfig, device: torch.device, weights: Sequence[Mapping[str, torch.Tensor]]) -> Training:
    """A training that begins with these weights."""
    training = Training(config, device)
    for network, state in zip((training.gan.generator, training.gan.discriminator), weights, strict=True):
        network.load_state_dict(state)
    return training


def compute_all(training: Training, noisy: torch.Tensor, clean: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything that a step and a validation compute. The first step clips nothing, so gradients stay as they are."""
    generator, discriminator = training.gan.generator, training.gan.discriminator
    with torch.no_grad():
        validated = generator.eval()(noisy)
        generator.train()
        with training.gan.autocast():
            image = generator(noisy)
            logits = discriminator(noisy, image)
        quality = [metric(image, clean) for metric in (metrics.ssim, metrics.psnr_db, metrics.haarpsi)]
    training.gan.mean_norm_g.zero_()
    training.gan.mean_norm_d.zero_()
    losses = training.step(noisy, clean)
    gradients = [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (generator, discriminator)]  # type: ignore[union-attr]
    values = (image, logits, losses, *quality, *gradients, validated)
    return {name: value.cpu() for name, value in zip(_KINDS, values, strict=True)}


def difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference, as a share of the reference's largest value."""
    return ((value - reference).abs().max() / reference.abs().max()).item()


def largest_relative_difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference, each as a share of its own value: some losses are a hundred times the others."""
    return difference(value / reference, torch.ones_like(reference))


def compare(what: str, value: torch.Tensor, reference: torch.Tensor, limit: float) -> Row:
    """A row for a value and its reference; a value that is not finite is never ok."""
    apart = (largest_relative_difference if what.endswith("losses") else difference)(value, reference)
    beside, problem = f"the CPU's float32; at most {limit:.1e}", "" if apart <= limit else TOO_FAR
    return measured(what, f"{apart:.1e} apart", beside, problem, apart=apart, limit=limit)


# --- speed ----------------------------------------------------------------------------------------------------------


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
        if check.lacks_support(name):
            yield unavailable(f"matrix peak, {name}", NO_BFLOAT16, excused=True)
            continue
        peak = peaks[name] = matrix_peak(check, getattr(torch, name))
        beside = f"a product of two {check.sizes.matrix}x{check.sizes.matrix} matrices"
        yield measured(f"matrix peak, {name}", f"{peak / 1e12:.3g} TFLOP/s", beside, flop_per_second=peak)
    for width in check.sizes.widths:
        for batch in check.sizes.batches:
            yield _throughput(check, check.config(width, batch), peaks)


def _throughput(check: Check, config: TrainConfig, peaks: Mapping[str, float]) -> Row:
    ours, shown = check.start_training(config)
    with FlopCounterMode(display=False) as counter:
        ours.next_step(shown)
    plain = PlainTraining(config, blobs(check.sizes.images), check.device)
    works = {"ours": partial(ours.next_step, shown), "plain": plain.next_step}
    speeds = steps_per_second(works, check.device, check.seconds)
    per_second = {name: config.batch_size * statistics.median(rounds) for name, rounds in speeds.items()}
    times = ratio(speeds["ours"], speeds["plain"])
    share = counter.get_total_flops() / config.batch_size * per_second["ours"] / peaks[config.precision]
    finite = all(map(math.isfinite, [*ours.totals.tolist(), *plain.last]))
    return measured(
        f"training, width {config.width}, batch {config.batch_size}",
        f"{per_second['ours']:,.0f} images/s, {share:.2%} of the {config.precision} peak",
        f"plain pix2pix in float32: {per_second['plain']:,.0f} images/s; ratio {times:.2f}",
        "" if finite else NOT_FINITE,
        **{"images_per_second": per_second["ours"], "plain": per_second["plain"], "ratio": times, "share": share},
    )


# --- what the product does not use yet -------------------------------------------------------------------------------


def graphs(check: Check) -> Iterator[Row]:
    """A whole step as one CUDA graph; learning rates and the EMA's decay are then those of the capture."""
    what = f"CUDA graph of a step, {check.size}"
    if check.device.type != "cuda":
        yield unavailable(what, "no GPU", excused=True)
        return
    config = check.config(dropout=0.0)
    graphed, shown = check.start_training(config, capturable=True)
    noisy, clean = shown.batch()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            graphed.step(noisy, clean)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = graphed.step(noisy, clean)

    def next_step() -> None:
        for static, fresh in zip((noisy, clean), shown.batch(), strict=True):
            static.copy_(fresh)
        graph.replay()

    def again() -> torch.Tensor:
        graph.replay()
        return losses.clone()

    yield _compare_with_eager(
        check, what, config=config, batch=(noisy.clone(), clean.clone()), again=again, next_step=next_step
    )


def compiled(check: Check) -> Iterator[Row]:
    """Both networks through torch.compile."""
    import torch._functorch.config as functorch  # noqa: PLC0415 - loads the compiler

    functorch.donated_buffer = False  # a buffer given away is missing where D(fake) serves two losses
    config, backend = check.config(dropout=0.0), check.sizes.compiler
    training, shown = check.start_training(config)
    for network in (training.gan.generator, training.gan.discriminator):
        network.compile(backend=backend)
    noisy, clean = shown.batch()
    began = time.perf_counter()
    for _ in range(WARM_UP_STEPS):
        training.step(noisy, clean)
    synchronize(check.device)
    note = f"; compiled in {time.perf_counter() - began:.0f} s"
    what = f"torch.compile ({backend}), {check.size}"
    again, next_step = partial(training.step, noisy, clean), partial(training.next_step, shown)
    yield _compare_with_eager(
        check, what, config=config, batch=(noisy, clean), again=again, next_step=next_step, note=note
    )


def _compare_with_eager(
    check: Check,
    what: str,
    *,
    config: TrainConfig,
    batch: tuple[torch.Tensor, torch.Tensor],
    again: Callable[[], torch.Tensor],
    next_step: Callable[[], None],
    note: str = "",
) -> Row:
    """Compare speed and losses with the step as the product runs it.

    again: one more step on the same batch after the warm-up; it returns its losses.
    """
    eager, shown = check.start_training(config)
    for _ in range(WARM_UP_STEPS):
        eager.step(*batch)
    limit = check.tolerance * TOLERANCES[config.precision]["after steps"]
    apart = largest_relative_difference(again(), eager.step(*batch))
    speeds = steps_per_second({"it": next_step, "eager": partial(eager.next_step, shown)}, check.device, check.seconds)
    times = ratio(speeds["it"], speeds["eager"])
    per_second = {name: config.batch_size * statistics.median(rounds) for name, rounds in speeds.items()}
    numbers = {"images_per_second": per_second["it"], "eager": per_second["eager"], "ratio": times}
    return measured(
        what,
        f"{per_second['it']:,.0f} images/s; losses {apart:.1e} apart, at most {limit:.1e}",
        f"without: {per_second['eager']:,.0f} images/s; ratio {times:.2f}{note}",
        "" if apart <= limit else TOO_FAR,
        **numbers | {"apart": apart, "limit": limit},
    )
