"""The training of one pix2pix denoiser: one epoch in, one EvalReport out; exact continuation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import losses, metrics
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.config import ConfigError, Precision, TrainConfig
from model.data import DeviceImages
from model.discriminator import Discriminator
from model.generator import Generator
from model.metrics import EvalReport

SEARCH_VALIDATION_IMAGES = 1_000  # that trials look at; finalists are measured on all
_EVAL_BATCH = 250
_MEAN_NORM_DECAY = 0.98  # a memory of 50 steps; no other was tried


class Trainer:
    """One training, an epoch at a time.

    What epoch e does is a function of the state before it and (config.seed, e) alone, so that a training continued
    from a checkpoint is the undisturbed one, bit for bit on a CPU with as many threads. Raises ConfigError for a batch
    larger than the training set.
    """

    def __init__(self, config: TrainConfig, images: DeviceImages) -> None:
        self.config, self.images = config, images
        self.device = images.device
        self.reports: list[EvalReport] = []
        self._autocast_dtype = autocast_dtype(config.precision, self.device)
        if config.batch_size > len(images.train):
            raise ConfigError(f"batch_size={config.batch_size}: above the {len(images.train)} training images")
        self._steps_per_epoch = (config.images_per_epoch or len(images.train)) // config.batch_size
        self._noisy_psnr_db = metrics.psnr_db(images.validation_noisy, images.validation).mean().item()

        channels, size, _ = images.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # networks are made on the CPU: the same weights for every device
            generator = Generator.of(config, channels=channels, image_size=size)
            discriminator = Discriminator(channels=channels, width=config.width, patch=config.patch)
        # channels_last: 1.3 times faster on CPUs. torch's own types leave memory_format out.
        self.generator = generator.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.discriminator = discriminator.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        betas = (config.beta1, config.beta2)
        self._adam_g = torch.optim.Adam(self.generator.parameters(), config.lr_g, betas, fused=True)
        self._adam_d = torch.optim.Adam(self.discriminator.parameters(), config.lr_d, betas, fused=True)
        self._mean_norm_g = torch.zeros((), device=self.device)  # of the clipped gradients; 0 before the first step
        self._mean_norm_d = torch.zeros((), device=self.device)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.reports)

    def run_epoch(self) -> EvalReport:
        """Train for one epoch, look at the validation images, report."""
        started = time.perf_counter()
        train_losses = self._train_epoch()
        trained = time.perf_counter()
        report = EvalReport(
            epoch=self.epoch + 1,
            images=(self.epoch + 1) * self._steps_per_epoch * self.config.batch_size,
            **self._evaluate(),
            **train_losses,
            seconds=trained - started,
            eval_seconds=time.perf_counter() - trained,
        )
        self.reports.append(report)
        return report

    def _train_epoch(self) -> dict[str, float]:
        self.generator.train()
        self.discriminator.train()
        totals = torch.zeros(len(_LOSS_NAMES), device=self.device)
        with self._random_state_of_epoch() as draw:
            for step, rows in enumerate(self._batches(), start=self.epoch * self._steps_per_epoch):
                noisy, clean = self.images.batch(rows, draw)
                self._set_learning_rates(step)
                totals += self._step(noisy, clean)
                self._update_average(step)
        means = (totals / self._steps_per_epoch).tolist()  # the epoch's only wait for the device
        return dict(zip(_LOSS_NAMES, means, strict=True))

    def _step(self, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """One update of both networks from one forward of each: D(fake) serves the losses of both."""
        kind = self.config.adversarial
        if kind == "none":
            return self._step_without_discriminator(noisy, clean)
        with self._autocast():
            fake = self.generator(noisy)
            logits_real = self.discriminator(noisy, clean)
            logits_fake = self.discriminator(noisy, fake)
        disc_real, disc_generated = losses.real(logits_real, kind), losses.generated(logits_fake, kind)
        gen_adversarial = self.config.adversarial_weight * losses.adversarial(logits_fake, kind)
        gen_reconstruction = losses.reconstruction(fake, clean, self.config)
        gen_total = gen_adversarial + gen_reconstruction

        self._set_gradients(self.discriminator, disc_real + disc_generated, self._mean_norm_d, retain_graph=True)
        self._set_gradients(self.generator, gen_total, self._mean_norm_g, retain_graph=False)
        self._adam_d.step()
        self._adam_g.step()
        return torch.stack([gen_total, gen_adversarial, gen_reconstruction, disc_real, disc_generated]).detach()

    def _step_without_discriminator(self, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """It stays as it began, in checkpoints too (3 % of their bytes), so that they have one form."""
        with self._autocast():
            fake = self.generator(noisy)
        loss = losses.reconstruction(fake, clean, self.config)
        self._set_gradients(self.generator, loss, self._mean_norm_g, retain_graph=False)
        self._adam_g.step()
        none = torch.zeros_like(loss)
        return torch.stack([loss, none, loss, none, none]).detach()

    def _set_gradients(
        self, network: torch.nn.Module, loss: torch.Tensor, mean_norm: torch.Tensor, *, retain_graph: bool
    ) -> None:
        """The loss's gradients, clipped. autograd.grad walks only towards the weights it is asked for: no gradients of
        D's weights in G's pass."""
        parameters = list(network.parameters())
        gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph)
        if self.config.grad_clip:
            clip_gradients(gradients, mean_norm, self.config.grad_clip)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None)

    def _batches(self) -> Iterator[torch.Tensor]:
        """This epoch's stretch of an endless row of shuffles of the training images, as their indices (batch,)."""
        size, count = self.config.batch_size, len(self.images.train)
        first = self.epoch * self._steps_per_epoch * size
        shuffles: dict[int, torch.Tensor] = {}
        for start in range(first, first + self._steps_per_epoch * size, size):
            rows = []
            for shuffle in range(start // count, (start + size - 1) // count + 1):
                if shuffle not in shuffles:
                    seed = _mix(self.config.seed, shuffle, "shuffle")
                    order = np.random.Generator(np.random.Philox(key=seed)).permutation(count)
                    shuffles[shuffle] = torch.from_numpy(order).to(self.device)
                offset = shuffle * count
                rows.append(shuffles[shuffle][max(start - offset, 0) : start + size - offset])
            yield torch.cat(rows)

    def _evaluate(self) -> dict[str, float]:
        """Of the moving average: what would be exported now."""
        for ours, theirs in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            ours.copy_(theirs)
        return {**validate(self.average, self.images), "noisy_psnr_db": self._noisy_psnr_db}

    def _set_learning_rates(self, step: int) -> None:
        if self.config.lr_schedule == "cosine":
            progress = step / (self.config.epochs * self._steps_per_epoch)
            factor = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        else:
            factor = 1.0
        self._adam_g.param_groups[0]["lr"] = self.config.lr_g * factor
        self._adam_d.param_groups[0]["lr"] = self.config.lr_d * factor

    def _update_average(self, step: int) -> None:
        decay = min(self.config.average_decay, (1 + step) / (10 + step))  # early on, a short memory
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1 - decay)

    @contextmanager
    def _random_state_of_epoch(self) -> Iterator[torch.Generator]:
        """Dropout draws from torch's global generators, noise from the one given; both start from the epoch's seed,
        and the global ones are given back as they were."""
        seed = _mix(self.config.seed, self.epoch, "epoch")
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield torch.Generator(self.device).manual_seed(seed + 1)

    # --- exact continuation ----------------------------------------------------------------------------------------

    def save(self, path: Path, **notes: Any) -> None:
        """Everything that the next epoch depends on, the reports so far and JSON-ready notes. Raises OSError."""
        state = {
            "config": self.config.as_dict(),
            "reports": [report.as_dict() for report in self.reports],
            "notes": notes,
        }
        save_checkpoint(path, self._tensors(), state)

    def load(self, path: Path, *, may_differ: Collection[str] = ()) -> None:
        """Go on where the checkpoint stood.

        Args:
            path: of the checkpoint.
            may_differ: settings of its configuration that need not be this one's.

        Raises:
            CheckpointError: it is damaged.
            ConfigError: it is of another configuration.
        """
        tensors, state = load_checkpoint(path)
        # A weight whose loss takes no part is None in both; a setting that came after the checkpoint has its default.
        config, reports = _told(path, state)
        was, now = config.as_dict(), self.config.as_dict()
        names = [name for name in now if was[name] != now[name] and name not in may_differ]
        if names:
            differences = ", ".join(f"{name} was {was[name]}, is {now[name]}" for name in names)
            raise ConfigError(f"{path}: made by another configuration ({differences})")
        mine = self._tensors()
        tensors = {**{name: mine[name] for name in _MEAN_NORMS}, **tensors}  # checkpoints made before them begin anew
        if {name: t.shape for name, t in mine.items()} != {name: t.shape for name, t in tensors.items()}:
            raise CheckpointError(f"{path}: its networks have other shapes than this configuration's")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(tensors[name])
        self.reports = reports

    def _tensors(self) -> dict[str, torch.Tensor]:
        """The tensors themselves, by name; the optimisers' are made where no step has made them yet."""
        networks = {"generator": self.generator, "discriminator": self.discriminator, "average": self.average}
        named = {f"{n}.{name}": t for n, net in networks.items() for name, t in net.state_dict().items()}
        for n, adam in (("adam_g", self._adam_g), ("adam_d", self._adam_d)):
            for i, parameter in enumerate(adam.param_groups[0]["params"]):
                state: dict[str, torch.Tensor] = adam.state[parameter]
                if not state:  # as Adam itself begins; its memory layout must be the weight's
                    state["step"] = torch.zeros((), dtype=torch.float32, device=self.device)
                    state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                named.update({f"{n}.{i}.{key}": value for key, value in state.items()})
        return named | dict(zip(_MEAN_NORMS, (self._mean_norm_g, self._mean_norm_d), strict=True))


