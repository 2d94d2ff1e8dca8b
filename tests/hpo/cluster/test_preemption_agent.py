"""The poller on the workers: EC2's notice becomes a drain, whatever else fails meanwhile."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import metadata_server
import pytest
from fuzzing import json_near
from hypothesis import example, given
from hypothesis import strategies as st

from hpo.cluster import preemption_agent
from hpo.cluster.preemption_agent import Metadata, watch

TOKEN, ACTION = "PUT /latest/api/token", "GET /latest/meta-data/spot/instance-action"


@pytest.fixture
def ec2() -> Iterator[metadata_server.Metadata]:
    with metadata_server.serving() as found:
        yield found


@dataclass
class FakeRaylet:
    """Lives for so many polls, and for one more after each refused drain."""

    polls: int
    node_id: str = "node"
    refusals: int = 0
    drained: list[float] = field(default_factory=list)

    def is_alive(self) -> bool:
        self.polls -= 1
        return self.polls >= 0

    def drain(self, deadline: float) -> None:
        if self.refusals:
            self.refusals -= 1
            raise RuntimeError("the head is away")
        self.drained.append(deadline)


def watched(raylet: FakeRaylet, ec2: metadata_server.Metadata) -> None:
    watch([raylet], Metadata(ec2.url), wait=lambda seconds: None)  # type: ignore[list-item]


def test_no_notice_is_no_news(ec2):
    raylet = FakeRaylet(polls=3)
    watched(raylet, ec2)
    assert raylet.drained == []
    assert ec2.asked == [f"{TOKEN} 200", *[f"{ACTION} 404"] * 3]


def test_a_notice_drains_the_node_once_until_the_time_that_it_says(ec2):
    at = time.time() // 1 + 110
    ec2.take(at)
    raylet = FakeRaylet(polls=5)
    watched(raylet, ec2)
    assert raylet.drained == [at]
    assert ec2.asked == [f"{TOKEN} 200", f"{ACTION} 200"]  # and nothing after it


def test_an_instance_that_is_to_hibernate_is_drained_at_once(ec2):
    ec2.take(time.time() - 3, "hibernate")
    raylet = FakeRaylet(polls=1)
    watched(raylet, ec2)
    assert abs(raylet.drained[0] - time.time()) < 10


@pytest.mark.parametrize("action", ["soon", "{}", '{"action": "terminate", "time": "soon"}', "[]"])
def test_a_notice_that_cannot_be_read_is_one(ec2, action):
    ec2.action = action
    raylet = FakeRaylet(polls=1)
    watched(raylet, ec2)
    assert 100 < raylet.drained[0] - time.time() < 140


def test_a_token_that_has_expired_is_renewed(ec2):
    metadata = Metadata(ec2.url)
    assert metadata.notice() is None
    ec2.tokens.clear()
    ec2.take(2e9)
    assert metadata.notice() == 2e9
    assert ec2.asked[-3:] == [f"{ACTION} 401", f"{TOKEN} 200", f"{ACTION} 200"]


def test_outages_of_the_metadata_and_of_rays_head_are_outlived_and_told_once(ec2, caplog):
    ec2.take(2e9)
    ec2.failures = 3
    raylet = FakeRaylet(polls=8, refusals=2)
    watched(raylet, ec2)
    assert raylet.drained == [2e9]
    told = [record.getMessage() for record in caplog.records if "answer" in record.getMessage()]
    assert [line.split(":")[-1].strip() for line in told] == [
        "Service Unavailable",
        "the head is away",
        "answers again",
    ]


def test_where_nobody_listens_it_goes_on_asking():
    with metadata_server.serving() as gone:
        pass
    raylet = FakeRaylet(polls=3)
    watched(raylet, gone)
    assert raylet.polls == -1


def test_a_process_that_is_gone_or_only_not_waited_for_is_not_alive():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        raylet = preemption_agent.Raylet(pid=process.pid, node_id="", gcs="")
        assert raylet.is_alive()
        assert process.stdin
        process.stdin.close()
        end = time.monotonic() + 20
        while raylet.is_alive():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert process.returncode is None
    assert not raylet.is_alive()


@given(action=st.binary() | json_near({"action": "terminate", "time": "2030-01-01T00:00:00Z"}))
@example(b'{"action": "terminate", "time": "0001-01-01T00:00:00"}')
@example(b"[" * 5000)
def test_whatever_a_notice_says_the_node_is_drained_once_at_a_time_that_is_a_number(action):
    metadata, raylet = Metadata("http://nowhere"), FakeRaylet(polls=2)
    metadata._token, metadata._open = "token", lambda request, timeout: io.BytesIO(action)
    watch([raylet], metadata, wait=lambda seconds: None)  # type: ignore[list-item]
    (deadline,) = raylet.drained
    assert time.time() - 5 < deadline < math.inf
