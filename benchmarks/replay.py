"""Replays searches over recorded learning curves: how good and how long is a search by each method?

    python benchmarks/replay.py record RUNS NAME    # turn a search of random, unpruned trials into curves.json.gz
    python benchmarks/replay.py budget              # searches of 16, 24 and 60 trials: regret and epochs
    python benchmarks/replay.py compare             # searches until a configuration of the top 1 % is found
    python benchmarks/replay.py front               # searches on several objectives: hypervolume over epochs
    python benchmarks/replay.py figures             # measure latency and size of a table's configurations

Time is virtual: a search of hours takes seconds. Every configuration learns like the nearest recorded one. A search has
found a configuration when a trial of full length is in the top 1 % of the space. The regret is the distance of the
winner to the best recorded curve. `ours` are the product's own decisions (hpo.policy.suggestions).
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import math
import multiprocessing
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import front_peers
import peers
import replay_front
import torch
from front_report import FrontCase, markdown_front, summarize_front
from replay_figures import figures_file, measure_figures
from replay_front import FrontOutcome, OursFront, load_landscape, ours_front, simulate_front
from replay_report import Case, markdown, markdown_budget, markdown_overview, overview, summarize, summarize_budget
from replay_simulation import Decider, Ours, Outcome, _Trial, ours, simulate
from replay_table import TABLE, TOP, Table, load_table, record

from hpo.policy import report_decision, suggestions
from hpo.policy.search_config import SearchConfig
from model.common.files import write_atomically
from search_spaces import Space

ARCHITECTURE = Path(__file__).parent / "tables" / "architecture.json.gz"
MISSING = "pip install -e '.[benchmark]' installs Syne Tune; peers.NePS lists what NePS needs"
Factory = Callable[[Space, SearchConfig], Decider]  # its seed is search.seed
METHODS: dict[str, Factory] = {
    "ours": ours,
    "random": partial(ours, sampler="random", pruner="none"),
    "random + ours": partial(ours, sampler="random"),
    "TPE + ours": partial(ours, sampler="tpe"),
    "ours + leaders": partial(ours, pruner="leaders", reduction_factor=4),  # the default before 2026-12
    "ours + ASHA 2": partial(ours, pruner="former-asha", reduction_factor=2),  # at rungs
    "random + ASHA 2": partial(ours, sampler="random", pruner="former-asha", reduction_factor=2),
    "random + ASHA 4": partial(ours, sampler="random", pruner="former-asha", reduction_factor=4),
    "TPE + ASHA 3": partial(ours, sampler="tpe", pruner="former-asha", reduction_factor=3),
    **peers.METHODS,
}


def sources(namespace: Mapping[str, Any], seen: set[str] | None = None) -> str:
    """The source code of all modules of hpo that a namespace uses, directly or indirectly."""
    seen, text = set() if seen is None else seen, ""
    for value in namespace.values():
        name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        if isinstance(name, str) and name.startswith("hpo.") and name not in seen:
            seen.add(name)
            text += inspect.getsource(sys.modules[name]) + sources(vars(sys.modules[name]), seen)
    return text


FRONT_METHODS: dict[str, Callable[..., Any]] = {
    "ours": ours_front,
    "random + ours": partial(ours_front, sampler="random"),
    **front_peers.METHODS,
}


@lru_cache
def methods(variants: Path | None) -> dict[str, tuple[Factory, str]]:
    """All methods, each with the source code that identifies its cached results."""
    own = sources({"": suggestions}) + inspect.getsource(Ours) + inspect.getsource(ours)
    found = {
        name: (make, inspect.getsource(peers) if name in peers.METHODS else f"{own}{getattr(make, 'keywords', {})}")
        for name, make in METHODS.items()
    }
    if variants is not None:
        names = runpy.run_path(str(variants))
        text = own + sources(names) + inspect.getsource(peers) + variants.read_text()
        found |= {name: (make, text) for name, make in names["METHODS"].items()}
    return found


@lru_cache
def front_methods(variants: Path | None) -> dict[str, tuple[Callable[..., Any], str]]:
    """Like methods, of those for several objectives."""
    own = sources({"": suggestions, "of": report_decision}) + inspect.getsource(OursFront)
    found = {
        name: (make, inspect.getsource(front_peers) if name in front_peers.METHODS else f"{own}{make}")
        for name, make in FRONT_METHODS.items()
    }
    if variants is not None:
        names = runpy.run_path(str(variants))
        text = own + inspect.getsource(front_peers) + variants.read_text()
        found |= {name: (make, text) for name, make in names["METHODS"].items()}
    return found


def _cached(folder: Path, name: str, *what: Any) -> tuple[Path, dict[str, Any]]:
    """The file of a method's outcomes by seed, and its content so far."""
    text = "".join(inspect.getsource(part) for part in (simulate, _Trial, Table))
    digest = hashlib.sha256(json.dumps([*what, text]).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{digest}.json"
    return path, json.loads(path.read_text()) if path.exists() else {}


def run(name: str, factory: Factory, source: str, table: Table, options: argparse.Namespace) -> list[Outcome]:
    """Run a method's searches, one for each seed, unless the cache has them for the same source code."""
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


class _Task(NamedTuple):
    case: Case
    name: str
    seed: int
    variants: Path | None


def _search(task: _Task) -> dict[str, Any] | str:
    """Run one search; returns an error message where a package is missing."""
    table, (_, trials, workers) = load_table(task.case.table), task.case
    make, _ = methods(task.variants)[task.name]
    try:
        decider = make(table.space, replace(table.search, seed=task.seed, trials=trials))
        return asdict(simulate(decider, table, seed=task.seed, workers=workers, budget=math.inf, trials=trials))
    except ImportError as error:
        return str(error)


def _one_thread() -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for libraries that are imported later


def _all(tasks: Sequence[Any], search: Callable[[Any], Any], jobs: int) -> Iterator[dict[str, Any] | str]:
    """Yield the results in order. Forked processes do not read source code that was edited meanwhile."""
    if jobs == 1:
        yield from map(search, tasks)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, context, initializer=_one_thread) as pool:
        yield from pool.map(search, tasks)