_MEAN_NORMS = ("mean_norm_g", "mean_norm_d")
_LOSS_NAMES = ("gen_total", "gen_adversarial", "gen_reconstruction", "disc_real", "disc_generated")


@torch.inference_mode()
def validate(generator: Generator, images: DeviceImages) -> dict[str, float]:
    """SSIM, PSNR, L1 and variation of what a generator in eval mode makes of the validation images, in float32."""
    clean = images.validation
    denoised = torch.cat([generator(noisy) for noisy in torch.split(images.validation_noisy, _EVAL_BATCH)])
    pairs = zip(torch.split(denoised, _EVAL_BATCH), torch.split(clean, _EVAL_BATCH), strict=True)
    ssim = torch.cat([metrics.ssim(*pair) for pair in pairs])
    psnr_db, l1 = metrics.psnr_db(denoised, clean), metrics.l1(denoised, clean)
    measured = torch.stack([m.mean() for m in (ssim, psnr_db, l1, denoised.std(dim=0))]).tolist()
    return dict(zip(("ssim", "psnr_db", "l1", "output_std"), measured, strict=True))


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """bfloat16, or None for float32. `auto` asks the hardware: emulated bfloat16 took 100 times as long as float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and native) else None


def _mix(seed: int, number: int, purpose: str) -> int:
    """A seed of its own for each (seed, number, purpose)."""
    words = np.random.SeedSequence([seed, number, *purpose.encode()]).generate_state(2)
    return int(words[0]) << 31 | int(words[1]) >> 1


@torch.no_grad()
def clip_gradients(gradients: Sequence[torch.Tensor], mean_norm: torch.Tensor, factor: float) -> None:
    """Limit the norm of all gradients together to `factor` times its running mean, both in place.

    One bad step at a high learning rate can otherwise throw every pixel out of [-1, 1] (docs/log.md). The norm enters
    the mean as clipped, so that one outlier does not lift the limit for the next. No value is read: the device is not
    waited for.

    Args:
        gradients: of one network, any shapes.
        mean_norm: scalar; 0 before the first step, whose norm it then takes.
        factor: at least 1.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    begun = mean_norm > 0
    clipped = torch.where(begun, torch.minimum(norm, factor * mean_norm), norm)
    mean_norm.copy_(torch.where(begun, torch.lerp(clipped, mean_norm, _MEAN_NORM_DECAY), norm))
    torch._foreach_mul_(list(gradients), clipped / norm.clamp_min(torch.finfo(norm.dtype).tiny))


