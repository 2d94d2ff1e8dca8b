"""What `hpo` takes: its commands, their options, and what of them is wrong before anything is loaded."""

from __future__ import annotations

import argparse
import math
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hpo.exit_codes import EXIT_BAD_INPUT
from hpo.policy.search_config import FORMER_NAMES
from model.common.files import folder_problem, path_problem, write_problem
from model.common.text import did_you_mean, sanitize_for_terminal, truncated_repr

STORAGE = "HPO_STORAGE"  # in the environment: the default of --storage
_NOISES = (
    "gaussian:STD (of 255, or N%% of the range), poisson:PEAK, speckle:RATIO, salt-pepper:SHARE, jpeg:QUALITY or "
    "correlated:STD:SIZE, each number also LOW-HIGH; sums such as poisson:30+gaussian:10"
)
_DATA = "fashion-mnist, or a folder or s3://BUCKET/PREFIX of images, or of noisy/ and clean/ ones"
_CROP = "side of what is cut at random out of a folder's images"
_RANGE: dict[str, Any] = {"nargs": 2, "metavar": ("LOW", "HIGH")}
_RANGES = "black and white of a folder's 16-bit (0 65535) or float32 (0 1) images"


class _Parser(argparse.ArgumentParser):
    """argparse, with the option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, sanitize_for_terminal(f"{self.prog}: {message}") + "\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Unknown options are answered by the command that was meant, which knows its own; all of them at once."""
        try:
            os.getcwd()
        except FileNotFoundError:  # torch's library would end the process, with words of its own
            self.error("the current folder was deleted; change to one that is there")
        known, unknown = self.parse_known_args(args, namespace)
        own = [option for action in known.parser._actions for option in action.option_strings if option[:2] == "--"]
        mistakes = [_unknown(word, own) for word in unknown if word.startswith("--")]
        if unknown and not mistakes:
            mistakes.append(f"unrecognized arguments: {' '.join(unknown)}")
        mistakes += [mistake for name, value in vars(known).items() for mistake in _no_word(name, value, known.writes)]
        if mistakes:
            known.parser.error("\n".join(mistakes))
        return known


def _unknown(word: str, own: Sequence[str]) -> str:
    option, _, value = word.partition("=")
    return f"{option if '://' in value else word}: no such option. {did_you_mean(option, own)}"  # a URL may have a password


# By command: which argument names the folder or the file that it makes.
_WRITES = {
    "search": {"runs": "folder"},
    "report": {"to": "file"},
    **{command: {"to": "folder"} for command in ("export", "denoise", "train", "pull")},
}
_PLACES = {
    "runs": "a folder", "to": "where to write", "storage": "a folder or s3://BUCKET/PREFIX",
    "model": "an exported folder", "file": "a cluster file", "images": "an image",
}  # fmt: skip


def _no_word(name: str, value: Any, writes: Mapping[str, str]) -> list[str]:
    """What is wrong with an argument as a name or a path. writes: see _WRITES."""
    found = []
    for word in value if isinstance(value, list) else [value]:
        if not isinstance(word, str | Path) or name == "on_finish":
            continue
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in str(word)):
            found.append(
                f"{name}={truncated_repr(str(word))}: a name or path has letters alone, no line breaks and the like"
            )
        elif not word and name in _PLACES:
            found.append(f"{name}='': is empty; it names {_PLACES[name]}")
        elif isinstance(word, Path) and (why := _no_place(word, writes.get(name), name == "runs")):
            found.append(f"{word}: {why}")
    return found


def _no_place(path: Path, to_write: str | None, is_folder: bool) -> str:
    """Why a path names nothing that can be. to_write: a folder or a file, made with what is missing above it."""
    try:
        if why := path_problem(path):
            return why
        if (is_folder or to_write == "folder") and folder_problem(path):
            return "is a file, and not the folder that is wanted here"
        if to_write == "file" and path.is_dir():
            return f"is a folder; --to names a file, such as {path / 'report.html'}"
        why = write_problem(path.parent if to_write == "file" else path) if to_write else ""
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    return f"{why}; name another" if why else ""