def _run_all(
    tasks: Sequence[Any], search: Callable[[Any], Any], caches: Mapping[Any, tuple[Path, dict[str, Any]]], jobs: int
) -> set[str]:
    """Run searches and write each outcome to its cache; returns the methods whose packages are missing."""
    left_out = set()
    for task, outcome in zip(tasks, _all(tasks, search, jobs), strict=True):
        if isinstance(outcome, str):
            left_out.add((task.name, outcome))
            continue
        path, done = caches[task.case, task.name]
        done[str(task.seed)] = outcome
        write_atomically(path, json.dumps(done, indent=1).encode())
    for name, error in sorted(left_out):
        print(f"{name}: left out, {error}; {MISSING}", file=sys.stderr)
    return {name for name, _ in left_out}


def run_budget(names: Sequence[str], options: argparse.Namespace) -> dict[Case, dict[str, list[Outcome]]]:
    """Run every case's searches by each method, one for each seed, unless the cache has them."""
    cases = [Case(*case) for case in product(options.table, options.trials, options.workers)]
    seeds, caches = range(options.first_seed, options.first_seed + options.seeds), {}
    for case, name in product(cases, names):
        table, (_, source) = load_table(case.table), methods(options.variants)[name]
        what = table.digest, asdict(table.top), case.trials, case.workers, source
        caches[case, name] = _cached(options.cache, f"{name} {case.trials}", *what)
    tasks = [
        _Task(case, name, seed, options.variants)
        for (case, name), (_, done) in caches.items()
        for seed in seeds
        if str(seed) not in done
    ]
    left_out = _run_all(tasks, _search, caches, options.jobs)
    available = [name for name in names if name not in left_out]
    return {
        case: {name: [Outcome(**caches[case, name][1][str(seed)]) for seed in seeds] for name in available}
        for case in cases
    }


