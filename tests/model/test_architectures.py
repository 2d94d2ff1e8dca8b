"""Every setting that changes the networks or the losses trains, continues exactly, and is exported as trained."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.common.errors import ConfigError
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import Images
from model.denoise import Denoiser
from model.export import export
from model.generator import Generator
from model.trainer import Trainer, load_generator

SMALL = TrainConfig(width=2, batch_size=8, images_per_epoch=16, epochs=2, precision="float32")
ALL = {"output": "residual", "full_resolution_skip": True, "upsample": "resize", "norm": "instance", "depth": 3}
NETWORKS = [
    {"output": "residual"},
    {"full_resolution_skip": True},
    {"upsample": "resize"},
    {"norm": "instance"},
    {"norm": "none"},
    {"depth": 2},
    {"blocks": 1},
    {"blocks": 2, "norm": "none", "depth": 3, "upsample": "resize", "output": "residual"},
    {"blocks": 1, "norm": "instance"},
    ALL,
]
# Each of these settings, with others: an export takes seconds.
EXPORTED = [
    {"output": "residual", "full_resolution_skip": True, "norm": "instance", "depth": 2},
    {"upsample": "resize", "norm": "none"},
    {"blocks": 1, "norm": "instance"},
    {"blocks": 2, "norm": "none", "depth": 3, "upsample": "resize", "output": "residual"},
]
LOSSES = [
    {"loss": "mse"},
    {"adversarial": "least_squares", "adversarial_weight": 0.5},
    {"adversarial": "hinge"},
    {"adversarial": "none"},
]


@pytest.fixture(scope="module")
def few(images) -> Images:
    return Images(train=images.train[:32], validation=images.validation[:8])


@pytest.fixture(scope="module")
def placed(few) -> DeviceImages:
    return DeviceImages.to_device(few, "gaussian:30", torch.device("cpu"), num_validation=8)


def generator(**settings: object) -> Generator:
    torch.manual_seed(0)
    return Generator(replace(SMALL, **settings), channels=1, image_size=32)


def kinds(network: torch.nn.Module) -> set[str]:
    return {type(module).__name__ for module in network.modules()}


@pytest.mark.parametrize("settings", [*NETWORKS, *LOSSES], ids=str)
def test_it_trains_to_finite_figures_and_continues_exactly(settings, placed, tmp_path):
    config = replace(SMALL, **settings)
    undisturbed = Trainer(config, placed)
    before = {name: tensor.clone() for name, tensor in undisturbed.gan.generator.named_parameters()}
    undisturbed.run_epoch()
    undisturbed.save(tmp_path / "checkpoint")
    undisturbed.run_epoch()
    resumed = Trainer(config, placed)
    resumed.load(tmp_path / "checkpoint")
    resumed.run_epoch()
    ours, theirs = resumed.gan.tensors(), undisturbed.gan.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    numbers = undisturbed.reports[-1].as_dict().values()
    assert all(isinstance(number, float | int) and math.isfinite(number) for number in numbers)
    unmoved = [
        name for name, tensor in undisturbed.gan.generator.named_parameters() if torch.equal(tensor, before[name])
    ]
    assert unmoved == []  # every weight takes part


@pytest.mark.parametrize("settings", EXPORTED, ids=str)
def test_what_is_exported_is_what_was_trained_at_every_multiple(settings, placed, few, tmp_path):
    trainer = Trainer(replace(SMALL, **settings, lr_g=0.01, average_decay=0.0), placed)
    trainer.run_epoch()
    trainer.save(tmp_path / "checkpoint")
    data = DataConfig(noise="gaussian:30")
    manifest = export(tmp_path / "checkpoint", tmp_path / "out", data=data, images=few, test=None, origin={})
    multiple = manifest["model"]["size_multiple"]
    assert multiple == 2 ** (settings.get("depth") or 5)
    denoiser = Denoiser(tmp_path / "out")
    network, _ = load_generator(tmp_path / "checkpoint", channels=1, image_size=32)
    for shape in [(3, 1, 32, 32), (1, 1, 2 * multiple, 3 * multiple), (2, 1, 2 * multiple, 2 * multiple)]:
        noisy = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(noisy)).numpy()
        denoised = denoiser.batch(noisy)
        assert np.abs(denoised).max() <= 1
        np.testing.assert_allclose(denoised, expected, rtol=0, atol=1e-4)
    image = few.validation.clean[0, 0, :21, :30]
    assert denoiser(image).shape == image.shape


def test_the_slides_network_has_the_weights_names_it_always_had():
    assert generator().state_dict().keys() == {
        *(f"down.{i}.0.weight" for i in range(5)),
        *(f"down.{i}.1.{name}" for i in range(1, 5) for name in BATCH_NORM),
        *(f"up.{i}.0.weight" for i in range(4)),
        *(f"up.{i}.1.{name}" for i in range(4) for name in BATCH_NORM),
        "last.weight",
        "last.bias",
    }


BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_a_checkpoint_from_before_a_setting_existed_goes_on_with_its_default(placed, tmp_path, monkeypatch):
    trainer = Trainer(SMALL, placed)
    trainer.run_epoch()
    old = {name: value for name, value in SMALL.as_dict().items() if name not in {*ALL, "adversarial", "mse_weight"}}
    with monkeypatch.context() as patched:
        patched.setattr(TrainConfig, "as_dict", lambda self: old)
        trainer.save(tmp_path / "checkpoint")
    resumed = Trainer(SMALL, placed)
    resumed.load(tmp_path / "checkpoint")
    assert resumed.epoch == 1
    with pytest.raises(ConfigError, match="norm was batch, is none"):
        Trainer(replace(SMALL, norm="none"), placed).load(tmp_path / "checkpoint")


@pytest.mark.parametrize("settings", [{}, {"blocks": 2, "depth": 3}])
def test_a_residual_generator_begins_near_its_input_and_stays_in_range(settings):
    network = generator(output="residual", **settings)
    noisy = torch.rand(4, 1, 32, 32) * 2 - 1
    for mode in (True, False):
        assert (network.train(mode)(noisy) - noisy).abs().mean() < 0.05
        with torch.no_grad():
            list(network.last.parameters())[-1].fill_(5.0)
            assert network(noisy).max() <= 1
            list(network.last.parameters())[-1].zero_()


@pytest.mark.parametrize("blocks", [1, 2])
def test_blocks_stand_on_each_level_of_both_sides_the_first_at_full_resolution(blocks):
    network, sizes = generator(blocks=blocks, depth=3).eval(), []
    for module in network.modules():
        if type(module).__name__ == "_Residual":
            module.register_forward_hook(lambda block, given, result: sizes.append((*given[0].shape[1:3],)))
    network(torch.zeros(1, 1, 32, 32))
    levels = [(2, 32), (4, 16), (8, 8), (16, 4), (8, 8), (4, 16), (2, 32)]  # channels, pixels
    assert sizes == [level for level in levels for _ in range(blocks)]


@pytest.mark.parametrize(
    ("bias", "down", "up"),
    [
        (0.5, 1, -1),  # the identity's gradient, where nothing is cut off
        (5.0, 0.1, 0),  # a step down leads a pixel back that is above 1, a step up does not
        (-5.0, 0, -0.1),
    ],
)
def test_a_residual_generator_is_trained_on_what_it_gives_and_cut_off_pixels_are_led_back(bias, down, up):
    network = generator(output="residual").train()
    noisy = torch.zeros(2, 1, 32, 32)
    torch.nn.init.constant_(network.last.bias, bias)
    for sign, expected in ((1, down), (-1, up)):
        network.zero_grad()
        (sign * network(noisy)).sum().backward()
        assert network.last.bias.grad.item() == pytest.approx(expected * noisy.numel(), rel=1e-4)
    assert network(noisy).abs().max() <= 1


def test_the_full_resolution_skip_goes_around_all_strided_layers():
    network = generator(full_resolution_skip=True).eval()
    for up in network.up:
        torch.nn.init.zeros_(up[0].weight)  # nothing comes up from below
    noisy = torch.zeros(1, 1, 32, 32)
    moved = noisy.clone()
    moved[0, 0, 9, 20] = 1
    changed = (network(moved) - network(noisy)).detach()[0, 0].nonzero()
    assert changed.min(dim=0).values.tolist() == [7, 18]
    assert changed.max(dim=0).values.tolist() == [11, 22]


@pytest.mark.parametrize(
    ("settings", "there", "absent"),
    [
        ({"upsample": "resize"}, {"_ResizeConv"}, {"_Doubled"}),
        ({"norm": "instance"}, {"InstanceNorm2d"}, {"BatchNorm2d"}),
        ({"norm": "none"}, {"_Halved"}, {"BatchNorm2d", "InstanceNorm2d"}),
    ],
)
def test_a_setting_exchanges_every_layer_of_its_kind(settings, there, absent):
    assert kinds(generator(**settings)) & (there | absent) == there


@pytest.mark.parametrize(("depth", "normed"), [(None, [False, True, True, True, False]), (3, [False, True, True])])
def test_instance_normalisation_is_left_out_where_one_pixel_is_left(depth, normed):
    network = generator(norm="instance", depth=depth)
    assert ["InstanceNorm2d" in kinds(block) for block in network.down] == normed
    assert all("InstanceNorm2d" in kinds(block) for block in network.up)


@pytest.mark.parametrize(("image_size", "depth"), [(48, 4), (28, 2), (512, 8)])
def test_fewer_levels_suit_sizes_that_are_no_powers_of_two(image_size, depth):
    network = Generator(TrainConfig(width=1, dropout=0.0, depth=depth), channels=3, image_size=image_size)
    assert len(network.down) == depth
    assert network.size_multiple == 2**depth


def test_more_levels_than_the_image_has_halvings_are_bad_input(placed):
    with pytest.raises(ConfigError, match="image_size=32: must be a multiple of 64, for a depth of 6"):
        Trainer(replace(SMALL, depth=6), placed)
