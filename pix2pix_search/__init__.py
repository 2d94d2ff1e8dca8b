"""The package `model` under a name that no file of a user's is likely to have, and the start of the command `hpo`.

`from pix2pix_search import Denoiser` works beside a `model.py`, too, and leaves the name `model` to it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.denoise import Denoiser as Denoiser

_ROOT = Path(__file__).parents[1]
__path__ = [str(_ROOT / "model")]  # pix2pix_search.denoise is model/denoise.py, whose own imports are relative


def __getattr__(name: str) -> Any:
    if name == "Denoiser":  # what it needs is imported once somebody asks for it
        return import_module(f"{__name__}.denoise").Denoiser
    raise AttributeError(f"module {__name__} has no attribute {name}")


def main() -> int:
    """The command `hpo`, also where PYTHONPATH has an hpo.py; gives its exit code. See hpo.cli.commands.main."""
    sys.path.insert(0, str(_ROOT))
    import hpo  # noqa: PLC0415, F401 - it sees to all other names

    sys.path.remove(str(_ROOT))
    from hpo.cli import commands  # noqa: PLC0415

    return commands.main()
