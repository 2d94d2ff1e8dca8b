"""The rules of a safe cluster file. Ray has no dry run, and its validation accepts typos inside `provider` and
`node_config`, open ports, and storage that the workers do not share: all would show when machines cost money."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hpo.cluster.config_values import (
    MARKET,
    PRICE,
    SETUP_COMMANDS,
    START_COMMANDS,
    TOKEN_FILE,
    UNFILLED,
    Config,
    assigned_values,
    command_strings,
    instance_shape,
    is_token_mount,
    mapping_at,
    odd_keys,
    strings,
    unknown_members,
)
from model.common.errors import ConfigError
from model.common.s3 import options_of
from model.common.text import did_you_mean

PINNED = version("ray")  # `ray up` needs the same version on the cluster
_PROVIDER_KEYS = {
    "aws": (
        "type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "use_external_head_ip",
        "security_group", "aws_credentials", "cloudwatch", "key_pair", "disable_launch_config_check",
        "disable_node_updaters", "foreground_node_launch", "worker_liveness_check",
    ),
    "local": ("type", "head_ip", "worker_ips", "external_head_ip", "use_internal_ips"),
}  # fmt: skip
# Without these keys Ray uses its own values, which install a nightly wheel and open the dashboard.
_COMMANDS = (*SETUP_COMMANDS[1:], *START_COMMANDS)
_REQUIRED = {
    "aws": ("max_workers", "auth", "available_node_types", "head_node_type", "file_mounts", *_COMMANDS),
    "local": ("max_workers", "auth", "file_mounts", "setup_commands", *START_COMMANDS),
}
_PROVIDER_REQUIRED = {"aws": ("region",), "local": ("head_ip", "worker_ips")}
_INSTANCE = {
    "InstanceType": "it decides what a node costs",
    "ImageId": "Ray's own is an old Ubuntu",
    "KeyName": "the key pair of auth.ssh_private_key",
    "IamInstanceProfile": "Ray would create one that may do anything with EC2 and S3",
    "SecurityGroupIds": "Ray would create a group whose port 22 is open to the world",
}
_SPOT = {
    "SpotInstanceType": ("one-time", "EC2 would replace reclaimed instances by itself, for ever"),
    "InstanceInterruptionBehavior": ("terminate", "the disks of stopped nodes still cost money"),
}
_HOME = re.compile(r"(~|/home|/root|/tmp|/var|/run|/dev|\$HOME)(/|$)")  # each host's own
_RAY = re.compile(r"(?<![\w./-])ray(?:\[[\w,-]+\])?\s*(===|==|~=|!=|<=|>=|<|>|@)\s*([^\s\"';&|,]+)")
_RAY_UNPINNED = re.compile(r"pip3?\s+install\s[^;&|]*?(?<![\w./-])ray(?:\[[\w,-]+\])?[\"']?(?=\s|$|[;&|])")
_RAY_WHEEL = re.compile(r"[^\s\"']*(?:ray-wheels|/ray-\d)[^\s\"']*")
_MOVED_MODULES = {"hpo.spot": "hpo.cluster.preemption_agent"}  # in commands of older cluster files


def find_errors(config: Config) -> list[str]:
    """Every rule that the file breaks, a line each: the rule, the value, the nearest right value."""
    if odd := list(odd_keys(config)):
        return [f"{where or 'the file'}: a key must be text, and {key} is not: quote it" for where, key in odd]
    errors = [
        f"{where}: {word} is still to be filled in"
        for where, text in strings(config)
        for word in dict.fromkeys(re.findall(rf"[\w./:-]*{UNFILLED}[\w./-]*", text))
    ]
    errors += _unknown_keys(config)
    if shape := _wrong_shape(config):  # the other rules rely on the shape
        return [*errors, *shape]
    provider_rules = {"aws": _aws, "local": _local}[config["provider"]["type"]]
    rules = (_everywhere, _environment, _versions, _moved_modules, _start, provider_rules)
    return [*errors, *(line for rule in rules for line in rule(config))]


@functools.cache
def _schema() -> dict[str, Any]:
    """Ray's schema, with the key that Ray moves before it validates."""
    import ray.autoscaler  # noqa: PLC0415 - half a second

    schema: dict[str, Any] = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    schema["properties"]["min_workers"] = {"type": "integer", "minimum": 0}  # of local providers alone
    return schema


