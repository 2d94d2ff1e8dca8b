"""What a search was asked to do: a frozen, validated value, kept in its search.json."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin
from urllib.parse import parse_qs

from model.common.errors import ConfigError
from model.common.text import truncated_repr
from model.common.validation import field_types, matches_type, type_rule
from model.config import MOST_EPOCHS, TrainConfig, ValueRange, reject_duplicate_settings
from model.training_report import Objective

if TYPE_CHECKING:
    from model.data.data_config import DataConfig

SAMPLERS, PRUNERS = ("gp", "tpe", "random"), ("asha", "none")
FORMER_PRUNERS = ("leaders", "former-asha")  # of searches that began before 2026-12: hpo.policy.pruners.FormerPruner
Wandb = Literal["offline", "online", "disabled"]
_MOST_TRIALS = 100_000  # all of them are in memory
SEARCH_FILE = "search.json"  # in the folder of a search
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Everything that decides what a search does. Raises ConfigError, naming all mistakes at once."""

    space: str = "losses_and_rates"  # a module of search_spaces, or the path of a .py file
    trials: int = 24  # in all, >= 1
    epochs: int = 12  # of a trial that is never stopped, >= 1
    sampler: str = "gp"  # gp, tpe, random, or a .py file that defines sampler(seed): hpo.policy.plugins
    grace_period: int | None = None  # epochs before a trial is compared with others; None: a thirteenth of all
    reduction_factor: int = 4  # one trial in so many goes on after them, >= 2
    pruner: str = "asha"  # asha, none, or a .py file that defines pruner(): hpo.policy.plugins
    objective: Objective = "balanced"
    seed: int = 0
    time_budget_minutes: float | None = None  # minutes after which no new trial begins; running ones finish
    max_cost: float | None = None  # USD that the cluster's nodes may cost meanwhile
    on_demand_after_minutes: float = 10.0  # minutes that trials wait for spot nodes before on-demand ones are asked for
    keep_checkpoints: int = 10  # best trials whose checkpoint stays on disk, >= 3: the finalists
    final_epochs: int = 0  # of the winner's configuration, trained anew after the search; 0: none
    data: str = "fashion-mnist"  # or a folder, or s3://BUCKET/PREFIX
    crop: int | None = None  # pixels a side, of a folder's images; None: 64
    noise: str = "gaussian:30"
    range: ValueRange | None = (
        None  # black and white of 16-bit and float32 images; None: see model.data.image_sets.value_range
    )
    images_per_epoch: int | None = None  # None: the whole training set
    set: Mapping[str, Any] = field(default_factory=dict)  # TrainConfig fields that hold for all trials
    max_concurrent: int | None = None  # trials at a time; None: as many as fit
    cpus_per_trial: float = 1.0
    gpus_per_trial: float | None = None  # fractions pack; None: 1 where there is a GPU
    allow_cpu: bool = False  # train on the CPU where a GPU was asked for and none is found
    address: str = "local"  # of a Ray cluster; local: start one here, on loopback
    wandb: Wandb = "offline"
    tensorboard: bool = False  # events of every training in the search's folder
    on_finish: str | None = None  # a shell command that gets the result on stdin; None, "": none
    study_url: str | None = None  # postgresql://USER@HOST/DB, where the study is; None: in the search's folder

    def __post_init__(self) -> None:
        if isinstance(self.range, list):  # out of JSON
            object.__setattr__(self, "range", tuple(self.range))
        if wrong := self._wrong_types():  # the rules take them for granted, and get the defaults in their place
            try:
                dataclasses.replace(self, **{name: _DEFAULTS[name] for name in wrong})
            except ConfigError as error:
                raise ConfigError("\n".join([*wrong.values(), str(error)])) from None
            raise ConfigError("\n".join(wrong.values()))
        broken = {name: rule for name, holds, rule in self._rules() if not holds}
        mistakes = [f"{name}={getattr(self, name)}: must be {rule}" for name, rule in broken.items()]
        if self.study_url is not None and not _is_study_url(self.study_url):
            mistakes.append(_STUDY_URL_RULE)  # without its value, which has perhaps a password
        for part in (self.data_config, self.base_config):
            try:
                part()
            except ConfigError as error:
                mistakes.append(str(error))
        if mistakes:
            raise ConfigError("\n".join(dict.fromkeys(mistakes)))

    def _wrong_types(self) -> dict[str, str]:
        """By name, what to tell. A command line hands on what is no number, and a search.json may have been edited."""
        found = {}
        for name, kind in field_types(SearchConfig).items():
            value, example = getattr(self, name), _EXAMPLES.get(name, _DEFAULTS[name])
            if get_origin(kind) is Literal or matches_type(value, kind):
                continue
            if name in _NUMBERS:
                found[name] = f"{name}={truncated_repr(value)}: must be {type_rule(kind)}, such as {example}"
            else:  # without its value: of study_url it has perhaps a password
                found[name] = f"{name}: must be {type_rule(kind)}"
        return found

    def _rules(self) -> list[tuple[str, bool, str]]:
        def positive(value: float | None) -> bool:
            return value is None or (math.isfinite(value) and value > 0)

        gpus, trials = self.gpus_per_trial, f"at least 1 and at most {_MOST_TRIALS}"
        return [
            ("trials", 1 <= self.trials <= _MOST_TRIALS, trials),
            ("epochs", 1 <= self.epochs <= MOST_EPOCHS, f"at least 1 and at most {MOST_EPOCHS}"),
            (
                "grace_period",
                self.grace_period is None or 1 <= self.grace_period <= max(self.epochs, 1),
                f"from 1 to the {self.epochs} epochs of a trial",
            ),
            ("reduction_factor", self.reduction_factor >= 2, "at least 2"),
            ("sampler", _is_named(self.sampler, SAMPLERS), f"one of {', '.join(SAMPLERS)}, or a .py file"),
            ("pruner", _is_named(self.pruner, PRUNERS + FORMER_PRUNERS), f"one of {', '.join(PRUNERS)}, or a .py file"),
            ("objective", self.objective in get_args(Objective), f"one of {', '.join(get_args(Objective))}"),
            ("wandb", self.wandb in get_args(Wandb), f"one of {', '.join(get_args(Wandb))}"),
            ("keep_checkpoints", self.keep_checkpoints >= 3, "at least 3, the finalists"),
            ("final_epochs", 0 <= self.final_epochs <= MOST_EPOCHS, f"0 (no final training) to {MOST_EPOCHS}"),
            ("time_budget_minutes", positive(self.time_budget_minutes), "minutes above 0"),
            (
                "max_cost",
                self.max_cost is None or (positive(self.max_cost) and self.address != "local"),
                "USD above 0, and a cluster's whose nodes say their prices (--address); inf takes it back",
            ),
            ("on_demand_after_minutes", positive(self.on_demand_after_minutes), "minutes above 0"),
            ("max_concurrent", self.max_concurrent is None or 1 <= self.max_concurrent <= _MOST_TRIALS, trials),
            ("cpus_per_trial", positive(self.cpus_per_trial), "above 0"),
            (
                "gpus_per_trial",
                gpus is None or (gpus >= 0 and math.isfinite(gpus) and (gpus <= 1 or gpus == int(gpus))),
                "0, a fraction below 1, or a whole number: Ray has no 1.5 GPUs",
            ),
            ("address", bool(_ADDRESS.fullmatch(self.address)), "local, auto, or HOST:PORT of a cluster's head"),
            ("on_finish", "\0" not in (self.on_finish or ""), "a command for the shell"),
        ]

    @property
    def grace_epochs(self) -> int:
        """After how many epochs the pruner is asked first. A user's own has a patience of its own."""
        return self.grace_period or (max(1, round(self.epochs / 13)) if self.pruner == "asha" else 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchConfig:
        """The inverse of as_dict, also of searches that began before 2026-12. Raises ConfigError, TypeError."""
        return cls(**renamed(values))

    def data_config(self) -> DataConfig:
        """Raises ConfigError."""
        from model.data.data_config import DataConfig  # noqa: PLC0415 - numpy: options are read without it

        return DataConfig(data=self.data, noise=self.noise, crop=self.crop, range=self.range)

    def base_config(self) -> TrainConfig:
        """What holds for all trials. Raises ConfigError."""
        own = {"epochs": self.epochs, "images_per_epoch": self.images_per_epoch, "seed": self.seed}
        reject_duplicate_settings(self.set, own)
        return TrainConfig.from_dict({**self.set, **own})

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**dataclasses.asdict(self), "set": dict(self.set)}


