"""The best quality of a denoiser: python benchmarks/quality.py RECIPE --to DIR [--seeds 0 1 2]

Trains a recipe of docs/quality.md once for each seed, with one thread each and a training on each core, exports the
best epoch on validation, and prints the figures of the exported files on test, with their median. Finished trainings
are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_BLOCKS = "blocks=1 depth=3 width=16 output=residual dropout=0 loss=mse batch_size=32"
_RATES = "lr_schedule=cosine beta1=0.9 lr_g=0.002"
RECIPES: dict[str, tuple[int, str]] = {  # images an epoch, settings
    "adversarial": (5_000, f"{_BLOCKS} {_RATES} adversarial_weight=0.01"),
    "plain": (5_000, f"{_BLOCKS} {_RATES} adversarial=none"),
    "slides": (5_000, f"width=32 dropout=0 loss=both batch_size=32 {_RATES} patch=14 adversarial_weight=0.1"),
}
EPOCHS = 40


def train(recipe: str, seed: int, to: Path) -> dict[str, Any]:
    """Run a training in its own process and return the output of `hpo train --json`."""
    folder = to / recipe / str(seed)
    done = folder / "result.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        images, settings = RECIPES[recipe]
        command = [sys.executable, "-m", "hpo.cli", "train", "--to", str(folder), "--export", "--json"]
        command += ["--epochs", str(EPOCHS), "--images-per-epoch", str(images)]
        command += [word for pair in [*settings.split(), f"seed={seed}"] for word in ("--set", pair)]
        ran = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.PIPE
        )
        done.write_bytes(ran.stdout)
    result: dict[str, Any] = json.loads(done.read_text())
    return result


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=RECIPES, metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at a time")
    given = parser.parse_args()
    print("| recipe | seed | L1 | SSIM | PSNR dB | minutes of a thread |\n|---|---|---|---|---|---|")
    with ThreadPoolExecutor(given.jobs) as pool:
        pairs = [(recipe, seed) for recipe in given.recipes for seed in given.seeds]
        results = list(pool.map(lambda pair: train(*pair, to=given.to.resolve()), pairs))
    for recipe in given.recipes:
        rows = []
        for (name, seed), result in zip(pairs, results, strict=True):
            if name != recipe:
                continue
            test = result["export"]["test"]["denoised"]
            minutes = sum(epoch["seconds"] + epoch["eval_seconds"] for epoch in result["epochs"]) / 60
            rows.append((test["l1"], test["ssim"], test["psnr_db"], minutes))
            print(_line(recipe, seed, rows[-1]))
        print(_line(f"**{recipe}**", "median", tuple(map(statistics.median, zip(*rows, strict=True)))))


def _line(recipe: str, seed: object, row: tuple[float, ...]) -> str:
    return "| {} | {} | {:.4f} | {:.4f} | {:.2f} | {:.0f} |".format(recipe, seed, *row)


if __name__ == "__main__":
    main()
