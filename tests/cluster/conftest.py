"""Hosts, the cloud, and a laptop beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hosts as hosts_module
import pytest
from hosts import Hosts
from laptop import Laptop


@pytest.fixture(autouse=True)
def _possible(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("cluster") and (reason := hosts_module.missing()):
        pytest.skip(reason)


@pytest.fixture
def hosts(_possible: None) -> Iterator[Hosts]:
    with Hosts() as made:
        yield made


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    return Laptop(tmp_path / "laptop")
