"""How many epochs a trial is still expected to run, pruning taken into account."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from hpo.policy import pruning, trial_attributes
from hpo.policy.search_config import SearchConfig


def epochs_left(trials: Sequence[FrozenTrial], search: SearchConfig) -> list[float]:
    """How many more a trial with 0, 1, 2, ... behind it runs, in the mean.

    From the share of trials that was stopped after each epoch, of all that had come so far, those under way included
    (Kaplan & Meier 1958): the mean length of those that have ended is too short, since who is pruned ends first. Before
    there are trials it is what the rule says, which counts as one trial later on.
    """
    reached = [len(trial.user_attrs[trial_attributes.REPORTS]) for trial in trials]
    stopped = [n for n, trial in zip(reached, trials, strict=True) if trial.state.is_finished()]
    left, shares = [0.0] * (search.epochs + 1), [*pruning.survival_shares(search), 0.0]
    for epoch in range(search.epochs, 0, -1):
        by_rule = 1 - shares[epoch] / shares[epoch - 1]
        share = (by_rule + stopped.count(epoch)) / (1 + sum(n >= epoch for n in reached))
        left[epoch - 1] = 1 + (1 - share) * left[epoch]
    return left


def expected_epochs(search: SearchConfig) -> float:
    """Epochs of a mean trial, by the pruner's rule."""
    return sum(pruning.survival_shares(search))
