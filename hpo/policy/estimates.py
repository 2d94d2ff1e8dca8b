"""How many epochs a trial is still expected to run, pruning included."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from hpo.policy import report_decision, trial_attributes
from hpo.policy.search_config import SearchConfig


def epochs_left(trials: Sequence[FrozenTrial], search: SearchConfig) -> list[float]:
    """The mean number of further epochs of a trial after 0, 1, 2, ... epochs.

    The estimate is Kaplan and Meier's (1958): for each epoch, the share of trials that ended there among all that came
    so far, running ones included. The mean length of the ended trials alone would be too short, since pruned trials end
    first. The shares that the pruner's rule predicts count as one more trial.
    """
    reached = [len(trial.user_attrs[trial_attributes.REPORTS]) for trial in trials]
    ended = [epochs for epochs, trial in zip(reached, trials, strict=True) if trial.state.is_finished()]
    left, shares = [0.0] * (search.epochs + 1), [*report_decision.survival_shares(search), 0.0]
    for epoch in range(search.epochs, 0, -1):
        predicted = 1 - shares[epoch] / shares[epoch - 1]
        share = (predicted + ended.count(epoch)) / (1 + sum(epochs >= epoch for epochs in reached))
        left[epoch - 1] = 1 + (1 - share) * left[epoch]
    return left


def expected_epochs(search: SearchConfig) -> float:
    """The mean number of epochs of a trial, by the pruner's rule alone."""
    return sum(report_decision.survival_shares(search))
