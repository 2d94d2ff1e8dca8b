"""A stand-in for a W&B server on loopback: what the SDK says to it when it logs runs, artifacts and a workspace.

It keeps what it is given. A row of history has its place in the run, as in W&B's own protocol (`offset`), so that one
that is sent twice to the same place is there once. Whatever it does not know it answers with 501 and puts on
`unknown`, and `serving` fails for it. It proves which bytes leave; nothing about accounts, permissions or rendering.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from loopback import listening

KEY, ENTITY = "0123456789" * 4, "somebody"


@dataclass
class Run:
    """As the server has it. history: by place; files: by name, images and tables among them."""

    id: str
    told: dict[str, Any] = field(default_factory=dict)  # the last value of each argument of UpsertBucket
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.history[place] for place in sorted(self.history)]

    @property
    def config(self) -> dict[str, Any]:
        return {key: entry["value"] for key, entry in json.loads(self.told["config"]).items() if key != "_wandb"}


@dataclass
class Artifact:
    """files: what the manifest lists, by its names there."""

    id: str
    told: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    committed: bool = False


@dataclass
class StandIn:
    """What it has, and what it is to do wrong, which can be set while it runs."""

    port: int = 0
    status: int | None = None  # of every answer from now on, such as 429
    stream_status: int | None = None  # of those to rows alone
    hang_seconds: float = 0.0
    rows_until_death: int | None = None  # so many rows are taken; then connections are cut
    runs: dict[str, Run] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    views: list[dict[str, Any]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)
    key: str = KEY
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, job_type: str) -> list[Run]:
        """Runs, in the order of their ids."""
        return [run for _, run in sorted(self.runs.items()) if run.told.get("jobType") == job_type]

    def models(self) -> list[Artifact]:
        return [artifact for artifact in self.artifacts.values() if artifact.told["artifactTypeName"] == "model"]


@contextmanager
def serving(stand_in: StandIn) -> Iterator[StandIn]:
    """Until the block ends; after that connections are refused. A second time it listens where it did."""
    with listening(_Handler, stand_in, port=stand_in.port, server_class=_Server) as stand_in.port:
        yield stand_in
    assert not stand_in.unknown, stand_in.unknown


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_POST(self) -> None:  # noqa: PLR0911
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        stand_in = self.stand_in
        time.sleep(stand_in.hang_seconds)
        if stand_in.rows_until_death == 0:
            self.close_connection = True
            return None
        if stand_in.status:
            return self._send(stand_in.status, {"errors": [{"message": "not now"}]})
        if self.headers.get("X-Wandb-Upload") != "yes" and self._key() != stand_in.key:
            return self._send(401, {"errors": [{"message": "user is not logged in"}]})
        with stand_in.lock:
            stream = re.fullmatch(rf"/files/{ENTITY}/[^/]+/([^/]+)/file_stream", self.path)
            if stream and stand_in.stream_status:
                return self._send(stand_in.stream_status, {"error": "no"})
            if stream:
                self._stream(stand_in.runs[stream[1]], json.loads(body))
                if stand_in.rows_until_death == 0:  # what was taken is never confirmed
                    self.close_connection = True
                    return None
                return self._send(200, {})
            upload = re.fullmatch(r"/upload/(runs|artifacts)/([^/]+)/(.+)", self.path)
            if upload:
                kind, owner, name = upload.groups()
                getattr(stand_in, kind)[owner].files[name] = body
                return self._send(200, {})
            if self.path != "/graphql":
                return self._unknown(f"{self.command} {self.path}")
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            name = operation[1] if operation else "?"
            stand_in.asked[name] += 1
            answer = getattr(self, f"_{name}", None)
            if answer is None:
                return self._unknown(f"{name} {asked}")
            return self._send(200, {"data": answer(**(asked.get("variables") or {}))})

    do_GET = do_PUT = do_POST  # noqa: N815

    def _key(self) -> str:
        with suppress(ValueError):
            return base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()[4:]
        return ""

    def _unknown(self, what: str) -> None:
        self.stand_in.unknown.append(what)
        self._send(501, {"errors": [{"message": what}]})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        with suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Silence."""

    # --- runs ------------------------------------------------------------------------------------------------------

    def _stream(self, run: Run, body: dict[str, Any]) -> None:
        files = body.get("files", {})
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        for place, line in enumerate(history["content"], start=history["offset"]):
            if self.stand_in.rows_until_death == 0:
                return
            run.history[place] = json.loads(line)
            if self.stand_in.rows_until_death is not None:
                self.stand_in.rows_until_death -= 1
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            run.summary = json.loads(line)
        if body.get("complete"):
            run.exit_code = body["exitcode"]

    def _Viewer(self) -> dict[str, Any]:
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer}

    def _ServerFeaturesQuery(self) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, project: str, name: str, entity: str | None = None) -> dict[str, Any]:
        run, bucket = self.stand_in.runs.get(name), None
        if run:
            bucket = {
                "id": run.id,
                "name": run.id,
                "summaryMetrics": json.dumps(run.summary),
                "displayName": run.told.get("displayName"),
                "logLineCount": 0,
                "historyLineCount": len(run.history),
                "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
                "eventsTail": "[]",
                "config": run.told["config"],
                "tags": run.told.get("tags") or [],
                "wandbConfig": json.dumps({"t": {}}),
            }
        return {"model": {"id": project, "name": project, "entity": {"id": ENTITY, "name": ENTITY}, "bucket": bucket}}

    def _UpsertBucket(self, **told: Any) -> dict[str, Any]:
        name = told["name"] or told["id"]
        is_new = name not in self.stand_in.runs
        run = self.stand_in.runs.setdefault(name, Run(name))
        run.told.update({key: value for key, value in told.items() if value is not None})
        project = {"id": "p", "name": run.told["project"], "entity": {"id": ENTITY, "name": ENTITY}}
        bucket = {"id": name, "name": name, "displayName": run.told.get("displayName"), "description": None}
        bucket |= {"sweepName": None, "project": project, "historyLineCount": len(run.history)}
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def _SearchRunRows(self, entity: str, project: str, run: str) -> dict[str, Any]:
        found = self.stand_in.runs.get(run)
        return {"project": {"run": found and {"historyLineCount": len(found.history)}}}

    def _CreateRunFiles(self, entity: str, project: str, run: str, files: list[str]) -> dict[str, Any]:
        urls = [{"name": name, "uploadUrl": f"{self.stand_in.url}/upload/runs/{run}/{name}"} for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": ["X-Wandb-Upload:yes"], "files": urls}}

    # --- artifacts and workspaces ------------------------------------------------------------------------------------

    def _ArtifactType(self, **_: Any) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, input: dict[str, Any]) -> dict[str, Any]:
        artifact = Artifact(f"a{len(self.stand_in.artifacts)}", input)
        for known in self.stand_in.artifacts.values():  # of the same content: W&B makes no second version
            same = ("artifactCollectionName", "digest")
            if all(known.told[key] == input[key] for key in same) and known.committed:
                artifact = known
        self.stand_in.artifacts[artifact.id] = artifact
        state = "COMMITTED" if artifact.committed else "PENDING"
        told = {"id": artifact.id, "state": state, "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": told}}

    def _CreateArtifactManifest(self, artifactID: str, **told: Any) -> dict[str, Any]:  # noqa: N803
        url = f"{self.stand_in.url}/upload/artifacts/{artifactID}/manifest:"
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": ["X-Wandb-Upload:yes"]}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    def _CreateArtifactFiles(self, input: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for asked in input["artifactFiles"]:
            owner, name = asked["artifactID"], asked["name"]
            node = {"storagePath": name, "uploadUrl": f"{self.stand_in.url}/upload/artifacts/{owner}/{name}"}
            node |= {"uploadHeaders": ["X-Wandb-Upload:yes"], "uploadMultipartUrls": None, "artifact": {"id": owner}}
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _ArtifactByID(self, id: str, **_: Any) -> dict[str, Any]:
        artifact = self.stand_in.artifacts[id]
        project = {"id": "p", "internalId": "p", "name": artifact.told["projectName"], "entity": {"name": ENTITY}}
        found: dict[str, Any] = dict.fromkeys(("description", "metadata", "historyStep", "commitHash", "updatedAt"))
        found |= {"__typename": "Artifact", "id": id, "state": "COMMITTED", "digest": artifact.told["digest"]}
        found |= {"artifactSequence": {"__typename": "ArtifactSequence", "name": "model", "project": project}}
        found |= {"artifactType": {"name": artifact.told["artifactTypeName"]}, "versionIndex": 0, "tags": []}
        found |= {"ttlDurationSeconds": -2, "ttlIsInherited": True, "size": 1, "fileCount": len(artifact.files)}
        return {"artifact": {**found, "createdAt": "2026-01-01T00:00:00Z", "aliases": []}}

    def _UpsertView2(self, **told: Any) -> dict[str, Any]:
        self.stand_in.views.append(told)
        return {"upsertView": {"view": {"id": "v", "name": told["name"]}, "inserted": True}}

    def _CommitArtifact(self, artifactID: str) -> dict[str, Any]:  # noqa: N803
        artifact = self.stand_in.artifacts[artifactID]
        artifact.committed, artifact.manifest = True, json.loads(artifact.files.pop("manifest:"))
        return {"commitArtifact": {"artifact": {"id": artifactID, "digest": artifact.told["digest"]}}}
