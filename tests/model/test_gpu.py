"""What a training does on a GPU, without one: on torch's "meta" device, whose tensors have a shape and no values."""

from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import metrics
from model.config import TrainConfig
from model.data import DeviceImages, Images
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
    monkeypatch.setattr(Trainer, "_random_state_of_epoch", lambda _: nullcontext())
    monkeypatch.setattr(Trainer, "_autocast", lambda _: nullcontext())
    optimizer = import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cuda", "meta"])
    metrics._window_matrix.cache_clear()
    return Watched()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adversarial": "none", "loss": "mse", "output": "residual", "full_resolution_skip": True},
        {"adversarial": "hinge", "upsample": "resize", "norm": "instance", "depth": 3, "lr_schedule": "cosine"},
        {"adversarial": "least_squares", "norm": "none", "patch": 14},
    ],
    ids=str,
)
def test_a_step_waits_for_nothing_and_is_on_the_device_as_a_whole(settings, images, watched):
    few = Images(train=images.train[:40], validation=images.validation[:6])
    with watched:
        placed = DeviceImages.place(few, "gaussian:30", META, num_validation=6)
        waits = []
        for steps in (2, 8):
            trainer = Trainer(replace(SMALL, **settings, images_per_epoch=4 * steps), placed)
            before = watched.waits
            trainer.run_epoch()
            waits.append(watched.waits - before)
    # The order of the images goes there, the losses and the validation's figures come back; and once, SSIM's window.
    assert waits == [4, 3]
    assert {tensor.device for tensor in trainer._tensors().values()} == {META}
