"""What the views show of a search with several objectives, and of limits."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from chromium import Page, chromium, needs_chromium
from fronts import SEARCH, run
from optuna.trial import TrialState
from optuna.visualization._pareto_front import _get_pareto_front_info
from rich.console import Console

from hpo.cli.commands import main
from hpo.policy import leaderboard
from hpo.policy.trial_attributes import DECISION
from hpo.policy.trial_objectives import objective_values
from hpo.store import search_results
from hpo.store.record import Record
from hpo.views.dashboard import Snapshot
from hpo.views.formatting import decision_table
from hpo.views.html_report import write_report
from hpo.views.live_table import render
from hpo.views.report_contents import contents
from hpo.views.status_file import Status

LIMITED = replace(SEARCH, limit=("params<=10000",))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """To be read, not to be changed. Width 16 is beyond the limit."""
    record = Record.create(tmp_path_factory.mktemp("front"), "first", LIMITED)
    run(record)
    return Record(record.folder.parent, "first")


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as tab:
        yield tab


def shown(record: Record, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["show", "first", "--runs", str(record.folder.parent), *options]) == 0
    return capsys.readouterr().out


def infeasible(record: Record) -> list[int]:
    return [trial.number for trial in record.trials() if trial.params["width"] == 16]


def test_hpo_show_names_the_front_first_and_its_members_with_their_units(searched, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(searched, capsys)
    assert max(map(len, text.splitlines())) <= 80
    front = leaderboard.front(searched.trials(), LIMITED)
    table = [line.split() for line in text.splitlines() if line.lstrip(" *")[:1].isdigit() and "/8 " in line]
    assert [row[0] for row in table[: len(front)]] == [f"*{number}" for number in front]
    assert not any(row[0].startswith("*") for row in table[len(front) :])
    for number in front:
        values = objective_values(searched.trial(number), LIMITED)
        assert f"trial {number}: {values['psnr']:.2f} dB, {values['latency']:.3g}" in text
    assert "The fastest within 0.1 dB of the best" in text
    assert "winner" not in text


def test_hpo_show_names_the_limit_and_the_trials_that_violate_it(searched, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    first, last = infeasible(searched)[0], infeasible(searched)[-1]
    (line,) = (line for line in shown(searched, capsys).splitlines() if line.startswith("limit params<=10000: "))
    assert f" {first}" in line
    assert f" {last}" in line or "more" in line
    assert line.endswith("never trained")
    said = shown(searched, capsys, "--decisions")
    assert said.count("not trained: 25,600 parameters, and the limit is params<=10000") == len(infeasible(searched))


def test_hpo_show_json_has_objectives_front_and_known_figures(searched, capsys):
    told = json.loads(shown(searched, capsys, "--json"))
    assert told["objectives"] == [
        {"name": "psnr", "unit": "dB", "direction": "maximize"},
        {"name": "latency", "unit": "ms", "direction": "minimize"},
    ]
    assert [member["trial"] for member in told["front"]] == leaderboard.front(searched.trials(), LIMITED)
    for row in told["trials"]:
        assert row["known"]["params"] == 100 * row["params"]["width"] ** 2


def test_a_search_with_one_objective_has_none_of_these_keys(done, capsys):
    assert not {"objectives", "front"} & json.loads(shown(done, capsys, "--json")).keys()
    assert contents(done)["tradeoffs"] is None


def test_a_dominated_trial_names_the_one_that_dominates_it_with_both_vectors_in_80_columns(searched):
    document = search_results.decisions(searched)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(decision_table(document["trials"]))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    pruned = [trial for trial in searched.trials() if trial.user_attrs[DECISION]["reason"] == "dominated"]
    assert pruned
    for trial in pruned:
        by, epoch = trial.user_attrs[DECISION]["set_by"], trial.last_step
        theirs = searched.trial(by).user_attrs["reports"][epoch - 1]["psnr_db"]
        ours = trial.user_attrs["reports"][epoch - 1]["psnr_db"]
        assert f"pruned: trial {by} is nowhere worse: {theirs:.2f} dB, " in words
        assert f"this trial: {ours:.2f} dB, " in words
        assert theirs >= ours


def test_the_live_table_has_the_best_and_the_front_so_far(searched):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render("first", LIMITED, searched.trials(), Status(), width=80, height=30))
    text = console.export_text()
    front = leaderboard.front(searched.trials(), LIMITED)
    assert f"best psnr: trial {front[0]}" in text
    assert f"front: {len(front)} trials, " in text


def test_hpo_list_counts_the_front(searched, capsys):
    main(["list", "--runs", str(searched.folder.parent)])
    assert f"front of {len(leaderboard.front(searched.trials(), LIMITED))}" in capsys.readouterr().out


def test_optunas_own_front_of_the_study_is_drawn_and_leaves_infeasible_trials_out(searched):
    study = optuna.load_study(study_name="first", storage=f"sqlite:///{searched.study_file}")
    best = {trial.number for trial in study.best_trials}
    complete = {trial.number for trial in study.trials if trial.state == TrialState.COMPLETE}
    assert set(leaderboard.front(searched.trials(), LIMITED)) & complete <= best
    for trial in study.trials:
        assert (trial.constraints["params<=10000"] <= 0) == (trial.number not in infeasible(searched))
    drawn = _get_pareto_front_info(study)  # all that plot_pareto_front draws; that itself needs plotly
    assert drawn.n_targets == 2
    assert {trial.number for trial, _ in drawn.best_trials_with_values} == best
    assert {trial.number for trial, _ in drawn.non_best_trials_with_values} == complete - best


def test_the_dashboards_copy_has_the_directions_and_the_constraints(searched):
    snapshot = Snapshot(searched)
    (study,) = optuna.get_all_study_summaries(snapshot.storage)
    copy = optuna.load_study(study_name="first", storage=snapshot.storage)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert copy.metric_names == ["psnr", "latency"]
    for trial, there in zip(searched.trials(), copy.trials, strict=True):
        assert there.values == trial.values
        assert there.system_attrs["constraints"] == list(trial.constraints.values())


# --- the report ------------------------------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_the_report_draws_the_front_its_members_and_who_dominated_whom(searched, browser, tmp_path: Path, dark):
    browser.open(write_report(searched, tmp_path / "report.html").as_uri(), dark=dark)
    assert browser.complaints == []
    front = leaderboard.front(searched.trials(), LIMITED)
    assert browser.run("document.querySelector('h1').innerText") == f"{len(front)} trials form the front so far"
    members = browser.run("[...document.querySelectorAll('#members tbody tr')].map(r => r.cells[0].innerText)")
    assert members == list(map(str, front))
    trained = [trial for trial in searched.trials() if trial.values]
    assert browser.run("document.querySelectorAll('#front-latency .dot').length") == len(trained)
    assert browser.run("document.querySelectorAll('#front-latency .front-member').length") == len(front)
    pruned = [trial for trial in searched.trials() if trial.user_attrs[DECISION]["reason"] == "dominated"]
    assert browser.run("document.querySelectorAll('#front-latency .beaten').length") == len(pruned)
    assert browser.run("document.querySelectorAll('#front-latency path.front').length") == 1
    number = pruned[0].number
    browser.run(f"pin({number})")
    assert browser.run("document.querySelectorAll('#front-latency .beaten.hot').length") >= 1
    why = browser.run(f"BY_NUMBER.get({number}).why")
    assert f"trial {pruned[0].user_attrs[DECISION]['set_by']} was nowhere worse" in why


@needs_chromium
def test_three_objectives_have_two_pictures_on_a_phone_without_sideways_scrolling(runs, browser, tmp_path: Path):
    record = Record.create(runs, "first", replace(SEARCH, objectives=("latency", "psnr", "params"), trials=10))
    run(record)
    browser.open(write_report(Record(runs, "first"), tmp_path / "report.html").as_uri(), width=390, height=844)
    assert browser.complaints == []
    assert browser.run("[...document.querySelectorAll('#front-charts svg')].length") == 2
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("document.querySelector('#front-latency path.front')") is None


@needs_chromium
def test_with_one_objective_the_report_has_no_front(done, browser, tmp_path: Path):
    browser.open(write_report(done, tmp_path / "report.html").as_uri())
    assert browser.run("document.getElementById('front').hidden")
    assert browser.run("document.getElementById('limits').innerText") == ""
