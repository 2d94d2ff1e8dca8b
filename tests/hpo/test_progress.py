"""What a search says while it runs."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from curves import SPACE, conductor, report, run_all
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console

from hpo import results
from hpo.config import SearchConfig
from hpo.decide import HEARD, REPORTS, suggest
from hpo.progress import Progress, expected_epochs
from hpo.record import Record
from hpo.results import reports_of
from hpo.tables import decision_table, trial_table


@pytest.mark.parametrize(
    ("asked", "epochs"),
    [
        ({"grace": 1, "reduction": 3, "epochs": 12}, 1 + 11 / 3),
        # All run epoch 1; a third goes on to 3, a ninth to 9, a 27th to 12.
        ({"scheduler": "asha", "reduction": 3, "epochs": 12}, 1 + 2 / 3 + 6 / 9 + 3 / 27),
        ({"scheduler": "asha", "grace": 2, "reduction": 2, "epochs": 5}, 2 + 2 / 2 + 1 / 4),
        ({"scheduler": "none", "epochs": 12}, 12),
    ],
)
def test_the_expected_epochs_of_a_trial_are_those_worked_out_by_hand(asked, epochs):
    assert expected_epochs(SearchConfig(**asked)) == pytest.approx(epochs)


def listened(record: Record, console: Console) -> Progress:
    return Progress(record.search, record.name, 1, console)


def test_without_a_terminal_each_event_is_one_plain_line(record):
    console = Console(file=io.StringIO(), width=60)
    progress = listened(record, console)
    run_all(conductor(record, progress))
    progress.close()
    printed = console.file.getvalue()
    assert "\x1b" not in printed
    lines = [line for line in printed.splitlines() if not line.startswith("Expected:")]
    trials = record.trials()
    assert len(lines) == sum(2 + len(trial.intermediate_values) for trial in trials)
    for trial in trials:
        begun, *epochs, ended = [line for line in lines if line.startswith(f"trial {trial.number}: ")]
        assert f"lr_g={trial.params['lr_g']:.3g}" in begun
        for line, told in zip(epochs, reports_of(trial), strict=True):
            assert f"epoch {told.epoch}/4  SSIM {told.ssim:.4f}  PSNR {told.psnr_db:.2f} dB" in line
        reason = trial.user_attrs["decision"]["reason"]
        assert ended.endswith({"leaders": f"pruned at {trial.last_step}"}.get(reason, reason))


def test_a_continued_search_tells_only_of_what_it_does_itself(record):
    record.change({"trials": 3})
    run_all(conductor(record))
    record.change({"trials": 4})
    console = Console(file=io.StringIO(), width=200)
    run_all(conductor(record, listened(record, console)))
    said = {line.split(":")[0] for line in console.file.getvalue().splitlines()}
    assert said - {"Expected"} == {"trial 3"}


def test_the_table_is_readable_at_80_columns(done):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(trial_table(done.trials(), done.search))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["trial", "epoch", "SSIM", "PSNR", "state", "parameters"]
    for trial in done.trials():
        best = max((r for r in reports_of(trial) if r.ssim == r.ssim), key=lambda r: r.ssim)
        (line,) = (line for line in lines if line.split()[:1] == [str(trial.number)])
        assert f"{trial.last_step}/4" in line
        assert f"{best.ssim:.4f}  {best.psnr_db:.2f}" in line


def bracketed(number: int) -> Any:
    distribution = CategoricalDistribution(["[red]", "[/x]"])
    trial = create_trial(
        state=TrialState.RUNNING,
        params={"loss": "[red]", "lr_schedule": "[/x]"},
        distributions={"loss": distribution, "lr_schedule": distribution},
        user_attrs={REPORTS: [{**report(1, 0.5).as_dict(), HEARD: 0}]},
    )
    trial.number = number
    return trial


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_in_a_parameter_are_no_markup(search, terminal):
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    progress = Progress(search, "first", 1, console)
    progress.changed(bracketed(0))
    progress.close()
    assert "loss=[red]" in console.file.getvalue()
    assert "lr_schedule=[/x]" in console.file.getvalue()


def test_the_live_table_follows_a_whole_search(record):
    console = Console(file=io.StringIO(), width=80, height=30, force_terminal=True)
    progress = listened(record, console)
    run_all(conductor(record, progress))
    progress.close()
    last = console.file.getvalue().rpartition("/8 trials: ")[2]
    counts = [sum(t.state == state for t in record.trials()) for state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert "{} finished, {} pruned, 0 failed".format(*counts) in last
    assert "under way" not in last


def test_the_expected_time_counts_what_is_left(record):
    """Two epochs of 2.5 seconds are done, and trials of 4 epochs are expected to take 1 + 2/3 + 1/9."""
    console = Console(file=io.StringIO(), width=80)
    search = replace(record.search, trials=2)
    progress = Progress(search, "first", 2, console)
    for number in (0, 1):
        trial = bracketed(number)
        progress.changed(trial)
    # Each of two slots has 0.78 of an epoch to go.
    assert "Expected: about 00:02 more" in console.file.getvalue()


def test_the_decision_table_shows_the_values_that_were_compared(record):
    """Not those of the epoch that they were compared at: 0.95 is above the cutoff of 0.9, which is of epoch 1."""
    for _ in range(2):
        record.add(suggest(record.trials(), SPACE, record.search))
    for number, epoch, value in ((0, 1, 0.1), (1, 1, 0.9), (0, 2, 0.95)):
        record.hear(number, report(epoch, value))
    table = decision_table(results.decisions(record)["trials"])
    _, epochs, values, cutoffs, *_, outcomes = (list(column.cells) for column in table.columns)
    rows = [tuple(map(str, row)) for row in zip(epochs, values, cutoffs, outcomes, strict=True)]
    assert rows == [
        ("1", "0.1000", "0.1000", "goes on"),
        ("2", "0.1000", "0.9000", "pruned: below the cutoff, by epoch 1"),
        ("1", "0.9000", "0.9000", "goes on"),
    ]
