"""The file that `ray up` takes, held to the rules of a safe cluster: pure, but for what it names on this machine.

Ray has no dry run, and its validation accepts typos inside `provider` and `node_config`, open doors, and storage that
workers don't share: all of that would show when machines are running and cost money.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from model.common.errors import ConfigError
from model.common.s3 import options_of
from model.common.text import did_you_mean

PINNED = version("ray")  # here: `ray up` wants the same on the cluster
MARKET, PRICE = "ray.io/market-type", "hpo/usd-per-hour"  # labels of node types
TOKEN_FILE = "auth_token"
_UNFILLED = "REPLACE"
_PROVIDER_KEYS = {
    "aws": (
        "type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "use_external_head_ip",
        "security_group", "aws_credentials", "cloudwatch", "key_pair", "disable_launch_config_check",
        "disable_node_updaters", "foreground_node_launch", "worker_liveness_check",
    ),
    "local": ("type", "head_ip", "worker_ips", "external_head_ip", "use_internal_ips"),
}  # fmt: skip
_OF_RAY = ("SubnetIds",)  # members of an EC2 node_config that are not EC2's
_SETUP = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
_START = ("head_start_ray_commands", "worker_start_ray_commands")
_HOME = re.compile(r"(~|/home|/root|/tmp|/var|/run|/dev|\$HOME)(/|$)")  # each host's own
_RAY = re.compile(r"(?<![\w./-])ray(?:\[[\w,-]+\])?\s*(===|==|~=|!=|<=|>=|<|>|@)\s*([^\s\"';&|,]+)")
_RAY_UNPINNED = re.compile(r"pip3?\s+install\s[^;&|]*?(?<![\w./-])ray(?:\[[\w,-]+\])?[\"']?(?=\s|$|[;&|])")
_RAY_WHEEL = re.compile(r"[^\s\"']*(?:ray-wheels|/ray-\d)[^\s\"']*")

Config = Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    """The parsed file. Raises ConfigError."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path}: above {_MOST_BYTES} bytes, so no cluster file")
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        config = _parsed(content)
    except Exception as error:  # YAML's own, and Python's of numbers, dates and depths that it does not take
        raise ConfigError(f"{path}: no YAML ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: a cluster file is a mapping, such as cluster.yaml")
    return config


_MOST_BYTES, _MOST_NODES = 200_000, 20_000


