import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch.nn.functional import binary_cross_entropy, l1_loss

from model.checkpoint import CheckpointError, save_checkpoint
from model.common.errors import ConfigError
from model.config import TrainConfig
from model.data.device_images import DeviceImages
from model.data.image_sets import ImagePairs, Images
from model.data.noise import parse_noise
from model.data.pixel_format import EIGHT_BITS
from model.gan import autocast_dtype, clip_gradients
from model.trainer import Trainer, load_generator
from model.training_report import failure_reason

CPU = torch.device("cpu")
# 64 of 100 images an epoch: the second epoch's batches span two shuffles.
SMALL = TrainConfig(width=4, batch_size=16, images_per_epoch=64, epochs=3, precision="float32")


@pytest.fixture(scope="module")
def few(images) -> DeviceImages:
    return place(images.train[:100], images.validation.clean[:20])


def place(train: np.ndarray, validation: np.ndarray, noise: str = "gaussian:30-50") -> DeviceImages:
    images = Images(train=train, validation=ImagePairs(validation), padding=2)
    return DeviceImages.to_device(images, noise, CPU, num_validation=len(validation))


def run(trainer: Trainer, epochs: int) -> Trainer:
    for _ in range(epochs):
        trainer.run_epoch()
    return trainer


def told(trainer: Trainer) -> list[dict[str, object]]:
    """The reports without the clock's part."""
    return [replace(report, seconds=0.0, eval_seconds=0.0).as_dict() for report in trainer.reports]


def same_state(a: Trainer, b: Trainer) -> bool:
    ours, theirs = a.gan.tensors(), b.gan.tensors()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, lr_schedule="cosine", dropout=0.5, loss="both"),
        # the unused weight is not in the checkpoint, yet it is the same configuration
        replace(SMALL, loss="l1", ssim_weight=7.0, patch=14, average_decay=0.0),
    ],
    ids=["cosine, both", "constant, l1"],
)
def test_a_resumed_training_equals_the_undisturbed_one_bit_for_bit(config, few, tmp_path):
    undisturbed = run(Trainer(config, few), 3)
    run(Trainer(config, few), 1).save(tmp_path / "checkpoint", trial=7)
    torch.manual_seed(99)  # whatever happened in between
    resumed = Trainer(config, few)
    resumed.load(tmp_path / "checkpoint")
    assert resumed.epoch == 1
    run(resumed, 2)
    assert same_state(resumed, undisturbed)
    assert told(resumed) == told(undisturbed)


def test_a_checkpoint_taken_before_the_first_epoch_continues_too(few, tmp_path):
    Trainer(SMALL, few).save(tmp_path / "checkpoint")
    resumed = Trainer(SMALL, few)
    resumed.load(tmp_path / "checkpoint")
    assert same_state(run(resumed, 1), run(Trainer(SMALL, few), 1))


def test_saving_changes_nothing(few, tmp_path):
    trainer = Trainer(SMALL, few)
    for _ in range(2):
        trainer.save(tmp_path / "checkpoint")
        trainer.run_epoch()
    assert same_state(trainer, run(Trainer(SMALL, few), 2))


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr_g": 1e-4}, {"width": 5}, {"patch": 14}, {"epochs": 4}])
def test_a_checkpoint_of_another_configuration_is_refused_and_changes_nothing(change, few, tmp_path):
    run(Trainer(SMALL, few), 1).save(tmp_path / "checkpoint")
    other = Trainer(replace(SMALL, **change), few)
    with pytest.raises(ConfigError, match="another configuration") as caught:
        other.load(tmp_path / "checkpoint")
    for name, value in change.items():
        assert f"{name} was {getattr(SMALL, name)}, is {value}" in str(caught.value)
    assert other.epoch == 0
    assert same_state(other, Trainer(replace(SMALL, **change), few))