# Options by the names that they had before 2026-12, in search.json and on command lines.
FORMER_NAMES = {
    "scheduler": "pruner",
    "grace": "grace_period",
    "reduction": "reduction_factor",
    "time_budget": "time_budget_minutes",
    "on_demand_after": "on_demand_after_minutes",
    "keep": "keep_checkpoints",
    "concurrent": "max_concurrent",
}
_FORMER_VALUES = {("sampler", "surrogate"): "gp", ("scheduler", "asha"): "former-asha"}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options, and their values, by the names that they have now."""
    return {
        FORMER_NAMES.get(name, name): _FORMER_VALUES.get((name, str(value)), value) for name, value in values.items()
    }


def _is_named(name: str, names: tuple[str, ...]) -> bool:
    return name in names or name.endswith(".py")


_EXAMPLES = {
    "grace_period": 1,
    "time_budget_minutes": 60, "max_cost": 20, "images_per_epoch": 8000, "max_concurrent": 4, "gpus_per_trial": 0.25, "crop": 64,
    "range": "0 4095",
}  # fmt: skip
_ADDRESS = re.compile(r"local|auto|[A-Za-z0-9.-]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}")
_DEFAULTS: dict[str, Any] = {
    field.name: {} if field.name == "set" else field.default for field in dataclasses.fields(SearchConfig)
}
_NUMBERS = {
    name for name, kind in field_types(SearchConfig).items() if {int, float, ValueRange} & {kind, *get_args(kind)}
}


# What may change when a search is continued: how much and where, never what is compared with what. Of the space and of
# the images their name or path alone: Record.update_config compares what it yields, hpo.store.search_results their pixels.
CHANGEABLE = frozenset(
    {
        "space",
        "data",
        "trials",
        "time_budget_minutes",
        "max_cost",
        "on_demand_after_minutes",
        "keep_checkpoints",
        "final_epochs",
        "max_concurrent",
        "cpus_per_trial",
        "gpus_per_trial",
        "allow_cpu",
        "address",
        "wandb",
        "tensorboard",
        "on_finish",
    }
)


# A password here would come into search.json, and from there into reports and W&B. Whatever may hide one is refused.
_STUDY_URL = re.compile(
    r"postgresql://([^\s:/?#@{}]+@)?([\w.-]*|\[[\da-f:.]+\])(:[0-9]{1,5})?/[^\s:/?#@{}]*(\?[^\s#@{}]*)?"
)
_STUDY_URL_RULE = (
    "study_url: must be postgresql://USER@HOST/DB, without a password, which would be kept in search.json; it is taken "
    "from PGPASSWORD or from ~/.pgpass"
)


def _is_study_url(url: str) -> bool:
    found = _STUDY_URL.fullmatch(url)
    return bool(found) and not any("password" in key.lower() for key in parse_qs(url.partition("?")[2]))


def is_name(name: str) -> bool:
    """Whether a search can be called that."""
    return bool(_NAME.fullmatch(name))


def check_name(name: str) -> str:
    """A search's name is a folder's, a study's and a W&B group's. Raises ConfigError."""
    if not is_name(name):
        path = Path(name)
        if is_name(path.name) and (path / SEARCH_FILE).is_file():
            alone = path.name if path.parent == Path("runs") else f"{path.name}, and --runs {path.parent}"
            raise ConfigError(f"name={name}: is the folder of a search; its name alone is asked for, {alone}")
        hint = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:64] or "first"
        raise ConfigError(
            f"name={truncated_repr(name)}: a name has 1 to 64 letters, digits, '.', '_' or '-' and begins with a letter or "
            f"digit, such as {hint}"
        )
    return name
