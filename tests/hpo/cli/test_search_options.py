"""Options as they are typed, as fields of SearchConfig, and as `hpo launch` sends them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from saying import hpo_says

from hpo.cli.arguments import parser
from hpo.cli.search_options import read_search_options
from hpo.policy.config_option import RESOURCES, SEARCHED
from hpo.policy.former_names import FORMER_NAMES
from hpo.policy.search_config import OPTIONS
from hpo.remote.launch import search_arguments
from model.common.errors import ErrorCollector

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

FORMER = [
    (["--scheduler", "leaders"], {"pruner": "leaders"}, "hpo: --scheduler is called --pruner now\n"),
    (["--scheduler", "asha"], {"pruner": "former-asha"}, "hpo: --scheduler is called --pruner now\n"),
    (["--grace", "3"], {"grace_period": 3}, "hpo: --grace is called --grace-period now\n"),
    (["--reduction=3"], {"reduction_factor": 3}, "hpo: --reduction is called --reduction-factor now\n"),
    (["--time-budget", "5"], {"time_budget_minutes": 5.0}, "hpo: --time-budget is called --time-budget-minutes now\n"),
    (
        ["--on-demand-after", "5"],
        {"on_demand_after_minutes": 5.0},
        "hpo: --on-demand-after is called --on-demand-after-minutes now\n",
    ),
    (["--objective", "psnr"], {"objectives": ("psnr",)}, "hpo: --objective is called --objectives now\n"),
    (["--keep", "4"], {"keep_checkpoints": 4}, "hpo: --keep is called --keep-checkpoints now\n"),
    (["--concurrent", "2"], {"max_concurrent": 2}, "hpo: --concurrent is called --max-concurrent now\n"),
]


@pytest.mark.parametrize(("words", "options", "line"), FORMER)
def test_a_former_name_of_an_option_works_and_its_present_name_is_printed(words, options, line, capsys):
    errors = ErrorCollector()
    assert read_search_options(parser().parse_args(["search", "first", *words]), errors) == options
    assert (bool(errors), capsys.readouterr().err) == (False, line)


def test_every_former_name_is_tested_and_none_is_in_the_help(capsys):
    assert {words[0].partition("=")[0].strip("-").replace("-", "_") for words, _, _ in FORMER} == FORMER_NAMES.keys()
    with pytest.raises(SystemExit):
        parser().parse_args(["search", "--help"])
    shown = capsys.readouterr().out.split()
    assert not {f"--{former.replace('_', '-')}" for former in FORMER_NAMES} & set(shown)


def test_both_names_of_an_option_at_once_are_an_error(capsys):
    code, _, err = hpo_says("search", "new", "--grace", "2", "--grace-period", "3", "--trials", "0", capsys=capsys)
    assert code == 2
    assert "grace=2: is the former name of --grace-period; give only --grace-period" in err
    assert "trials=0: must be" in err
    assert "is called" not in err


def test_a_launch_sends_the_present_names():
    typed = ["--grace", "3", "--scheduler", "asha", "--sampler", "surrogate"]
    asked = parser().parse_args(["launch", "cluster.yaml", "first", *typed])
    sent = search_arguments(read_search_options(asked, ErrorCollector()))
    assert sorted(sent) == ["--grace-period=3", "--pruner=former-asha", "--sampler=gp"]


@pytest.mark.parametrize(
    "typed",
    [
        ["--allow-cpu", "--tensorboard", "--trials=7", "--gpus-per-trial=0.25", "--max-cost=inf"],
        ["--on-finish=-x 'a b' \"$HOME\"", "--data=s3://b/p", "--space=optimizers", "--study-url="],
        ["--range", "-0.00001", "1e9"],
        ["--set=norm=instance", "--set=depth=none", "--set=full_resolution_skip=true", "--set=lr_d=1e-7"],
    ],
)
def test_what_a_launch_sends_is_read_on_the_head_as_it_was_typed(typed):
    def options(words: list[str]) -> dict[str, object]:
        return read_search_options(parser().parse_args(["search", "first", *words]), ErrorCollector())

    assert options(search_arguments(options(typed))) == options(typed)


def test_every_field_is_an_option_of_search_and_launch_with_its_default_in_the_help(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "10000")
    for command in ("search", "launch"):
        with pytest.raises(SystemExit):
            parser().parse_args([command, "--help"])
        shown = capsys.readouterr().out
        for name, option in OPTIONS.items():
            assert f"--{name.replace('_', '-')}" in shown
            assert option.help_with_default in shown
        assert shown.index(SEARCHED) < shown.index(RESOURCES)


def test_the_exit_codes_are_in_the_help_and_the_options_are_read_without_numpy(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    assert "\n   75  stopped by a failure" in capsys.readouterr().out
    code = "import sys, hpo.cli.arguments; print({'numpy', 'torch', 'ray', 'optuna', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"
