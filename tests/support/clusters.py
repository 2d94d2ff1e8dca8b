"""The project's own cluster files, brought up on the stand-ins."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hosts import Hosts, address, wait_for
from laptop import ROOT, Laptop
from substitute import StandIns, write

ENVIRONMENT = {"PYTHONPATH": "$HOME/pix2pix-search"}  # before what the shared environment has installed


class Cluster:
    """One that `ray up` makes of a file. head: gives the number of its host."""

    def __init__(self, hosts: Hosts, laptop: Laptop, file: Path, head: Callable[[], int]) -> None:
        self.hosts, self.laptop, self.file, self._head = hosts, laptop, file, head

    @property
    def head(self) -> int:
        return self._head()

    def up(self) -> None:
        self.laptop.hpo("cluster", "check", str(self.file))
        self.laptop.run("ray", "up", "-y", "--no-config-cache", str(self.file))

    def down(self) -> None:
        self.laptop.run("ray", "down", "-y", str(self.file))

    def on_head(self, command: str) -> str:
        return self.hosts.run(self.head, f". ~/.hpo/environment && {command}")

    def wait_for_nodes(self, count: int, seconds: float = 120) -> None:
        """That Ray counts, the head included."""
        script = "import ray; ray.init(log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"
        wait_for(lambda: int(self.on_head(f'python -c "{script}"')) == count, seconds, f"{count} nodes")

    def processes(self, pattern: str) -> list[str]:
        """Of all hosts, those whose command line fits; without the zombies."""
        find = f"ps -eo stat,args | grep -v '^Z' | grep -E '{pattern}' | grep -v grep || true"
        found = []
        for number in self.hosts.numbers():
            try:
                found += self.hosts.run(number, find).splitlines()
            except (RuntimeError, subprocess.TimeoutExpired):  # the autoscaler was just taking it
                wait_for(lambda number=number: number not in self.hosts.numbers(), 10, f"the end of host {number}")
        return found

    @contextmanager
    def tunnel(self, port: int) -> Iterator[str]:
        """HOST:PORT on this machine that leads to a port of the head's loopback."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            here = f"127.0.0.1:{free.getsockname()[1]}"
        with subprocess.Popen((*self.hosts.ssh(self.head), "-N", "-L", f"{here}:127.0.0.1:{port}")) as ssh:
            try:
                wait_for(lambda: answers(here), 20, "the tunnel")
                yield here
            finally:
                ssh.terminate()

    def listening(self, number: int) -> set[int]:
        """TCP ports on the host's outward address."""
        lines = self.hosts.run(number, "ss -tlnH").splitlines()
        found = [line.split()[3].rpartition(":") for line in lines]
        return {int(port) for where, _, port in found if "127.0.0.1" not in where and where != "[::1]"}


@contextmanager
def on_prem(hosts: Hosts, laptop: Laptop, *, workers: int) -> Iterator[Cluster]:
    """cluster.onprem.yaml on hosts 2 (the head), 3, ..., which are on."""
    numbers = range(2, 3 + workers)
    hosts.start(*numbers)
    stand_ins = StandIns(
        key=hosts.key,
        token=laptop.token,
        storage="/mnt/shared/searches",
        environment=ENVIRONMENT,
        addresses=tuple(map(address, numbers)),
    )
    file = write(ROOT / "cluster.onprem.yaml", laptop.home / "cluster.yaml", stand_ins)
    yield Cluster(hosts, laptop, file, lambda: 2)


def answers(where: str) -> bool:
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
