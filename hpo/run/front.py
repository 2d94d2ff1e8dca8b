"""The end of a search with several objectives: the export of its front, measured side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from hpo.policy.front_members import FrontMember, choose_members, undominated
from hpo.policy.leaderboard import best_report
from hpo.policy.objectives import describe
from hpo.policy.pareto import dominates
from hpo.policy.trial_objectives import point_of
from hpo.run.context import SearchContext
from hpo.run.export import export_winner
from hpo.store import search_results
from hpo.store.file_names import EXPORT, FRONT, FRONT_FILE
from hpo.store.record import Record
from hpo.tune.trainable import measure_exports
from model.checkpoint import CheckpointError
from model.common.errors import MachineError
from model.common.files import write_atomically
from model.data.image_sets import Images
from model.denoise import DenoiseError, read_manifest, verify_files
from model.export import copy_export, update_manifest
from model.training_files import BEST

Manifest = Mapping[str, Any]
_METRICS = ("ssim", "psnr_db", "l1", "haarpsi")


def export_front(context: SearchContext, images: Images) -> Manifest:
    """Export the members of the front, and the best in the first trained objective as the search's own export; return
    that one's manifest.

    A driver that was killed meanwhile has left whole folders only, which this one uses.

    Raises:
        MachineError: No member has an intact checkpoint.
        ExportError, OSError: An export failed.
    """
    record, search = context.record, context.record.search
    exported = _export_members(context, images)
    latencies = _measure(context, exported)
    members = [_member(record, number, latencies[number]) for number in exported]
    kept = undominated({member.trial: member.values for member in members}, search)
    for line in _lines_on_dropped(members, kept, search.objectives, context):
        context.say(line)
    members = sorted((member for member in members if member.trial in kept), key=lambda m: kept.index(m.trial))
    _publish(context, members)
    winner = search_results.winner(record)
    if winner in kept:
        copy_export(member_folder(record, winner), record.folder / EXPORT)
        return read_manifest(record.folder / EXPORT)
    return export_winner(record, images, is_over=True, is_driver=True)


def member_folder(record: Record, number: int) -> Path:
    """The folder with a member's export."""
    return record.folder / FRONT / f"{number:05}"


def _export_members(context: SearchContext, images: Images) -> list[int]:
    """Export the chosen members; one whose checkpoint is damaged or gone makes room for another. Returns them."""
    record = context.record
    values = _without_useless(context, search_results.measured_values(record))
    done: set[int] = set()
    while True:
        chosen = choose_members(values, record.search)
        rest = [number for number in chosen if number not in done]
        if not rest:
            break
        number = rest[0]
        try:
            if not _is_exported(record, number):
                context.progress.show_export(number, len(chosen) - len(rest), len(chosen))
                _export_member(record, images, number)
            done.add(number)
        except CheckpointError as error:
            del values[number]
            context.say(f"Trial {number} is left out of the front: {error.__cause__ or error}")
    if not chosen:
        raise MachineError(f"{record.name}: no checkpoint of its front is intact; run more --trials")
    return chosen


