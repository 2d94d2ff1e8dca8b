"""Generator and discriminator with their optimisers, and one update of both; needs torch alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from model import losses
from model.config import Precision, TrainConfig
from model.discriminator import Discriminator
from model.generator import Generator

MEAN_NORMS = ("mean_norm_g", "mean_norm_d")
_MEAN_NORM_DECAY = 0.98  # a memory of 50 steps; no other was tried


class Gan:
    """Everything that one step changes.

    Args:
        config: of the training.
        channels: of an image.
        image_size: its side, pixels.
        device: where everything lies.
        capturable: whether a CUDA graph may capture the optimisers' steps.
    """

    def __init__(
        self, config: TrainConfig, *, channels: int, image_size: int, device: torch.device, capturable: bool = False
    ) -> None:
        self.config, self.device = config, device
        self._autocast_dtype = autocast_dtype(config.precision, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # networks are made on the CPU: the same weights for every device
            generator = Generator.from_config(config, channels=channels, image_size=image_size)
            discriminator = Discriminator(channels=channels, width=config.width, patch=config.patch)
        # channels_last: 1.3 times faster on CPUs. torch's own types leave memory_format out.
        self.generator = generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.discriminator = discriminator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema_generator = copy.deepcopy(self.generator).requires_grad_(False).eval()
        betas = (config.beta1, config.beta2)
        self.adam_g = torch.optim.Adam(
            self.generator.parameters(), config.lr_g, betas, fused=True, capturable=capturable
        )
        self.adam_d = torch.optim.Adam(
            self.discriminator.parameters(), config.lr_d, betas, fused=True, capturable=capturable
        )
        self.mean_norm_g = torch.zeros((), device=device)  # of the clipped gradients; 0 before the first step
        self.mean_norm_d = torch.zeros((), device=device)

    def step(self, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """One update of both networks from one forward of each: D(fake) serves the losses of both.

        Args:
            noisy: (N, C, H, W) float32 in [-1, 1].
            clean: the same images without noise.

        Returns:
            The means that LOSS_NAMES names, (5,), on the device.
        """
        kind = self.config.adversarial
        if kind == "none":
            return self._step_without_discriminator(noisy, clean)
        with self.autocast():
            fake = self.generator(noisy)
            logits_real = self.discriminator(noisy, clean)
            logits_fake = self.discriminator(noisy, fake)
        disc_real, disc_generated = (
            losses.discriminator_real(logits_real, kind),
            losses.discriminator_fake(logits_fake, kind),
        )
        gen_adversarial = self.config.adversarial_weight * losses.generator_adversarial(logits_fake, kind)
        gen_reconstruction = losses.reconstruction(fake, clean, self.config)
        gen_total = gen_adversarial + gen_reconstruction

        self._set_gradients(self.discriminator, disc_real + disc_generated, self.mean_norm_d, retain_graph=True)
        self._set_gradients(self.generator, gen_total, self.mean_norm_g, retain_graph=False)
        self.adam_d.step()
        self.adam_g.step()
        return torch.stack([gen_total, gen_adversarial, gen_reconstruction, disc_real, disc_generated]).detach()

    def _step_without_discriminator(self, noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """It stays as it began, in checkpoints too (3 % of their bytes), so that they have one form."""
        with self.autocast():
            fake = self.generator(noisy)
        loss = losses.reconstruction(fake, clean, self.config)
        self._set_gradients(self.generator, loss, self.mean_norm_g, retain_graph=False)
        self.adam_g.step()
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

    def autocast(self) -> torch.autocast:
        """In which both networks run while they are trained."""
        return torch.autocast(self.device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None)

    def set_learning_rates(self, factor: float) -> None:
        """To this share of the configuration's."""
        self.adam_g.param_groups[0]["lr"] = self.config.lr_g * factor
        self.adam_d.param_groups[0]["lr"] = self.config.lr_d * factor

    def update_ema(self, step: int) -> None:
        """Of the generator, after a step.

        Args:
            step: steps before it.
        """
        decay = min(self.config.average_decay, (1 + step) / (10 + step))  # early on, a short memory
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema_generator.parameters()), list(self.generator.parameters()), 1 - decay)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors themselves, by name; the optimisers' are made where no step has made them yet."""
        networks = {"generator": self.generator, "discriminator": self.discriminator, "average": self.ema_generator}
        named = {f"{n}.{name}": t for n, net in networks.items() for name, t in net.state_dict().items()}
        for n, adam in (("adam_g", self.adam_g), ("adam_d", self.adam_d)):
            for i, parameter in enumerate(adam.param_groups[0]["params"]):
                state: dict[str, torch.Tensor] = adam.state[parameter]
                if not state:  # as Adam itself begins; its memory layout must be the weight's
                    state["step"] = torch.zeros((), dtype=torch.float32, device=self.device)
                    state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                named.update({f"{n}.{i}.{key}": value for key, value in state.items()})
        return named | dict(zip(MEAN_NORMS, (self.mean_norm_g, self.mean_norm_d), strict=True))


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """bfloat16, or None for float32. `auto` asks the hardware: emulated bfloat16 took 100 times as long as float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and native) else None


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
