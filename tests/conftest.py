"""For all tests."""

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `hpo search`; NumPy reads it when it is imported

# pytest puts this folder on the path, where tests/model would be taken for the package `model`: a regular package
# anywhere on the path wins over that.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(1, str(Path(__file__).parent / "support"))

# ci: few examples, the same ones always. deep: many, others each time; `make test-all`, or --hypothesis-profile deep.
CHECKS = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", **CHECKS, derandomize=True, max_examples=50)
settings.register_profile("deep", **CHECKS, derandomize=False, max_examples=300, print_blob=True)
settings.load_profile("ci")
