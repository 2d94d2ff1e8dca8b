"""hpo launch and hpo pull, over real SSH to a head on this machine."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drivers import GUARD_SECONDS, Driver
from heads import TOKEN, Head, JobServer, job_server, make_head, needs_ssh
from PIL import Image

from hpo.cli.commands import main
from hpo.cluster import cluster_config
from hpo.remote import launch
from hpo.remote.ssh import connect_to_head
from model.config import TrainConfig
from model.data.data_config import DataConfig
from model.data.device_images import DeviceImages
from model.denoise import MANIFEST, read_manifest
from model.export import export
from model.trainer import Trainer

import psutil  # isort: skip - Ray brings its own along, found once Ray is imported

pytestmark = needs_ssh
KEY = 5 * "decade0f"  # a canary; of W&B's form
SPACE = (Path(__file__).parents[3] / "search_spaces/losses_and_rates.py").read_text()


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch) -> None:
    """Where no key of the user's lies."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "own").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "own"))
    monkeypatch.chdir(tmp_path / "own")


@pytest.fixture(scope="module")
def programs() -> str:
    """This Python's, before all others."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture
def head(tmp_path, programs) -> Head:
    return make_head(tmp_path, programs, tmp_path / "storage")


@pytest.fixture
def server(head) -> Iterator[JobServer]:
    with job_server(head.port) as running:
        yield running


def says(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(argv)
    return code, *capsys.readouterr()


def words(job: dict[str, object]) -> list[str]:
    """Those of `hpo search` in a job, as its shell has them."""
    (line,) = [job["entrypoint"]]
    split = shlex.split(line)
    return split[split.index("hpo") :]


def test_a_search_is_submitted_with_its_options_and_goes_on_without_this_machine(head, server, capsys):
    options = ["--trials=3", "--set=width=4", "--set=depth=3", "--gpus-per-trial=0.25", "--allow-cpu"]
    code, out, err = says("launch", str(head.file), "first", *options, capsys=capsys)
    assert (code, out) == (0, "first-1\n"), err
    (job,) = server.jobs
    assert words(job)[:5] == ["hpo", "search", "first", "--address", "auto"]
    assert sorted(words(job)[5:]) == sorted(options)
    assert job["metadata"] == {"hpo-search": "first"}
    assert f"ray exec {head.file} 'hpo watch first'" in err
    assert f"hpo pull {head.file} first --to first/" in err


def test_a_job_runs_in_the_heads_environment_and_home(head, server, capsys):
    head.program("hpo", '#!/bin/sh\necho "$PWD $RAY_AUTH_MODE $HPO_STORAGE $WANDB_PROJECT $*" > ~/told\nexit 75\n')
    os.environ["WANDB_PROJECT"] = "it's mine"
    try:
        assert says("launch", str(head.file), "first", "--on-finish", 'echo "$HOME"', capsys=capsys)[0] == 0
    finally:
        del os.environ["WANDB_PROJECT"]
    environment = {"HOME": str(head.home), "PATH": os.environ["PATH"]}
    done = subprocess.run(["sh", "-c", server.jobs[0]["entrypoint"]], env=environment, cwd="/", check=False)
    assert done.returncode == 75
    told = (head.home / "told").read_text()
    storage = head.home.parent / "storage"
    assert told == f'{head.home} token {storage} it\'s mine search first --address auto --on-finish=echo "$HOME"\n'


def test_a_second_launch_is_refused_while_the_job_runs_and_continues_it_afterwards(head, server, capsys):
    assert says("launch", str(head.file), "first", capsys=capsys)[0] == 0
    code, _, err = says("launch", str(head.file), "first", capsys=capsys)
    assert code == 2
    assert "first: its job first-1 is pending" in err
    assert says("launch", str(head.file), "second", capsys=capsys)[1] == "second-1\n"
    server.jobs[0]["status"] = "FAILED"
    assert says("launch", str(head.file), "first", "--trials", "48", capsys=capsys)[1] == "first-2\n"


@pytest.mark.parametrize(("status", "told", "code"), [("SUCCEEDED", 0, 0), ("FAILED", 75, 75), ("STOPPED", None, 4)])
def test_waiting_ends_with_the_searchs_own_exit_code(status, told, code, head, server):
    server.fate = {"status": status, "message": "the end", "driver_exit_code": told}
    assert main(["launch", str(head.file), "first", "--wait"]) == code


def test_a_space_and_a_folder_of_images_are_shipped(head, server, tmp_path, capsys):
    (tmp_path / "own/my space.py").write_text(SPACE)
    pictures = tmp_path / "own/my pictures/in here"
    pictures.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(pictures / f"{number}.png")
    options = ["--space", "my space.py", "--data", "my pictures", "--crop", "32", "--set", "batch_size=4"]
    code, _, err = says("launch", str(head.file), "first", *options, capsys=capsys)
    assert code == 0, err
    given = words(server.jobs[0])
    shipped = head.home / ".hpo/shipped/first"
    assert f"--space={shipped}/space.py" in given
    assert f"--data={shipped}/data" in given
    assert (shipped / "space.py").read_text() == SPACE
    assert len(list((shipped / "data/in here").glob("*.png"))) == 30
    (pictures / "0.png").unlink()
    server.jobs[0]["status"] = "FAILED"
    assert says("launch", str(head.file), "first", *options, capsys=capsys)[0] == 0
    assert len(list((shipped / "data/in here").glob("*.png"))) == 29


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--trials", "0"], "trials=0: must be at least 1"),
        (["--space", "mine.py"], "file not found"),
        (["--data", "photos/"], "data=photos/"),
        (["--set", "lr_g=0.1"], "searched by the space"),
        (["--address", "auto"], "address=auto: `hpo launch` uses the cluster of its file"),
        (["--wandb", "online"], "W&B: there is no API key"),
    ],
)
def test_bad_input_is_refused_before_anything_is_contacted(options, reason, head, capsys):
    (head.file.parent / "sshd_config").unlink()
    code, _, err = says("launch", str(head.file), "first", *options, capsys=capsys)
    assert code == 2
    assert reason in err


def test_more_gpus_than_any_worker_has_are_refused(tmp_path):
    node = {"resources": {"CPU": 4, "GPU": 1}}
    config = {"head_node_type": "head", "available_node_types": {"head": {"resources": {"CPU": 64}}, "gpu": node}}
    for asked, reason in (({"gpus_per_trial": 2}, "gpus_per_trial=2"), ({"cpus_per_trial": 8}, "cpus_per_trial=8")):
        with pytest.raises(launch.ConfigError, match=f"{reason}: no worker of the file has more than"):
            launch._check_worker_size(launch.SearchConfig(**asked), config)


def test_a_folder_too_large_to_ship_is_refused(head, server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launch, "_MAX_UPLOAD_BYTES", 10)
    (tmp_path / "own/photos").mkdir()
    (tmp_path / "own/photos/0.png").write_bytes(bytes(11))
    code, _, err = says("launch", str(head.file), "first", "--data", "photos", capsys=capsys)
    assert code == 2
    assert "pass --data s3://BUCKET/PREFIX" in err


def test_the_key_of_wandb_reaches_the_heads_netrc_and_nothing_else(head, server, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody answers, so nobody refuses the key
    (head.home / ".netrc").write_text("machine example.org\n  login me\n  password mine\n")
    (head.home / ".netrc").chmod(0o644)
    seen = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **how: seen.append(command) or run(command, **how))
    code, out, err = says("launch", str(head.file), "first", "--wandb", "online", capsys=capsys)
    assert code == 0, err
    netrc = head.home / ".netrc"
    assert stat.S_IMODE(netrc.stat().st_mode) == 0o600
    assert KEY in netrc.read_text()
    assert "example.org" in netrc.read_text()
    assert "WANDB_BASE_URL=http://127.0.0.1:9" in server.jobs[0]["entrypoint"]
    for text in (json.dumps(server.jobs), out, err, repr(seen), head.file.read_text()):
        assert KEY not in text
    others = [path for path in head.home.rglob("*") if path.is_file() and path != netrc]
    assert not any(KEY.encode() in path.read_bytes() for path in others)


def test_a_head_that_is_away_or_refuses_the_token_is_told_in_a_line(head, capsys):
    code, _, err = says("launch", str(head.file), "first", capsys=capsys)
    assert code == 4
    assert "is Ray running there?" in err
    with job_server(head.port) as server:
        token = head.file.parent / "token/auth_token"
        token.write_text("f" * 64)
        code, _, err = says("launch", str(head.file), "first", capsys=capsys)
    assert (code, server.jobs) == (4, [])
    assert "refuses the token" in err
    config = head.file.parent / "sshd_config"
    config.write_text(config.read_text().replace("AuthorizedKeysFile", "AuthorizedKeysFile none\n#"))
    code, _, err = says("launch", str(head.file), "first", capsys=capsys)
    assert code == 4
    assert "Permission denied" in err
    assert TOKEN not in err


# --- hpo pull -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Of a network that has seen 64 images."""
    folder = tmp_path_factory.mktemp("exported")
    every = DataConfig().load()
    images = replace(every, train=every.train[:64], validation=every.validation[:32])
    config = TrainConfig(width=4, batch_size=16, images_per_epoch=64, epochs=1, precision="float32")
    trainer = Trainer(config, DeviceImages.to_device(images, "gaussian:30", torch.device("cpu"), num_validation=32))
    trainer.run_epoch()
    trainer.save(folder / "checkpoint")
    origin = {"search": "first", "trial": 3}
    export(folder / "checkpoint", folder / "export", data=DataConfig(), images=images, test=None, origin=origin)
    return folder / "export"


