"""Searches with several objectives on synthetic curves: wider networks are better and slower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import optuna
from curves import controller, report
from optuna.trial import FrozenTrial

from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import CONFIG, KNOWN, REPORTS
from hpo.search_controller import SearchController
from hpo.store.record import Record
from model.config import TrainConfig
from model.training_report import EvalReport
from search_spaces import Space


def _suggest(trial: optuna.trial.Trial, base: TrainConfig) -> TrainConfig:
    width = trial.suggest_categorical("width", [2, 4, 8, 16])
    return replace(base, width=width, lr_g=trial.suggest_float("lr_g", 1e-4, 1e-2, log=True))


SPACE = Space(name="widths", suggest=_suggest, starting_points=())
SEARCH = SearchConfig(trials=24, epochs=8, reduction_factor=3, objectives=("psnr", "latency"), seed=5)


def figures(config: Mapping[str, object]) -> dict[str, float]:
    width = float(str(config["width"]))
    return {"latency": 0.5 * width, "params": 100 * width**2, "size_mb": width / 10}


def learned(config: Mapping[str, object], epoch: int) -> EvalReport:
    """Wider networks become better, and a rate of 1e-3 is the best."""
    distance = abs(float(str(config["lr_g"])) / 1e-3 - 1)
    best = 20 + float(str(config["width"])) ** 0.5 - min(distance, 3)
    return report(epoch, 0.5, psnr_db=best - 3 / epoch)


def begin(record: Record, measured: list[int]) -> tuple[SearchController, FrozenTrial | None]:
    """Take the next trial; measure what is known of it, unless an equal network was measured before."""
    driver = controller(record, space=SPACE)
    trial = driver.next_trial()
    if trial is not None and KNOWN not in trial.user_attrs:
        measured.append(trial.number)
        if driver.on_start(trial.number, figures(trial.user_attrs[CONFIG])).action != "continue":
            return begin(record, measured)
    return driver, trial


def run(record: Record, steps_per_driver: int | None = None) -> list[int]:
    """Run a search; each driver dies after so many epochs. Returns the trials that were measured."""
    measured: list[int] = []
    while True:
        driver, trial = begin(record, measured)
        if trial is None:
            return measured
        config = trial.user_attrs[CONFIG]
        reports = [EvalReport.from_dict(r) for r in trial.user_attrs[REPORTS]]
        for _ in range(steps_per_driver or SEARCH.epochs):
            reports.append(learned(config, len(reports) + 1))
            if driver.on_report(trial.number, reports).action != "continue":
                break
        record = Record(record.folder.parent, record.name)
