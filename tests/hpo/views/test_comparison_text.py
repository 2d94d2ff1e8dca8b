"""Comparisons in words: what is known, what is a tie, and what is not known."""

from __future__ import annotations

from typing import Any

import pytest

from hpo.policy.comparison import Comparison
from hpo.policy.race import Replicate, run_race
from hpo.views.comparison_text import ONE_SEED, comparison_lines, difference, dropped_line, replicate_line

BEST = {"value": 28.3, "psnr_db": 28.3, "ssim": 0.9, "parameters": 900, "images": 5000}


def compared(verdict: str, mean: float, low: float, high: float) -> dict[str, Any]:
    figures = {"difference": mean, "low": low, "high": high, "confidence": 0.98, "probability": 0.3, "count": 5000}
    return {"with": 6, **figures, "verdict": verdict}


def document(**more: Any) -> dict[str, Any]:
    tie = {**BEST, "parameters": 500, "compared": compared("tie", -0.01, -0.03, 0.01)}
    worse = {**BEST, "compared": compared("worse", -0.5, -0.6, -0.4)}
    return {
        "objective": "psnr",
        "winner": 1,
        "finalists": {"6": BEST, "1": tie, "4": worse},
        "replicates": None,
        **more,
    }


def test_with_one_seed_each_nothing_is_said_of_settings():
    networks, settings = comparison_lines(document())
    assert networks == (
        "As networks, on the same 5,000 validation images (psnr): trial 6 is the best; trial 1 ties with it, -0.01 dB "
        "(-0.03 to +0.01), better with a probability of 30 %; trial 4 is worse, -0.50 dB (-0.60 to -0.40)."
    )
    assert settings == f"{ONE_SEED}."
    assert "not known" in settings


def test_of_a_search_without_comparisons_nothing_is_said():
    assert comparison_lines(document(finalists={"6": {"value": 0.7}, "1": {"value": 0.6}})) == []
    assert comparison_lines(document(finalists={"6": BEST})) == []


def test_fresh_seeds_are_beside_the_searchs_figure_and_a_tie_goes_to_the_smaller():
    def finalist(mean: float, verdict: dict[str, Any] | None) -> dict[str, Any]:
        means = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "values": []}
        searched = {"value": 28.3, "psnr_db": 28.3, "ssim": 0.9}
        return {"means": dict.fromkeys(searched, means), "searched": searched, "failures": 0,
                "dropped_after": None, "compared": verdict}  # fmt: skip

    finalists = {"6": finalist(28.1, None), "1": finalist(28.0, compared("tie", -0.1, -0.3, 0.1))}
    race = {"planned": 3, "seeds": 3, "is_over": True, "best": 6, "winner": 1, "finalists": finalists}
    _, head, first, second, last = comparison_lines(document(replicates=race))
    assert head.startswith("As settings, over 3 fresh seeds; means with 95 % intervals")
    assert "optimistic" in head
    assert (
        first
        == "  trial 6: PSNR 28.10 dB (28.00 to 28.20), SSIM 28.1000 (28.0000 to 28.2000); the search's 28.30 dB, 0.9000"
    )
    assert second.endswith("a tie with trial 6: psnr -0.10 dB (-0.30 to +0.10)")
    assert last == "The tie goes to trial 1, the smaller one: 500 instead of 900 parameters."


def test_a_difference_has_the_sign_of_its_figure():
    worse = Comparison(difference=-0.01, low=-0.02, high=-0.001, confidence=0.95, probability=0.01, count=9)
    assert difference(worse, "l1") == "+0.0100 (+0.0010 to +0.0200)"
    assert difference(worse, "ssim") == "-0.0100 (-0.0200 to -0.0010)"


def test_an_objective_that_is_neither_psnr_nor_ssim_is_told_too():
    means = {"mean": -0.035, "low": -0.036, "high": -0.034, "values": []}
    of = {"means": dict.fromkeys(("value", "psnr_db", "ssim"), means), "searched": {"psnr_db": None}, "failures": 0}
    finalist = {**of, "dropped_after": None, "compared": None}
    race = {"planned": 3, "seeds": 3, "is_over": True, "best": 6, "winner": 6, "finalists": {"6": finalist}}
    assert comparison_lines(document(objective="l1", replicates=race))[2].startswith(
        "  trial 6: l1 0.0350 (0.0340 to 0.0360), PSNR"
    )


@pytest.mark.parametrize(
    ("failed", "line"),
    [
        (False, "Trial 2 is out after 2 seeds: psnr -8.00 dB (-8.00 to -8.00) against trial 1"),
        (True, "Trial 2 is out: 1 of its 1 trainings failed"),
    ],
)
def test_why_a_finalist_is_out(failed, line):
    results = {1: [Replicate(value=28.0)] * 2, 2: [Replicate(value=20.0, failed=failed)] * 2}
    assert dropped_line(2, run_race(results, 3, {}), "psnr") == line


def test_a_replicate_that_failed_counts_as_the_noisy_images():
    result = {"outcome": "collapsed", "epochs": 3, "ssim": 0.68, "psnr_db": 20.55}
    assert replicate_line("trial 4, seed 2", result) == (
        "trial 4, seed 2: collapsed in epoch 3; it counts as the noisy images"
    )
