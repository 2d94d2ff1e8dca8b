"""Comparisons of finalists in words, for the terminal, the model card and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.policy.comparison import Comparison
from hpo.policy.objectives import UNITS, to_maximize
from hpo.policy.race import Race

ONE_SEED = "As settings: not known, one seed each; --replicates N compares settings"


def replicate_line(name: str, result: Mapping[str, Any]) -> str:
    """What a replicate gave, in a line."""
    if result["outcome"] != "finished":
        return f"{name}: {result['outcome']} in epoch {result['epochs']}; it counts as the noisy images"
    return f"{name}: SSIM {result['ssim']:.4f}  PSNR {result['psnr_db']:.2f} dB on all validation images"


def dropped_line(number: int, race: Race, objective: str) -> str:
    """Why a finalist is out of the race, in a sentence."""
    dropped = race.dropped[number]
    if dropped.failures:
        return f"Trial {number} is out: {dropped.failures} of its {dropped.seeds} trainings failed"
    what = difference(race.compared[number], objective)
    return f"Trial {number} is out after {dropped.seeds} seeds: {objective} {what} against trial {dropped.best}"


def difference(comparison: Comparison | Mapping[str, Any], objective: str) -> str:
    """`-0.21 dB (-0.35 to -0.07)`: the interval of a difference; the sign is that of the figure, also of L1."""
    if not isinstance(comparison, Comparison):
        comparison = Comparison.from_dict(comparison)
    ends = sorted(to_maximize(objective, end) for end in (comparison.low, comparison.high))
    digits, unit = (2, UNITS["psnr"]) if objective == "psnr" else (4, "")
    mean = to_maximize(objective, comparison.difference)
    return f"{mean:+.{digits}f}{unit} ({ends[0]:+.{digits}f} to {ends[1]:+.{digits}f})"


def comparison_lines(document: Mapping[str, Any]) -> list[str]:
    """What is known of the finalists, in sentences: as networks over images, and as settings over seeds.

    Args:
        document: search_results.document, or its keys finalists, replicates, winner and objective.
    """
    finalists, race, objective = document["finalists"], document["replicates"], document["objective"]
    if len(finalists) < 2 or not any("compared" in of for of in finalists.values()):  # a search before 2026-12
        networks = []
    else:
        networks = [_networks(finalists, objective)]
    if race is None:
        return [*networks, *([f"{ONE_SEED}."] if networks else [])]
    return [*networks, *_settings(race, objective), *_tie_goes(finalists, race)]


def _networks(finalists: Mapping[str, Mapping[str, Any]], objective: str) -> str:
    best = next(number for number, of in finalists.items() if "compared" not in of)
    images = finalists[best].get("images")
    others = [_against_best(number, of["compared"], objective) for number, of in finalists.items() if number != best]
    where = f"the same {images:,} validation images" if images else "the same validation images"
    return f"As networks, on {where} ({objective}): trial {best} is the best; {'; '.join(others)}."


def _against_best(number: str, compared: Mapping[str, Any], objective: str) -> str:
    verdict = {"tie": "ties with it", "worse": "is worse", "better": "is better"}[compared["verdict"]]
    sure = compared["probability"]
    chance = f", better with a probability of {100 * sure:.0f} %" if compared["verdict"] == "tie" else ""
    return f"trial {number} {verdict}, {difference(compared, objective)}{chance}"


def _settings(race: Mapping[str, Any], objective: str) -> list[str]:
    seeds, planned = race["seeds"], race["planned"]
    which = f"{seeds} fresh seeds" if seeds == planned else f"{seeds} of {planned} fresh seeds"
    decided = ", which decided the race" if race["is_over"] and seeds < planned else ""
    lines = [
        f"As settings, over {which}{decided}; means with 95 % intervals, beside the search's own figures, which are "
        "optimistic because they were selected:"
    ]
    for number, of in race["finalists"].items():
        psnr_db, ssim, searched = of["means"]["psnr_db"], of["means"]["ssim"], of["searched"]
        figures = f"the search's {searched['psnr_db']:.2f} dB, {searched['ssim']:.4f}" if searched["psnr_db"] else ""
        lines.append(
            f"  trial {number}: {_objective(of['means']['value'], objective)}PSNR {_interval(psnr_db, 2, ' dB')}, "
            f"SSIM {_interval(ssim, 4)}; {figures}"
            f"{_standing(number, of, race, objective)}"
        )
    return lines


def _standing(number: str, of: Mapping[str, Any], race: Mapping[str, Any], objective: str) -> str:
    failures = f"; {of['failures']} failed and count as the noisy images" if of["failures"] else ""
    out = f"; out after {of['dropped_after']} seeds" if of["dropped_after"] else ""
    compared = of["compared"]
    if number == str(race["best"]) or compared is None or compared["low"] is None:
        return f"{failures}{out}"
    verdict = {"tie": "a tie with", "worse": "worse than", "better": "better than"}[compared["verdict"]]
    return f"{failures}{out}; {verdict} trial {compared['with']}: {objective} {difference(compared, objective)}"


def _objective(value: Mapping[str, Any], objective: str) -> str:
    """The mean of an objective that PSNR and SSIM say nothing of."""
    if objective not in ("l1", "haarpsi"):
        return ""
    ends = [None if value[end] is None else to_maximize(objective, value[end]) for end in ("low", "high")]
    low, high = ends if None in ends else sorted(end for end in ends if end is not None)
    return f"{objective} {_interval({'mean': to_maximize(objective, value['mean']), 'low': low, 'high': high}, 4)}, "


def _interval(mean: Mapping[str, Any], digits: int, unit: str = "") -> str:
    """`28.31 dB (28.10 to 28.52)`."""
    ends = "" if mean["low"] is None else f" ({mean['low']:.{digits}f} to {mean['high']:.{digits}f})"
    return f"{mean['mean']:.{digits}f}{unit}{ends}"


def _tie_goes(finalists: Mapping[str, Mapping[str, Any]], race: Mapping[str, Any]) -> list[str]:
    winner, best = race["winner"], race["best"]
    if winner is None or winner == best:
        return []
    sizes = [finalists[str(number)].get("parameters", 0) for number in (winner, best)]
    return [f"The tie goes to trial {winner}, the smaller one: {sizes[0]:,} instead of {sizes[1]:,} parameters."]
