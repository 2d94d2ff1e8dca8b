"""Parts of benchmarks/gpu_check.py that start processes: trainings side by side, and `hpo search` itself."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from gpu_table import Row, last_line, measured, shorten, unavailable
from gpu_training import CPU, NOT_FINITE, SCRIPT, SIDE, WARM_UP_STEPS, Check, blobs, time_steps
from plain_pix2pix import NOISE_STD

ROOT = Path(__file__).resolve().parents[1]
WORKER = "side"

# --- trainings side by side -----------------------------------------------------------------------------------------


def side_by_side(check: Check) -> Iterator[Row]:
    """Several trainings, each in its process as Ray's trials are, beside one of them alone."""
    count, before = check.sizes.side_by_side, _in_use(check.device)
    with ExitStack() as running:
        first = running.enter_context(closing(TrainingProcess(check)))
        first.expect("ready")
        first.start()
        alone = first.expect("measured")
        sides = [first, *(running.enter_context(closing(TrainingProcess(check))) for _ in range(count - 1))]
        for side in sides[1:]:
            side.expect("ready")
        for side in sides:
            side.start()
        results = [side.expect("measured") for side in sides]
        after = _in_use(check.device)  # they wait, and hold their memory
    total, one = sum(each["images_per_second"] for each in results), alone["images_per_second"]
    yield measured(
        f"{count} trainings side by side, {check.size}",
        f"{total:,.0f} images/s in all",
        f"one alone: {one:,.0f} images/s; ratio {total / one:.2f}",
        "" if all(each["finite"] for each in results) else NOT_FINITE,
        **{"images_per_second": total, "alone": one, "ratio": total / one, "processes": len(results)},
    )
    of_each, in_use = "memory of each of them", "memory in use on the device"
    if check.device.type != "cuda":
        yield unavailable(of_each, "no GPU", excused=True)
        yield unavailable(in_use, "no GPU", excused=True)
        return
    most = {name: max(each[name] for each in results) for name in ("allocated", "reserved")}
    texts = [f"at most {_mib(size)} {name} by torch" for name, size in most.items()]
    yield measured(of_each, texts[0], texts[1], **most)
    yield measured(
        in_use,
        f"{_mib(after)} with {count} trainings, {_mib((after - before) / count)} for each",
        f"{_mib(before)} before; the device has {_mib(torch.cuda.mem_get_info(check.device)[1])}",
        before=before,
        after=after,
    )


def _in_use(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


class TrainingProcess:
    """A training in a process of its own, which measures on request."""

    def __init__(self, check: Check) -> None:
        command = [sys.executable, str(SCRIPT), *check.arguments, "--part", WORKER]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self) -> None:
        """Start a measurement."""
        assert self._process.stdin
        print(file=self._process.stdin, flush=True)

    def expect(self, kind: str) -> dict[str, Any]:
        """Wait for its next message, which must be of this kind. Raises RuntimeError."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        message: dict[str, Any] = json.loads(line) if line else {"kind": "nothing and ended"}
        if message["kind"] != kind:
            raise RuntimeError(f"one of the trainings sent {message['kind']}")
        return message

    def close(self) -> None:
        """End it: it ends with its input."""
        self._process.communicate()


def serve_measurements(check: Check, out: IO[str]) -> None:
    """Run in the process of TrainingProcess: measure at each line of stdin."""

    def send(kind: str, **values: Any) -> None:
        print(json.dumps({"kind": kind, **values}), file=out, flush=True)

    try:
        config = check.config()
        training, shown = check.start_training(config)
        next_step = partial(training.next_step, shown)
        time_steps(next_step, WARM_UP_STEPS, check.device)
        warm_seconds = time_steps(next_step, WARM_UP_STEPS, check.device)
        slice_steps = max(1, round(check.seconds / 10 * WARM_UP_STEPS / warm_seconds))
        send("ready")
        for _ in sys.stdin:
            steps, began = 0, time.perf_counter()
            while time.perf_counter() - began < check.seconds:
                time_steps(next_step, slice_steps, check.device)
                steps += slice_steps
            seconds = time.perf_counter() - began
            finite = all(map(math.isfinite, training.totals.tolist()))
            on_gpu = check.device.type == "cuda"
            send(
                "measured",
                images_per_second=steps * config.batch_size / seconds,
                finite=finite,
                allocated=torch.cuda.max_memory_allocated() if on_gpu else 0,
                reserved=torch.cuda.max_memory_reserved() if on_gpu else 0,
            )
    except Exception as error:
        send(shorten(error))  # such as out of memory


# --- hpo search -----------------------------------------------------------------------------------------------------

SEARCH_TITLE = "hpo search, four trials on quarter GPUs"
_TRIALS, _EPOCHS = 4, 4
# At these learning rates no trial diverges.
_SPACE = """from dataclasses import replace


def suggest(trial, base):
    return replace(base, lr_g=trial.suggest_float("lr_g", 1e-4, 4e-4, log=True))
