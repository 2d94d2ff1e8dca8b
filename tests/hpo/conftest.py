"""Records to play with."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.config import SearchConfig
from hpo.record import Record


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def search() -> SearchConfig:
    """Small, with rungs at 1 and 3; enough trials for some to be pruned and some to diverge."""
    return SearchConfig(trials=8, epochs=4, objective="ssim", seed=9, set={"width": 4})


@pytest.fixture
def record(runs: Path, search: SearchConfig) -> Record:
    return Record.create(runs, "first", search)
