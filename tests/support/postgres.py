"""Debian's PostgreSQL, started for the tests only, on loopback with a password; and a proxy that loses messages."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest

PASSWORD = "canary-7f3a"
_USER = "postgres"  # the server refuses to run as root


class Postgres:
    """A server with one role, `hpo`, and an empty database for each test that asks for one."""

    def __init__(self, folder: Path, binaries: Path, port: int) -> None:
        self._folder, self._binaries, self.port = folder, binaries, port
        self._databases = 0

    def begin(self) -> None:
        (self._folder / "password").write_text(PASSWORD)
        options = ["--username=hpo", "--auth=scram-sha-256", f"--pwfile={self._folder / 'password'}", "--no-sync"]
        self._run("initdb", "--encoding=UTF8", "--locale=C", *options)
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder} -F"  # -F: it outlives no power cut
        self._run("pg_ctl", "--wait", f"--log={self._folder / 'log'}", f"--options={options}", "start")

    def stop(self) -> None:
        """Stop it, if it runs, like a crash: connections break, and uncommitted writes are lost."""
        with suppress(subprocess.CalledProcessError):
            self._run("pg_ctl", "--wait", "--mode=immediate", "stop")

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        self._databases += 1
        name = f"db{self._databases}"
        where = ["--host=127.0.0.1", f"--port={self.port}", "--username=hpo"]
        command = [self._binaries / "createdb", *where, name]
        subprocess.run(command, check=True, env={**os.environ, "PGPASSWORD": PASSWORD})
        return f"postgresql://hpo@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *options: str) -> None:
        as_user = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"] if os.getuid() == 0 else []
        command = [*as_user, self._binaries / program, f"--pgdata={self._folder / 'data'}", *options]
        subprocess.run(command, check=True, cwd=self._folder, capture_output=True, timeout=60)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server. Skips the test if PostgreSQL is not installed."""
    found = shutil.which("initdb") or next(iter(Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if not found:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are closed to other users
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Postgres(folder, Path(found).resolve().parent, port)
    try:
        if os.getuid() == 0:
            try:
                os.chown(folder, pwd.getpwnam(_USER).pw_uid, -1)
            except KeyError:
                pytest.skip(f"PostgreSQL does not run as root, and there is no user {_USER}")
        server.begin()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


Loss = Literal["commit", "answer"]


class Wire:
    """A proxy between a client and a server. `lose`: whether the next COMMIT or its answer is lost, and the connection
    with it."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.lose: Loss | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                threading.Thread(target=self._carry, args=(client, server), daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        """Forward in both directions; client and server never send at the same time."""
        with client, server, suppress(OSError):
            answers = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            answers.start()
            while spoken := client.recv(65536):
                lost = None
                if b"COMMIT" in spoken:
                    lost, self.lose = self.lose, None
                if lost:
                    client.shutdown(socket.SHUT_WR)  # what is passed on to it from now on is lost
                if lost != "commit":
                    server.sendall(spoken)
                if lost:
                    break
            server.shutdown(socket.SHUT_WR)  # closed alone it would stay open, while its answers are waited for
            answers.join()


def _pass_on(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            with suppress(OSError):  # the client is gone: the server's word is awaited all the same
                to.sendall(data)
        to.shutdown(socket.SHUT_WR)
