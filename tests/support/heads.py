"""A cluster's head on this machine: real SSH without a port (sshd speaks through ProxyCommand), in a home of its own,
and a stand-in for Ray's job server. The cluster file is the shipped one, filled in.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 4
SSHD = "/usr/sbin/sshd"

needs_ssh = pytest.mark.skipif(
    not (shutil.which("ssh") and shutil.which("rsync") and Path(SSHD).exists()),
    reason="needs OpenSSH's client and server, and rsync",
)


@dataclass
class Head:
    """file: of its cluster; home: the head's; port: where its job server listens, or is to."""

    file: Path
    home: Path
    port: int

    def program(self, name: str, text: str) -> None:
        """One that the head finds before this machine's."""
        path = self.home / ".venv/bin" / name
        path.write_text(text)
        path.chmod(0o755)


def make_head(folder: Path, path: str, storage: Path) -> Head:
    """path: where the head finds programs. storage: HPO_STORAGE."""
    home = folder / "home"
    (home / ".venv/bin").mkdir(parents=True)
    (home / ".hpo").mkdir()
    words = f'export RAY_AUTH_MODE=token "HPO_STORAGE={storage}" "PATH={home}/.venv/bin:{path}" "PYTHONPATH={ROOT}"\n'
    (home / ".hpo/environment").write_text(words)
    for name in ("user", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
        f"PasswordAuthentication no\nSetEnv HOME={home}\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where root's sshd goes before anybody has logged in
    for where in (folder / "token", home / ".ray"):
        where.mkdir()
        (where / "auth_token").write_text(TOKEN)
        (where / "auth_token").chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = (ROOT / "cluster.onprem.yaml").read_text()
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    for old, new in {
        "head_ip: REPLACE": "head_ip: 198.51.100.1",  # nobody's, of RFC 5737: SSH must take the ProxyCommand
        "[REPLACE, REPLACE]": "[198.51.100.2, 198.51.100.3]",
        "ssh_user: REPLACE": f"ssh_user: {user}\n  ssh_proxy_command: {SSHD} -i -f {folder}/sshd_config",
        "~/.ssh/REPLACE": f"{folder}/user",
        "~/.hpo/token": f"{folder}/token",
        "/mnt/REPLACE/searches": "/mnt/shared/searches",
        "--dashboard-host=127.0.0.1": f"--dashboard-host=127.0.0.1 --dashboard-port={port}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    file = folder / "cluster.yaml"
    file.write_text(text)
    return Head(file, home, port)


@dataclass
class JobServer:
    """What it was given, and what it answers."""

    jobs: list[dict[str, object]] = field(default_factory=list)
    fate: dict[str, object] = field(default_factory=dict)  # of each job, once it is asked for


@contextmanager
def job_server(port: int) -> Iterator[JobServer]:
    """Ray's REST interface, as far as it is used; 401 without the token."""
    server = JobServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self._send(401, "Unauthorized")
            if self.path == "/api/jobs/":
                return self._send(200, server.jobs)
            found = [job for job in server.jobs if self.path == f"/api/jobs/{job['submission_id']}"]
            return self._send(200, {**found[0], **server.fate}) if found else self._send(404, "Not found")

        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self._send(401, "Unauthorized")
            server.jobs.append({**given, "status": "PENDING", "message": "queued", "driver_exit_code": None})
            return self._send(200, {"submission_id": given["submission_id"]})

        def _send(self, status: int, answer: object) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    listening = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
