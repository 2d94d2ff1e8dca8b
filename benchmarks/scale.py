"""What a search costs when it is large, without any training: python benchmarks/scale.py record|tune [--json]

record: what the driver pays for a suggestion and a report, in time and memory, at 100, 300 and 1,000 recorded trials.
tune: many one-second trials that only sleep, on many slots, under our search and under stock Ray Tune with OptunaSearch
and ASHA at its fastest: what both need beyond the sleep. Stock keeps nothing: killed, it begins anew.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `hpo search`; NumPy reads it when it is imported

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console

import search_spaces
from hpo.cluster.budget import TimeAndCostBudget
from hpo.policy import suggestions
from hpo.policy.search_config import SearchConfig
from hpo.run import trials as trials_phase
from hpo.run.context import SearchContext
from hpo.search_controller import SearchController
from hpo.store.record import Record
from hpo.store.study_replication import StorageReplicator
from hpo.tune import ray_session
from hpo.views.progress import Progress
from model.config import TrainConfig
from model.training_report import EvalReport
from search_spaces import losses_and_rates

EPOCHS, IN_FLIGHT = 12, 16
SIZES = (100, 300, 1_000)
SAMPLES = 40  # suggestions timed at each size
TARGET_MS = 50.0  # of a suggestion, 95th percentile
STEPS = "SCALE_STEPS"  # environment variable: the file where each step writes down its start


def synthetic_report(epoch: int, config: dict[str, Any]) -> dict[str, Any]:
    """A learning curve that is a function of the configuration: fast rates begin well, above 3e-3 they diverge."""
    luck = random.Random(repr(sorted(config.items()))).gauss(0, 0.005)
    best = 0.9 + luck - 0.05 * abs(math.log10(config["lr_g"] / 5e-4)) - 0.02 * abs(math.log10(config["lr_d"] / 2e-4))
    ssim = best - 0.4 / (1 + epoch * 2000 * config["lr_g"])
    if config["lr_g"] > 3e-3 and epoch >= 2:
        ssim = math.nan
    values = {"gen_total": 10.0, "gen_adversarial": 1.0, "gen_reconstruction": 9.0, "disc_real": 0.5}
    values |= {"disc_generated": 0.5, "noisy_psnr_db": 20.55, "output_std": 0.5, "l1": 0.1}
    values |= {"seconds": 1.0, "eval_seconds": 0.0}
    return {"epoch": epoch, "images": 1000 * epoch, "ssim": ssim, "psnr_db": 21 + 5 * ssim, **values}


# --- record ---------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Seconds of each call, by name: on the wall, and of this process's CPU, which a busy machine changes less."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its calls timed."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))

        return call

    def figures(self, name: str) -> dict[str, float]:
        """Of the calls so far, which are then forgotten."""
        wall, cpu = zip(*self.seconds.pop(name), strict=True)
        found: dict[str, float] = {"calls": len(wall)}
        for clock, seconds in {"": wall, "cpu_": cpu}.items():
            p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
            found |= {f"{clock}median_ms": 1e3 * statistics.median(seconds), f"{clock}p95_ms": 1e3 * p95}
        return found


def measure_record(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """One search of as many trials, measured each time it reaches a size: from there on, for SAMPLES trials."""
    watch = Stopwatch()
    suggestions.suggest = watch.timed("suggest", suggestions.suggest)
    space = search_spaces.load("losses_and_rates")
    asked = SearchConfig(trials=max(sizes) + SAMPLES, epochs=EPOCHS)
    screens = {
        "table": Console(file=io.StringIO(), force_terminal=True, width=120, height=50),
        "lines": Console(file=io.StringIO()),
    }
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        record = Record.create(Path(folder), "scale", asked)
        controller = SearchController(record, space)
        next_trial, hear = watch.timed("next trial", controller.next_trial), watch.timed("report", controller.on_report)
        told: dict[int, list[EvalReport]] = {}

        def fill_until(trials: int) -> None:
            """IN_FLIGHT trials take turns."""
            turns: deque[int] = deque(told)
            while len(record.trials()) < trials:
                if len(turns) < IN_FLIGHT:
                    turns.append(next_trial().number)
                number = turns.popleft()
                reports = told.setdefault(number, [])
                config = record.trial(number).params
                reports.append(EvalReport.from_dict(synthetic_report(len(reports) + 1, config)))
                if hear(number, reports).action == "continue":
                    turns.append(number)
                else:
                    del told[number]

        for size in sizes:
            fill_until(size)
            watch.seconds.clear()
            fill_until(size + SAMPLES)
            figures = {name: watch.figures(name) for name in ("suggest", "next trial", "report")}
            trials = watch.timed("open", Record)(Path(folder), "scale").trials()
            figures["open"] = watch.figures("open")
            for name, screen in screens.items():
                progress = Progress(asked, "scale", IN_FLIGHT, screen)
                for trial in trials:
                    progress.on_trial_update(trial)
                for _ in range(SAMPLES):
                    watch.timed(name, progress._draw)()
                progress.close()
                figures[name] = watch.figures(name)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            measured.append(
                {
                    "trials": size,
                    "reports": sum(len(trial.intermediate_values) for trial in trials),
                    "rss_mb": pages * resource.getpagesize() / 1e6,
                    "calls": figures,
                }
            )
    return measured


def print_record(measured: list[dict[str, Any]]) -> None:
    """A Markdown table; then whether it is as fast as it must be."""
    print("| ms: median / p95 (of it CPU) | " + " | ".join(f"{row['trials']} trials" for row in measured) + " |")
    print("|---" * (1 + len(measured)) + "|")
    for name in measured[0]["calls"]:
        cells = [row["calls"][name] for row in measured]
        texts = (
            "{median_ms:.1f} / {p95_ms:.1f} ({cpu_median_ms:.1f} / {cpu_p95_ms:.1f})".format_map(cell) for cell in cells
        )
        print(f"| {name} | {' | '.join(texts)} |")
    print("| memory, MB | " + " | ".join(f"{row['rss_mb']:.0f}" for row in measured) + " |")
    print("| reports | " + " | ".join(f"{row['reports']:,}" for row in measured) + " |")
    first, last = measured[0], measured[-1]
    p95 = max(row["calls"]["next trial"]["p95_ms"] for row in measured)
    growth = last["calls"]["next trial"]["median_ms"] / first["calls"]["next trial"]["median_ms"]
    linear = last["trials"] / first["trials"]
    print(f"\nsuggestion with its write, p95: {p95:.1f} ms, target {TARGET_MS:.0f} ms: {_verdict(p95 <= TARGET_MS)}")
    print(
        f"growth over {linear:.0f} times the trials: {growth:.1f} times, at most linear: {_verdict(growth <= linear)}"
    )


def _verdict(holds: bool) -> str:
    return "holds" if holds else "MISSED"


# --- tune -----------------------------------------------------------------------------------------------------------


class SleepingTrial(tune.Trainable):
    """In place of the training: sleeps a second. It knows nothing of ours, so that workers don't import torch."""

    def setup(self, config: dict[str, Any], images: Any = None) -> None:
        self._config = config["train"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        with open(os.environ[STEPS], "a") as steps:  # appended in one write: the slots share it
            steps.write(f"{time.monotonic()}\n")
        time.sleep(1)
        report = synthetic_report(1, {name: self._config[name] for name in ("lr_g", "lr_d")})
        return {"epoch": 1, "reports": [report], "step_seconds": 1.0, "value": report["ssim"]}


def run_ours(trials: int, slots: int, folder: Path) -> tuple[float, float]:
    """hpo.run.trials's own phase, table and all, with sleep for training; gives its begin and end."""
    trials_phase.Pix2PixTrial = SleepingTrial
    ray.init = functools.partial(ray.init, num_cpus=slots)
    asked = SearchConfig(trials=trials, epochs=1, max_concurrent=slots, gpus_per_trial=0, wandb="disabled")
    with ray_session.RaySession(asked) as cluster:
        record = Record.create(folder, "scale", asked)
        console = Console(stderr=True, quiet=True)
        progress = Progress(asked, "scale", cluster.slots, console, folder=record.folder)
        context = SearchContext(
            record=record,
            replicator=StorageReplicator(record, None, lambda _: None),
            images_ref=None,
            cluster=cluster,
            budget=TimeAndCostBudget(asked, record.trials, None),
            console=console,
            progress=progress,
        )
        began = time.monotonic()
        trials_phase.run_trials(context, search_spaces.load("losses_and_rates"))
        ended = time.monotonic()
        states = [trial.state.name for trial in record.trials()]
        assert states == ["COMPLETE"] * trials, states
    return began, ended


def suggest_for_stock(trial: Any) -> dict[str, Any]:
    """Our space; Ray pickles it."""
    return {"train": losses_and_rates.suggest(trial, TrainConfig()).as_dict()}


def run_stock(trials: int, slots: int, folder: Path) -> tuple[float, float]:
    """The same by the book: OptunaSearch in memory, ASHA, actors used again, neither files nor output."""
    ray.init = functools.partial(ray.init, num_cpus=slots)
    asked = SearchConfig(trials=trials, epochs=1, max_concurrent=slots, gpus_per_trial=0)
    with ray_session.RaySession(asked):
        began = time.monotonic()
        tuner = tune.Tuner(
            tune.with_resources(SleepingTrial, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(suggest_for_stock, metric="value", mode="max", seed=0),
                scheduler=ASHAScheduler(metric="value", mode="max", time_attr="training_iteration", max_t=1),
                num_samples=trials,
                max_concurrent_trials=slots,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                storage_path=str(folder),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        outcome = tuner.fit()
        ended = time.monotonic()
        assert len(outcome) == trials
        assert outcome.num_errors == 0
    return began, ended


RUNS = {"ours": run_ours, "stock": run_stock}


def measure_one(name: str, trials: int, slots: int) -> dict[str, Any]:
    """In this process: Ray starts, which is not counted, and one of the two runs."""
    with tempfile.TemporaryDirectory() as folder:
        steps = Path(folder) / "steps"
        os.environ[STEPS] = str(steps)
        began, ended = RUNS[name](trials, slots, Path(folder) / "runs")
        starts = [float(line) for line in steps.read_text().split()]
    assert len(starts) == trials, f"{len(starts)} steps"
    seconds, ideal = ended - began, trials / slots
    first = min(starts) - began
    return {"seconds": seconds, "overhead": seconds / ideal - 1, "set_up_seconds": first}


def measure_tune(trials: int, slots: int) -> dict[str, Any]:
    """Both, one after the other, in a process each."""
    measured: dict[str, Any] = {"trials": trials, "slots": slots, "ideal_seconds": trials / slots}
    for name in RUNS:
        command = [sys.executable, __file__, "tune", "--only", name, "--trials", str(trials), "--slots", str(slots)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured[name] = json.loads(done.stdout.splitlines()[-1])
    measured["ratio"] = measured["ours"]["overhead"] / measured["stock"]["overhead"]
    return measured


def print_tune(measured: dict[str, Any]) -> None:
    """A Markdown list."""
    ideal = measured["ideal_seconds"]
    print(f"{measured['trials']} one-second trials on {measured['slots']} slots: {ideal:.1f} s ideal")
    for name in RUNS:
        run = measured[name]
        print(
            f"- {name}: {run['seconds']:.1f} s, overhead {100 * run['overhead']:.1f} %; "
            f"{run['set_up_seconds']:.1f} s of it before the first trial"
        )
    print(f"- ours / stock: {measured['ratio']:.2f} of its overhead; stock, killed, has nothing on record")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "tune"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="record: trials on record")
    parser.add_argument("--trials", type=int, default=1_000, help="tune: in all")
    parser.add_argument("--slots", type=int, default=16, help="tune: at a time")
    parser.add_argument("--only", choices=RUNS, help="tune: this one alone, as JSON")
    given = parser.parse_args()

    def report(measured: Any, as_text: Callable[[Any], None]) -> None:
        if given.json:
            load = os.getloadavg()[0]  # others' work on this machine makes every figure worse
            print(json.dumps({"cores": os.cpu_count(), "load": load, given.what: measured}, indent=2))
        else:
            as_text(measured)

    if given.only:
        print(json.dumps(measure_one(given.only, given.trials, given.slots)))
        return
    if given.what == "tune":
        report(measure_tune(given.trials, given.slots), print_tune)
    else:
        report(measure_record(tuple(given.sizes)), print_record)


if __name__ == "__main__":
    main()
