"""Searches replayed over recorded learning curves: how good and how long is a search by each method?

    python benchmarks/replay.py record RUNS NAME    # a search of random, never stopped trials becomes curves.json.gz
    python benchmarks/replay.py budget              # searches of 16, 24 and 60 trials: regret and epochs
    python benchmarks/replay.py compare             # searches that end when a configuration of the top 1 % is found

In virtual time, so that a search of hours takes seconds. Every configuration learns like the nearest recorded one.
Found is a trial of full length in the top 1 % of the space. Regret is what the winner lacks to the best recorded curve.
`ours` are the product's own decisions (hpo.policy.sampling).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import heapq
import inspect
import json
import math
import multiprocessing
import os
import random
import re
import runpy
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import peers
import torch
from machine import processor
from optuna.distributions import CategoricalDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

import search_spaces
from hpo.policy import pruning, sampling
from hpo.policy.pruning import Decision
from hpo.policy.sampling import Suggestion
from hpo.policy.search_config import SearchConfig, renamed
from hpo.policy.trial_attributes import DECISION, REPORT_INDEX, REPORTS
from hpo.store.record import Record
from model.common.files import write_atomically
from model.training_report import EvalReport, objective_value
from search_spaces import Space

TABLE = Path(__file__).with_name("curves.json.gz")
TOP = 0.01  # share of the space that counts as found
SAMPLES = 20_000  # of the space, to know its top
MISSING = "pip install -e '.[benchmark]' brings what Syne Tune needs; peers.NePS says what NePS does"
CATEGORY = 10.0  # the distance between two losses; within one the unit cube's diagonal is 2

# --- recorded curves -------------------------------------------------------------------------------------------------


def record(runs: Path, name: str) -> bytes:
    """A search's ended trials, compressed; the same record gives the same bytes."""
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
    """A file lies beside this one, wherever that is."""
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
    """How a configuration learns. values: of the objective. Not full: it diverged before the last epoch."""

    params: Mapping[str, Any]
    reports: tuple[EvalReport, ...]
    values: tuple[float, ...]
    is_full: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Top:
    """The best of a space. A recorded curve stands for many configurations: the share is seldom the one asked for."""

    threshold: float
    share: float
    curves: int  # nearest to some of it
    trial_epochs: float  # of a random trial that nobody stops: divergence is short

    def random_mean(self, budget: float = math.inf) -> float:
        """Expected epochs of random search, restricted to a budget: trials are independent, so the wait is geometric"""
        mean = self.trial_epochs / self.share
        return mean * (1 - math.exp(-budget / mean))


class Table:
    """Recorded curves as a surrogate of training."""

    def __init__(self, content: bytes, share: float = TOP, neighbours: int = 1) -> None:
        data = json.loads(gzip.decompress(content))
        self.digest, self._share, self._neighbours = hashlib.sha256(content).hexdigest(), share, neighbours
        self.about: dict[str, Any] = data["about"]
        default = SearchConfig()  # the product's own decisions; the recording had none
        decisions = {name: getattr(default, name) for name in ("sampler", "pruner", "grace_period", "reduction_factor")}
        self.search = SearchConfig(**{**renamed(self.about["search"]), **decisions, "trials": 100_000})
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
        if reason != "finished":  # whatever it was, decide.judge is to stop here again
            reports[-1] = replace(reports[-1], gen_total=math.nan)
        return self._new_curve(params, reports, is_full=reason == "finished")

    def _new_curve(self, params: Mapping[str, Any], reports: Sequence[EvalReport], is_full: bool) -> Curve:
        values = tuple(objective_value(report.ssim, report.psnr_db, self.search.objective) for report in reports)
        return Curve(params=params, reports=tuple(reports), values=values, is_full=is_full)

    def _point(self, params: Mapping[str, Any]) -> list[float]:
        """Numbers on the unit interval of their (log) range; NaN where a parameter takes no part."""
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
        """(N, neighbours) twice: curves, the nearest first, and their weights. A diverged one is never averaged.

        What takes no part in a recorded configuration does not count.
        """
        squares = np.zeros((len(points), len(self._points)))
        for column, recorded in zip(points.T, self._points.T, strict=True):
            squares += np.nan_to_num((column[:, None] - recorded) ** 2)
        indices = np.argsort(squares, axis=1)[:, : self._neighbours]
        near = np.take_along_axis(squares, indices, axis=1)
        full = np.array([curve.is_full for curve in self.curves])[indices]
        weights = np.where(full & full[:, :1] & (near < CATEGORY), 1 / (near + 1e-9), 0.0)
        weights[~full[:, 0], 0] = 1.0
        return indices, weights / weights.sum(axis=1, keepdims=True)

    def curve(self, params: Mapping[str, Any]) -> Curve:
        """Of the nearest neighbour, or the mean of several."""
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
        return self._new_curve(params, reports, is_full=True)

    @cached_property
    def top(self) -> Top:
        """From uniform samples of the space, which are uniform in the unit cube, too."""
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


