"""Generator and discriminator with their optimisers, and one update of both; needs torch alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch

from model import losses
from model.config import Precision, TrainConfig
from model.discriminator import Discriminator
from model.generator import Generator

MEAN_NORMS = ("mean_norm_g", "mean_norm_d")
_MEAN_NORM_DECAY = 0.98  # a memory of 50 steps; no other was tried


class Gan:
    """Everything that one step changes; `capturable`: whether a CUDA graph may capture the optimisers' steps."""

    def __init__(
        self, config: TrainConfig, *, channels: int, image_size: int, device: torch.device, capturable: bool = False
    ) -> None:
        self.config, self.device = config, device
        self._autocast_dtype = autocast_dtype(config.precision, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # on the CPU, so that every device starts with the same weights
            generator = Generator(config, channels=channels, image_size=image_size)
            discriminator = Discriminator(channels=channels, width=config.width, patch=config.patch)
        # channels_last is 1.3 times faster on CPUs. torch's type stubs lack memory_format.
        self.generator = generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.discriminator = discriminator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema_generator = copy.deepcopy(self.generator).requires_grad_(False).eval()
        adam = partial(torch.optim.Adam, betas=(config.beta1, config.beta2), fused=True, capturable=capturable)
        self.adam_g = adam(self.generator.parameters(), config.lr_g)
        self.adam_d = adam(self.discriminator.parameters(), config.lr_d)
        self.mean_norm_g = torch.zeros((), device=device)  # of the clipped gradients; 0 before the first step
        self.mean_norm_d = torch.zeros((), device=device)

    def step(self, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """One update of both networks from one forward of each: D(fake) serves the losses of both.

        Args:
            noisy: (N, C, H, W) float32 in [-1, 1].
            clean: the same images without noise.

        Returns:
            The losses in the order of training_report.LOSS_NAMES, (5,), on the device.
        """
        kind = self.config.adversarial
        if kind == "none":
            return self._step_without_discriminator(noisy, clean)
        with self.autocast():
            fake = self.generator(noisy)
            logits_real = self.discriminator(noisy, clean)
            logits_fake = self.discriminator(noisy, fake)
        disc_real = losses.discriminator_real(logits_real, kind)
        disc_generated = losses.discriminator_fake(logits_fake, kind)
        gen_adversarial = self.config.adversarial_weight * losses.generator_adversarial(logits_fake, kind)
        gen_reconstruction = losses.reconstruction(fake, clean, self.config)
        gen_total = gen_adversarial + gen_reconstruction

        self._set_gradients(self.discriminator, disc_real + disc_generated, self.mean_norm_d, retain_graph=True)
        self._set_gradients(self.generator, gen_total, self.mean_norm_g, retain_graph=False)
        self.adam_d.step()
        self.adam_g.step()
        return torch.stack([gen_total, gen_adversarial, gen_reconstruction, disc_real, disc_generated]).detach()

    def _step_without_discriminator(self, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Update the generator only. Checkpoints contain the unchanged discriminator (3 % of their bytes)."""
        with self.autocast():
            fake = self.generator(noisy)
        loss = losses.reconstruction(fake, clean, self.config)
        self._set_gradients(self.generator, loss, self.mean_norm_g, retain_graph=False)
        self.adam_g.step()
        zero = torch.zeros_like(loss)
        return torch.stack([loss, zero, loss, zero, zero]).detach()

    def _set_gradients(
        self, network: torch.nn.Module, loss: torch.Tensor, mean_norm: torch.Tensor, *, retain_graph: bool
    ) -> None:
        """Set and clip the loss's gradients. autograd.grad computes no gradients of D's weights in G's pass."""
        parameters = list(network.parameters())
        gradients = torch.autograd.grad(loss, parameters, retain_graph=retain_graph)
        if self.config.grad_clip:
            clip_gradients(gradients, mean_norm, self.config.grad_clip)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def autocast(self) -> torch.autocast:
        """The context in which both networks run while they train."""
        return torch.autocast(self.device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None)

    def set_learning_rates(self, factor: float) -> None:
        """Set both rates to a share of the configuration's."""
        self.adam_g.param_groups[0]["lr"] = self.config.lr_g * factor
        self.adam_d.param_groups[0]["lr"] = self.config.lr_d * factor

    def update_ema(self, step: int) -> None:
        """Update the EMA of the generator's weights after a step, counted from 0."""
        decay = min(self.config.average_decay, (1 + step) / (10 + step))  # a shorter memory in the first steps
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema_generator.parameters()), list(self.generator.parameters()), 1 - decay)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name, not copied. Creates the optimisers' state where no step has done so yet."""
        networks = {"generator": self.generator, "discriminator": self.discriminator, "average": self.ema_generator}
        named = {f"{n}.{name}": t for n, net in networks.items() for name, t in net.state_dict().items()}
        for n, adam in (("adam_g", self.adam_g), ("adam_d", self.adam_d)):
            for i, parameter in enumerate(adam.param_groups[0]["params"]):
                state: dict[str, torch.Tensor] = adam.state[parameter]
                if not state:  # as Adam initialises it; the memory layout must be the weight's
                    state["step"] = torch.zeros((), dtype=torch.float32, device=self.device)
                    state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                named.update({f"{n}.{i}.{key}": value for key, value in state.items()})
        return named | dict(zip(MEAN_NORMS, (self.mean_norm_g, self.mean_norm_d), strict=True))


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """bfloat16, or None for float32. `auto` checks the hardware: emulated bfloat16 is 100 times slower than float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and native) else None


@torch.no_grad()
def clip_gradients(gradients: Sequence[torch.Tensor], mean_norm: torch.Tensor, factor: float) -> None:
    """Limit the norm of all gradients together to `factor` times its running mean, both in place.

    Without it, one bad step at a high learning rate can push every pixel out of [-1, 1] (docs/log.md). The clipped norm
    enters the mean, so that an outlier does not raise the next limit. It does not synchronise with the device.

    Args:
        mean_norm: scalar; 0 before the first step, which sets it to its norm.
        factor: at least 1.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    begun = mean_norm > 0
    clipped = torch.where(begun, torch.minimum(norm, factor * mean_norm), norm)
    mean_norm.copy_(torch.where(begun, torch.lerp(clipped, mean_norm, _MEAN_NORM_DECAY), norm))
    torch._foreach_mul_(list(gradients), clipped / norm.clamp_min(torch.finfo(norm.dtype).tiny))