def report_budget(results: Mapping[Case, Mapping[str, Sequence[Outcome]]], options: argparse.Namespace) -> str:
    """All tables and the overview, as Markdown or JSON."""
    summaries = {
        case: summarize_budget(of, load_table(case.table).best, options.subject) for case, of in results.items()
    }
    rows = [(case, row) for case, of in summaries.items() if (row := overview(of, options.subject)) is not None]
    if options.json:

        def as_json(case: Case) -> dict[str, Any]:
            return {**case._asdict(), "table": str(case.table)}

        content = {
            "tables": [{**as_json(case), "seeds": options.seeds, "methods": of} for case, of in summaries.items()],
            "overview": [{**as_json(case), **row} for case, row in rows],
        }
        return json.dumps(content, indent=2)
    parts = [markdown_budget(case, of, options.subject, options.seeds) for case, of in summaries.items()]
    return "\n\n".join([*parts, markdown_overview(rows, options.subject)] if rows else parts)


class _FrontTask(NamedTuple):
    case: FrontCase
    name: str
    seed: int
    variants: Path | None


def _front_search(task: _FrontTask) -> dict[str, Any] | str:
    """Run one search on several objectives; returns an error message where a package is missing."""
    case, landscape = task.case, load_landscape(task.case.table, task.case.objectives)
    make, _ = front_methods(task.variants)[task.name]
    search = replace(landscape.table.search, seed=task.seed, trials=case.trials or landscape.table.search.trials)
    limits = {"budget": case.epochs or math.inf, "trials": case.trials or math.inf, "varies": case.varies}
    try:
        decider = make(landscape.table.space, search)
        return asdict(simulate_front(decider, landscape, seed=task.seed, workers=case.workers, **limits))
    except ImportError as error:
        return str(error)


def run_front(names: Sequence[str], options: argparse.Namespace) -> dict[FrontCase, dict[str, list[FrontOutcome]]]:
    """Run every case's searches by each method, one for each seed, unless the cache has them."""
    objectives = tuple(options.objectives.split(","))
    sizes = [(trials, None) for trials in options.trials] + [(None, epochs) for epochs in options.epochs]
    cases = [
        FrontCase(table, objectives, workers, *size, not options.equal)
        for table, workers, size in product(options.table, options.workers, sizes)
    ]
    seeds, caches = range(options.first_seed, options.first_seed + options.seeds), {}
    for case, name in product(cases, names):
        landscape, (_, source) = load_landscape(case.table, objectives), front_methods(options.variants)[name]
        what = landscape.digest, *case[1:], source, inspect.getsource(replay_front)
        caches[case, name] = _cached(options.cache, f"front {name} {case.trials or case.epochs}", *what)
    tasks = [
        _FrontTask(case, name, seed, options.variants)
        for (case, name), (_, done) in caches.items()
        for seed in seeds
        if str(seed) not in done
    ]
    left_out = _run_all(tasks, _front_search, caches, options.jobs)
    return {
        case: {
            name: [FrontOutcome(**caches[case, name][1][str(seed)]) for seed in seeds]
            for name in names
            if name not in left_out
        }
        for case in cases
    }


