"""Objectives and limits: directions, units, and what is refused."""

from __future__ import annotations

import pytest

from hpo.policy.objectives import OBJECTIVES, Limit, describe, is_known_before_training, to_maximize
from hpo.policy.search_config import SearchConfig
from model.common.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value", "excess"),
    [
        ("latency<=20", 25.0, 5.0),
        ("latency <= 20", 15.0, -5.0),
        ("psnr>=28", 27.5, 0.5),
        ("psnr>=28", 28.0, 0.0),
        ("params<=1e5", 99_999, -1.0),
    ],
)
def test_a_limit_is_violated_by_what_is_beyond_it_as_in_optuna(text, value, excess):
    assert Limit.parse(text).excess(value) == pytest.approx(excess)


def test_a_limit_reads_back_as_it_is_shown():
    for text in ("latency<=20", "psnr>=28.5", "size_mb<=0.25"):
        assert str(Limit.parse(text)) == text


@pytest.mark.parametrize("text", ["latency", "latency<20", "<=20", "latency<=", "latency<=nan", "latency<=inf", ""])
def test_a_text_that_is_no_limit_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="such as latency<=20"):
        Limit.parse(text)


def test_directions_are_those_that_a_user_expects():
    assert SearchConfig(objectives=("psnr", "latency", "l1")).directions == ["maximize", "minimize", "minimize"]
    assert SearchConfig(objectives=("l1",)).directions == ["maximize"]  # of -L1, as the search compares it
    assert [name for name in OBJECTIVES if is_known_before_training(name)] == ["latency", "params", "size_mb"]
    for name in OBJECTIVES:
        assert to_maximize(name, to_maximize(name, 3.0)) == 3.0


def test_the_first_trained_objective_chooses_the_checkpoint():
    assert SearchConfig(objectives=("latency", "ssim", "psnr")).objective == "ssim"
    assert SearchConfig(objectives=("psnr",)).objective == "psnr"


def test_a_search_from_before_several_objectives_reads_its_one_objective():
    search = SearchConfig.from_dict({"objective": "psnr", "trials": 3})
    assert (search.objectives, search.is_multi_objective) == (("psnr",), False)
    assert SearchConfig.from_dict(search.as_dict()) == search


def test_values_are_shown_in_their_units():
    assert describe("psnr", 28.312) == "28.31 dB"
    assert describe("latency", 3.456) == "3.46 ms"
    assert describe("params", 123456.0) == "123,456 parameters"
