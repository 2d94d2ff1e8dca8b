"""`make search` from nothing, measured: python benchmarks/first_search.py

Wall time without set-up, what became of the trials, the overhead, and the exported generator's figures beside the
slides'. Everything is written to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from machine import processor

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Print a Markdown list."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    subprocess.run(["make", "setup"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as runs:
        began = time.monotonic()
        done = subprocess.run(
            ["make", "search", f"RUNS={runs}"], cwd=ROOT, check=True, stderr=subprocess.PIPE, text=True
        )
        minutes = (time.monotonic() - began) / 60
        hpo = [ROOT / ".venv/bin/hpo", "show", "first", "--runs", runs, "--json"]
        search = json.loads(subprocess.run(hpo, check=True, capture_output=True, text=True).stdout)
        manifest = json.loads((Path(runs) / "first/export/manifest.json").read_text())
    states = Counter(trial["state"] for trial in search["trials"])
    epochs = sum(trial["epochs"] for trial in search["trials"])
    test = manifest["metrics"]["test"]["denoised"]
    overhead = re.search(r"Overhead: .*", done.stderr)
    print(f"- machine: {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"- wall time: {minutes:.1f} minutes")
    print(f"- trials: {dict(states)}, {epochs} epochs of {len(search['trials']) * search['search']['epochs']} unpruned")
    print(f"- {overhead[0] if overhead else 'no overhead was printed'}")
    print(f"- winner: trial {search['winner']}, {manifest['origin']}")
    print(f"- test: PSNR {test['psnr_db']:.2f} dB (slides 26.09), SSIM {test['ssim']:.4f} (slides 0.871)")


if __name__ == "__main__":
    main()
