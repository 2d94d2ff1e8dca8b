"""The commands of `hpo`, their options, and the errors that are found before anything is loaded."""

from __future__ import annotations

import argparse
import math
import os
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_args

from hpo.exit_codes import EXIT_BAD_INPUT, MEANINGS
from hpo.policy.config_option import RESOURCES, SEARCHED
from hpo.policy.former_names import FORMER_NAMES
from hpo.policy.search_config import OPTIONS, SearchConfig
from model.common.files import folder_problem, path_problem, write_problem
from model.common.text import did_you_mean, sanitize_for_terminal, truncated_repr
from model.common.validation import field_types

STORAGE = "HPO_STORAGE"  # environment variable: the default of --storage
TRAIN_OPTIONS = ("epochs", "images_per_epoch", "data", "crop", "noise", "range", "set")  # as those of a search


class _HelpFormatter(argparse.HelpFormatter):
    """argparse's own, but names such as salt-pepper are not split."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    """argparse that reports all errors at once, each with the nearest option."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, sanitize_for_terminal(f"{self.prog}: {message}") + "\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse with the command's own parser, and check the names and paths."""
        try:
            os.getcwd()
        except FileNotFoundError:  # torch's library would end the process with its own message
            self.error("the current folder was deleted; change to an existing one")
        known, unknown = self.parse_known_args(args, namespace)
        options = [option for action in known.parser._actions for option in action.option_strings if option[:2] == "--"]
        errors = [_unknown_option(word, options) for word in unknown if word.startswith("--")]
        if unknown and not errors:
            errors.append(f"unrecognized arguments: {' '.join(unknown)}")
        errors += [error for name, value in vars(known).items() for error in _value_problems(name, value, known.writes)]
        if errors:
            known.parser.error("\n".join(errors))
        return known


def _unknown_option(word: str, options: Sequence[str]) -> str:
    option, _, value = word.partition("=")
    shown = option if "://" in value else word  # a URL may have a password
    return f"{shown}: no such option. {did_you_mean(option, options)}"


# For each command: the argument that names what it writes, and whether that is a folder or a file.
_WRITES = {
    "search": {"runs": "folder"},
    "report": {"to": "file"},
    **{command: {"to": "folder"} for command in ("export", "denoise", "train", "pull")},
}
_PLACES = {
    "runs": "a folder", "to": "where to write", "storage": "a folder or s3://BUCKET/PREFIX",
    "model": "an exported folder", "file": "a cluster file", "images": "an image",
}  # fmt: skip


def _value_problems(name: str, value: Any, writes: Mapping[str, str]) -> list[str]:
    """What is wrong with an argument as a name or a path. writes: see _WRITES."""
    errors = []
    for word in value if isinstance(value, list) else [value]:
        if not isinstance(word, str | Path) or name == "on_finish":
            continue
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in str(word)):
            shown = truncated_repr(str(word))
            errors.append(f"{name}={shown}: must not contain control characters or bytes that are not UTF-8")
        elif not word and name in _PLACES:
            errors.append(f"{name}='': must not be empty; it names {_PLACES[name]}")
        elif isinstance(word, Path) and (why := _path_problem(word, writes.get(name), is_folder=name == "runs")):
            errors.append(f"{word}: {why}")
    return errors


def _path_problem(path: Path, written: str | None, *, is_folder: bool) -> str:
    """Why a path cannot be used; empty if it can. written: "folder" or "file", which is made with its parents."""
    try:
        if why := path_problem(path):
            return why
        if (is_folder or written == "folder") and folder_problem(path):
            return "is a file; a folder is needed here"
        if written == "file" and path.is_dir():
            return f"is a folder; --to must name a file, such as {path / 'report.html'}"
        why = write_problem(path.parent if written == "file" else path) if written else ""
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return f"{why}; choose another" if why else ""


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. Its result has the `command` and that command's `parser`."""
    codes = "\n".join(f"  {code:3}  {meaning}" for code, meaning in MEANINGS.items())
    top = _Parser(
        prog="hpo",
        description="Search for the best pix2pix denoiser, compare the results, and use the winner.",
        epilog=f"`hpo COMMAND --help` describes a command and its options.\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND", title="commands", parser_class=_Parser)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=about, description=about, allow_abbrev=False, formatter_class=_HelpFormatter
        )
        added.set_defaults(command=name, parser=added, writes=_WRITES.get(name, {}))
        return added

    search = command("search", "Start a search, or continue it. It ends with the export of the winner.")
    _add_place(search)
    _add_search_options(search)
    _add_commands_on_a_search(command)
    _add_commands_on_an_export(command)
    _add_train_options(command("train", "Train one configuration without Ray, or continue it."))
    _add_cluster_commands(command)
    return top