def _network_weights(tensors: Mapping[str, torch.Tensor], network: str) -> dict[str, torch.Tensor]:
    """One network's state_dict out of a checkpoint's tensors: generator, discriminator or average."""
    prefix = f"{network}."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _told(path: Path, state: Mapping[str, Any]) -> tuple[TrainConfig, list[EvalReport]]:
    """What a checkpoint's state says. Raises CheckpointError, ConfigError."""
    try:
        reports = [EvalReport.from_dict(report) for report in state["reports"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: not ours (its reports: {error!r})") from error
    if [report.epoch for report in reports] != [*range(1, len(reports) + 1)]:
        raise CheckpointError(f"{path}: not ours (its reports are not of the epochs 1, 2, 3, ...)")
    return TrainConfig.from_dict(state.get("config", {})), reports


def load_generator(path: Path, *, channels: int, image_size: int) -> tuple[Generator, dict[str, Any]]:
    """The moving average of a checkpoint, in eval mode on the CPU, and the checkpoint's state.

    Raises CheckpointError.
    """
    tensors, state = load_checkpoint(path)
    config, _ = _told(path, state)
    weights = _network_weights(tensors, "average")
    with torch.device("meta"):  # costs no memory, however large it says that it is
        planned = Generator.of(config, channels=channels, image_size=image_size).state_dict()
    if {name: t.shape for name, t in planned.items()} != {name: t.shape for name, t in weights.items()}:
        raise CheckpointError(f"{path}: its generator does not fit its own configuration (other tensors, or shapes)")
    generator = Generator.of(config, channels=channels, image_size=image_size)
    try:
        generator.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its generator does not fit its own configuration ({error})") from error
    return generator.eval(), state