def _parsed(content: bytes) -> Any:
    """What anchors repeat is counted before it is made: nine lines can stand for a billion."""
    loader = yaml.SafeLoader(content)
    try:
        node = loader.get_single_node()
        if _size(node, {}) > _MOST_NODES:
            raise ValueError(f"above {_MOST_NODES} values, counting what its anchors repeat")
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: Any, known: dict[int, int]) -> int:
    """Values in it. known: by the id of a node that was counted; infinitely many while it is being counted."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES + 1
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for each in inner for part in (each if isinstance(each, tuple) else (each,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def checked(path: Path) -> dict[str, Any]:
    """The parsed file, once all rules hold. Raises ConfigError with every reason why one does not."""
    config = read(path)
    found = [*mistakes(config), *missing_files(config)] or _refused_by_ray(config)
    if found:
        raise ConfigError("\n".join([f"{path}: cannot be used:", *found]))
    return config


def mistakes(config: Config) -> list[str]:
    """Every rule that the file breaks, a line each: the rule, the value, the nearest right thing."""
    if odd := [
        f"{where or 'the file'}: a key is text, and {key} is none: quote it" for where, key in _odd_keys(config)
    ]:
        return odd
    found = [
        f"{where}: {word} is still to be filled in"
        for where, text in _strings(config)
        for word in dict.fromkeys(re.findall(rf"[\w./:-]*{_UNFILLED}[\w./-]*", text))
    ]
    found += _unknown_keys(config)
    shape = _wrong_shape(config)
    if shape:  # the rules take the shape for granted
        return [*found, *shape]
    kind = config["provider"]["type"]
    return [*found, *(line for rule in (_everywhere, _commands, _RULES[kind]) for line in rule(config))]


def warnings(config: Config) -> list[str]:
    """What is allowed and yet worth knowing, of a file without mistakes."""
    if config["provider"]["type"] != "aws":
        return []
    lines = [
        f"available_node_types.{name}.labels: no {PRICE}, so neither --max-cost nor this check knows what it costs"
        for name, node in config["available_node_types"].items()
        if PRICE not in node.get("labels", {})
    ]
    if "aws_secret_access_key" in config["provider"].get("aws_credentials", {}):
        lines.append("provider.aws_credentials: the head keeps the file in clear; its role needs no keys")
    if _instance_shape() is None:
        lines.append("node_config: its members were not looked at; `pip install boto3` brings EC2's list of them")
    return lines


def summary(config: Config) -> str:
    """What the file makes, and what it can cost at most."""
    lines = [f"{config['cluster_name']}: Ray {PINNED}, storage {storage(config)}"]
    if config["provider"]["type"] == "local":
        head, workers = config["provider"]["head_ip"], config["provider"]["worker_ips"]
        return "\n".join([*lines, f"  head {head}; {len(workers)} workers: {', '.join(workers)}"])
    for name, node in config["available_node_types"].items():
        many = "1" if name == config["head_node_type"] else f"{node.get('min_workers', 0)} to {_most(config, name)}"
        labels, resources = node.get("labels", {}), node["resources"]
        price = f"{labels[PRICE]} USD an hour" if PRICE in labels else "price unknown"
        has = ", ".join(f"{resource} {amount}" for resource, amount in resources.items())
        lines.append(
            f"  {many:>6} {name}: {node['node_config']['InstanceType']} ({has}), {labels.get(MARKET, '?')}, {price}"
        )
    cost = usd_per_hour_at_most(config)
    lines.append(
        f"  at most {config['max_workers']} workers: {cost:.2f} USD an hour at most, without disks and traffic"
        if cost is not None
        else f"  at most {config['max_workers']} workers; what they cost is not known ({PRICE})"
    )
    return "\n".join(lines)


def usd_per_hour_at_most(config: Config) -> float | None:
    """The head and the dearest workers that may run at once; None where a price is missing."""
    head, workers = 0.0, list[tuple[float, int]]()
    for name, node in config["available_node_types"].items():
        price = node.get("labels", {}).get(PRICE)
        if price is None:
            return None
        if name == config["head_node_type"]:
            head = float(price)
        else:
            workers.append((float(price), _most(config, name)))
    left = config["max_workers"]
    for price, most in sorted(workers, reverse=True):
        head += price * min(most, left)
        left -= min(most, left)
    return head


def _most(config: Config, name: str) -> int:
    node, most = config["available_node_types"][name], config["max_workers"]
    return int(min(node.get("max_workers", most), most))


def storage(config: Config) -> str:
    """Where records and checkpoints lie: HPO_STORAGE of the set-up. Of a file without mistakes."""
    return _assigned(config, "HPO_STORAGE")[0]


def missing_files(config: Config) -> list[str]:
    """What the file names on this machine and is not there, or readable by others. A line each."""
    found = []
    mounts = config.get("file_mounts")
    for remote, local in mounts.items() if isinstance(mounts, dict) else ():
        source = os.path.expanduser(str(local))
        if _UNFILLED in str(local):
            continue
        if not os.path.exists(source):
            found.append(f"file_mounts.{remote}={local}: there is no such file or folder")
        elif _is_token_mount(remote):
            found += _wrong_token(Path(source) / TOKEN_FILE)
    auth = config.get("auth")
    key = auth.get("ssh_private_key") if isinstance(auth, dict) else None
    if isinstance(key, str) and _UNFILLED not in key:
        path = os.path.expanduser(key)
        if not os.path.isfile(path):
            found.append(f"auth.ssh_private_key={key}: there is no such file")
        elif os.stat(path).st_mode & 0o077:
            found.append(f"auth.ssh_private_key={key}: others can read it, and SSH refuses such keys: chmod 600 {key}")
    return found


def token(config: Config) -> str:
    """The cluster's, from this machine. Of a file without mistakes. Raises OSError."""
    (folder,) = (local for remote, local in config["file_mounts"].items() if _is_token_mount(remote))
    return (Path(folder).expanduser() / TOKEN_FILE).read_text().strip()