@pytest.fixture
def exporting(head, exported) -> Head:
    """A head whose `hpo export NAME --to DIR` gives that one. What it exports can be changed: exports/."""
    shutil.copytree(exported, head.home / "exports")
    head.program("hpo", '#!/bin/sh\ntest "$1 $2 $3" = "export first --to" && cp -r ~/exports "$4"\n')
    return head


def test_the_winner_is_pulled_verified_and_its_use_is_told(exporting, exported, tmp_path, capsys):
    to = tmp_path / "own/deep/er"
    code, out, err = says("pull", str(exporting.file), "first", "--to", str(to), capsys=capsys)
    assert code == 0, err
    assert {path.name: path.read_bytes() for path in to.iterdir()} == {
        path.name: path.read_bytes() for path in exported.iterdir()
    }
    assert "| Denoised |" in out
    assert "trial 3 of first" in err
    assert f"hpo denoise {to} IMAGE" in err
    assert list(to.parent.iterdir()) == [to]
    left = [path for path in Path("/tmp").glob("tmp.*/export") if path.stat().st_mtime > exporting.file.stat().st_mtime]
    assert left == []


def test_an_earlier_pull_is_replaced_and_anything_else_is_not(exporting, tmp_path, capsys):
    to = tmp_path / "own/model"
    assert says("pull", str(exporting.file), "first", "--to", str(to), capsys=capsys)[0] == 0
    assert says("pull", str(exporting.file), "first", "--to", str(to), capsys=capsys)[0] == 0
    (to / "mine.txt").write_text("mine")
    code, _, err = says("pull", str(exporting.file), "first", "--to", str(to), capsys=capsys)
    assert code == 2
    assert "exists and is not an export" in err


