"""The model behind suggestions: what it finds promising, and what it may propose at all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.policy.surrogate_sampler import propose

RATE, WIDTH = FloatDistribution(1e-5, 1e-1, log=True), IntDistribution(2, 9)
EPOCHS = 9


def trial(params: dict[str, object], values: list[float], state: TrialState = TrialState.PRUNED) -> FrozenTrial:
    distributions: dict[str, BaseDistribution] = {"rate": RATE, "width": WIDTH, "kind": CategoricalDistribution("ab")}
    made = create_trial(
        state=state,
        params=params,
        distributions={name: distributions[name] for name in params},
        intermediate_values=dict(enumerate(values, start=1)),
        value=values[-1] if state == TrialState.PRUNED else None,
    )
    made.number = 0
    return made


def curve(rate: float, length: int) -> list[float]:
    """Best at 1e-3; learning rises by as much for all."""
    return [-abs(math.log10(rate / 1e-3)) + 0.1 * epoch for epoch in range(1, length + 1)]


def history(count: int, seed: int = 0) -> list[FrozenTrial]:
    """Trials at random rates and widths; only the rate matters; most were stopped after an epoch."""
    rng = np.random.default_rng(seed)
    trials = []
    for index in range(count):
        rate = float(10 ** rng.uniform(-5, -1))
        params = {"rate": rate, "width": int(rng.integers(2, 10)), "kind": "ab"[index % 2]}
        trials.append(trial(params, curve(rate, [1, 1, 3, 9][index % 4])))
    return trials


def proposals(trials: list[FrozenTrial], count: int = 60) -> list[dict[str, object]]:
    found = [propose(trials, EPOCHS, np.random.default_rng(seed)) for seed in range(count)]
    assert None not in found
    return [params for params in found if params is not None]


def test_promising_is_what_was_good_and_all_of_what_does_not_matter():
    found = proposals(history(40))
    off = [abs(math.log10(params["rate"] / 1e-3)) for params in found]
    assert np.median(off) < 0.5  # drawn from all rates: 1
    assert max(off) < 1.2
    assert len({params["width"] for params in found}) >= 7  # of 8
    assert {params["kind"] for params in found} == {"a", "b"}


def test_proposals_keep_away_from_what_was_tried_where_it_matters():
    crowd = [trial({"rate": 1e-3 * 1.01**index, "width": 5, "kind": "a"}, curve(1e-3, 9)) for index in range(20)]
    found = proposals([*history(40), *crowd])
    assert np.mean([abs(math.log10(params["rate"] / 1e-3)) > 0.1 for params in found]) > 0.8


def test_a_trial_that_was_stopped_early_is_not_taken_for_a_bad_one():
    """Its last value is lower than that of any trial that went on: learning raises all of them by 0.8."""
    trials = [trial({"rate": 1e-5, "width": 2}, curve(1e-5, 9)), trial({"rate": 1e-1, "width": 2}, curve(1e-1, 9))]
    trials += [trial({"rate": rate, "width": 2}, curve(rate, 1)) for rate in (1e-4, 9e-4, 1e-3, 1.1e-3, 1e-2)]
    assert np.median([abs(math.log10(params["rate"] / 1e-3)) for params in proposals(trials)]) < 0.7


def test_one_that_diverged_does_not_hide_the_differences_between_the_others():
    found = proposals([*history(40), trial({"rate": 0.05, "width": 3, "kind": "a"}, [-1e6])])
    assert np.median([abs(math.log10(params["rate"] / 1e-3)) for params in found]) < 0.5


def test_proposals_are_values_of_their_distributions_and_of_a_structure_that_was_seen():
    stepped = FloatDistribution(0.0, 0.9, step=0.3)
    trials = []
    for index in range(8):
        params = {"kind": "a", "rate": 10.0 ** -(1 + index / 2)} if index % 2 else {"kind": "b", "drop": 0.3}
        distributions = {"kind": CategoricalDistribution("ab"), "rate": RATE, "drop": stepped, "width": WIDTH}
        made = create_trial(
            state=TrialState.COMPLETE,
            params=params,
            distributions={name: distributions[name] for name in params},
            intermediate_values={1: index / 10},
            value=index / 10,
        )
        trials.append(made)
    for params in proposals(trials):
        assert params.keys() == ({"kind", "rate"} if params["kind"] == "a" else {"kind", "drop"})
        assert all(distributions[name]._contains(distributions[name].to_internal_repr(v)) for name, v in params.items())


def test_categories_are_combined_anew_within_what_is_asked_together():
    """Two of each were seen, never all together; a trial without `drop` has no part in those with it."""
    names = ("kind", "norm", "skip")
    of = {name: CategoricalDistribution(["a", "b"]) for name in names} | {"rate": RATE}
    trials = []
    for index in range(12):
        value = "ab"[index % 2]
        params: dict[str, object] = {**dict.fromkeys(names, value), "rate": 10.0 ** -(index % 4 + 1)}
        with_drop = {"drop": FloatDistribution(0, 1)} if index % 3 == 0 else {}
        trials.append(
            create_trial(
                params={**params, **dict.fromkeys(with_drop, 0.5)},
                distributions={**of, **with_drop},
                intermediate_values={1: index / 10},
                value=index / 10,
            )
        )
    combinations = {tuple(params[name] for name in names) for params in proposals(trials, 150)}
    assert len({combination for combination in combinations if len(set(combination)) > 1}) == 6


@pytest.mark.parametrize("trials", [[], history(2), [trial({"rate": 1e-3, "width": 2}, [0.1], TrialState.FAIL)] * 5])
def test_without_evidence_there_is_no_proposal(trials):
    assert propose(trials, EPOCHS, np.random.default_rng(0)) is None


def test_many_trials_cost_no_more_than_the_newest_of_them():
    trials = history(400)
    assert propose(trials, EPOCHS, np.random.default_rng(1)) is not None
    assert np.median([abs(math.log10(params["rate"] / 1e-3)) for params in proposals(trials, 20)]) < 0.5
