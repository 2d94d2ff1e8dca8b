"""The command line. Imports lazily: a wrong argument is answered in under a second."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from hpo.cli.arguments import parser
from hpo.exit_codes import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_NOTHING_VALID
from model.common.errors import ConfigError, ErrorCollector, MachineError
from model.common.files import check_writable, describe_os_error
from model.common.text import sanitize_for_terminal
from model.config import TrainConfig, parse_setting, reject_duplicate_settings

if TYPE_CHECKING:
    from hpo.store.record import Record


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code: 0 done, 2 bad input, 3 nothing valid came out, 4 the machine failed, 5 some
    images were left out, 75 Ray's head, the study's database or the storage is gone, 130 interrupted, 143 terminated
    (the same command continues)."""
    arguments = parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _COMMANDS[arguments.command](arguments)
    except BrokenPipeError:  # `hpo show NAME | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _stopped("Interrupted. The same command continues.", EXIT_INTERRUPTED)
    except ConfigError as error:
        return _stopped(f"hpo: {error}", EXIT_BAD_INPUT)
    except MachineError as error:
        return _stopped(f"hpo: {error}", EXIT_MACHINE)
    except OSError as error:
        return _stopped(f"hpo: {describe_os_error(error)}", EXIT_MACHINE)
    return code


def _stopped(message: str, code: int) -> int:
    print(sanitize_for_terminal(message), file=sys.stderr)
    return code


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return sanitize_for_terminal(super().format(record))


def _search(arguments: argparse.Namespace) -> int:
    _resolve(arguments, mistakes := ErrorCollector())

    # NumPy reads it when it is imported: on the surrogate's small matrices a second thread costs more than it gives.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from hpo.policy.search_config import SearchConfig
    from hpo.run.search import run_search

    given = {field.name for field in fields(SearchConfig)} & set(vars(arguments))
    options = {name: getattr(arguments, name) for name in given}
    place = {"address": arguments.storage, "quiet": arguments.quiet}
    return run_search(arguments.name, arguments.runs, options, errors=mistakes, **place)


def _resolve(arguments: argparse.Namespace, mistakes: ErrorCollector) -> None:
    """What the options of a search stand for."""
    from hpo.policy.search_config import FORMER_NAMES, renamed

    if hasattr(arguments, "set"):
        arguments.set = _settings(arguments.set, mistakes)
    for former in FORMER_NAMES.keys() & vars(arguments).keys():
        value, option = getattr(arguments, former), _option(FORMER_NAMES[former])
        if hasattr(arguments, FORMER_NAMES[former]):
            mistakes.add(f"{former}={value}: is {option}'s former name; leave it out")
        else:
            print(f"hpo: {_option(former)} is called {option} now", file=sys.stderr)
            vars(arguments).update(renamed({former: value}))
        delattr(arguments, former)
    vars(arguments).update(renamed(vars(arguments)))
    for name in ("space", "sampler", "pruner"):
        if getattr(arguments, name, "").endswith(".py"):
            setattr(arguments, name, os.path.realpath(os.path.expanduser(getattr(arguments, name))))
    if hasattr(arguments, "data"):
        arguments.data = _absolute(arguments.data)
    if hasattr(arguments, "range"):
        arguments.range = tuple(arguments.range)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _absolute(data: str) -> str:
    """A folder's path as it holds from everywhere: a search is continued from elsewhere, too."""
    data = os.path.expanduser(data)
    return os.path.realpath(data) if os.path.exists(data) else data


def _looking(arguments: argparse.Namespace, *, read_only: bool = False) -> AbstractContextManager[Record]:
    """The record that a command is about, for as long as it looks."""
    from hpo.store.replication import open_read_only, open_storage

    storage = open_storage(arguments.storage, arguments.runs, interactive=True)
    return open_read_only(arguments.runs, arguments.name, storage, read_only=read_only)


