"""The rules by which benchmarks/faults.py judges, on searches that exist only here."""

from __future__ import annotations

import pytest
from faults import Ending, Line, complaints, is_done

KEYS = ("a", "b", "c", "d", "e")
DONE, CUT = Ending(0, True), Ending(130, False)


def trained(key: str, *epochs: int, attempt: int = 0, cut: int | None = None) -> list[Line]:
    """Each begun and ended; cut: one that was begun."""
    lines = [Line(attempt, 1, event, key, epoch) for epoch in epochs for event in ("began", "ended")]
    return lines + ([Line(attempt, 1, "began", key, cut)] if cut else [])


# Two trials had finished when it was cut, the third in its second epoch, the fourth between two; and it went on.
CUT_LINES = [*trained("a", 1, 2, 3, 4, 5), *trained("b", 1, 2, 3), *trained("c", 1, cut=2), *trained("d", 1)]
LATER = [*trained("c", 2, 3, 4, 5, attempt=1), *trained("d", 2, 3, attempt=1), *trained("e", 1, 2, 3, attempt=1)]
FINISHED = ({"a", "b"}, set(KEYS))


def test_a_search_that_was_cut_and_went_on_lost_nothing_if_one_epoch_was_repeated():
    assert not is_done(CUT_LINES)
    assert is_done([*CUT_LINES, *LATER])
    assert complaints([*CUT_LINES, *LATER], [CUT, DONE], FINISHED) == []


@pytest.mark.parametrize(
    ("later", "endings", "after", "said"),
    [
        (LATER[8:] + trained("f", 1, 2, 3, attempt=1), [CUT, DONE], KEYS, "trials lost: 1"),
        (LATER[:-6], [CUT, DONE], KEYS, "trials never run: 1"),
        (LATER, [CUT, DONE], ("a", "c", "d", "e"), "finished trials forgotten: 1"),
        ([*LATER, *trained("b", 1, 2, 3, attempt=1)], [CUT, DONE], KEYS, "finished trials trained twice: 1"),
        ([*trained("c", 1, attempt=1), *LATER], [CUT, DONE], KEYS, "epochs repeated: 2"),
        (LATER, [Ending(130, False, left=2), DONE], KEYS, "processes left: 2"),
        (LATER, [Ending(0, False), DONE], KEYS, "exit 0, though not done"),
        (LATER, [CUT, Ending(-6, True)], KEYS, "not exit 0, though done"),
        (LATER, [CUT, Ending(1, False)], KEYS, "does not go on"),
        (LATER, [Ending(None, True)], KEYS, "hangs"),
    ],
)
def test_each_rule_that_is_broken_is_told(later, endings, after, said):
    assert complaints([*CUT_LINES, *later], endings, ({"a", "b"}, after)) == [said]


def test_a_trial_may_end_early_only_where_it_is_excused():
    lines = [*CUT_LINES, *LATER[8:], *trained("c", 2, attempt=1)]
    assert complaints(lines, [CUT, DONE], FINISHED) == ["trials lost: 1"]
    assert complaints(lines, [CUT, DONE], FINISHED, {"c"}) == []
    assert is_done(lines, {"c"})
    assert not is_done(lines)
