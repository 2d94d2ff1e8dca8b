"""What is searched: one small module per space, found by name, or a user's own file found by its path."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import optuna

from model.common.errors import ConfigError
from model.common.text import did_you_mean
from model.config import FIELDS, TrainConfig

_SAMPLES = 25  # of a space, before it is believed
_OF_THE_SEARCH = ("epochs", "images_per_epoch")  # fields of TrainConfig that are its own options
_HINT = (
    "A parameter is what is trained, under its name: powers of two are trial.suggest_categorical('batch_size', "
    "[4, 8, 16]), and log=True searches on a log scale"
)


class SpaceError(ConfigError):
    """A search space that cannot be searched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """A define-by-run search space.

    suggest: from an Optuna trial and the configuration that holds for all trials, the trial's own configuration.
    starting_points: parameters of the first trials, tried before any suggestion; what they leave out is suggested.
    """

    name: str
    suggest: Callable[[optuna.trial.Trial, TrainConfig], TrainConfig]
    starting_points: tuple[Mapping[str, Any], ...]

    def sample(self, trial: optuna.trial.Trial, base: TrainConfig) -> TrainConfig:
        """suggest, held to the rule that a parameter is a field of TrainConfig by name and value. Raises SpaceError.

        Choices and values may be of any type that stands for a number, a text or a truth value, such as members of an
        Enum or NumPy's: parameters and configuration have Python's own, which every process and database can read.
        """
        _take_any_type(trial)
        try:
            config = _with_plain_values(self.suggest(trial, base))
        except optuna.TrialPruned as error:
            raise SpaceError(
                f"space {self.name}: raises TrialPruned with {trial.params}. A space suggests what can be trained: "
                "bound parameters by those before them, such as trial.suggest_int('width', 8, 2048 // batch_size)"
            ) from error
        except (Exception, SystemExit) as error:  # a user's code may raise anything
            raise SpaceError(f"space {self.name}: {type(error).__name__}: {error}") from error
        if not isinstance(config, TrainConfig):
            raise SpaceError(f"space {self.name}: suggest returned {type(config).__name__}, not a TrainConfig")
        for name, value in trial.params.items():
            if name in _OF_THE_SEARCH:
                option = f"--{name.replace('_', '-')}"
                raise SpaceError(f"space {self.name}: {name} is one for all trials, which compare by it: {option}")
            if name not in FIELDS:
                word = re.sub("^(log|ln)(2|10)?_", "", name)
                meant = did_you_mean(word, [field for field in FIELDS if word in field] or FIELDS)
                raise SpaceError(f"space {self.name}: {name} is no field of TrainConfig. {meant} {_HINT}")
            if (trained := getattr(config, name)) != value:
                raise SpaceError(f"space {self.name}: suggests {name}={value} but trains {trained}. {_HINT}")
        return config

    def check(self, base: TrainConfig, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Sample it, starting points first, before anything is started. fixed: what the user set for all trials.

        Gives what it is, JSON-ready, for `differences`: the distributions and what samples of them yield; not its
        source, which may change its looks. Raises SpaceError.
        """
        distributions: dict[str, set[str]] = {}
        samples: list[dict[str, Any]] = []
        shapes = []
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for point in self.starting_points:
            study.enqueue_trial(dict(point))
        for index in range(len(self.starting_points) + _SAMPLES):
            trial = study.ask()
            yields = _changes(base, self.sample(trial, base))
            samples.append({"params": trial.params, "yields": yields})
            shapes.append(repr(trial.distributions))
            for name, distribution in trial.distributions.items():
                distributions.setdefault(name, set()).add(repr(distribution))
            both = sorted(set(trial.params) & set(fixed))
            if both:
                raise SpaceError(
                    f"{', '.join(both)}: searched by the space {self.name}, so it cannot be set for all trials. "
                    "Copy the space into a file of yours without it and pass --space FILE.py"
                )
            if index >= len(self.starting_points):
                continue
            if not self.starting_points[index].items() <= trial.params.items():
                raise SpaceError(
                    f"space {self.name}: starting point {index} {dict(self.starting_points[index])} has other "
                    f"parameters than the space then suggests: {trial.params}"
                )
            try:  # Optuna asks with values out of range, and refuses to keep them
                optuna.trial.create_trial(value=0.0, params=trial.params, distributions=trial.distributions)
            except ValueError as error:
                raise SpaceError(f"space {self.name}: starting point {index}: {error}") from error
        if not distributions:
            raise SpaceError(f"space {self.name}: suggests nothing, so all trials would be the same")
        self._check_again(samples, shapes, base)
        return {
            "distributions": {name: sorted(found) for name, found in sorted(distributions.items())},
            "starting_points": [dict(point) for point in self.starting_points],
            "samples": samples,
        }

    def _check_again(self, samples: Sequence[Mapping[str, Any]], shapes: Sequence[str], base: TrainConfig) -> None:
        """The same parameters, in another order, yield the same: else no search could be continued. shapes: of the
        samples, their distributions. Raises SpaceError."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for sample, shape in reversed(list(zip(samples, shapes, strict=True))):
            study.enqueue_trial(sample["params"])
            trial = study.ask()
            was = {**sample["params"], **sample["yields"]}
            now = {**_changes(base, self.sample(trial, base)), **trial.params}
            names = [name for name in sorted(was.keys() | now.keys()) if was.get(name, _NONE) != now.get(name, _NONE)]
            told = [f"{name} was {was.get(name, 'not there')} and then {now.get(name, 'not there')}" for name in names]
            if not told and shape != (shape_now := repr(trial.distributions)):
                told = [f"{shape} became {shape_now}"]
            if told:
                raise SpaceError(
                    f"space {self.name}: {'; '.join(told)} with the same parameters, {sample['params']}. What is "
                    "trained depends on the trial alone, never on random, the time or a counter: use "
                    "trial.suggest_categorical and its like"
                )

    def differences(self, was: Mapping[str, Any], base: TrainConfig) -> list[str]:
        """Of this space from what `check` gave of an earlier one, a line each; none where it is the same."""
        now = self.check(base, {})
        lines = []
        for name in sorted(was["distributions"].keys() | now["distributions"].keys()):
            before, after = (" or ".join(space["distributions"].get(name, ["not there"])) for space in (was, now))
            if before != after:
                lines.append(f"{name}: was {before}, is {after}")
        if was["starting_points"] != now["starting_points"]:
            lines.append(f"starting points: were {was['starting_points']}, are {now['starting_points']}")
        if lines:
            return lines
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for sample in was["samples"]:
            study.enqueue_trial(sample["params"])
            trial = study.ask()
            yields = _changes(base, self.sample(trial, base))
            if yields != sample["yields"]:
                return [f"{sample['params']}: yielded {sample['yields']}, yields {yields}"]
        return []


_NONE = object()


def _take_any_type(trial: optuna.trial.Trial) -> None:
    """Has the trial take choices of any type, and name the parameter in what it raises."""
    for kind in ("float", "int", "categorical"):
        setattr(trial, f"suggest_{kind}", partial(_named, getattr(trial, f"suggest_{kind}")))
    setattr(trial, "suggest_categorical", partial(_of_any_type, trial.suggest_categorical))  # noqa: B010 - for mypy


def _named(suggest: Callable[..., Any], name: str, *given: Any, **named: Any) -> Any:
    try:
        return suggest(name, *given, **named)
    except ValueError as error:
        told = f"{name}: {error}"
        if "dynamic value space" in str(error):
            told += " It has other choices in another branch, and needs the same ones in all"
        raise ValueError(told) from error


def _of_any_type(suggest: Callable[..., Any], name: str, choices: Sequence[Any]) -> Any:
    if isinstance(choices, AbstractSet):
        raise ValueError(f"{name}: its choices are a set, which another process has in another order; a list keeps it")
    choices = list(choices)
    plain = [_plain(choice) for choice in choices]
    value = suggest(name, plain)
    chosen = choices[plain.index(value)]
    return chosen if isinstance(chosen, Enum) else value  # the space may compare it with its own


def _with_plain_values(config: Any) -> Any:
    """Whatever suggest returned."""
    if not isinstance(config, TrainConfig):
        return config
    values = {name: getattr(config, name) for name in FIELDS}
    changed = {name: plain for name, value in values.items() if type(plain := _plain(value)) is not type(value)}
    return replace(config, **changed) if changed else config


def _plain(value: Any) -> Any:
    """Without what derives from Python's own types, or is NumPy's."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:  # not imported for this
        return value.item()
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)


def _changes(base: TrainConfig, config: TrainConfig) -> dict[str, Any]:
    before = base.as_dict()
    return {name: value for name, value in config.as_dict().items() if value != before[name]}


def names() -> list[str]:
    """The spaces that come with the program."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Space:
    """By the name of a module here, or the path of a file that defines suggest(trial, base). Raises SpaceError."""
    if name.endswith(".py"):
        module = run_file(Path(name))
    elif name in names():
        module = importlib.import_module(f"search_spaces.{name}")
    else:
        raise SpaceError(
            f"space={name}: no such space. {did_you_mean(name, names())} Or pass a file, such as my_space.py"
        )
    suggest = getattr(module, "suggest", None)
    if not callable(suggest):
        raise SpaceError(f"space={name}: defines no suggest(trial, base)")
    points = getattr(module, "STARTING_POINTS", ())
    if not isinstance(points, Sequence) or not all(_is_point(point) for point in points):
        raise SpaceError(f"space={name}: STARTING_POINTS must be a list of mappings, such as [{{'lr_g': 0.001}}]")
    plain = ({name: _plain(value) for name, value in point.items()} for point in points)
    return Space(name=name, suggest=suggest, starting_points=tuple(plain))


def _is_point(point: Any) -> bool:
    return isinstance(point, Mapping) and all(isinstance(name, str) for name in point)


def run_file(path: Path, option: str = "space") -> types.ModuleType:
    """A user's file, nothing of it kept beside it. While it is loaded, modules beside it are found, too, after all
    others. option: who names it. Raises SpaceError."""
    if not os.path.isfile(path):
        raise SpaceError(f"{option}={path}: there is no such file")
    module = types.ModuleType(f"user_{option}_{path.stem}")
    module.__file__ = str(path)
    try:
        with _found_beside(path):
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise SpaceError(f"{option}={path}: {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _found_beside(path: Path) -> Iterator[None]:
    """Of modules that are imported from there nothing is written, and none is left to be another file's."""
    beside = os.path.dirname(os.path.realpath(path))
    before, writes_none = set(sys.modules), sys.dont_write_bytecode
    sys.path.append(beside)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_none
        if beside in sys.path:  # its last place: the file may have put it there, too
            del sys.path[-1 - sys.path[::-1].index(beside)]
        for name in set(sys.modules) - before:
            own = os.path.join(beside, name.partition(".")[0])  # not what lies deeper, such as in a .venv
            if (getattr(sys.modules[name], "__file__", None) or "").startswith((f"{own}.py", f"{own}{os.sep}")):
                del sys.modules[name]
