"""What a search prints and writes once it is done."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from rich.console import Console

from hpo.cluster.budget import BudgetAction
from hpo.run.context import SearchContext, create_tracker
from hpo.store import file_names, search_results
from hpo.store.record import Record
from hpo.store.study_replication import StorageReplicator
from hpo.views.front_text import front_text
from hpo.views.html_report import write_report
from hpo.views.live_table import cost
from model.common.files import describe_os_error
from model.export_quality import compare_with_slides, quality_table


def print_result(context: SearchContext, test: dict[str, Any]) -> None:
    """Print the quality of the exported model on the test images, where it is, and what the search has cost."""
    record, console, is_front = context.record, context.console, context.record.search.is_multi_objective
    print(quality_table({"test": test}))
    if record.search.data_config().is_slides:
        print(f"\n{compare_with_slides(test)}")
    best = f" trial {search_results.winner(record)}, the best in {record.search.objective}," if is_front else ""
    console.print(f"Exported{best} to {record.folder / file_names.EXPORT}", soft_wrap=True, highlight=False)
    if members := search_results.front_members(record):
        print(f"\n{front_text(record, members)}")
    if (usd := context.budget.usd) is None:
        return
    console.print(f"Cost: {cost(usd, record.search)}, counted while this search was running", highlight=False)
    if context.budget.cost_action() is not BudgetAction.CONTINUE and not search_results.is_over(record):
        console.print("Stopped at the cost limit. Re-run with a higher --max-cost to run the remaining trials.")


def write_html_report(replicator: StorageReplicator, console: Console) -> None:
    """Write the report page. The search is done, whatever happens here."""
    record = replicator.record
    try:
        path = write_report(record)
        replicator.upload(path)
        message = f"Report: {path}"
    except Exception as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else error
        message = f"No report: {reason}. `hpo report {record.name}` tries again"
    console.print(message, highlight=False, soft_wrap=True)


def show_finished(record: Record, console: Console) -> None:
    """Say where the export is, and log what a driver that was killed at the end has not logged."""
    record.fetch(record.folder / file_names.EXPORT)
    if record.search.tensorboard:
        from hpo.tracking.tensorboard import draw_finished  # noqa: PLC0415 - an optional service

        draw_finished(record)
    if tracker := create_tracker(record, console):
        with closing(tracker):
            tracker.export()
    export = record.folder / file_names.EXPORT
    front = f", its front in {record.folder / file_names.FRONT}" if record.search.is_multi_objective else ""
    message = f"{record.name} is finished; its winner is in {export}{front}. To run more trials: --trials N"
    console.print(message, soft_wrap=True)