# --- the simulator ---------------------------------------------------------------------------------------------------


class Decider(Protocol):
    """A search method. One that goes on with stopped trials also has `resume`: as `next`, but never a new trial."""

    def next(self) -> tuple[int, Mapping[str, Any]] | None:
        """Key and parameters of a trial to run: a new one, or a stopped one that goes on. None: nothing for now."""

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """Whether the trial goes on. is_last: it is over in any case, at full length or diverged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Of one search. epochs: of all its trials; virtual_time: in epochs of one worker."""

    found: bool
    epochs: int
    trials: int
    virtual_time: float
    seconds: float  # that the method took in reality
    value: float = -math.inf  # the winner's: the best of any epoch of a trial that did not diverge
    wrong_prunings: int = 0  # trials that were stopped for good when nobody had been better at that epoch


@dataclass(kw_only=True, slots=True)
class _Trial:
    curve: Curve
    epoch: int = 0
    wrongly_stopped: bool = False

    @property
    def is_dead(self) -> bool:
        """Diverged or collapsed."""
        return not self.curve.is_full and self.epoch == len(self.curve.values)


def simulate(
    decider: Decider, table: Table, *, seed: int, workers: int = 4, budget: float = 3_000, trials: int | None = None
) -> Outcome:
    """Search until a configuration is found or `budget` epochs are spent; with `trials`, until so many are over."""
    began, now, epochs, found = time.perf_counter(), 0.0, 0, False
    jitter = random.Random(seed)  # so that workers report in changing order
    begun: dict[int, _Trial] = {}
    resume = getattr(decider, "resume", lambda: None)
    events: list[tuple[float, int]] = []  # the next report of each running trial
    while epochs < budget and not (found and trials is None):
        while len(events) < workers:
            job = decider.next() if trials is None or len(begun) < trials else resume()
            if job is None:
                break
            key, params = job
            trial = begun.setdefault(key, _Trial(curve=table.curve(params)))
            trial.wrongly_stopped = False
            heapq.heappush(events, (now + jitter.uniform(0.9, 1.1), key))
        if not events:
            break
        now, key = heapq.heappop(events)
        epochs += 1
        trial = begun[key]
        trial.epoch += 1
        value, is_last = trial.curve.values[trial.epoch - 1], trial.epoch == len(trial.curve.values)
        goes_on = decider.report(key, trial.curve.reports[trial.epoch - 1], value, is_last)
        if is_last:
            found = found or (trial.curve.is_full and value >= table.top.threshold)
        elif goes_on:
            heapq.heappush(events, (now + jitter.uniform(0.9, 1.1), key))
        else:
            rivals = [other for other in begun.values() if other.epoch >= trial.epoch and not other.is_dead]
            trial.wrongly_stopped = all(value >= other.curve.values[trial.epoch - 1] for other in rivals)
    return Outcome(
        found=found,
        epochs=epochs,
        trials=len(begun),
        virtual_time=now,
        seconds=time.perf_counter() - began,
        value=max(
            (max(trial.curve.values[: trial.epoch]) for trial in begun.values() if trial.epoch and not trial.is_dead),
            default=objective_value(math.nan, math.nan, table.search.objective),
        ),
        wrong_prunings=sum(trial.wrongly_stopped for trial in begun.values()),
    )


