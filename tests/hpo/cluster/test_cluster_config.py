"""hpo cluster check: the shipped files pass once they are filled in, and every rule refuses what breaks it."""

from __future__ import annotations

import datetime
import io
import re
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml
from fuzzing import JSON, assert_readable, fewer, near
from hypothesis import example, given
from hypothesis import strategies as st

from hpo.cli.commands import main
from hpo.cluster import cluster_config, cluster_rules
from model.common.errors import ConfigError

ROOT = Path(__file__).parents[3]
AWS, LOCAL = "cluster.yaml", "cluster.onprem.yaml"
FILLED = {
    "head_ip: REPLACE": "head_ip: 192.168.0.10",
    "[REPLACE, REPLACE]": "[192.168.0.11, 192.168.0.12]",
    "ssh_user: REPLACE": "ssh_user: me",
    "~/.ssh/REPLACE": "HOME/.ssh/mine",
    "~/.hpo/token": "HOME/.hpo/token",
    "REPLACE": "filled",
}


@pytest.fixture
def home(tmp_path) -> Path:
    return _furnish(tmp_path)


def _furnish(tmp_path: Path) -> Path:
    """With a token and a key."""
    for name, content in {".hpo/token/auth_token": "0" * 64, ".ssh/mine": "key", ".ssh/mine.pem": "key"}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o600)
    return tmp_path


def filled(name: str, home: Path) -> str:
    text = (ROOT / name).read_text()
    for old, new in {**FILLED, "HOME": str(home)}.items():
        text = text.replace(old, new)
    return text


def told(text: str, home: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    path = home / "cluster.yaml"
    path.write_text(text)
    code = main(["cluster", "check", str(path)])
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (
            AWS,
            ["storage s3://filled-bucket/searches?region=us-west-2", "0 to 8 g5_spot: g5.xlarge", "8.29 USD an hour"],
        ),
        (LOCAL, ["storage /mnt/filled/searches", "head 192.168.0.10; 2 workers: 192.168.0.11, 192.168.0.12"]),
    ],
)
def test_a_shipped_file_that_is_filled_in_passes_and_is_summed_up(name, shown, home, capsys):
    code, out, err = told(filled(name, home), home, capsys)
    assert (code, [line for line in err.splitlines() if "INFO" not in line]) == (0, [])
    assert all(text in out for text in shown), out


@pytest.mark.parametrize("name", [AWS, LOCAL])
def test_a_shipped_file_is_refused_with_every_place_that_is_to_be_filled_in(name, home, capsys):
    text = (ROOT / name).read_text().replace("~/.hpo/token", str(home / ".hpo/token"))
    code, _, err = told(text, home, capsys)
    assert code == 2
    lines = err.splitlines()[1:]
    assert all("still to be filled in" in line for line in lines), err
    anchored = {AWS: 4 + 1, LOCAL: 0}[name]  # what YAML's anchors repeat: three of each GPU type, the image once
    written = sum(line.split("#")[0].count("REPLACE") for line in text.splitlines() if line.lstrip()[0:1] != "#")
    assert len(lines) == written + anchored - (1 if name == AWS else 0)


