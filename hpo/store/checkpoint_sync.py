"""Where a training's files are: in the search's folder, which all nodes share, or on its node and in the storage."""

from __future__ import annotations

import platform
import secrets
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hpo.store.lease import generation_of, is_claim
from hpo.store.object_storage import Storage, StorageError
from model.checkpoint import CheckpointError, load_checkpoint
from model.common.errors import ConfigError, NotSharedError
from model.config import TrainConfig
from model.run_layout import BEST, LAST, LEARNING_RATES, strip_name

_GRACE_SECONDS = 10.0  # for a folder that is just being mounted
FENCING_TOKEN = "owner"  # file in the storage: generation and token of the attempt that may write beside it


class CheckpointSync:
    """Made of a trial's config, in its process. `folder` is where it works."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.folder = Path(config["folder"])
        self._needs = config["needs"]  # a file that the driver has written
        self._storage: Storage | None = None
        self._owner = ""
        where = config["storage"]
        if where:
            self._search = Storage(where["address"], timeout_seconds=where["timeout_seconds"]).subdirectory(
                where["search"]
            )
            self._storage = self._search.subdirectory(where["folder"])
            self._owner = f"{where['generation']:06}-{secrets.token_hex(4)}"

    def restore(self, config: TrainConfig, *, back_to_best: bool = False) -> None:
        """Bring the last whole checkpoint of an earlier attempt, on whatever node; from here on no other attempt may
        write. One of another configuration was of a suggestion that got lost with its driver. back_to_best: the best
        one may have other learning rates (model.training_run). Raises NotSharedError, StorageError, OSError."""
        self._check_shared()
        if self._storage is None:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        other = self._owner_now()
        if other and generation_of(other) > generation_of(self._owner):
            raise StorageError(f"{self._storage}: another driver has taken this search over")
        self._storage.put(FENCING_TOKEN, self._owner.encode())
        for name in (LAST, BEST):
            self._storage.fetch(name, self.folder / name)
            if was_trained_with(self.folder / name, config, LEARNING_RATES if back_to_best and name == BEST else ()):
                return
            (self.folder / name).unlink(missing_ok=True)

    def download(self, name: str) -> Path:
        """A file of the training, to be read here. Raises as above."""
        self._check_shared()
        if self._storage:
            self._storage.fetch(name, self.folder / name)
        return self.folder / name

    def upload_epoch(self, epoch: int) -> None:
        """What was written in an epoch. Raises StorageError, also where another attempt has taken the training up."""
        if self._storage is None:
            return
        own = self._storage.subdirectory("", self._check_owner)
        own.put(LAST, self.folder / LAST)
        self.promote_best()
        own.put(strip_name(epoch), self.folder / strip_name(epoch))

    def promote_best(self) -> None:
        """The last checkpoint, where it is the best one. Raises as above."""
        last, best = self.folder / LAST, self.folder / BEST
        if self._storage and best.exists() and last.exists() and best.samefile(last):
            self._storage.subdirectory("", self._check_owner).copy(LAST, BEST)

    def clean_up(self) -> None:
        """Nothing stays on this node."""
        if self._storage:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _check_shared(self) -> None:
        needs, end = Path(self._needs), time.monotonic() + _GRACE_SECONDS
        while not (self._search.exists(needs.name) if self._storage else needs.exists()):
            if time.monotonic() > end:
                what = self._search if self._storage else needs.parent
                raise NotSharedError(f"{what} is not there on node {platform.node()}: --storage names what all see")
            time.sleep(_GRACE_SECONDS / 10)
        if self._storage:
            self._search.require_folder()
            self._storage.require_folder()

    def _owner_now(self) -> str:
        assert self._storage is not None
        try:
            owner = self._storage.get(FENCING_TOKEN).decode(errors="replace")
        except FileNotFoundError:
            return ""
        return owner if is_claim(owner) else ""  # one that is damaged is nobody's

    def _check_owner(self) -> None:
        if self._owner_now() != self._owner:
            raise StorageError(f"{self._storage}: another attempt has taken this training up")


def was_trained_with(checkpoint: Path, config: TrainConfig, may_differ: Collection[str] = ()) -> bool:
    """Whether there is a whole checkpoint, of that configuration; but for settings that may differ."""
    try:
        _, state = load_checkpoint(checkpoint)
        was, now = TrainConfig.from_dict(state.get("config", {})).as_dict(), config.as_dict()
        return all(was[name] == now[name] for name in now if name not in may_differ)
    except (CheckpointError, ConfigError):
        return False