class Ours:
    """The product's decisions over a record in memory; another suggest or judge makes a variant to compare."""

    def __init__(
        self,
        space: Space,
        search: SearchConfig,
        *,
        suggest: Callable[..., Suggestion | None] = sampling.suggest,
        judge: Callable[..., Decision] = pruning.decide_pruning,
    ) -> None:
        self.trials: list[FrozenTrial] = []
        self._space, self._search, self._suggest, self._judge = space, search, suggest, judge
        self._heard = 0

    def next(self) -> tuple[int, Mapping[str, Any]] | None:
        """As SearchController.next_trial and Record.add."""
        suggestion = self._suggest(self.trials, self._space, self._search)
        if suggestion is None:
            return None
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(suggestion.params),
            distributions=dict(suggestion.distributions),
            user_attrs=suggestion.user_attrs(self._heard),
        )
        trial.number = len(self.trials)
        self.trials.append(trial)
        return trial.number, trial.params

    def report(self, key: int, report: EvalReport, value: float, is_last: bool) -> bool:
        """As Record.append_report; that it is the last, judge finds out by itself."""
        trial = self.trials[key]
        trial.user_attrs[REPORTS].append({**report.as_dict(), REPORT_INDEX: self._heard})
        trial.intermediate_values[report.epoch] = value
        self._heard += 1
        decision = self._judge(self.trials, key, report.epoch, self._search)
        if decision.action == "continue":
            return True
        trial.user_attrs[DECISION] = asdict(decision)
        trial.state = TrialState.COMPLETE if decision.action == "complete" else TrialState.PRUNED
        trial.values, trial.datetime_complete = [decision.value], trial.datetime_start
        return False


def ours(space: Space, search: SearchConfig, **changed: Any) -> Ours:
    """With other settings of SearchConfig, where wanted."""
    return Ours(space, replace(search, **changed))


# --- the comparison --------------------------------------------------------------------------------------------------

Factory = Callable[[Space, SearchConfig], Decider]  # its seed is search.seed
METHODS: dict[str, Factory] = {
    "ours": ours,
    "random": partial(ours, sampler="random", pruner="none"),
    "random + ours": partial(ours, sampler="random"),
    "TPE + ours": partial(ours, sampler="tpe"),
    "ours + leaders": partial(ours, pruner="leaders", reduction_factor=4),  # of before 2026-12
    "ours + ASHA 2": partial(ours, pruner="former-asha", reduction_factor=2),  # at rungs
    "random + ASHA 2": partial(ours, sampler="random", pruner="former-asha", reduction_factor=2),
    "random + ASHA 4": partial(ours, sampler="random", pruner="former-asha", reduction_factor=4),
    "TPE + ASHA 3": partial(ours, sampler="tpe", pruner="former-asha", reduction_factor=3),
    **peers.METHODS,
}


def sources(namespace: Mapping[str, Any], seen: set[str] | None = None) -> str:
    """Of all modules of hpo that something in it comes from, and of those that they need in turn."""
    seen, text = set() if seen is None else seen, ""
    for value in namespace.values():
        name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        if isinstance(name, str) and name.startswith("hpo.") and name not in seen:
            seen.add(name)
            text += inspect.getsource(sys.modules[name]) + sources(vars(sys.modules[name]), seen)
    return text


@lru_cache
def methods(variants: Path | None) -> dict[str, tuple[Factory, str]]:
    """All there are, each with the source code by which its results are cached."""
    own = sources({"": sampling}) + inspect.getsource(Ours) + inspect.getsource(ours)
    found = {
        name: (make, inspect.getsource(peers) if name in peers.METHODS else f"{own}{getattr(make, 'keywords', {})}")
        for name, make in METHODS.items()
    }
    if variants is not None:
        names = runpy.run_path(str(variants))
        text = own + sources(names) + inspect.getsource(peers) + variants.read_text()
        found |= {name: (make, text) for name, make in names["METHODS"].items()}
    return found


