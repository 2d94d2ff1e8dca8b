"""The members of EC2's RunInstances, by EC2's own description in botocore."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

_RAY_MEMBERS = ("SubnetIds",)  # members of a node_config that are Ray's


@functools.cache  # 0.2 s
def instance_shape() -> Any | None:
    """The description of RunInstances; None where boto3 is not installed."""
    try:
        from botocore.session import get_session  # noqa: PLC0415 - an optional package
    except ImportError:
        return None
    return get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def unknown_members(given: Any, shape: Any, where: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """Every member that EC2 does not know: its path, its name, and the members that may stand there."""
    if shape.type_name == "structure" and isinstance(given, Mapping):
        members = [*shape.members, *(() if where else _RAY_MEMBERS)]
        for key, value in given.items():
            if key not in members:
                yield where, str(key), members
            elif key in shape.members:
                yield from unknown_members(value, shape.members[key], f"{where}{key}.")
    elif shape.type_name == "list" and isinstance(given, list):
        for value in given:
            yield from unknown_members(value, shape.member, where)
