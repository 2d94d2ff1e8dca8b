"""Draws the networks of the slides' experiment: python benchmarks/drawings.py --to docs/slides

Real images go through the real modules, and hooks note what each layer is, what it is given and what it gives: nothing
in the drawings is typed in. What a layer is given beyond the layer before it is a skip connection; it is drawn from the
block that made the same numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from slides import PATCHES, RECIPE
from torch import nn

from model.data.data_config import DataConfig
from model.discriminator import Discriminator
from model.generator import Generator


@dataclass(kw_only=True)
class Block:
    """A convolution and what follows it, as they ran."""

    layers: list[str] = field(default_factory=list)
    weights: int = 0
    given: torch.Tensor
    gives: torch.Tensor
    skip: int | None = None  # the block whose output is concatenated to that of the block before

    @property
    def size(self) -> str:
        """Of what leaves it."""
        return size(self.gives)


def size(images: torch.Tensor) -> str:
    """Height x width x channels."""
    _, channels, height, width = images.shape
    return f"{height}x{width}x{channels}"


@torch.inference_mode()
def walk(network: nn.Module, *images: torch.Tensor) -> list[Block]:
    """The blocks, in the order in which they ran on images (N, C, H, W)."""
    blocks: list[Block] = []

    def note(module: nn.Module, given: tuple[torch.Tensor, ...], gives: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            blocks.append(Block(given=given[0], gives=gives))
        blocks[-1].layers.append(_name(module))
        blocks[-1].weights += sum(p.numel() for p in module.parameters())
        blocks[-1].gives = gives

    hooks = [m.register_forward_hook(note) for m in network.modules() if not list(m.children())]
    output = network.eval()(*images)
    for hook in hooks:
        hook.remove()
    for before, block in pairwise(blocks):
        channels = before.gives.shape[1]
        assert torch.equal(block.given[:, :channels], before.gives)
        if block.given.shape[1] > channels:
            rest = block.given[:, channels:]
            block.skip = next(i for i, each in enumerate(blocks) if torch.equal(each.gives, rest))
    if not torch.equal(output, blocks[-1].gives):
        assert torch.equal(output, torch.tanh(blocks[-1].gives))
        blocks[-1].layers.append("tanh")
    return blocks


def _name(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        kind = "TransposedConv" if isinstance(module, nn.ConvTranspose2d) else "Conv"
        (height, width), (stride, _) = module.kernel_size, module.stride
        return f"{kind} {height}x{width}" + f" stride {stride}" * (stride > 1)
    if isinstance(module, nn.Dropout):
        return f"Dropout {module.p:g}"
    if isinstance(module, nn.LeakyReLU):
        return f"LeakyReLU {module.negative_slope:g}"
    return type(module).__name__.removesuffix("2d")


# --- SVG ------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, ROW = 410, 52, 84  # of a box; from one row to the next
COLOURS = {"image": "#f3f3f3", "down": "#dbe9f6", "up": "#fde3cd"}


def box(x: float, y: float, colour: str, title: str, text: str) -> str:
    """A named size and how it comes about."""
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="{COLOURS[colour]}" stroke="#666"/>'
        f'<text x="{x + WIDTH / 2}" y="{y + 21}" font-weight="bold">{escape(title)}</text>'
        f'<text x="{x + WIDTH / 2}" y="{y + 40}" font-size="12">{escape(text)}</text>'
    )


def arrow(*points: tuple[float, float], label: str = "") -> str:
    """Through these points; with a label it is a skip connection, and dashed."""
    path = " ".join(f"{x},{y}" for x, y in points)
    (x_a, y_a), (x_b, _) = points[0], points[-1]
    dashes = ' stroke-dasharray="5 4"' if label else ""
    text = f'<text x="{(x_a + x_b) / 2}" y="{y_a - 6}" font-size="12">{escape(label)}</text>' if label else ""
    return f'<polyline points="{path}" fill="none" stroke="#444"{dashes} marker-end="url(#head)"/>{text}'


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A whole file, white below: pages may be dark."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="14" text-anchor="middle">\n'
        '<defs><marker id="head" viewBox="0 0 10 10" refX="10" refY="5" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="#444"/></marker></defs>\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        f'<text x="{width / 2}" y="28" font-size="17" font-weight="bold">{escape(title)}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(block: Block) -> str:
    return " · ".join(block.layers)


def draw_generator(generator: Generator, noisy: torch.Tensor) -> str:
    """Left the encoder, right the decoder; blocks of one image size beside each other."""
    blocks = walk(generator, noisy)
    rows = [noisy.shape[-1]] + [block.gives.shape[-1] for block in blocks]
    levels = sorted(set(rows), reverse=True)
    innermost = rows.index(levels[-1])
    left, right, top = 20, 620, 48

    def corner(i: int) -> tuple[float, float]:
        """Of the i-th box, the input being the first."""
        return (left if i <= innermost else right), top + ROW * levels.index(rows[i])

    parts = [box(*corner(0), "image", f"noisy image, {size(noisy)}", "in [-1, 1]")]
    for i, block in enumerate(blocks, start=1):
        x, y = corner(i)
        is_last = i == len(blocks)
        title = f"denoised image, {block.size}" if is_last else block.size
        parts.append(box(x, y, "image" if is_last else "down" if i <= innermost else "up", title, _text(block)))
        x_from, y_from = corner(i - 1)
        if i <= innermost:
            parts.append(arrow((x_from + WIDTH / 2, y_from + HEIGHT), (x + WIDTH / 2, y)))
        elif i == innermost + 1:  # from the bottom of the U, round its corner
            parts.append(
                arrow(
                    (x_from + WIDTH, y_from + HEIGHT / 2),
                    (x + WIDTH / 2, y_from + HEIGHT / 2),
                    (x + WIDTH / 2, y + HEIGHT),
                )
            )
        else:
            parts.append(arrow((x_from + WIDTH / 2, y_from), (x + WIDTH / 2, y + HEIGHT)))
        if block.skip is not None:  # joins what the box before gives
            x_skip, y_skip = corner(block.skip + 1)
            together = block.given.shape[1]
            parts.append(
                arrow(
                    (x_skip + WIDTH, y_skip + HEIGHT / 2),
                    (x_from, y_skip + HEIGHT / 2),
                    label=f"skip: together {together} channels",
                )
            )
    weights = sum(block.weights for block in blocks)
    return svg(right + WIDTH + 20, top + ROW * len(levels), f"Generator, {weights:,} weights", parts)


def draw_discriminators(discriminators: dict[int, Discriminator], noisy: torch.Tensor, clean: torch.Tensor) -> str:
    """One column for each."""
    parts, top, bottom = [], 84, 0.0
    for column, (patch, discriminator) in enumerate(discriminators.items()):
        blocks, x = walk(discriminator, noisy, clean), 20 + column * (WIDTH + 60)
        weights = sum(block.weights for block in blocks)
        parts.append(f'<text x="{x + WIDTH / 2}" y="64">patch {patch}: {weights:,} weights</text>')
        parts.append(
            box(x, top, "image", f"{size(blocks[0].given)}", "noisy image and clean or generated one, concatenated")
        )
        for i, block in enumerate(blocks, start=1):
            y, is_last = top + ROW * i, i == len(blocks)
            title = f"{block.size} logits, each sees {patch}x{patch} pixels" if is_last else block.size
            parts.append(box(x, y, "image" if is_last else "down", title, _text(block)))
            parts.append(arrow((x + WIDTH / 2, y - ROW + HEIGHT), (x + WIDTH / 2, y)))
            bottom = max(bottom, y + HEIGHT)
    return svg(40 + len(discriminators) * (WIDTH + 60) - 60, bottom + 20, "Discriminators", parts)


def main(argv: Sequence[str] | None = None) -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    given = parser.parse_args(argv)
    noisy, clean = (torch.from_numpy(part) for part in DataConfig().load_test()[:2].with_noise("gaussian:30", "test"))
    channels, side = clean.shape[1:3]
    given.to.mkdir(parents=True, exist_ok=True)
    generator = Generator(RECIPE, channels=channels, image_size=side)
    (given.to / "generator.svg").write_text(draw_generator(generator, noisy))
    discriminators = {patch: Discriminator(channels=channels, width=RECIPE.width, patch=patch) for patch in PATCHES}
    (given.to / "discriminators.svg").write_text(draw_discriminators(discriminators, noisy, clean))


if __name__ == "__main__":
    main()
