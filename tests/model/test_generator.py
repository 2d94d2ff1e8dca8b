import pytest
import torch
from torch import nn

from model.config import TrainConfig
from model.data.pixel_format import EIGHT_BITS
from model.generator import Generator, _Doubled, _Halved


def make(*, channels: int = 1, image_size: int = 32, width: int = 4, dropout: float = 0.5) -> Generator:
    torch.manual_seed(0)
    return Generator(TrainConfig(width=width, dropout=dropout), channels=channels, image_size=image_size)


def has(block: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in block.modules())


@pytest.mark.parametrize(("width", "millions"), [(64, 16.65), (32, 4.17), (16, 1.04)])
def test_the_generator_has_the_slides_number_of_parameters(width, millions):
    assert round(sum(p.numel() for p in make(width=width).parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(("image_size", "depth"), [(4, 2), (32, 5), (64, 6), (256, 8)])
def test_the_encoder_goes_down_to_one_pixel(image_size, depth):
    generator = make(image_size=image_size, width=1).eval()
    assert len(generator.down) == depth
    x = torch.zeros(2, 1, image_size, image_size)
    for down in generator.down:
        x = down(x)
    assert x.shape[2:] == (1, 1)


@pytest.mark.parametrize("image_size", [2, 28, 48])
def test_a_size_that_cannot_be_halved_to_one_pixel_is_refused(image_size):
    with pytest.raises(ValueError, match=f"image_size={image_size}"):
        make(image_size=image_size)


def test_dropout_is_in_the_first_three_decoder_blocks_only():
    generator = make(image_size=64, dropout=0.3)
    assert [has(block, nn.Dropout) for block in generator.up] == [True, True, True, False, False]
    assert {module.p for module in generator.modules() if isinstance(module, nn.Dropout)} == {0.3}
    assert not has(generator.down, nn.Dropout)


def test_without_dropout_the_training_mode_is_deterministic():
    noisy = torch.randn(4, 1, 32, 32)
    still, shaken = make(dropout=0.0), make(dropout=0.5)
    assert torch.equal(still(noisy), still(noisy))
    assert not torch.equal(shaken(noisy), shaken(noisy))


def test_every_block_but_the_first_and_last_has_batch_norm():
    generator = make()
    assert [has(block, nn.BatchNorm2d) for block in generator.down] == [False, True, True, True, True]
    assert all(has(block, nn.BatchNorm2d) for block in generator.up)
    assert isinstance(generator.last, nn.ConvTranspose2d)


def test_weights_begin_as_the_paper_has_them():
    generator = make(width=32)
    convolutions = [m for m in generator.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    weights = torch.cat([m.weight.detach().flatten() for m in convolutions])
    assert weights.mean().item() == pytest.approx(0, abs=1e-4)
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize("scale", [1, 1000])
def test_the_output_lies_between_minus_one_and_one(scale, images):
    generator = make().eval()
    with torch.no_grad():
        generator.last.weight.mul_(scale)
        denoised = generator(torch.from_numpy(EIGHT_BITS.to_unit(images.validation.clean[:8])))
    assert denoised.shape == (8, 1, 32, 32)
    assert denoised.dtype == torch.float32
    assert denoised.abs().max() <= 1
    assert denoised.abs().max() > 0.9 or scale == 1


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 96), (160, 32)])
def test_every_multiple_of_the_size_multiple_works(height, width):
    generator = make(channels=3).eval()
    assert generator.size_multiple == 32
    noisy = torch.zeros(1, 3, height, width)
    assert generator(noisy).shape == noisy.shape


@pytest.mark.parametrize("cut", range(4))
def test_skips_carry_the_input_around_each_inner_part(cut):
    generator = make().eval()
    nn.init.zeros_(generator.up[cut][0].weight)  # nothing comes up from below this block
    noisy = torch.randn(1, 1, 32, 32, requires_grad=True)
    generator(noisy).square().sum().backward()
    assert noisy.grad.abs().max() > 0


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("image_size", [16, 32])
def test_small_images_by_matrix_products_are_the_convolutions(image_size, norm, monkeypatch):
    """Outputs and all gradients, against torch's own convolutions."""
    torch.manual_seed(0)
    generator = Generator(TrainConfig(width=4, dropout=0.0, norm=norm), channels=2, image_size=image_size).train()
    noisy = torch.randn(5, 2, image_size, image_size, requires_grad=True)

    def run() -> list[torch.Tensor]:
        denoised = generator(noisy)
        loss = (denoised * torch.linspace(-1, 1, denoised.numel()).view_as(denoised)).sum()
        return [denoised, *torch.autograd.grad(loss, [noisy, *generator.parameters()])]

    ours = run()
    for kind in (_Halved, _Doubled):
        monkeypatch.setattr(kind, "forward", kind.__base__.forward)
    for mine, theirs in zip(ours, run(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())
