"""Recorded learning curves, in which every configuration learns like the nearest recorded one."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, distribution_to_json, json_to_distribution
from optuna.trial import TrialState

import search_spaces
from hpo.policy.former_names import renamed
from hpo.policy.search_config import SearchConfig
from hpo.policy.trial_attributes import DECISION, REPORTS
from hpo.store.record import Record
from model.common.machine import processor
from model.training_report import EvalReport, objective_value
from search_spaces import Space

TABLE = Path(__file__).with_name("curves.json.gz")
TOP = 0.01  # share of the space that counts as found
SAMPLES = 20_000  # of the space, to estimate its top
CATEGORY = 10.0  # the distance between two losses; within one the unit cube's diagonal is 2


def record(runs: Path, name: str) -> bytes:
    """Compress a search's ended trials; the same record always becomes the same bytes."""
    source = Record(runs, name)
    trials = [trial for trial in source.trials() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    distributions = {key: value for trial in trials for key, value in trial.distributions.items()}
    about = {
        "command": _command(source),
        "machine": f"{processor()}, Python {source.about['versions']['python']}",
        **{key: source.about[key] for key in ("created", "versions", "git_commit")},
        "search": {**source.about["search"], "space": _portable(source.search.space)},
        "distributions": {key: json.loads(distribution_to_json(value)) for key, value in distributions.items()},
    }
    curves = [
        {
            "params": trial.params,
            "reason": trial.user_attrs[DECISION]["reason"],
            "ssim": [_rounded(report["ssim"], 6) for report in trial.user_attrs[REPORTS]],
            "psnr_db": [_rounded(report["psnr_db"], 4) for report in trial.user_attrs[REPORTS]],
        }
        for trial in trials
    ]
    text = json.dumps({"about": about, "curves": curves}, separators=(",", ":"), sort_keys=True)
    return gzip.compress(text.encode(), mtime=0)


def _portable(space: str) -> str:
    """The name of a space's file, which lies beside this module."""
    return Path(space).name if space.endswith(".py") else space


def _rounded(value: float | str, digits: int) -> float | str:
    return value if isinstance(value, str) else round(value, digits)  # "nan"


def _command(source: Record) -> str:
    words = ["hpo", "search", source.name]
    for field in fields(SearchConfig):
        value = getattr(source.search, field.name)
        value = _portable(value) if field.name == "space" else value
        if field.name == "set":
            words += [word for key, setting in value.items() for word in ("--set", f"{key}={setting}")]
        elif value != field.default:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """How a configuration learns."""

    params: Mapping[str, Any]
    reports: tuple[EvalReport, ...]
    values: tuple[float, ...]  # of the objective
    is_full: bool  # false: it diverged before the last epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class Top:
    """The best of a space. One curve stands for many configurations, so the share is seldom the requested one."""

    threshold: float
    share: float
    curves: int  # that are the nearest to some of it
    trial_epochs: float  # mean of random unpruned trials; divergence makes them shorter

    def random_mean(self, budget: float = math.inf) -> float:
        """Expected epochs of random search, restricted to a budget: independent trials make the wait geometric."""
        mean = self.trial_epochs / self.share
        return mean * (1 - math.exp(-budget / mean))


class Table:
    """Recorded curves as a surrogate of training."""

    def __init__(
        self, content: bytes, share: float = TOP, neighbours: int = 1, objectives: tuple[str, ...] = ()
    ) -> None:
        data = json.loads(gzip.decompress(content))
        self.digest, self._share, self._neighbours = hashlib.sha256(content).hexdigest(), share, neighbours
        self.about: dict[str, Any] = data["about"]
        default = SearchConfig()  # the product's own decisions; the recording made none
        decisions = {name: getattr(default, name) for name in ("sampler", "pruner", "grace_period", "reduction_factor")}
        self.search = SearchConfig(**{**renamed(self.about["search"]), **decisions, "trials": 100_000})
        self.search = replace(self.search, objectives=objectives or self.search.objectives)
        space = self.search.space
        self.space: Space = search_spaces.load(str(Path(__file__).with_name(space)) if space.endswith(".py") else space)
        self._distributions = {
            key: json_to_distribution(json.dumps(value)) for key, value in self.about["distributions"].items()
        }
        self.curves = [self._curve(**row) for row in data["curves"]]
        self.best = max((curve.values[-1] for curve in self.curves if curve.is_full), default=math.nan)
        self._points = np.array([self._point(curve.params) for curve in self.curves])

    def _curve(self, params: Mapping[str, Any], reason: str, ssim: Sequence[Any], psnr_db: Sequence[Any]) -> Curve:
        healthy = dict.fromkeys((field.name for field in fields(EvalReport)), 1.0)
        reports = [
            EvalReport.from_dict({**healthy, "epoch": epoch, "ssim": a, "psnr_db": b})
            for epoch, (a, b) in enumerate(zip(ssim, psnr_db, strict=True), start=1)
        ]
        if reason != "finished":  # whatever it was, pruning.decide_pruning must end it here again
            reports[-1] = replace(reports[-1], gen_total=math.nan)
        return self.new_curve(params, reports, is_full=reason == "finished")

    def new_curve(self, params: Mapping[str, Any], reports: Sequence[EvalReport], is_full: bool) -> Curve:
        """A curve of these reports."""
        values = tuple(objective_value(report, self.search.objective) for report in reports)
        return Curve(params=params, reports=tuple(reports), values=values, is_full=is_full)

    def _point(self, params: Mapping[str, Any]) -> list[float]:
        """Numbers on the unit interval of their (log) range; NaN for an inactive parameter."""
        point = []
        for name, of in self._distributions.items():
            if name not in params:
                point.append(math.nan)
            elif isinstance(of, CategoricalDistribution):
                point.append(CATEGORY * of.choices.index(params[name]))
            else:
                scale = math.log if of.log else float
                point.append((scale(params[name]) - scale(of.low)) / (scale(of.high) - scale(of.low)))
        return point

    def _nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of curves, the nearest first, and their weights, (N, neighbours) each.

        A diverged curve is never averaged. Parameters that are inactive in a recorded configuration do not count.
        """
        squares = np.zeros((len(points), len(self._points)))
        for column, recorded in zip(points.T, self._points.T, strict=True):
            squares += np.nan_to_num((column[:, None] - recorded) ** 2)
        indices = np.argsort(squares, axis=1)[:, : self._neighbours]
        near = np.take_along_axis(squares, indices, axis=1)
        full = np.array([curve.is_full for curve in self.curves])[indices]
        weights = np.where(full & full[:, :1] & (near < CATEGORY), 1 / (near + 1e-9), 0.0)
        weights[weights.sum(axis=1) == 0, 0] = 1.0  # the nearest one diverged, or has other categories
        return indices, weights / weights.sum(axis=1, keepdims=True)

    def curve(self, params: Mapping[str, Any]) -> Curve:
        """The curve of the nearest neighbour, or the mean of several."""
        indices, weights = (row[0] for row in self._nearest(np.array([self._point(params)])))
        nearest = self.curves[indices[0]]
        if weights[0] == 1:
            return nearest
        others = [(self.curves[index], weight) for index, weight in zip(indices, weights, strict=True) if weight > 0]
        reports = [
            replace(
                report,
                ssim=sum(float(weight) * other.reports[i].ssim for other, weight in others),
                psnr_db=sum(float(weight) * other.reports[i].psnr_db for other, weight in others),
            )
            for i, report in enumerate(nearest.reports)
        ]
        return self.new_curve(params, reports, is_full=True)

    @cached_property
    def top(self) -> Top:
        """Estimated from uniform samples of the space, which are uniform in the unit cube too."""
        rng = np.random.default_rng(0)
        samples = [
            CATEGORY * rng.integers(len(of.choices), size=SAMPLES)
            if isinstance(of, CategoricalDistribution)
            else rng.random(SAMPLES)
            for of in self._distributions.values()
        ]
        indices, weights = self._nearest(np.array(samples).T)
        nearest = indices[:, 0]
        finals = (np.array([curve.values[-1] for curve in self.curves])[indices] * weights).sum(axis=1)
        finals[~np.array([curve.is_full for curve in self.curves])[nearest]] = -math.inf
        threshold = float(np.quantile(finals, 1 - self._share, method="inverted_cdf"))
        return Top(
            threshold=threshold,
            share=float(np.mean(finals >= threshold)),
            curves=len(set(nearest[finals >= threshold])),
            trial_epochs=float(np.mean([len(self.curves[index].values) for index in nearest])),
        )


@lru_cache
def load_table(path: Path, objectives: tuple[str, ...] = ()) -> Table:
    """Read a table with the default share and one neighbour. objectives: empty: those of the recorded search."""
    return Table(path.read_bytes(), objectives=objectives)
