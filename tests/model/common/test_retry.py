"""What fails for now is tried again, until a timeout; an outage is logged once."""

from __future__ import annotations

import itertools

import pytest

from model.common import retry as module
from model.common.retry import Outage, retry


class Clock:
    """Time passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def failing(times: float, error: Exception):
    attempts = itertools.count()

    def operation() -> str:
        if next(attempts) < times:
            raise error
        return "done"

    return operation


def test_pauses_grow_up_to_five_seconds(clock):
    failures: list[Exception] = []
    operation = failing(9, OSError("away"))
    assert retry(operation, is_transient=lambda _: True, timeout_seconds=60, on_failure=failures.append) == "done"
    assert clock.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5])
    assert len(failures) == 9


def test_after_the_timeout_the_last_error_is_raised(clock):
    with pytest.raises(OSError, match="away"):
        retry(failing(float("inf"), OSError("away")), is_transient=lambda _: True, timeout_seconds=60)
    assert 55 <= clock.now <= 60


def test_a_timeout_of_zero_is_one_attempt(clock):
    failures: list[Exception] = []
    with pytest.raises(OSError, match="away"):
        retry(failing(1, OSError("away")), is_transient=lambda _: True, timeout_seconds=0, on_failure=failures.append)
    assert (len(failures), clock.pauses) == (1, [])


def test_an_error_that_does_not_pass_is_raised_at_once(clock):
    with pytest.raises(ValueError, match="wrong"):
        retry(
            failing(1, ValueError("wrong")), is_transient=lambda error: isinstance(error, OSError), timeout_seconds=60
        )
    assert clock.pauses == []


def test_an_outage_is_logged_when_it_starts_and_when_it_ends(clock, caplog):
    outage = Outage(quiet_seconds=30)
    for _ in range(3):
        outage.started("storage", "refused", 300)
        assert outage.is_on
        clock.sleep(2)
    outage.ended("storage")
    outage.ended("storage")
    assert not outage.is_on
    assert caplog.messages == ["storage: refused; waiting, 300 s at most", "storage: is back after 6 s"]
    outage.started("storage", "refused", 300)  # soon after the last one
    outage.ended("storage")
    assert len(caplog.messages) == 2
    clock.sleep(31)
    outage.started("storage", "refused", 300)
    assert len(caplog.messages) == 3


def test_an_outage_that_nobody_waits_for_is_not_logged(clock, caplog):
    outage = Outage()
    outage.started("storage", "refused", 0)
    outage.ended("storage")
    assert caplog.messages == []
