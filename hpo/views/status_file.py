"""What the driver knows beyond the record, in a file of the search's folder, for `hpo watch`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpo.store.file_names import STATUS_FILE
from model.common.files import atomic_replace
from model.common.validation import wrong_fields
from model.training_report import EvalReport

_LIMIT = 1e12  # for seconds and other numbers; a Status with a larger one is damaged

Phase = Literal["trials", "finalists", "replicates", "final training", "export", "ended"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What the driver knows beyond the record. It writes one every second, which is also its sign of life.

    The names of the fields are the file's keys. No decision depends on them.
    """

    phase: Phase = "trials"  # ended: this driver has ended; the search may not be over
    seconds: float = 0.0  # since this driver began
    seconds_left: float | None = None  # expected until the export, with pruning taken into account
    images_per_second: float | None = None  # of all trials together, since this driver's first trial
    overhead: float | None = None  # share of the slots' time that was not spent on trials
    running: Mapping[int, float] = field(default_factory=dict)  # epochs done by each running trial, with a fraction
    trial: int | None = None  # the one that is measured, or whose configuration is trained
    done: int = 0  # finalists that were measured, replicates that ended, or epochs of the final training
    of: int = 0  # their total
    detail: str = ""  # which replicates run, and in which epoch
    waits: str = ""  # which trials wait for resources, and for which
    cost_usd: float | None = None  # of the cluster so far, if its nodes have price labels
    report: Mapping[str, Any] | None = None  # the final training's last EvalReport

    def write(self, folder: Path) -> None:
        """Write the file atomically, without waiting for the disk: the next one comes in a second. Raises OSError."""
        with atomic_replace(folder / STATUS_FILE) as part:
            part.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Status | None:
        """Read the file; None if there is none, or none that this version understands."""
        try:
            values = json.loads((folder / STATUS_FILE).read_bytes())
            running = {int(number): float(done) for number, done in values.pop("running").items()}
            values = {**values, "running": running}
            if values.get("report"):
                EvalReport.from_dict(values["report"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None
        numbers = [*running.values(), *(value for value in values.values() if isinstance(value, float))]
        if wrong_fields(cls, values) or not all(-_LIMIT < number < _LIMIT for number in numbers):  # also false for NaN
            return None
        return cls(**values)
