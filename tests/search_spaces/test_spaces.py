"""The spaces that come with the program sample what can be trained; a bad one is refused before anything starts."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import get_args, get_type_hints

import optuna
import pytest
from fuzzing import SCALARS, assert_readable
from hypothesis import assume, example, given
from hypothesis import strategies as st

import search_spaces
from model.config import FIELDS, TrainConfig
from search_spaces import SpaceError

BASE = TrainConfig(width=8, dropout=0.0)


def samples(space: search_spaces.Space, count: int = 200) -> list[tuple[optuna.trial.Trial, TrainConfig]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    trials = [study.ask() for _ in range(count)]
    return [(trial, space.sample(trial, BASE)) for trial in trials]


def user_space(folder: Path, source: str) -> search_spaces.Space:
    path = folder / "mine.py"
    path.write_text(f"from dataclasses import replace\n{source}\n")
    return search_spaces.load(str(path))


def test_the_shipped_spaces_are_the_modules_of_the_package():
    files = {path.stem for path in Path(search_spaces.__file__).parent.glob("[!_]*.py")}
    assert set(search_spaces.names()) == files >= {"losses_and_rates"}


@pytest.mark.parametrize("name", search_spaces.names())
def test_a_shipped_space_samples_configurations_that_can_be_trained(name):
    space = search_spaces.load(name)
    space.check(BASE, fixed={"seed": 0})
    for trial, config in samples(space):
        assert TrainConfig.from_dict(json.loads(json.dumps(config.as_dict()))).as_dict() == config.as_dict()
        untouched = asdict(config).keys() - trial.params.keys()
        assert {n: asdict(config)[n] for n in untouched if n != "loss"} == {
            n: asdict(BASE)[n] for n in untouched if n != "loss"
        }


def test_the_default_space_asks_for_a_weight_only_where_its_loss_takes_part():
    rates = {"loss", "lr_g", "lr_d"}
    wanted = {"l1": {"l1_weight"}, "ssim": {"ssim_weight"}, "both": {"l1_weight", "ssim_weight"}}
    seen = set()
    for trial, config in samples(search_spaces.load("losses_and_rates")):
        assert trial.params.keys() == rates | wanted[config.loss]
        seen.add(config.loss)
        numbers = [d for d in trial.distributions.values() if isinstance(d, optuna.distributions.FloatDistribution)]
        assert len(numbers) == len(trial.params) - 1
        assert all(d.log for d in numbers)
    assert seen == wanted.keys()


def test_the_default_space_starts_from_the_settings_of_the_slides():
    space = search_spaces.load("losses_and_rates")
    study = optuna.create_study()
    configs = []
    for point in space.starting_points:
        study.enqueue_trial(dict(point))
        configs.append(space.sample(study.ask(), BASE))
    assert [config.weights for config in configs] == [{"l1": 100}, {"ssim": 100}]
    assert {(config.lr_g, config.lr_d) for config in configs} == {(2e-4, 2e-4)}


def test_the_architecture_space_asks_for_what_takes_part_and_for_all_of_it():
    judged = {"adversarial_weight", "lr_d", "patch"}
    seen = set()
    for trial, config in samples(search_spaces.load("architecture"), 400):
        assert trial.params.keys() & judged == (set() if config.adversarial == "none" else judged)
        assert ("ssim_weight" in trial.params) == (config.loss == "both")
        seen |= {
            (name, value)
            for name, value in trial.params.items()
            if isinstance(trial.distributions[name], optuna.distributions.CategoricalDistribution)
        }
    for name in ("loss", "adversarial", "output", "upsample", "norm", "lr_schedule"):
        assert {value for key, value in seen if key == name} == set(get_args(get_type_hints(TrainConfig)[name]))


def test_the_architecture_space_starts_from_the_slides_and_from_a_plain_denoiser():
    space = search_spaces.load("architecture")
    study = optuna.create_study()
    for point in space.starting_points:
        study.enqueue_trial(dict(point))
    slides, denoiser = (space.sample(study.ask(), BASE) for _ in space.starting_points)
    assert slides == TrainConfig()
    assert (denoiser.adversarial, denoiser.loss, denoiser.output) == ("none", "mse", "residual")


def test_a_users_file_is_found_by_its_path(tmp_path):
    space = user_space(
        tmp_path,
        "STARTING_POINTS = ({'width': 4},)\n"
        "def suggest(trial, base): return replace(base, width=trial.suggest_int('width', 2, 6))",
    )
    space.check(BASE, fixed={})
    assert {config.width for _, config in samples(space)} == {2, 3, 4, 5, 6}


SUGGEST = "def suggest(trial, base): return replace(base, {})"


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("raise OSError('no such disk')", ["OSError", "no such disk"]),
        ("def sugest(trial, base): return base", ["no suggest(trial, base)"]),
        (
            "import numpy as np\nSTARTING_POINTS = [{'width': np.array([4, 8])}]\n"
            + SUGGEST.format("width=trial.suggest_int('width', 2, 9)"),
            [""],
        ),
        ("def suggest(trial, base): return 1 / 0", ["ZeroDivisionError"]),
        ("def suggest(trial, base): return {'width': 4}", ["returned dict", "TrainConfig"]),
        (SUGGEST.format("lr_g=trial.suggest_float('lr_g', 1e-2, 1e-5)"), ["low <= high", "0.01", "1e-05"]),
        (SUGGEST.format("lr_g=trial.suggest_float('lr_g', 0, 1, log=True)"), ["low", "0", "log"]),
        (SUGGEST.format("lr_g=trial.suggest_float('lr_g', float('nan'), 1)"), ["mine.py", "bounds"]),
        (SUGGEST.format("loss=trial.suggest_categorical('loss', [])"), ["choices"]),
        (SUGGEST.format("loss=trial.suggest_categorical('loss', ['l2'])"), ["loss='l2'", "l1, ssim, both, mse"]),
        (SUGGEST.format("lr_g=trial.suggest_float('lr_g', 2, 3)"), ["lr_g=2.", "at most 1"]),
        (SUGGEST.format("loss=trial.suggest_categorical('loss', {'l1', 'ssim'})"), ["loss: ", "a list keeps it"]),
        (
            "import optuna\ndef suggest(trial, base):\n    width = trial.suggest_int('width', 2, 4)\n"
            "    if width > 3: raise optuna.TrialPruned\n    return replace(base, width=width)",
            ["raises TrialPruned with {'width': 4}", "bound parameters by those before them"],
        ),
        (SUGGEST.format("width=trial.suggest_int('widht', 2, 4)"), ["widht", "Did you mean width?"]),
        (
            SUGGEST.format("width=2 * trial.suggest_int('width', 2, 2)"),
            ["suggests width=2", "trains 4", "powers of two"],
        ),
        (
            SUGGEST.format("batch_size=2 ** trial.suggest_int('log2_batch', 2, 4)"),
            ["log2_batch is not a field", "Did you mean batch_size?", "powers of two", "'batch_size', [4, 8, 16]"],
        ),
        (
            "def suggest(trial, base):\n    loss = trial.suggest_categorical('loss', ['l1', 'ssim'])\n"
            "    widths = [8, 16] if loss == 'l1' else [16, 32]\n"
            "    return replace(base, loss=loss, width=trial.suggest_categorical('width', widths))",
            ["width: ", "other choices in another branch"],
        ),
        (
            "STARTING_POINTS = ({'width': 4, 'lr_g': 0.1},)\n"
            + SUGGEST.format("width=trial.suggest_int('width', 2, 4)"),
            ["starting point 0", "lr_g", "{'width': 4}"],
        ),
        (
            "STARTING_POINTS = ({'width': 40},)\n" + SUGGEST.format("width=trial.suggest_int('width', 2, 4)"),
            ["starting point 0", "40"],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Optuna warns of a starting point outside its range; here that is an error
def test_a_bad_space_is_refused_with_the_rule_and_the_value(tmp_path, source, rule):
    with pytest.raises(SpaceError) as refused:
        user_space(tmp_path, source).check(BASE, fixed={})
    for part in ["mine.py", *rule]:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("losses_and_rate", ["losses_and_rate:", "Did you mean losses_and_rates?", "my_space.py"]),
        ("nowhere/space.py", ["nowhere/space.py", "file not found"]),
        ("", ["no such space"]),
    ],
)
def test_a_space_that_is_not_there_is_refused_with_the_nearest(name, rule):
    with pytest.raises(SpaceError) as refused:
        search_spaces.load(name)
    for part in rule:
        assert part in str(refused.value)


def test_what_is_searched_cannot_be_set_for_all_trials():
    with pytest.raises(SpaceError, match="lr_g: searched by the space losses_and_rates"):
        search_spaces.load("losses_and_rates").check(BASE, fixed={"width": 8, "lr_g": 1e-3})
    # even where only some of the samples ask for it
    with pytest.raises(SpaceError, match="ssim_weight: searched"):
        search_spaces.load("losses_and_rates").check(BASE, fixed={"ssim_weight": 10.0})


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (SUGGEST.format("lr_g=trial.suggest_float('lr_g', 1e-4, 1e-2), width=random.choice([8, 16])"), "width was "),
        (SUGGEST.format("width=trial.suggest_int('width', 2, random.choice([9, 99]))"), "'width': IntDistribution("),
        (
            "calls = iter(range(10**6))\n"
            + SUGGEST.format("lr_g=trial.suggest_float('lr_g', .1, 1), seed=next(calls)"),
            "seed was ",
        ),
        (
            "random.seed(0)\ndef suggest(trial, base):\n"
            "    more = {'dropout': trial.suggest_float('dropout', 0, .5)} if random.random() < .5 else {}\n"
            "    return replace(base, lr_g=trial.suggest_float('lr_g', .1, 1), **more)",
            "dropout was ",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Optuna warns of a value outside the range that it has now
def test_a_space_that_is_no_function_of_its_trial_is_refused_with_what_differs(tmp_path, source, told):
    with pytest.raises(SpaceError, match="never on random, the time or a counter") as refused:
        user_space(tmp_path, f"import random\n{source}").check(BASE, fixed={})
    assert told in str(refused.value)


ENUM = """
from enum import Enum
class Loss(str, Enum):
    PLAIN = "l1"
    STRUCTURE = "ssim"
