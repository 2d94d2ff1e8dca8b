"""The same faults under stock Ray Tune and under `hpo search`: python benchmarks/faults.py [--only FAULT ...] [--json]

Both run the same five small trials, two at a time, under ASHA with the same rungs; benchmarks/stock.py is the stock
search, written as Ray's documentation shows it. A fault strikes while the third trial is in its second epoch; what it
ended is continued by the same command. One row a fault; "survived" means, for both alike:

1. trials that had finished stay finished and are not trained again, and all five come to an end;
2. the best checkpoint loads, and measured again it gives the recorded figures;
3. no trial repeats more than the one epoch that was under way;
4. the exit code is 0 when all is done and only then, and what is not done can be continued;
5. ten seconds after a driver's end no process of its is left.

Whoever takes longer than --limit hangs. The full disk needs root, to mount a small one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import stock
import torch
from ray import tune
from ray.cluster_utils import Cluster
from survival import ENDS, EPOCHS, GRACE, REDUCTION, TRIALS, Ending, Line, complaints, is_done

from hpo.policy import leaderboard, trial_attributes
from hpo.policy.search_config import SEARCH_FILE
from hpo.store import search_results
from hpo.store.file_names import STUDY_FILE
from hpo.store.record import Record
from model.checkpoint import load_checkpoint
from model.common.machine import processor
from model.trainer import load_generator
from model.training_files import BEST

import psutil  # isort: skip - found once Ray is imported

HERE = Path(__file__).absolute().parent
MARK = "FAULTS_BENCHMARK"  # environment variable of everything that a driver starts
HELD_SECONDS, SETTLED_SECONDS = 8.0, 4.0  # epochs are held when it is time, and the fault strikes amid them
FLIPS = 20
Outcome = dict[str, Any]

# --- the two sides --------------------------------------------------------------------------------------------------


def key_of(config: dict[str, Any]) -> str:
    """As in the trace."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


class Stock:
    """Ray Tune, OptunaSearch, ASHAScheduler."""

    name = "stock"

    def __init__(self, runs: Path) -> None:
        self.runs, self.folder = runs, runs / stock.NAME
        self.use = [stock.__file__, str(runs), "--evaluate"]  # the best checkpoint
        self.load, self.best_again = stock.load, partial(stock.best_again, runs)

    def command(self, address: str = "local", gpus: int = 0) -> list[str]:
        return [stock.__file__, str(self.runs), "--address", address, "--gpus", str(gpus)]

    def finished(self) -> set[str]:
        ended = [t for t in tune.ExperimentAnalysis(str(self.folder)).trials if t.status == "TERMINATED"]
        return {key_of(t.config["train"]) for t in ended if t.last_result.get("training_iteration") in ENDS}

    def best_file(self) -> Path:
        return Path(stock.best(self.runs).checkpoint.path) / stock.FILE

    def state_files(self) -> list[Path]:
        return [max(self.folder.glob(kind)) for kind in ("experiment_state-*.json", "searcher-state-*.pkl")]

    def states(self) -> list[str]:
        return stock.states(self.runs)