def _unknown_keys(config: Config) -> list[str]:
    top = _schema()["properties"]
    errors = _unknown("", config, top)
    for name, node in mapping_at(config, "available_node_types").items():
        errors += _unknown(
            f"available_node_types.{name}.", node, top["available_node_types"]["patternProperties"][".*"]["properties"]
        )
        shape = instance_shape()
        for where, key, members in unknown_members(mapping_at(node, "node_config"), shape) if shape is not None else ():
            place = f"available_node_types.{name}.node_config.{where}{key}"
            errors.append(f"{place}: EC2 knows no such member. {did_you_mean(key, members)}")
    provider = mapping_at(config, "provider")
    return errors + _unknown("provider.", provider, _PROVIDER_KEYS.get(str(provider.get("type")), provider))


def _unknown(where: str, given: Any, known: Any) -> list[str]:
    names = list(known)
    keys = given if isinstance(given, Mapping) else ()
    return [f"{where}{key}: no such key. {did_you_mean(str(key), names)}" for key in keys if key not in names]


def _wrong_shape(config: Config) -> list[str]:
    """Values of the wrong type, by Ray's schema, and missing keys."""
    import jsonschema  # noqa: PLC0415 - Ray brings it

    errors = []
    for error in jsonschema.Draft7Validator(_schema()).iter_errors(dict(config)):
        if error.validator != "additionalProperties" or (error.path and error.path[0] != "available_node_types"):
            errors.append(f"{'.'.join(map(str, error.path)) or 'the file'}: {error.message}")
    if config.get("docker"):
        errors.append("docker: leave it out; `hpo launch` and `hpo pull` go to the hosts themselves")
    provider, nodes = mapping_at(config, "provider"), mapping_at(config, "available_node_types")
    kind = str(provider.get("type"))
    if kind not in _REQUIRED:
        return [*errors, f"provider.type={kind}: must be aws or local; nothing else has been run"]
    errors += [f"{key}: is missing" for key in _REQUIRED[kind] if key not in config]
    errors += [f"provider.{key}: is missing" for key in _PROVIDER_REQUIRED[kind] if key not in provider]
    if kind == "local" and nodes:
        errors.append("available_node_types: not for a local provider, whose machines are of one kind")
    if kind == "aws" and config.get("head_node_type") not in nodes:
        head = str(config.get("head_node_type"))
        errors.append(f"head_node_type={head}: not found in available_node_types. {did_you_mean(head, nodes)}")
    return errors


def _everywhere(config: Config) -> list[str]:
    errors = [
        f"{where}={text}: is open to the world; the dashboard belongs on 127.0.0.1, and SSH to your address alone"
        for where, text in strings(config)
        if re.search(r"(?<![\d.])0\.0\.0\.0|::/0", text)
    ]
    if not any(is_token_mount(remote) for remote in config["file_mounts"]):
        errors.append(
            f"file_mounts: no token: mount a folder with {TOKEN_FILE} in it at ~/.ray, such as "
            "/home/ubuntu/.ray: ~/.hpo/token"
        )
    if "ssh_user" not in config["auth"]:
        errors.append("auth.ssh_user: is missing: the user of the machines, such as ubuntu")
    if config["auth"].get("ssh_proxy_use_node_id"):
        errors.append(
            "auth.ssh_proxy_use_node_id: leave it out; `hpo launch` and `hpo pull` know the head's address alone"
        )
    if config.get("min_workers", 0) > config["max_workers"]:
        errors.append(f"min_workers={config['min_workers']}: above max_workers={config['max_workers']}")
    return errors


def _environment(config: Config) -> list[str]:
    errors = []
    modes = assigned_values(config, "RAY_AUTH_MODE", *SETUP_COMMANDS, *START_COMMANDS)  # later values must agree
    if set(modes) != {"token"} or not assigned_values(config, "RAY_AUTH_MODE"):
        errors.append(
            f"setup_commands: RAY_AUTH_MODE={', '.join(modes) or '(not set)'}: export RAY_AUTH_MODE=token on every "
            "node, else anyone who reaches Ray's ports can run code (CVE-2023-48022)"
        )
    given = assigned_values(config, "HPO_STORAGE", *SETUP_COMMANDS, *START_COMMANDS)
    if len(set(given)) != 1 or not assigned_values(config, "HPO_STORAGE"):
        errors.append(
            f"setup_commands: HPO_STORAGE={', '.join(given) or '(not set)'}: export one storage that all nodes share, "
            "such as HPO_STORAGE=s3://BUCKET/searches?region=us-west-2"
        )
    else:
        errors += _wrong_storage(given[0], config["provider"]["type"])
    return errors