# --- rules ----------------------------------------------------------------------------------------------------------


@functools.cache
def _schema() -> dict[str, Any]:
    """Ray's own, with what it moves elsewhere before it validates."""
    import ray.autoscaler  # noqa: PLC0415 - half a second

    schema: dict[str, Any] = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    schema["properties"]["min_workers"] = {"type": "integer", "minimum": 0}  # of local providers alone
    return schema


def _unknown_keys(config: Config) -> list[str]:
    top = _schema()["properties"]
    found = _unknown("", config, top)
    for name, node in _mapping(config, "available_node_types").items():
        found += _unknown(
            f"available_node_types.{name}.", node, top["available_node_types"]["patternProperties"][".*"]["properties"]
        )
        shape = _instance_shape()
        for where, key, members in _unknown_members(_mapping(node, "node_config"), shape) if shape is not None else ():
            place = f"available_node_types.{name}.node_config.{where}{key}"
            found.append(f"{place}: EC2 knows no such member. {did_you_mean(key, members)}")
    provider = _mapping(config, "provider")
    return found + _unknown("provider.", provider, _PROVIDER_KEYS.get(str(provider.get("type")), provider))


def _wrong_shape(config: Config) -> list[str]:
    """Values of the wrong kind, by Ray's schema, and what is missing."""
    import jsonschema  # noqa: PLC0415 - Ray brings it

    found = []
    for error in jsonschema.Draft7Validator(_schema()).iter_errors(dict(config)):
        if error.validator != "additionalProperties" or (error.path and error.path[0] != "available_node_types"):
            found.append(f"{'.'.join(map(str, error.path)) or 'the file'}: {error.message}")
    if config.get("docker"):
        found.append("docker: leave it out; `hpo launch` and `hpo pull` go to the hosts themselves")
    provider, nodes = _mapping(config, "provider"), _mapping(config, "available_node_types")
    kind = str(provider.get("type"))
    if kind not in _RULES:
        return [*found, f"provider.type={kind}: must be aws or local; nothing else has been run"]
    found += [f"{key}: is missing" for key in _WANTED[kind] if key not in config]
    found += [f"provider.{key}: is missing" for key in _OF_PROVIDER[kind] if key not in provider]
    if kind == "local" and nodes:
        found.append("available_node_types: not for a local provider, whose machines are of one kind")
    if kind == "aws" and config.get("head_node_type") not in nodes:
        head = str(config.get("head_node_type"))
        found.append(f"head_node_type={head}: is none of available_node_types. {did_you_mean(head, nodes)}")
    return found


def _everywhere(config: Config) -> list[str]:
    found = [
        f"{where}={text}: is open to the world; the dashboard belongs on 127.0.0.1, and SSH to your address alone"
        for where, text in _strings(config)
        if re.search(r"(?<![\d.])0\.0\.0\.0|::/0", text)
    ]
    if not any(_is_token_mount(remote) for remote in config["file_mounts"]):
        found.append(
            f"file_mounts: no token: mount a folder with {TOKEN_FILE} in it at ~/.ray, such as "
            "/home/ubuntu/.ray: ~/.hpo/token"
        )
    if "ssh_user" not in config["auth"]:
        found.append("auth.ssh_user: is missing: the user of the machines, such as ubuntu")
    if config["auth"].get("ssh_proxy_use_node_id"):
        found.append(
            "auth.ssh_proxy_use_node_id: leave it out; `hpo launch` and `hpo pull` know the head's address alone"
        )
    if config.get("min_workers", 0) > config["max_workers"]:
        found.append(f"min_workers={config['min_workers']}: above max_workers={config['max_workers']}")
    return found


