"""hpo launch and hpo pull: a search on a cluster's head from a machine that may go away, by SSH and Ray's job server.

The dashboard takes jobs on the head's loopback alone, so that all of it goes through SSH, as `ray up` itself does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.cluster import cluster_config
from hpo.cluster.cluster_config import Config
from hpo.policy.search_config import SearchConfig, check_name
from model.common.errors import ConfigError, ErrorCollector, MachineError
from model.common.retry import retry
from model.common.text import sanitize_for_terminal
from model.config import TrainConfig

_DASHBOARD_PORT = "8265"  # Ray's default
_ENVIRONMENT = "cd && . ~/.hpo/environment"  # what the set-up wrote there: PATH, HPO_STORAGE, RAY_AUTH_MODE
_MOST_SHIPPED = 10e9  # bytes: an hour at 20 Mbit/s, a sixth of the head's disk
_PASSED = ("WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT")  # no secrets; the key goes another way
_SEARCH = "hpo-search"  # of a job's metadata: the name of its search
_UNENDED = ("PENDING", "RUNNING")
_SSH_FAILED = 255
_TUNNEL_SECONDS = 60.0
_POLL_SECONDS, _HEAD_TIMEOUT_SECONDS = 10.0, 600.0  # of --wait; how long the head may be away meanwhile


class HeadError(MachineError):
    """The head is not there, or does not do what it must."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A cluster's head, by SSH. config: a file for `ssh -F`."""

    address: str
    config: Path

    def command(self, *options: str) -> list[str]:
        return ["ssh", "-F", str(self.config), *options, self.address]

    def run(self, script: str, *, given: str | None = None) -> str:
        """Run it in the head's environment, and give its stdout. given: its stdin.

        Raises ConfigError for exit code 2, HeadError.
        """
        line = f"bash -c {shlex.quote(f'{_ENVIRONMENT} && {script}')}"
        done = _execute([*self.command(), line], given=given)
        if done.returncode == 0:
            return done.stdout
        told = done.stderr.strip() or f"exit code {done.returncode}"
        if done.returncode == 2:
            raise ConfigError(told.removeprefix("hpo: "))
        raise HeadError(f"{self.address}: {told}")

    def send(self, source: str, to: str) -> None:
        """rsync; a source that ends in / is the folder's content. Raises HeadError."""
        self._rsync("--archive", "--delete", "--", source, f"{self.address}:{to}")

    def fetch(self, source: str, to: Path) -> None:
        """Files and folders alone: a link might lead to files of this machine. Raises HeadError."""
        self._rsync("--recursive", "--times", "--", f"{self.address}:{source}", str(to))

    def _rsync(self, *arguments: str) -> None:
        done = _execute(["rsync", "-e", shlex.join(["ssh", "-F", str(self.config)]), *arguments])
        if done.returncode:
            raise HeadError(f"{self.address}: rsync: {done.stderr.strip()}")

    @contextmanager
    def tunnel(self, port: int) -> Iterator[int]:
        """A port of this machine's loopback that leads to one of the head's. Raises HeadError."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            local = int(free.getsockname()[1])
        options = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{local}:127.0.0.1:{port}"]
        with tempfile.TemporaryFile("w+") as told:
            try:
                ssh = subprocess.Popen(self.command(*options), stdin=subprocess.DEVNULL, stdout=told, stderr=told)
            except OSError as error:
                raise HeadError(f"ssh: {error.strerror}; OpenSSH's client must be here") from error
            try:
                end = time.monotonic() + _TUNNEL_SECONDS
                while not _listens(local):
                    if ssh.poll() is not None or time.monotonic() > end:
                        told.seek(0)
                        raise HeadError(f"{self.address}: {told.read().strip() or 'no SSH tunnel'}")
                    time.sleep(0.05)
                yield local
            finally:
                ssh.terminate()
                ssh.wait()


@contextmanager
def head_of(path: Path, config: Config) -> Iterator[Head]:
    """The running head of a checked cluster file. Raises HeadError."""
    auth = config["auth"]
    key = Path(auth["ssh_private_key"]).expanduser().absolute() if "ssh_private_key" in auth else None
    options = {
        "User": auth.get("ssh_user"),
        "IdentityFile": f'"{key}"' if key else None,
        "IdentitiesOnly": "yes" if key else None,
        "ProxyCommand": auth.get("ssh_proxy_command"),
        "BatchMode": "yes",  # nobody is asked for a password
        "StrictHostKeyChecking": "no",  # as `ray up`: a new machine's key is known to nobody
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "ConnectTimeout": "20",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "4",
    }
    lines = [f"  {name} {value}" for name, value in options.items() if value is not None]
    with tempfile.TemporaryDirectory(prefix="hpo-") as folder:
        ssh = Path(folder) / "ssh"
        ssh.write_text("\n".join(["Host *", *lines, "Include ~/.ssh/config", ""]))  # the first value of each holds
        yield Head(address=_address(path, config), config=ssh)


def _address(path: Path, config: Config) -> str:
    provider = config["provider"]
    if provider["type"] == "local":
        return str(provider.get("external_head_ip", provider["head_ip"]))
    from ray.autoscaler._private.commands import get_head_node_ip  # noqa: PLC0415 - seconds

    try:
        with redirect_stdout(sys.stderr):
            return str(get_head_node_ip(str(path)))
    except ImportError as error:
        raise HeadError(f"{error}: `pip install -c constraints.txt -e '.[cluster]'` in the clone") from error
    except Exception as error:  # boto's, click's, RuntimeError
        raise HeadError(f"{path}: no head is running ({error}): ray up {path}") from error


# --- hpo launch -----------------------------------------------------------------------------------------------------


def launch(
    path: Path,
    name: str,
    asked: Mapping[str, Any],
    options: Mapping[str, Sequence[str]],
    *,
    mistakes: ErrorCollector | None = None,
    wait: bool = False,
) -> int:
    """Submit the search as a job of the head, which goes on when this machine is off; gives the exit code.

    asked: options by name, validated here; options: the same as words of a command line. mistakes: those that the
    request is known to have. Raises ConfigError before anything is contacted, with all mistakes, and for a search whose
    job runs; HeadError, OSError.
    """
    config, search = _checked(path, name, asked, mistakes or ErrorCollector())
    _check_images(search)
    key = _wandb_key() if search.wandb == "online" else None
    with head_of(path, config) as head, _jobs(head, config) as jobs:
        running = [job for job in jobs.of(name) if job["status"] in _UNENDED]
        if running:
            identity = running[0]["submission_id"]
            raise ConfigError(
                f"{name}: its job {identity} is {running[0]['status'].lower()}; `ray exec {path} 'hpo stop {name}'` "
                f"ends it, `ray exec {path} 'hpo watch {name}'` shows it"
            )
        words = {**options, **_shipped(head, name, asked)}
        if key:
            head.run(_KEEP_KEY, given=json.dumps(key))
        command = [word for group in words.values() for word in group]
        job = jobs.submit(name, _entrypoint(name, command))
    print(job)
    print(_how_to_watch(path, name, job, head.address), file=sys.stderr)
    return _waited(path, config, job) if wait else 0


def _checked(
    path: Path, name: str, asked: Mapping[str, Any], mistakes: ErrorCollector
) -> tuple[dict[str, Any], SearchConfig]:
    """What can be known of the request here without reading images. Raises ConfigError."""
    import search_spaces  # noqa: PLC0415 - Optuna and torch
    from hpo.policy import sampling  # noqa: PLC0415
    from model.data.image_folder import check_layout  # noqa: PLC0415

    default, config, search = SearchConfig(), None, None
    data = asked.get("data", default.data)
    with mistakes.catch():
        check_name(name)
    with mistakes.catch():
        config = cluster_config.checked(path)
    if "address" in asked:
        mistakes.add(f"address={asked['address']}: `hpo launch` searches on the cluster of its file; leave it out")
    with mistakes.catch():
        search = SearchConfig(**{**asked, "address": "auto"})
    with mistakes.catch():
        base = search.base_config() if search else TrainConfig()
        search_spaces.load(asked.get("space", default.space)).check(base, asked.get("set", {}))
    with mistakes.catch():
        if search:
            sampling.check_plugins(search)
    with mistakes.catch():
        if "/" in data and not data.startswith(("/", "s3://")) and not _is_here(data):
            raise ConfigError(f"data={data}: there is no such folder; one that the head sees has a path from / on")
        check_layout(data)
    with mistakes.catch():
        if config and search:
            _check_room(search, config)
    mistakes.raise_if_any()
    assert config
    assert search
    return config, search


def _check_images(search: SearchConfig) -> None:
    """Those that are to be shipped. Raises ConfigError."""
    from model.data.memory_mapped import PixelFiles  # noqa: PLC0415 - torch

    if not _is_here(search.data):
        return
    size = sum(file.stat().st_size for file in Path(search.data).rglob("*") if file.is_file())
    if size > _MOST_SHIPPED:
        raise ConfigError(
            f"data={search.data}: {size / 1e9:.0f} GB; folders above {_MOST_SHIPPED / 1e9:.0f} GB are not shipped. "
            "Copy it into a bucket and pass --data s3://BUCKET/PREFIX"
        )
    with PixelFiles() as store:
        search.data_config().load(store)


def _check_room(search: SearchConfig, config: Config) -> None:
    """Of a worker, for a trial. Raises ConfigError."""
    workers = [
        node["resources"]
        for name, node in config.get("available_node_types", {}).items()
        if name != config["head_node_type"]
    ]
    for resource, amount in {"CPU": search.cpus_per_trial, "GPU": search.gpus_per_trial or 0}.items():
        largest = max((node.get(resource, 0) for node in workers), default=amount)
        if amount > largest:
            option = f"{resource.lower()}s_per_trial"
            raise ConfigError(f"{option}={amount:g}: no worker of the file has more than {largest} {resource}s")


def _is_here(data: str) -> bool:
    return bool(data) and not data.startswith("s3://") and os.path.isdir(data)


def _wandb_key() -> dict[str, str]:
    from hpo.tracking.wandb_login import log_in  # noqa: PLC0415 - an optional service

    url, key = log_in()
    if key is None:
        raise ConfigError(f"W&B: {url} is logged in to without a key, which a cluster cannot do")
    return {"host": url, "api_key": key}


# By W&B's own hand, which quotes; mode 0600 also where the file was there before.
_KEEP_KEY = (
    "umask 077 && python -c 'import json, os, sys; from wandb.sdk.lib.wbauth import wbnetrc; "
    'wbnetrc.write_netrc_auth(**json.load(sys.stdin)); os.chmod(os.path.expanduser("~/.netrc"), 0o600)\''
)


def _shipped(head: Head, name: str, asked: Mapping[str, Any]) -> dict[str, list[str]]:
    """The user's own files and images, on the head's disk: only the driver reads them, trials get theirs from it.

    Not as the job's working_dir: that goes through the memory of Ray's head, at most 500 MB, and to every node.
    """
    own = {name: str(asked.get(name, "")) for name in ("space", "sampler", "pruner")}
    own, data = {name: path for name, path in own.items() if path.endswith(".py")}, str(asked.get("data", ""))
    words: dict[str, list[str]] = {}
    if not own and not _is_here(data):
        return words
    folder = head.run(f"mkdir -p ~/.hpo/shipped/{name} && cd ~/.hpo/shipped/{name} && pwd").strip()
    for option, path in own.items():
        words[option] = [f"--{option}", f"{folder}/{option}.py"]
        head.send(path, f"{folder}/{option}.py")
    if _is_here(data):
        words["data"] = ["--data", f"{folder}/data"]
        head.send(f"{data}/", f"{folder}/data/")
    return words


def _entrypoint(name: str, words: Sequence[str]) -> str:
    """For a shell; in the head's home, as `ray exec` is, so that both mean the same `runs`."""
    passed = [f"{variable}={os.environ[variable]}" for variable in _PASSED if variable in os.environ]
    return f"{_ENVIRONMENT} && exec {shlex.join(['env', *passed, 'hpo', 'search', name, '--address', 'auto', *words])}"


