"""Synthetic trainings: in place of the trainer, a learning curve that is a function of the configuration alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from hpo.policy import trial_attributes
from hpo.policy.report_decision import Decision, decide_pruning
from hpo.policy.search_config import SearchConfig
from hpo.search_controller import Listener, SearchBudget, SearchController
from hpo.store.record import Record
from model.config import TrainConfig
from model.training_report import EvalReport
from search_spaces import Space, load

SPACE = load("losses_and_rates")
# Rungs at 1 and 3; enough trials for some to be pruned and some to diverge.
SEARCH = SearchConfig(trials=8, epochs=4, reduction_factor=3, objectives=("ssim",), seed=9, set={"width": 4})


def report(epoch: int, ssim: float, *, images: int = 0, **changed: Any) -> EvalReport:
    """A healthy one, unless `changed` says otherwise."""
    values = {
        "psnr_db": 21.0 + 5 * ssim,
        "l1": 0.1 - 0.05 * ssim,
        "haarpsi": ssim - 0.02,
        "noisy_psnr_db": 20.55,
        "output_std": 0.5,
        "gen_total": 10.0,
        "gen_adversarial": 1.0,
        "gen_reconstruction": 9.0,
        "disc_real": 0.5,
        "disc_generated": 0.5,
        "seconds": 2.0,
        "eval_seconds": 0.5,
    }
    return EvalReport(epoch=epoch, images=images or 1000 * epoch, ssim=ssim, **{**values, **changed})


def learned(config: TrainConfig, epoch: int) -> EvalReport:
    """Curves that cross: high rates begin well, and above 3e-3 they diverge in epoch 2."""
    if config.lr_g > 3e-3 and epoch >= 2:
        return report(epoch, math.nan)
    best = 0.9 - 0.05 * abs(math.log10(config.lr_g / 5e-4)) - 0.02 * abs(math.log10(config.lr_d / 2e-4))
    return report(epoch, best - 0.4 / (1 + epoch * 2000 * config.lr_g))


@dataclass
class FixedBudget:
    """Allows what it says."""

    new_trials: bool = True
    running_trials: bool = True

    def allows_new_trials(self) -> bool:
        return self.new_trials and self.running_trials

    def allows_running_trials(self) -> bool:
        return self.running_trials


def controller(
    record: Record, *listeners: Listener, budget: SearchBudget | None = None, space: Space = SPACE
) -> SearchController:
    """With the listeners up to date, as in a search."""
    made = SearchController(record, space, listeners, budget)
    made.replay_history()
    return made


def append_report(record: Record, number: int, report: EvalReport, node: str | None = None) -> Decision:
    """As SearchController.on_report, of a single report."""
    trials = record.trials_with_report(number, report, node)
    decision = decide_pruning(trials, number, report.epoch, record.search)
    record.append_report(trials[number], decision)
    return decision


def train(controller: SearchController, number: int, reports: list[EvalReport], epochs: int | None = None) -> None:
    """Until it is stopped, or for so many more epochs. reports: what its checkpoint has; told first, then grows."""
    config = TrainConfig.from_dict(controller.record.trial(number).user_attrs[trial_attributes.CONFIG])
    if reports and controller.on_report(number, reports).action != "continue":
        return
    while epochs is None or epochs > 0:
        reports.append(learned(config, len(reports) + 1))
        if controller.on_report(number, reports).action != "continue":
            return
        epochs = epochs and epochs - 1


def run_all(controller: SearchController, checkpoints: dict[int, list[EvalReport]] | None = None) -> None:
    """The whole search in one slot. checkpoints: what earlier drivers' trainings left behind."""
    checkpoints = {} if checkpoints is None else checkpoints
    while (trial := controller.next_trial()) is not None:
        train(controller, trial.number, checkpoints.setdefault(trial.number, []))


def counted(trials: Sequence[FrozenTrial]) -> str:
    """The counts that a search shows when it is over and no trial failed."""
    reasons = [trial.user_attrs[trial_attributes.DECISION]["reason"] for trial in trials]
    of = {reason: reasons.count(reason) for reason in ("finished", "diverged", "collapsed")}
    dead = "".join(f"{of[reason]} {reason}, " for reason in ("diverged", "collapsed") if of[reason])
    return f"{of['finished']} finished, {len(reasons) - sum(of.values())} pruned, {dead}0 failed"


def story(trials: Sequence[FrozenTrial]) -> list[tuple[Any, ...]]:
    """All that a search decided and measured, without the time of day."""
    return [
        (t.number, t.state.name, t.params, t.values, t.intermediate_values, {**t.user_attrs}, sorted(t.distributions))
        for t in trials
    ]


def essence(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """What must be the same, whatever interrupted the search."""
    decisions = [trial.user_attrs[trial_attributes.DECISION] for trial in trials]
    return [
        (t.number, t.state.name, t.params, t.value, t.intermediate_values, decision)
        for t, decision in zip(trials, decisions, strict=True)
    ]