def _add_place(added: argparse.ArgumentParser, *, named: bool = True) -> None:
    """The arguments that say which search is meant."""
    if named:
        added.add_argument("name", metavar="NAME", help="name of the search")
    added.add_argument(
        "--runs", type=_path, default=Path("runs"), metavar="DIR", help="folder of the searches (default: runs)"
    )
    added.add_argument(
        "--storage",
        type=os.path.expanduser,
        default=os.environ.get(STORAGE) or None,
        metavar="FOLDER|s3://...",
        help="folder or s3:// prefix that holds the searches; --runs then contains local copies only "
        f"(default: ${STORAGE})",
    )


def _add_json(added: argparse.ArgumentParser) -> None:
    added.add_argument("--json", action="store_true", help="print one JSON document to stdout and nothing else")


_Command = Callable[[str, str], argparse.ArgumentParser]
_PICK = (
    "with several objectives, the member of the front that is best, fastest or smallest, fastest-within:0.1dB or "
    "smallest-within:0.1dB of the best, best-below:20ms or best-below:2MB (default: best)"
)
_DATA_MOVED = "folder where its images are now (default: the folder it was trained on)"


def _add_commands_on_a_search(command: _Command) -> None:
    _add_place(listing := command("list", "List the searches."), named=False)
    _add_json(listing)
    _add_place(show := command("show", "Show the leaderboard of a search."))
    show.add_argument("--decisions", action="store_true", help="show why each trial was pruned or continued")
    _add_json(show)
    _add_place(report := command("report", "Write a search's results to one HTML file, and print its path."))
    report.add_argument(
        "--to", type=_path, metavar="FILE", help="file to write (default: report.html in the search's folder)"
    )
    _add_place(command("watch", "Show the live table of a search that another process or another machine runs."))
    _add_place(command("stop", "Stop a search that runs on this machine. It can be continued."))
    _add_place(remove := command("rm", "Delete a search, after a confirmation."))
    remove.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    _add_place(dashboard := command("dashboard", "Serve optuna-dashboard for a search, to this machine only."))
    dashboard.add_argument("--port", type=int, default=8080, help="port on 127.0.0.1; 0: any free port (default: 8080)")
    _add_place(export := command("export", "Export the winner, or the best epoch of a trial, as a folder to deploy."))
    export.add_argument("--trial", type=int, metavar="N", help="export this trial (default: the winner)")
    export.add_argument("--pick", metavar="RULE", help=_PICK)
    export.add_argument(
        "--to",
        type=_path,
        metavar="DIR",
        help="folder to write (default: in the search's folder export/, or export-int8/ for that precision)",
    )
    export.add_argument(
        "--precision",
        default="fp32",
        metavar="{fp32,fp16,int8}",
        help="numbers of the network; int8 is calibrated on training images. The smaller network is measured again on "
        "the same images, and beside the float32 one (default: fp32)",
    )
    export.add_argument(
        "--max-loss-db",
        type=_number,
        metavar="DB",
        help="how much PSNR fp16 or int8 may lose on the validation images; one that loses more is not exported "
        "(default: 0.1)",
    )
    export.add_argument("--data", metavar="FOLDER", help=_DATA_MOVED)
    export.add_argument("--trainable", action="store_true", help="add the checkpoint, to continue the training")
    _add_place(command("sync", "Send a search that was logged offline to W&B."))


def _add_commands_on_an_export(command: _Command) -> None:
    evaluate = command("evaluate", "Measure an exported model on noisy images of the training and the test set.")
    evaluate.add_argument("model", type=_path, metavar="DIR", help="exported folder")
    evaluate.add_argument("--data", metavar="FOLDER", help=_DATA_MOVED)
    evaluate.add_argument(
        "--latency", action="store_true", help="measure only the latency, on this machine; it needs no images"
    )
    evaluate.add_argument(
        "--size", type=_whole, metavar="PIXELS", help="with --latency: side of the square image (default: as recorded)"
    )
    evaluate.add_argument(
        "--threads", type=_whole, metavar="N", help="with --latency: threads of the CPU (default: as recorded)"
    )
    _add_json(evaluate)

    add = command("denoise", "Denoise images of any size with an exported model.").add_argument
    add("model", type=_path, metavar="DIR", help="exported folder")
    add(
        "images", type=_path, nargs="+", metavar="IMAGE", help="image files, and folders, which are searched for images"
    )
    add("--to", type=_path, required=True, metavar="DIR", help="folder for the denoised images")
    add(
        "--format",
        metavar="{png,tiff,webp,jpeg}",
        help="format of all outputs (default: the format of each input, or a lossless one)",
    )
    add("--quality", type=_whole, metavar="N", help="1 to 100, for JPEG and WebP (default: as the input, or lossless)")
    add(
        "--range",
        type=_number,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="black and white of 16-bit and float32 images (default: as in the training, or the whole range)",
    )
    add("--frames", metavar="all", help="all: denoise every page of a TIFF (default: refuse files with several pages)")
    add("--strip-metadata", action="store_true", help="drop EXIF and resolution; the colour profile stays")
    add("--skip-bad", action="store_true", help="skip images that cannot be denoised, and exit with 5")
    add("--overwrite", action="store_true", help="replace all outputs (default: keep those that are up to date)")