HEAD = "    resources: {CPU: 0, GPU: 0}"
BREAKS = [
    # commands of older files
    (AWS, "-m hpo.cluster.preemption_agent", "-m hpo.spot", "hpo.spot is called hpo.cluster.preemption_agent now"),
    # in provider, node types and node_config: what Ray lets through, or tells one at a time
    (AWS, "  region:", "  regoin:", "provider.regoin: no such key. Did you mean region?"),
    (AWS, "  region: us-west-2\n", "", "provider.region: is missing"),
    (AWS, "type: aws", "type: gcp", "provider.type=gcp: must be aws or local"),
    (AWS, "type: aws", "type: local", "available_node_types: not for a local provider"),
    (
        AWS,
        "idle_timeout_minutes",
        "idle_timeout_minuts",
        "idle_timeout_minuts: no such key. Did you mean idle_timeout_",
    ),
    (AWS, HEAD, "    resource: {CPU: 0}", "available_node_types.head.resource: no such key. Did you mean resources?"),
    (AWS, HEAD, "    resources: {CPU: '0', GPU: 0}", "available_node_types.head.resources.CPU: '0' is not of type"),
    (
        AWS,
        "head_node_type: head",
        "head_node_type: heads",
        "head_node_type=heads: not found in available_node_types. Did",
    ),
    (
        AWS,
        "      InstanceType: m7i",
        "      InstanceTyp: m7i",
        "head.node_config.InstanceTyp: EC2 knows no such member",
    ),
    (AWS, "{HttpTokens: required, HttpPut", "{HttpToken: required, HttpPut", "MetadataOptions.HttpToken: EC2 knows no"),
    (
        AWS,
        "VolumeSize: 60",
        "VolumSize: 60",
        "BlockDeviceMappings.Ebs.VolumSize: EC2 knows no such member. Did you mean",
    ),
    (AWS, "MarketType: spot", "MarketTyp: spot", "InstanceMarketOptions.MarketTyp: EC2 knows no such member"),
    (AWS, "  ssh_user", "  ssh_usr", "ssh_usr"),
    (AWS, "setup_commands:\n  # The env", "setup_command:\n  # The env", "setup_command: no such key"),
    # doors
    (AWS, "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "is open to the world"),
    (AWS, "--dashboard-host=127.0.0.1", "", "wants --dashboard-host=127.0.0.1"),
    (AWS, "--dashboard-host=127.0.0.1", "--dashboard-host=127.0.0.1 --include-dashboard=false", "it is the dashboard"),
    (AWS, "--dashboard-host=127.0.0.1", "--dashboard-host=10.0.0.1", "wants --dashboard-host=127.0.0.1"),
    (AWS, "--num-gpus=0", "--num-gpus=0 --dashboard-host=10.0.0.1", "wants --dashboard-host=127.0.0.1"),
    (AWS, "RAY_AUTH_MODE=token", "X=1", "RAY_AUTH_MODE=(not set): export RAY_AUTH_MODE=token on every node"),
    (AWS, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE=disabled: export"),
    (
        AWS,
        "ulimit -n 65536; ray start --add",
        "RAY_AUTH_MODE=disabled ray start --add",
        "RAY_AUTH_MODE=token, disabled",
    ),
    (AWS, "/home/ubuntu/.ray:", "/home/ubuntu/ray:", "file_mounts: no token: mount a folder with auth_token"),
    (
        AWS,
        "      SecurityGroupIds: [sg-filled]",
        "",
        "node_config.SecurityGroupIds: is missing: Ray would create a group",
    ),
    (AWS, "provider:\n", "provider:\n  security_group: {GroupName: x}\n", "Ray opens port 22 of it to the world"),
    (
        AWS,
        "IamInstanceProfile: {Name: pix2pix-search-head}",
        "",
        "node_config.IamInstanceProfile: is missing: Ray would",
    ),
    (AWS, "{HttpTokens: required, HttpPut", "{HttpTokens: optional, HttpPut", "MetadataOptions.HttpTokens: must be"),
    (AWS, "60, VolumeType: gp3, Encrypted: true", "60, VolumeType: gp3", "Ebs.Encrypted must be true for every disk"),
    # what runs where, and whether it can go on elsewhere
    (AWS, HEAD, "    resources: {CPU: 4, GPU: 0}", "head.resources.CPU=4: must be 0: a head that takes trials"),
    (AWS, HEAD, "    resources: {CPU: 0}", "head.resources.GPU=None: must be 0"),
    (AWS, "--num-cpus=0 ", "", "wants --num-cpus=0: a head that takes trials"),
    (LOCAL, "--num-gpus=0 ", "", "wants --num-gpus=0: a head that takes trials"),
    (
        AWS,
        "'HPO_STORAGE=s3://filled-bucket/searches?region=us-west-2'",
        "",
        "HPO_STORAGE=(not set): export one storage",
    ),
    (AWS, "s3://filled-bucket/searches?region=us-west-2", "/mnt/shared", "instances share no folder"),
    (AWS, "s3://filled-bucket", "s3://KEY:SECRET@bucket", "HPO_STORAGE: s3://...@...: keys belong into the"),
    (AWS, "?region=", "?regoin=", "regoin: no such option. Did you mean region?"),
    (LOCAL, "/mnt/filled/searches", "/home/me/searches", "is each machine's own"),
    (LOCAL, "/mnt/filled/searches", "searches", "is each machine's own"),
    (AWS, "ray[default]==2.60.0", "ray[default]==2.9.3", "installs ray==2.9.3; this machine has ray"),
    (AWS, "ray[default]==2.60.0", "ray[default]>=2.50", "installs ray>=2.50; this machine has ray"),
    (AWS, "pip install -q -c", "pip install ray boto3 -c", "installs ray of any version; this machine has ray"),
    (
        AWS,
        "ray[default]==2.60.0",
        "https://x.amazonaws.com/ray-wheels/latest/ray.whl",
        "installs https://x.amazonaws.com",
    ),
    (AWS, '"ray[default]==2.60.0"', "", "setup_commands: nothing installs ray[default]=="),
    (AWS, "cluster_name", "docker: {image: x, container_name: y}\ncluster_name", "docker: leave it out"),
    (LOCAL, "export RAY_enable_autoscaler_v2=0", "export", "autoscaler v2 (Ray's default) counts the head"),
    (LOCAL, "192.168.0.12", "192.168.0.11", "192.168.0.11 is listed twice"),
    (LOCAL, "  head_ip: 192.168.0.10\n", "", "provider.head_ip: is missing"),
    (LOCAL, "file_mounts:\n", "file_mounts:\n  /data: /no/such/folder\n", "/no/such/folder: there is no such file"),
    # money
    (AWS, "cache_stopped_nodes: false", "cache_stopped_nodes: true", "the disks of stopped nodes still cost money"),
    (AWS, "  cache_stopped_nodes: false", "", "the disks of stopped nodes still cost money"),
    (AWS, "Type: one-time", "Type: persistent", "SpotInstanceType=persistent: must be one-time"),
    (AWS, "Behavior: terminate", "Behavior: stop", "InstanceInterruptionBehavior=stop: must be terminate"),
    (AWS, "DeleteOnTermination: true", "DeleteOnTermination: false", "Ebs.DeleteOnTermination must be true"),
    (AWS, "    min_workers: 0", "    min_workers: 5", "max_workers=8: below the 15 of all min_workers"),
    (AWS, "    min_workers: 0", "    min_workers: 3", "g6_on_demand.min_workers=3: above max_workers=2"),
    (AWS, "priority: 20", "priority: 10", "g6_on_demand.priority=10: must be below 10, the lowest of spot"),
    (LOCAL, "max_workers: 2", "max_workers: 1", "min_workers=2: above max_workers=1"),
    (
        AWS,
        'hpo/usd-per-hour: "0.81"',
        'hpo/usd-per-hour: "cheap"',
        "hpo/usd-per-hour=cheap: must be a number in quotes",
    ),
    (AWS, "ray.io/market-type: spot", "ray.io/market-type: on-demand", "ray.io/market-type=on-demand: must be spot"),
    # keys
    (AWS, "  ssh_private_key", "  ssh_public_key", "auth.ssh_private_key: is missing"),
    (LOCAL, "  ssh_user: me", "  ssh_public_key: x", "auth.ssh_user: is missing"),
    (LOCAL, "ssh_user: me", "ssh_user: me\n  ssh_proxy_command: x\n  ssh_proxy_use_node_id: true", "leave it out"),
    (AWS, "/.ssh/mine.pem", "/.ssh/nobodys.pem", "nobodys.pem: there is no such file"),
]


@pytest.mark.parametrize("row", BREAKS, ids=[f"{row[1].strip()[:30]} -> {row[2].strip()[:30]}" for row in BREAKS])
def test_a_file_that_breaks_a_rule_is_refused_with_the_reason(row, home):
    name, old, new, reason = row
    text = filled(name, home)
    assert old in text
    path = home / "cluster.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=re.escape(reason)):
        cluster_config.read_checked(path)


def test_all_reasons_come_at_once(home, capsys):
    text = filled(AWS, home).replace("idle_timeout_minutes", "idle_minutes")
    for _, old, new, _ in (row for row in BREAKS if row[2] in ("X=1", "", "cache_stopped_nodes: true")):
        text = text if old.startswith("  region") else text.replace(old, new)
    code, _, err = told(text, home, capsys)
    assert code == 2
    for reason in ("RAY_AUTH_MODE", "HPO_STORAGE", "nothing installs ray", "wants --num-cpus=0", "idle_minutes"):
        assert reason in err, err


@pytest.mark.parametrize(
    ("mode", "content", "reason"), [(0o644, "0" * 64, "others can read it"), (0o600, "1", "below 32")]
)
def test_a_token_that_is_none_is_refused(mode, content, reason, home, capsys):
    path = home / ".hpo/token/auth_token"
    path.write_text(content)
    path.chmod(mode)
    code, _, err = told(filled(LOCAL, home), home, capsys)
    assert code == 2
    assert f"{path}: {reason}" in err


@pytest.mark.parametrize("text", ["- a list", "a: [", "a: \x00"])
def test_what_is_no_mapping_is_refused(text, home, capsys):
    assert told(text, home, capsys)[0] == 2


def test_a_price_that_is_missing_is_a_warning_and_the_cost_is_not_guessed(home, capsys):
    text = filled(AWS, home).replace(', hpo/usd-per-hour: "1.01"', "")
    code, out, err = told(text, home, capsys)
    assert code == 0
    assert "Warning: available_node_types.g5_spot.labels: no hpo/usd-per-hour" in err
    assert "their cost is unknown" in out


def test_the_dearest_nodes_that_may_run_at_once_are_the_most_that_it_can_cost(home):
    config = yaml.safe_load(filled(AWS, home))
    config["available_node_types"]["g5_spot"]["max_workers"] = 3
    assert cluster_config.max_usd_per_hour(config) == pytest.approx(0.21 + 3 * 1.01 + 5 * 0.81)


def test_what_only_ray_itself_refuses_is_told_too(home, monkeypatch, capsys):
    monkeypatch.setattr(cluster_rules, "find_errors", lambda config: [])
    text = filled(AWS, home).replace("    min_workers: 0", "    min_workers: 9")
    code, _, err = told(text, home, capsys)
    assert code == 2
    assert "Ray refuses it" in err


# --- whatever is in the file -----------------------------------------------------------------------------------------

ALIASES = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))])
MERGES = "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))])
ODD_YAML = [
    ALIASES, MERGES, "a: &a [*a]", "a: &a {b: *a}", "a: !!python/object/apply:os.mkdir [owned]", "a: 2001-99-99",
    "a: 0x_", "a: !!bool maybe", "a: !!timestamp never", "a: !!binary ä", "a: " + "9" * 5000, "? [a]\n: b",
    "? {a: b}\n: c", "1: 2", "[" * 5000, "a: " + "{b: " * 3000, "a: *b", "a: 1:99:99", "a: .nan", "- - - a", "on: off",
    "a: !<x> b", "%YAML 9.9\n---\na: b",
]  # fmt: skip
ODD_VALUES = [datetime.date(2030, 1, 1), {1: 2}, {None: 1}, [[]], "~nobody-there/x", "::/0", "a" * 300]
VALUES = JSON | st.sampled_from(ODD_VALUES)
ODD_TEXTS = st.sampled_from(ODD_YAML)


