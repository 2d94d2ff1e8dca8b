import os
import subprocess
import sys
from pathlib import Path

import numpy as np

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


def test_an_export_runs_with_onnxruntime_numpy_and_pillow_alone(exported, mosaic, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    subprocess.run([*install, "onnxruntime", "numpy", "pillow"], check=True)

    noisy, denoised = tmp_path / "noisy.npy", tmp_path / "denoised.npy"
    np.save(noisy, mosaic[:90, :100])
    done = subprocess.run(
        [python, "-c", SCRIPT, exported.folder, noisy, denoised],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "no torch here\n"
    assert np.array_equal(np.load(denoised), Denoiser(exported.folder)(mosaic[:90, :100]))