def parser() -> argparse.ArgumentParser:
    """Of all commands; what it gives has the `command`, and its own `parser`."""
    made = _Parser(prog="hpo", description="Search for the best pix2pix denoiser, look at the results, use the winner.")
    commands = made.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=about,
            description=about,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        made.set_defaults(command=name, parser=made, writes=_WRITES.get(name, {}))
        return made

    def in_runs(made: argparse.ArgumentParser, *, named: bool = True) -> None:
        if named:
            made.add_argument("name", metavar="NAME", help="the search")
        made.add_argument("--runs", type=_path, default=Path("runs"), metavar="DIR", help="where searches live")
        made.add_argument(
            "--storage",
            type=_home,
            default=os.environ.get(STORAGE) or None,
            metavar="FOLDER|s3://...",
            help=f"where they outlive this machine; then DIR has copies (${STORAGE})",
        )

    def as_json(made: argparse.ArgumentParser) -> None:
        made.add_argument("--json", action="store_true", help="one JSON document on stdout and nothing else")

    _add_search_options(search := command("search", "Start a search, or continue it; ends with the export."))
    in_runs(search)
    listing = command("list", "The searches.")
    in_runs(listing, named=False)
    as_json(listing)
    show = command("show", "The leaderboard of a search.")
    in_runs(show)
    show.add_argument("--decisions", action="store_true", help="why each trial was stopped, or let go on")
    as_json(show)

    report = command("report", "Write what there is to see of a search as one HTML file; prints its path.")
    in_runs(report)
    report.add_argument("--to", type=_path, metavar="FILE", help="the file (None: report.html of the search)")
    in_runs(command("watch", "The live table of a search that another process, or another machine, runs."))
    in_runs(command("stop", "End a search of this machine, so that it can be continued."))
    remove = command("rm", "Delete a search; asks first.")
    in_runs(remove)
    remove.add_argument("--yes", action="store_true", help="don't ask")
    dashboard = command("dashboard", "optuna-dashboard for a search, on this machine alone.")
    in_runs(dashboard)
    dashboard.add_argument("--port", type=int, default=8080, help="on 127.0.0.1; 0: any that is free")

    in_runs(export := command("export", "Write the winner, or a trial's best, as a folder to deploy."))
    export.add_argument("--trial", type=int, metavar="N", help="this trial instead of the winner")
    export.add_argument("--to", type=_path, metavar="DIR", help="the folder (None: export/ of the search)")
    export.add_argument("--data", metavar="FOLDER", help="where its images are now (None: where they were)")
    export.add_argument("--trainable", action="store_true", help="with the checkpoint to train on")

    in_runs(command("sync", "Send to W&B what it lacks of a search that was logged offline."))

    evaluate = command("evaluate", "Measure an exported model: noisy, denoised, ground truth; train and test.")
    evaluate.add_argument("model", type=_path, metavar="DIR", help="an exported folder")
    evaluate.add_argument("--data", metavar="FOLDER", help="where its images are now (None: where they were)")
    as_json(evaluate)

    _add_denoise_options(command("denoise", "Denoise images of any size with an exported model."))

    _add_cluster_commands(command)

    _add_train_options(
        train := command("train", "Train one configuration, without Ray; continues what is in the folder.")
    )
    as_json(train)
    return made


def _add_denoise_options(denoise: argparse.ArgumentParser) -> None:
    add = denoise.add_argument
    add("model", type=_path, metavar="DIR", help="an exported folder")
    add("images", type=_path, nargs="+", metavar="IMAGE", help="images, or folders of images with all below")
    add("--to", type=_path, required=True, metavar="DIR", help="where the denoised ones go")
    add("--format", metavar="{png,tiff,webp,jpeg}", help="of all outputs (None: each as its input, or without loss)")
    add("--quality", type=_whole, metavar="N", help="1 to 100, of JPEG and WebP (None: as the input; no loss)")
    add("--range", type=_number, nargs=2, metavar=("LOW", "HIGH"), help="black, white (None: the model's, or all)")
    add("--frames", metavar="all", help="all: each page of a TIFF (None: one image a file, or it is refused)")
    add("--strip-metadata", action="store_true", help="without EXIF and resolution; the colour profile stays")
    add("--skip-bad", action="store_true", help="leave out images that cannot be used; ends with 5")
    add("--overwrite", action="store_true", help="replace what is there; else what is whole is not made again")


def _add_cluster_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    cluster = command("cluster", "Look at a file for `ray up`: refuse an unfilled or unsafe one.")
    cluster.add_argument("what", choices=["check"], help="all that is wrong with it, at once")
    cluster.add_argument("file", type=_path, metavar="FILE", help="cluster.yaml, or yours")
    launch = command("launch", "Submit a search as a job of a cluster's head; the same command continues it.")
    pull = command("pull", "Bring the winner so far from a cluster's head here, and verify it.")
    for made in (launch, pull):
        made.add_argument("file", type=_path, metavar="CLUSTER.yaml", help="that `ray up` was given")
        made.add_argument("name", metavar="NAME", help="the search")
    _add_search_options(launch)
    launch.add_argument("--wait", action="store_true", default=False, help="until its end; exits with its exit code")
    pull.add_argument("--to", type=_path, required=True, metavar="DIR", help="the folder to deploy")


def _path(text: str) -> Path | str:
    return Path(_home(text)) if text else text  # Path("") is the folder where one is


def _home(text: str) -> str:
    """~ in what a shell hands on as it is: in quotes, after =, or out of a variable."""
    return os.path.expanduser(text)


# What is no number is handed on: SearchConfig and TrainConfig tell it with all else that is wrong.


