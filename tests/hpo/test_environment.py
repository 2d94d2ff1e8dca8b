"""Files of a user's that are called as ours, in the current folder or on PYTHONPATH."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from drivers import GUARD_SECONDS, driver

from hpo.store.record import Record

ROOT = Path(__file__).parents[2]
RAISES = "raise RuntimeError('a file of the user was taken for ours')\n"
# As the console script that pip makes of pyproject.toml; the environment that runs these tests may have an older one.
HPO = "import sys; from pix2pix_search import main; sys.argv[0] = 'hpo'; sys.exit(main())"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of theirs."""
    folder = tmp_path / "theirs"
    for name in ("model/__init__", "hpo", "search_spaces", "torch", "numpy", "PIL", "optuna", "ray"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(RAISES)
    (folder / "wandb").mkdir()  # as W&B makes it; no package
    (folder / "rates.py").write_text("HIGH = 1e-3\n")
    return folder


def on(*path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}


def test_the_command_starts_under_a_name_that_nothing_else_has():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"hpo": "pix2pix_search:main"}


SPACE = """
from dataclasses import replace
import rates

def suggest(trial, base):
    return replace(base, lr_g=trial.suggest_float("lr_g", 1e-4, rates.HIGH), width=0 if trial.number else 1)
"""


@pytest.mark.parametrize("words", [["list"], ["show", "nope"], ["search", "x", "--space", "mine.py"]], ids=" ".join)
def test_every_command_works_with_such_files_on_pythonpath_and_in_the_current_folder(theirs, words):
    """Up to their own errors; the search's is its space's, which needs another file that lies there."""
    (theirs / "mine.py").write_text(SPACE)
    given = {"capture_output": True, "text": True, "env": on(theirs, ROOT), "cwd": theirs}
    done = subprocess.run([sys.executable, "-P", "-c", HPO, *words], check=False, **given)
    told = {"list": "No searches in runs", "show": "nope: no such search in runs", "search": "width=0: width must be"}
    assert told[words[0]] in done.stderr
    assert "taken for ours" not in done.stderr
    assert done.returncode == (0 if words == ["list"] else 2)


def test_the_module_works_where_such_files_lie_in_the_current_folder(theirs):
    (theirs / "hpo.py").unlink()  # which Python itself would then run in its place
    given = {"capture_output": True, "text": True, "env": on(ROOT), "cwd": theirs}
    done = subprocess.run([sys.executable, "-m", "hpo.cli", "list"], check=False, **given)
    assert (done.returncode, "No searches in runs" in done.stderr) == (0, True), done.stderr


def test_the_denoiser_lives_beside_a_users_own_model(tmp_path):
    """In one process, whichever comes first, and each keeps its name."""
    (tmp_path / "model.py").write_text("NAME = 'theirs'\n")
    for first, second in ["ab", "ba"]:
        lines = {"a": "import model", "b": "from pix2pix_search import Denoiser"}
        more = "import sys; print(model.NAME, Denoiser.__name__, 'hpo' in sys.modules)"
        code = "; ".join([lines[first], lines[second], more])
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=on(ROOT), check=True, capture_output=True, text=True
        )
        assert done.stdout == "theirs Denoiser False\n"


def test_what_users_are_told_to_import_is_the_name_that_no_file_of_theirs_has():
    """In documents, the report and the model card."""
    told = [*Path(ROOT).glob("*.md"), *Path(ROOT).glob("docs/*.md"), Path(ROOT) / "hpo/views/html_report.html"]
    told.append(Path(ROOT) / "model/model_card.py")
    imports = [line for path in told for line in re.findall(r"from \S+ import Denoiser", path.read_text())]
    assert len(imports) >= 3
    assert set(imports) == {"from pix2pix_search import Denoiser"}


def test_nothing_is_reordered_where_nothing_is_in_the_way(theirs):
    """A whole package on PYTHONPATH is how some machines provide it; a folder without __init__.py is none."""
    for name in ("model/__init__", "hpo", "search_spaces", "torch", "numpy", "PIL", "optuna", "ray"):
        (theirs / f"{name}.py").unlink()
    (theirs / "torch").mkdir()
    (theirs / "torch" / "__init__.py").write_text("")
    code = "import sys; before = [*sys.path]; import hpo; print(sys.path == before)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=on(ROOT, theirs), check=True, capture_output=True, text=True
    )
    assert done.stdout == "True\n"


@pytest.mark.parametrize("words", [["list"], ["search", "x"], ["denoise", "m", "a.png", "--to", "out"]], ids=" ".join)
def test_a_current_folder_that_was_deleted_is_told_before_torch_ends_the_process(tmp_path, words):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); {HPO}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *words], env=on(ROOT), check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "hpo: the current folder was deleted; change to an existing one\n")


@pytest.mark.slow
@pytest.mark.timeout(2 * GUARD_SECONDS)
def test_trials_run_where_such_files_lie_in_the_current_folder_and_on_pythonpath(theirs):
    options = [
        "--trials",
        "1",
        "--epochs",
        "1",
        "--images-per-epoch",
        "64",
        "--max-concurrent",
        "1",
        "--wandb",
        "disabled",
    ]
    options += ["--set", "width=2", "--set", "dropout=0", "--set", "batch_size=16"]
    command = (sys.executable, "-P", "-c", HPO, "search", "first")
    with driver(theirs, options, command, on(theirs, ROOT)) as running:
        _, errors = running.process.communicate(timeout=GUARD_SECONDS)
        assert running.process.returncode == 0, errors
    assert Record(theirs / "runs", "first").trial(0).state.name == "COMPLETE"