def report_front(results: Mapping[FrontCase, Mapping[str, Sequence[FrontOutcome]]], options: argparse.Namespace) -> str:
    """All tables, as Markdown or JSON."""
    summaries = {case: summarize_front(of, options.subject) for case, of in results.items()}
    if options.json:
        rows = [{**case._asdict(), "table": case.table.name, "methods": of} for case, of in summaries.items()]
        return json.dumps(rows, indent=2)
    return "\n\n".join(markdown_front(case, of, options.subject, options.seeds) for case, of in summaries.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="turn a finished search into a table of curves")
    recording.add_argument("runs", type=Path)
    recording.add_argument("name")
    recording.add_argument("--table", type=Path, default=TABLE)
    comparison = commands.add_parser("compare", help="searches until they find a top configuration")
    comparison.add_argument("--table", type=Path, default=TABLE)
    comparison.add_argument("--seeds", type=int, default=30)
    comparison.add_argument("--workers", type=int, default=4)
    comparison.add_argument("--top", type=float, default=TOP, help="share of the space that counts as found")
    comparison.add_argument("--neighbours", type=int, default=1, help="recorded curves that make one by their mean")
    comparison.add_argument("--budget", type=int, default=3_000, help="epochs after which a search ends")
    budget = commands.add_parser("budget", help="searches of so many trials over tables of curves")
    budget.add_argument("--table", type=Path, nargs="+", default=[TABLE])
    budget.add_argument("--trials", type=int, nargs="+", default=[16, 24, 60])
    budget.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    budget.add_argument("--seeds", type=int, default=60)
    budget.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    budget.add_argument("--subject", default="ours", help="the method that is compared with the others")
    front = commands.add_parser("front", help="searches on several objectives: hypervolume over epochs")
    front.add_argument("--table", type=Path, nargs="+", default=[ARCHITECTURE])
    front.add_argument("--objectives", default="psnr,latency", help="separated by commas")
    front.add_argument("--trials", type=int, nargs="*", default=[], help="searches of so many trials")
    front.add_argument(
        "--epochs", type=int, nargs="*", default=[], help="searches that end after so many epochs of all trials"
    )
    front.add_argument("--equal", action="store_true", help="trainings of one configuration do not differ by chance")
    front.add_argument("--workers", type=int, nargs="+", default=[4])
    front.add_argument("--seeds", type=int, default=60)
    front.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    front.add_argument("--subject", default="ours", help="the method that is compared with the others")
    figures = commands.add_parser("figures", help="measure what is known of a table's configurations before training")
    figures.add_argument("--table", type=Path, default=ARCHITECTURE)
    for command, names in ((comparison, METHODS), (budget, METHODS), (front, FRONT_METHODS)):
        command.add_argument("--methods", help=f"separated by semicolons or commas; all of: {'; '.join(names)}")
        command.add_argument("--variants", type=Path, help="a Python file with further METHODS (name: factory)")
        command.add_argument("--first-seed", type=int, default=0)
        command.add_argument("--cache", type=Path, default=Path("runs/replay"), help="folder of finished replays")
        command.add_argument("--json", action="store_true")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "figures":
        text = json.dumps(measure_figures(options.table), indent=1)
        figures_file(options.table).write_text(f"{text}\n")
        return
    if options.command == "record":
        options.table.write_bytes(record(options.runs, options.name))
        return

    available = (front_methods if options.command == "front" else methods)(options.variants)
    chosen = re.split(r"\s*[;,]\s*", options.methods) if options.methods else list(available)
    if unknown := sorted(set(chosen) - set(available)):
        parser.error(f"no such method: {', '.join(unknown)}; there are: {', '.join(available)}")
    if options.command == "front":
        print(report_front(run_front(chosen, options), options))
        return
    if options.command == "budget":
        print(report_budget(run_budget(chosen, options), options))
        return
    table, results = Table(options.table.read_bytes(), options.top, options.neighbours), {}
    for name in chosen:
        try:
            results[name] = run(name, *available[name], table, options)
        except ImportError as error:
            print(f"{name}: left out, {error}; {MISSING}", file=sys.stderr)
    summary = summarize(results, table.top, options.budget)
    if options.json:
        print(json.dumps({"top": asdict(table.top), "methods": summary}, indent=2))
    else:
        print(markdown(summary, table, options))


if __name__ == "__main__":
    main()
