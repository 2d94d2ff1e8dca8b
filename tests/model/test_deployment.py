import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

from model.denoise import Denoiser

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import numpy as np
from model.denoise import Denoiser

folder, noisy, denoised = sys.argv[1:]
np.save(denoised, Denoiser(folder)(np.load(noisy)))
heavy = {"torch", "onnx", "skimage", "scipy", "safetensors", "ray"} & sys.modules.keys()
assert not heavy, heavy
try:
    import torch
except ImportError:
    print("no torch here")
"""


def with_all_they_require(*names: str) -> set[str]:
    """Packages: what pip would install for these."""
    found, open_ = set(), set(names)
    while open_:
        found.add(name := open_.pop())
        required = [Requirement(text) for text in distribution(name).requires or ()]
        needed = {each.name for each in required if each.marker is None or each.marker.evaluate({"extra": ""})}
        open_ |= needed - found
    return found


def test_an_export_runs_with_onnxruntime_numpy_and_pillow_alone(exported, mosaic, tmp_path):
    """In an environment that has the installed ones of them, file by file, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (packages,) = (tmp_path / "venv").glob("lib/*/site-packages")
    for name in with_all_they_require("onnxruntime", "numpy", "pillow"):
        for file in distribution(name).files or ():
            if ".." not in file.parts:  # commands
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                (packages / file).symlink_to(file.locate())

    (home := tmp_path / "home").mkdir()
    noisy, denoised = tmp_path / "noisy.npy", tmp_path / "denoised.npy"
    np.save(noisy, mosaic[:90, :100])
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "python", "-c", SCRIPT, exported.folder, noisy, denoised],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home),
            "TMPDIR": str(home),
        },
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "no torch here\n"
    assert list(home.iterdir()) == []  # onnxruntime would keep there what it wants to tell its makers
    assert np.array_equal(np.load(denoised), Denoiser(exported.folder)(mosaic[:90, :100]))
