"""`hpo launch`: a search as a job of a cluster's head, which continues when this machine is off.

The head's dashboard accepts jobs on its loopback only. So everything goes through SSH, as `ray up` does.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from hpo.cluster import cluster_config
from hpo.cluster.config_values import Config
from hpo.exit_codes import EXIT_DONE, EXIT_MACHINE
from hpo.policy import suggestions
from hpo.policy.search_config import SearchConfig, check_name
from hpo.remote.ray_jobs import UNFINISHED, connect_to_jobs
from hpo.remote.ssh import ENVIRONMENT, HeadError, HeadNode, connect_to_head
from model.common.errors import ConfigError, ErrorCollector
from model.common.retry import retry
from model.common.text import sanitize_for_terminal
from model.data.image_folder import check_layout
from model.data.memory_mapped import PixelFiles

_MAX_UPLOAD_BYTES = 10e9  # an hour at 20 Mbit/s, a sixth of the head's disk
_FORWARDED = ("WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT")  # environment variables; the key is sent separately
_POLL_SECONDS, _HEAD_TIMEOUT_SECONDS = 10.0, 600.0  # of --wait; how long the head may be away meanwhile
_DEFAULTS = SearchConfig()


def launch(path: Path, name: str, options: Mapping[str, Any], *, errors: ErrorCollector, wait: bool = False) -> int:
    """Submit a search as a job to the cluster of a file, and return the exit code; with `wait` that of the job.

    Args:
        options: fields of SearchConfig that the user gave.
        errors: those of the command line.

    Raises:
        ConfigError: before anything is contacted, with all errors; or the search has a job that runs.
        HeadError, OSError
    """
    config, search = _check_request(path, name, options, errors)
    _check_images(search)
    key = _wandb_key() if search.wandb == "online" else None
    with connect_to_head(path, config) as head, connect_to_jobs(head, config) as jobs:
        for job in jobs.list_jobs(name):
            if job["status"] in UNFINISHED:
                raise ConfigError(
                    f"{name}: its job {job['submission_id']} is {job['status'].lower()}; `ray exec {path} 'hpo stop "
                    f"{name}'` stops it, `ray exec {path} 'hpo watch {name}'` shows it"
                )
        uploaded = _upload_files(head, name, options)
        if key:
            head.run(_STORE_KEY, stdin=json.dumps(key))
        identity = jobs.submit(name, _entrypoint(name, {**options, **uploaded}))
    print(identity)
    print(_next_commands(path, name, identity, head.address), file=sys.stderr)
    return _wait_for_job(path, config, identity) if wait else EXIT_DONE


def _check_request(
    path: Path, name: str, options: Mapping[str, Any], errors: ErrorCollector
) -> tuple[Config, SearchConfig]:
    """Make all checks that need no images. Raises ConfigError with all errors."""
    errors.attempt(check_name, name)
    config = errors.attempt(cluster_config.read_checked, path)
    if "address" in options:
        errors.add(f"address={options['address']}: `hpo launch` uses the cluster of its file; leave --address out")
    search = errors.attempt(SearchConfig, **{**options, "address": "auto"})
    errors.attempt(suggestions.check_space, search, _DEFAULTS, options)
    errors.attempt(_check_data, options.get("data", _DEFAULTS.data))
    if search:
        errors.attempt(suggestions.check_plugins, search)
    if search and config:
        errors.attempt(_check_worker_size, search, config)
    if errors or config is None or search is None:
        raise errors.as_error()
    return config, search


def _check_data(data: str) -> None:
    if "/" in data and not data.startswith(("/", "~", "s3://")) and not _is_local_folder(data):
        raise ConfigError(f"data={data}: there is no such folder; for a folder of the head give its absolute path")
    check_layout(data)


def _check_images(search: SearchConfig) -> None:
    """Read the images that are to be uploaded. Raises ConfigError."""
    if not _is_local_folder(search.data):
        return
    size = sum(file.stat().st_size for file in Path(search.data).rglob("*") if file.is_file())
    if size > _MAX_UPLOAD_BYTES:
        raise ConfigError(
            f"data={search.data}: {size / 1e9:.0f} GB; folders above {_MAX_UPLOAD_BYTES / 1e9:.0f} GB are not "
            "uploaded. Copy it to a bucket and pass --data s3://BUCKET/PREFIX"
        )
    with PixelFiles() as store:
        search.data_config().load(store)


def _check_worker_size(search: SearchConfig, config: Config) -> None:
    """Whether a trial fits on a worker. Raises ConfigError."""
    nodes = config.get("available_node_types", {})
    workers = [node["resources"] for name, node in nodes.items() if name != config["head_node_type"]]
    for resource, amount in {"CPU": search.cpus_per_trial, "GPU": search.gpus_per_trial or 0}.items():
        largest = max((node.get(resource, 0) for node in workers), default=amount)
        if amount > largest:
            option = f"{resource.lower()}s_per_trial"
            raise ConfigError(f"{option}={amount:g}: no worker of the file has more than {largest} {resource}s")


def _is_local_folder(data: str) -> bool:
    return not data.startswith("s3://") and os.path.isdir(data)


def _wandb_key() -> dict[str, str]:
    from hpo.tracking.wandb_login import log_in  # noqa: PLC0415 - an optional service

    url, key = log_in()
    if key is None:
        raise ConfigError(f"W&B: the login to {url} has no API key, which a cluster needs")
    return {"host": url, "api_key": key}


# W&B writes the file itself, since it knows the quoting. Mode 0600 also if the file existed.
_STORE_KEY = (
    "umask 077 && python -c 'import json, os, sys; from wandb.sdk.lib.wbauth import wbnetrc; "
    'wbnetrc.write_netrc_auth(**json.load(sys.stdin)); os.chmod(os.path.expanduser("~/.netrc"), 0o600)\''
)


def _upload_files(head: HeadNode, name: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Copy the user's own files and images to the head's disk, and return these options with their paths there.

    Only the driver reads them; trials get the images from it. They are not the job's working_dir, which goes through
    the memory of Ray's head, is limited to 500 MB and is copied to every node.
    """
    files = {option: str(options.get(option, "")) for option in ("space", "sampler", "pruner")}
    sources = {option: (path, f"{option}.py") for option, path in files.items() if path.endswith(".py")}
    data = str(options.get("data", ""))
    if _is_local_folder(data):
        sources["data"] = (f"{data}/", "data/")
    if not sources:
        return {}
    folder = head.run(f"mkdir -p ~/.hpo/shipped/{name} && cd ~/.hpo/shipped/{name} && pwd").strip()
    for source, target in sources.values():
        head.upload(source, f"{folder}/{target}")
    return {option: f"{folder}/{target}".rstrip("/") for option, (_, target) in sources.items()}


