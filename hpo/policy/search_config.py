"""The configuration of a search: a frozen, validated value, saved in its search.json."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin
from urllib.parse import parse_qs

from hpo.policy.config_option import SEARCHED, Option, option
from hpo.policy.former_names import renamed
from hpo.policy.objectives import MINIMIZED, OBJECTIVES, TRAINED, Direction, Limit, objectives_problem
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
SEARCH_FILE = "search.json"  # in every search's folder
_ONE_OBJECTIVE = "0 with several objectives: a front has no single winner. More --epochs train all of it longer"
_MAX_TRIALS = 100_000  # all of them are in memory
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """The configuration of a search. OPTIONS documents each field. Raises ConfigError, a line for each invalid
    field."""

    space: str = option(
        "losses_and_rates",
        "search space: losses_and_rates, optimizers, architecture, or a Python file (docs/spaces.md)",
        metavar="NAME|FILE.py",
        group=SEARCHED,
        changeable=True,  # check_compatible compares what the spaces yield
    )
    epochs: int = option(12, "maximum epochs per trial", metavar="N", group=SEARCHED)
    sampler: str = option(
        "gp",
        "sampler that proposes configurations, or a Python file with one (docs/search.md)",
        metavar=f"{{{','.join(SAMPLERS)}}}|FILE.py",
        group=SEARCHED,
    )
    grace_period: int | None = option(
        None,
        "epochs of each trial before the pruner compares it with others",
        metavar="N",
        default_text="a thirteenth of --epochs; 1 for a pruner other than asha",
        group=SEARCHED,
        example=1,
    )
    reduction_factor: int = option(
        4, "after the grace period one trial in N continues, and fewer later", metavar="N", group=SEARCHED
    )
    pruner: str = option(
        "asha",
        "pruner that stops weak trials early, or a Python file with one (docs/search.md)",
        metavar=f"{{{','.join(PRUNERS)}}}|FILE.py",
        group=SEARCHED,
    )
    objectives: tuple[str, ...] = option(
        ("balanced",),
        f"one or more of {', '.join(OBJECTIVES)}, separated by commas. balanced is SSIM + PSNR/40. With several, the "
        "search ends with the front: the trials that no other one beats in all of them. The first that needs training "
        "chooses each trial's best epoch",
        metavar="NAME[,NAME...]",
        default_text="balanced",
        group=SEARCHED,
    )
    limit: tuple[str, ...] = option(
        (),
        "a constraint on an objective, such as 'latency<=20'; a trial that breaks it cannot win. Repeat it for more",
        metavar="NAME<=NUMBER",
        default_text="none",
        group=SEARCHED,
    )
    latency_size: int | None = option(
        None,
        "side in pixels of the square image whose latency is measured",
        metavar="PIXELS",
        default_text="the size of the training images",
        group=SEARCHED,
        example=256,
    )
    latency_threads: int = option(1, "threads with which latency is measured on a CPU", metavar="N", group=SEARCHED)
    seed: int = option(0, "random seed", metavar="N", group=SEARCHED)
    data: str = option(
        "fashion-mnist",
        "images: fashion-mnist, or a folder or s3://BUCKET/PREFIX of images, or of noisy/ and clean/ images. To "
        "continue a search whose images have moved, give their new place",
        metavar="NAME|FOLDER",
        group=SEARCHED,
        changeable=True,  # the images are compared: hpo.store.search_results
    )
    crop: int | None = option(
        None,
        "side of the squares that are cut at random out of a folder's images, in pixels",
        metavar="PIXELS",
        default_text="64",
        group=SEARCHED,
        example=64,
    )
    noise: str = option(
        "gaussian:30",
        "noise to add: gaussian:STD (of 255, or N% of the range), poisson:PEAK, speckle:RATIO, salt-pepper:SHARE, "
        "jpeg:QUALITY or correlated:STD:SIZE. Any number may be a range LOW-HIGH. Sums such as "
        "poisson:30+gaussian:10 are allowed. `real` adds none and needs noisy/ and clean/ images",
        metavar="SPEC",
        group=SEARCHED,
    )
    range: ValueRange | None = option(
        None,
        "black and white of a folder's 16-bit (0 65535) or float32 (0 1) images",
        metavar=("LOW", "HIGH"),
        default_text="from the images' type",
        group=SEARCHED,
        example="0 4095",
    )
    images_per_epoch: int | None = option(
        None,
        "training images per epoch",
        metavar="N",
        default_text="the whole training set",
        group=SEARCHED,
        example=8000,
    )
    set: Mapping[str, Any] = option(
        {},
        "any other field of TrainConfig, such as width=32; repeat it for more",
        metavar="NAME=VALUE",
        default_text="none",
        group=SEARCHED,
    )
    trials: int = option(24, "number of trials in total", metavar="N")
    time_budget_minutes: float | None = option(
        None,
        "start no new trial after so many minutes; running trials finish. Each start of the command counts anew",
        metavar="MINUTES",
        default_text="no limit",
        example=60,
    )
    max_cost: float | None = option(
        None,
        "stop before the cluster has cost this much, in all drivers of the search together; needs the node label "
        "hpo/usd-per-hour; inf removes the limit",
        metavar="USD",
        default_text="no limit",
        example=20,
    )
    on_demand_after_minutes: float = option(
        10.0,
        "minutes to wait for spot capacity before requesting on-demand nodes",
        metavar="MINUTES",
        default_text="10",
    )
    keep_checkpoints: int = option(
        10, "number of best trials whose checkpoints stay on disk; at least 3, the finalists", metavar="N"
    )
    final_epochs: int = option(
        0,
        "epochs to train the winner's configuration again after the search; 0: no final training. Only with one "
        "objective",
        metavar="N",
    )
    front: int = option(
        5,
        "with several objectives, the most trials of the front to export, to front/ in the search's folder; of a "
        "larger front those that cover it best",
        metavar="N",
    )
    replicates: int = option(
        0, "train each finalist's settings N more times with fresh seeds, and choose by their means", metavar="N"
    )
    max_concurrent: int | None = option(
        None, "maximum number of trials at a time", metavar="N", default_text="as many as fit", example=4
    )
    cpus_per_trial: float = option(1.0, "CPUs per trial, and its number of threads", metavar="N", default_text="1")
    gpus_per_trial: float | None = option(
        None,
        "GPUs per trial; 0.25 runs four trials on each GPU",
        metavar="N",
        default_text="1 where there is a GPU, else 0",
        example=0.25,
    )
    allow_cpu: bool = option(False, "train on the CPU where --gpus-per-trial asks for a GPU and there is none")
    address: str = option(
        "local", "HOST:PORT joins a Ray cluster, auto finds one, local starts Ray here, on loopback", metavar="ADDRESS"
    )
    wandb: Wandb = option("offline", "W&B logging; online needs an API key", metavar=f"{{{','.join(get_args(Wandb))}}}")
    tensorboard: bool = option(False, "write TensorBoard events of every training to the search's folder")
    on_finish: str | None = option(
        None,
        "shell command that runs when the search has ended by itself; its stdin gets the result as JSON",
        metavar="COMMAND",
        default_text="none",
    )
    study_url: str | None = option(
        None,
        "postgresql://USER@HOST/DB, a database for the study instead of study.db; it cannot be changed later",
        metavar="URL",
        default_text="study.db in the search's folder",
        changeable=False,
    )

    def __post_init__(self) -> None:
        if isinstance(self.range, list):  # from JSON
            object.__setattr__(self, "range", tuple(self.range))
        for name in ("objectives", "limit"):
            value = getattr(self, name)
            if isinstance(value, str | list):  # a text: the one objective of a search before 2026-12
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if wrong_types := self._wrong_types():  # the rules need right types: the others are checked with defaults
            errors = list(wrong_types.values())
            try:
                dataclasses.replace(self, **{name: _DEFAULTS[name] for name in wrong_types})
            except ConfigError as error:
                errors.append(str(error))
            raise ConfigError("\n".join(errors))
        errors = [f"{name}={getattr(self, name)}: must be {rule}" for name, holds, rule in self._rules() if not holds]
        if len(self.objectives) > 1 and self.pruner not in PRUNERS:
            errors.append(f"pruner={self.pruner}: must be one of {', '.join(PRUNERS)} with several objectives")
        if problem := objectives_problem(self.objectives):
            errors.append(f"objectives={','.join(self.objectives)}: {problem}")
        if self.study_url is not None and not _is_study_url(self.study_url):
            errors.append(_STUDY_URL_RULE)  # without the value, which may contain a password
        for part in (self.data_config, self.base_config, self.limits):
            try:
                part()
            except ConfigError as error:
                errors.append(str(error))
        if errors:
            raise ConfigError("\n".join(dict.fromkeys(errors)))

    def _wrong_types(self) -> dict[str, str]:
        """Error messages by field. The command line passes any text on, and a search.json may have been edited."""
        errors = {}
        for name, kind in field_types(SearchConfig).items():
            value, example = getattr(self, name), OPTIONS[name].example or _DEFAULTS[name]
            if get_origin(kind) is Literal or matches_type(value, kind):
                continue
            if name in _NUMBERS:
                errors[name] = f"{name}={truncated_repr(value)}: must be {type_rule(kind)}, such as {example}"
            else:  # without the value: a study_url may contain a password
                errors[name] = f"{name}: must be {type_rule(kind)}"
        return errors

    def _rules(self) -> list[tuple[str, bool, str]]:
        """Each field's name, whether its rule holds, and the rule."""

        def positive(value: float | None) -> bool:
            return value is None or (math.isfinite(value) and value > 0)

        gpus, trials = self.gpus_per_trial, f"at least 1 and at most {_MAX_TRIALS}"
        return [
            ("trials", 1 <= self.trials <= _MAX_TRIALS, trials),
            ("epochs", 1 <= self.epochs <= MOST_EPOCHS, f"at least 1 and at most {MOST_EPOCHS}"),
            (
                "grace_period",
                self.grace_period is None or 1 <= self.grace_period <= max(self.epochs, 1),
                f"from 1 to the {self.epochs} epochs of a trial",
            ),
            ("reduction_factor", self.reduction_factor >= 2, "at least 2"),
            ("sampler", _is_named(self.sampler, SAMPLERS), f"one of {', '.join(SAMPLERS)}, or a .py file"),
            ("pruner", _is_named(self.pruner, PRUNERS + FORMER_PRUNERS), f"one of {', '.join(PRUNERS)}, or a .py file"),
            ("wandb", self.wandb in get_args(Wandb), f"one of {', '.join(get_args(Wandb))}"),
            ("keep_checkpoints", self.keep_checkpoints >= 3, "at least 3, the finalists"),
            ("final_epochs", 0 <= self.final_epochs <= MOST_EPOCHS, f"0 (no final training) to {MOST_EPOCHS}"),
            *(
                (name, not (getattr(self, name) and self.is_multi_objective), _ONE_OBJECTIVE)
                for name in ("final_epochs", "replicates")
            ),
            ("time_budget_minutes", positive(self.time_budget_minutes), "minutes above 0"),
            (
                "max_cost",
                self.max_cost is None or (positive(self.max_cost) and self.address != "local"),
                "a positive amount in USD, with --address of a cluster with price labels; inf removes the limit",
            ),
            ("on_demand_after_minutes", positive(self.on_demand_after_minutes), "minutes above 0"),
            ("latency_size", self.latency_size is None or 1 <= self.latency_size <= 4096, "from 1 to 4096 pixels"),
            ("latency_threads", 1 <= self.latency_threads <= 1024, "from 1 to 1024"),
            ("front", 1 <= self.front <= _MAX_TRIALS, trials),
            ("replicates", self.replicates == 0 or 2 <= self.replicates <= 1000, "0 (none) or from 2 to 1000"),
            ("max_concurrent", self.max_concurrent is None or 1 <= self.max_concurrent <= _MAX_TRIALS, trials),
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
        """The first epoch after which the pruner decides."""
        return self.grace_period or (max(1, round(self.epochs / 13)) if self.pruner == "asha" else 1)

    @property
    def objective(self) -> Objective:
        """The first objective that needs training. It chooses each trial's best epoch."""
        return min((name for name in TRAINED if name in self.objectives), key=self.objectives.index)

    @property
    def is_multi_objective(self) -> bool:
        """Whether the search ends with a front rather than with one winner."""
        return len(self.objectives) > 1

    @property
    def directions(self) -> list[Direction]:
        """Those of the Optuna study. Whatever it is, the value of a single objective is to be maximized."""
        if not self.is_multi_objective:
            return ["maximize"]
        return ["minimize" if name in MINIMIZED else "maximize" for name in self.objectives]

    def limits(self) -> list[Limit]:
        """The constraints. Raises ConfigError."""
        return [Limit.parse(text) for text in self.limit]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchConfig:
        """The inverse of as_dict, also for searches that began before 2026-12. Raises ConfigError, TypeError."""
        return cls(**renamed(values))

    def data_config(self) -> DataConfig:
        """The images and their noise. Raises ConfigError."""
        from model.data.data_config import DataConfig  # noqa: PLC0415 - loads NumPy, which parsing options must not

        return DataConfig(data=self.data, noise=self.noise, crop=self.crop, range=self.range)

    def base_config(self) -> TrainConfig:
        """The configuration that all trials share. Raises ConfigError."""
        options = {"epochs": self.epochs, "images_per_epoch": self.images_per_epoch, "seed": self.seed}
        reject_duplicate_settings(self.set, options)
        return TrainConfig.from_dict({**self.set, **options})

    def as_dict(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return {**dataclasses.asdict(self), "set": dict(self.set)}


def _is_named(name: str, names: tuple[str, ...]) -> bool:
    return name in names or name.endswith(".py")


_ADDRESS = re.compile(r"local|auto|[A-Za-z0-9.-]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}")
OPTIONS: dict[str, Option] = {field.name: field.metadata["option"] for field in dataclasses.fields(SearchConfig)}
CHANGEABLE = frozenset(name for name, option in OPTIONS.items() if option.changeable)
_DEFAULTS: dict[str, Any] = {
    field.name: {} if field.name == "set" else field.default for field in dataclasses.fields(SearchConfig)
}
_NUMBERS = {
    name for name, kind in field_types(SearchConfig).items() if {int, float, ValueRange} & {kind, *get_args(kind)}
}


# A password in the URL would get into search.json, reports and W&B. Any part that may hide one is refused.
_STUDY_URL = re.compile(
    r"postgresql://([^\s:/?#@{}]+@)?([\w.-]*|\[[\da-f:.]+\])(:[0-9]{1,5})?/[^\s:/?#@{}]*(\?[^\s#@{}]*)?"
)
_STUDY_URL_RULE = (
    "study_url: must be postgresql://USER@HOST/DB, without a password, which would be kept in search.json; it is taken "
    "from PGPASSWORD or from ~/.pgpass"
)


def _is_study_url(url: str) -> bool:
    has_password = any("password" in key.lower() for key in parse_qs(url.partition("?")[2]))
    return _STUDY_URL.fullmatch(url) is not None and not has_password


def is_name(name: str) -> bool:
    """Whether a name is valid for a search."""
    return bool(_NAME.fullmatch(name))


def check_name(name: str) -> str:
    """Return a valid name, which becomes the name of a folder, a study and a W&B group. Raises ConfigError."""
    if not is_name(name):
        path = Path(name)
        if is_name(path.name) and (path / SEARCH_FILE).is_file():
            correct = path.name if path.parent == Path("runs") else f"{path.name}, and --runs {path.parent}"
            raise ConfigError(f"name={name}: is the folder of a search; give its name alone, {correct}")
        hint = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:64] or "first"
        raise ConfigError(
            f"name={truncated_repr(name)}: must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter "
            f"or digit, such as {hint}"
        )
    return name