def test_a_checkpoint_of_images_of_another_shape_is_refused(few, mosaic, tmp_path):
    Trainer(SMALL, few).save(tmp_path / "checkpoint")
    colour = np.stack([mosaic[:32, x : x + 32].transpose(2, 0, 1) for x in range(0, 256, 8)])
    with pytest.raises(CheckpointError, match="other shapes"):
        Trainer(SMALL, place(colour, colour[:4])).load(tmp_path / "checkpoint")


def test_the_global_random_state_is_left_as_it_was(few):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(Trainer(SMALL, few), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_and_nothing_else_decides(few):
    first, second = run(Trainer(SMALL, few), 1), run(Trainer(SMALL, few), 1)
    other = run(Trainer(replace(SMALL, seed=1), few), 1)
    assert same_state(first, second)
    assert not same_state(first, other)


def shown(trainer: Trainer, epochs: int) -> list[int]:
    """Training images' numbers, in the order of the batches."""
    rows: list[int] = []
    for epoch in range(epochs):
        trainer.reports = [None] * epoch
        for batch in trainer._batches():
            assert batch.shape == (trainer.config.batch_size,)
            rows += batch.tolist()
    return rows


@pytest.mark.parametrize(("batch_size", "images_per_epoch", "epochs"), [(4, 8, 5), (4, 23, 4), (10, 10, 4), (7, 14, 5)])
def test_every_image_is_shown_once_before_any_is_shown_again(images, batch_size, images_per_epoch, epochs):
    config = replace(SMALL, batch_size=batch_size, images_per_epoch=images_per_epoch)
    order = shown(Trainer(config, place(images.train[:10], images.validation.clean[:10])), epochs)
    assert len(order) == images_per_epoch // batch_size * batch_size * epochs >= 40
    rounds = [order[start : start + 10] for start in range(0, len(order) - 9, 10)]
    assert all(sorted(round_) == list(range(10)) for round_ in rounds)
    assert len({tuple(round_) for round_ in rounds}) == len(rounds)  # each in an order of its own


@pytest.mark.parametrize("settings", [{}, {"blocks": 1, "depth": 2}, {"patch": 14, "loss": "ssim"}], ids=str)
def test_one_image_a_batch_trains_with_instance_normalisation_and_more_images_an_epoch_than_there_are(few, settings):
    trainer = run(Trainer(replace(SMALL, batch_size=1, norm="instance", images_per_epoch=120, **settings), few), 1)
    (report,) = trainer.reports
    assert report.images == 120
    assert all(math.isfinite(value) for value in report.curves().values())


def test_noise_is_drawn_afresh_for_every_showing(few):
    seen = []
    trainer = Trainer(replace(SMALL, batch_size=100, images_per_epoch=100), few)
    step = trainer.gan.step
    trainer.gan.step = lambda noisy, clean: seen.append((noisy - clean, clean)) or step(noisy, clean)
    run(trainer, 2)
    (first, clean), (second, _) = seen
    assert not torch.equal(first.sum(dim=(1, 2, 3)).sort()[0], second.sum(dim=(1, 2, 3)).sort()[0])
    pixels = few.train.numpy()
    assert {image.tobytes() for image in (clean.numpy() * 127.5 + 127.5).round().astype(np.uint8)} == {
        image.tobytes() for image in pixels
    }


def test_the_shared_forward_gives_the_textbooks_gradients(few):
    trainer = Trainer(replace(SMALL, dropout=0.0, l1_weight=30.0), few)
    clean = torch.from_numpy(EIGHT_BITS.to_unit(few.train[:16].numpy()))
    noisy = parse_noise("gaussian:30")(clean, torch.Generator().manual_seed(1))
    gen, disc = (copy.deepcopy(network).train() for network in (trainer.gan.generator, trainer.gan.discriminator))

    # Isola et al. 2017, one pass for each network; the losses by probabilities, as the slides write them.
    fake = gen(noisy)
    judged = disc(noisy, fake).sigmoid()
    gen_loss = binary_cross_entropy(judged, torch.ones_like(judged)) + 30 * l1_loss(fake, clean)
    gen_gradients = torch.autograd.grad(gen_loss, list(gen.parameters()))
    real, generated = disc(noisy, clean).sigmoid(), disc(noisy, fake.detach()).sigmoid()
    disc_loss = binary_cross_entropy(real, torch.ones_like(real))
    disc_loss = disc_loss + binary_cross_entropy(generated, torch.zeros_like(generated))
    disc_gradients = torch.autograd.grad(disc_loss, list(disc.parameters()))

    trainer.gan.generator.train()
    trainer.gan.discriminator.train()
    losses = trainer.gan.step(noisy, clean)
    assert losses[0].item() == pytest.approx(gen_loss.item(), rel=1e-5)
    assert losses[3:].sum().item() == pytest.approx(disc_loss.item(), rel=1e-5)
    for network, expected in ((trainer.gan.generator, gen_gradients), (trainer.gan.discriminator, disc_gradients)):
        for (name, parameter), gradient in zip(network.named_parameters(), expected, strict=True):
            scale = gradient.abs().max().item()
            assert scale > 0, name
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_gradients_are_clipped_as_torch_clips_them_to_twice_the_running_mean_of_their_norm():
    draw, mean_norm, running = torch.Generator().manual_seed(0), torch.zeros(()), None
    for scale in [1.0, 1.1, 0.9, 50.0, 1.0, 0.0, 3.0, 1.0]:  # a bad step, and one without any gradient
        gradients = [scale * torch.randn(shape, generator=draw) for shape in ((3, 2), (5,))]
        parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if running is None else 2 * running).item()
        running = norm if running is None else 0.98 * running + 0.02 * min(norm, 2 * running)
        clip_gradients(gradients, mean_norm, 2.0)
        assert mean_norm.item() == pytest.approx(running, rel=1e-5)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_gradients_within_the_limit_are_left_as_they_are_bit_for_bit(few):
    clipped, free = (run(Trainer(replace(SMALL, lr_g=1e-5, lr_d=1e-5, grad_clip=c), few), 1) for c in (1e6, 0.0))
    assert all(torch.equal(clipped.gan.tensors()[name], tensor) for name, tensor in free.gan.tensors().items()
               if not name.startswith("mean_norm"))  # fmt: skip
    assert free.gan.mean_norm_g == 0 < clipped.gan.mean_norm_g


