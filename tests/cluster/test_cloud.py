"""The stand-in for EC2 itself: instances are hosts, spot is scarce, and a notice is told to whom it concerns."""

from __future__ import annotations

import pytest

pytest.importorskip("moto", reason="make test-cluster installs it")

from botocore.exceptions import ClientError
from cloud import METADATA_URL, Cloud
from hosts import address, answers, wait_for

pytestmark = pytest.mark.cluster
SPOT = {"InstanceMarketOptions": {"MarketType": "spot"}}
TOKEN = f"curl -s -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' {METADATA_URL}/latest/api/token"
ACTION = f"curl -s -w '%{{http_code}}' {METADATA_URL}/latest/meta-data/spot/instance-action"


@pytest.fixture
def cloud(hosts):
    with Cloud(hosts) as made:
        yield made


def started(cloud, count, **more):
    wanted = {"ImageId": cloud.image, "SubnetId": cloud.subnet, "InstanceType": "g6.xlarge"}
    answer = cloud.client("ec2").run_instances(**wanted, KeyName="stand-in", MinCount=1, MaxCount=count, **more)
    return [int(item["PrivateIpAddress"].rpartition(".")[2]) for item in answer["Instances"]]


def test_an_instance_is_a_host_as_long_as_it_runs(hosts, cloud):
    (number,) = started(cloud, 1)
    wait_for(lambda: hosts.numbers() == [number], 20, "the instance's host")
    cloud.terminate(f"10.77.0.{number}")
    assert hosts.numbers() == []


def test_there_is_as_much_spot_capacity_as_is_said(cloud):
    cloud.spot_capacity = 2
    assert len(started(cloud, 3, **SPOT)) == 2
    with pytest.raises(ClientError, match="InsufficientInstanceCapacity"):
        started(cloud, 1, **SPOT)
    assert len(started(cloud, 1)) == 1


def test_only_who_was_given_notice_hears_of_it_with_a_token_and_is_gone_in_time(hosts, cloud):
    noticed, other = started(cloud, 2, **SPOT)
    wait_for(lambda: all(answers(address(number)) for number in (noticed, other)), 20, "both hosts' sshds")
    with_token = f'{ACTION} -H "X-aws-ec2-metadata-token: $({TOKEN})"'
    assert hosts.run(noticed, with_token) == "404"
    cloud.give_notice(f"10.77.0.{noticed}", 20)
    assert hosts.run(noticed, ACTION) == "401"
    assert hosts.run(noticed, with_token).startswith('{"action": "terminate", "time": "20')
    assert hosts.run(other, with_token) == "404"
    wait_for(lambda: hosts.numbers() == [other], 60, "the end")
