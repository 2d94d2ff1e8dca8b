"""Drains this node when EC2 is about to reclaim it: `python -m hpo.cluster.preemption_agent`, on each worker.

Ray does not read EC2's notice, which appears two minutes ahead in the instance metadata
(https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html). A drained node gets no new
trials, and the driver migrates its trials after their current epoch."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from hpo.cluster import ray_internals

MESSAGE = "spot"  # the reason in Ray's logs
_POLL_SECONDS = 5.0  # as EC2 advises
_START_SECONDS = 60.0  # for a raylet that is about to start
_TOKEN_SECONDS = 6 * 3600  # the maximum of EC2
_NOTICE_SECONDS = 120.0  # if the notice has no readable time
_TIMEOUT_SECONDS = 2.0
_MAX_BYTES = 10_000  # of an answer; EC2's have a hundred

log = logging.getLogger("hpo.cluster.preemption_agent")


@dataclass(frozen=True, kw_only=True, slots=True)
class Raylet:
    """Ray's process on this host."""

    pid: int
    node_id: str
    gcs: str  # HOST:PORT

    def is_alive(self) -> bool:
        """Whether the process runs. A zombie does not: its parent may never ask for its exit code."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def drain(self, deadline: float) -> None:
        """deadline: when the node will be gone, in seconds since 1970. Raises RuntimeError, ray.exceptions.RpcError."""
        ray_internals.drain_node(self.gcs, self.node_id, MESSAGE, int(1000 * deadline))


def raylets(gcs: str | None = None) -> list[Raylet]:
    """Ray's nodes on this host, by their command lines. gcs: of this cluster only."""
    nodes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            program, *arguments = path.read_text().split("\0")
        except (OSError, UnicodeDecodeError):  # it has ended, or is another user's
            continue
        if program.endswith("/raylet"):
            options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument)
            nodes.append(Raylet(pid=int(path.parent.name), node_id=options["node_id"], gcs=options["gcs-address"]))
    return [raylet for raylet in nodes if gcs in (None, raylet.gcs)]


class Metadata:
    """EC2's instance metadata service, version 2 only: requests carry a token, which is renewed when it has expired."""

    def __init__(self, endpoint: str | None = None) -> None:
        given = endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
        self._url = f"{given.rstrip('/')}/latest"
        self._token = ""
        self._open = build_opener(ProxyHandler({})).open  # never through a proxy

    def notice(self) -> float | None:
        """When EC2 will reclaim the instance, in seconds since 1970; None without a notice. Raises OSError."""
        try:
            text = self._get("meta-data/spot/instance-action")
        except HTTPError as error:
            if error.code == 404:
                return None
            raise
        try:
            action = json.loads(text)
            log.warning("EC2: %s at %s", action["action"], action["time"])
            return datetime.fromisoformat(action["time"]).timestamp()
        except Exception:  # json's and datetime's
            log.warning("EC2 will reclaim the instance; %r has no readable time", text[:100])
            return time.time() + _NOTICE_SECONDS

    def _get(self, path: str) -> str:
        for _ in range(2):
            if not self._token:
                seconds = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
                self._token = self._fetch(Request(f"{self._url}/api/token", method="PUT", headers=seconds))
            try:
                return self._fetch(Request(f"{self._url}/{path}", headers={"X-aws-ec2-metadata-token": self._token}))
            except HTTPError as error:
                if error.code != 401:
                    raise
                self._token = ""  # it has expired
                expired = error
        raise expired

    def _fetch(self, request: Request) -> str:
        with self._open(request, timeout=_TIMEOUT_SECONDS) as answer:
            return str(answer.read(_MAX_BYTES).decode(errors="replace"))


def watch(own: Sequence[Raylet], metadata: Metadata, *, wait: Callable[[float], None] = time.sleep) -> None:
    """Drain the raylets when EC2 gives notice, and return once they have ended. Whatever fails is tried again: the
    metadata service, or Ray's head, may be away for a while."""
    not_drained, logged = list(own), ""
    while any(raylet.is_alive() for raylet in own):
        failure = ""
        try:
            if not_drained and (deadline := metadata.notice()) is not None:
                while not_drained:
                    not_drained[-1].drain(max(deadline, time.time() + 1))  # Ray refuses a deadline that has passed
                    log.warning("node %s is drained", not_drained.pop().node_id)
        except Exception as error:  # Ray's, HTTP's and the system's errors have no common base class
            failure = str(error) or type(error).__name__
        if failure != logged:
            log.warning("%s", f"no answer: {failure}" if failure else "answers again")
            logged = failure
        wait(_POLL_SECONDS)


def main(gcs: str | None = None) -> int:
    """Returns the exit code: 1 if this host has no node of Ray. gcs: HOST:PORT of the head, if the host has nodes of
    several clusters."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    end = time.monotonic() + _START_SECONDS
    while not (own := raylets(gcs)):
        if time.monotonic() > end:
            log.error("no Ray node on this host")
            return 1
        time.sleep(1)
    watch(own, Metadata())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
