"""The pruner of several objectives: who is on the front of his epoch always continues."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.policy.pareto import dominates
from hpo.policy.pruners import AshaPruner, FrontPruner

VALUES = st.sampled_from([0.1, 0.2, 0.3, 0.4])
HISTORY = st.lists(st.tuples(st.lists(VALUES, min_size=1, max_size=8), VALUES), min_size=1, max_size=14)
OPTIONS = {"epochs": 12, "reduction_factor": 3}


def trials_of(history: list[tuple[list[float], float]]) -> list[FrozenTrial]:
    """Trials with these values by step, and a figure that is known before training."""
    trials = []
    for number, (values, known) in enumerate(history):
        trial = create_trial(
            state=TrialState.RUNNING,
            intermediate_values=dict(enumerate(values, start=1)),
            user_attrs={"known": known},
        )
        trial.number = number
        trials.append(trial)
    return trials


def point(trial: FrozenTrial, step: int) -> tuple[float, float]:
    return trial.intermediate_values[step], trial.user_attrs["known"]


@given(HISTORY)
@settings(max_examples=300)
def test_a_trial_on_the_front_of_its_epoch_is_never_pruned_and_a_pruned_one_is_dominated(history):
    trials = trials_of(history)
    for trial in trials:
        comparison = FrontPruner(point, **OPTIONS).compare(trials, trial)
        if comparison is None:
            continue
        step = trial.last_step
        there = [other for other in trials if step in other.intermediate_values]
        dominated_by = {other.number for other in there if dominates(point(other, step), point(trial, step))}
        if not dominated_by:
            assert comparison.passed
            assert comparison.set_by is None
        else:
            assert comparison.set_by in dominated_by
        assert comparison.rivals == len(there)


@given(HISTORY)
def test_no_more_dominated_trials_continue_than_there_are_places(history):
    trials = trials_of(history)
    step = min(trial.last_step for trial in trials)
    cut = trials_of([(values[:step], known) for values, known in history])
    results = [FrontPruner(point, **OPTIONS).compare(cut, trial) for trial in cut]
    if None not in results:
        continuing = [r for r in results if r.passed and r.set_by is not None]
        assert len(continuing) <= results[0].places


@given(st.lists(st.lists(VALUES, min_size=1, max_size=8), min_size=1, max_size=14))
def test_with_one_objective_and_different_values_it_is_the_pruner_of_one_objective(histories):
    trials = trials_of([([value + 1e-6 * i for value in values], 0.0) for i, values in enumerate(histories)])
    one = AshaPruner(**OPTIONS)
    several = FrontPruner(lambda trial, step: (trial.intermediate_values[step],), **OPTIONS)
    for trial in trials:
        expected, comparison = one.compare(trials, trial), several.compare(trials, trial)
        assert (expected is None) is (comparison is None)
        if expected and comparison:
            assert comparison.passed == expected.passed
