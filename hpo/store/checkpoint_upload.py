"""A training's files: in the search's folder, which all nodes share, or on the training's node and in the storage."""

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
from model.common.errors import ConfigError, NotSharedError
from model.config import TrainConfig
from model.training_files import BEST, LAST, LEARNING_RATES, strip_name

_GRACE_SECONDS = 10.0  # for a folder that is just being mounted
FENCING_TOKEN = "owner"  # file in the storage: generation and random name of the attempt that may write beside it


class CheckpointSync:
    """Downloads a training's checkpoints into its worker, and uploads what the worker writes.

    Each attempt at a training has a fencing token, of which the newest is in the storage: an earlier attempt on a node
    that was cut off writes nothing any more. Without a storage the driver and the workers share `folder`, and only this
    is checked.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """config: the worker's; `folder` to work in, `needs`, and StorageReplicator.worker_config as `storage`."""
        self.folder = Path(config["folder"])
        self._driver_file = Path(config["needs"])  # the driver wrote it before any worker started
        self._storage: Storage | None = None
        self._token = ""
        if remote := config["storage"]:
            whole = Storage(remote["address"], timeout_seconds=remote["timeout_seconds"])
            self._search = whole.subdirectory(remote["search"])
            self._storage = self._search.subdirectory(remote["folder"])
            self._token = f"{remote['generation']:06}-{secrets.token_hex(4)}"

    def restore(self, config: TrainConfig, *, back_to_best: bool = False) -> None:
        """Download the last intact checkpoint of an earlier attempt, and keep all other attempts from writing. Raises
        NotSharedError, StorageError, OSError.

        Args:
            config: the training's. A checkpoint of another one is deleted: its suggestion was lost with the driver.
            back_to_best: the best checkpoint may have other learning rates (model.training_run).
        """
        self._check_shared()
        if self._storage is None:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        newest = self._newest_token()
        if newest and generation_of(newest) > generation_of(self._token):
            raise StorageError(f"{self._storage}: another driver has taken this search over")
        self._storage.put(FENCING_TOKEN, self._token.encode())
        for name in (LAST, BEST):
            self._storage.fetch(name, self.folder / name)
            if was_trained_with(self.folder / name, config, LEARNING_RATES if back_to_best and name == BEST else ()):
                return
            (self.folder / name).unlink(missing_ok=True)

    def download(self, name: str) -> Path:
        """The local path of a file of the training, to be read. Raises NotSharedError, StorageError, OSError."""
        self._check_shared()
        if self._storage:
            self._storage.fetch(name, self.folder / name)
        return self.folder / name

    def upload_epoch(self, epoch: int) -> None:
        """Upload what an epoch wrote. Raises StorageError, also if another attempt has taken this training up."""
        if self._storage:
            guarded = self._guarded
            guarded.put(LAST, self.folder / LAST)
            self.promote_best()
            guarded.put(strip_name(epoch), self.folder / strip_name(epoch))

    def promote_best(self) -> None:
        """Copy the last checkpoint to the best one, if it is the best. Raises StorageError, as `upload_epoch` does."""
        last, best = self.folder / LAST, self.folder / BEST
        if self._storage and best.exists() and last.exists() and best.samefile(last):
            self._guarded.copy(LAST, BEST)

    def clean_up(self) -> None:
        """Delete the training's files from this node, if the storage has them."""
        if self._storage:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _check_shared(self) -> None:
        end = time.monotonic() + _GRACE_SECONDS
        name = self._driver_file.name
        while not (self._search.exists(name) if self._storage else self._driver_file.exists()):
            if time.monotonic() > end:
                place = self._search if self._storage else self._driver_file.parent
                raise NotSharedError(f"{place} is not visible from node {platform.node()}; use a shared --storage")
            time.sleep(_GRACE_SECONDS / 10)
        if self._storage:
            self._search.require_folder()
            self._storage.require_folder()

    @property
    def _guarded(self) -> Storage:
        assert self._storage is not None
        return self._storage.subdirectory("", self._check_token)

    def _newest_token(self) -> str:
        assert self._storage is not None
        try:
            token = self._storage.get(FENCING_TOKEN).decode(errors="replace")
        except FileNotFoundError:
            return ""
        return token if is_claim(token) else ""  # a damaged one belongs to nobody

    def _check_token(self) -> None:
        if self._newest_token() != self._token:
            raise StorageError(f"{self._storage}: another attempt has taken this training up")


def was_trained_with(checkpoint: Path, config: TrainConfig, may_differ: Collection[str] = ()) -> bool:
    """Whether there is an intact checkpoint with this configuration. may_differ: settings that are not compared."""
    from model.checkpoint import CheckpointError, load_checkpoint  # noqa: PLC0415 - torch

    try:
        _, state = load_checkpoint(checkpoint)
        trained = TrainConfig.from_dict(state.get("config", {})).as_dict()
    except (CheckpointError, ConfigError):
        return False
    return all(trained[name] == value for name, value in config.as_dict().items() if name not in may_differ)
