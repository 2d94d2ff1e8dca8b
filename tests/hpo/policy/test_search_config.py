"""What a search may be asked to do."""

from __future__ import annotations

import dataclasses
import json
import re
import string

import pytest
from fuzzing import JSON, assert_readable, near
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import make_url

from hpo.policy import search_config
from hpo.policy.search_config import CHANGEABLE, SearchConfig, check_name
from model.common.errors import ConfigError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trials": 0}, "trials=0: must be at least 1"),
        ({"trials": -1}, "trials=-1: must be at least 1"),
        ({"epochs": 0}, "epochs=0: must be at least 1"),
        ({"grace_period": 0}, "grace_period=0: must be from 1 to the 12 epochs"),
        ({"grace_period": 5, "epochs": 4}, "grace_period=5: must be from 1 to the 4 epochs"),
        ({"reduction_factor": 1}, "reduction_factor=1: must be at least 2"),
        ({"pruner": "asah"}, "pruner=asah: must be one of asha, none, or a .py file"),
        ({"objectives": ("loss",)}, "objectives=loss: must be of balanced, ssim, psnr"),
        ({"objectives": ("psnr", "latenzy")}, "Did you mean latency?"),
        ({"objectives": ("latency", "params")}, "must have at least one of balanced, ssim, psnr"),
        ({"objectives": ("psnr", "psnr")}, "objectives=psnr,psnr: must be different ones"),
        ({"limit": ("latency<20",)}, "limit='latency<20': a limit is NAME<=NUMBER"),
        ({"limit": ("latency<=fast",)}, "limit=latency<=fast: a limit is NAME<=NUMBER"),
        ({"limit": ("speed<=20",)}, "limit=speed<=20: speed is not an objective"),
        ({"latency_size": 0}, "latency_size=0: must be from 1"),
        ({"latency_threads": 0}, "latency_threads=0: must be from 1"),
        ({"objectives": ("psnr", "latency"), "pruner": "mine.py"}, "pruner=mine.py: must be one of asha, none with"),
        ({"objectives": ("psnr", "latency"), "replicates": 3}, "replicates=3: must be 0 with several objectives"),
        ({"front": 0}, "front=0: must be at least 1"),
        ({"replicates": -1}, "replicates=-1: must be 0 (none)"),
        ({"wandb": "online!"}, "wandb=online!: must be one of"),
        ({"final_epochs": -1}, "final_epochs=-1: must be 0"),
        ({"time_budget_minutes": 0.0}, "time_budget_minutes=0.0: must be minutes above 0"),
        ({"time_budget_minutes": float("nan")}, "time_budget_minutes=nan: must be minutes above 0"),
        ({"max_cost": 0.0, "address": "auto"}, "max_cost=0.0: must be a positive amount in USD"),
        (
            {"max_cost": 5.0},
            "max_cost=5.0: must be a positive amount in USD, with --address of a cluster with price labels",
        ),
        ({"on_demand_after_minutes": 0.0}, "on_demand_after_minutes=0.0: must be minutes above 0"),
        ({"max_concurrent": 0}, "max_concurrent=0: must be at least 1"),
        ({"max_concurrent": 10**6}, "max_concurrent=1000000: must be at least 1 and at most 100000"),
        ({"cpus_per_trial": 0.0}, "cpus_per_trial=0.0: must be above 0"),
        ({"cpus_per_trial": float("inf")}, "cpus_per_trial=inf: must be above 0"),
        ({"gpus_per_trial": -0.5}, "gpus_per_trial=-0.5: must be 0, a fraction"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial=1.5: must be 0, a fraction"),
        ({"gpus_per_trial": float("nan")}, "gpus_per_trial=nan: must be 0, a fraction"),
        ({"seed": -1}, "seed=-1"),
        ({"data": "fashion-mnits"}, "Did you mean fashion-mnist?"),
        ({"noise": "gaussian:-1"}, "gaussian:-1"),
        ({"images_per_epoch": 10}, "images_per_epoch=10: must be at least the batch size, 64"),
        ({"set": {"widht": 4}}, "widht: no such setting. Did you mean width?"),
        ({"set": {"width": 0}}, "width=0: width must be at least 1"),
        ({"set": {"epochs": 3}}, "epochs: use its own option instead: --epochs"),
        ({"set": {"images_per_epoch": 3}}, "use its own option instead: --images-per-epoch"),
    ],
)
def test_a_broken_rule_is_told_with_its_value(wrong, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        SearchConfig(**wrong)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as refused:
        SearchConfig(trials=0, reduction_factor=1, data="mnist", noise="salt:1", set={"width": 0, "lr_g": 7.0})
    for mistake in ("trials=0", "reduction_factor=1", "data=mnist", "salt:1", "width=0", "lr_g=7.0"):
        assert mistake in str(refused.value)


@pytest.mark.parametrize("right", [{"gpus_per_trial": g} for g in (0, 0.25, 1, 2)] + [{"grace_period": 4, "epochs": 4}])
def test_the_limits_themselves_are_allowed(right):
    SearchConfig(**right)


def test_a_search_survives_its_json():
    search = SearchConfig(set={"width": 4}, time_budget_minutes=1.5)
    assert SearchConfig(**json.loads(json.dumps(search.as_dict()))) == search
    assert {field.name for field in dataclasses.fields(SearchConfig)} >= CHANGEABLE


def test_what_holds_for_all_trials_comes_from_the_search():
    base = SearchConfig(epochs=4, seed=7, images_per_epoch=512, set={"width": 4}).base_config()
    assert (base.epochs, base.seed, base.images_per_epoch, base.width) == (4, 7, 512, 4)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", "-rf", ".hidden", "a b", "a\n", "ä", "a" * 65])
def test_a_name_that_is_no_plain_folder_is_refused(name):
    with pytest.raises(ConfigError, match="1 to 64 letters"):
        check_name(name)


@given(st.text(max_size=80) | st.from_regex(r"[A-Za-z0-9._/\\ -]{0,70}", fullmatch=True))
def test_a_name_is_taken_as_it_is_or_refused_with_one_that_would_be_taken(name):
    if re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name, re.ASCII):
        assert check_name(name) == name
        return
    with pytest.raises(ConfigError) as refused:
        check_name(name)
    hint = str(refused.value).rpartition("such as ")[2]
    assert check_name(hint) == hint


