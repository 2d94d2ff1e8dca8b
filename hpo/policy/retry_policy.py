"""What a trial died of, and whether another attempt may end otherwise; which trials hang. Pure: Ray's error, times and
counts go in."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.common.errors import ConfigError, NotSharedError
from model.common.files import DISK_FULL_ERRNOS, describe_os_error

DRAINED = "its node was drained and is gone"

_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "out of memory", "low on memory", "can't allocate memory")
_REMEDY = "a smaller batch or width, or fewer trials at a time, leave it more"
_NO_ROOM = (*DISK_FULL_ERRNOS, errno.EROFS)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialFailure:
    """again: another attempt is worth it. move: and this one does not count, its node was taken. give up: it would end
    the same way. stop: and so would every other trial."""

    error: str  # for people, in one line
    then: Literal["again", "move", "give up", "stop"]


def classify_failure(error: BaseException | str, *, oom_kills: int = 0) -> TrialFailure:
    """error: as Ray gives it, or its text. oom_kills: by this machine's kernel since the last death."""
    cause = getattr(error, "cause", None)  # of a RayTaskError: what the trial itself raised
    line = _line(error, cause)
    if getattr(error, "preempted", False):  # of a RayActorError: its node was drained, and is gone
        return TrialFailure(error=DRAINED, then="move")
    if isinstance(cause, NotSharedError):
        return TrialFailure(error=line, then="stop")
    if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
        return TrialFailure(error=describe_os_error(cause), then="stop")
    if cause is None and oom_kills:
        return TrialFailure(error=f"out of memory: the kernel killed it; {_REMEDY}", then="give up")
    if any(sign in line for sign in _OUT_OF_MEMORY):
        return TrialFailure(error=f"out of memory: {line}; {_REMEDY}", then="give up")
    return TrialFailure(error=line, then="give up" if isinstance(cause, ConfigError) else "again")


def kernel_oom_kills() -> int:
    """Since this machine started. A process that the kernel killed for memory looks like any that was SIGKILLed."""
    found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _line(error: BaseException | str, cause: BaseException | None) -> str:
    """The exception at the end of a traceback; of Ray's long explanations the first sentence."""
    told = [line.strip() for line in str(error).splitlines() if line.strip()] or ["died without a word"]
    if cause is None:
        line = told[0] if "low on memory" in told[0] else told[-1]
        return line.split(". ")[0].removeprefix("The actor is dead because ")
    name = type(cause).__name__
    raised = [line for line in told if line.partition(":")[0].rpartition(".")[2] == name]
    return (raised or [f"{name}: {cause}".splitlines()[0]])[-1]
