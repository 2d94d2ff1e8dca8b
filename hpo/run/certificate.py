"""What an export can prove about its choice: seeds, intervals, digests, and how often the test images were read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hpo.run.replicates import replicate_seed
from hpo.store import search_results
from hpo.store.file_names import EXPORT, FINALISTS, REPLICATES, TEST_READS
from hpo.store.record import Record
from hpo.store.replicates import measured_replicates
from hpo.views.comparison_text import comparison_lines
from model.data.image_sets import Images
from model.denoise import MANIFEST, DenoiseError, read_manifest


def note_test_read(record: Record, trial: int) -> None:
    """Count that this driver is about to measure an export on the test images; a read that is interrupted counts."""
    reads = record.metadata().get(TEST_READS, [])
    read = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "trial": trial, **search_results.extent(record)}
    record.set_metadata(TEST_READS, [*reads, read])


def certificate(
    record: Record, images: Images, exported: dict[str, Any], *, test_images: int | None, reads_before: int | None
) -> dict[str, Any]:
    """The part of a manifest about the choice, JSON-ready.

    Args:
        exported: whose checkpoint it is: `trial`, `final_training`.
        test_images: how many test images this export was measured on; None: on none.
        reads_before: how often drivers of this search had measured an export on them before; None: not known.
    """
    search, compared = record.search, search_results.comparison(record)
    digests = {number: {"trial": of.get("sha256")} for number, of in compared[FINALISTS].items()}
    for number, of in measured_replicates(record).items():
        if number in digests:
            digests[number] |= {str(one["seed"]): one.get("sha256") for one in of.values()}
    lines = [] if search.is_multi_objective else comparison_lines(compared)
    return {
        "exported": exported,
        "objective": search.objective,
        "validation_images": {"count": len(images.validation), "digest": images.digest, "noise": search.noise},
        "seeds": {"search": search.seed, REPLICATES: _seeds(record)},
        "checkpoints_sha256": digests,
        FINALISTS: compared[FINALISTS],
        REPLICATES: compared[REPLICATES],
        "final_training": search_results.final_result(record),
        "test_images": {"count": test_images, "reads_before": reads_before},
        "statement": [*lines, _about_test_images(test_images, reads_before)],
    }


def _seeds(record: Record) -> list[int]:
    return [replicate_seed(record.search.seed, index) for index in range(record.search.replicates)]


def reads_before(record: Record) -> int | None:
    """How often drivers have measured an export of this search on the test images; None: an export is from a version
    that did not count."""
    reads = record.metadata().get(TEST_READS)
    if reads is not None:
        return len(reads)
    try:
        manifest = read_manifest(record.fetch(record.folder / EXPORT / MANIFEST).parent)
    except DenoiseError:
        return 0
    return None if manifest["metrics"]["test"] else 0


def _about_test_images(count: int | None, before: int | None) -> str:
    if count is None:
        return "The test images were not read: the search has not ended."
    choice = "Nothing that chose this network read the test images."
    if before == 0:
        return f"{choice} `hpo search` read the {count:,} of them for the first time to measure this export."
    if before is None:
        return f"{choice} How often exports of this search were measured on the {count:,} before was not counted."
    times = "once" if before == 1 else f"{before} times"
    return (
        f"{choice} `hpo search` had read the {count:,} of them {times} before this export, each time to measure an "
        "export; `hpo export` and `hpo evaluate` are not counted."
    )