class Ours:
    """`hpo search`."""

    name = "ours"

    def __init__(self, runs: Path) -> None:
        self.runs, self.folder = runs, runs / stock.NAME
        self.use = ["-m", "hpo.cli", "export", stock.NAME, f"--runs={runs}"]

    def command(self, address: str = "local", gpus: int = 0) -> list[str]:
        options = {"trials": TRIALS, "epochs": EPOCHS, "images-per-epoch": stock.IMAGES}
        options |= {"pruner": "former-asha", "grace-period": GRACE, "reduction-factor": REDUCTION, "objective": "ssim"}
        options |= {"max-concurrent": 2, "wandb": "disabled", "address": address, "gpus-per-trial": gpus}
        asked = [f"--{name}={value}" for name, value in {**options, "runs": self.runs}.items()]
        return ["-m", "hpo.cli", "search", stock.NAME, *asked, *(f"--set={n}={v}" for n, v in stock.SMALL.items())]

    def record(self) -> Record:
        return Record(self.runs, stock.NAME)

    def finished(self) -> set[str]:
        ended = [trial for trial in self.record().trials() if trial.state.name in ("COMPLETE", "PRUNED")]
        return {key_of(trial.user_attrs[trial_attributes.CONFIG]) for trial in ended}

    def best_again(self) -> tuple[dict[str, float], dict[str, float]]:
        record = self.record()
        best = leaderboard.best_report(record.trial(search_results.winner(record)), "ssim")
        generator, _ = load_generator(self.best_file(), channels=1, image_size=32)
        return {name: getattr(best, name) for name in ("ssim", "psnr_db")}, stock.measured(generator)

    def best_file(self) -> Path:
        record = self.record()
        return record.trial_folder(search_results.winner(record)) / BEST

    def load(self, file: Path) -> dict[str, torch.Tensor]:
        return load_checkpoint(file)[0]

    def state_files(self) -> list[Path]:
        return [self.folder / SEARCH_FILE, self.folder / STUDY_FILE]

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.record().trials()]


Side = Stock | Ours
Driver = subprocess.Popen[bytes]


