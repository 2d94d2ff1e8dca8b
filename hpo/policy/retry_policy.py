"""What happens after a trial's process or node died: the cause, whether the trial is retried, and how often.
`kernel_oom_kills` reads the machine; the other functions are pure."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from hpo.policy.trial_attributes import FAILURES, MIGRATIONS
from model.common.errors import ConfigError, MachineError, NotSharedError
from model.common.files import DISK_FULL_ERRNOS, describe_os_error

MAX_ATTEMPTS = 3  # per trial, over all drivers of the search
MAX_MIGRATIONS = 20  # per trial; they do not count as attempts, but must not continue for ever
ABORT_AFTER_FAILURES = 3  # failed trials, while none has finished an epoch: the cause is not in the trials

DRAINED = "its node was drained and is gone"

_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "out of memory", "low on memory", "can't allocate memory")
_OUT_OF_MEMORY_REMEDY = "a smaller batch or width, or fewer trials at a time, leave it more"
_UNWRITABLE_ERRNOS = (*DISK_FULL_ERRNOS, errno.EROFS)


class FailureAction(Enum):
    """What to do after a failure."""

    RETRY = "retry"  # from the trial's last checkpoint
    MIGRATE = "migrate"  # as RETRY, but the node was taken, so that the attempt does not count
    FAIL_TRIAL = "fail trial"  # another attempt would fail the same way
    ABORT_SEARCH = "abort search"  # every other trial would fail the same way, too


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialFailure:
    """Why a trial's process or node died."""

    error: str  # the cause in one line, for people
    action: FailureAction


def classify_failure(error: BaseException | str, *, oom_kills: int = 0) -> TrialFailure:
    """Find the cause of a failure, from Ray's error or its text, and what to do about it. oom_kills: processes that
    this machine's kernel has killed for memory since the failure before."""
    cause = getattr(error, "cause", None)  # of a RayTaskError: the exception in the trial
    line = _summary(error, cause)
    if getattr(error, "preempted", False):  # of a RayActorError: its node was drained
        return TrialFailure(error=DRAINED, action=FailureAction.MIGRATE)
    if isinstance(cause, NotSharedError):
        return TrialFailure(error=line, action=FailureAction.ABORT_SEARCH)
    if isinstance(cause, OSError) and cause.errno in _UNWRITABLE_ERRNOS:
        return TrialFailure(error=describe_os_error(cause), action=FailureAction.ABORT_SEARCH)
    if cause is None and oom_kills:
        line = "out of memory: the kernel killed it"
    elif any(sign in line for sign in _OUT_OF_MEMORY):
        line = f"out of memory: {line}"
    if line.startswith("out of memory: "):
        return TrialFailure(error=f"{line}; {_OUT_OF_MEMORY_REMEDY}", action=FailureAction.FAIL_TRIAL)
    is_bad_input = isinstance(cause, ConfigError)
    return TrialFailure(error=line, action=FailureAction.FAIL_TRIAL if is_bad_input else FailureAction.RETRY)


def final_error(failure: TrialFailure, trial: FrozenTrial) -> str | None:
    """The error of a trial that is not retried; None: it is retried. trial: the failure is on record already. Failures
    and migrations are counted over all drivers."""
    is_migration = failure.action is FailureAction.MIGRATE
    key, limit = (MIGRATIONS, MAX_MIGRATIONS) if is_migration else (FAILURES, MAX_ATTEMPTS)
    count = len(trial.user_attrs[key])
    if failure.action in (FailureAction.RETRY, FailureAction.MIGRATE) and count < limit:
        return None
    verb = "moved" if is_migration else "died"
    return failure.error if count == 1 else f"{verb} {count} times, at last: {failure.error}"


def check_hopeless(trials: Sequence[FrozenTrial], latest: TrialFailure) -> None:
    """Raises MachineError if trials only fail: none of the others can be expected to succeed."""
    failed = sum(trial.state == TrialState.FAIL for trial in trials)
    if failed >= ABORT_AFTER_FAILURES and not any(trial.intermediate_values for trial in trials):
        raise MachineError(f"{failed} trials failed and none finished an epoch; the last one: {latest.error}")


def kernel_oom_kills() -> int:
    """Out-of-memory kills since this machine started. A killed process looks like any other after SIGKILL."""
    match = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    return int(match[1]) if match else 0


def _summary(error: BaseException | str, cause: BaseException | None) -> str:
    """The exception at the end of a traceback; the first sentence of Ray's long explanations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["died without a word"]
    if cause is None:
        line = lines[0] if "low on memory" in lines[0] else lines[-1]
        return line.split(". ")[0].removeprefix("The actor is dead because ")
    name = type(cause).__name__
    raised = [line for line in lines if line.partition(":")[0].rpartition(".")[2] == name]
    return (raised or [f"{name}: {cause}".splitlines()[0]])[-1]
