"""A stand-in for EC2's instance metadata service on loopback: version 2 alone, and one path of it. From
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler

from loopback import listening


@dataclass
class Metadata:
    """What it is to say, or to do wrong, can be set while it runs."""

    url: str = ""
    action: str = ""  # the body of instance-action; empty: there is none
    failures: int = 0  # of the next requests: 503
    tokens: set[str] = field(default_factory=set)  # that it takes
    asked: list[str] = field(default_factory=list)  # METHOD /path of each request, and its answer

    def take(self, at: float, action: str = "terminate") -> None:
        """The notice; at: seconds since 1970."""
        time = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.action = json.dumps({"action": action, "time": time})


@contextmanager
def serving(port: int = 0) -> Iterator[Metadata]:
    metadata = Metadata()
    with listening(_Handler, metadata, port=port) as found:
        metadata.url = f"http://127.0.0.1:{found}"
        yield metadata


class _Handler(BaseHTTPRequestHandler):
    stand_in: Metadata

    def do_PUT(self) -> None:
        seconds = int(self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0"))
        if self.path != "/latest/api/token" or not 1 <= seconds <= 21600:
            return self._answer(400)
        token = secrets.token_urlsafe()
        if not self.stand_in.failures:
            self.stand_in.tokens.add(token)
        return self._answer(200, token)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") not in self.stand_in.tokens:
            return self._answer(401)
        if self.path != "/latest/meta-data/spot/instance-action" or not self.stand_in.action:
            return self._answer(404)
        return self._answer(200, self.stand_in.action)

    def _answer(self, status: int, text: str = "") -> None:
        if self.stand_in.failures:
            self.stand_in.failures -= 1
            status, text = 503, ""
        self.stand_in.asked.append(f"{self.command} {self.path} {status}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing: tests read what was asked."""
