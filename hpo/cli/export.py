"""`hpo export`, and the latency of what it has written."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from hpo.cli.messages import say
from hpo.cli.search_options import absolute_data
from hpo.exit_codes import EXIT_DONE
from hpo.policy.pick import Pick
from hpo.run.export import default_folder, export_winner, network_options
from hpo.run.front_pick import copy_member, pick_member
from hpo.store import search_results
from hpo.store.record import Record
from model.common.errors import ConfigError
from model.common.text import sanitize_for_terminal
from model.data.memory_mapped import PixelFiles
from model.denoise import Denoiser
from model.export import check_target
from model.export_quality import network_table, quality_table
from model.latency import Latency, check_measuring, measure_latency
from model.quantization import NetworkOptions


def export(arguments: argparse.Namespace, record: Record, asked: NetworkOptions) -> int:
    """Run `hpo export`, and return its exit code."""
    check_target(to := arguments.to or default_folder(record, asked.precision))
    if arguments.pick is not None and _copy_picked(arguments, record):
        return EXIT_DONE
    data = record.search.data_config()
    if arguments.data is not None:
        data = replace(data, data=absolute_data(arguments.data))
    with PixelFiles(arguments.runs, arguments.name) as store:
        images = data.load(store)
        search_results.check_images(record, images, data.data)
    manifest = export_winner(
        record,
        images,
        is_over=search_results.is_over(record),
        data=data,
        trial=arguments.trial,
        destination=to,
        trainable=arguments.trainable,
        network=network_options(record, asked.precision, asked.max_loss_db),
    )
    print(f"{quality_table(manifest['metrics'])}\n\n{network_table(manifest)}")
    if manifest["metrics"]["test"] is None:
        say("The search has not ended, so it was not measured on the test images.")
    say(f"Exported to {to}")
    return EXIT_DONE


def _copy_picked(arguments: argparse.Namespace, record: Record) -> bool:
    """Copy the member of the front that --pick chooses and return True, or make it the trial to export."""
    member = pick_member(record, Pick.parse(arguments.pick))
    if member is None:  # the search has one objective, and so one winner
        return False
    say(f"{arguments.pick}: trial {member.trial}")
    arguments.trial = member.trial
    is_as_exported = arguments.data is None and not arguments.trainable and arguments.precision == "fp32"
    manifest = copy_member(record, member, arguments.to) if is_as_exported else None
    if manifest is None:
        return False
    print(f"{quality_table(manifest['metrics'])}\n\n{network_table(manifest)}".rstrip())
    say(f"Copied to {arguments.to}")
    return True


def evaluate_latency(arguments: argparse.Namespace) -> int:
    """Measure an exported network on this machine, and print it beside the latency that its export recorded."""
    if arguments.data is not None:
        raise ConfigError("--data: --latency needs no images")
    denoiser = Denoiser(arguments.model)
    model, recorded = denoiser.manifest["model"], denoiser.manifest.get("latency")
    known = Latency.from_dict(recorded) if recorded else None
    size = arguments.size if arguments.size is not None else known.size if known else denoiser.image_size
    threads = arguments.threads if arguments.threads is not None else known.threads if known else 1
    check_measuring(size, threads, model.get("size_multiple", 1))
    measured = measure_latency(denoiser.folder / model["file"], size=size, threads=threads)
    if arguments.json:
        print(json.dumps({"latency": {"recorded": recorded, "measured": measured.as_dict()}}, indent=2))
        return EXIT_DONE
    print(sanitize_for_terminal(f"recorded  {known or 'not measured by the version that exported it'}"))
    print(sanitize_for_terminal(f"here      {measured}"))
    return EXIT_DONE
