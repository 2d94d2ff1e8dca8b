"""Who may know whom: the model nothing of the search, a search space nothing but settings."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported(path: Path) -> set[str]:
    """Full names of everything that a file imports anywhere, `from a import b` as a.b."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources("model"), ids=lambda path: path.stem)
def test_the_model_knows_nothing_of_the_search(path):
    tops = {name.partition(".")[0] for name in imported(path)}
    assert not tops & {"ray", "optuna", "wandb", "hpo", "search_spaces"}


@pytest.mark.parametrize("path", sources("search_spaces"), ids=lambda path: path.stem)
def test_a_search_space_knows_the_config_and_optuna_alone(path):
    for name in imported(path):
        top = name.partition(".")[0]
        assert (
            top in {"optuna", "search_spaces"} or top in sys.stdlib_module_names or name.startswith("model.config.")
        ), name


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_training_loads_nothing_of_the_search():
    loaded = loaded_by("import model.trainer")
    assert "torch" in loaded
    assert not loaded & {"ray", "optuna", "wandb", "hpo", "search_spaces", "onnxruntime"}


def test_denoising_loads_no_torch():
    loaded = loaded_by("import model.denoise")
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "onnx", "skimage", "safetensors", "ray", "optuna", "wandb"}
