"""cluster.yaml and cluster.onprem.yaml for the stand-ins: only what names real machines and accounts is replaced.

Every replaced value is told: it is the difference between the two files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_STORE_BYTES = 200_000_000  # of a host's /dev/shm of 512 MB
_CPUS = 1  # that a host at hand says it has: this machine's are shared by all of them


@dataclass(frozen=True, kw_only=True, slots=True)
class StandIns:
    """What takes the place of real things. The fields that only one of the files needs may be left out."""

    key: Path  # for ssh
    token: Path  # a folder with auth_token
    storage: str
    environment: Mapping[str, str]  # more of it, on every node
    subnet: str = ""
    image: str = ""
    security_group: str = ""
    endpoint: str = ""  # of EC2's API
    credentials: Mapping[str, str] | None = None
    addresses: tuple[str, ...] = ()  # of the machines at hand, the head first


def substituted(path: Path, stand_ins: StandIns) -> tuple[dict[str, Any], list[str]]:
    """The file's content for `ray up`, and a line for each value that was replaced."""
    original = yaml.safe_load(path.read_text())
    config = yaml.safe_load(path.read_text())
    config["auth"].update(ssh_user="ubuntu", ssh_private_key=str(stand_ins.key))
    config["file_mounts"] = {
        where: str(stand_ins.token) if where.endswith(".ray") else what for where, what in config["file_mounts"].items()
    }
    for name in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        config[name] = [_without_installation(_with_storage(command, stand_ins)) for command in config[name]]
    config["setup_commands"].append(_environment(stand_ins.environment))
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[name] = [_with_small_store(command) for command in config[name]]
    if config["provider"]["type"] == "aws":
        _aws(config, stand_ins)
    else:
        _local(config, stand_ins)
    before, after = dict(_leaves(original)), dict(_leaves(config))
    told = [
        f"{name}: {before.get(name, '(none)')} -> {after.get(name, '(none)')}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]
    return config, told


def write(path: Path, to: Path, stand_ins: StandIns) -> Path:
    """`to`, for `ray up`; tells on stderr what was replaced."""
    config, told = substituted(path, stand_ins)
    to.write_text(yaml.safe_dump(config, sort_keys=False, width=10_000))
    print(f"{path.name}, for the stand-ins:", *told, sep="\n  ", file=sys.stderr)
    return to


def _aws(config: dict[str, Any], stand_ins: StandIns) -> None:
    config["idle_timeout_minutes"] = 0.5  # not a test's five minutes
    config["provider"].update(
        availability_zone="us-west-2a",
        use_internal_ips=True,
        aws_credentials={**(stand_ins.credentials or {}), "endpoint_url": stand_ins.endpoint},
    )
    for node_type in config["available_node_types"].values():
        node_type["node_config"] = {
            **node_type["node_config"],  # YAML's anchors share one
            "ImageId": stand_ins.image,
            "KeyName": "stand-in",
            "SecurityGroupIds": [stand_ins.security_group],
            "SubnetIds": [stand_ins.subnet],
        }


def _local(config: dict[str, Any], stand_ins: StandIns) -> None:
    head, *workers = stand_ins.addresses
    config["provider"].update(head_ip=head, worker_ips=workers)
    config.update(min_workers=len(workers), max_workers=len(workers))
    config["worker_start_ray_commands"] = [
        re.sub(r"(ray start --address\S+)", rf"\1 --num-cpus={_CPUS}", command)
        for command in config["worker_start_ray_commands"]
    ]


def _with_storage(command: str, stand_ins: StandIns) -> str:
    return re.sub(r"'HPO_STORAGE=[^']*'", lambda _: f"'HPO_STORAGE={stand_ins.storage}'", command)


def _without_installation(command: str) -> str:
    """The hosts see this machine's files, so its environment is theirs; and it has no GPU that a worker must find."""
    if command.startswith("test -x ~/.venv/bin/python ||"):
        return f"ln -sfn {sys.prefix} ~/.venv"
    return re.sub(r"(~/\.venv/bin/(?:pip install|python -c))", r": \1", command)  # `:` does nothing


def _environment(more: Mapping[str, str]) -> str:
    pairs = " ".join(f"'{name}={value}'" for name, value in more.items())
    return f"printf 'export \"%s\"\\n' {pairs} >> ~/.hpo/environment"


def _with_small_store(command: str) -> str:
    return re.sub(r"(ray start (?:--head|--address\S+))", rf"\1 --object-store-memory={_STORE_BYTES}", command)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{name}[{index}]")
    else:
        yield name, value