def _entrypoint(name: str, options: Mapping[str, Any]) -> str:
    """A shell command. It runs in the head's home, as `ray exec` does, so that both mean the same folder `runs`."""
    forwarded = [f"{variable}={os.environ[variable]}" for variable in _FORWARDED if variable in os.environ]
    command = ["env", *forwarded, "hpo", "search", name, "--address", "auto", *search_arguments(options)]
    return f"{ENVIRONMENT} && exec {shlex.join(command)}"


def search_arguments(options: Mapping[str, Any]) -> list[str]:
    """Fields of SearchConfig as arguments of `hpo search`; --NAME=VALUE, as a value may begin with a dash."""
    words = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [option] * value
        elif name == "objectives":
            words.append(f"{option}={','.join(value)}")
        elif name == "limit":
            words += [f"{option}={limit}" for limit in value]
        elif isinstance(value, tuple):  # argparse takes -0.00001 for a number, and -1e-05 for an option
            words += [option, *(format(Decimal(str(number)), "f") for number in value)]
        elif isinstance(value, Mapping):
            texts = {key: str(v).lower() if v is None or isinstance(v, bool) else str(v) for key, v in value.items()}
            words += [f"{option}={key}={text}" for key, text in texts.items()]  # the inverse of parse_setting
        else:
            words.append(f"{option}={'inf' if value is None else value}")  # max_cost: no limit
    return words


def _next_commands(path: Path, name: str, job: str, address: str) -> str:
    commands = {
        f"ray exec {path} 'hpo watch {name}'": "show the live table",
        f"ray exec {path} 'ray job logs -f {job}'": "show its output",
        f"ray dashboard {path}": "http://127.0.0.1:8265; asks for the token",
        f"ray exec {path} 'hpo stop {name}'": "stop it; the same hpo launch continues it",
        f"hpo pull {path} {name} --to {name}/": "copy the best model so far",
    }
    width = max(map(len, commands))
    lines = [f"  {command:{width}}  # {effect}" for command, effect in commands.items()]
    title = f"{name} runs on the head {address} as the job {job}. It continues when this machine is off."
    return "\n".join([title, *lines])


def _wait_for_job(path: Path, config: Config, job: str) -> int:
    """Wait for the end of a job, also while the head is away for a while. Return its exit code. Raises HeadError."""

    def status() -> dict[str, Any]:
        with connect_to_head(path, config) as head, connect_to_jobs(head, config) as jobs:
            return jobs.status(job)

    while True:
        current = retry(
            status, is_transient=lambda error: isinstance(error, HeadError), timeout_seconds=_HEAD_TIMEOUT_SECONDS
        )
        if current["status"] not in UNFINISHED:
            print(sanitize_for_terminal(f"{job}: {current['message']}"), file=sys.stderr)
            code = current.get("driver_exit_code")
            return int(code) if code is not None else EXIT_DONE if current["status"] == "SUCCEEDED" else EXIT_MACHINE
        time.sleep(_POLL_SECONDS)
