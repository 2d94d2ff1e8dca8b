"""What the stand-ins take of the cluster files: everything but what names real machines and accounts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from laptop import ROOT
from substitute import StandIns, substituted

from hpo.cluster import cluster_rules

STAND_INS = StandIns(
    key=Path("/key"),
    token=Path("/token"),
    storage="s3://bucket/searches",
    environment={"PYTHONPATH": "$HOME/pix2pix-search"},
    subnet="subnet-1a2b3c4d",
    image="ami-1a2b3c4d",
    security_group="sg-1a2b3c4d",
    endpoint="http://10.77.0.1:5566",
    credentials={"aws_access_key_id": "test", "aws_secret_access_key": "test"},
    addresses=("10.77.0.2", "10.77.0.3"),
)

REPLACED = (
    r"idle_timeout_minutes|(min|max)_workers|provider\.(availability_zone|use_internal_ips|aws_credentials\.\w+)"
    r"|provider\.(head_ip|worker_ips\[\d\])|auth\.ssh_(user|private_key)|file_mounts\.\S+\.ray"
    r"|available_node_types\.\w+\.node_config\.(ImageId|KeyName|SecurityGroupIds\[0\]|SubnetIds\[0\])"
    r"|((head_|worker_)?setup|(head|worker)_start_ray)_commands\[\d\]"
)


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.onprem.yaml"])
def test_with_the_stand_ins_a_cluster_file_is_filled_in_and_as_safe(name):
    config, _ = substituted(ROOT / name, STAND_INS)
    assert cluster_rules.find_errors(config) == []


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.onprem.yaml"])
def test_only_what_names_real_things_is_replaced_and_all_of_it_is_told(name):
    original = yaml.safe_load((ROOT / name).read_text())
    config, told = substituted(ROOT / name, STAND_INS)
    names = {line.partition(": ")[0] for line in told}
    assert {name for name in names if not re.fullmatch(REPLACED, name)} == set()
    assert "REPLACE" not in str(config)
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        more = r" --object-store-memory=\d+| --num-cpus=1(?= --object)"
        assert [re.sub(more, "", command) for command in config[start]] == original[start]
