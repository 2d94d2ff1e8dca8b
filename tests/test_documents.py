"""The commands, paths and names in the documents are those of the program."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import search_spaces
from hpo.cli.arguments import parser
from hpo.cluster import cluster_config, cluster_rules
from hpo.policy.former_names import FORMER_NAMES
from model.config import TrainConfig
from model.data.noise import KINDS, parse_noise

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Every line that begins with `hpo`, and those that a `ray exec` line runs."""
    lines = [line.split("  #")[0].strip() for page in PAGES for line in page.read_text().splitlines()]
    quoted = [match[1] for line in lines if (match := re.search(r"'(hpo .*)'", line))]
    return [line for line in lines if line.startswith("hpo ")] + quoted


def test_the_pages_show_commands():
    assert len(commands()) >= 5


@pytest.mark.parametrize("line", commands())
def test_a_command_on_the_pages_is_one_that_the_program_takes(line):
    parser().parse_args(shlex.split(line)[1:])


def test_the_line_on_the_page_fills_in_the_whole_cluster_file(tmp_path):
    page = (ROOT / "docs/cluster.md").read_text()
    command = re.search(r"^sed -i .*? cluster.yaml$", page, re.S | re.M)[0]
    values = {"NAME": "search", "GROUP": "sg-0", "BUCKET": "bucket", "IMAGE": "ami-1", "GPU_IMAGE": "ami-2"}
    (tmp_path / "cluster.yaml").write_text((ROOT / "cluster.yaml").read_text())
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=values, check=True)
    config = cluster_config.read(tmp_path / "cluster.yaml")
    assert cluster_rules.find_errors(config) == []
    images = {name: node["node_config"]["ImageId"] for name, node in config["available_node_types"].items()}
    assert images == {"head": "ami-1", "g6_spot": "ami-2", "g5_spot": "ami-2", "g6_on_demand": "ami-2"}
    assert cluster_config.storage_address(config).startswith("s3://bucket/searches")
    assert f"{cluster_config.max_usd_per_hour(config):.2f} USD an hour at most as shipped" in " ".join(page.split())


def test_the_policies_on_the_page_are_json(tmp_path):
    page = (ROOT / "docs/cluster.md").read_text()
    block = re.search(r"^S3=.*?^done$", page, re.S | re.M)[0]
    script = f'aws() {{ for given; do case $given in {{*) echo "$given";; esac; done; }}; {block}'
    names = {"NAME": "search", "BUCKET": "bucket", "ACCOUNT": "1"}
    output = subprocess.run(["bash", "-c", script], env=names, check=True, capture_output=True, text=True).stdout
    trust, head, _, worker = (json.loads(text)["Statement"] for text in output.replace("}\n{", "}\0{").split("\0"))
    assert trust[0]["Principal"] == {"Service": "ec2.amazonaws.com"}
    assert head == [*worker, *head[2:]]
    assert {action for statement in head[2:] for action in statement["Action"] if action[:3] == "ec2"} == {
        "ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags", "ec2:Describe*"
    }  # fmt: skip
    assert worker[1]["Resource"] == "arn:aws:s3:::bucket/searches/*"


def test_every_noise_on_the_page_is_one_and_every_kind_is_on_it():
    section = (ROOT / "docs/data.md").read_text().partition("## Noise")[2]
    specs = re.findall(r"`([a-z-]+:[^`]*)`", section)
    kinds = {stage.partition(":")[0] for spec in specs for stage in spec.split("+") if parse_noise(spec)}
    assert kinds == set(KINDS)


def test_the_space_on_the_page_is_searchable(tmp_path):
    text = re.search(r"```python\n(# my_space.py.*?)```", (ROOT / "docs/spaces.md").read_text(), re.S)[1]
    path = tmp_path / "my_space.py"
    path.write_text(text)
    space = search_spaces.load(str(path))
    space.check(TrainConfig(), {})
    assert space.starting_points[0] == {"lr_g": 2e-4, "dropout": 0.5}


@pytest.mark.parametrize("name", search_spaces.names())
def test_a_shipped_space_is_named_wherever_spaces_are(name, capsys):
    assert f"| `{name}`" in (ROOT / "docs/spaces.md").read_text()
    assert name in (ROOT / "README.md").read_text()
    with pytest.raises(SystemExit):
        parser().parse_args(["search", "--help"])
    assert name in capsys.readouterr().out


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_row_about_a_fault_names_a_test_that_exists():
    texts = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    tests = set(re.findall(r"^def (test_\w+)", texts, re.M))
    page = (ROOT / "docs/faults.md").read_text()
    tables = re.findall(r"^\|.*\| tests \|\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.M)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 80
    for row in rows:
        named = row.rpartition(" | ")[2].removesuffix(" |").split("; ")
        for name in named:  # *sentence*, or [FAMILY: CASE] of the table of bad input
            if name[0] == "*":
                assert f"test_{name.strip('*').replace(' ', '_')}" in tests, name
            else:
                case = re.sub(r", (searched|denoised)$", "", name.strip("[]").partition(": ")[2])
                assert f'    "{case}": ' in texts, name


def test_the_tree_in_the_readme_names_every_module():
    text = (ROOT / "README.md").read_text()
    modules = [path for top in ("hpo", "model") for path in (ROOT / top).rglob("[!_]*.py")]
    assert len(modules) > 80
    assert [path.name for path in modules if path.name not in text] == []


def test_every_path_on_the_pages_exists():
    """In docstrings and comments, too."""
    files = {
        str(path.relative_to(ROOT))
        for top in ("hpo", "model", "tests", "benchmarks")
        for path in (ROOT / top).rglob("*.*")
    }
    names = {path.rpartition("/")[2] for path in files}
    sources = [
        path
        for top in ("hpo", "model", "search_spaces")
        for ext in ("py", "md")
        for path in (ROOT / top).rglob(f"*.{ext}")
    ]
    texts = {str(page): page.read_text() for page in [*PAGES, ROOT / "CONTRIBUTING.md", *sources]}
    paths = {
        (name, path)
        for name, text in texts.items()
        for path in re.findall(r"\b(?:hpo|model|tests|benchmarks)/[\w/.-]+\.\w+", text)
    }
    tests = {(name, test) for name, text in texts.items() for test in re.findall(r"(?<![\w/])test_\w+\.py\b", text)}
    assert len(paths) > 30
    assert len(tests) > 8
    assert not {(name, path) for name, path in paths if path not in files}
    assert not {(name, test) for name, test in tests if test not in names}


def test_every_function_that_the_architecture_names_exists():
    page = (ROOT / "docs/architecture.md").read_text()
    code = "\n".join(path.read_text() for top in ("hpo", "model") for path in (ROOT / top).rglob("*.py"))
    defined = set(re.findall(r"^ *(?:async )?(?:def|class) (\w+)", code, re.M))
    named = {part for name in re.findall(r"`([A-Za-z_]\w+(?:\.[A-Za-z_]\w+)*)`", page) for part in name.split(".")}
    named = {name for name in named if "_" in name or not name.islower()}
    files = {path.stem for top in ("hpo", "model") for path in (ROOT / top).rglob("*.py")}
    assert len(named) > 15
    assert named - defined - files == {"CONTINUE", "STOP"}  # Tune's


def test_the_glossary_has_every_former_option():
    page = (ROOT / "docs/glossary.md").read_text()
    for former, present in FORMER_NAMES.items():
        assert f"| `--{former.replace('_', '-')}` | `--{present.replace('_', '-')}` |" in page
