"""What a search says while it runs."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from curves import SEARCH, SPACE, append_report, controller, counted, report, run_all
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console

from hpo.cli.commands import main
from hpo.policy.leaderboard import best_report, reports_of
from hpo.policy.report_decision import epochs_left, expected_epochs, next_comparison
from hpo.policy.search_config import SearchConfig
from hpo.policy.suggestions import suggest
from hpo.policy.trial_attributes import REPORT_INDEX, REPORTS
from hpo.store import search_results
from hpo.store.record import Record
from hpo.views.formatting import decision_table, trial_table
from hpo.views.live_table import phase_message, render
from hpo.views.progress import Progress
from hpo.views.status_file import Status


@pytest.mark.parametrize(
    ("asked", "epochs"),
    [
        ({"grace_period": 2, "reduction_factor": 4, "epochs": 4}, 2 + 1 / 4 + 1 / (4 * 1.5**0.3)),
        # All run epoch 1; a third goes on to 3, a ninth to 9, a 27th to 12.
        ({"pruner": "former-asha", "reduction_factor": 3, "epochs": 12}, 1 + 2 / 3 + 6 / 9 + 3 / 27),
        ({"pruner": "former-asha", "grace_period": 2, "reduction_factor": 2, "epochs": 5}, 2 + 2 / 2 + 1 / 4),
        ({"pruner": "leaders", "reduction_factor": 3, "epochs": 12}, 1 + 11 / 3),
        ({"pruner": "none", "epochs": 12}, 12),
    ],
)
def test_the_expected_epochs_of_a_trial_are_those_worked_out_by_hand(asked, epochs):
    assert expected_epochs(SearchConfig(**asked)) == pytest.approx(epochs)


def listened(record: Record, console: Console) -> Progress:
    return Progress(record.search, record.name, 1, console)


def test_without_a_terminal_each_event_is_one_plain_line(record):
    console = Console(file=io.StringIO(), width=60)
    progress = listened(record, console)
    run_all(controller(record, progress))
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
        assert ended.endswith({"asha": f"pruned at {trial.last_step}"}.get(reason, reason))


def test_a_continued_search_tells_only_of_what_it_does_itself(record):
    record.update_config({"trials": 3})
    run_all(controller(record))
    record.update_config({"trials": 4})
    console = Console(file=io.StringIO(), width=200)
    run_all(controller(record, listened(record, console)))
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


@pytest.mark.parametrize(("objective", "header"), [("l1", "L1"), ("haarpsi", "HaarPSI")])
def test_an_objective_without_a_column_gets_one_and_comes_first_in_the_winners_line(runs, objective, header, capsys):
    record = Record.create(runs, "first", replace(SEARCH, trials=3, objectives=(objective,)))
    run_all(controller(record))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(trial_table(record.trials(), record.search))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["trial", "epoch", header, "SSIM", "PSNR", "state", "parameters"]
    for trial in record.trials():
        best = best_report(trial, objective)
        line = next(line for line in lines if line.split()[:1] == [str(trial.number)])
        assert f"{getattr(best, objective):.4f}  {best.ssim:.4f}  {best.psnr_db:.2f}" in line
    main(["show", "first", "--runs", str(runs)])
    told = capsys.readouterr().out
    number = min(record.trials(), key=lambda trial: -max(trial.intermediate_values.values())).number
    best = best_report(record.trial(number), objective)
    assert f"winner: trial {number}, {header} {getattr(best, objective):.4f}, PSNR {best.psnr_db:.2f} dB" in told


def bracketed(number: int) -> Any:
    distribution = CategoricalDistribution(["[red]", "[/x]"])
    trial = create_trial(
        state=TrialState.RUNNING,
        params={"loss": "[red]", "lr_schedule": "[/x]"},
        distributions={"loss": distribution, "lr_schedule": distribution},
        user_attrs={REPORTS: [{**report(1, 0.5).as_dict(), REPORT_INDEX: 0}]},
    )
    trial.number = number
    return trial


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_in_a_parameter_are_no_markup(search, terminal):
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    progress = Progress(search, "first", 1, console)
    progress.on_trial_update(bracketed(0))
    progress.close()
    assert "loss=[red]" in console.file.getvalue()
    assert "lr_schedule=[/x]" in console.file.getvalue()


def test_the_live_table_follows_a_whole_search(record):
    console = Console(file=io.StringIO(), width=80, height=30, force_terminal=True)
    progress = listened(record, console)
    run_all(controller(record, progress))
    progress.close()
    last = console.file.getvalue().rpartition("/8 trials: ")[2]
    assert counted(record.trials()) in last
    assert "running" not in last


def test_the_expected_time_counts_what_is_left(record):
    """Two trials have an epoch of 2.5 seconds behind them and passed the only rung: 3 epochs are left, side by side."""
    console = Console(file=io.StringIO(), width=80)
    search = replace(record.search, trials=2, pruner="leaders")
    progress = Progress(search, "first", 2, console)
    for number in (0, 1):
        trial = bracketed(number)
        progress.on_trial_update(trial)
    assert "Expected: about 00:08 more, pruning taken into account\n" in console.file.getvalue()


def test_the_expected_time_says_what_it_is_made_of(record):
    console = Console(file=io.StringIO(), width=120)
    search = replace(record.search, trials=2, pruner="leaders", time_budget_minutes=8, final_epochs=4)
    progress = Progress(search, "first", 2, console)
    for number in (0, 1):
        progress.on_trial_update(bracketed(number))
    told = "Expected: about 00:18 more, 00:10 of it for the final training; pruning taken into account; no new trial "
    assert told in console.file.getvalue()


def test_the_decision_table_shows_the_values_that_were_compared(record, tmp_path):
    """Not those of the epoch that they were compared at: 0.95 is above the cutoff of 0.9, which is of epoch 1."""
    record = Record.create(tmp_path, "former", replace(record.search, pruner="leaders"))
    for _ in range(2):
        record.add(suggest(record.trials(), SPACE, record.search))
    for number, epoch, value in ((0, 1, 0.1), (1, 1, 0.9), (0, 2, 0.95)):
        append_report(record, number, report(epoch, value))
    table = decision_table(search_results.decisions(record)["trials"])
    _, epochs, values, cutoffs, *_, outcomes = (list(column.cells) for column in table.columns)
    rows = [tuple(map(str, row)) for row in zip(epochs, values, cutoffs, outcomes, strict=True)]
    assert rows == [
        ("1", "0.1000", "0.1000", "continues"),
        ("2", "0.1000", "0.9000", "pruned: below the cutoff, by epoch 1"),
        ("1", "0.9000", "0.9000", "continues"),
    ]


def ended(number: int, epochs: int, state: TrialState) -> Any:
    trial = create_trial(state=state, value=0.5, user_attrs={REPORTS: [{}] * epochs})
    trial.number = number
    return trial


def test_how_long_trials_run_is_learned_from_those_under_way_too():
    """By hand. The rule: half go on after epoch 1; it counts as one trial. Of four that had an epoch one was stopped,
    so (0.5 + 1) of (1 + 4); of three that had two epochs one: 1 of (1 + 3); of two that had three none."""
    search = SearchConfig(epochs=4, reduction_factor=2, pruner="leaders")
    trials = [ended(0, 1, TrialState.PRUNED), ended(1, 2, TrialState.PRUNED), ended(2, 4, TrialState.COMPLETE)]
    trials.append(create_trial(state=TrialState.RUNNING, user_attrs={REPORTS: [{}] * 3}))
    left = epochs_left(trials, search)
    assert left == pytest.approx([1 + 0.7 * (1 + 0.75 * 2), 1 + 0.75 * 2, 2, 1, 0])
    assert epochs_left([], search)[0] == pytest.approx(expected_epochs(search))


def test_the_finalists_the_final_training_and_the_export_are_told(record, tmp_path):
    console = Console(file=io.StringIO(), width=60)
    progress = Progress(record.search, "first", 1, console, folder=tmp_path)
    progress.show_finalist(7, 1, 3)
    progress.show_final_training(7, [], 2)
    progress.show_final_training(7, [report(1, 0.5)], 2)
    seen = Status.read(tmp_path)
    progress.show_export()
    progress.close()
    assert console.file.getvalue().split("\n") == [
        "Measuring trial 7 on all validation images, 2 of 3",
        "",
        "Final training of trial 7's configuration: 2 epochs",
        "final: epoch 1/2  SSIM 0.5000  PSNR 23.50 dB  500 images/s",
        "",
        "Exporting, and measuring the exported file on validation and test images ...",
        "",
    ]
    assert (seen.phase, seen.trial, seen.done, seen.of) == ("final training", 7, 1, 2)
    assert Status.read(tmp_path).phase == "ended"


def test_the_replicates_are_told_and_watched(record, tmp_path):
    console = Console(file=io.StringIO(), width=60)
    progress = Progress(record.search, "first", 1, console, folder=tmp_path)
    progress.show_replicates(0, 6, [], 24)
    progress.show_replicate_epoch("trial 7, seed 1", report(1, 0.5), 4)
    progress.show_replicates(2, 6, ["trial 7, seed 1: epoch 1/4"], 15)
    seen = Status.read(tmp_path)
    progress.close()
    assert console.file.getvalue().split("\n") == [
        "",
        "Training the finalists' settings with fresh seeds: 6 trainings",
        "trial 7, seed 1: epoch 1/4  SSIM 0.5000  PSNR 23.50 dB  500 images/s",
        "",
    ]
    assert phase_message(seen, "balanced") == (
        "training the finalists' settings with fresh seeds, 2 of 6 done (trial 7, seed 1: epoch 1/4)"
    )


def test_quiet_says_nothing(record):
    file = io.StringIO()
    progress = listened(record, Console(file=file, quiet=True, force_terminal=True))
    run_all(controller(record, progress))
    progress.show_export()
    progress.close()
    assert file.getvalue() == ""


@pytest.mark.parametrize(("width", "height"), [(40, 24), (80, 24), (200, 50), (80, 10)])
def test_the_picture_fits_any_terminal(done, width, height):
    trials = done.trials()
    opened = [bracketed(number) for number in range(len(trials), len(trials) + 30)]
    running = {trial.number: 1.4 for trial in opened}
    status = Status(seconds=312, seconds_left=400, images_per_second=301.2, overhead=0.004, running=running)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render("first", done.search, [*trials, *opened], status, width=width, height=height))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 12)
    text = " ".join(" ".join(lines).split())
    figures = ("30 running", "05:12", "about 06:40 left", "301 images/s", "overhead 0.4 %")
    for told in (*figures, *(["more running"] if height < 40 else [])):
        assert told in text
    assert "best: trial" in text


@pytest.mark.parametrize(
    ("pruner", "epochs"),
    [
        ("asha", [2, 2, 3, 4, 5, 6, 7, None, None]),
        ("leaders", [2, 2, 3, 4, 5, 6, 7, 8, None]),
        ("former-asha", [2, 2, 6, 6, 6, 6, None, None, None]),
        ("none", [None] * 9),
    ],
)
def test_the_next_comparison_is_after_the_next_epoch_that_is_judged(pruner, epochs):
    search = SearchConfig(pruner=pruner, epochs=9, grace_period=2, reduction_factor=3)
    assert [next_comparison(done, search) for done in range(9)] == epochs


def test_what_trials_wait_for_is_told_once_a_minute_and_stands_in_the_status_while_they_do(record, tmp_path):
    now = [0.0]
    console = Console(file=io.StringIO(), width=200)
    progress = Progress(record.search, "first", 1, console, folder=tmp_path, clock=lambda: now[0])
    for now[0] in range(0, 150, 10):
        progress.set_pending_message("trial 5 waits for 1 GPU: none free")
    progress.show_export()
    status = Status.read(tmp_path)
    progress.close()
    assert console.file.getvalue().count("trial 5 waits for 1 GPU: none free\n") == 3
    assert status
    assert status.waits == ""


def test_the_cost_and_what_trials_wait_for_are_in_the_table(search):
    status = Status(seconds=60, cost_usd=3.214, waits="trial 5 waits for 1 GPU: none free")
    for limit, told in ((None, "3.21 USD"), (5.0, "3.21 of 5.00 USD")):
        console = Console(width=80, file=io.StringIO())
        asked = replace(search, address="auto", max_cost=limit)
        console.print(render("first", asked, [], status, width=80, height=30))
        assert f"01:00   {told}" in console.file.getvalue()
        assert "trial 5 waits for 1 GPU: none free" in console.file.getvalue()
