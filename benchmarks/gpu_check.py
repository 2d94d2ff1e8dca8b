"""Checks this project on a GPU, in one table and at most eight minutes: python benchmarks/gpu_check.py

Nothing is downloaded: the images are smooth random blobs of Fashion-MNIST's shape (uint8, 28x28, padded to 32x32), made
from a seed. The first half is the product's own step (model/gan.py) and needs only torch and NumPy. The second half is
`hpo search` itself; it is left out if a package that it needs is missing.

Every part has a process of its own and a share of the time. If it fails or takes longer, a row gives the reason, and
the check continues. A comparison is ok within its tolerance, and a speed if it was measured and all losses were finite;
the reader decides what is fast enough. Exit code 0: all is ok, or not available for an accepted reason (no Ray, or no
torch.compile); 1: something differs, or a part failed; 2: bad arguments, or no GPU.

    python benchmarks/gpu_check.py --minutes 4               # shorter measurements, and shorter limits
    python benchmarks/gpu_check.py --only agreement speed    # only these parts
    python benchmarks/gpu_check.py --cpu                     # a reduced form, which tests the check itself
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as hpo.tune.ray_session
sys.path.append(str(Path(__file__).resolve().parents[1]))  # where the package is not installed

import torch
from gpu_processes import SEARCH_TITLE, WORKER, exit_on_signal, search, serve_measurements, side_by_side
from gpu_step import agreement, compiled, graphs, speed
from gpu_table import OK, Row, exit_code, finite_or_none, last_line, markdown, unavailable
from gpu_training import CPU, ON_CPU, ON_GPU, SCRIPT, Check

from model.common.machine import processor

Part = Callable[[Check], Iterator[Row]]
PARTS: dict[str, Part] = {
    "agreement": agreement,
    "speed": speed,
    "graphs": graphs,
    "compile": compiled,
    "together": side_by_side,
    "search": search,
}
# Shares of the time. A part also has what earlier parts left; a twentieth is reserved for ending slow parts.
_SHARES = {"agreement": 0.1, "speed": 0.27, "graphs": 0.08, "compile": 0.18, "together": 0.12, "search": 0.2}
_TITLES = {
    "agreement": "the CPU's figures",
    "speed": "training",
    "graphs": "CUDA graph of a step",
    "compile": "torch.compile",
    "together": "trainings side by side",
    "search": SEARCH_TITLE,
}
_EXCUSED = ("graphs", "compile")  # the product uses neither


def part_rows(name: str, check: Check) -> Iterator[Row]:
    """The rows of one part; if it fails, a last row has the error."""
    try:
        yield from PARTS[name](check)
    except Exception as error:
        traceback.print_exc()
        yield unavailable(_TITLES[name], error, excused=name in _EXCUSED)


def run_in_process(name: str, check: Check, limit: float) -> list[Row]:
    """Run a part in a process of its own.

    Returns:
        Its rows, as far as they came within `limit` seconds. Its stderr is printed where not all rows are ok.
    """
    command = [sys.executable, str(SCRIPT), *check.arguments, "--part", name]
    visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    environment = {"CUDA_VISIBLE_DEVICES": visible_gpus.split(",")[0]} if check.device != CPU else {}
    with ExitStack() as opened:
        out, errors = (opened.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
        process = opened.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=errors, env=os.environ | environment, process_group=0
            )
        )
        why = ""
        try:
            process.wait(max(limit, 0))
        except subprocess.TimeoutExpired:
            why = f"not done after {max(limit, 0):.0f} s"
        finally:
            _terminate(process)
        out.seek(0)
        errors.seek(0)
        rows = [Row(**json.loads(line)) for line in out.read().splitlines() if line.endswith("}")]
        log = errors.read()
        if why or process.returncode:
            reason = why or f"exit code {process.returncode}: {last_line(log)}"
            rows.append(unavailable(_TITLES[name], reason, excused=name in _EXCUSED))
        if any(row.verdict != OK for row in rows):
            sys.stderr.write(log)
    return rows


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """End it and all processes that it started, first with SIGTERM, so that it can clean up."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)


def describe_machine(check: Check) -> dict[str, Any]:
    """Machine, device and versions."""
    on_gpu = check.device.type == "cuda"
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "device": torch.cuda.get_device_name(check.device) if on_gpu else "the CPU, in the reduced form",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together (8)")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="these parts (all)")
    parser.add_argument("--tolerance", type=float, default=1, metavar="FACTOR", help="on all tolerances (1)")
    parser.add_argument("--cpu", action="store_true", help="the reduced form, on the CPU")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--part", choices=[*PARTS, WORKER], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    for name in ("minutes", "tolerance"):
        if not 0 < getattr(given, name) < math.inf:
            parser.error(f"--{name} must be a number above 0")
    if not given.cpu and not torch.cuda.is_available():
        parser.error(
            f"torch {torch.__version__} finds no GPU here (CUDA build: {torch.version.cuda or 'no'}). --cpu runs a "
            "reduced form on the CPU, which tests the check itself, and not a GPU"
        )
    sizes = ON_CPU if given.cpu else ON_GPU
    check = Check(
        device=CPU if given.cpu else torch.device("cuda", 0),
        sizes=sizes,
        seconds=60 * given.minutes / sizes.measurements,
        tolerance=given.tolerance,
        arguments=("--minutes", str(given.minutes), "--tolerance", str(given.tolerance), *["--cpu"] * given.cpu),
    )
    if given.part:
        return _run_part(given.part, check)
    rows: list[Row] = []
    parts = [name for name in PARTS if name in given.only]
    for place, name in enumerate(parts):
        print(f"{name} ...", file=sys.stderr, flush=True)
        until = 0.95 - sum(_SHARES[later] for later in parts[place + 1 :])
        rows += run_in_process(name, check, 60 * given.minutes * until - (time.perf_counter() - began))
    document = {
        **describe_machine(check),
        "seconds": time.perf_counter() - began,
        "tolerance": given.tolerance,
        "agrees": not exit_code(rows),
        "rows": [asdict(row) | {"numbers": finite_or_none(row.numbers)} for row in rows],
    }
    print(json.dumps(document, indent=2) if given.json else markdown(document))
    return exit_code(rows)


def _end_with_parent() -> None:
    """End when the parent ends, however it ends: only the parent holds the other end of stdin."""
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGTERM)


def _run_part(name: str, check: Check) -> int:
    """Run in the process of a part: print each row as a line of JSON as soon as it is known."""
    signal.signal(signal.SIGTERM, exit_on_signal)
    if check.device == CPU:
        torch.set_num_threads(1)
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        if name == WORKER:
            serve_measurements(check, out)
        else:
            threading.Thread(target=_end_with_parent, daemon=True).start()
            for row in part_rows(name, check):
                print(json.dumps(asdict(row)), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