class Norm(Enum):
    BATCH = "batch"
    NONE = "none"
STARTING_POINTS = [{"loss": Loss.STRUCTURE, "norm": Norm.NONE}]
def suggest(trial, base):
    norm = trial.suggest_categorical("norm", list(Norm))
    assert norm in (Norm.BATCH, Norm.NONE)
    return replace(base, loss=trial.suggest_categorical(name="loss", choices=list(Loss)), norm=norm.value)
"""
NUMPY = """
import numpy as np
def suggest(trial, base):
    rates = trial.suggest_categorical("lr_g", np.array([1e-3, 1e-4]))
    width = trial.suggest_categorical("width", np.array([8, 16]))
    return replace(base, lr_g=np.float64(rates), width=width, full_resolution_skip=trial.suggest_categorical(
        "full_resolution_skip", np.array([True, False])))
"""


@pytest.mark.parametrize("source", [ENUM, NUMPY])
def test_choices_of_other_types_become_plain_in_parameters_distributions_and_configuration(tmp_path, source):
    space = user_space(tmp_path, source)
    about = space.check(BASE, fixed={})
    assert space.differences(json.loads(json.dumps(about)), BASE) == []
    for trial, config in samples(space, 20):
        chosen = [choice for of in trial.distributions.values() for choice in of.choices]
        values = [*trial.params.values(), *chosen, *asdict(config).values()]
        assert {type(value) for value in values} <= {bool, int, float, str, type(None)}
        assert trial.params.items() <= asdict(config).items()
        assert TrainConfig.from_dict(json.loads(json.dumps(config.as_dict()))).as_dict() == config.as_dict()


def test_a_module_beside_a_space_is_found_and_nothing_of_it_is_kept(tmp_path, monkeypatch):
    """And not one that is called as one of Python's own, or as another space's."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    path, used = [*sys.path], "import rates\n" + SUGGEST.format("lr_g=trial.suggest_float('lr_g', 1e-4, rates.HIGH)")
    highs = []
    for name, high in (("a", 1e-3), ("b", 1e-2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rates.py").write_text(f"HIGH = {high}\n")
        (tmp_path / name / "colorsys.py").write_text("raise OSError('not ours')\n")
        about = user_space(tmp_path / name, f"import colorsys\n{used}").check(BASE, fixed={})
        highs.append("high=0.001" if "high=0.001," in str(about["distributions"]) else "high=0.01")
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == ["colorsys.py", "mine.py", "rates.py"]
    assert highs == ["high=0.001", "high=0.01"]
    assert (sys.path, "rates" in sys.modules) == (path, False)


def test_what_is_installed_below_the_folder_of_a_space_is_not_imported_twice(tmp_path, monkeypatch):
    """As in a .venv beside it: NumPy and its like refuse a second import."""
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "once_only.py").write_text("HIGH = 1e-3\n")
    monkeypatch.syspath_prepend(tmp_path / ".venv")
    source = "import once_only\n" + SUGGEST.format("lr_g=trial.suggest_float('lr_g', 1e-4, once_only.HIGH)")
    user_space(tmp_path, source).check(BASE, fixed={})
    assert sys.modules.pop("once_only").HIGH == 1e-3


def test_a_starting_point_may_give_some_of_the_parameters(tmp_path):
    source = "STARTING_POINTS = [{'width': 4}]\ndef suggest(trial, base): return replace(base, "
    source += "width=trial.suggest_int('width', 2, 64), lr_g=trial.suggest_float('lr_g', 1e-4, 1e-2, log=True))"
    space = user_space(tmp_path, source)
    first = space.check(BASE, fixed={})["samples"][0]["params"]
    assert (first["width"], first.keys()) == (4, {"width", "lr_g"})


RATES = "def suggest(trial, base): return replace(base, lr_g=trial.suggest_float('lr_g', 1e-4, {high}, log=True){more})"


def differences(folder: Path, source: str) -> list[str]:
    was = user_space(folder, RATES.format(high="1e-2", more="")).check(BASE, fixed={})
    return user_space(folder, source).differences(json.loads(json.dumps(was)), BASE)


def test_a_space_is_the_same_when_only_its_source_looks_otherwise(tmp_path):
    source = "RATE = 'lr_g'\ndef suggest(trial, base):\n    lr_g = trial.suggest_float(RATE, 0.0001, 0.01, log=True)\n"
    assert differences(tmp_path, source + "    return replace(base, lr_g=lr_g)") == []


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (RATES.format(high="2e-2", more=""), "lr_g: was FloatDistribution(high=0.01, log=True, low=0.0001, step=None)"),
        (RATES.format(high="1e-2", more=", width=trial.suggest_int('width', 2, 6)"), "width: was missing, is Int"),
        (RATES.format(high="1e-2", more=", width=64"), "yields {'lr_g': 0."),
        (RATES.format(high="1e-2", more="") + "\nSTARTING_POINTS = ({'lr_g': 2e-4},)", "starting points: were []"),
    ],
)
def test_a_space_that_yields_something_else_is_told_with_the_difference(tmp_path, source, told):
    assert any(told in line for line in differences(tmp_path, source))