def _cached(folder: Path, name: str, *what: Any) -> tuple[Path, dict[str, Any]]:
    """Where a method's outcomes lie, one a seed, and those that are there."""
    text = "".join(inspect.getsource(part) for part in (simulate, _Trial, Table))
    digest = hashlib.sha256(json.dumps([*what, text]).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{digest}.json"
    return path, json.loads(path.read_text()) if path.exists() else {}


def run(name: str, factory: Factory, source: str, table: Table, options: argparse.Namespace) -> list[Outcome]:
    """A method's searches, one a seed; those that the cache has of the same source code are taken from there."""
    what = table.digest, asdict(table.top), options.workers, options.budget, source
    path, done = _cached(options.cache, name, *what)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for seed in seeds:
        if str(seed) not in done:
            decider = factory(table.space, replace(table.search, seed=seed))
            outcome = simulate(decider, table, seed=seed, workers=options.workers, budget=options.budget)
            done[str(seed)] = asdict(outcome)
            write_atomically(path, json.dumps(done, indent=1).encode())
    return [Outcome(**done[str(seed)]) for seed in seeds]


def interval(statistic: Callable[..., np.ndarray], *samples: np.ndarray) -> list[float]:
    """The statistic and its 95 % bootstrap interval. Several samples are drawn in pairs: by seed."""
    picks = np.random.default_rng(0).integers(len(samples[0]), size=(10_000, len(samples[0])))
    drawn = np.percentile(statistic(*(sample[picks] for sample in samples)), [2.5, 97.5])
    return [float(statistic(*samples)), *(float(bound) for bound in drawn)]


_mean, _median = partial(np.mean, axis=-1), partial(np.median, axis=-1)


def summarize(results: Mapping[str, Sequence[Outcome]], top: Top, budget: int) -> dict[str, Any]:
    """JSON-ready; intervals as (value, low, high). A search without a find counts as `budget`: means are restricted.

    ours_to_it: below 1, ours needs fewer epochs.
    """
    epochs = {name: np.array([outcome.epochs for outcome in outcomes]) for name, outcomes in results.items()}
    summary: dict[str, Any] = {}
    for name, outcomes in results.items():
        summary[name] = {
            "found": sum(outcome.found for outcome in outcomes) / len(outcomes),
            "median": interval(_median, epochs[name]),
            "mean": interval(_mean, epochs[name]),
            "mean_to_random_theory": float(_mean(epochs[name])) / top.random_mean(budget),
            "trials": float(np.mean([outcome.trials for outcome in outcomes])),
            "ms_per_trial": 1000 * sum(o.seconds for o in outcomes) / sum(o.trials for o in outcomes),
        }
        if name != "ours" and "ours" in results:
            pair = epochs["ours"], epochs[name]
            summary[name]["ours_to_it_mean"] = interval(lambda a, b: _mean(a) / _mean(b), *pair)
            summary[name]["ours_to_it_median"] = interval(lambda a, b: _median(a) / _median(b), *pair)
    return summary


def markdown(summary: Mapping[str, Any], table: Table, options: argparse.Namespace) -> str:
    """What was measured, and how."""
    top, budget = table.top, options.budget
    median = top.trial_epochs * math.log(0.5) / math.log(1 - top.share)
    lines = [
        f"{len(table.curves)} curves, {sum(curve.is_full for curve in table.curves)} of them full: "
        f"`{table.about['command']}`. Found: {table.search.objective} >= {top.threshold:.4f} at full length, as "
        f"{top.share:.2%} of the space have ({top.curves} curves). {options.workers} workers, {options.seeds} seeds. "
        f"A search that has not found after {budget} epochs counts as {budget}. Random search by theory: median "
        f"{median:.0f}, mean {top.random_mean():.0f}, restricted {top.random_mean(budget):.0f}.",
        "",
        "| method | found | median epochs | mean epochs | to random theory | ours / it, means | ours / it, medians "
        "| trials | ms a trial |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in summary.items():
        pairs = [row.get(f"ours_to_it_{average}") for average in ("mean", "median")]
        ratios = ["{:.2f} ({:.2f}-{:.2f})".format(*pair) if pair else "" for pair in pairs]
        averages = ["{:.0f} ({:.0f}-{:.0f})".format(*row[average]) for average in ("median", "mean")]
        numbers = [f"{row['mean_to_random_theory']:.2f}", *ratios, f"{row['trials']:.0f}", f"{row['ms_per_trial']:.0f}"]
        lines.append("| " + " | ".join([name, f"{row['found']:.0%}", *averages, *numbers]) + " |")
    return "\n".join(lines)


# --- searches of so many trials --------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What is searched, by how many trials at a time."""

    table: Path
    trials: int
    workers: int


class _Task(NamedTuple):
    case: Case
    name: str
    seed: int
    variants: Path | None


@lru_cache
def _table(path: Path) -> Table:
    return Table(path.read_bytes())


def _search(task: _Task) -> dict[str, Any] | str:
    """The outcome; or what is missing here."""
    table, (_, trials, workers) = _table(task.case.table), task.case
    make, _ = methods(task.variants)[task.name]
    try:
        decider = make(table.space, replace(table.search, seed=task.seed, trials=trials))
        return asdict(simulate(decider, table, seed=task.seed, workers=workers, budget=math.inf, trials=trials))
    except ImportError as error:
        return str(error)


def _one_thread() -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for what is imported from now on


def _all(tasks: Sequence[_Task], jobs: int) -> Iterator[dict[str, Any] | str]:
    """In order. By forks, so that none of them reads source code that was edited meanwhile."""
    if jobs == 1:
        yield from map(_search, tasks)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, context, initializer=_one_thread) as pool:
        yield from pool.map(_search, tasks)


def run_budget(names: Sequence[str], options: argparse.Namespace) -> dict[Case, dict[str, list[Outcome]]]:
    """Every case's searches by each method, one a seed; what the cache has is taken from there."""
    cases = [Case(*case) for case in product(options.table, options.trials, options.workers)]
    seeds, caches, left_out = range(options.first_seed, options.first_seed + options.seeds), {}, set()
    for case, name in product(cases, names):
        table, (_, source) = _table(case.table), methods(options.variants)[name]
        what = table.digest, asdict(table.top), case.trials, case.workers, source
        caches[case, name] = _cached(options.cache, f"{name} {case.trials}", *what)
    tasks = [
        _Task(case, name, seed, options.variants)
        for (case, name), (_, done) in caches.items()
        for seed in seeds
        if str(seed) not in done
    ]
    for task, outcome in zip(tasks, _all(tasks, options.jobs), strict=True):
        if isinstance(outcome, str):
            left_out.add((task.name, outcome))
            continue
        path, done = caches[task.case, task.name]
        done[str(task.seed)] = outcome
        write_atomically(path, json.dumps(done, indent=1).encode())
    for name, error in sorted(left_out):
        print(f"{name}: left out, {error}; {MISSING}", file=sys.stderr)
    there = [name for name in names if name not in {name for name, _ in left_out}]
    return {
        case: {name: [Outcome(**caches[case, name][1][str(seed)]) for seed in seeds] for name in there}
        for case in cases
    }


def _with_error(sample: np.ndarray) -> list[float]:
    """Mean and two standard errors of it."""
    return [float(sample.mean()), float(2 * sample.std(ddof=1) / math.sqrt(len(sample))) if len(sample) > 1 else 0.0]


def summarize_budget(results: Mapping[str, Sequence[Outcome]], best: float, subject: str = "ours") -> dict[str, Any]:
    """JSON-ready; (mean, two standard errors), and (value, low, high) where `subject` is compared by seed."""

    def of(name: str, field: str) -> np.ndarray:
        return np.array([getattr(outcome, field) for outcome in results[name]], dtype=float)

    summary: dict[str, Any] = {}
    for name, outcomes in results.items():
        summary[name] = {
            "regret": _with_error(best - of(name, "value")),
            "epochs": _with_error(of(name, "epochs")),
            "virtual_time": _with_error(of(name, "virtual_time")),
            "wrong_prunings": float(of(name, "wrong_prunings").mean()),
            "found": float(of(name, "found").mean()),
            "ms_per_trial": 1000 * sum(o.seconds for o in outcomes) / sum(o.trials for o in outcomes),
        }
        if name != subject and subject in results:
            pair = of(subject, "epochs"), of(name, "epochs")
            summary[name]["epochs_ratio"] = interval(lambda a, b: _mean(a) / _mean(b), *pair)
            summary[name]["regret_difference"] = interval(_mean, of(name, "value") - of(subject, "value"))
    return summary


def overview(summary: Mapping[str, Any], subject: str = "ours") -> dict[str, Any] | None:
    """`subject` beside the peer of the least regret, and beside the cheapest that is as good as it within its error."""
    rivals = [name for name in summary if name in peers.METHODS and name != subject]
    if subject not in summary or not rivals:
        return None
    ours_, enough = summary[subject], sum(summary[subject]["regret"])
    best = min(rivals, key=lambda name: summary[name]["regret"][0])
    good = [name for name in rivals if summary[name]["regret"][0] <= enough]
    cheapest = min(good, key=lambda name: summary[name]["epochs"][0], default=None)
    return {
        "regret": ours_["regret"],
        "epochs": ours_["epochs"],
        "best_peer": best,
        "best_peer_regret": summary[best]["regret"],
        "regret_difference": summary[best]["regret_difference"],
        "epochs_ratio": summary[best]["epochs_ratio"],
        "cheapest_as_good": cheapest,
        "cheapest_epochs_ratio": summary[cheapest]["epochs_ratio"] if cheapest else None,
    }


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _ratio(ratio: Sequence[float] | None) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratio) if ratio else ""


