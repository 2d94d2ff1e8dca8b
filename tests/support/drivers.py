"""Runs `hpo search` as a process of its own, and finds everything that it starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import ray  # noqa: F401 - brings psutil along

from hpo.store.record import Record
from hpo.store.search_file import list_names

import psutil  # isort: skip - found once Ray is imported

HPO = str(Path(sys.executable).parent / "hpo")
GUARD_SECONDS = 600  # for one run, on a machine that others keep busy


@dataclass
class Driver:
    """A running `hpo search`. Its processes carry a mark in their environment."""

    process: subprocess.Popen[str]
    mark: str

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the search that are alive."""
        alive = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SEARCH_UNDER_TEST") == self.mark and process.status() != "zombie":
                    alive.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return alive

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + GUARD_SECONDS
        while not condition():
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.1)

    def ray_folders(self) -> set[str]:
        """Return the session folders that Ray uses now."""
        lines = [" ".join(process.cmdline()) for process in self.processes()]
        return {folder for line in lines for folder in re.findall(r"[^\s=]+/\.ray/session_[\w-]+(?=/)", line)}

    def left_after(self, seconds: float) -> list[psutil.Process]:
        """Return the processes that are still alive after so many seconds."""
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        return left


@contextmanager
def driver(
    folder: Path,
    options: list[str],
    command: tuple[str, ...] = (HPO, "search", "first"),
    added: Mapping[str, str] | None = None,
) -> Iterator[Driver]:
    """Start it in a process group of its own, as a shell does. added: environment variables."""
    # W&B's process of this one would be shared; Ray must not see the tests' GPUs or none.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= added or {}
    environment["SEARCH_UNDER_TEST"] = mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [*command, *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    running = Driver(process, mark)
    try:
        yield running
    finally:
        process.kill()
        for left in running.left_after(seconds=10):
            left.kill()
        process.wait()


def finished(folder: Path, options: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a search to its end."""
    with driver(folder, options) as running:
        out, err = running.process.communicate(timeout=GUARD_SECONDS)
    return subprocess.CompletedProcess(running.process.args, running.process.returncode, out, err)


def num_reports(folder: Path) -> int:
    if "first" not in list_names(folder / "runs"):
        return 0
    return sum(len(trial.intermediate_values) for trial in Record(folder / "runs", "first").trials())


def leaked(secrets: Mapping[str, str], *folders: Path) -> set[str]:
    """Return `NAME in FILE` for each secret that a file in the folders contains."""
    found = set()
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.is_file():
            with suppress(FileNotFoundError):
                content = path.read_bytes()
                found |= {f"{name} in {path}" for name, secret in secrets.items() if secret.encode() in content}
    return found
