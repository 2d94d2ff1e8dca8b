"""Fronts, compared with Optuna's own sorting."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.study._multi_objective import _dominates, _fast_non_domination_rank
from optuna.trial import create_trial

from hpo.policy.pareto import dominates, front, layers

COORDINATE = st.sampled_from([0.0, 1.0, 2.0, 3.0])  # few, so that some are equal
POINTS = st.integers(1, 3).flatmap(lambda size: st.lists(st.tuples(*[COORDINATE] * size), min_size=1, max_size=12))


@given(POINTS)
def test_layers_are_those_of_optuna(points):
    ranks = _fast_non_domination_rank(-np.array(points))  # Optuna minimizes
    numbered = dict(enumerate(points))
    sorted_layers = layers(numbered)
    assert [sorted(layer) for layer in sorted_layers] == [
        [int(i) for i in np.flatnonzero(ranks == rank)] for rank in range(ranks.max() + 1)
    ]
    for layer in sorted_layers:
        firsts = [numbered[number][0] for number in layer]
        assert firsts == sorted(firsts, reverse=True)


@given(POINTS.filter(lambda points: len(points) > 1))
def test_domination_is_that_of_optuna(points):
    a, b, *_ = points
    directions = [StudyDirection.MAXIMIZE] * len(a)
    assert dominates(a, b) == _dominates(create_trial(values=a), create_trial(values=b), directions)


@given(POINTS)
def test_the_front_is_the_first_layer(points):
    numbered = dict(enumerate(points))
    assert front(numbered) == layers(numbered)[0]
    assert front({}) == []
