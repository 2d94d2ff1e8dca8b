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
        return f"Trial {number} is out of the race: {dropped.failures} of its {dropped.seeds} trainings failed"
    what = difference(race.compared[number], objective)
    return f"Trial {number} is out of the race after {dropped.seeds} seeds: against trial {dropped.best} {what}"


def difference(comparison: Comparison | Mapping[str, Any], objective: str) -> str:
    """`-0.21 dB (-0.35 to -0.07)`: the interval of a difference; the sign is that of the figure, also of L1."""
    if not isinstance(comparison, Comparison):
        comparison = Comparison.from_dict(comparison)
    ends = sorted(to_maximize(objective, end) for end in (comparison.low, comparison.high))
    digits, unit = (2, UNITS["psnr"]) if objective == "psnr" else (4, "")
    mean = to_maximize(objective, comparison.difference)
    return f"{mean:+.{digits}f}{unit} ({ends[0]:+.{digits}f} to {ends[1]:+.{digits}f})"
