"""`python -m hpo.cluster.preemption_agent`, on each worker of a cluster on EC2: drains its own node when EC2 is about to take it.

Nothing in Ray itself hears of EC2's notice, which comes two minutes ahead in the instance metadata
(https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html). A drained node gets no
new trials, the driver moves those that it has after their present epoch, and none of it counts as a failure.
"""

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

import ray
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

MESSAGE = "spot"  # the reason that the drain carries
_POLL_SECONDS = 5.0  # as EC2 advises
_START_SECONDS = 60.0  # for a raylet that is about to start
_TOKEN_SECONDS = 6 * 3600  # the most that EC2 gives
_NOTICE_SECONDS = 120.0  # when it says no time that can be read
_TIMEOUT_SECONDS = 2.0
_MOST_BYTES = 10_000  # of an answer; EC2's have a hundred

log = logging.getLogger("hpo.cluster.preemption_agent")


@dataclass(frozen=True, kw_only=True, slots=True)
class Raylet:
    """Ray's process on this host."""

    pid: int
    node_id: str
    gcs: str  # HOST:PORT

    def is_alive(self) -> bool:
        """A zombie is not: nobody may ever ask for its exit code."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def drain(self, deadline: float) -> None:
        """deadline: when the node will be gone, seconds since 1970. Raises RuntimeError, ray.exceptions.RpcError."""
        accepted, why = ray._raylet.GcsClient(address=self.gcs).drain_node(
            self.node_id, DRAIN_NODE_REASON_PREEMPTION, MESSAGE, int(1000 * deadline)
        )
        if not accepted:
            raise RuntimeError(why)


def raylets(gcs: str | None = None) -> list[Raylet]:
    """Those of this host, from their command lines: the head need not be asked. gcs: of this cluster alone."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            program, *arguments = path.read_text().split("\0")
        except (OSError, UnicodeDecodeError):  # it ended, or is somebody else's
            continue
        if program.endswith("/raylet"):
            options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments if "=" in argument)
            found.append(Raylet(pid=int(path.parent.name), node_id=options["node_id"], gcs=options["gcs-address"]))
    return [raylet for raylet in found if gcs in (None, raylet.gcs)]


class Metadata:
    """EC2's instance metadata service, version 2 alone: with a token, which is renewed when it is no longer taken."""

    def __init__(self, endpoint: str | None = None) -> None:
        given = endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
        self._url = f"{given.rstrip('/')}/latest"
        self._token = ""
        self._open = build_opener(ProxyHandler({})).open  # the address is this host's own affair

    def notice(self) -> float | None:
        """When the instance will be taken, seconds since 1970; None while nobody wants it. Raises OSError."""
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
        except Exception:  # json's and datetime's, of whatever it says
            log.warning("EC2 will take the instance; %r names no time", text[:100])
            return time.time() + _NOTICE_SECONDS

    def _get(self, path: str) -> str:
        for _ in range(2):
            if not self._token:
                seconds = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
                self._token = self._ask(Request(f"{self._url}/api/token", method="PUT", headers=seconds))
            try:
                return self._ask(Request(f"{self._url}/{path}", headers={"X-aws-ec2-metadata-token": self._token}))
            except HTTPError as error:
                if error.code != 401:
                    raise
                self._token = ""  # it has expired
                refused = error
        raise refused

    def _ask(self, request: Request) -> str:
        with self._open(request, timeout=_TIMEOUT_SECONDS) as answer:
            return str(answer.read(_MOST_BYTES).decode(errors="replace"))


def watch(own: Sequence[Raylet], metadata: Metadata, *, wait: Callable[[float], None] = time.sleep) -> None:
    """Until the raylets are gone. What fails is tried again: the metadata, and Ray's head, may be away for a while."""
    left, told = list(own), ""  # not drained yet
    while any(raylet.is_alive() for raylet in own):
        failure = ""
        try:
            if left and (deadline := metadata.notice()) is not None:
                while left:
                    left[-1].drain(max(deadline, time.time() + 1))  # one that has passed is refused
                    log.warning("node %s is drained", left.pop().node_id)
        except Exception as error:  # Ray's, HTTP's and the system's have nothing in common
            failure = str(error) or type(error).__name__
        if failure != told:
            log.warning("%s", f"no answer: {failure}" if failure else "answers again")
            told = failure
        wait(_POLL_SECONDS)


def main(gcs: str | None = None) -> int:
    """gcs: HOST:PORT of a cluster's head, where this host has nodes of others, too. Gives the exit code: 1 where it has
    none."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    end = time.monotonic() + _START_SECONDS
    while not (own := raylets(gcs)):
        if time.monotonic() > end:
            log.error("no node of Ray on this host")
            return 1
        time.sleep(1)
    watch(own, Metadata())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