def damage_a_file(folder: Path) -> None:
    (folder / "generator.safetensors").write_bytes(b"x")


def lose_a_file(folder: Path) -> None:
    (folder / "strip.png").unlink()


def improve_the_figures(folder: Path) -> None:
    manifest = read_manifest(folder)
    manifest["strip"]["ssim"] += 0.01
    (folder / MANIFEST).write_text(json.dumps(manifest))


def lead_out_of_the_folder(folder: Path) -> None:
    manifest = read_manifest(folder)
    manifest["files"]["../../etc/passwd"] = "0"
    (folder / MANIFEST).write_text(json.dumps(manifest))


def link_a_file(folder: Path) -> None:
    """With the right content, here as there: it would be a link on this machine, too."""
    content = (folder / "strip.png").rename(folder.parent / "elsewhere.png")
    (folder / "strip.png").symlink_to(content)


def add_a_file(folder: Path) -> None:
    (folder / "more.sh").write_text("#!/bin/sh")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (link_a_file, "strip.png: cannot be read"),
        (add_a_file, "more.sh: is not in the manifest"),
        (damage_a_file, "generator.safetensors: its SHA-256 differs from the manifest's"),
        (lose_a_file, "strip.png: cannot be read"),
        (improve_the_figures, "the model's figures on this machine differ from those of its export: ssim"),
        (lead_out_of_the_folder, "damaged or not ours"),
    ],
)
def test_what_arrives_other_than_it_was_measured_is_not_put_in_place(harm, reason, exporting, tmp_path, capsys):
    harm(exporting.home / "exports")
    to = tmp_path / "own/model"
    code, _, err = says("pull", str(exporting.file), "first", "--to", str(to), capsys=capsys)
    assert code == 2
    assert reason in err
    assert list(to.parent.glob("*odel*")) == []


