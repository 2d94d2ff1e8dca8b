"""The rules by which benchmarks/faults.py judges what a search survived, and what the search was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

TRIALS, EPOCHS, GRACE, REDUCTION = 5, 5, 3, 2
ENDS = (GRACE, EPOCHS)  # where a trial may end: at ASHA's only rung, and after all epochs


@dataclass(frozen=True)
class Line:
    """Of the trace (benchmarks/traced). key: of the trial's configuration; attempt: of the driver, from 0."""

    attempt: int
    pid: int
    event: str
    key: str
    epoch: int


@dataclass(frozen=True)
class Ending:
    """Of a driver. code: None if it hung; done: whether every trial had come to its end by then."""

    code: int | None
    done: bool
    left: int = 0  # processes, ten seconds later
    last_words: str = ""


def complaints(
    lines: Sequence[Line],
    endings: Sequence[Ending],
    finished: tuple[Collection[str], Collection[str]],
    excused: Collection[str] = (),
) -> list[str]:
    """Every rule that was broken, but the second. finished: trials that the record has as such, at the fault and at
    last; excused: who may end before their time."""
    before, after = finished
    last = last_epochs(lines)
    begun = Counter((line.key, line.epoch) for line in lines if line.event == "began")
    repeats = Counter(key for key, _ in begun.elements()) - Counter(key for key, _ in begun)
    again = {line.key for line in lines if line.attempt and line.key in before}
    counted = {
        "trials lost": sum(epoch not in ENDS and key not in excused for key, epoch in last.items()),
        "trials never run": TRIALS - len(last),
        "finished trials forgotten": len(set(before) - set(after)),
        "finished trials trained twice": len(again),
        "epochs repeated": sum(n for key, n in repeats.items() if n > 1 and key not in again),
        "processes left": sum(ending.left for ending in endings),
    }
    return [
        *(["exit 0, though not done"] if any(e.code == 0 and not e.done for e in endings) else []),
        *(["not exit 0, though done"] if any(e.code and e.done for e in endings) else []),
        *(["does not go on"] if endings[-1].code and not endings[-1].done else []),
        *(["hangs"] if any(e.code is None for e in endings) else []),
        *(f"{what}: {number}" for what, number in counted.items() if number > 0),
    ]


def last_epochs(lines: Sequence[Line]) -> dict[str, int]:
    """Of each trial that began: the last one that it trained to its end."""
    ended = dict.fromkeys((line.key for line in lines), 0)
    for line in lines:
        if line.event == "ended":
            ended[line.key] = max(ended[line.key], line.epoch)
    return ended


def is_done(lines: Sequence[Line], excused: Collection[str] = ()) -> bool:
    """Whether all trials came to an end."""
    last = last_epochs(lines)
    return len(last) >= TRIALS and all(epoch in ENDS or key in excused for key, epoch in last.items())
