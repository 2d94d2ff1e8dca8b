"""The package `model` under a name that is unlikely to clash, and the entry point of the command `hpo`.

`from pix2pix_search import Denoiser` also works beside a user's own `model.py`, and leaves the name `model` to it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.denoise import Denoiser as Denoiser

_ROOT = Path(__file__).parents[1]
__path__ = [str(_ROOT / "model")]  # pix2pix_search.denoise is model/denoise.py; imports inside model are relative


def __getattr__(name: str) -> Any:
    if name == "Denoiser":  # loads onnxruntime, so only on demand
        return import_module(f"{__name__}.denoise").Denoiser
    raise AttributeError(f"module {__name__} has no attribute {name}")


def main() -> int:
    """Run the command `hpo`, even if PYTHONPATH has another hpo.py. Return its exit code: see hpo.cli.commands.main."""
    sys.path.insert(0, str(_ROOT))
    import hpo  # noqa: PLC0415, F401 - it puts our other packages first

    sys.path.remove(str(_ROOT))
    from hpo.cli import commands  # noqa: PLC0415

    return commands.main()
