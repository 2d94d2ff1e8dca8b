"""The cluster file of `ray up`: read, checked and summed up. The rules are in hpo.cluster.cluster_rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hpo.cluster import cluster_rules
from hpo.cluster.config_values import (
    MARKET,
    PRICE,
    TOKEN_FILE,
    Config,
    assigned_values,
    instance_shape,
    is_token_mount,
)
from model.common.errors import ConfigError

_MAX_BYTES, _MAX_NODES = 200_000, 20_000


def read(path: Path) -> dict[str, Any]:
    """The parsed file. Raises ConfigError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: above {_MAX_BYTES} bytes, too large for a cluster file")
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        config = _parse(content)
    except Exception as error:  # YAML's, and Python's for invalid numbers, dates and depths
        raise ConfigError(f"{path}: invalid YAML ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: a cluster file is a mapping, such as cluster.yaml")
    return config


def _parse(content: bytes) -> Any:
    """Values that anchors repeat are counted before they are built: nine lines can stand for a billion."""
    loader = yaml.SafeLoader(content)
    try:
        node = loader.get_single_node()
        if _size(node, {}) > _MAX_NODES:
            raise ValueError(f"above {_MAX_NODES} values, counting what its anchors repeat")
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: Any, known: dict[int, int]) -> int:
    """Number of values in a node. known: numbers by the id of a node; too many while the node is being counted."""
    if id(node) not in known:
        known[id(node)] = _MAX_NODES + 1
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for each in inner for part in (each if isinstance(each, tuple) else (each,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def read_checked(path: Path) -> dict[str, Any]:
    """The parsed file, if it keeps all rules. Raises ConfigError with every error."""
    config = read(path)
    errors = [*cluster_rules.find_errors(config), *cluster_rules.missing_files(config)]
    errors = errors or cluster_rules.ray_errors(config)
    if errors:
        raise ConfigError("\n".join([f"{path}: cannot be used:", *errors]))
    return config


def warnings(config: Config) -> list[str]:
    """Warnings about a file without errors."""
    if config["provider"]["type"] != "aws":
        return []
    lines = [
        f"available_node_types.{name}.labels: no {PRICE}, so neither --max-cost nor this check knows what it costs"
        for name, node in config["available_node_types"].items()
        if PRICE not in node.get("labels", {})
    ]
    if "aws_secret_access_key" in config["provider"].get("aws_credentials", {}):
        lines.append("provider.aws_credentials: the head keeps the file in plain text; its role needs no keys")
    if instance_shape() is None:
        lines.append("node_config: its members were not checked; `pip install boto3` brings EC2's list of them")
    return lines


def summary(config: Config) -> str:
    """The nodes of the cluster, and the maximum of what it can cost."""
    lines = [f"{config['cluster_name']}: Ray {cluster_rules.PINNED}, storage {storage_address(config)}"]
    if config["provider"]["type"] == "local":
        head, workers = config["provider"]["head_ip"], config["provider"]["worker_ips"]
        return "\n".join([*lines, f"  head {head}; {len(workers)} workers: {', '.join(workers)}"])
    for name, node in config["available_node_types"].items():
        count = f"{node.get('min_workers', 0)} to {_max_workers(config, name)}"
        count = "1" if name == config["head_node_type"] else count
        labels, resources = node.get("labels", {}), node["resources"]
        price = f"{labels[PRICE]} USD an hour" if PRICE in labels else "price unknown"
        has = ", ".join(f"{resource} {amount}" for resource, amount in resources.items())
        lines.append(
            f"  {count:>6} {name}: {node['node_config']['InstanceType']} ({has}), {labels.get(MARKET, '?')}, {price}"
        )
    cost = max_usd_per_hour(config)
    lines.append(
        f"  at most {config['max_workers']} workers: {cost:.2f} USD an hour at most, without disks and traffic"
        if cost is not None
        else f"  at most {config['max_workers']} workers; their cost is unknown ({PRICE})"
    )
    return "\n".join(lines)


def max_usd_per_hour(config: Config) -> float | None:
    """USD of the head and the dearest workers that may run at once; None where a price is missing."""
    total, workers = 0.0, list[tuple[float, int]]()
    for name, node in config["available_node_types"].items():
        price = node.get("labels", {}).get(PRICE)
        if price is None:
            return None
        if name == config["head_node_type"]:
            total = float(price)
        else:
            workers.append((float(price), _max_workers(config, name)))
    left = config["max_workers"]
    for price, most in sorted(workers, reverse=True):
        total += price * min(most, left)
        left -= min(most, left)
    return total


def _max_workers(config: Config, name: str) -> int:
    node, limit = config["available_node_types"][name], config["max_workers"]
    return int(min(node.get("max_workers", limit), limit))


def storage_address(config: Config) -> str:
    """HPO_STORAGE of a file without errors: where searches and checkpoints are stored."""
    return assigned_values(config, "HPO_STORAGE")[0]


def token(config: Config) -> str:
    """The cluster's token, from this machine, for a file without errors. Raises OSError."""
    (folder,) = (local for remote, local in config["file_mounts"].items() if is_token_mount(remote))
    return (Path(folder).expanduser() / TOKEN_FILE).read_text().strip()