@given(text=st.text() | ODD_TEXTS | st.builds("{}\n{}".format, st.text(max_size=5), ODD_TEXTS))
@fewer(2)
@example(ALIASES)
@example(MERGES)
@example("a: &a [*a]")
@example("a: !!bool maybe")
def test_any_text_is_a_mapping_or_told_as_none(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzzed") / "cluster.yaml"
    path.write_text(text, errors="surrogatepass")
    began = time.monotonic()
    try:
        config = cluster_config.read(path)
    except ConfigError as error:
        assert_readable(error, str(path))
    else:
        assert all(isinstance(line, str) for line in cluster_rules.find_errors(config))
    assert time.monotonic() - began < 20
    assert [file.name for file in path.parent.iterdir()] == ["cluster.yaml"]


@given(data=st.data())
@fewer(2)
@pytest.mark.parametrize("name", [AWS, LOCAL])
@pytest.mark.usefixtures("without_ray")
def test_any_change_of_a_shipped_file_is_summed_up_or_refused_in_lines(name, furnished, data):
    path = furnished / "cluster.yaml"
    config = data.draw(near(yaml.safe_load(filled(name, furnished)), VALUES), "file")
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(["cluster", "check", str(path)])
    assert (code, bool(out.getvalue())) in ((0, True), (2, False))
    assert (code == 2) == (f"{path}: " in err.getvalue())
    assert all(line.isprintable() for line in [*out.getvalue().splitlines(), *err.getvalue().splitlines()])


@pytest.fixture(scope="module")
def furnished(tmp_path_factory) -> Path:
    return _furnish(tmp_path_factory.mktemp("furnished"))


@pytest.fixture(scope="module")
def without_ray() -> Iterator[None]:
    """Its validation speaks on stdout, and takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_rules, "ray_errors", lambda config: [])
        yield
