"""Search spaces: one small module for each, loaded by its name, or a user's own file, loaded by its path."""

from ._loading import load, names, run_file
from ._space import Space, SpaceError

__all__ = ["Space", "SpaceError", "load", "names", "run_file"]
