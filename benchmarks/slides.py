"""The slides' experiment as one recipe: python benchmarks/slides.py --to runs/slides

Trains cGAN + L1 and cGAN + SSIM with the slides' network on all 60,000 training images, with both PatchGANs, on the
noise of the slides' figures and on the noise that they name. The last epoch is exported and measured. Prints the
slides' tables beside the slides' own figures, and draws Input / Ground Truth / Predicted. The same command continues
an interrupted run. TensorBoard: each training's tensorboard/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as hpo.tune.ray_session

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hpo.tracking.tensorboard import FOLDER, Events
from model.common.files import write_atomically
from model.common.machine import processor
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.data.fashion_mnist import PADDING
from model.data.image_sets import ImagePairs, Images
from model.denoise import Denoiser
from model.export import export
from model.export_quality import evaluate
from model.picture_strip import draw_strip
from model.trainer import load_generator
from model.training_files import LAST
from model.training_run import TrainingRun

# Settings that the slides do not state, once for all eight trainings; docs/slides.md gives the reasons.
RECIPE = TrainConfig(
    width=16, dropout=0.1, batch_size=32, epochs=5, lr_g=2e-3, lr_d=2e-4, lr_schedule="cosine", ssim_weight=500.0
)
NOISES, PATCHES, LOSSES = ("gaussian:30", "gaussian:30-50"), (34, 14), ("l1", "ssim")
WATCHED = 1_000  # training images of the curves in TensorBoard
EPOCHS = (0, 2, 4)  # as in the slides
SHOWN = 8  # test images in a picture of the last epoch; two in one of several epochs
COLUMNS = {"l1": 3, "ssim": 3, "psnr_db": 2}  # decimals in the slides
TITLES = {"noisy": "Noisy images", "ssim": "cGAN + SSIM", "l1": "cGAN + L1", "ground_truth": "Ground truth"}
SLIDES = {
    "train": {"noisy": (0.123, 0.681, 20.55), "ssim": (0.046, 0.888, 26.12), "l1": (0.045, 0.865, 26.19)},
    "test": {"noisy": (0.123, 0.681, 20.54), "ssim": (0.048, 0.871, 25.86), "l1": (0.046, 0.861, 26.09)},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One of the trainings."""

    width: int
    noise: str
    patch: int
    loss: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"width-{self.width}_{self.noise.replace(':', '-')}_patch-{self.patch}_{self.loss}"

    @property
    def config(self) -> TrainConfig:
        """The recipe with this part's settings."""
        return replace(RECIPE, width=self.width, loss=self.loss, patch=self.patch)


def all_images() -> Images:
    """All 60,000 training images; the last of them are the validation images."""
    images = DataConfig().load()
    train = np.concatenate([images.train, images.validation.clean])
    return Images(train=train, validation=ImagePairs(train[-WATCHED:]), padding=PADDING)


def train(part: Part, images: Images, folder: Path) -> float:
    """Train up to the last epoch, keep the checkpoints of the pictures, and return the seconds of all epochs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    placed = DeviceImages.to_device(images, part.noise, device, num_validation=WATCHED)
    run = TrainingRun(part.config, placed, folder, "balanced")
    events = Events(folder / FOLDER)
    events.write(run.reports)
    while True:
        done = len(run.reports)
        if done in EPOCHS and not checkpoint(folder, done).exists():
            run.trainer.save(checkpoint(folder, done))
        if done == part.config.epochs:
            return sum(report.seconds + report.eval_seconds for report in run.reports)
        report = run.run_epoch()
        events.write(run.reports)
        print(
            f"{part.name}: epoch {report.epoch}/{part.config.epochs}  SSIM {report.ssim:.4f}  "
            f"PSNR {report.psnr_db:.2f} dB  L1 {report.l1:.4f}  {report.images_per_second:.0f} images/s",
            file=sys.stderr,
            flush=True,
        )


def checkpoint(folder: Path, epoch: int) -> Path:
    """The checkpoint after an epoch."""
    return folder / f"after-{epoch}.safetensors"


def measure(part: Part, images: Images, folder: Path) -> dict[str, Any]:
    """Measure the exported last epoch as `hpo evaluate` does: {"train": ..., "test": ...}."""
    path = folder / "measured.json"
    if not path.exists():
        data, model = DataConfig(noise=part.noise), folder / "export"
        origin = {"recipe": "benchmarks/slides.py", **asdict(part)}
        manifest = export(folder / LAST, model, data=data, images=images, test=data.load_test(), origin=origin)
        train = evaluate(Denoiser(model), data.load_train(), part.noise, "train")
        write_atomically(path, json.dumps({"train": train, "test": manifest["metrics"]["test"]}, indent=2).encode())
    measured: dict[str, Any] = json.loads(path.read_text())
    return measured


# --- tables ---------------------------------------------------------------------------------------------------------


def reached(row: dict[str, Any], split: str) -> list[bool]:
    """Whether L1, SSIM and PSNR are as good as the slides', to their decimals; empty if they have no figures."""
    if not DataConfig(noise=row["noise"]).is_slides:
        return []
    ours = {column: round(row[split]["denoised"][column], decimals) for column, decimals in COLUMNS.items()}
    slides = dict(zip(COLUMNS, SLIDES[split][row["loss"]], strict=True))
    return [ours["l1"] <= slides["l1"], *(ours[column] >= slides[column] for column in ("ssim", "psnr_db"))]