def _list(arguments: argparse.Namespace) -> int:
    from hpo.policy import leaderboard
    from hpo.store import search_results
    from hpo.store.record import list_names
    from hpo.store.replication import open_read_only, open_storage, search_names

    rows = []
    storage = open_storage(arguments.storage, arguments.runs, interactive=True)
    for name in search_names(storage) if storage else list_names(arguments.runs):
        with open_read_only(arguments.runs, name, storage) as record:
            board = leaderboard.leaderboard(record.trials(), record.search.objective)
            best = next((row for row in board if row["number"] == search_results.winner(record)), None)
            rows.append(
                {
                    "name": name,
                    "created": record.about["created"],
                    "trials": len(board),
                    "asked": record.search.trials,
                    "exported": search_results.is_exported(record),
                    "ssim": best and best["ssim"],
                    "psnr_db": best and best["psnr_db"],
                }
            )
    if arguments.json:
        print(json.dumps({"searches": rows}, indent=2))
        return 0
    if not rows:
        print(f"No searches in {storage or arguments.runs}. `hpo search NAME` starts one.", file=sys.stderr)
    for row in rows:
        best_so_far = (
            f"SSIM {row['ssim']:.4f}  PSNR {row['psnr_db']:.2f} dB" if row["ssim"] is not None else "no result"
        )
        state = "exported" if row["exported"] else "can be continued"
        line = f"{row['name']:20} {row['created']}  {row['trials']}/{row['asked']} trials  {best_so_far}  {state}"
        print(sanitize_for_terminal(line))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from hpo.policy import leaderboard
    from hpo.store import search_results
    from hpo.views.formatting import decision_table, headline, trial_table
    from hpo.views.terminal import Terminal

    with _looking(arguments) as record:
        document = search_results.decisions(record) if arguments.decisions else search_results.document(record)
        if arguments.json:
            print(json.dumps(document, indent=2))
            return 0
        console = Terminal()
        if arguments.decisions:
            console.print(decision_table(document["trials"]))
            return 0
        trials = {trial.number: trial for trial in record.trials()}
        board = leaderboard.leaderboard(list(trials.values()), record.search.objective)
        console.print(headline(record), highlight=False)
        console.print()
        console.print(trial_table([trials[row["number"]] for row in board], record.search, width=console.width))
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    from hpo.store.replication import open_storage
    from hpo.views.terminal import Terminal
    from hpo.views.watch import watch

    storage = open_storage(arguments.storage, arguments.runs, interactive=True)
    try:
        watch(arguments.runs, arguments.name, Terminal(stderr=True), storage=storage)
    except KeyboardInterrupt:
        return _stopped("No longer watched; the search is not affected.", EXIT_INTERRUPTED)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    from hpo.run.process_control import stop_search
    from hpo.store.replication import open_storage

    storage = open_storage(arguments.storage, arguments.runs, interactive=True)
    print(sanitize_for_terminal(stop_search(arguments.runs, arguments.name, storage=storage)), file=sys.stderr)
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from hpo.policy.search_config import check_name
    from hpo.run.process_control import delete_search
    from hpo.store.record import Record, not_found
    from hpo.store.replication import open_storage

    folder = arguments.runs / check_name(arguments.name)
    storage = open_storage(arguments.storage, arguments.runs, interactive=True)
    stored = storage.subdirectory(arguments.name).names() if storage else {}
    if not Record.exists(arguments.runs, arguments.name) and not stored:
        raise not_found(arguments.runs, arguments.name)
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"{folder}: deleting it asks first, and nobody is here to answer; --yes answers")
        megabytes = sum(path.lstat().st_size for path in folder.rglob("*")) / 1e6
        megabytes += sum(file.size for file in stored.values()) / 1e6
        where = f"{arguments.name} in {storage}, and {folder}" if stored else folder
        if input(f"Delete {where} ({megabytes:,.0f} MB) with all that the search found? [y/N] ").lower() != "y":
            print("Nothing was deleted.", file=sys.stderr)
            return 0
    delete_search(arguments.runs, arguments.name, storage if stored else None)
    print(f"{folder} is deleted", file=sys.stderr)
    return 0