# --- a search under way ---------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A side's search in a folder of its own. Everything that it starts carries its mark."""

    side: Side
    folder: Path
    limit: float
    settings: dict[str, str] = field(default_factory=lambda: {"HELD": "0", "LEARNING_RATE": ""})  # benchmarks/traced
    options: dict[str, Any] = field(default_factory=dict)  # of the command
    excused: Collection[str] = ()
    endings: list[Ending] = field(default_factory=list)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def environment(self, attempt: int) -> dict[str, str]:
        """Of a driver; Ray's processes inherit it."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("WANDB_", "RAY_", "TUNE_"))}
        paths = os.pathsep.join([str(HERE / "traced"), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        own = {MARK: self.mark, "TRACE": str(self.folder / "trace"), "ATTEMPT": str(attempt), "PYTHONPATH": paths}
        ray = {"RAY_TMPDIR": str(self.folder), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        ray |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # loopback
        return kept | ray | own | self.settings

    def start(self, attempt: int, command: Sequence[str] | None = None) -> Driver:
        """In a process group of its own, as a shell would."""
        command = [sys.executable, *(command or self.side.command(**self.options))]
        devices = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "process_group": 0}
        with (self.folder / f"words-{attempt}").open("wb") as words:
            return Driver(command, cwd=self.folder, env=self.environment(attempt), stderr=words, **devices)

    def lines(self) -> list[Line]:
        """The trace so far."""
        path = self.folder / "trace"
        parts = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [Line(int(a), int(pid), event, key, int(epoch)) for a, pid, event, key, epoch, _ in parts]

    def third(self) -> list[Line]:
        """Of the third trial, once it has begun."""
        key = list(dict.fromkeys(line.key for line in self.lines()))[2:3]
        return [line for line in self.lines() if line.key in key]

    def processes(self) -> list[psutil.Process]:
        """All that live."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get(MARK) == self.mark and process.status() != "zombie":
                    found.append(process)
        return found

    def clear(self) -> None:
        """End everything of it."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def end(self, driver: Driver, attempt: int = 0, *, alone: bool = True) -> None:
        """Wait for it, and see what it leaves. alone: no other driver runs beside it."""
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = driver.wait(self.limit)
        done, since, left = is_done(self.lines(), self.excused), time.monotonic(), 0
        while alone and code is not None and (left := len(self.processes())) and time.monotonic() < since + 10:
            time.sleep(0.2)
        if alone:
            self.clear()
        words = (self.folder / f"words-{attempt}").read_text(errors="replace").strip()
        self.endings.append(Ending(code, done, left, words.rpartition("\n")[2][-300:]))

    def run(self, attempt: int = 0, command: Sequence[str] | None = None) -> Ending:
        """A driver that is left alone."""
        self.end(self.start(attempt, command), attempt)
        return self.endings[-1]

    def until_struck(self, strike: Strike, settled: float = SETTLED_SECONDS) -> set[str]:
        """The first driver, to its end. Gives what had finished by then. settled: seconds in which nothing happens but
        that state is written."""
        self.settings["HELD"] = str(HELD_SECONDS)
        driver, since = self.start(0), time.monotonic()

        def second_epoch() -> Line | None:
            return next((line for line in self.third() if line.epoch == 2), None)

        while not (victim := second_epoch()) and driver.poll() is None and time.monotonic() < since + self.limit:
            time.sleep(0.1)
        if victim and driver.poll() is None:
            time.sleep(settled)
            strike(self, driver, victim)
        self.end(driver)
        return self.finished()

    def finished(self) -> set[str]:
        """None where the record cannot be read."""
        with contextlib.suppress(Exception):
            return self.side.finished()
        return set()

    def complaints(self, before: Collection[str] = ()) -> list[str]:
        """By all rules."""
        found = complaints(self.lines(), self.endings, (before, self.finished()), self.excused)
        try:
            recorded, measured = self.side.best_again()
        except Exception as error:
            return [*found, f"the best checkpoint is not to be had ({type(error).__name__})"]
        same = all(math.isclose(value, measured[name], rel_tol=1e-4) for name, value in recorded.items())
        return found if same else [*found, "the best checkpoint is not what was recorded"]

    def outcome(self, found: Sequence[str], fine: str = "nothing lost") -> Outcome:
        """One cell of the table."""
        codes = [e.code for e in self.endings]
        told = ["no end" if c is None else f"signal {-c}" if c < 0 else f"exit {c}" for c in codes]
        happened = "; ".join([", then ".join(told), *(found or [fine])])
        return {"happened": happened, "survived": not found, "last_words": [e.last_words for e in self.endings]}


Strike = Callable[[Scene, Driver, Line], None]

# --- the faults -----------------------------------------------------------------------------------------------------


def undisturbed(scene: Scene) -> Outcome:
    """What the rules say then."""
    scene.run()
    return scene.outcome(scene.complaints())


def struck(
    scene: Scene, strike: Strike, mend: Callable[[], None] = lambda: None, settled: float = SETTLED_SECONDS
) -> Outcome:
    """And continued, unless all is done, or it hangs."""
    before = scene.until_struck(strike, settled)
    mend()
    last = scene.endings[-1]
    if last.code or (last.code == 0 and not last.done):
        scene.run(len(scene.endings))
    return scene.outcome(scene.complaints(before))


def sent(scene: Scene, *, number: signal.Signals, to: str, settled: float = SETTLED_SECONDS) -> Outcome:
    """A signal, to the third trial's process, the driver, or its whole group, as a terminal sends it."""

    def strike(_: Scene, driver: Driver, victim: Line) -> None:
        if to == "group":
            os.killpg(driver.pid, number)
        else:
            os.kill(victim.pid if to == "trial" else driver.pid, number)

    return struck(scene, strike, settled=settled)


def started_twice(scene: Scene) -> Outcome:
    """The second while the first runs; its exit code is told first."""
    return struck(scene, lambda *_: scene.end(scene.start(1), 1, alone=False))


def full_disk(scene: Scene) -> Outcome:
    """Of 64 MB, which an undisturbed search needs half of."""
    runs, filler = scene.side.runs, scene.side.runs / "filler"
    runs.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", runs], check=False).returncode:
        return {"happened": "not tried: no permission to mount a small disk", "survived": None}

    def fill(*_: object) -> None:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass

    try:
        return struck(scene, fill, lambda: filler.unlink(missing_ok=True))
    finally:
        subprocess.run(["umount", "--lazy", runs], check=True)