def _commands(config: Config) -> list[str]:
    """Of the set-up, and of how Ray is started."""
    return [*_environment(config), *_versions(config), *_start(config)]


def _environment(config: Config) -> list[str]:
    found = []
    modes = _assigned(config, "RAY_AUTH_MODE", *_SETUP, *_START)  # whoever sets it again must agree
    if set(modes) != {"token"} or not _assigned(config, "RAY_AUTH_MODE"):
        found.append(
            f"setup_commands: RAY_AUTH_MODE={', '.join(modes) or '(not set)'}: export RAY_AUTH_MODE=token on every "
            "node, else whoever reaches Ray's ports runs what he likes (CVE-2023-48022)"
        )
    given = _assigned(config, "HPO_STORAGE", *_SETUP, *_START)
    if len(set(given)) != 1 or not _assigned(config, "HPO_STORAGE"):
        found.append(
            f"setup_commands: HPO_STORAGE={', '.join(given) or '(not set)'}: export one storage that all nodes share, "
            "such as HPO_STORAGE=s3://BUCKET/searches?region=us-west-2"
        )
    else:
        found += _wrong_storage(given[0], config["provider"]["type"])
    return found


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


def _versions(config: Config) -> list[str]:
    found, pinned = [], False
    for where, text in _command_strings(config):
        for wheel in _RAY_WHEEL.findall(text):
            found.append(f"{where}: installs {wheel}; only Ray {PINNED} was tested: ray[default]=={PINNED}")
        for sign, number in _RAY.findall(text):
            if (sign, number) != ("==", PINNED):
                found.append(f"{where}: installs ray{sign}{number}; here is Ray {PINNED}: write ray[default]=={PINNED}")
            pinned |= (sign, number) == ("==", PINNED)
        if _RAY_UNPINNED.search(text):
            found.append(f"{where}: installs ray of any version; here is Ray {PINNED}: write ray[default]=={PINNED}")
    if not found and not pinned:
        found.append(f"setup_commands: nothing installs ray[default]=={PINNED}, the version that is here")
    return found


def _start(config: Config) -> list[str]:
    head = " ".join(config["head_start_ray_commands"])
    wanted = {
        "--dashboard-host": ("127.0.0.1", "the dashboard takes jobs, so only an SSH tunnel may reach it"),
        "--num-cpus": ("0", "a head that takes trials loses the driver with them"),
        "--num-gpus": ("0", "a head that takes trials loses the driver with them"),
        "--autoscaling-config": ("~/ray_bootstrap_config.yaml", "without it no worker is ever started"),
    }
    found = [
        f"head_start_ray_commands: `ray start --head` wants {option}={value}: {why}"
        for option, (value, why) in wanted.items()
        if set(re.findall(rf"{option}[= ]([^\s;]+)", head)) != {value}
    ]
    if re.search(r"--include-dashboard[= ]\s*(?i:false|0)", head):
        found.append("head_start_ray_commands: --include-dashboard=false: it is the dashboard that takes jobs")
    return found


def _local(config: Config) -> list[str]:
    values = re.findall(r"RAY_enable_autoscaler_v2=(\S+?)[;\s]", " ".join(config["head_start_ray_commands"]))
    found = []
    if set(values) != {"0"}:
        found.append(
            "head_start_ray_commands: autoscaler v2 (Ray's default) counts the head of a local provider among the "
            "workers: export RAY_enable_autoscaler_v2=0 before `ray start`"
        )
    addresses = [config["provider"]["head_ip"], *config["provider"]["worker_ips"]]
    if odd := [address for address in addresses if not isinstance(address, str)]:
        return [*found, *(f"provider: {address} is no address: quote it" for address in odd)]
    twice = sorted({address for address in addresses if addresses.count(address) > 1 and _UNFILLED not in address})
    return found + [f"provider: {address} is listed twice; a machine is the head or a worker" for address in twice]


