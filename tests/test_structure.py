"""Who may know whom: the model nothing of the search, a search space nothing but settings. Who may run what."""

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
            top in {"optuna", "search_spaces"}
            or top in sys.stdlib_module_names
            or name.startswith(("model.config.", "model.common."))
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


# --- what data must not do ------------------------------------------------------------------------------------------

# Ray pickles between its own processes, and Tune into its scratch folder, which is the user's alone: from there comes
# the one pickle that we read, the error that a trial ended with.
ALLOWED = {
    ("hpo/tune/scheduler.py", "ray.cloudpickle"),
    ("hpo/run/on_finish.py", "shell=True"),  # the user's own command, as it was written for a shell
    ("search_spaces/__init__.py", "compile"),  # the user's own space
    ("search_spaces/__init__.py", "exec"),
}
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "tarfile", "zipfile", "xmlrpc", "telnetlib"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {"exec_module", "system", "popen", "mktemp", "unsafe_load", "full_load"}


def dangers(source: str) -> set[str]:
    """What in it could make code of data, or be led astray by a name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [".".join(filter(None, (base, alias.name))) for alias in node.names]
            found |= {name for name in names if MODULES & set(name.split("."))}
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in METHODS or (name in BUILTINS and called in (name, f"builtins.{name}")):
                found.add(name)
            if given.get("shell", "False") != "False":
                found.add("shell=True")
            if called == "torch.load" and given.get("weights_only") != "True":
                found.add("torch.load")
            if called in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
                found.add("np.load")
            if called in ("yaml.load", "yaml.load_all"):
                found.add("yaml.load")
            if called == "Image.open" and "formats" not in given:
                found.add("Image.open")
            if given.get("verify") == "False" or "_create_unverified_context" in called:
                found.add("verify=False")
    return found


@pytest.mark.parametrize("path", [p for top in ("hpo", "model", "search_spaces") for p in sources(top)], ids=str)
def test_nothing_that_is_read_is_run(path):
    name = str(path.relative_to(ROOT))
    assert {(name, danger) for danger in dangers(path.read_text())} <= ALLOWED


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("import pickle", "pickle"),
        ("from ray import cloudpickle", "ray.cloudpickle"),
        ("from torch.serialization import pickle as p", "torch.serialization.pickle"),
        ("torch.load(path)", "torch.load"),
        ("torch.load(path, weights_only=False)", "torch.load"),
        ("np.load(path, allow_pickle=True)", "np.load"),
        ("yaml.load(text, Loader=yaml.Loader)", "yaml.load"),
        ("yaml.unsafe_load(text)", "unsafe_load"),
        ("eval(text)", "eval"),
        ("builtins.exec(text)", "exec"),
        ("os.system(text)", "system"),
        ("subprocess.run(text, shell=1)", "shell=True"),
        ("Image.open(path)", "Image.open"),
    ],
)
def test_what_would_run_data_is_found(source, danger):
    assert dangers(source) == {danger}
    assert not dangers("torch.load(p, weights_only=True); np.load(p); yaml.safe_load(t); ast.literal_eval(t); m.eval")
