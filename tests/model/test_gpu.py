"""What a training does on a GPU, without one: on torch's "meta" device, whose tensors have a shape and no values."""

from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import metrics
from model.config import TrainConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import Images, VariableSizeImages
from model.data.pictures import Picture
from model.gan import Gan, autocast_dtype
from model.trainer import Trainer

META = torch.device("meta")
SMALL = TrainConfig(width=2, batch_size=4, loss="both", precision="float32")


class Watched(TorchDispatchMode):
    """Counts what makes the host wait for the device, values read and copies between the two, and gives zeros for what
    is read. Nothing else may see tensors of both; what has a size that depends on values, meta refuses itself."""

    waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        if name == "_local_scalar_dense":
            self.waits += 1
            return 0.0
        target = (kwargs or {}).get("device")
        if name in ("to", "_to_copy") and target not in (None, given[0].device):
            self.waits += 1
            return torch.zeros(given[0].shape, dtype=given[0].dtype, device=target)
        assert len({tensor.device for tensor in given if tensor.dim()}) <= 1, name
        return func(*args, **(kwargs or {}))


@pytest.fixture
def watched(monkeypatch) -> Watched:
    # What this device lacks beside values: random numbers, autocast, a fused Adam. A GPU has them.
    monkeypatch.setattr(Trainer, "_seeded_epoch", lambda _: nullcontext())
    monkeypatch.setattr(Gan, "autocast", lambda _: nullcontext())
    optimizer = import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cuda", "meta"])
    metrics._window_matrix.cache_clear()
    metrics._haar_matrices.cache_clear()
    watched, make = Watched(), torch.tensor

    def tensor(*data, device=None, **options) -> torch.Tensor:
        """A value of the host's, copied there; no operation, so that a mode does not see it."""
        watched.waits += device == META
        return make(*data, device=device, **options)

    monkeypatch.setattr(torch, "tensor", tensor)
    return watched


@pytest.fixture(scope="module")
def few(images) -> Images:
    return Images(train=images.train[:40], validation=images.validation[:6])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adversarial": "none", "loss": "mse", "output": "residual", "full_resolution_skip": True},
        {"adversarial": "hinge", "upsample": "resize", "norm": "instance", "depth": 3, "lr_schedule": "cosine"},
        {"adversarial": "least_squares", "norm": "none", "patch": 14, "blocks": 1, "depth": 2},
    ],
    ids=str,
)
def test_a_step_waits_for_nothing_and_all_of_it_is_on_the_device(settings, few, watched):
    waits = []
    with watched:
        placed = DeviceImages.to_device(few, "gaussian:30", META, num_validation=6)
        for steps in (1, 3):
            trainer = Trainer(replace(SMALL, **settings, images_per_epoch=4 * steps), placed)
            before = watched.waits
            trainer.run_epoch()
            waits.append(watched.waits - before)
    # The order of the images goes there, the losses and the validation's figures come back; and once, SSIM's
    # window and HaarPSI's filters.
    assert waits == [5, 3]
    assert {tensor.device for tensor in trainer.gan.tensors().values()} == {META}


def test_crops_of_a_folders_images_are_cut_on_the_device(few, watched):
    ragged = VariableSizeImages.from_pictures(
        [Picture("", np.zeros((1, 70, 90), np.uint8)), Picture("", np.zeros((1, 40, 50), np.uint8))], 32
    )
    with watched:
        placed = DeviceImages.to_device(replace(few, train=ragged), "gaussian:30", META, num_validation=6)
        before = watched.waits
        rows = torch.zeros(5, dtype=torch.long, device=META)
        assert {batch.shape for batch in placed.batch(rows, None)} == {(5, 1, 32, 32)}
    assert watched.waits == before


def test_weights_are_channels_last_and_adam_is_fused(few):
    trainer = Trainer(SMALL, DeviceImages.to_device(few, "gaussian:30", torch.device("cpu"), num_validation=6))
    for network in (trainer.gan.generator, trainer.gan.discriminator, trainer.gan.ema_generator):
        kernels = [weight for weight in network.parameters() if weight.dim() == 4]
        assert kernels
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert all(adam.param_groups[0]["fused"] for adam in (trainer.gan.adam_g, trainer.gan.adam_d))


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, None)])
def test_auto_takes_bfloat16_where_the_gpu_multiplies_it_natively(native, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: asked.append(options) or native)
    assert autocast_dtype("auto", torch.device("cuda")) == expected
    assert asked == [{"including_emulation": False}]
