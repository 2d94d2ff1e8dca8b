"""Storages for tests, which can go away and come back: a folder, and S3 from a stand-in server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3_server

from hpo.store import lease
from hpo.store.object_storage import Storage

KINDS = ["folder", "s3"]
EXPIRING = "s3, its keys expire"


@dataclass
class Place:
    """A storage. address: the value of --storage."""

    address: str
    root: Path  # where its files are, on this disk
    server: s3_server.StandIn | None = None
    expires: bool = False

    def goes_away(self) -> None:
        """The folder disappears, or S3 closes every connection or refuses the keys."""
        if self.server:
            self.server.is_away, self.server.has_expired = not self.expires, self.expires
        else:
            self.root.rename(self.root.with_name("unmounted"))

    def comes_back(self) -> None:
        """It is back with all its files."""
        if self.server:
            self.server.is_away = self.server.has_expired = False
        else:
            self.root.with_name("unmounted").rename(self.root)


@contextmanager
def place(kind: str, folder: Path) -> Iterator[Place]:
    """A new storage. folder: for its files."""
    if kind == "folder":
        (folder / "mounted").mkdir()
        yield Place(str(folder / "mounted"), folder / "mounted")
        return
    (folder / "buckets" / "bucket").mkdir(parents=True)
    with s3_server.serving(folder / "buckets") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", s3_server.KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.SECRET)
        query = f"scheme=http&endpoint_override={server.url.removeprefix('http://')}"
        root = folder / "buckets" / "bucket" / "some" / "prefix"
        yield Place(f"s3://bucket/some/prefix?{query}", root, server, expires=kind == EXPIRING)
        assert server.unknown == []


@contextmanager
def no_wait_for_expiry() -> Iterator[None]:
    """Fails if a driver waits to see whether a lease expires."""

    def waits(_: Storage, claim: lease.Claim) -> bool:
        raise AssertionError(f"waited for {claim}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "_wait_for_expiry", waits)
        yield
