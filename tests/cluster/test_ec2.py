"""cluster.yaml on the stand-in for EC2: from zero and back, with what a spot market does on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("moto", reason="make test-cluster installs it")

from cloud import BUCKET, KEY, METADATA_URL, REGION, SECRET, URL, Cloud
from clusters import ENVIRONMENT, Cluster
from hosts import Hosts, address, wait_for
from laptop import ROOT, Laptop
from searches import Search, failures, moves, node_of_running
from substitute import StandIns, write

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
STORAGE = f"s3://{BUCKET}/searches?region={REGION}&scheme=http&endpoint_override={URL.removeprefix('http://')}"
GPUS = ("--gpus-per-trial=1", "--allow-cpu", "--max-concurrent=2")


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the storage, which is looked at from here."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@contextmanager
def on_ec2(hosts: Hosts, laptop: Laptop) -> Iterator[tuple[Cluster, Cloud]]:
    """cluster.yaml on the stand-in for EC2. The keys are what an instance's role gives on the real one."""
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with Cloud(hosts) as cloud:
        stand_ins = StandIns(
            key=hosts.key,
            token=laptop.token,
            storage=STORAGE,
            environment={**ENVIRONMENT, **keys, "AWS_EC2_METADATA_SERVICE_ENDPOINT": METADATA_URL},
            subnet=cloud.subnet,
            image=cloud.image,
            security_group=cloud.security_group,
            endpoint=URL,
            credentials={name.lower(): value for name, value in keys.items()},
        )
        file = write(ROOT / "cluster.yaml", laptop.home / "cluster.yaml", stand_ins)
        yield Cluster(hosts, laptop, file, lambda: int(cloud.of_type("head")[0].rpartition(".")[2])), cloud


def test_a_search_outlives_its_head_and_a_spot_node_that_is_taken_without_notice(hosts, laptop, tmp_path):
    with on_ec2(hosts, laptop) as (cluster, cloud):
        cluster.up()
        assert len(cloud.instances()) == 1
        search = Search(cluster, "first", STORAGE)
        search.launch("--trials=10", *GPUS)
        search.wait_until(lambda trials: len(node_of_running(trials)) == 2, 180, "trials on two spot nodes")
        assert len(cloud.of_type("g6_spot")) == 2

        host, lost = next(iter(node_of_running(search.trials()).items()))
        cloud.terminate(address_of(host))
        search.wait_until(lambda trials: lost in failures(trials), 60, "the death is charged")
        search.wait_until(lambda trials: host not in node_of_running(trials), 60, "the trial goes on elsewhere")

        cloud.terminate(cloud.of_type("head")[0])
        cluster.up()
        search.launch("--trials=10", *GPUS)
        search.wait_until(lambda _: search.is_exported, 300, "the search's end")
        search.check(10)
        search.pull(tmp_path / "first")
        wait_for(lambda: list(cloud.instances()) == cloud.of_type("head"), 120, "zero workers")
        cluster.down()
        assert cloud.instances() == {}


def test_a_notice_moves_a_trial_uncharged_and_a_drought_is_bridged_with_on_demand_nodes(hosts, laptop, tmp_path):
    with on_ec2(hosts, laptop) as (cluster, cloud):
        cluster.up()
        search = Search(cluster, "first", STORAGE)
        search.launch("--trials=14", "--on-demand-after-minutes=1", *GPUS)
        search.wait_until(lambda trials: len(node_of_running(trials)) == 2, 180, "trials on two spot nodes")

        noticed = cloud.of_type("g6_spot")[0]
        cloud.give_notice(noticed, 40)
        search.wait_until(lambda trials: bool(moves(trials)), 60, "a trial moved")
        wait_for(lambda: noticed not in cloud.instances(), 60, "its node's end")
        assert failures(search.trials()) == {}

        assert cloud.of_type("g6_on_demand") == []
        cloud.spot_capacity = 0
        for where in cloud.of_type("g6_spot") + cloud.of_type("g5_spot"):
            cloud.terminate(where)
        wait_for(lambda: bool(cloud.of_type("g6_on_demand")), 180, "an on-demand node")
        bridges = set(cloud.of_type("g6_on_demand"))
        search.wait_until(
            lambda trials: bool(bridges & set(map(address_of, node_of_running(trials)))), 120, "a trial on it"
        )

        cloud.spot_capacity = None
        search.wait_until(lambda _: bool(cloud.of_type("g6_spot")), 120, "spot again")
        search.wait_until(lambda _: search.is_exported, 300, "the search's end")
        search.check(14)
        search.pull(tmp_path / "first")
        wait_for(lambda: list(cloud.instances()) == cloud.of_type("head"), 120, "zero workers")
        cluster.down()
        assert cloud.instances() == {}


def address_of(host: str) -> str:
    """By its name."""
    return address(int(host.rpartition("-")[2]))