def _wrong_storage(where: str, kind: str) -> list[str]:
    if where.startswith("s3://"):
        try:
            options_of(where)
        except ConfigError as error:
            return [f"HPO_STORAGE: {error}"]
        return []
    if kind == "aws":
        return [f"HPO_STORAGE={where}: instances share no folder; write s3://BUCKET/PREFIX"]
    if not where.startswith("/") or _HOME.match(where):
        return [f"HPO_STORAGE={where}: is each machine's own; name a folder that all mount, such as /mnt/shared"]
    return []


def _moved_modules(config: Config) -> list[str]:
    return [
        f"{where}: {old} is called {new} now"
        for where, text in command_strings(config)
        for old, new in _MOVED_MODULES.items()
        if re.search(rf"-m\s+{re.escape(old)}(?![\w.])", text)
    ]


def _versions(config: Config) -> list[str]:
    errors, pinned = [], False
    for where, text in command_strings(config):
        for wheel in _RAY_WHEEL.findall(text):
            errors.append(f"{where}: installs {wheel}; only Ray {PINNED} was tested: ray[default]=={PINNED}")
        for sign, number in _RAY.findall(text):
            if (sign, number) != ("==", PINNED):
                errors.append(f"{where}: installs ray{sign}{number}; this machine has ray[default]=={PINNED}")
            pinned |= (sign, number) == ("==", PINNED)
        if _RAY_UNPINNED.search(text):
            errors.append(f"{where}: installs ray of any version; this machine has ray[default]=={PINNED}")
    if not errors and not pinned:
        errors.append(f"setup_commands: nothing installs ray[default]=={PINNED}, the version of this machine")
    return errors


def _start(config: Config) -> list[str]:
    head = " ".join(config["head_start_ray_commands"])
    wanted = {
        "--dashboard-host": ("127.0.0.1", "the dashboard takes jobs, so only an SSH tunnel may reach it"),
        "--num-cpus": ("0", "a head that takes trials loses the driver with them"),
        "--num-gpus": ("0", "a head that takes trials loses the driver with them"),
        "--autoscaling-config": ("~/ray_bootstrap_config.yaml", "without it no worker is ever started"),
    }
    errors = [
        f"head_start_ray_commands: `ray start --head` wants {option}={value}: {why}"
        for option, (value, why) in wanted.items()
        if set(re.findall(rf"{option}[= ]([^\s;]+)", head)) != {value}
    ]
    if re.search(r"--include-dashboard[= ]\s*(?i:false|0)", head):
        errors.append("head_start_ray_commands: --include-dashboard=false: it is the dashboard that takes jobs")
    return errors


def _local(config: Config) -> list[str]:
    errors = []
    head = " ".join(config["head_start_ray_commands"])
    if set(re.findall(r"RAY_enable_autoscaler_v2=(\S+?)[;\s]", head)) != {"0"}:
        errors.append(
            "head_start_ray_commands: autoscaler v2 (Ray's default) counts the head of a local provider among the "
            "workers: export RAY_enable_autoscaler_v2=0 before `ray start`"
        )
    addresses = [config["provider"]["head_ip"], *config["provider"]["worker_ips"]]
    if odd := [address for address in addresses if not isinstance(address, str)]:
        return [*errors, *(f"provider: {address} is not an address: quote it" for address in odd)]
    twice = sorted({address for address in addresses if addresses.count(address) > 1 and UNFILLED not in address})
    return errors + [f"provider: {address} is listed twice; a machine is the head or a worker" for address in twice]


def _aws(config: Config) -> list[str]:
    errors = []
    if config["provider"].get("cache_stopped_nodes") is not False:
        errors.append("provider.cache_stopped_nodes: must be false: the disks of stopped nodes still cost money")
    if "ssh_private_key" not in config["auth"]:
        errors.append("auth.ssh_private_key: is missing; `hpo launch` and `hpo pull` go over SSH, too")
    if "security_group" in config["provider"]:
        errors.append("provider.security_group: Ray opens port 22 of it to the world; name your own SecurityGroupIds")
    head = config["available_node_types"][config["head_node_type"]]
    for resource in ("CPU", "GPU"):
        if head["resources"].get(resource) != 0:
            errors.append(
                f"available_node_types.{config['head_node_type']}.resources.{resource}="
                f"{head['resources'].get(resource)}: must be 0: a head that takes trials loses the driver with them"
            )
    workers = sum(node.get("min_workers", 0) for node in config["available_node_types"].values())
    if workers > config["max_workers"]:
        errors.append(f"max_workers={config['max_workers']}: below the {workers} of all min_workers")
    spot = [node.get("priority", 0) for node in config["available_node_types"].values() if _is_spot(node)]
    for name, node in config["available_node_types"].items():
        errors += [f"available_node_types.{name}.{line}" for line in _node(node, config["max_workers"])]
        priority = node.get("priority", 0)
        if spot and name != config["head_node_type"] and not _is_spot(node) and priority >= min(spot):
            errors.append(
                f"available_node_types.{name}.priority={priority}: must be below {min(spot)}, the lowest of spot: "
                "the autoscaler would buy on-demand nodes for trials that spot nodes can run"
            )
    return errors


