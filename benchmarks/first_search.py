"""`make search` from nothing, measured, for one search seed after another.

    python benchmarks/first_search.py --seeds 0 1 2 3 4

Wall time without set-up, what became of the trials, the final training and the overhead, and the exported generator's
figures; then the medians. Nothing else should run meanwhile. Everything is written to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from model.common.machine import processor

ROOT = Path(__file__).parent.parent


def searched(seed: int) -> dict[str, float]:
    """Run it, print a Markdown list, and give what medians are taken of."""
    with tempfile.TemporaryDirectory() as runs:
        began = time.monotonic()
        done = subprocess.run(
            ["make", "search", f"RUNS={runs}", f"SEED={seed}"], cwd=ROOT, check=True, stderr=subprocess.PIPE, text=True
        )
        minutes = (time.monotonic() - began) / 60
        hpo = [ROOT / ".venv/bin/hpo", "show", "first", "--runs", runs, "--json"]
        search = json.loads(subprocess.run(hpo, check=True, capture_output=True, text=True).stdout)
        manifest = json.loads((Path(runs) / "first/export/manifest.json").read_text())
    states = Counter(trial["stop_reason"] for trial in search["trials"])
    epochs = sum(trial["epochs"] for trial in search["trials"])
    test = manifest["metrics"]["test"]["denoised"]
    overhead = re.search(r"Overhead: .*", done.stderr)
    print(f"\nSeed {seed}\n")
    print(f"- wall time: {minutes:.1f} minutes")
    print(f"- trials: {dict(states)}, {epochs} epochs of {len(search['trials']) * search['search']['epochs']} unpruned")
    print(f"- final trainings that collapsed: {len(search['final_collapses'])}")
    print(f"- {overhead[0] if overhead else 'no overhead was printed'}")
    print(f"- winner: trial {search['winner']}, {manifest['origin']}")
    print(f"- test: PSNR {test['psnr_db']:.2f} dB (slides 26.09), SSIM {test['ssim']:.4f} (slides 0.871)", flush=True)
    return {"minutes": minutes, "PSNR dB": test["psnr_db"], "SSIM": test["ssim"]}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    seeds = parser.parse_args().seeds
    subprocess.run(["make", "setup"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    found = [searched(seed) for seed in seeds]
    medians = {name: statistics.median(each[name] for each in found) for name in found[0]}
    print(f"\nMedians of {len(seeds)}: " + ", ".join(f"{name} {value:.4g}" for name, value in medians.items()))


if __name__ == "__main__":
    main()