def test_a_search_without_a_winner_is_told_as_the_head_tells_it(exporting, tmp_path, capsys):
    exporting.program("hpo", "#!/bin/sh\necho 'hpo: first: no trial has a valid result yet' >&2\nexit 2\n")
    code, _, err = says("pull", str(exporting.file), "first", "--to", str(tmp_path / "model"), capsys=capsys)
    assert code == 2
    assert "hpo: first: no trial has a valid result yet" in err
    assert not (tmp_path / "model").exists()


# --- with Ray itself ------------------------------------------------------------------------------------------------


@pytest.fixture
def ray_head(head) -> Iterator[Head]:
    """A real one, with a token; its processes carry a mark in their environment."""
    pytest.importorskip("aiohttp", reason="the dashboard needs ray[default]")
    mark = uuid.uuid4().hex
    free = [_free_port() for _ in range(3)]
    options = f"--port={free[0]} --ray-client-server-port={free[1]} --dashboard-agent-listen-port={free[2]}"
    options += f" --dashboard-host=127.0.0.1 --dashboard-port={head.port} --num-cpus=2 --num-gpus=0"
    options += f" --object-store-memory=100000000 --temp-dir={tempfile.mkdtemp(prefix='hpo-ray-')}"
    environment = {"HOME": str(head.home), "PATH": "/usr/bin:/bin", "SEARCH_UNDER_TEST": mark}
    start = ["bash", "-c", f". ~/.hpo/environment; ray start --head {options}"]
    try:
        subprocess.run(start, env=environment, check=True, capture_output=True, timeout=120)
        yield head
    finally:
        running = Driver(None, mark)
        while living := running.processes():
            for process in living:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        shutil.rmtree(options.rpartition("=")[2], ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
@pytest.mark.timeout(GUARD_SECONDS)
def test_a_real_search_is_launched_looked_at_pulled_while_it_runs_and_pulled_at_its_end(ray_head, tmp_path, capsys):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{ray_head.port}/api/jobs/", timeout=30)
    sizes = ["--epochs", "6", "--images-per-epoch", "8000", "--max-concurrent", "1"]
    sizes += ["--set", "width=4", "--set", "dropout=0", "--set", "batch_size=16"]
    assert says("launch", str(ray_head.file), "first", "--trials", "9", *sizes, capsys=capsys)[1] == "first-1\n"
    code, _, err = says("launch", str(ray_head.file), "first", *sizes, capsys=capsys)
    assert code == 2, err
    assert "its job first-1 is" in err

    to, end = tmp_path / "own/model", time.monotonic() + GUARD_SECONDS / 2
    while says("pull", str(ray_head.file), "first", "--to", str(to), capsys=capsys)[0] != 0:
        assert time.monotonic() < end  # until a trial has reported
        time.sleep(5)
    assert read_manifest(to)["metrics"]["test"] is None  # the search was not over

    config = cluster_config.read(ray_head.file)
    with connect_to_head(ray_head.file, config) as node:
        node.run("hpo stop first")
        logs = f"ray job logs --address http://127.0.0.1:{ray_head.port} first-1"  # other Rays may run here
        assert "can be continued" in node.run(logs)
    assert launch._wait_for_job(ray_head.file, config, "first-1") == 143
    code, out, _ = says("launch", str(ray_head.file), "first", "--trials", "2", "--wait", capsys=capsys)
    assert (code, out) == (0, "first-2\n")
    assert says("pull", str(ray_head.file), "first", "--to", str(to), capsys=capsys)[0] == 0
    assert read_manifest(to)["metrics"]["test"]["images"] == 10_000
