"""A cluster's head by SSH: commands, files and tunnels."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.cluster.config_values import Config
from hpo.exit_codes import EXIT_BAD_INPUT
from model.common.errors import ConfigError, MachineError

ENVIRONMENT = "cd && . ~/.hpo/environment"  # the set-up wrote PATH, HPO_STORAGE and RAY_AUTH_MODE to this file
_SSH_FAILED = 255
_TUNNEL_SECONDS = 60.0


class HeadError(MachineError):
    """The head cannot be reached, or one of its services fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadNode:
    """A cluster's head."""

    address: str
    ssh_config: Path  # a file for `ssh -F`

    def run(self, script: str, *, stdin: str | None = None) -> str:
        """Run a script in the head's environment, and return its stdout.

        Raises:
            ConfigError: the script ended with the exit code for bad input.
            HeadError: it failed in another way, or SSH did.
        """
        line = f"bash -c {shlex.quote(f'{ENVIRONMENT} && {script}')}"
        done = _execute(self._ssh(line), stdin=stdin)
        if done.returncode == 0:
            return done.stdout
        message = done.stderr.strip() or f"exit code {done.returncode}"
        if done.returncode == EXIT_BAD_INPUT:
            raise ConfigError(message.removeprefix("hpo: "))
        raise HeadError(f"{self.address}: {message}")

    def upload(self, source: str, to: str) -> None:
        """Copy with rsync. If the source ends in /, copy the folder's content. Raises HeadError."""
        self._rsync("--archive", "--delete", "--", source, f"{self.address}:{to}")

    def download(self, source: str, to: Path) -> None:
        """Copy files and folders only: a link might lead to files of this machine. Raises HeadError."""
        self._rsync("--recursive", "--times", "--", f"{self.address}:{source}", str(to))

    @contextmanager
    def tunnel(self, port: int) -> Iterator[int]:
        """Forward a port of this machine's loopback to a port of the head, and yield it. Raises HeadError."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            local = int(free.getsockname()[1])
        forwarding = f"127.0.0.1:{local}:127.0.0.1:{port}"
        command = self._ssh(options=["-N", "-o", "ExitOnForwardFailure=yes", "-L", forwarding])
        with tempfile.TemporaryFile("w+") as output:
            try:
                ssh = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            except OSError as error:
                raise HeadError(f"ssh: {error.strerror}; install OpenSSH's client on this machine") from error
            try:
                end = time.monotonic() + _TUNNEL_SECONDS
                while not _listens(local):
                    if ssh.poll() is not None or time.monotonic() > end:
                        output.seek(0)
                        raise HeadError(f"{self.address}: {output.read().strip() or 'no SSH tunnel'}")
                    time.sleep(0.05)
                yield local
            finally:
                ssh.terminate()
                ssh.wait()

    def _ssh(self, *command: str, options: Sequence[str] = ()) -> list[str]:
        return ["ssh", "-F", str(self.ssh_config), *options, self.address, *command]

    def _rsync(self, *arguments: str) -> None:
        done = _execute(["rsync", "-e", shlex.join(["ssh", "-F", str(self.ssh_config)]), *arguments])
        if done.returncode:
            raise HeadError(f"{self.address}: rsync: {done.stderr.strip()}")


@contextmanager
def connect_to_head(path: Path, config: Config) -> Iterator[HeadNode]:
    """The running head of a cluster file that was checked. Raises HeadError."""
    auth = config["auth"]
    key = Path(auth["ssh_private_key"]).expanduser().absolute() if "ssh_private_key" in auth else None
    options = {
        "User": auth.get("ssh_user"),
        "IdentityFile": f'"{key}"' if key else None,
        "IdentitiesOnly": "yes" if key else None,
        "ProxyCommand": auth.get("ssh_proxy_command"),
        "BatchMode": "yes",  # never ask for a password
        "StrictHostKeyChecking": "no",  # as `ray up`: the key of a new machine is not known yet
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "ConnectTimeout": "20",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "4",
    }
    lines = [f"  {name} {value}" for name, value in options.items() if value is not None]
    with tempfile.TemporaryDirectory(prefix="hpo-") as folder:
        ssh_config = Path(folder) / "ssh"
        # SSH takes the first value of each option, so the user's own file adds to these.
        ssh_config.write_text("\n".join(["Host *", *lines, "Include ~/.ssh/config", ""]))
        yield HeadNode(address=_head_address(path, config), ssh_config=ssh_config)


def _head_address(path: Path, config: Config) -> str:
    provider = config["provider"]
    if provider["type"] == "local":
        return str(provider.get("external_head_ip", provider["head_ip"]))
    from ray.autoscaler._private.commands import get_head_node_ip  # noqa: PLC0415 - seconds

    try:
        with redirect_stdout(sys.stderr):
            return str(get_head_node_ip(str(path)))
    except ImportError as error:
        raise HeadError(f"{error}: `pip install -c constraints.txt -e '.[cluster]'` in the clone") from error
    except Exception as error:  # of boto, click, or a RuntimeError
        raise HeadError(f"{path}: no head is running ({error}): ray up {path}") from error


def _execute(command: Sequence[str], *, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Raises HeadError if the program is missing or SSH cannot connect."""
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **source)
    except OSError as error:
        advice = "install OpenSSH's client and rsync on this machine"
        raise HeadError(f"{command[0]}: {error.strerror}; {advice}") from error
    if done.returncode == _SSH_FAILED:
        raise HeadError(f"SSH cannot connect to the head: {done.stderr.strip()}")
    return done


def _listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0
