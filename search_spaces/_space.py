"""A define-by-run search space, and the checks that it can be searched."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any

import optuna

from model.common.errors import ConfigError
from model.common.text import did_you_mean
from model.config import FIELDS, TrainConfig

_CHECK_SAMPLES = 25  # drawn at random when a space is checked
_SEARCH_OPTIONS = ("epochs", "images_per_epoch")  # fields of TrainConfig that are options of the search
_HINT = (
    "A parameter is trained under its own name and value: powers of two are trial.suggest_categorical('batch_size', "
    "[4, 8, 16]), and log=True searches on a log scale"
)
_MISSING = object()


class SpaceError(ConfigError):
    """A search space that cannot be searched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """A define-by-run search space.

    Args:
        name: a module of search_spaces, or the path of a user's file.
        suggest: makes a trial's configuration from an Optuna trial and the configuration that all trials share.
        starting_points: parameters of the first trials, before any suggestion; the sampler suggests missing ones.
    """

    name: str
    suggest: Callable[[optuna.trial.Trial, TrainConfig], TrainConfig]
    starting_points: tuple[Mapping[str, Any], ...]

    def sample(self, trial: optuna.trial.Trial, base: TrainConfig) -> TrainConfig:
        """Call `suggest`, and check that each parameter is a field of the configuration with the same value.

        Choices and values may be of any type that stands for a number, a text or a truth value, such as members of an
        Enum or NumPy's: parameters and configuration get Python's own types, which every process and database can read.

        Raises:
            SpaceError: `suggest` fails, or breaks that rule.
        """
        _accept_any_type(trial)
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
            if problem := _parameter_problem(name, value, config):
                raise SpaceError(f"space {self.name}: {problem}")
        return config

    @staticmethod
    def check_range(trial: optuna.trial.Trial) -> None:
        """Raise SpaceError for a value out of range, which Optuna allows for an enqueued trial, but cannot store."""
        try:
            optuna.trial.create_trial(value=0.0, params=trial.params, distributions=trial.distributions)
        except ValueError as error:
            raise SpaceError(str(error)) from error

    def check(self, base: TrainConfig, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Sample the space, starting points first, before a search is started.

        Args:
            base: the configuration that all trials share.
            fixed: the fields that the user set for all trials.

        Returns:
            A description for `differences`, JSON-ready: the distributions, and the configurations of samples.

        Raises:
            SpaceError: the space cannot be searched.
        """
        distributions: dict[str, set[str]] = {}
        samples: list[dict[str, Any]] = []
        trial_distributions = []
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for point in self.starting_points:
            study.enqueue_trial(dict(point))
        for index in range(len(self.starting_points) + _CHECK_SAMPLES):
            trial = study.ask()
            changed = _changed_fields(base, self.sample(trial, base))
            samples.append({"params": trial.params, "yields": changed})
            trial_distributions.append(repr(trial.distributions))
            for name, distribution in trial.distributions.items():
                distributions.setdefault(name, set()).add(repr(distribution))
            if both := sorted(set(trial.params) & set(fixed)):
                raise SpaceError(
                    f"{', '.join(both)}: searched by the space {self.name}, so it cannot be set for all trials. "
                    "Copy the space into a file of yours without it and pass --space FILE.py"
                )
            if index < len(self.starting_points):
                self._check_starting_point(index, trial)
        if not distributions:
            raise SpaceError(f"space {self.name}: suggests nothing, so all trials would be the same")
        self._check_deterministic(samples, trial_distributions, base)
        return {
            "distributions": {name: sorted(variants) for name, variants in sorted(distributions.items())},
            "starting_points": [dict(point) for point in self.starting_points],
            "samples": samples,
        }

    def _check_starting_point(self, index: int, trial: optuna.trial.Trial) -> None:
        point = self.starting_points[index]
        if not point.items() <= trial.params.items():
            raise SpaceError(
                f"space {self.name}: starting point {index} {dict(point)} has other parameters than the space then "
                f"suggests: {trial.params}"
            )
        try:
            self.check_range(trial)
        except SpaceError as error:
            raise SpaceError(f"space {self.name}: starting point {index}: {error}") from error

    def _check_deterministic(
        self, samples: Sequence[Mapping[str, Any]], distributions: Sequence[str], base: TrainConfig
    ) -> None:
        """Raise SpaceError if the same parameters, in another order, yield something else: no search could continue."""
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for sample, before in reversed(list(zip(samples, distributions, strict=True))):
            study.enqueue_trial(sample["params"])
            trial = study.ask()
            first = {**sample["params"], **sample["yields"]}
            second = {**_changed_fields(base, self.sample(trial, base)), **trial.params}
            changes = [
                f"{name} was {first.get(name, 'missing')} and then {second.get(name, 'missing')}"
                for name in sorted(first.keys() | second.keys())
                if first.get(name, _MISSING) != second.get(name, _MISSING)
            ]
            if not changes and before != (after := repr(trial.distributions)):
                changes = [f"{before} became {after}"]
            if changes:
                raise SpaceError(
                    f"space {self.name}: {'; '.join(changes)} with the same parameters, {sample['params']}. A "
                    "configuration must depend on the trial alone, never on random, the time or a counter: use "
                    "trial.suggest_categorical and its like"
                )

    def differences(self, description: Mapping[str, Any], base: TrainConfig) -> list[str]:
        """Compare this space with an earlier one, which `check` described; return a line for each difference."""
        current = self.check(base, {})
        lines = []
        for name in sorted(description["distributions"].keys() | current["distributions"].keys()):
            spaces = (description, current)
            before, after = (" or ".join(space["distributions"].get(name, ["missing"])) for space in spaces)
            if before != after:
                lines.append(f"{name}: was {before}, is {after}")
        if description["starting_points"] != current["starting_points"]:
            before, after = description["starting_points"], current["starting_points"]
            lines.append(f"starting points: were {before}, are {after}")
        if lines:
            return lines
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for sample in description["samples"]:
            study.enqueue_trial(sample["params"])
            changed = _changed_fields(base, self.sample(study.ask(), base))
            if changed != sample["yields"]:
                return [f"{sample['params']}: yielded {sample['yields']}, yields {changed}"]
        return []


def _parameter_problem(name: str, value: Any, config: TrainConfig) -> str:
    """Why a parameter does not become the field of its name; empty if it does."""
    if name in _SEARCH_OPTIONS:
        return f"{name} must be the same for all trials, which are compared by it: --{name.replace('_', '-')}"
    if name not in FIELDS:
        word = re.sub("^(log|ln)(2|10)?_", "", name)
        nearest = did_you_mean(word, [field for field in FIELDS if word in field] or FIELDS)
        return f"{name} is not a field of TrainConfig. {nearest} {_HINT}"
    if (trained := getattr(config, name)) != value:
        return f"suggests {name}={value} but trains {trained}. {_HINT}"
    return ""


def _accept_any_type(trial: optuna.trial.Trial) -> None:
    """Make the trial accept choices of any type, and name the parameter in its errors."""
    for kind in ("float", "int", "categorical"):
        setattr(trial, f"suggest_{kind}", partial(_suggest_named, getattr(trial, f"suggest_{kind}")))
    categorical = partial(_suggest_any_type, trial.suggest_categorical)
    setattr(trial, "suggest_categorical", categorical)  # noqa: B010 - mypy refuses the assignment


def _suggest_named(suggest: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return suggest(name, *args, **kwargs)
    except ValueError as error:
        message = f"{name}: {error}"
        if "dynamic value space" in str(error):
            message += " It has other choices in another branch, and needs the same ones in all"
        raise ValueError(message) from error


def _suggest_any_type(suggest: Callable[..., Any], name: str, choices: Sequence[Any]) -> Any:
    if isinstance(choices, AbstractSet):
        raise ValueError(f"{name}: its choices are a set, which another process has in another order; a list keeps it")
    choices = list(choices)
    plain = [to_plain(choice) for choice in choices]
    value = suggest(name, plain)
    chosen = choices[plain.index(value)]
    return chosen if isinstance(chosen, Enum) else value  # the space may compare it with its own members


def _with_plain_values(config: Any) -> Any:
    if not isinstance(config, TrainConfig):
        return config
    values = {name: getattr(config, name) for name in FIELDS}
    changed = {name: plain for name, value in values.items() if type(plain := to_plain(value)) is not type(value)}
    return replace(config, **changed) if changed else config


def to_plain(value: Any) -> Any:
    """Convert NumPy's scalars, members of an Enum and subclasses to Python's own types."""
    if isinstance(value, Enum):
        return to_plain(value.value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:  # NumPy is not imported for this
        return value.item()
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)


def _changed_fields(base: TrainConfig, config: TrainConfig) -> dict[str, Any]:
    before = base.as_dict()
    return {name: value for name, value in config.as_dict().items() if value != before[name]}
