"""The check for machines with a GPU, in the form that it has without one: are its figures real, and can it fail?"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu_check
import gpu_step
import psutil
import pytest
import torch
from gpu_table import Row, exit_code, markdown
from gpu_training import CPU, ON_CPU, Check, blobs
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECK = Check(device=CPU, sizes=ON_CPU, seconds=0.1, tolerance=1.0, arguments=("--cpu",))
PATIENT = ("--minutes", "20")  # with each part: other tests keep the machine busy
FIGURES = {
    *("generator's image", "discriminator's logits", "losses", "SSIM", "PSNR"),
    *("generator's gradients", "discriminator's gradients"),
}


def needed_by(name: str, found: set[str]) -> set[str]:
    """A distribution and all that it asks for."""
    if name not in found:
        found.add(name)
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed_by(canonicalize_name(requirement.name), found)
    return found


def run(*options: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, gpu_check.__file__, "--cpu", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole reduced form, where nothing is installed but torch, NumPy and what these ask for."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in needed_by("torch", needed_by("numpy", set())):
        of = metadata.distribution(name)
        for top in {path.parts[0] for path in of.files or []} - {"..", "__pycache__"}:
            (packages / top).symlink_to(Path(of.locate_file(top)))
    ended = run("--json", *PATIENT, python=str(folder / "bin/python"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def rows_with(done: dict[str, Any], pattern: str) -> list[dict[str, Any]]:
    return [row for row in done["rows"] if re.search(pattern, row["what"])]


def test_torch_and_numpy_alone_are_enough_for_the_first_half_and_what_is_left_out_says_why(done):
    left = {row["what"]: row["why"] for row in done["rows"] if row["verdict"] != "ok"}
    assert left.pop("hpo search, four trials on quarter GPUs").startswith("left out: No module named")
    assert left == {
        "CUDA graph of a step, width 4, batch 16": "no GPU",
        "memory of each of them": "no GPU",
        "memory in use on the device": "no GPU",
    }


def test_every_figure_is_compared_with_the_cpus_in_both_precisions(done):
    for precision in ("float32", "bfloat16"):
        rows = {
            row["what"].removeprefix(f"{precision}, "): row["numbers"] for row in rows_with(done, f"^{precision}, ")
        }
        assert rows.keys() >= FIGURES
        assert all(numbers["apart"] <= numbers["limit"] for numbers in rows.values())
        assert sum(numbers["apart"] > 0 for numbers in rows.values()) >= 6  # two ways of computing, not one
    exact, rounded = (rows_with(done, f"^{name}, generator's image$")[0]["numbers"] for name in ("float32", "bfloat16"))
    assert 100 * exact["apart"] < rounded["apart"]


def test_speeds_are_measured_for_every_size_and_beside_something(done):
    speeds = rows_with(done, "^training, width")
    assert len(speeds) == len(ON_CPU.widths) * len(ON_CPU.batches)
    speeds += rows_with(done, "side by side") + rows_with(done, "torch.compile")
    for row in speeds:
        assert all(number > 0 for name, number in row["numbers"].items() if name != "apart"), row
    assert all(row["numbers"]["share"] < 1 for row in speeds[:2])
    assert all(row["numbers"]["flop_per_second"] > 1e8 for row in rows_with(done, "^matrix peak"))


def test_the_table_has_every_row_and_the_machine_before_it(done):
    head, table = markdown(done).split("\n\n")
    assert [line.split(":")[0] for line in head.splitlines()[:2]] == ["- machine", "- device"]
    assert f"torch {torch.__version__}" in head
    lines = table.splitlines()
    assert len(lines) == len(done["rows"]) + 2
    assert {line.count("|") for line in lines} == {5}


def test_a_tolerance_that_nothing_meets_ends_with_differs_and_exit_code_1():
    ended = run("--only", "agreement", "--tolerance", "1e-9", *PATIENT)
    assert ended.returncode == 1, ended.stderr
    assert re.search(r"\| bfloat16, generator's gradients \| .* apart \| .* \| differs: too far apart \|", ended.stdout)


def test_a_network_that_computes_something_else_differs(monkeypatch):
    assert exit_code(list(gpu_step.agreement(CHECK))) == 0
    as_it_should = gpu_step.on_device

    def perturbed(*given):
        training = as_it_should(*given)
        with torch.no_grad():
            next(training.gan.generator.parameters()).mul_(1.02)
        return training

    monkeypatch.setattr(gpu_step, "on_device", perturbed)
    rows = list(gpu_step.agreement(CHECK))
    assert {"float32, generator's image", "float32, SSIM"} <= {row.what for row in rows if row.verdict == "differs"}
    assert exit_code(rows) == 1


def test_what_is_not_a_number_differs():
    nan, one = torch.tensor([math.nan]), torch.ones(1)
    assert [gpu_step.compare("losses", value, one, 1e9).verdict for value in (nan, one)] == ["differs", "ok"]


def test_the_images_are_smooth_of_the_right_shape_and_always_the_same():
    images = blobs(50)
    assert images.shape == (50, 1, 32, 32)
    assert images.dtype == "uint8"
    assert (images == blobs(50)).all()
    assert not images[:, :, :2].any()
    inner = images[:, 0, 2:-2, 2:-2].astype(int)
    assert inner.std() > 30
    assert abs(inner[:, 1:] - inner[:, :-1]).mean() < inner.std() / 4


@pytest.mark.parametrize(("name", "code"), [("speed", 1), ("compile", 0)])
def test_a_part_that_fails_says_why_and_counts_unless_the_product_does_without_it(name, code, monkeypatch, capsys):
    def fails(_: Check) -> Iterator[Row]:
        yield Row(what="before it")
        raise RuntimeError("no | kernel\nfor this")

    monkeypatch.setitem(gpu_check.PARTS, name, fails)
    rows = list(gpu_check.part_rows(name, CHECK))
    assert [row.verdict for row in rows] == ["ok", "not available"]
    assert rows[1].why == "RuntimeError: no / kernel for this"
    assert exit_code(rows) == code


def test_a_part_that_takes_longer_than_its_share_is_ended():
    (row,) = gpu_check.run_in_process("agreement", CHECK, limit=0.2)
    assert (row.verdict, row.why) == ("not available", "not done after 0 s")
    assert exit_code([row]) == 1


def test_a_part_does_not_outlive_a_check_that_is_killed():
    command = [sys.executable, gpu_check.__file__, "--cpu", "--only", "together"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as check:
        found: list[psutil.Process] = []
        while len(found) < 2:  # the part, and a training
            assert check.poll() is None
            time.sleep(0.1)
            found = psutil.Process(check.pid).children(recursive=True)
        check.kill()
    _, alive = psutil.wait_procs(found, timeout=60)
    assert not alive


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_without_a_gpu_it_refuses(capsys):
    with pytest.raises(SystemExit) as ended:
        gpu_check.main([])
    assert ended.value.code == 2
    assert "finds no GPU here" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--tolerance", "nan"], ["--only", "nothing"]], ids=" ".join)
def test_bad_arguments_are_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["--cpu", *words])
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1260)  # the check gives up before
def test_four_trials_share_a_gpu_by_the_products_own_command():
    ended = run("--json", "--only", "search", *PATIENT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    trials, overlap, speeds = (row["numbers"] for row in json.loads(ended.stdout)["rows"])
    assert trials["finished"] == 4
    assert overlap["processes"] == 4
    assert 0 <= overlap["seconds"] <= overlap["shortest"] + 1e-3  # the record keeps microseconds
    assert len(speeds) == 4
    assert min(speeds.values()) > 0
