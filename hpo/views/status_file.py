"""What the driver knows beyond the record, in a file of the search's folder, for `hpo watch`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpo.store.layout import STATUS_FILE
from model.common.files import atomic_replace
from model.common.validation import wrong_fields
from model.training_report import EvalReport

_MOST = 1e12  # of seconds and others; above it a status is none of ours


# --- what only the driver knows -------------------------------------------------------------------------------------

Phase = Literal["trials", "finalists", "final training", "export", "ended"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What the driver knows beyond the record. Once a second it goes into the search's folder, for `hpo watch`: a sign
    of life, too. Nothing is decided by it."""

    phase: Phase = "trials"  # ended: this driver has, whether or not the search is over
    seconds: float = 0.0  # since this driver began
    seconds_left: float | None = None  # expected, pruning and what follows the trials included
    images_per_second: float | None = None  # of all trials together, since this driver's first
    overhead: float | None = None  # hpo.tune.scheduler.Overhead.share
    running: Mapping[int, float] = field(default_factory=dict)  # epochs done by each running trial, with a fraction
    trial: int | None = None  # whose checkpoint is measured, or whose configuration is trained
    done: int = 0  # finalists measured before it, or epochs of the final training
    of: int = 0
    waits: str = ""  # which trials wait, and for what
    cost_usd: float | None = None  # of the cluster so far, where its nodes say their prices
    report: Mapping[str, Any] | None = None  # the final training's last EvalReport

    def write(self, folder: Path) -> None:
        """Whole or not at all, without waiting for the disk: the next one comes in a second. Raises OSError."""
        with atomic_replace(folder / STATUS_FILE) as part:
            part.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Status | None:
        """None where there is none that this version understands."""
        try:
            values = json.loads((folder / STATUS_FILE).read_bytes())
            running = {int(number): float(done) for number, done in values.pop("running").items()}
            values = {**values, "running": running}
            if values.get("report"):
                EvalReport.from_dict(values["report"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None
        numbers = [*running.values(), *(value for value in values.values() if isinstance(value, float))]
        if wrong_fields(cls, values) or not all(-_MOST < number < _MOST for number in numbers):  # false for NaN too
            return None
        return cls(**values)