def _difference(difference: Sequence[float] | None) -> str:
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*difference) if difference else ""


def markdown_budget(case: Case, summary: Mapping[str, Any], subject: str, seeds: int) -> str:
    """One case's methods."""
    table = _table(case.table)
    heads = ["method", "regret", "epochs", "wrong prunings", f"epochs, {subject} / it", f"regret, {subject} - it"]
    lines = [
        f"`{case.table.name}` ({len(table.curves)} curves, the best ends at {table.best:.4f}), **{case.trials} trials, "
        f"{case.workers} workers**, {seeds} seeds:",
        "",
        _row(*heads, "virtual time", "ms a trial"),
        "|---" * 8 + "|",
    ]
    for name, of in summary.items():
        figures = ["{:.4f} ± {:.4f}".format(*of["regret"]), "{:.1f} ± {:.1f}".format(*of["epochs"])]
        compared = [_ratio(of.get("epochs_ratio")), _difference(of.get("regret_difference"))]
        costs = [f"{of['virtual_time'][0]:.1f}", f"{of['ms_per_trial']:.0f}"]
        lines.append(_row(name, *figures, f"{of['wrong_prunings']:.2f}", *compared, *costs))
    return "\n".join(lines)


def markdown_overview(rows: Sequence[tuple[Case, Mapping[str, Any]]], subject: str) -> str:
    """A line for each case."""
    heads = ["table", "trials", "workers", f"regret, {subject}", "best peer, its regret", f"regret, {subject} - it"]
    lines = [
        _row(*heads, f"epochs, {subject} / it", "cheapest peer as good", f"epochs, {subject} / it"),
        "|---" * 9 + "|",
    ]
    for case, of in rows:
        best = "{}, {:.4f} ± {:.4f}".format(of["best_peer"], *of["best_peer_regret"])
        figures = ["{:.4f} ± {:.4f}".format(*of["regret"]), best, _difference(of["regret_difference"])]
        cheapest = [of["cheapest_as_good"] or "none", _ratio(of["cheapest_epochs_ratio"])]
        what = [case.table.name, str(case.trials), str(case.workers)]
        lines.append(_row(*what, *figures, _ratio(of["epochs_ratio"]), *cheapest))
    return "\n".join(lines)


