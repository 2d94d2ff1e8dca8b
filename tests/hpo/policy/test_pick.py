"""Rules that pick a member of a front."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.policy.front_members import FrontMember
from hpo.policy.pick import EXAMPLES, Pick, recommendations, sentences
from hpo.policy.search_config import SearchConfig
from model.common.errors import ConfigError

SEARCH = SearchConfig(objectives=("psnr", "latency"))


def member(trial: int, psnr: float, ms: float | None, mb: float = 1.0, **metrics: float) -> FrontMember:
    known: dict[str, Any] = {} if ms is None else {"latency": {"median_ms": ms}}
    values = {"psnr": psnr} | ({} if ms is None else {"latency": ms})
    known |= {"size_mb": mb, "parameters": round(250_000 * mb)}
    return FrontMember(trial=trial, values=values, metrics={"psnr_db": psnr, **metrics}, **known)


FRONT = [member(7, 28.31, 41.2, 9.0), member(3, 28.24, 13.0, 4.0), member(5, 27.9, 6.1, 1.5), member(1, 26.2, 1.4, 0.3)]


@pytest.mark.parametrize(
    ("rule", "picked"),
    [
        ("best", 7),
        ("fastest", 1),
        ("smallest", 1),
        ("fastest-within:0.1dB", 3),
        ("fastest-within:0.1", 3),  # dB is the unit of the objective
        ("Fastest-Within: 0.5 db", 5),
        ("fastest-within:0dB", 7),
        ("fastest-within:9dB", 1),
        ("smallest-within:0.07dB", 3),  # 28.31 - 0.07 is 28.239999 in binary
        ("smallest-within:0.05dB", 7),
        ("best-below:20ms", 3),
        ("best-below:13ms", 3),
        ("best-below:12.99 ms", 5),
        ("best-below:1e3ms", 7),
        ("best-below:2MB", 5),
        ("best-below:100000params", 1),
        ("best-below:1000000 parameters", 3),
    ],
)
def test_each_rule_picks_what_it_says(rule, picked):
    assert Pick.parse(rule).choose(FRONT, SEARCH).trial == picked


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("", "pick='': must be best, fastest, smallest, fastest-within:0.1dB"),
        ("fatsest-within:0.1dB", "Did you mean fastest-within?"),
        ("fastest-within", "fastest-within needs a number after a colon, such as fastest-within:0.1dB"),
        ("fastest-within:", "such as fastest-within:0.1dB"),
        ("fastest-within:-1dB", "such as fastest-within:0.1dB"),
        ("fastest-within:1.2.3dB", "such as fastest-within:0.1dB"),
        ("fastest-within:1e999dB", "such as fastest-within:0.1dB"),
        ("fastest-within:5ms", "the loss is in dB, or without a unit"),
        ("best-below:20", "needs a unit, ms, MB or parameters, such as best-below:20ms"),
        ("best-below:0ms", "such as best-below:20ms"),
        ("best-below:20dB", "needs a unit"),
        ("best:3", "best takes no number. Did you mean best-below:20ms?"),
        ("fastest:3", "fastest takes no number. Did you mean fastest-within:0.1dB?"),
        ("best-below:0.5ms", "no member is below 0.5 ms; the nearest is trial 1: 1.40 ms, 26.20 dB"),
        ("best-below:0.1MB", "no member is below 0.1 MB; the nearest is trial 1: 0.300 MB, 26.20 dB"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_nearest_right_one(rule, says):
    with pytest.raises(ConfigError) as refused:
        Pick.parse(rule).choose(FRONT, SEARCH)
    assert says in str(refused.value)
    assert repr(rule) in str(refused.value) or f"pick={rule}" in str(refused.value)


def test_every_example_is_a_rule():
    for example in EXAMPLES:
        assert Pick.parse(example).text == example


def test_without_a_unit_the_loss_is_that_of_the_first_trained_objective():
    search = SearchConfig(objectives=("latency", "ssim"))
    front = [member(1, 27.0, 9.0, ssim=0.900), member(2, 27.5, 5.0, ssim=0.8985), member(3, 26.0, 1.0, ssim=0.85)]
    assert Pick.parse("best").choose(front, search).trial == 1
    assert Pick.parse("fastest-within:0.002").choose(front, search).trial == 2
    assert Pick.parse("fastest-within:0.001").choose(front, search).trial == 1
    assert Pick.parse("fastest-within:0.1dB").choose(front, search).trial == 2  # of the best PSNR, which is its own


def test_l1_is_better_when_it_is_smaller():
    search = SearchConfig(objectives=("l1", "latency"))
    front = [member(1, 27.0, 9.0, l1=0.040), member(2, 27.5, 5.0, l1=0.0403), member(3, 26.0, 1.0, l1=0.06)]
    assert Pick.parse("best").choose(front, search).trial == 1
    assert Pick.parse("fastest-within:0.0005").choose(front, search).trial == 2


def test_what_was_not_measured_cannot_pick():
    front = [member(1, 27.0, None), member(2, 26.0, None)]
    with pytest.raises(ConfigError, match="no latency was measured yet"):
        Pick.parse("fastest").choose(front, SEARCH)
    assert Pick.parse("best").choose(front, SEARCH).trial == 1


@given(
    st.lists(st.tuples(st.floats(20, 30), st.floats(0.1, 100)), min_size=1, max_size=8),
    st.floats(0, 3),
    st.floats(0.05, 120),
)
def test_no_other_member_keeps_the_rule_better(points, loss, bound):
    front = [member(i, psnr, ms) for i, (psnr, ms) in enumerate(points)]
    psnr, ms = points[Pick.parse(f"fastest-within:{loss:.9f}dB").choose(front, SEARCH).trial]
    best = max(psnr for psnr, _ in points)
    assert psnr >= best - loss - 1e-6
    assert not any(other >= best - loss + 1e-6 and faster < ms for other, faster in points)
    fits = [other for other, time in points if time <= float(f"{bound:.9f}")]
    if fits:
        assert points[Pick.parse(f"best-below:{bound:.9f}ms").choose(front, SEARCH).trial][0] == max(fits)


def test_the_end_of_a_search_says_which_members_most_people_choose_between():
    assert sentences(FRONT, SEARCH) == [
        "The fastest within 0.1 dB of the best: trial 3, 13.0 ms, 28.24 dB",
        "The best below 20 ms: trial 3, 13.0 ms, 28.24 dB",
    ]


def test_a_limit_of_the_search_is_the_limit_that_is_spoken_of():
    search = SearchConfig(objectives=("psnr", "latency"), limit=("latency<=10",))
    assert sentences(FRONT, search)[1] == "The best below 10 ms: trial 5, 6.10 ms, 27.90 dB"


def test_a_search_for_small_networks_speaks_of_sizes():
    search = SearchConfig(objectives=("ssim", "size_mb"))
    front = [member(1, 27.0, 9.0, 8.2, ssim=0.9), member(2, 26.5, 5.0, 0.7, ssim=0.899)]
    assert sentences(front, search) == [
        "The smallest within 0.002 of the best: trial 2, 0.700 MB, ssim 0.8990",
        "The best below 5 MB: trial 2, 0.700 MB, ssim 0.8990",
    ]


def test_the_best_itself_may_be_the_fastest_within():
    assert sentences(FRONT[:1], SEARCH) == [
        "The fastest within 0.1 dB of the best is the best itself: trial 7, 41.2 ms, 28.31 dB"
    ]


def test_without_figures_there_is_nothing_to_recommend():
    assert recommendations(FRONT, SearchConfig(objectives=("psnr", "ssim"))) == []
