"""Every query that Ray answers through private names only (ray._private, ray._raylet), as of Ray 2.60. Overrides of
private names are in hpo/tune/ray_patches.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION


def available_resources() -> Mapping[str, Mapping[str, float]]:
    """Free resources by node id."""
    return dict(ray._private.state.available_resources_per_node())


def draining_nodes() -> set[str]:
    """The ids of nodes that take no new work."""
    return set(ray._private.state.state.get_draining_nodes())


def autoscaler_v1_report() -> bytes | None:
    """The status of autoscaler v1, as JSON; None without one."""
    key = ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS
    report: bytes | None = ray.experimental.internal_kv._internal_kv_get(key)
    return report


def drain_node(gcs_address: str, node_id: str, message: str, deadline_ms: int = 0) -> None:
    """Drain a node: it takes no new work. Raises RuntimeError if Ray refuses, ray.exceptions.RpcError.

    gcs_address: HOST:PORT of the head. deadline_ms: when the node will be gone, in milliseconds since 1970; 0: unknown.
    """
    gcs = ray._raylet.GcsClient(address=gcs_address)
    accepted, reason = gcs.drain_node(node_id, DRAIN_NODE_REASON_PREEMPTION, message, deadline_ms)
    if not accepted:
        raise RuntimeError(reason)


def node_of_actor(actor: Any) -> str:
    """The id of the node where an actor runs."""
    return str(ray._private.state.actors(actor._actor_id.hex())["Address"]["NodeID"])


def own_resources() -> dict[str, float]:
    """What Ray would offer on this machine."""
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec  # noqa: PLC0415 - the driver's alone

    return dict(ResourceAndLabelSpec().resolve(is_head=True).to_resource_dict())


def head_address(address: str) -> tuple[str, int]:
    """Host and port of the head that `address` names, such as `auto`. Raises ValueError, OSError."""
    from ray._private.services import canonicalize_bootstrap_address_or_die  # noqa: PLC0415 - the driver's alone

    host, _, port = canonicalize_bootstrap_address_or_die(address).rpartition(":")
    return host.strip("[]"), int(port)