def flipped_bits(scene: Scene) -> Outcome:
    """In the best checkpoint of a search that is done, one at a time; then one in the middle, and it is used."""
    scene.run()
    file, rng, different = scene.side.best_file(), random.Random(0), 0
    content, tensors = file.read_bytes(), scene.side.load(file)

    def flip(byte: int, bit: int) -> None:
        file.write_bytes(content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1 :])

    for _ in range(FLIPS):
        flip(rng.randrange(len(content)), rng.randrange(8))
        with contextlib.suppress(Exception):  # refused
            found = scene.side.load(file)
            different += not all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    flip(len(content) // 2, 6)
    used = scene.run(1, scene.side.use)
    found = [f"{different} of {FLIPS} load silently, with other weights"] if different else []
    return scene.outcome(found + ["used without a word"] * (used.code == 0), f"all of {FLIPS} refused")


def damaged_state(scene: Scene) -> Outcome:
    """Each file in turn cut in half, after the driver was killed: noticed, or made good. Then all is put back."""
    before = scene.until_struck(lambda _, driver, __: driver.kill())
    saved, first, found = scene.folder / "saved", scene.lines(), []
    shutil.copytree(scene.side.folder, saved)

    def complaints_when_continued() -> list[str]:
        attempt = len(scene.endings)
        ending = scene.run(attempt)
        lines = [line for line in scene.lines() if line.attempt in (0, attempt)]
        if ending.code and lines == first and attempt <= len(scene.side.state_files()):
            return []  # refused, and nothing touched
        return complaints(lines, [replace(ending, done=is_done(lines))], (before, scene.finished()))

    for file in scene.side.state_files():
        os.truncate(file, file.stat().st_size // 2)
        if wrong := complaints_when_continued():
            found.append(f"{file.name.partition('-20')[0]}: {', '.join(wrong)}")
        shutil.rmtree(scene.side.folder)
        shutil.copytree(saved, scene.side.folder)
    found = found or complaints_when_continued()
    return scene.outcome(found, "noticed; nothing lost once it is put back")


def not_a_number(scene: Scene) -> Outcome:
    """The third trial's losses, from its first step on."""
    scene.settings["LEARNING_RATE"] = "1e30"
    driver = scene.start(0)
    while driver.poll() is None and not scene.third():
        time.sleep(0.1)
    scene.excused = {line.key for line in scene.third()}
    scene.end(driver)
    wasted, told = max(line.epoch for line in scene.third()) - 1, scene.side.states()
    found = [f"epochs of NaN trained after the first: {wasted}"] * (wasted > 0)
    found += ["Optuna is never told that it ended"] * ("RUNNING" in told)
    return scene.outcome([*found, *scene.complaints()], "ended at once")


@contextmanager
def cluster(scene: Scene, *nodes: dict[str, float]) -> Iterator[subprocess.Popen[str]]:
    """Of nodes on this machine, in a process of its own; each line that it reads takes the last node away."""
    command = [sys.executable, __file__, "--cluster", json.dumps(nodes)]
    environment = {**scene.environment(0), MARK: f"{scene.mark} cluster"}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        scene.options["address"] = process.stdout.readline().split()[-1]
        yield process
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=30)
        scene.mark += " cluster"
        scene.clear()


def be_a_cluster(nodes: list[dict[str, float]]) -> None:
    """The first is the head."""
    head, *others = ({**node, "object_store_memory": 200_000_000} for node in nodes)
    running = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    workers = [running.add_node(**node) for node in others]
    print(running.address, flush=True)
    for _ in sys.stdin:
        running.remove_node(workers.pop(), allow_graceful=False)
    running.shutdown()


def lost_node(scene: Scene) -> Outcome:
    """One of two, on each of which a trial runs."""
    scene.settings["HELD"] = str(HELD_SECONDS)
    with cluster(scene, {"num_cpus": 0}, {"num_cpus": 1}, {"num_cpus": 1}) as nodes:
        return struck(scene, lambda *_: print(file=nodes.stdin, flush=True))


def no_cuda(scene: Scene) -> Outcome:
    """Ray says that there is a GPU, trials ask for it, torch finds none: nobody may train on the CPU instead."""
    if torch.cuda.is_available():
        return {"happened": "not tried: there is a GPU that works", "survived": None}
    with cluster(scene, {"num_cpus": 2, "num_gpus": 1}):
        scene.options["gpus"] = 1
        ending = scene.run()
    trained = len([line for line in scene.lines() if line.event == "ended"])
    found = [f"epochs trained on the CPU without a word: {trained}"] * (trained > 0)
    return scene.outcome(
        found + ["not refused"] * (not ending.code) + ["processes left"] * bool(ending.left), "refused"
    )


FAULTS: dict[str, tuple[str, Callable[[Scene], Outcome]]] = {
    "none": ("none", undisturbed),
    "trial-killed": ("a trial's process is killed", partial(sent, number=signal.SIGKILL, to="trial")),
    "trial-hangs": ("a trial's process is stopped (SIGSTOP)", partial(sent, number=signal.SIGSTOP, to="trial")),
    "driver-killed": (
        "the driver is killed in the middle of an epoch",
        partial(sent, number=signal.SIGKILL, to="driver"),
    ),
    "driver-killed-early": (
        "the driver is killed as an epoch begins",
        partial(sent, number=signal.SIGKILL, to="driver", settled=0),
    ),
    "ctrl-c": ("Ctrl-C", partial(sent, number=signal.SIGINT, to="group")),
    "sigterm": ("SIGTERM", partial(sent, number=signal.SIGTERM, to="driver")),
    "twice": ("the same command again, while it runs", started_twice),
    "node-lost": ("a node is lost", lost_node),
    "full-disk": ("the disk is full; freed", full_disk),
    "bit": ("one bit of the best checkpoint is flipped", flipped_bits),
    "state": ("a state file is cut in half", damaged_state),
    "nan": ("a trial's losses become NaN", not_a_number),
    "no-cuda": ("a GPU for Ray, none for torch", no_cuda),
}


def measure(fault: str, kind: type[Side], limit: float) -> Outcome:
    """In a folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    scene, began = Scene(kind(folder / "runs"), folder, limit), time.monotonic()
    try:
        outcome = FAULTS[fault][1](scene)
    finally:
        scene.clear()
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - began
    print(f"{fault}, {kind.name}, {seconds:.0f} s: {outcome['happened']}", file=sys.stderr)
    return {**outcome, "seconds": seconds}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FAULTS, nargs="+", default=list(FAULTS))
    parser.add_argument("--side", choices=["stock", "ours"], help="one of the two")
    parser.add_argument("--limit", type=float, default=180, help="seconds that a driver has (180)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cluster", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cluster:
        be_a_cluster(given.cluster)
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # drivers must not inherit that it is ignored
    torch.set_num_threads(1)  # as the trials
    kinds = [kind for kind in (Stock, Ours) if given.side in (None, kind.name)]
    rows = {fault: {kind.name: measure(fault, kind, given.limit) for kind in kinds} for fault in given.only}
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "optuna", "torch"))
    machine = f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    if given.json:
        print(json.dumps({"machine": machine, "faults": rows}, indent=2))
        return
    print(f"On {machine}\n\n| fault |" + "".join(f" {kind.name} | survived |" for kind in kinds))
    print("|---" * (1 + 2 * len(kinds)) + "|")
    words = {True: "yes", False: "**no**", None: "-"}
    for fault, row in rows.items():
        cells = [f" {cell['happened']} | {words[cell['survived']]} |" for cell in row.values()]
        print(f"| {FAULTS[fault][0]} |{''.join(cells)}")


if __name__ == "__main__":
    main()