def _how_to_watch(path: Path, name: str, job: str, address: str) -> str:
    ways = {
        f"ray exec {path} 'hpo watch {name}'": "the live table",
        f"ray exec {path} 'ray job logs -f {job}'": "what it prints",
        f"ray dashboard {path}": "http://127.0.0.1:8265; asks for the token",
        f"ray exec {path} 'hpo stop {name}'": "end it; the same hpo launch continues it",
        f"hpo pull {path} {name} --to {name}/": "the winner so far",
    }
    width = max(map(len, ways))
    lines = [f"  {command:{width}}  # {what}" for command, what in ways.items()]
    return "\n".join([f"{name} runs on the head {address} as the job {job}, also when this machine is off.", *lines])


def _waited(path: Path, config: Config, job: str) -> int:
    """Wait for the end of a job, also while the head is away for a while. Return its exit code. Raises HeadError."""

    def state() -> dict[str, Any]:
        with head_of(path, config) as head, _jobs(head, config) as jobs:
            return jobs.state(job)

    while True:
        status = retry(
            state, is_transient=lambda error: isinstance(error, HeadError), timeout_seconds=_HEAD_TIMEOUT_SECONDS
        )
        if status["status"] not in _UNENDED:
            print(sanitize_for_terminal(f"{job}: {status['message']}"), file=sys.stderr)
            code = status.get("driver_exit_code")
            return int(code) if code is not None else {"SUCCEEDED": 0}.get(status["status"], 4)
        time.sleep(_POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class _Jobs:
    """Ray's REST interface for jobs. Not its own client, which waits for ever and obeys RAY_ADDRESS."""

    url: str
    token: str

    def of(self, search: str) -> list[dict[str, Any]]:
        """All that were submitted for a search."""
        jobs: list[dict[str, Any]] = self._ask("GET", "")
        return [job for job in jobs if (job.get("metadata") or {}).get(_SEARCH) == search]

    def state(self, job: str) -> dict[str, Any]:
        return dict(self._ask("GET", job))

    def submit(self, search: str, entrypoint: str) -> str:
        """Gives its id, of which there can be one alone: of two that submit at once, one is refused."""
        job = f"{search}-{len(self.of(search)) + 1}"
        given = {"entrypoint": entrypoint, "submission_id": job, "metadata": {_SEARCH: search}}
        return str(self._ask("POST", "", given)["submission_id"])

    def _ask(self, method: str, path: str, given: Mapping[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/jobs/{path}",
            method=method,
            data=None if given is None else json.dumps(given).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace").strip().splitlines() or [error.reason]
            if error.code in (401, 403):
                raise HeadError("Ray's head refuses the token of this machine; `ray up` sends it there") from error
            raise HeadError(f"Ray's head: {error.code}: {told[-1]}") from error
        except (OSError, ValueError) as error:
            raise HeadError(f"Ray's head does not answer ({error}); is Ray running there? ray up starts it") from error


@contextmanager
def _jobs(head: Head, config: Config) -> Iterator[_Jobs]:
    asked = re.findall(r"--dashboard-port[= ](\d+)", " ".join(config["head_start_ray_commands"]))
    with head.tunnel(int((asked or [_DASHBOARD_PORT])[0])) as port:
        yield _Jobs(f"http://127.0.0.1:{port}", cluster_config.token(config))


# --- hpo pull -------------------------------------------------------------------------------------------------------


def pull(path: Path, name: str, to: Path) -> dict[str, Any]:
    """The winner so far, exported on the head, brought here and verified; gives its manifest. `to` appears whole or
    not at all.

    Raises ConfigError where there is nothing to pull, or something else in its place; DenoiseError, HeadError, OSError.
    """
    from model.export import check_target, replace_folder  # noqa: PLC0415 - torch
    from model.export_quality import verify_export  # noqa: PLC0415 - scikit-image

    mistakes = ErrorCollector()
    with mistakes.catch():
        check_name(name)
    with mistakes.catch():
        config = cluster_config.checked(path)
    with mistakes.catch():
        check_target(to)
    mistakes.raise_if_any()
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as folder, head_of(path, config) as head:
        there = head.run("mktemp -d").strip()
        try:
            print(f"{name}: {head.address} exports the winner so far, and measures it ...", file=sys.stderr)
            head.run(f"hpo export {shlex.quote(name)} --to {there}/export")
            here = Path(folder) / "export"
            head.fetch(f"{there}/export/", here)
        finally:
            with suppress(HeadError, ConfigError):
                head.run(f"rm -rf {there}")
        manifest = verify_export(here)
        replace_folder(to, here)
    return manifest


# --- processes ------------------------------------------------------------------------------------------------------


def _execute(command: Sequence[str], *, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Raises HeadError where the program is missing, or SSH found no way."""
    stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if given is None else {"input": given}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **stdin)
    except OSError as error:
        raise HeadError(f"{command[0]}: {error.strerror}; OpenSSH's client and rsync must be here") from error
    if done.returncode == _SSH_FAILED:
        raise HeadError(f"SSH finds no way to the head: {done.stderr.strip()}")
    return done


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