# --- whatever is in the file -----------------------------------------------------------------------------------------

BOUNDS = ["0", "1", "-1", "2", "1e-4", "0.5", "64", "1e400", "float('nan')", "'a'", "None", "10**400", "True"]
CHOICES = ["'l1'", "'both'", "2", "0.1", "None", "True", "'none'", "[]", "object"]
NAMES = st.sampled_from([*FIELDS, "", "widht", "\\0"])


@st.composite
def suggestions(draw: st.DrawFn) -> str:
    """`width=trial.suggest_int('width', 2, 4)`, or something like it."""
    name, low, high = draw(NAMES), draw(st.sampled_from(BOUNDS)), draw(st.sampled_from(BOUNDS))
    rest = f"{low}, {high}" + draw(st.sampled_from(["", "", ", log=True", ", step=1", ", step=0"]))
    choices = f"[{', '.join(draw(st.lists(st.sampled_from(CHOICES), max_size=4)))}]"
    kind, arguments = draw(st.sampled_from([("float", rest), ("int", rest), ("categorical", choices)]))
    return f"{draw(st.just(name) | NAMES) or 'x'}=trial.suggest_{kind}('{name}', {arguments})"


POINTS = st.lists(st.dictionaries(NAMES, SCALARS, max_size=3) | SCALARS, max_size=3) | SCALARS
BODIES = st.lists(suggestions(), max_size=3).map(lambda several: f"replace(base, {', '.join(several)})")
ODD_BODIES = [
    "base",
    "trial",
    "None",
    "exit(0)",
    "suggest(trial, base)",
    "1 / 0",
    "replace(base, epochs=10**9)",
    "[][0]",
]
ODD_SOURCES = ["raise SystemExit(0)", "(" * 5000, "-" * 50_000 + "1", "import nowhere", "suggest = 3", "x = [" * 90]
SOURCES = (
    st.text()
    | st.binary()
    | st.sampled_from(ODD_SOURCES)
    | st.builds(
        "nan, inf = float('nan'), float('inf')\nSTARTING_POINTS = {}\n"
        "from dataclasses import replace\ndef suggest(trial, base): return {}\n".format,
        st.just("[]") | POINTS.map(repr),
        BODIES | BODIES | st.sampled_from(ODD_BODIES),
    )
)


@given(source=SOURCES)
@example("from dataclasses import replace\ndef suggest(trial, base): exit(0)")
@example("STARTING_POINTS = 5\ndef suggest(trial, base): return base")
@pytest.mark.filterwarnings("ignore")
def test_any_file_is_a_space_that_is_the_same_again_or_a_space_error(source):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.py"
        path.write_bytes(source if isinstance(source, bytes) else source.encode(errors="surrogatepass"))
        try:
            space = search_spaces.load(str(path))
            found = space.check(BASE, fixed={})
        except SpaceError as error:
            assert_readable(error, "mine.py")
        else:
            assert space.differences(json.loads(json.dumps(found)), BASE) == []
        assert os.listdir(folder) == ["mine.py"]  # nothing compiled beside it


@given(
    st.text() | st.text().map("{}.py".format) | st.sampled_from(["x" * 5000 + ".py", "\0.py", "a/\0.py", ".py", "/.py"])
)
@example("x" * 5000 + ".py")
def test_any_name_is_a_space_that_is_there_or_a_space_error(name):
    assume(name not in search_spaces.names())
    with pytest.raises(SpaceError) as refused:
        search_spaces.load(name)
    assert_readable(refused.value, "space=")
