"""Which package may import which, how large files and functions may be, and what may run data as code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The arrows of docs/architecture.md: a package, and the packages that it may import.
COMMON, MODEL = {"model.common"}, {"model.common", "model"}
POLICY = {*MODEL, "search_spaces", "hpo.policy"}
STORE = {*POLICY, "hpo.store"}
VIEWS = {*STORE, "hpo.cluster", "hpo.search_controller", "hpo.views"}
RUN = {*VIEWS, "hpo.tune", "hpo.tracking"}
MAY_IMPORT = {
    "model.common": set(),
    "model": COMMON,
    "search_spaces": MODEL,
    "hpo.policy": {*MODEL, "search_spaces"},
    "hpo.store": POLICY,
    "hpo.cluster": POLICY,
    "hpo.search_controller": STORE,
    "hpo.tune": {*STORE, "hpo.cluster", "hpo.search_controller"},
    "hpo.views": {*STORE, "hpo.cluster", "hpo.search_controller"},
    "hpo.tracking": VIEWS,
    "hpo.run": RUN,
    "hpo.remote": RUN,
    "hpo.cli": {*RUN, "hpo.run", "hpo.remote"},
    "hpo": set(),
    "pix2pix_search": {"model", "hpo", "hpo.cli"},
}
FOR_ALL = {"hpo.environment", "hpo.exit_codes"}  # no imports of ours
PACKAGES = {*MAY_IMPORT, *FOR_ALL}
PRODUCT = sorted(
    path for top in ("hpo", "model", "pix2pix_search", "search_spaces") for path in (ROOT / top).rglob("*.py")
)

LONGEST_FILE = 400  # lines
LONGEST_FUNCTION = 60


def imported(path: Path) -> set[str]:
    """Full names of everything that a file imports anywhere, `from a import b` as a.b."""
    folders = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(folders[: len(folders) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def package_of(name: str) -> str | None:
    """The package of ours that a full name lies in."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in PACKAGES), None)


def arrows() -> dict[tuple[str, str], str]:
    """Every import between packages of ours, and a file that has it."""
    found = {}
    for path in PRODUCT:
        importer = package_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        for package in map(package_of, imported(path)):
            if package and package != importer:
                found[importer, package] = str(path.relative_to(ROOT))
    return found


def test_packages_import_only_what_the_table_allows():
    assert len(PRODUCT) > 100
    found = arrows()
    assert len(found) > 40
    assert {("model", "model.common"), ("hpo.tune", "hpo.store"), ("hpo.cli", "hpo.run")} <= found.keys()
    wrong = {
        f"{importer} -> {package}: {file}"
        for (importer, package), file in found.items()
        if package not in {*MAY_IMPORT.get(importer, set()), *FOR_ALL}
    }
    assert not wrong


def test_the_table_has_no_circle():
    """Each package stands below everything that it may import, so an order exists."""
    placed: set[str] = set()
    while left := MAY_IMPORT.keys() - placed:
        ready = {package for package in left if MAY_IMPORT[package] <= placed}
        assert ready, left
        placed |= ready


def test_every_package_has_a_readme():
    folders = {path.parent for path in PRODUCT}
    assert len(folders) > 12
    assert not sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "README.md").is_file())


def test_the_readme_of_a_package_names_its_modules():
    unnamed = [
        str(path.relative_to(ROOT))
        for path in PRODUCT
        if (readme := path.parent / "README.md").is_file()
        and not path.stem.startswith("_")
        and path.stem not in readme.read_text()
    ]
    assert not unnamed


def test_files_and_functions_are_short():
    long = set()
    for path in PRODUCT:
        name, text = str(path.relative_to(ROOT)), path.read_text()
        if len(text.splitlines()) > LONGEST_FILE:
            long.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min(part.lineno for part in (node, *node.decorator_list))
                if node.end_lineno - first >= LONGEST_FUNCTION:
                    long.add(f"{name}:{node.name}")
    assert not long


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


def loaded_by(*modules: str) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def modules_of(package: str) -> list[str]:
    files = sorted((ROOT / package.replace(".", "/")).glob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]


def test_training_loads_nothing_of_the_search():
    loaded = loaded_by("model.trainer")
    assert "torch" in loaded
    assert not loaded & {"ray", "optuna", "wandb", "hpo", "search_spaces", "onnxruntime"}


def test_denoising_loads_no_torch():
    loaded = loaded_by("model.denoise")
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "onnx", "skimage", "safetensors", "ray", "optuna", "wandb"}


@pytest.mark.parametrize("package", ["hpo.policy", "hpo.store"])
def test_decisions_and_the_record_load_neither_torch_nor_ray(package):
    modules = modules_of(package)
    assert len(modules) > 5
    loaded = loaded_by(*modules)
    assert "optuna" in loaded
    assert not loaded & {"torch", "ray", "wandb"}


def test_a_command_line_is_read_without_numpy():
    loaded = loaded_by("hpo.cli.arguments")
    assert "argparse" in loaded
    assert not loaded & {"numpy", "torch", "ray", "optuna"}


# --- data is never run ----------------------------------------------------------------------------------------------

# Ray pickles between its own processes, and Tune pickles into its scratch folder, which only the user can read. We read
# one pickle from there: the error that a trial ended with.
ALLOWED = {
    ("hpo/tune/scheduler.py", "ray.cloudpickle"),
    ("hpo/run/on_finish.py", "shell=True"),  # the user's own command, written for a shell
    ("search_spaces/_loading.py", "compile"),  # the user's own space
    ("search_spaces/_loading.py", "exec"),
}
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "tarfile", "zipfile", "xmlrpc", "telnetlib"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {"exec_module", "system", "popen", "mktemp", "unsafe_load", "full_load"}


def dangers(source: str) -> set[str]:
    """Calls and imports that could run data as code, or follow a name to the wrong place."""
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
