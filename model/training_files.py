"""The names of the files in a training's folder. Does not load torch."""

from __future__ import annotations

LAST, BEST = "last.safetensors", "best.safetensors"
LEARNING_RATES = ("lr_g", "lr_d")


def strip_name(epoch: int) -> str:
    """The file of the picture strip after an epoch: noisy | denoised | clean."""
    return f"epoch-{epoch:04}.png"


def should_log_images(epoch: int, *, last: bool) -> bool:
    """Whether an epoch's strip is logged where pictures are expensive: epochs 1, 2, 4, ... and the last."""
    return last or epoch.bit_count() == 1