def test_a_checkpoint_made_before_gradients_were_clipped_is_continued(few, tmp_path):
    old = run(Trainer(replace(SMALL, grad_clip=0.0), few), 1)
    config = {name: value for name, value in old.config.as_dict().items() if name != "grad_clip"}
    tensors = {name: tensor for name, tensor in old.gan.tensors().items() if not name.startswith("mean_norm")}
    state = {"config": config, "reports": [report.as_dict() for report in old.reports], "notes": {}}
    save_checkpoint(tmp_path / "old", tensors, state)
    new = Trainer(SMALL, few)
    new.load(tmp_path / "old")
    assert new.epoch == 1
    run(new, 1)
    assert new.gan.mean_norm_g > 0 < new.gan.mean_norm_d


def test_without_an_adversarial_loss_the_discriminator_is_never_run_and_never_changes(few):
    trainer = Trainer(replace(SMALL, adversarial="none"), few)
    runs = []
    trainer.gan.discriminator.register_forward_hook(lambda *_: runs.append(1))
    before = {name: tensor.clone() for name, tensor in trainer.gan.discriminator.state_dict().items()}
    report = trainer.run_epoch()
    assert runs == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.gan.discriminator.state_dict().items())
    assert (report.disc_real, report.disc_generated, report.gen_adversarial) == (0, 0, 0)
    assert report.gen_total == report.gen_reconstruction > 0


