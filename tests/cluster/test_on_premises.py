"""cluster.onprem.yaml on throw-away hosts: the user's whole road, with a power cut and a pulled cable on the way."""

from __future__ import annotations

import pytest
from clusters import on_prem
from hosts import wait_for
from searches import Search, failures, node_of_running, nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
TRIALS = 9


def test_a_search_on_three_workers_outlives_a_power_cut_and_a_pulled_cable(hosts, laptop, tmp_path):
    with on_prem(hosts, laptop, workers=3) as cluster:
        cluster.up()
        cluster.wait_for_nodes(4)
        search = Search(cluster, "first", str(hosts.shared / "searches"))
        search.launch("--trials", str(TRIALS), "--concurrent", "3")
        everywhere = {f"hpo-host-{number}" for number in (3, 4, 5)}
        search.wait_until(lambda trials: nodes(trials) == everywhere, 120, "trials on all three workers")

        search.wait_until(lambda trials: "hpo-host-3" in node_of_running(trials), 60, "a trial on host 3")
        lost = node_of_running(search.trials())["hpo-host-3"]
        hosts.unplug(3)  # nobody is told
        hosts.stop(3)
        search.wait_until(lambda trials: lost in failures(trials), 60, "the power cut is noticed")

        search.wait_until(lambda trials: "hpo-host-4" in node_of_running(trials), 60, "a trial on host 4")
        cut_off = node_of_running(search.trials())["hpo-host-4"]
        deaths = len(failures(search.trials()).get(cut_off, []))
        hosts.unplug(4)
        search.wait_until(lambda trials: len(failures(trials).get(cut_off, [])) > deaths, 60, "the cable is missed")
        hosts.plug(4)

        search.wait_until(lambda _: search.is_exported, 240, "the search's end")
        search.check(TRIALS)
        search.pull(tmp_path / "first")
        cluster.down()
        wait_for(lambda: cluster.processes("raylet|gcs_server") == [], 90, "the end of Ray on all hosts")