def report_budget(results: Mapping[Case, Mapping[str, Sequence[Outcome]]], options: argparse.Namespace) -> str:
    """All tables and the overview; or the same as JSON."""
    summaries = {case: summarize_budget(of, _table(case.table).best, options.subject) for case, of in results.items()}
    rows = [(case, row) for case, of in summaries.items() if (row := overview(of, options.subject)) is not None]
    if options.json:

        def told(case: Case) -> dict[str, Any]:
            return {**case._asdict(), "table": str(case.table)}

        content = {
            "tables": [{**told(case), "seeds": options.seeds, "methods": of} for case, of in summaries.items()],
            "overview": [{**told(case), **row} for case, row in rows],
        }
        return json.dumps(content, indent=2)
    parts = [markdown_budget(case, of, options.subject, options.seeds) for case, of in summaries.items()]
    return "\n\n".join([*parts, markdown_overview(rows, options.subject)] if rows else parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="turn a finished search into a table of curves")
    recording.add_argument("runs", type=Path)
    recording.add_argument("name")
    recording.add_argument("--table", type=Path, default=TABLE)
    comparison = commands.add_parser("compare", help="searches over a table of curves until they find")
    comparison.add_argument("--table", type=Path, default=TABLE)
    comparison.add_argument("--seeds", type=int, default=30)
    comparison.add_argument("--workers", type=int, default=4)
    comparison.add_argument("--top", type=float, default=TOP, help="share of the space that counts as found")
    comparison.add_argument("--neighbours", type=int, default=1, help="recorded curves that make one by their mean")
    comparison.add_argument("--budget", type=int, default=3_000, help="epochs after which a search is given up")
    budget = commands.add_parser("budget", help="searches of so many trials over tables of curves")
    budget.add_argument("--table", type=Path, nargs="+", default=[TABLE])
    budget.add_argument("--trials", type=int, nargs="+", default=[16, 24, 60])
    budget.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    budget.add_argument("--seeds", type=int, default=60)
    budget.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    budget.add_argument("--subject", default="ours", help="the method that is compared with the others")
    for command in (comparison, budget):
        command.add_argument("--methods", help=f"separated by commas; all of: {', '.join(METHODS)}")
        command.add_argument("--variants", type=Path, help="a Python file whose METHODS (name: factory) join in")
        command.add_argument("--first-seed", type=int, default=0)
        command.add_argument("--cache", type=Path, default=Path("runs/replay"), help="folder of what was replayed")
        command.add_argument("--json", action="store_true")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """See above."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "record":
        options.table.write_bytes(record(options.runs, options.name))
        return

    there = methods(options.variants)
    chosen = [name.strip() for name in options.methods.split(",")] if options.methods else list(there)
    if unknown := sorted(set(chosen) - set(there)):
        parser.error(f"no such method: {', '.join(unknown)}; there are: {', '.join(there)}")
    if options.command == "budget":
        print(report_budget(run_budget(chosen, options), options))
        return
    table, results = Table(options.table.read_bytes(), options.top, options.neighbours), {}
    for name in chosen:
        try:
            results[name] = run(name, *there[name], table, options)
        except ImportError as error:
            print(f"{name}: left out, {error}; {MISSING}", file=sys.stderr)
    summary = summarize(results, table.top, options.budget)
    if options.json:
        print(json.dumps({"top": asdict(table.top), "methods": summary}, indent=2))
    else:
        print(markdown(summary, table, options))


if __name__ == "__main__":
    main()