def table(rows: Sequence[dict[str, Any]], split: str) -> str:
    """The slides' table for trainings with different losses; bold: as good as the slides' figure."""
    first, of_loss = rows[0], {row["loss"]: row for row in rows}
    noise, patch, width, images = first["noise"], first["patch"], first["width"], first[split]["images"]
    beside = DataConfig(noise=noise).is_slides
    lines = [
        f"`{noise}`, patch {patch}, width {width}, {split}, {images:,} images:",
        "",
        "| | L1 (MAE) | SSIM | PSNR dB |" + " slides: L1 | SSIM | PSNR dB |" * beside,
        "|---|---|---|---|" + "---|---|---|" * beside,
    ]
    for name, title in TITLES.items():
        if name in LOSSES and name not in of_loss:
            continue
        figures = of_loss[name][split]["denoised"] if name in LOSSES else first[split][name]
        shown = [f"{figures['l1']:.4f}", f"{figures['ssim']:.4f}", f"{float(figures['psnr_db']):.2f}"]
        if name in LOSSES and beside:
            bold = reached(of_loss[name], split)
            shown = [f"**{text}**" if good else text for text, good in zip(shown, bold, strict=True)]
        theirs = map(str, SLIDES[split].get(name, (0.0, 1.0, "inf")) if beside else ())
        lines.append(f"| {title} | {' | '.join([*shown, *theirs])} |")
    return "\n".join(lines)


def tables(done: Sequence[dict[str, Any]]) -> str:
    """All tables as Markdown, and the number of cells that are as good as the slides'."""
    same: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in done:
        same.setdefault((row["noise"], row["patch"]), []).append(row)
    cells = [cell for row in done for split in SLIDES for cell in reached(row, split)]
    made = [table(rows, split) for rows in same.values() for split in SLIDES]
    if cells:
        made.append(f"At least as good as the slides, to their decimals: {sum(cells)} of {len(cells)} cells.")
    return "\n\n".join(made)


# --- pictures -------------------------------------------------------------------------------------------------------


def sheet(rows: dict[str, np.ndarray], titles: Sequence[str] = ()) -> Image.Image:
    """Draw named rows of images (N, 1, H, W) in [-1, 1], three times as large, with titles above the columns."""
    scale, above, font = 3, 20 * bool(titles), ImageFont.load_default(14)
    left = round(max(font.getlength(name) for name in rows)) + 16
    pictures = draw_strip([np.stack(column) for column in zip(*rows.values(), strict=True)], scale=scale)
    made = Image.new("L", (left + pictures.width, above + pictures.height), 255)
    made.paste(pictures, (left, above))
    draw = ImageDraw.Draw(made)
    height, width = (pictures.height + 6) / len(rows), (pictures.width + 6) / max(len(titles), 1)
    for i, name in enumerate(rows):
        draw.text((left - 8, above + (i + 0.5) * height - 3), name, 0, font, anchor="rm")
    for i, title in enumerate(titles):
        draw.text((left + (i + 0.5) * width - 3, above / 2), title, 0, font, anchor="mm")
    return made


def draw(part: Part, folder: Path, to: Path) -> None:
    """Draw the first test images: two after each of EPOCHS, more after the last epoch."""
    noisy, clean = DataConfig(noise=part.noise).load_test()[:SHOWN].with_noise(part.noise, "test")
    rows = {}
    for epoch in EPOCHS:
        generator, _ = load_generator(checkpoint(folder, epoch), channels=1, image_size=clean.shape[-1])
        with torch.inference_mode():
            denoised = generator(torch.from_numpy(noisy[:2])).numpy()
        rows[f"epoch {epoch}"] = np.concatenate([np.stack(each) for each in zip(noisy, clean, denoised, strict=False)])
    to.mkdir(parents=True, exist_ok=True)
    sheet(rows, ("Input", "Ground truth", "Predicted") * 2).save(to / f"{part.name}_epochs.png", optimize=True)
    final = {"Input": noisy, "Ground truth": clean, "Predicted": Denoiser(folder / "export").batch(noisy)}
    sheet(final).save(to / f"{part.name}_final.png", optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="checkpoints, exports, measurements")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="default: pictures/ in --to")
    parser.add_argument("--width", type=int, default=RECIPE.width, help="of both networks; the tutorial has 64")
    parser.add_argument("--noise", nargs="+", choices=NOISES, default=NOISES)
    parser.add_argument("--patch", nargs="+", type=int, choices=PATCHES, default=PATCHES)
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    images, done = all_images(), []
    for noise, patch, loss in itertools.product(given.noise, given.patch, given.loss):
        part = Part(width=given.width, noise=noise, patch=patch, loss=loss)
        folder = given.to / part.name
        seconds = train(part, images, folder)
        done.append({**asdict(part), "training_seconds": seconds, **measure(part, images, folder)})
        draw(part, folder, given.pictures or given.to / "pictures")
    machine = f"{os.cpu_count()} cores of {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    if given.json:
        print(json.dumps({"machine": machine, "recipe": RECIPE.as_dict(), "parts": done}, indent=2))
        return
    print(tables(done))
    times = ", ".join(f"{row['training_seconds'] / 60:.1f}" for row in done)
    print(f"\n{machine}. Minutes of training, in this order: {times}")


if __name__ == "__main__":
    main()
