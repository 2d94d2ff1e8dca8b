"""Between finalists and final training: each finalist's settings trained again with fresh seeds (`--replicates`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from hpo.policy import trial_attributes
from hpo.policy.race import Race
from hpo.policy.retry_policy import MAX_ATTEMPTS
from hpo.run.context import SearchContext
from hpo.store import file_names, search_results
from hpo.store.replicates import current_race, measured_replicates
from hpo.tune.trainable import Training
from hpo.views.comparison_text import dropped_line, replicate_line
from model.config import TrainConfig
from model.trainer import derive_seed
from model.training_report import EvalReport, failure_reason

_EXACT_IN_JSON = 2**53  # above, readers of JSON that know only doubles would show another seed


@dataclass(kw_only=True, slots=True)
class _Replicate:
    """A training that runs now."""

    number: int  # of the trial with its settings
    index: int  # of its seed
    config: TrainConfig
    process: Any  # a Training
    reports: list[EvalReport] = field(default_factory=list)
    outcome: str = ""  # while it is measured

    @property
    def name(self) -> str:
        return f"trial {self.number}, seed {self.index + 1}"


def replicate_seed(seed: int, index: int) -> int:
    """The seed of the replicates with an index, the same for all finalists; never that of the trials."""
    fresh = derive_seed(seed, index, "replicate") % _EXACT_IN_JSON
    return fresh if fresh != seed else fresh + 1


def train_replicates(context: SearchContext, numbers: Sequence[int]) -> None:
    """Train each finalist's settings with fresh seeds, several at a time, and measure each on all validation images.

    A finalist that the race has dropped is not trained any further (hpo.policy.race). Every measurement is on record at
    once; a training that was interrupted continues from its last epoch. The cost limit ends the replicates early.

    Args:
        numbers: of the finalists.
    """
    replicates = _Replicates(context, numbers)
    try:
        replicates.run()
    finally:
        replicates.close()
    _delete(context, context.record.folder / file_names.REPLICATES)


def _delete(context: SearchContext, folder: Path) -> None:
    """Delete checkpoints that nothing needs any more: their measurements and digests are on record."""
    shutil.rmtree(folder, ignore_errors=True)
    context.replicator.remove_folder(folder)


class _Replicates:
    """The trainings that run, by what they do now."""

    def __init__(self, context: SearchContext, numbers: Sequence[int]) -> None:
        self._context, self._record, self._numbers = context, context.record, list(numbers)
        self._running: dict[Any, _Replicate] = {}
        self._told = set(self._race().dropped)

    def run(self) -> None:
        """Train until the race is over, or the money is used up."""
        self._show()
        while not (race := self._race()).is_over:
            self._tell_dropped(race)
            self._stop_dropped(race)
            for number, index in self._waiting(race):
                if len(self._running) >= self._context.cluster.slots or not self._may_continue():
                    break
                self._start(number, index)
            if not self._running:
                self._context.say("The cost limit ends the replicates early; what they gave so far counts")
                return
            (ready,), _ = ray.wait(list(self._running), num_returns=1)
            self._continue(self._running.pop(ready), ray.get(ready))
            self._context.save_cost()
            self._show()
        self._tell_dropped(race)

    def close(self) -> None:
        """End what still runs: what was trained ahead of a race that is over."""
        while self._running:
            _, replicate = self._running.popitem()
            ray.kill(replicate.process)

    def _race(self) -> Race:
        finalists = search_results.measured_finalists(self._record)
        race = current_race(self._record, self._numbers, finalists)
        assert race is not None  # the search has replicates
        return race

    def _waiting(self, race: Race) -> Iterator[tuple[int, int]]:
        """The trainings to begin, in rounds of one seed: a later round may not be needed."""
        noted = measured_replicates(self._record)
        running = {(replicate.number, replicate.index) for replicate in self._running.values()}
        for index in range(self._record.search.replicates):
            for number in race.left:
                if str(index) not in noted.get(str(number), {}) and (number, index) not in running:
                    yield number, index

    def _may_continue(self) -> bool:
        return self._context.budget.allows_replicate_epoch()

    def _start(self, number: int, index: int) -> None:
        record, cluster = self._record, self._context.cluster
        train = TrainConfig.from_dict(record.trial(number).user_attrs[trial_attributes.CONFIG])
        config = replace(train, seed=replicate_seed(record.search.seed, index))
        folder = self._folder(number, index)
        setup = self._context.training_config(number, config.as_dict(), folder, cluster.cpus_per_trial)
        options = {"num_cpus": cluster.cpus_per_trial, "num_gpus": cluster.gpus_per_trial}
        options |= {"max_restarts": MAX_ATTEMPTS - 1, "max_task_retries": MAX_ATTEMPTS - 1}  # as the final training
        process = Training.options(**options).remote(setup, back_to_best=False)  # type: ignore[attr-defined]
        replicate = _Replicate(number=number, index=index, config=config, process=process)
        self._running[process.reports.remote(self._context.images_ref)] = replicate

    def _folder(self, number: int, index: int) -> Path:
        return self._record.folder / file_names.REPLICATES / f"{number:05}-{index}"

    def _continue(self, replicate: _Replicate, result: Any) -> None:
        """Take what a process has returned, and let it do the next thing."""
        if replicate.outcome:
            self._record_result(replicate, result)
            ray.kill(replicate.process)
            _delete(self._context, self._folder(replicate.number, replicate.index))
            return
        progress, images = self._context.progress, self._context.images_ref
        if isinstance(result, list):
            replicate.reports = [EvalReport.from_dict(report) for report in result]
        else:
            replicate.reports.append(EvalReport.from_dict(result))
            progress.show_replicate_epoch(replicate.name, replicate.reports[-1], replicate.config.epochs)
        reports, epochs = replicate.reports, replicate.config.epochs
        reason = failure_reason(reports, is_last=len(reports) == epochs)
        if reason or len(reports) == epochs:
            replicate.outcome = reason or "finished"
            call = replicate.process.noisy if reason else replicate.process.measured
            self._running[call.remote(images)] = replicate
        elif self._may_continue():
            self._running[replicate.process.report.remote(len(reports) + 1, images)] = replicate
        else:
            ray.kill(replicate.process)  # its checkpoint stays: a higher limit continues it

    def _record_result(self, replicate: _Replicate, metrics: dict[str, Any]) -> None:
        noted = {number: dict(of) for number, of in measured_replicates(self._record).items()}
        result = {
            "seed": replicate.config.seed,
            "outcome": replicate.outcome,
            "epochs": len(replicate.reports),
            **self._context.with_value(metrics),
        }
        noted.setdefault(str(replicate.number), {})[str(replicate.index)] = result
        self._record.set_metadata(file_names.REPLICATES, noted)
        self._context.replicator.flush()
        self._context.progress.print_line(replicate_line(replicate.name, result))

    def _stop_dropped(self, race: Race) -> None:
        for call, replicate in list(self._running.items()):
            if replicate.number in race.dropped:
                del self._running[call]
                ray.kill(replicate.process)

    def _tell_dropped(self, race: Race) -> None:
        for number in race.dropped.keys() - self._told:
            self._told.add(number)
            self._context.say(dropped_line(number, race, self._record.search.objective))

    def _show(self) -> None:
        """Show how many are done, how many may follow, and what runs now."""
        race, epochs = self._race(), self._record.search.epochs
        waiting = sum(1 for _ in self._waiting(race))
        running = list(self._running.values())
        done = sum(len(of) for number, of in measured_replicates(self._record).items() if int(number) in self._numbers)
        left = waiting * epochs + sum(epochs - len(replicate.reports) for replicate in running)
        now = [f"{replicate.name}: epoch {len(replicate.reports)}/{epochs}" for replicate in running]
        self._context.progress.show_replicates(done, done + waiting + len(running), now, left)
