"""Runs a search: check, acquire, trials, finalists, final training, export, report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.tune import TuneError

from hpo.cluster.trial_slots import Cluster
from hpo.exit_codes import EXIT_DONE, EXIT_MACHINE, EXIT_NOTHING_VALID, EXIT_RESUMABLE
from hpo.policy.retry_policy import FailureAction, classify_failure
from hpo.policy.search_config import SearchConfig
from hpo.run import export
from hpo.run.context import SearchContext, create_tracker, open_budget
from hpo.run.final_report import print_result, show_finished, write_html_report
from hpo.run.final_training import train_final
from hpo.run.finalists import measure_finalists
from hpo.run.front import export_front
from hpo.run.on_finish import run_on_finish
from hpo.run.plan import describe_plan
from hpo.run.preflight import SearchRequest, check_request, load_inputs
from hpo.run.process_control import delete_search
from hpo.run.replicates import train_replicates
from hpo.run.shutdown import HEAD_GONE, ShutdownHandler, StopReason
from hpo.run.trials import run_trials
from hpo.store import file_names, search_results
from hpo.store.object_storage import StorageError
from hpo.store.record import Record
from hpo.store.study_database import StudyAwayError
from hpo.store.study_replication import StorageReplicator, acquire
from hpo.tune import ray_session
from hpo.views.progress import Progress
from hpo.views.terminal import Terminal
from model.common.errors import ConfigError, ErrorCollector, MachineError
from model.common.files import describe_os_error
from model.data.image_sets import Images
from model.data.memory_mapped import PixelFiles
from search_spaces import Space

if TYPE_CHECKING:
    from hpo.tracking.wandb_tracker import Tracker

NOTHING_VALID = "No trial produced a valid result"


def run_search(
    name: str,
    runs: Path,
    options: Mapping[str, Any],
    *,
    address: str | None = None,
    errors: ErrorCollector | None = None,
    quiet: bool = False,
) -> int:
    """Begin a search, or continue it; return the exit code.

    Args:
        options: Fields of SearchConfig that differ from the defaults or from search.json.
        address: Address of its storage, if it has one.
        errors: Those of the command line.
        quiet: Print only the result.

    Raises:
        ConfigError: The request has errors; nothing was started, and nothing is left of a new search.
        MachineError, OSError: The environment failed.
    """
    request = check_request(name, runs, options, address, errors or ErrorCollector())
    return SearchRun(request, Terminal(stderr=True, quiet=quiet)).run()


class SearchRun:
    """One run of a search by one driver."""

    replicator: StorageReplicator  # these four are known once the search is acquired
    record: Record
    space: Space
    images: Images

    def __init__(self, request: SearchRequest, console: Terminal) -> None:
        self.request, self.console = request, console
        storage = request.storage.address if request.storage else None
        self.shutdown = ShutdownHandler(request.name, request.runs, storage)
        self._is_new = False  # this driver created the search, so that it may delete it
        self._is_searching = False  # from here on signals end it cleanly, and --on-finish runs at its end

    def run(self) -> int:
        """Run all phases.

        | exception                                        | exit code                                              |
        |--------------------------------------------------|--------------------------------------------------------|
        | KeyboardInterrupt, after a signal                | 130, 143, or 75 if another thread requested it         |
        | RayHalfStartedError                              | 130 or 143, without an orderly end of Python           |
        | HeadGoneError, StorageError, StudyAwayError      | 75: the same command continues the search              |
        | RayError, TuneError, MachineError, OSError       | 4, after --on-finish; 75 if a StorageError caused it   |
        | ConfigError                                      | 2; a new search without trials is deleted              |

        `hpo.cli` returns the codes 2 and 4 for the exceptions that pass through here.
        """
        with ExitStack() as resources:
            try:
                code = self.run_phases(resources)
            except ray_session.RayHalfStartedError:
                self.shutdown.exit_now()
            except KeyboardInterrupt:
                if not self._is_searching:
                    raise
                return self.shutdown.finish()
            except ray_session.HeadGoneError:
                return self.shutdown.finish(HEAD_GONE)
            except (StorageError, StudyAwayError) as error:
                return self.shutdown.finish(_unavailable(error))
            except (RayError, TuneError) as error:
                if isinstance(getattr(error, "cause", None), StorageError):
                    return self.shutdown.finish(_unavailable(error))
                failure = _machine_error(error)
                self._run_on_finish(EXIT_MACHINE, str(failure))
                raise failure from error
            except (MachineError, OSError) as error:
                reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
                self._run_on_finish(EXIT_MACHINE, reason)
                raise
            except ConfigError:  # for example of a cluster that has no room for a trial
                resources.close()
                if self._is_new and not Record(self.request.runs, self.request.name).trials():
                    delete_search(self.request.runs, self.request.name, self.request.storage)
                raise
            self._run_on_finish(code, "exported" if code == EXIT_DONE else NOTHING_VALID)
            return code

    def run_phases(self, resources: ExitStack) -> int:
        """Acquire the search, run it unless it is finished, and write the report; return the exit code."""
        self._begin_or_continue(resources)
        if search_results.is_exported(self.record):
            show_finished(self.record, self.console)
            return EXIT_DONE
        self._is_searching = True
        for line in self.images.messages:
            self._say(f"{self.record.search.data}: {line}")
        with self.shutdown.on_signals(), ExitStack() as services:
            if tracker := create_tracker(self.record, self.console):
                services.callback(tracker.close)
            code = self.search(tracker)
            write_html_report(self.replicator, self.console)
        return code

    def search(self, tracker: Tracker | None) -> int:
        """Run the phases that need Ray, and export the winner; return the exit code."""
        record = self.record
        with ExitStack() as display:  # the live table stays until the export is written
            manifest = None
            with ray_session.RaySession(record.search, partial(self.shutdown.request, HEAD_GONE)) as cluster:
                self._say(describe_plan(record, cluster))
                context = self._create_context(cluster, tracker, display)
                run_trials(context, self.space)
                if search_results.winner(record) is None:
                    print(f"{NOTHING_VALID}: there is nothing to export.", file=sys.stderr)
                    return EXIT_NOTHING_VALID
                with closing(context.on_demand_fallback()) as fallback:
                    cluster.monitor.subscribe(lambda _: fallback.update_for_task())
                    measure_finalists(context)
                    if record.search.replicates:
                        train_replicates(context, search_results.ranked_finalists(record))
                    if record.search.final_epochs:
                        train_final(context)
                    if record.search.is_multi_objective:
                        manifest = export_front(context, self.images)
            if manifest is None:
                context.progress.show_export()
                manifest = export.export_winner(record, self.images, is_over=True, is_driver=True)
            self.replicator.upload(record.folder / file_names.EXPORT)
        print_result(context, manifest["metrics"]["test"])
        if tracker:
            tracker.export()
        return EXIT_DONE

    # --- before the phases ------------------------------------------------------------------------------------------

    def _begin_or_continue(self, resources: ExitStack) -> None:
        """Load the images and the search space, and acquire the search: its lock, its lease, its newest record."""
        request = self.request
        # Beside the search's folder, which is created only after the images were checked.
        pixel_files = resources.enter_context(PixelFiles(request.runs, request.name))
        if request.exists:
            self._acquire(resources)
            search = replace(self.record.search, **request.options)
            self.space, self.images = load_inputs(search, pixel_files)
            search_results.check_images(self.record, self.images, search.data)
            self.record.update_config(request.options)
        else:
            search = SearchConfig(**request.options)
            self.space, self.images = load_inputs(search, pixel_files)
            # The black and white points as numbers: a later change of the default must not affect this search.
            explicit = replace(search, range=self.images.pixel_format.explicit.range)
            Record.create(request.runs, request.name, explicit)
            self._acquire(resources)
            self._is_new = True
        pixel_files.delete_leftovers()
        self.record.set_metadata(file_names.IMAGES, self.images.digest)
        self.replicator.start()
        resources.callback(self.replicator.stop)

    def _acquire(self, resources: ExitStack) -> None:
        def request_stop(error: StorageError) -> None:  # called from the threads of the lease and of the replication
            self.shutdown.request(_unavailable(error))

        runs, name, storage = self.request.runs, self.request.name, self.request.storage
        self.replicator = resources.enter_context(acquire(runs, name, storage, request_stop))
        self.record = self.replicator.record

    def _create_context(self, cluster: Cluster, tracker: Tracker | None, display: ExitStack) -> SearchContext:
        """Put the images into Ray's object store, open the live table and start to count the cost."""
        record, budget = self.record, open_budget(self.record, cluster)
        search, name, slots = record.search, record.name, cluster.slots
        progress = Progress(search, name, slots, self.console, folder=record.folder, budget=budget)
        display.callback(progress.close)
        context = SearchContext(
            record=record,
            replicator=self.replicator,
            images_ref=ray.put(self.images),
            cluster=cluster,
            console=self.console,
            progress=progress,
            budget=budget,
            tracker=tracker,
        )
        display.callback(context.save_cost)
        return context

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)

    def _run_on_finish(self, code: int, reason: str) -> None:
        """Run --on-finish for a search that has ended by itself; one that was stopped can be continued."""
        if self._is_searching:
            run_on_finish(self.record, code, reason)


def _unavailable(error: Exception) -> StopReason:
    """Return the reason to stop: the storage or the database is unreachable, or another driver runs the search."""
    from_ray = getattr(error, "cause", None)  # raised in the process of the final training
    return StopReason(classify_failure(error).error if from_ray else str(error), EXIT_RESUMABLE)


def _machine_error(error: Exception) -> MachineError:
    """Return an error of Ray in one sentence."""
    failure = classify_failure(error)
    prefix = "" if failure.action is FailureAction.ABORT_SEARCH else "Ray failed: "
    return MachineError(f"{prefix}{failure.error}")