def _dashboard(arguments: argparse.Namespace) -> int:
    from hpo.views.dashboard import open_server

    with _looking(arguments, read_only=True) as record:
        server, address = open_server(record, arguments.port)
        with server:
            print(f"{address}  (Ctrl-C ends it)", file=sys.stderr, flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                return _stopped("", EXIT_INTERRUPTED)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from hpo.views.html_report import write_report

    with _looking(arguments) as record:
        if arguments.to is None:
            check_writable(record.user_folder, "--to")
        print(write_report(record, arguments.to))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from hpo.run import export
    from hpo.store import layout, search_results
    from model.data.memory_mapped import PixelFiles
    from model.export import check_target
    from model.export_quality import quality_table

    with _looking(arguments) as record:
        check_target(arguments.to or record.user_folder / layout.EXPORT)
        data = record.search.data_config()
        if arguments.data is not None:
            data = replace(data, data=_absolute(arguments.data))
        with PixelFiles(arguments.runs, arguments.name) as store:
            images = data.load(store)
            search_results.check_images(record, images, data.data)
        manifest = export.export_winner(
            record,
            images,
            is_over=search_results.is_over(record),
            data=data,
            trial=arguments.trial,
            destination=arguments.to,
            trainable=arguments.trainable,
        )
        print(quality_table(manifest["metrics"]))
        if manifest["metrics"]["test"] is None:
            print("The search is not over, so the test images were not looked at.", file=sys.stderr)
        print(f"Exported to {arguments.to or record.user_folder / layout.EXPORT}", file=sys.stderr)
    return 0


def _sync(arguments: argparse.Namespace) -> int:
    from hpo.store import search_results
    from hpo.store.replication import acquire, open_storage
    from hpo.tracking.wandb_login import log_in, remove_inherited_settings
    from hpo.tracking.wandb_tracker import sync

    def over(error: Exception) -> None:
        print(sanitize_for_terminal(f"hpo: {error}"), file=sys.stderr)

    with acquire(
        arguments.runs, arguments.name, open_storage(arguments.storage, arguments.runs, interactive=True), over
    ) as copies:
        remove_inherited_settings("online")
        log_in()
        sent, where = sync(copies.record, exported=search_results.is_exported(copies.record))
    print(
        f"Sent the rest of {sent} ended runs: {sanitize_for_terminal(where)}" if where else "W&B has all of it already"
    )
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from model.data.data_config import DataConfig
    from model.data.memory_mapped import PixelFiles
    from model.denoise import Denoiser
    from model.export_quality import compare_with_slides, evaluate, quality_table

    denoiser = Denoiser(arguments.model)
    data = DataConfig.from_dict(denoiser.manifest["data"])
    if arguments.data is not None:
        data = replace(data, data=_absolute(arguments.data))
    with PixelFiles() as store:
        train = data.load_train(store)
    with PixelFiles() as store:
        test = data.load_test(store)
    splits = {
        "train": evaluate(denoiser, train, data.noise, "train"),
        "test": evaluate(denoiser, test, data.noise, "test"),
    }
    if arguments.json:
        print(json.dumps(splits, indent=2))
    else:
        print(quality_table(splits))
        if data.is_slides:
            print(f"\n{compare_with_slides(splits['test'])}")
    return 0


def _denoise(arguments: argparse.Namespace) -> int:
    from hpo.cli.denoise_files import DenoiseOptions, denoise_files

    mistakes, wishes = ErrorCollector(), None
    asked = {part.name: getattr(arguments, part.name) for part in fields(DenoiseOptions)}
    with mistakes.catch():
        wishes = DenoiseOptions(**asked)
    return denoise_files(arguments.model, arguments.images, arguments.to, wishes or DenoiseOptions(), mistakes)


def _train(arguments: argparse.Namespace) -> int:
    mistakes, own = ErrorCollector(), {"epochs": arguments.epochs, "images_per_epoch": arguments.images_per_epoch}
    settings = _settings(arguments.set, mistakes)
    with mistakes.catch():
        reject_duplicate_settings(settings, own)
    with mistakes.catch():
        config = TrainConfig.from_dict({**settings, **own})
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in ray_runtime; torch reads it when it is imported

    import torch

    from model.data.data_config import DataConfig
    from model.data.device_images import DeviceImages
    from model.data.image_folder import check_layout
    from model.data.memory_mapped import PixelFiles
    from model.trainer import SEARCH_VALIDATION_IMAGES
    from model.training_report import failure_reason
    from model.training_run import TrainingRun

    with mistakes.catch():
        data = DataConfig(
            data=_absolute(arguments.data), noise=arguments.noise, crop=arguments.crop, range=arguments.range
        )
    with mistakes.catch():
        check_layout(arguments.data)
    mistakes.raise_if_any()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with PixelFiles(arguments.to) as store:
        store.delete_leftovers()
        images = data.load(store)
        sys.stderr.writelines(sanitize_for_terminal(f"{data.data}: {line}") + "\n" for line in images.messages)
        placed = DeviceImages.to_device(images, data.noise, device, num_validation=SEARCH_VALIDATION_IMAGES)
        run = TrainingRun(config, placed, arguments.to, "balanced")
        events = None
        if arguments.tensorboard:
            from hpo.tracking.tensorboard import FOLDER, Events

            events = Events(arguments.to / FOLDER)
            events.write(run.reports)
        while len(run.reports) < config.epochs and failure_reason(run.reports) is None:
            report = run.run_epoch()
            if events:
                events.write(run.reports)
            print(
                f"epoch {report.epoch}/{config.epochs}  SSIM {report.ssim:.4f}  PSNR {report.psnr_db:.2f} dB  "
                f"L1 {report.l1:.4f}  {report.images_per_second:.0f} images/s on {device}",
                file=sys.stderr,
            )
    reason, metrics = failure_reason(run.reports), None
    if arguments.export and not reason:
        from model.export import export
        from model.run_layout import BEST

        with PixelFiles(arguments.to) as store:
            test = data.load_test(store)
        to, origin = arguments.to / "export", {"training": arguments.to.name}
        metrics = export(arguments.to / BEST, to, data=data, images=images, test=test, origin=origin)["metrics"]
        print(f"Exported to {to}", file=sys.stderr)
    if arguments.json:
        epochs = [{**r.as_dict(), "images_per_second": r.images_per_second} for r in run.reports]
        result = {"config": config.as_dict(), "stop_reason": reason, "epochs": epochs, "export": metrics}
        print(json.dumps(result, indent=2))
    if reason:
        return _stopped(f"The training {reason} after epoch {len(run.reports)}.", EXIT_NOTHING_VALID)
    return 0


def _cluster(arguments: argparse.Namespace) -> int:
    from hpo.cluster import cluster_config

    config = cluster_config.checked(arguments.file)
    for line in cluster_config.warnings(config):
        print(sanitize_for_terminal(f"Mind: {line}"), file=sys.stderr)
    print(sanitize_for_terminal(cluster_config.summary(config)))
    return 0


def _launch(arguments: argparse.Namespace) -> int:
    options = {action.dest: action for action in arguments.parser._actions if action.dest in vars(arguments)}
    own = ("file", "name", "wait", "quiet")
    words = {name: _words(action, getattr(arguments, name)) for name, action in options.items() if name not in own}
    _resolve(arguments, mistakes := ErrorCollector())

    from hpo.policy.search_config import SearchConfig
    from hpo.remote.launch import launch

    given = {field.name for field in fields(SearchConfig)} & set(vars(arguments))
    asked = {name: getattr(arguments, name) for name in given}
    try:
        return launch(arguments.file, arguments.name, asked, words, mistakes=mistakes, wait=arguments.wait)
    except KeyboardInterrupt:
        return _stopped("No longer waited for; a job that was submitted goes on.", EXIT_INTERRUPTED)


def _words(action: argparse.Action, value: Any) -> list[str]:
    """An option as it is typed."""
    option = action.option_strings[0]
    if action.nargs == 0:
        return [option] if value else []
    if action.nargs == 2:
        return [option, *map(str, value)]
    return [word for one in (value if isinstance(value, list) else [value]) for word in (option, str(one))]


def _pull(arguments: argparse.Namespace) -> int:
    from hpo.remote.launch import pull
    from model.export_quality import quality_table

    manifest = pull(arguments.file, arguments.name, arguments.to)
    trial = manifest["origin"].get("trial")
    print(quality_table(manifest["metrics"]))
    print(
        f"{arguments.to}: trial {trial} of {arguments.name}; every file has its digest, and the "
        f"model does here what it did there.\n  hpo denoise {arguments.to} IMAGE... --to DIR\n"
        f"  hpo evaluate {arguments.to}",
        file=sys.stderr,
    )
    return 0


def _settings(pairs: Sequence[str], mistakes: ErrorCollector) -> dict[str, Any]:
    """--set NAME=VALUE, repeated: those that are right."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        with mistakes.catch():
            name, value = parse_setting(pair)
            if settings.setdefault(name, value) != value:
                mistakes.add(f"{name}: set twice, to {settings[name]} and {value}")
    return settings


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "search": _search,
    "list": _list,
    "show": _show,
    "report": _report,
    "watch": _watch,
    "stop": _stop,
    "rm": _remove,
    "dashboard": _dashboard,
    "export": _export,
    "sync": _sync,
    "denoise": _denoise,
    "train": _train,
    "cluster": _cluster,
    "launch": _launch,
    "pull": _pull,
    "evaluate": _evaluate,
}


if __name__ == "__main__":
    sys.exit(main())