def _without_useless(context: SearchContext, values: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    """The trials whose network makes images better, if there is one: nobody deploys one that makes them worse."""
    worse = [number for number in values if _makes_worse(context.record, number)]
    if not worse or len(worse) == len(values):
        return values
    numbers = f"trial{'s' * (len(worse) > 1)} {', '.join(map(str, worse))}"
    context.say(f"Left out of the front, because their images are worse than the noisy ones: {numbers}")
    return {number: value for number, value in values.items() if number not in worse}


def _makes_worse(record: Record, number: int) -> bool:
    best = best_report(record.trial(number), record.search.objective)
    return best is None or best.is_dead


def _is_exported(record: Record, number: int) -> bool:
    """Whether an earlier driver has left a whole export of the member; a damaged one is deleted."""
    folder = member_folder(record, number)
    try:
        return search_results.is_current(record, folder, number) and bool(verify_files(folder))
    except DenoiseError:
        shutil.rmtree(folder, ignore_errors=True)
        return False


def _export_member(record: Record, images: Images, number: int) -> None:
    folder, checkpoint = member_folder(record, number), record.trial_folder(number) / BEST
    if not record.has_file(checkpoint):
        raise CheckpointError(f"{checkpoint}: is missing")
    export_winner(record, images, is_over=True, is_driver=True, trial=number, destination=folder)


def _measure(context: SearchContext, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Measure the latency of all exported files in turns on one node that does nothing else, and write it into their
    manifests."""
    record, search = context.record, context.record.search
    manifests = {number: read_manifest(member_folder(record, number)) for number in numbers}
    files = [(member_folder(record, n) / manifest["model"]["file"]).read_bytes() for n, manifest in manifests.items()]
    size = search.latency_size or manifests[numbers[0]]["model"]["image_size"]
    context.progress.print_line(f"Measuring the latency of the {len(numbers)} exported files in turns")
    task = measure_exports.options(**context.cluster.exclusive_node_options)
    measured = ray.get(task.remote(files, size, search.latency_threads))
    for number, latency in zip(numbers, measured, strict=True):
        update_manifest(member_folder(record, number), latency=latency)
    return dict(zip(numbers, measured, strict=True))


def _member(record: Record, number: int, latency: dict[str, Any]) -> FrontMember:
    """A member with its final figures."""
    folder = member_folder(record, number)
    manifest = read_manifest(folder)
    file = folder / manifest["model"]["file"]
    final = {
        "latency": latency["median_ms"],
        "params": manifest["model"]["parameters"],
        "size_mb": file.stat().st_size / 1e6,
    }
    values = search_results.measured_values(record)[number]
    measured = search_results.measured_finalists(record)[str(number)]
    test = manifest["metrics"]["test"]["denoised"]
    return FrontMember(
        trial=number,
        values={name: final.get(name, value) for name, value in values.items()},
        metrics={name: measured[name] for name in _METRICS if name in measured},
        test={name: test[name] for name in _METRICS if name in test},
        parameters=final["params"],
        size_mb=final["size_mb"],
        latency=latency,
        folder=folder.relative_to(record.folder).as_posix(),
    )


def _lines_on_dropped(
    members: Sequence[FrontMember], kept: Sequence[int], objectives: Sequence[str], context: SearchContext
) -> list[str]:
    """A line for each member that the final figures show to be dominated, or to violate a limit."""
    search, lines = context.record.search, []

    def figures(member: FrontMember) -> str:
        return ", ".join(describe(name, member.values[name]) for name in objectives)

    for member in members:
        point = point_of(member.values, search)
        better = next((other for other in members if dominates(point_of(other.values, search), point)), None)
        if member.trial not in kept and better:
            lines.append(
                f"Trial {member.trial} leaves the front: measured side by side, trial {better.trial} is nowhere worse "
                f"({figures(better)}; trial {member.trial}: {figures(member)})"
            )
        lines += [
            f"Trial {member.trial} has {describe(limit.name, value)} now, which is beyond the limit {limit}"
            for limit in search.limits()
            if member.trial in kept and (value := member.values.get(limit.name)) is not None and limit.excess(value) > 0
        ]
    return lines


def _publish(context: SearchContext, members: Sequence[FrontMember]) -> None:
    """Write what is known of the members, and remove the exports of trials that are no longer members. The note in the
    study is last: with it the front is whole."""
    record, folder, storage = context.record, context.record.folder / FRONT, context.record.storage
    note = {**search_results.extent(record), "members": [member.as_dict() for member in members]}
    about = {"search": record.name, "search_id": record.id, "objectives": list(record.search.objectives)}
    write_atomically(folder / FRONT_FILE, json.dumps({**about, **note}, indent=2).encode())
    names = {str(member.folder) for member in members}
    for path in folder.iterdir():
        if path.is_dir() and f"{FRONT}/{path.name}" not in names:
            shutil.rmtree(path, ignore_errors=True)
    for name in sorted(names):
        context.replicator.upload(record.folder / name)
    context.replicator.upload(folder / FRONT_FILE)
    for name in storage.names(f"{FRONT}/") if storage else ():
        if not (record.folder / name).exists():
            context.replicator.remove(record.folder / name)
    record.set_metadata(FRONT, note)
    context.replicator.flush()
