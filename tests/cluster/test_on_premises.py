"""cluster.onprem.yaml on throw-away hosts: the user's whole road, with a power cut and a pulled cable on the way."""

from __future__ import annotations

import pytest
from clusters import on_prem
from hosts import wait_for
from searches import Search, failures, node_of_running, nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
TRIALS = 12


def test_a_search_on_three_workers_outlives_a_power_cut_and_a_pulled_cable(hosts, laptop, tmp_path):
    with on_prem(hosts, laptop, workers=3) as cluster:
        cluster.up()
        cluster.wait_for_nodes(4)
        search = Search(cluster, "first", str(hosts.shared / "searches"))
        search.launch("--trials", str(TRIALS), "--max-concurrent", "3")
        everywhere = {f"hpo-host-{number}" for number in (3, 4, 5)}
        search.wait_until(lambda trials: nodes(trials) == everywhere, 120, "trials on all three workers")

        victims = {"hpo-host-3", "hpo-host-4"}
        search.wait_until(lambda trials: victims <= node_of_running(trials).keys(), 60, "trials on hosts 3 and 4")
        lost = {number for host, number in node_of_running(search.trials()).items() if host in victims}
        assert lost, "trials that end too soon"
        hosts.unplug(3)  # before the power: nobody is told
        hosts.stop(3)
        hosts.unplug(4)
        search.wait_until(lambda trials: lost <= failures(trials).keys(), 90, "both are missed")
        hosts.plug(4)

        search.wait_until(lambda _: search.is_exported, 240, "the search's end")
        search.check(TRIALS)
        search.pull(tmp_path / "first")
        cluster.down()
        wait_for(lambda: cluster.processes("raylet|gcs_server") == [], 90, "the end of Ray on all hosts")