"""


def search(check: Check) -> Iterator[Row]:
    """Four trials on quarters of the GPU, by `hpo search`, on PNGs in a folder that is gone afterwards."""
    try:
        from PIL import Image  # noqa: PLC0415

        import hpo.run.search  # noqa: F401, PLC0415 - needs Ray and more
    except ImportError as error:
        yield unavailable(SEARCH_TITLE, f"left out: {error}", excused=True)
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        pictures, space, runs = Path(folder, "images"), Path(folder, "space.py"), Path(folder, "runs")
        pictures.mkdir()
        for number, image in enumerate(blobs(400)):
            Image.fromarray(image[0]).save(pictures / f"{number}.png")
        space.write_text(_SPACE)
        extra = []
        if check.device == CPU:
            extra = ["--allow-cpu", "--address", running.enter_context(_cluster_with_a_fake_gpu())]
        settings = {"width": check.sizes.width, "batch_size": check.sizes.batch, "dropout": 0.0, "output": "residual"}
        options = {
            "--runs": runs, "--space": space, "--data": pictures, "--crop": SIDE, "--noise": f"gaussian:{NOISE_STD:g}",
            "--trials": _TRIALS, "--epochs": _EPOCHS, "--images-per-epoch": check.sizes.epoch, "--sampler": "random",
            "--pruner": "none", "--gpus-per-trial": 0.25, "--cpus-per-trial": 0.25, "--wandb": "disabled",
        }  # fmt: skip
        words = [str(word) for option in options.items() for word in option]
        words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        command = [sys.executable, "-m", "hpo.cli", "search", "check", *words, *extra]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        yield from _search_rows(runs, _run_search(command, os.environ | {"PYTHONPATH": path}), check.device == CPU)


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """How the command ended."""

    code: int
    seconds: float
    last_line: str  # of stderr
    max_processes: int  # of trials, at the same time


def _run_search(command: Sequence[str], environment: Mapping[str, str]) -> SearchOutcome:
    import psutil  # type: ignore[import-untyped]  # noqa: PLC0415 - Ray brings it

    began, max_processes = time.perf_counter(), 0
    with ExitStack() as opened:
        log = opened.enter_context(tempfile.TemporaryFile("w+"))
        process = opened.enter_context(
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        )
        while process.poll() is None:
            running = 0
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    running += "Trainable" in " ".join(child.cmdline()[:1])  # Ray's name for them
            max_processes = max(max_processes, running)
            time.sleep(0.5)
        log.seek(0)
        sys.stderr.write(text := log.read())
    seconds = time.perf_counter() - began
    return SearchOutcome(
        code=process.returncode, seconds=seconds, last_line=last_line(text), max_processes=max_processes
    )


@contextmanager
def _cluster_with_a_fake_gpu() -> Iterator[str]:
    """Yield the address of a node whose GPU exists only for Ray."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # without it trials get only idle CPU time: minutes
    node = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=node)
    signal.signal(signal.SIGTERM, exit_on_signal)  # Ray has set its own handler
    try:
        yield nodes.address
    finally:
        nodes.shutdown()


def exit_on_signal(*_: object) -> None:
    """End by SystemExit, so that every context manager cleans up."""
    sys.exit(128 + signal.SIGTERM)


def _search_rows(runs: Path, ended: SearchOutcome, on_cpu: bool) -> Iterator[Row]:
    from hpo.policy import leaderboard  # noqa: PLC0415
    from hpo.store.record import Record  # noqa: PLC0415

    trials = []
    if (runs / "check").exists():
        trials = Record(runs, "check", read_only=True).trials()
    rows = [leaderboard.row(trial, "balanced") for trial in trials]
    whole = sum(row["stop_reason"] == "finished" for row in rows)
    yield measured(
        SEARCH_TITLE,
        f"{whole} of {_TRIALS} trained to their end",
        f"hpo search: exit code {ended.code} after {ended.seconds:.0f} s",
        "" if ended.code == 0 and whole == _TRIALS else ended.last_line,
        **{"finished": whole, "exit_code": ended.code, "seconds": ended.seconds},
    )
    if whole < _TRIALS:
        return
    # The record has no start times; a trial trains right up to its end.
    ends = [trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete]
    spent = [sum(report.seconds + report.eval_seconds for report in leaderboard.reports_of(trial)) for trial in trials]
    shared = max(0.0, min(ends) - max(end - trained for end, trained in zip(ends, spent, strict=True)))
    # A CPU may train them one after the other.
    ran_together = ended.max_processes >= _TRIALS and (shared > 0 or on_cpu)
    yield measured(
        "these trials at the same time",
        f"{ended.max_processes} processes, all of which trained for {shared:.1f} s",
        f"each trained for {min(spent):.1f} to {max(spent):.1f} s",
        "" if ran_together else "they did not all run at once",
        **{"processes": ended.max_processes, "seconds": shared, "shortest": min(spent), "longest": max(spent)},
    )
    speeds = [row["images_per_second"] for row in rows]
    figure = ", ".join(f"{per_second:,.0f}" for per_second in speeds)
    numbers = {f"trial {number}": per_second for number, per_second in enumerate(speeds)}
    yield measured("images/s of each of them", figure, f"{sum(speeds):,.0f} in all, without validation", **numbers)
