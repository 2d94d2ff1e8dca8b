"""A search on a cluster as its storage tells of it, and what must hold of it whatever happened."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster
from hosts import wait_for
from optuna.trial import FrozenTrial

from hpo.policy.trial_attributes import FAILURES, MIGRATIONS, NODE, REPORTS
from hpo.store.record import Record
from hpo.store.search_results import decisions, is_exported
from hpo.store.study_replication import open_read_only, open_storage
from model.common.errors import ConfigError

# Trials of a few seconds each, on Fashion-MNIST; none is stopped early, so that there is work for all hosts.
SMALL = ("--epochs=5", "--images-per-epoch=2000", "--set=width=8", "--pruner=none", "--wandb=disabled")


class Search:
    """What a job of the cluster searches. Looking checks that no trial that ended ever comes back."""

    def __init__(self, cluster: Cluster, name: str, storage: str) -> None:
        """storage: its address, from this machine."""
        self.cluster, self.name, self.storage = cluster, name, storage
        self.ended: dict[int, str] = {}
        self.is_exported = False

    def launch(self, *options: str) -> None:
        self.cluster.laptop.hpo("launch", str(self.cluster.file), self.name, *SMALL, *options)

    def _record(self) -> AbstractContextManager[Record]:
        """As the storage has it now."""
        return open_read_only(Path("runs"), self.name, open_storage(self.storage, Path("runs"), interactive=True))

    def trials(self) -> list[FrozenTrial]:
        """None before the first copy of the record."""
        try:
            with self._record() as record:
                trials = record.trials()
                self.is_exported = is_exported(record)
        except ConfigError:
            return []
        ended = {trial.number: trial.state.name for trial in trials if trial.state.is_finished()}
        assert ended.items() >= self.ended.items(), "a trial that had ended is gone"
        self.ended = ended
        return trials

    def wait_until(self, condition: Callable[[list[FrozenTrial]], bool], seconds: float, what: str) -> None:
        """TimeoutError, with the trials and what the job printed last."""
        began = time.monotonic()
        while not condition(trials := self.trials()):
            if time.monotonic() > began + seconds:
                told = [f"{trial.number} {trial.state.name} {reports(trial)}" for trial in trials]
                raise TimeoutError("\n".join([f"{what}: not within {seconds:.0f} s", *told, self.log()]))
            time.sleep(2)
        print(f"{what}: after {time.monotonic() - began:.0f} s")

    def log(self) -> str:
        """The end of what its jobs printed."""
        return self.cluster.on_head("tail -n 40 /tmp/ray/session_latest/logs/job-driver-*.log 2>&1 || true")

    def check(self, trials: int) -> None:
        """Of a search that is over: every trial ended and counts, nothing was done twice, nothing has a hole, decisions
        are those that all the evidence leads to, and ten seconds after its driver no process is left."""
        wait_for(lambda: self.cluster.processes("hpo search") == [], 60, "the driver's end")
        wait_for(lambda: self.cluster.processes("Pix2PixTrial|ray::measure") == [], 10, "the end of its processes")
        found = self.trials()
        assert [trial.number for trial in found] == list(range(trials))
        assert {trial.state.name for trial in found} <= {"COMPLETE", "PRUNED"}
        assert len({str(sorted(trial.params.items())) for trial in found}) == trials
        for trial in found:
            assert [report["epoch"] for report in reports(trial)] == list(range(1, len(reports(trial)) + 1))
            assert trial.state.name == "PRUNED" or len(reports(trial)) == 5
        with self._record() as record:
            assert all(trial["agrees"] for trial in decisions(record)["trials"])

    def pull(self, to: Path) -> None:
        """Bring the winner, which is verified, and measure it once more on the test images."""
        laptop = self.cluster.laptop
        laptop.hpo("pull", str(self.cluster.file), self.name, "--to", str(to))
        told = json.loads((to / "manifest.json").read_text())["metrics"]["test"]
        measured = laptop.json("evaluate", str(to))["test"]
        for row in ("noisy", "denoised"):
            assert measured[row] == pytest.approx(told[row], rel=1e-5)


def reports(trial: FrozenTrial) -> list[dict[str, Any]]:
    return list(trial.user_attrs.get(REPORTS, []))


def nodes(trials: list[FrozenTrial]) -> set[str]:
    """The hosts that trained an epoch."""
    return {report[NODE] for trial in trials for report in reports(trial) if NODE in report}


def node_of_running(trials: list[FrozenTrial]) -> dict[str, int]:
    """Host: the number of a trial that last reported from there, and has two epochs or more to go."""
    running = [trial for trial in trials if not trial.state.is_finished() and 1 <= len(reports(trial)) <= 3]
    return {reports(trial)[-1][NODE]: trial.number for trial in running if NODE in reports(trial)[-1]}


def failures(trials: list[FrozenTrial]) -> dict[int, list[Any]]:
    """By trial, those that have any: what was charged."""
    return {trial.number: trial.user_attrs[FAILURES] for trial in trials if trial.user_attrs.get(FAILURES)}


def moves(trials: list[FrozenTrial]) -> dict[int, list[Any]]:
    """What was not, since the node was drained."""
    return {trial.number: trial.user_attrs[MIGRATIONS] for trial in trials if trial.user_attrs.get(MIGRATIONS)}