@given(
    near(SearchConfig(time_budget_minutes=3.0, set={"width": 4, "lr_g": 0.1}).as_dict())
    | JSON.map(lambda v: {"set": v})
)
@example({"trials": 10**400})
@example({"study_url": "postgresql://[1.]/hpo"})
def test_any_json_is_a_search_or_a_config_error(values):
    try:
        known = {name: value for name, value in values.items() if name in SearchConfig.__dataclass_fields__}
        search = SearchConfig(**known)
    except ConfigError as error:
        assert_readable(error)
        return
    assert SearchConfig(**json.loads(json.dumps(search.as_dict()))) == search
    assert search.trials >= 1
    assert search.base_config().epochs == search.epochs


@given(st.text(alphabet=string.printable) | st.from_regex(search_config._STUDY_URL, fullmatch=True) | st.text())
@example("postgresql://[1.]/hpo")
@example("postgresql://db/hpo?PassWord=x")
def test_any_text_is_an_address_of_a_database_without_a_password_or_refused(url):
    try:
        SearchConfig(study_url=url)
    except ConfigError as error:
        refusal = str(error)
        assert refusal == search_config._STUDY_URL_RULE  # not what was in it
        return
    made = make_url(url.replace("postgresql:", "postgresql+psycopg:", 1))
    assert made.password is None
    assert not {key for key in made.query if "password" in key.lower()}