def _aws(config: Config) -> list[str]:
    found = []
    if config["provider"].get("cache_stopped_nodes") is not False:
        found.append("provider.cache_stopped_nodes: must be false: the disks of stopped nodes go on costing")
    if "ssh_private_key" not in config["auth"]:
        found.append("auth.ssh_private_key: is missing; `hpo launch` and `hpo pull` go over SSH, too")
    if "security_group" in config["provider"]:
        found.append("provider.security_group: Ray opens port 22 of it to the world; name your own SecurityGroupIds")
    head = config["available_node_types"][config["head_node_type"]]
    for resource in ("CPU", "GPU"):
        if head["resources"].get(resource) != 0:
            found.append(
                f"available_node_types.{config['head_node_type']}.resources.{resource}="
                f"{head['resources'].get(resource)}: must be 0: a head that takes trials loses the driver with them"
            )
    workers = sum(node.get("min_workers", 0) for node in config["available_node_types"].values())
    if workers > config["max_workers"]:
        found.append(f"max_workers={config['max_workers']}: below the {workers} of all min_workers")
    spot = [node.get("priority", 0) for node in config["available_node_types"].values() if _is_spot(node)]
    for name, node in config["available_node_types"].items():
        found += [f"available_node_types.{name}.{line}" for line in _node(node, config["max_workers"])]
        priority = node.get("priority", 0)
        if spot and name != config["head_node_type"] and not _is_spot(node) and priority >= min(spot):
            found.append(
                f"available_node_types.{name}.priority={priority}: must be below {min(spot)}, the least of spot's: "
                "the autoscaler would buy on-demand nodes for trials that spot nodes can run"
            )
    return found


def _is_spot(node: Config) -> bool:
    return _mapping(node["node_config"], "InstanceMarketOptions").get("MarketType") == "spot"


def _node(node: Config, max_workers: int) -> Iterator[str]:
    """Of one type of nodes."""
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
            f"labels: {MARKET}={labels.get(MARKET, '(not set)')}: must be {bought}, as it is bought; the search asks "
            "for on-demand nodes by it when no spot node comes"
        )
    yield from (f"node_config.{line}" for line in _instance(node["node_config"]))


def _instance(ec2: Config) -> Iterator[str]:
    """Of what RunInstances is asked for."""
    for key, why in _INSTANCE.items():
        if not ec2.get(key):
            yield f"{key}: is missing: {why}"
    if _mapping(ec2, "MetadataOptions").get("HttpTokens") != "required":
        yield "MetadataOptions.HttpTokens: must be required (IMDSv2)"
    disks = [_mapping(disk, "Ebs") for disk in ec2.get("BlockDeviceMappings") or [{}]]
    for key in ("Encrypted", "DeleteOnTermination"):
        if any(disk.get(key) is not True for disk in disks):
            yield f"BlockDeviceMappings: Ebs.{key} must be true for every disk"
    options = _mapping(_mapping(ec2, "InstanceMarketOptions"), "SpotOptions")
    for key, (right, why) in _SPOT.items():
        if options.get(key, right) != right:
            yield f"InstanceMarketOptions.SpotOptions.{key}={options[key]}: must be {right}: {why}"


_INSTANCE = {
    "InstanceType": "it decides what a node costs",
    "ImageId": "Ray's own is an old Ubuntu",
    "KeyName": "the key pair of auth.ssh_private_key",
    "IamInstanceProfile": "Ray would make one that may do anything with EC2 and S3",
    "SecurityGroupIds": "Ray would make a group whose port 22 is open to the world",
}
_SPOT = {
    "SpotInstanceType": ("one-time", "EC2 would start others by itself, for ever"),
    "InstanceInterruptionBehavior": ("terminate", "the disks of stopped nodes go on costing"),
}
# Without them Ray takes its own, which install a nightly wheel and open the dashboard.
_WANTED = {
    "aws": ("max_workers", "auth", "available_node_types", "head_node_type", "file_mounts", *_SETUP[1:], *_START),
    "local": ("max_workers", "auth", "file_mounts", "setup_commands", *_START),
}
_OF_PROVIDER = {"aws": ("region",), "local": ("head_ip", "worker_ips")}
_RULES = {"aws": _aws, "local": _local}


