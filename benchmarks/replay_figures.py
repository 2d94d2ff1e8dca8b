"""The figures of recorded configurations that are known before training: latency, parameters, megabytes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from optuna.trial import FixedTrial
from replay_table import load_table

from model.common.machine import processor
from model.latency import untrained_figures

ROUNDS = 5  # over all configurations, so that a busy minute does not hit a single one
_SHAPES = {"photographs.json.gz": (3, 32, 32)}  # (C, H, W) of a table's images; the others are (1, 32, 32)


def figures_file(table: Path) -> Path:
    """The file with the figures of a table's configurations."""
    return table.with_name(table.name.removesuffix(".json.gz") + "_figures.json")


def load_figures(table: Path) -> list[Mapping[str, float]]:
    """The figures of each of a table's configurations."""
    figures: list[Mapping[str, float]] = json.loads(figures_file(table).read_text())["figures"]
    return figures


def measure_figures(path: Path) -> dict[str, Any]:
    """Measure each configuration as a trial of a search does, in several rounds; the latency is the rounds' median."""
    torch.set_num_threads(1)
    table, shape = load_table(path), _SHAPES.get(path.name, (1, 32, 32))
    base = table.search.base_config()
    configs = [table.space.sample(FixedTrial(dict(curve.params)), base) for curve in table.curves]
    rounds = [[untrained_figures(config, shape) for config in configs] for _ in range(ROUNDS)]
    figures = [
        {
            **of[0],
            "latency": round(statistics.median(each["latency"] for each in of), 5),
            "size_mb": round(of[0]["size_mb"], 3),
        }
        for of in zip(*rounds, strict=True)
    ]
    spread = [
        max(each["latency"] for each in of) / min(each["latency"] for each in of) for of in zip(*rounds, strict=True)
    ]
    return {
        "command": f"python replay.py figures --table tables/{path.name}",
        "date": date.today().isoformat(),
        "machine": f"{processor()}, onnxruntime {onnxruntime.__version__}, 1 thread, an image of {shape[1]}x{shape[2]}",
        "largest_to_smallest_of_rounds": round(statistics.median(spread), 3),
        "figures": figures,
    }