def _add_cluster_commands(command: _Command) -> None:
    cluster = command("cluster", "Check a cluster file before `ray up`.")
    cluster.add_argument("action", choices=["check"], help="report all problems of the file at once")
    cluster.add_argument("file", type=_path, metavar="FILE", help="cluster.yaml, or your own")
    launch = command("launch", "Submit a search as a job to a cluster's head. The same command continues it.")
    pull = command("pull", "Copy the best model so far from a cluster's head to this machine, and verify it.")
    for added in (launch, pull):
        added.add_argument("file", type=_path, metavar="CLUSTER.yaml", help="the file that `ray up` was given")
        added.add_argument("name", metavar="NAME", help="name of the search")
    _add_search_options(launch)
    launch.add_argument(
        "--wait", action="store_true", default=False, help="wait for its end, and exit with its exit code"
    )
    pull.add_argument("--pick", metavar="RULE", help=_PICK)
    pull.add_argument("--to", type=_path, required=True, metavar="DIR", help="folder to write, ready to deploy")


def _add_train_options(train: argparse.ArgumentParser) -> None:
    train.usage = "%(prog)s --to DIR [OPTIONS]"
    train.add_argument(
        "--to", type=_path, required=True, metavar="DIR", help="folder of its checkpoints; a training in it continues"
    )
    for name in TRAIN_OPTIONS:
        _add_option(train, name)
    train.add_argument(
        "--export", action="store_true", help="export the best epoch to DIR/export, measured on the test set"
    )
    train.add_argument("--tensorboard", action="store_true", help="write TensorBoard events to DIR/tensorboard")
    _add_json(train)


def _add_search_options(search: argparse.ArgumentParser) -> None:
    positionals = " ".join(str(action.metavar) for action in search._actions if not action.option_strings)
    search.usage = f"%(prog)s {positionals} [OPTIONS]"
    groups = {heading: search.add_argument_group(heading) for heading in (SEARCHED, RESOURCES)}
    for name, option in OPTIONS.items():
        _add_option(groups[option.group], name)
    for former, name in FORMER_NAMES.items():
        _add_option(search, name, former)
    search.add_argument("--quiet", action="store_true", help="print only the result")


def _add_option(group: argparse._ActionsContainer, name: str, former: str = "") -> None:
    """Add a field of SearchConfig as an option, perhaps by its former name, which is not in the help.

    The option has no default: the configuration has, or the search that is continued.
    """
    option, types = OPTIONS[name], {field_types(SearchConfig)[name], *get_args(field_types(SearchConfig)[name])}
    how: dict[str, Any] = {"metavar": option.metavar, "type": str}
    if bool in types:
        how = {"action": "store_true"}
    elif name in ("set", "limit"):
        how["action"] = "append"
    elif name == "max_cost":
        how["type"] = _money
    elif isinstance(option.metavar, tuple):
        how |= {"type": _number, "nargs": len(option.metavar)}
    elif float in types or int in types:
        how["type"] = _whole if int in types else _number
    text = argparse.SUPPRESS if former else option.help_with_default.replace("%", "%%")
    group.add_argument(option_name(former or name), default=argparse.SUPPRESS, help=text, **how)


def option_name(field: str) -> str:
    """A field of a configuration as it is typed."""
    return f"--{field.replace('_', '-')}"


def _path(text: str) -> Path | str:
    """Expand ~, which the shell leaves alone in quotes, after `=` and in variables."""
    return Path(os.path.expanduser(text)) if text else text  # Path("") would be the current folder


# Text that is not a number passes: SearchConfig and TrainConfig report it together with all other errors.


def _number(text: str, kind: Callable[[str], float] = float) -> float | str:
    try:
        return kind(text)
    except ValueError:
        return text


_whole = partial(_number, kind=int)


def _money(text: str) -> float | str | None:
    """USD; inf: None, no limit."""
    usd = _number(text)
    return None if usd == math.inf else usd