def _refused_by_ray(config: Config) -> list[str]:
    """The last word is Ray's."""
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415

    try:
        validate_config(prepare_config(json.loads(json.dumps(config))))
    except Exception as error:  # jsonschema's, click's, ValueError, RuntimeError
        return [f"Ray refuses it: {getattr(error, 'message', error)}"]
    return []


# --- looking into it ------------------------------------------------------------------------------------------------


def _strings(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every string, keys too, with its place."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{where}.{key}" if where else str(key)
            yield from ((place, str(key)),) if _UNFILLED in str(key) else ()
            yield from _strings(inner, place)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{where}[{index}]")


def _odd_keys(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """YAML takes numbers, dates and `on` for what they look like."""
    inner = dict(enumerate(value)) if isinstance(value, list) else value
    for key, part in inner.items() if isinstance(inner, dict) else ():
        if isinstance(value, dict) and not isinstance(key, str):
            yield where, key
        yield from _odd_keys(part, f"{where}.{key}" if where else str(key))


def _command_strings(config: Config) -> Iterator[tuple[str, str]]:
    for where, text in _strings(config):
        if "_commands[" in where:
            yield where, text


def _assigned(config: Config, name: str, *among: str) -> list[str]:
    """Values that commands give an environment variable, "NAME=value" or NAME=value. among: lists of commands; those
    that every node runs, if not given."""
    found = []
    for where, text in _command_strings(config):
        if where.startswith(among or "setup_commands"):
            quoted = re.findall(rf"([\"']){name}=(.*?)\1", text)
            bare = re.findall(rf"(?<![\w\"']){name}=([^\s\"';&|]+)", text)
            found += [value for _, value in quoted] + bare
    return found


def _mapping(config: Config, key: str) -> Config:
    value = config.get(key) if isinstance(config, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _unknown(where: str, given: Any, known: Any) -> list[str]:
    names = list(known)
    keys = given if isinstance(given, Mapping) else ()
    return [f"{where}{key}: no such key. {did_you_mean(str(key), names)}" for key in keys if key not in names]


def _is_token_mount(remote: Any) -> bool:
    return str(remote).rstrip("/").endswith("/.ray")


def _wrong_token(path: Path) -> list[str]:
    if not path.is_file():
        return [f"{path}: no token there: openssl rand -hex 32 > {path}; chmod 600 {path}"]
    if path.stat().st_mode & 0o077:
        return [f"{path}: others can read it: chmod 600 {path}"]
    if len(path.read_text(errors="replace").strip()) < 32:
        return [f"{path}: below 32 characters: openssl rand -hex 32 > {path}"]
    return []


@functools.cache  # 0.2 s
def _instance_shape() -> Any | None:
    """EC2's own description of RunInstances; None where boto3 is not installed."""
    try:
        from botocore.session import get_session  # noqa: PLC0415 - it need not be here
    except ImportError:
        return None
    return get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _unknown_members(given: Any, shape: Any, where: str = "") -> Iterator[tuple[str, str, list[str]]]:
    if shape.type_name == "structure" and isinstance(given, Mapping):
        members = [*shape.members, *(() if where else _OF_RAY)]
        for key, value in given.items():
            if key not in members:
                yield where, str(key), members
            elif key in shape.members:
                yield from _unknown_members(value, shape.members[key], f"{where}{key}.")
    elif shape.type_name == "list" and isinstance(given, list):
        for value in given:
            yield from _unknown_members(value, shape.member, where)