def _is_spot(node: Config) -> bool:
    return mapping_at(node["node_config"], "InstanceMarketOptions").get("MarketType") == "spot"


def _node(node: Config, max_workers: int) -> Iterator[str]:
    """Rules of one node type."""
    least, most = node.get("min_workers", 0), node.get("max_workers", max_workers)
    if least > most:
        yield f"min_workers={least}: above max_workers={most}"
    if "worker_setup_commands" in node or "initialization_commands" in node:
        yield "worker_setup_commands, initialization_commands: leave them out; they replace the set-up of all nodes"
    labels = node.get("labels", {})
    if PRICE in labels and not re.fullmatch(r"\d+(\.\d+)?", labels[PRICE]):
        yield f'labels: {PRICE}={labels[PRICE]}: must be a number in quotes, such as "0.81"'
    bought = "spot" if _is_spot(node) else "on-demand"
    if labels.get(MARKET) != bought:
        yield (
            f"labels: {MARKET}={labels.get(MARKET, '(not set)')}: must be {bought}, as it is bought; by it the search "
            "requests on-demand nodes when no spot node comes"
        )
    yield from (f"node_config.{line}" for line in _instance(node["node_config"]))


def _instance(ec2: Config) -> Iterator[str]:
    """Rules of the arguments of RunInstances."""
    for key, why in _INSTANCE.items():
        if not ec2.get(key):
            yield f"{key}: is missing: {why}"
    if mapping_at(ec2, "MetadataOptions").get("HttpTokens") != "required":
        yield "MetadataOptions.HttpTokens: must be required (IMDSv2)"
    disks = [mapping_at(disk, "Ebs") for disk in ec2.get("BlockDeviceMappings") or [{}]]
    for key in ("Encrypted", "DeleteOnTermination"):
        if any(disk.get(key) is not True for disk in disks):
            yield f"BlockDeviceMappings: Ebs.{key} must be true for every disk"
    options = mapping_at(mapping_at(ec2, "InstanceMarketOptions"), "SpotOptions")
    for key, (right, why) in _SPOT.items():
        if options.get(key, right) != right:
            yield f"InstanceMarketOptions.SpotOptions.{key}={options[key]}: must be {right}: {why}"


def ray_errors(config: Config) -> list[str]:
    """Errors that Ray's own validation finds."""
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415

    try:
        validate_config(prepare_config(json.loads(json.dumps(config))))
    except Exception as error:  # jsonschema's, click's, ValueError, RuntimeError
        return [f"Ray refuses it: {getattr(error, 'message', error)}"]
    return []


def missing_files(config: Config) -> list[str]:
    """Files on this machine that the cluster file names and that are missing, or readable by others. A line each."""
    errors = []
    for remote, local in mapping_at(config, "file_mounts").items():
        source = os.path.expanduser(str(local))
        if UNFILLED in source:
            continue
        if not os.path.exists(source):
            errors.append(f"file_mounts.{remote}={local}: there is no such file or folder")
        elif is_token_mount(remote):
            errors += _wrong_token(Path(source) / TOKEN_FILE)
    key = mapping_at(config, "auth").get("ssh_private_key")
    if isinstance(key, str) and UNFILLED not in key:
        path = os.path.expanduser(key)
        if not os.path.isfile(path):
            errors.append(f"auth.ssh_private_key={key}: there is no such file")
        elif os.stat(path).st_mode & 0o077:
            errors.append(f"auth.ssh_private_key={key}: others can read it, and SSH refuses such keys: chmod 600 {key}")
    return errors


def _wrong_token(path: Path) -> list[str]:
    if not path.is_file():
        return [f"{path}: token not found: openssl rand -hex 32 > {path}; chmod 600 {path}"]
    if path.stat().st_mode & 0o077:
        return [f"{path}: others can read it: chmod 600 {path}"]
    if len(path.read_text(errors="replace").strip()) < 32:
        return [f"{path}: below 32 characters: openssl rand -hex 32 > {path}"]
    return []