def test_the_adversarial_weight_scales_the_generators_loss_alone(few):
    one, three = (Trainer(replace(SMALL, dropout=0.0, adversarial_weight=w), few) for w in (1.0, 3.0))
    clean = torch.rand(8, 1, 32, 32) * 2 - 1
    light, heavy = (trainer.gan.step(clean, clean) for trainer in (one, three))
    torch.testing.assert_close(heavy, torch.stack([light[0] + 2 * light[1], 3 * light[1], *light[2:]]))


def watch(trainer: Trainer) -> list[tuple[float, float, list[torch.Tensor]]]:
    """The learning rates of G and D at each step and G's weights after it, once the trainer ran."""
    seen = []
    step = trainer.gan.step

    def watched(noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        losses = step(noisy, clean)
        rates = [adam.param_groups[0]["lr"] for adam in (trainer.gan.adam_g, trainer.gan.adam_d)]
        seen.append((*rates, [p.detach().clone() for p in trainer.gan.generator.parameters()]))
        return losses

    trainer.gan.step = watched
    return seen


@pytest.mark.parametrize("average_decay", [0.0, 0.3, 0.999])
def test_the_moving_average_follows_its_formula(average_decay, few):
    trainer = Trainer(replace(SMALL, average_decay=average_decay, lr_g=0.01), few)
    expected = [p.detach().double() for p in trainer.gan.generator.parameters()]
    seen = watch(trainer)
    run(trainer, 2)
    assert len(seen) == 8
    for step, (*_, weights) in enumerate(seen):
        decay = min(average_decay, (1 + step) / (10 + step))
        expected = [decay * old + (1 - decay) * new.double() for old, new in zip(expected, weights, strict=True)]
    for ours, theirs in zip(trainer.gan.ema_generator.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def test_the_average_normalises_with_the_generators_statistics(few):
    trainer = run(Trainer(SMALL, few), 1)
    for ours, theirs in zip(trainer.gan.ema_generator.buffers(), trainer.gan.generator.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_cosine_takes_both_rates_from_full_to_almost_zero(few):
    trainer = Trainer(replace(SMALL, lr_schedule="cosine", lr_g=4e-4, lr_d=1e-4), few)
    seen = watch(trainer)
    run(trainer, 3)
    factors = [(1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    np.testing.assert_allclose([lr_g for lr_g, *_ in seen], 4e-4 * np.array(factors), rtol=1e-9)
    np.testing.assert_allclose([lr_d for _, lr_d, _ in seen], 1e-4 * np.array(factors), rtol=1e-9)


def test_constant_rates_stay(few):
    trainer = Trainer(replace(SMALL, lr_g=4e-4, lr_d=1e-4), few)
    seen = watch(trainer)
    run(trainer, 2)
    assert {(lr_g, lr_d) for lr_g, lr_d, _ in seen} == {(4e-4, 1e-4)}


def test_each_networks_adam_has_its_own_rate_and_the_configs_betas(few):
    trainer = Trainer(replace(SMALL, beta1=0.3, beta2=0.9), few)
    for adam, network in ((trainer.gan.adam_g, trainer.gan.generator), (trainer.gan.adam_d, trainer.gan.discriminator)):
        [group] = adam.param_groups
        assert group["betas"] == (0.3, 0.9)
        assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}


def test_training_on_real_images_denoises(trained):
    first, last = trained.reports[0], trained.reports[-1]
    assert last.psnr_db > last.noisy_psnr_db + 1
    assert last.psnr_db > first.psnr_db
    assert last.ssim > first.ssim
    assert last.output_std > 0.2
    assert failure_reason(trained.reports) is None


def test_reports_count_epochs_and_images_and_their_losses_add_up(few):
    trainer = run(Trainer(replace(SMALL, images_per_epoch=70), few), 2)
    assert [(r.epoch, r.images) for r in trainer.reports] == [(1, 64), (2, 128)]
    for report in trainer.reports:
        assert report.gen_total == pytest.approx(report.gen_adversarial + report.gen_reconstruction, rel=1e-5)
        assert report.seconds > 0


def test_bfloat16_trains_float32_weights_to_finite_losses(few):
    # Two steps of few images: most CPUs emulate bfloat16, a hundred times slower.
    trainer = Trainer(replace(SMALL, batch_size=4, images_per_epoch=8, precision="bfloat16"), few)
    kinds = set()
    trainer.gan.generator.down[1].register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    before = [p.detach().clone() for p in trainer.gan.generator.parameters()]
    report = trainer.run_epoch()
    assert kinds == {torch.bfloat16}
    assert all(math.isfinite(v) for v in (report.gen_total, report.disc_real, report.disc_generated, report.psnr_db))
    for old, new in zip(before, trainer.gan.generator.parameters(), strict=True):
        assert new.dtype == torch.float32
        assert not torch.equal(old, new)


@pytest.mark.parametrize(
    ("precision", "units", "expected"),
    [
        ("auto", {}, None),
        ("auto", {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ("auto", {"avx512_bf16": True}, torch.bfloat16),
        ("float32", {"amx_bf16": True}, None),
        ("bfloat16", {}, torch.bfloat16),
    ],
)
def test_auto_takes_bfloat16_where_the_cpu_has_units_for_it(precision, units, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert autocast_dtype(precision, CPU) == expected


def test_a_training_with_nan_is_reported_as_diverged_and_can_be_saved(few, tmp_path):
    trainer = Trainer(SMALL, few)
    with torch.no_grad():
        trainer.gan.generator.last.weight[0, 0, 0, 0] = math.nan
    trainer.run_epoch()
    assert failure_reason(trainer.reports) == "diverged"
    trainer.save(tmp_path / "checkpoint")
    again = Trainer(SMALL, few)
    again.load(tmp_path / "checkpoint")
    assert json.dumps(told(again)) == json.dumps(told(trainer))
    assert failure_reason(again.reports) == "diverged"


def test_a_batch_above_the_training_set_is_refused(few):
    with pytest.raises(ConfigError, match="batch_size=101: above the 100 training images"):
        Trainer(replace(SMALL, batch_size=101, images_per_epoch=101), few)


def test_the_generator_of_a_checkpoint_is_its_moving_average(few, tmp_path):
    trainer = run(Trainer(replace(SMALL, loss="ssim", ssim_weight=7.0), few), 1)
    trainer.save(tmp_path / "checkpoint", trial=7)
    generator, state = load_generator(tmp_path / "checkpoint", channels=1, image_size=32)
    assert state["notes"] == {"trial": 7}
    assert state["config"] == trainer.config.as_dict()
    assert not generator.training
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, trainer.gan.ema_generator.state_dict()[name])
    assert not torch.equal(generator.last.weight, trainer.gan.generator.last.weight)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_generator(tmp_path / "checkpoint", channels=3, image_size=32)


def test_black_images_that_noise_leaves_alone_make_no_training_dead(images):
    """Half of a dark field's tiles have no photon: noisy and clean are the same there, and PSNR is infinite."""
    train, validation = images.train[:100].copy(), images.validation.clean[:20].copy()
    train[:50], validation[:10] = 0, 0
    dark = place(train, validation, "poisson:30")
    assert (dark.validation_noisy[:10] == dark.validation[:10]).all()
    (report,) = run(Trainer(SMALL, dark), 1).reports
    seen = slice(10, None)
    noisy = [
        peak_signal_noise_ratio(clean, noisy, data_range=2)
        for clean, noisy in zip(dark.validation[seen].numpy(), dark.validation_noisy[seen].numpy(), strict=True)
    ]
    assert report.noisy_psnr_db == pytest.approx(np.mean(noisy), abs=1e-4)
    assert np.isfinite(report.psnr_db)
    assert not replace(report, psnr_db=report.noisy_psnr_db + 1, output_std=0.5).is_dead
    assert replace(report, psnr_db=report.noisy_psnr_db - 1, output_std=0.5).is_dead
