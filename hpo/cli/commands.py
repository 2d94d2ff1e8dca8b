"""The commands of `hpo`. They import lazily: a wrong argument is answered in under a second."""

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
from hpo.cli.messages import say
from hpo.cli.search_options import absolute_data, read_search_options
from hpo.exit_codes import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED, EXIT_MACHINE
from model.common.errors import ConfigError, ErrorCollector, MachineError
from model.common.files import check_writable, describe_os_error
from model.common.text import sanitize_for_terminal

if TYPE_CHECKING:
    from hpo.store.object_storage import Storage
    from hpo.store.record import Record


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code: see hpo.exit_codes."""
    arguments = parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(_SanitizingFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name need not be valid text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _COMMANDS[arguments.command](arguments)
    except BrokenPipeError:  # `hpo show NAME | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except KeyboardInterrupt:
        say("Interrupted. The same command continues.")
        return EXIT_INTERRUPTED
    except (ConfigError, MachineError, OSError) as error:
        say(f"hpo: {describe_os_error(error) if isinstance(error, OSError) else error}")
        return EXIT_BAD_INPUT if isinstance(error, ConfigError) else EXIT_MACHINE


class _SanitizingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return sanitize_for_terminal(super().format(record))


def _search(arguments: argparse.Namespace) -> int:
    options = read_search_options(arguments, errors := ErrorCollector())
    # NumPy reads it on import: for the surrogate's small matrices a second thread costs more than it saves.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from hpo.run.search import run_search

    place = {"address": arguments.storage, "quiet": arguments.quiet}
    return run_search(arguments.name, arguments.runs, options, errors=errors, **place)


def _open_storage(arguments: argparse.Namespace) -> Storage | None:
    from hpo.store.study_replication import open_storage

    return open_storage(arguments.storage, arguments.runs, interactive=True)


def _open_record(arguments: argparse.Namespace, *, read_only: bool = False) -> AbstractContextManager[Record]:
    """The record of the search that a command is about."""
    from hpo.store.study_replication import open_read_only

    return open_read_only(arguments.runs, arguments.name, _open_storage(arguments), read_only=read_only)


def _list(arguments: argparse.Namespace) -> int:
    from hpo.store.search_file import list_names
    from hpo.store.study_replication import open_read_only, search_names

    rows, storage = [], _open_storage(arguments)
    for name in search_names(storage) if storage else list_names(arguments.runs):
        with open_read_only(arguments.runs, name, storage) as record:
            rows.append(_summary(record))
    if arguments.json:
        print(json.dumps({"searches": rows}, indent=2))
        return EXIT_DONE
    if not rows:
        say(f"No searches in {storage or arguments.runs}. `hpo search NAME` starts one.")
    for row in rows:
        best = "no result" if row["ssim"] is None else f"SSIM {row['ssim']:.4f}  PSNR {row['psnr_db']:.2f} dB"
        best += f"  front of {row['front']}" if row.get("front") else ""
        state = "exported" if row["exported"] else "can be continued"
        line = f"{row['name']:20} {row['created']}  {row['trials']}/{row['asked']} trials  {best}  {state}"
        print(sanitize_for_terminal(line))
    return EXIT_DONE


def _summary(record: Record) -> dict[str, Any]:
    """A row of `hpo list --json`."""
    from hpo.policy.leaderboard import front, leaderboard
    from hpo.store import search_results

    board = leaderboard(record.trials(), record.search.objective)
    best = next((row for row in board if row["number"] == search_results.winner(record)), None)
    return {
        "name": record.name,
        "created": record.about["created"],
        "trials": len(board),
        "asked": record.search.trials,
        "exported": search_results.is_exported(record),
        "ssim": best and best["ssim"],
        "psnr_db": best and best["psnr_db"],
        **({"front": len(front(record.trials(), record.search))} if record.search.is_multi_objective else {}),
    }


def _show(arguments: argparse.Namespace) -> int:
    from hpo.policy import leaderboard
    from hpo.store import search_results
    from hpo.views.formatting import decision_table, headline, trial_table
    from hpo.views.terminal import Terminal

    with _open_record(arguments) as record:
        document = search_results.decisions(record) if arguments.decisions else search_results.document(record)
        if arguments.json:
            print(json.dumps(document, indent=2))
            return EXIT_DONE
        console = Terminal()
        if arguments.decisions:
            console.print(decision_table(document["trials"]))
            return EXIT_DONE
        trials = {trial.number: trial for trial in record.trials()}
        board = leaderboard.leaderboard(list(trials.values()), record.search.objective)
        console.print(headline(record), highlight=False)
        console.print()
        front = leaderboard.front(trials.values(), record.search) if record.search.is_multi_objective else []
        order = [*front, *(row["number"] for row in board if row["number"] not in front)]
        shown = [trials[number] for number in order]
        console.print(trial_table(shown, record.search, width=console.width, front=front))
        if front:
            console.print("* on the front", highlight=False)
    return EXIT_DONE


def _watch(arguments: argparse.Namespace) -> int:
    from hpo.views.terminal import Terminal
    from hpo.views.watch import watch

    try:
        watch(arguments.runs, arguments.name, Terminal(stderr=True), storage=_open_storage(arguments))
    except KeyboardInterrupt:
        say("The table has ended; the search continues.")
        return EXIT_INTERRUPTED
    return EXIT_DONE


def _stop(arguments: argparse.Namespace) -> int:
    from hpo.run.process_control import stop_search

    say(stop_search(arguments.runs, arguments.name, storage=_open_storage(arguments)))
    return EXIT_DONE


def _remove(arguments: argparse.Namespace) -> int:
    from hpo.policy.search_config import check_name
    from hpo.run.process_control import delete_search
    from hpo.store.record import Record
    from hpo.store.search_file import not_found

    folder = arguments.runs / check_name(arguments.name)
    storage = _open_storage(arguments)
    stored = storage.subdirectory(arguments.name).names() if storage else {}
    if not Record.exists(arguments.runs, arguments.name) and not stored:
        raise not_found(arguments.runs, arguments.name)
    if not arguments.yes:
        if not sys.stdin.isatty():
            why = "refusing to delete without confirmation on a non-interactive terminal"
            raise ConfigError(f"{folder}: {why}; pass --yes")
        megabytes = sum(path.lstat().st_size for path in folder.rglob("*")) / 1e6
        megabytes += sum(file.size for file in stored.values()) / 1e6
        where = f"{arguments.name} in {storage}, and {folder}" if stored else folder
        if input(f"Delete {where} ({megabytes:,.0f} MB) with all results of the search? [y/N] ").lower() != "y":
            say("Nothing was deleted.")
            return EXIT_DONE
    delete_search(arguments.runs, arguments.name, storage if stored else None)
    say(f"{folder} is deleted")
    return EXIT_DONE


def _dashboard(arguments: argparse.Namespace) -> int:
    from hpo.views.dashboard import open_server

    with _open_record(arguments, read_only=True) as record:
        server, address = open_server(record, arguments.port)
        with server:
            say(f"{address}  (Ctrl-C stops it)")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                return EXIT_INTERRUPTED
    return EXIT_DONE


def _report(arguments: argparse.Namespace) -> int:
    from hpo.views.html_report import write_report

    with _open_record(arguments) as record:
        if arguments.to is None:
            check_writable(record.user_folder, "--to")
        print(write_report(record, arguments.to))
    return EXIT_DONE


def _export(arguments: argparse.Namespace) -> int:
    _check_pick(arguments)

    from hpo.cli.export import export
    from model.quantization import NetworkOptions

    asked = NetworkOptions(precision=arguments.precision, max_loss_db=arguments.max_loss_db)
    with _open_record(arguments) as record:
        return export(arguments, record, asked)


def _check_pick(arguments: argparse.Namespace) -> None:
    if arguments.pick is None:
        return
    from hpo.policy.pick import Pick

    Pick.parse(arguments.pick)
    if arguments.trial is not None:
        raise ConfigError(f"--pick {arguments.pick} and --trial {arguments.trial}: choose with one of them")
    if arguments.to is None:
        raise ConfigError(f"--pick {arguments.pick}: needs --to DIR; export/ in the search's folder stays the best one")


def _sync(arguments: argparse.Namespace) -> int:
    from hpo.store import search_results
    from hpo.store.study_replication import acquire
    from hpo.tracking.wandb_login import log_in, remove_inherited_settings
    from hpo.tracking.wandb_tracker import sync

    storage = _open_storage(arguments)
    with acquire(arguments.runs, arguments.name, storage, lambda error: say(f"hpo: {error}")) as replicator:
        remove_inherited_settings("online")
        log_in()
        record = replicator.record
        sent, page = sync(record, exported=search_results.is_exported(record))
    print(f"Sent the rest of {sent} ended runs: {sanitize_for_terminal(page)}" if page else "W&B has all of it already")
    return EXIT_DONE


def _evaluate(arguments: argparse.Namespace) -> int:
    from model.data.data_config import DataConfig
    from model.data.memory_mapped import PixelFiles
    from model.denoise import Denoiser
    from model.export_quality import compare_with_slides, evaluate, quality_table

    if arguments.latency:
        from hpo.cli.export import evaluate_latency

        return evaluate_latency(arguments)
    if unused := [f"--{name}" for name in ("size", "threads") if getattr(arguments, name) is not None]:
        raise ConfigError(f"{', '.join(unused)}: is for --latency")
    denoiser = Denoiser(arguments.model)
    data = DataConfig.from_dict(denoiser.manifest["data"])
    if arguments.data is not None:
        data = replace(data, data=absolute_data(arguments.data))
    with PixelFiles() as store:
        train = data.load_train(store)
    with PixelFiles() as store:
        test = data.load_test(store)
    splits = {name: evaluate(denoiser, images, data.noise, name) for name, images in (("train", train), ("test", test))}
    if arguments.json:
        print(json.dumps(splits, indent=2))
    else:
        print(quality_table(splits))
        if data.is_slides:
            print(f"\n{compare_with_slides(splits['test'])}")
    return EXIT_DONE


def _denoise(arguments: argparse.Namespace) -> int:
    from hpo.cli.denoise_files import denoise_files
    from hpo.cli.denoise_image import DenoiseOptions

    errors = ErrorCollector()
    typed = {field.name: getattr(arguments, field.name) for field in fields(DenoiseOptions)}
    options = errors.attempt(DenoiseOptions, **typed) or DenoiseOptions()
    return denoise_files(arguments.model, arguments.images, arguments.to, options, errors)


def _train(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in hpo.tune.ray_session; torch reads it on import

    from hpo.cli.train import train

    return train(arguments)


def _cluster(arguments: argparse.Namespace) -> int:
    from hpo.cluster import cluster_config

    config = cluster_config.read_checked(arguments.file)
    for line in cluster_config.warnings(config):
        say(f"Warning: {line}")
    print(sanitize_for_terminal(cluster_config.summary(config)))
    return EXIT_DONE


def _launch(arguments: argparse.Namespace) -> int:
    options = read_search_options(arguments, errors := ErrorCollector())

    from hpo.remote.launch import launch

    try:
        return launch(arguments.file, arguments.name, options, errors=errors, wait=arguments.wait)
    except KeyboardInterrupt:
        say("Stopped waiting; a job that was submitted continues.")
        return EXIT_INTERRUPTED


def _pull(arguments: argparse.Namespace) -> int:
    from hpo.remote.pull import pull
    from model.export_quality import network_table, quality_table

    manifest = pull(arguments.file, arguments.name, arguments.to, pick=arguments.pick)
    trial = manifest["origin"].get("trial")
    print(f"{quality_table(manifest['metrics'])}\n\n{network_table(manifest)}".rstrip())
    say(
        f"{arguments.to}: trial {trial} of {arguments.name}; every file has its digest, and the model gives the same "
        f"results as on the head.\n  hpo denoise {arguments.to} IMAGE... --to DIR\n  hpo evaluate {arguments.to}"
    )
    return EXIT_DONE


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
