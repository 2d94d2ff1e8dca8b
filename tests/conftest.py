"""For all tests."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `hpo search`; NumPy reads it when it is imported

# pytest puts this folder on the path, where tests/model would be taken for the package `model`: a regular package
# anywhere on the path wins over that.
sys.path.insert(0, str(Path(__file__).parents[1]))
