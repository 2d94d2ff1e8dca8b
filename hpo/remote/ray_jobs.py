"""Ray's REST interface for jobs. Not Ray's own client, which waits without a limit and obeys RAY_ADDRESS."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hpo.cluster import cluster_config
from hpo.cluster.config_values import Config
from hpo.remote.ssh import HeadError, HeadNode

UNFINISHED = ("PENDING", "RUNNING")  # values of a job's "status"
_DASHBOARD_PORT = "8265"  # Ray's default
_SEARCH = "hpo-search"  # key of a job's metadata: the name of its search
_REQUEST_SECONDS = 60


@dataclass(frozen=True, slots=True)
class RayJobs:
    """The jobs of a head. Each method raises HeadError."""

    url: str
    token: str

    def list_jobs(self, search: str) -> list[dict[str, Any]]:
        """All jobs that were submitted for a search."""
        jobs: list[dict[str, Any]] = self._request("GET", "")
        return [job for job in jobs if (job.get("metadata") or {}).get(_SEARCH) == search]

    def status(self, job: str) -> dict[str, Any]:
        """Ray's description of a job, with its "status", "message" and "driver_exit_code"."""
        return dict(self._request("GET", job))

    def submit(self, search: str, entrypoint: str) -> str:
        """Submit a job, and return its id. Ids are unique: of two jobs submitted at once, Ray refuses one."""
        job = f"{search}-{len(self.list_jobs(search)) + 1}"
        description = {"entrypoint": entrypoint, "submission_id": job, "metadata": {_SEARCH: search}}
        return str(self._request("POST", "", description)["submission_id"])

    def _request(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/jobs/{path}",
            method=method,
            data=None if content is None else json.dumps(content).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_REQUEST_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise HeadError("Ray's head refuses the token of this machine; `ray up` copies it there") from error
            lines = error.read().decode(errors="replace").strip().splitlines() or [error.reason]
            raise HeadError(f"Ray's head: {error.code}: {lines[-1]}") from error
        except (OSError, ValueError) as error:
            raise HeadError(f"Ray's head does not answer ({error}); is Ray running there? ray up starts it") from error


@contextmanager
def connect_to_jobs(head: HeadNode, config: Config) -> Iterator[RayJobs]:
    """By a tunnel, as the dashboard listens on the head's loopback only. Raises HeadError."""
    ports = re.findall(r"--dashboard-port[= ](\d+)", " ".join(config["head_start_ray_commands"]))
    with head.tunnel(int((ports or [_DASHBOARD_PORT])[0])) as port:
        yield RayJobs(f"http://127.0.0.1:{port}", cluster_config.token(config))
