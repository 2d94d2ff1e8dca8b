"""What W&B costs a search's driver, without any training: python benchmarks/tracking_cost.py

The events of one whole search (recorded learning curves, the product's own decisions) with W&B off, and offline in
several shapes. Each shape has a process of its own; its events come as fast as the record takes them, so that whatever
W&B needs shows. CPU seconds of the driver and of W&B's process; the wall until the search is over, and until W&B is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `hpo search`; NumPy reads it when it is imported

import numpy as np
from PIL import Image
from replay_table import TABLE, Table

from hpo.policy.search_config import SearchConfig
from hpo.search_controller import SearchController
from hpo.store.file_names import EXPORT
from hpo.store.record import Record
from hpo.tracking.wandb_tracker import Tracker
from model.common.machine import processor
from model.denoise import MANIFEST
from model.export import ONNX_FILE, STRIP_FILE

TRIALS, REPEATS = 40, 3
SHAPES = {
    "disabled": "W&B disabled",
    "scalars": "offline, scalars alone",
    "strips": "offline, with strips",
    "all": "offline, with strips, tables and a generator of 4 MB",
}
STRIP = (98, 267)  # pixels: eight 32x32 images of a trial, three columns


def measure(shape: str) -> dict[str, float]:
    """Of one search, in this process."""
    table = Table(TABLE.read_bytes())
    search = SearchConfig(
        trials=TRIALS, epochs=table.search.epochs, wandb="disabled" if shape == "disabled" else "offline"
    )
    with tempfile.TemporaryDirectory() as folder:
        record = Record.create(Path(folder), "cost", search)
        if shape in ("strips", "all"):  # by the trials, in processes of their own
            for number in range(TRIALS):
                _write_strips(record.trial_folder(number), search.epochs)
        if shape == "all":
            _write_export(record.folder / EXPORT)
        wall, cpu = time.perf_counter(), time.process_time()
        trackers = [] if shape == "disabled" else [Tracker(record)]
        controller = SearchController(record, table.space, trackers)
        epochs = 0
        while (trial := controller.next_trial()) is not None:
            reports = list(table.curve(trial.params).reports)
            for epoch in range(1, len(reports) + 1):
                epochs += 1
                if controller.on_report(trial.number, reports[:epoch]).action != "continue":
                    break
        over = time.perf_counter() - wall
        for tracker in trackers:
            if shape == "all":
                tracker.export()
            tracker.close()
        figures = {"epochs": float(epochs), "over": over, "closed": time.perf_counter() - wall}
        figures["cpu"] = time.process_time() - cpu
    if trackers:
        import wandb  # noqa: PLC0415 - the search without it must not load it

        wandb.teardown()  # so that its process is counted
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {**figures, "service": children.ru_utime + children.ru_stime}


def _write_strips(folder: Path, epochs: int) -> None:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, STRIP, np.uint8)
    for epoch in range(1, epochs + 1):
        Image.fromarray(pixels).save(folder / f"epoch-{epoch:04}.png")


def _write_export(folder: Path) -> None:
    """Of the size of a generator of width 16, blocks and all."""
    folder.mkdir()
    (folder / ONNX_FILE).write_bytes(np.random.default_rng(0).bytes(4_000_000))
    Image.new("L", STRIP).save(folder / STRIP_FILE)
    row = {"l1": 0.05, "ssim": 0.9, "psnr_db": 27.0}
    measured = {"images": 10_000, "noisy": row, "denoised": row, "ground_truth": row}
    manifest = {
        "origin": {"trials": TRIALS, "final_epochs": 0},
        "model": {"file": ONNX_FILE, "channels": 1, "image_size": 32, "padding": 2},
        "config": {},
        "data": {},
        "metrics": {"validation": measured, "test": measured},
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def main() -> None:
    """All shapes, in turn and repeated; of each the fastest run, which a busy machine disturbed least."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, help="only this one, as JSON")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    if arguments.shape:
        print(json.dumps(measure(arguments.shape)))
        return
    runs: dict[str, list[dict[str, float]]] = {shape: [] for shape in SHAPES}
    for _ in range(arguments.repeats):
        for shape, found in runs.items():
            command = [sys.executable, __file__, "--shape", shape]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    epochs = runs["disabled"][0]["epochs"]
    machine = f"{processor()}, {os.cpu_count()} cores"
    print(f"{TRIALS} trials, {epochs:.0f} epochs, {machine}; the best of {arguments.repeats}\n")
    print("| W&B | driver's CPU s | W&B's process, CPU s | search over after s | W&B closed after s |")
    print("|---|---|---|---|---|")
    for shape, found in runs.items():
        best = [min(run[name] for run in found) for name in ("cpu", "service", "over", "closed")]
        print(f"| {SHAPES[shape]} | {' | '.join(f'{value:.2f}' for value in best)} |")


if __name__ == "__main__":
    main()