def _whole(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _money(text: str) -> float | str | None:
    """USD; None: without end."""
    usd = _number(text)
    return None if usd == math.inf else usd


def _add_train_options(train: argparse.ArgumentParser) -> None:
    train.add_argument("--to", type=_path, required=True, metavar="DIR", help="checkpoints and pictures")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any field of TrainConfig")
    train.add_argument("--epochs", type=_whole, default=12)
    train.add_argument("--images-per-epoch", type=_whole, metavar="N", help="(None: all training images)")
    train.add_argument("--data", default="fashion-mnist", metavar="NAME|FOLDER", help=_DATA)
    train.add_argument("--crop", type=_whole, metavar="PIXELS", help=f"{_CROP} (None: 64)")
    train.add_argument("--noise", default="gaussian:30", metavar="SPEC", help=_NOISES)
    train.add_argument("--range", type=_number, help=_RANGES, **_RANGE)
    train.add_argument("--export", action="store_true", help="the best epoch, to DIR/export, measured on test images")
    train.add_argument("--tensorboard", action="store_true", help="losses and metrics, in tensorboard/ of the folder")


def _add_search_options(search: argparse.ArgumentParser) -> None:
    """No defaults here: what is left out comes from SearchConfig, or from the search that is continued."""
    search.argument_default = argparse.SUPPRESS
    search.formatter_class = argparse.HelpFormatter
    add = search.add_argument
    what = search.add_argument_group("what is searched (fixed once the search exists)")
    what.add_argument("--space", metavar="NAME|FILE.py", help="losses_and_rates, optimizers, architecture, or a file")
    what.add_argument("--epochs", type=_whole, metavar="N", help="of a trial that is never stopped (12)")
    what.add_argument("--sampler", metavar="{gp,tpe,random}|FILE.py", help="who suggests (gp); a file: docs/search.md")
    what.add_argument(
        "--grace-period",
        type=_whole,
        metavar="N",
        help="epochs of each trial before it is compared with others (a thirteenth of --epochs)",
    )
    what.add_argument(
        "--reduction-factor",
        type=_whole,
        metavar="N",
        help="one trial in N goes on after --grace-period epochs, later fewer (4)",
    )
    what.add_argument(
        "--pruner", metavar="{asha,none}|FILE.py", help="who is stopped early (asha); a file: docs/search.md"
    )
    what.add_argument("--objective", metavar="{balanced,ssim,psnr}", help="balanced: SSIM + PSNR/40")
    what.add_argument("--seed", type=_whole, metavar="N", help="0")
    what.add_argument("--data", metavar="NAME|FOLDER", help=f"{_DATA}; later: where they have moved to")
    what.add_argument("--crop", type=_whole, metavar="PIXELS", help=f"{_CROP} (64)")
    what.add_argument("--noise", metavar="SPEC", help=f"{_NOISES} (gaussian:30)")
    what.add_argument("--range", type=_number, help=_RANGES, **_RANGE)
    what.add_argument("--images-per-epoch", type=_whole, metavar="N", help="(the whole training set)")
    what.add_argument("--set", action="append", metavar="NAME=VALUE", help="any TrainConfig field, for all trials")
    much = search.add_argument_group("how much, and where")
    much.add_argument("--trials", type=_whole, metavar="N", help="in all (24)")
    much.add_argument("--time-budget-minutes", type=_number, metavar="MINUTES", help="no new trials after it")
    much.add_argument(
        "--max-cost",
        type=_money,
        metavar="USD",
        help="end in time, by the nodes' labels hpo/usd-per-hour (inf)",
    )
    much.add_argument(
        "--on-demand-after-minutes",
        type=_number,
        metavar="MINUTES",
        help="so long trials wait for spot nodes alone (10)",
    )
    much.add_argument(
        "--keep-checkpoints", type=_whole, metavar="N", help="checkpoints on disk: of the N best trials (10)"
    )
    much.add_argument(
        "--final-epochs", type=_whole, metavar="N", help="train the winner's configuration anew (0: don't)"
    )
    much.add_argument("--max-concurrent", type=_whole, metavar="N", help="trials at a time (as many as fit)")
    much.add_argument("--cpus-per-trial", type=_number, metavar="N", help="1; also its threads")
    much.add_argument(
        "--gpus-per-trial", type=_number, metavar="N", help="1 where there is a GPU, else 0; 0.25 packs four"
    )
    much.add_argument("--allow-cpu", action="store_true", help="train on the CPU where no GPU is found")
    much.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster, or auto (local: start one here)")
    much.add_argument("--wandb", metavar="{offline,online,disabled}", help="offline; online needs a key")
    much.add_argument("--tensorboard", action="store_true", help="curves of every training, in its tensorboard/")
    much.add_argument(
        "--on-finish", metavar="COMMAND", help="for the shell, with the result as JSON on stdin; not when interrupted"
    )
    much.add_argument(
        "--study-url", metavar="URL", help="postgresql://USER@HOST/DB: the study's database, for good (study.db)"
    )
    add("--quiet", action="store_true", default=False, help="only the result")
    now = {option: action for action in search._actions for option in action.option_strings}
    for former, name in FORMER_NAMES.items():
        action = now[f"--{name.replace('_', '-')}"]
        add(f"--{former.replace('_', '-')}", type=action.type or str, metavar=action.metavar, help=argparse.SUPPRESS)
