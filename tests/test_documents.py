"""What the README and the docs show is what the program takes."""

import re
import shlex
from pathlib import Path

import pytest

import search_spaces
from hpo.cli import _parser
from model.config import TrainConfig
from model.noise import KINDS, parse_noise

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
    _parser().parse_args(shlex.split(line)[1:])


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
        _parser().parse_args(["search", "--help"])
    assert name in capsys.readouterr().out


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tree_in_the_readme_names_every_module():
    text = (ROOT / "README.md").read_text()
    modules = [path for room in ("hpo", "model") for path in (ROOT / room).glob("*.py") if path.stem != "__init__"]
    missing = [path.name for path in modules if path.name not in text]
    assert set(missing) <= {"pictures.py"}
