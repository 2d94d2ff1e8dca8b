"""A real search on nodes that are taken: its trials go on elsewhere, uncharged; and one that stops before it costs more
than it may."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import spot_search
from drivers import GUARD_SECONDS, driver
from optuna.trial import TrialState
from spot_search import LOST, NOTICED, OTHER, POOR, RICH

from hpo.cluster.budget import COST
from hpo.policy.retry_policy import DRAINED
from hpo.policy.trial_attributes import FAILURES, MIGRATIONS
from hpo.store.record import Record
from hpo.views.status_file import Status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * GUARD_SECONDS)]


@dataclass(frozen=True)
class Searched:
    folder: Path
    seen: dict[str, Any]
    output: str

    def record(self, name: str = RICH) -> Record:
        return Record(self.folder, name)

    def moves(self, number: int) -> list[dict[str, Any]]:
        assert FAILURES not in self.record().trial(number).user_attrs
        found: list[dict[str, Any]] = self.record().trial(number).user_attrs.get(MIGRATIONS, [])
        return found

    def begun(self, number: int) -> list[tuple[str, str]]:
        """Epochs, and the nodes where they were begun."""
        lines = (self.record().trial_folder(number) / spot_search.NODES).read_text().splitlines()
        return [(epoch, node) for epoch, node in map(str.split, lines)]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("spot")
    with driver(folder, [], (sys.executable, spot_search.__file__, str(folder))) as running:
        told, errors = running.process.communicate(timeout=GUARD_SECONDS)
        assert running.process.returncode == 0, errors
    return Searched(folder, json.loads(told.splitlines()[-1]), errors)


def test_a_notice_moves_the_trial_after_its_epoch_and_costs_it_nothing(searched):
    trial = searched.record().trial(NOTICED)
    assert trial.state == TrialState.COMPLETE
    (move,) = searched.moves(NOTICED)
    assert move == {"epoch": 2, "why": "its node is drained (spot)"}
    assert f"trial {NOTICED} migrates: its node is drained (spot)\n" in searched.output
    nodes = dict(searched.begun(NOTICED))
    assert nodes["1"] == nodes["2"] != nodes["3"]
    assert [epoch for epoch, _ in searched.begun(NOTICED)].count("2") == 1


def test_a_trial_that_waits_says_for_what(searched):
    assert f"trial {NOTICED} waits for 1 GPU: none free\n" in searched.output


def test_a_trial_whose_node_goes_after_the_notice_repeats_one_epoch_uncharged(searched):
    trial = searched.record().trial(LOST)
    assert trial.state == TrialState.COMPLETE
    assert searched.moves(LOST) == [{"epoch": 1, "why": DRAINED}]
    epochs = [epoch for epoch, _ in searched.begun(LOST)]
    assert epochs == ["1", "2", "2", "3"]
    assert len({node for _, node in searched.begun(LOST)}) == 2


def test_others_are_not_disturbed(searched):
    assert searched.moves(OTHER) == []
    assert [epoch for epoch, _ in searched.begun(OTHER)] == ["1", "2", "3"]


def test_the_images_lie_once_on_the_drivers_node_and_once_where_trials_ran(searched):
    stored = searched.seen["stored"].values()
    assert len(stored) == 2
    for found in stored:
        assert searched.seen["images"] <= found < 1.1 * searched.seen["images"]


def test_the_poller_drains_all_nodes_of_its_host_and_ends_with_them(searched):
    assert searched.seen["poller"] == 0


def test_the_cost_is_that_of_three_nodes_by_the_hour_and_is_shown(searched):
    seen = searched.seen[RICH]
    hours = seen["seconds"] / 3600
    assert 0.1 * hours < seen["usd"] < 1.1 * (0.1 + 3 * 0.8) * hours + 0.01
    status = Status.read(searched.record().folder)
    assert status
    assert status.cost_usd == pytest.approx(searched.record().metadata()[COST], abs=0.01)


def test_a_search_whose_money_is_up_stops_what_runs_and_leaves_it_to_be_continued(searched):
    seen, record = searched.seen[POOR], searched.record(POOR)
    assert seen["usd"] < seen["limit"]
    assert spot_search.MONEY_SECONDS / 2 < seen["seconds"] < 600  # its epoch would have lasted an hour
    ran, waited = record.trials()
    assert [trial.state for trial in (ran, waited)] == [TrialState.RUNNING] * 2
    assert (len(ran.intermediate_values), len(waited.intermediate_values)) == (1, 0)
    assert FAILURES not in ran.user_attrs
    assert record.metadata()[COST] == pytest.approx(seen["usd"], abs=0.01)
