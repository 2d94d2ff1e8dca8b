import json

import pytest
from saying import hpo_says
from small_models import describe, save_model

from model.common.machine import processor
from model.denoise import MANIFEST
from model.latency import Latency

RECORDED = Latency(
    median_ms=1.5,
    p95_ms=2.0,
    runs=30,
    size=64,
    threads=2,
    device="cpu",
    processor="another CPU\x1b[2J",
    provider="CPUExecutionProvider",
    onnxruntime="1.20.0",
)


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model")
    return tmp_path / "model"


def record(folder) -> None:
    describe(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    measured = {"precision": "fp32", "size_mb": 0.1, "latency": RECORDED.as_dict()}
    (folder / MANIFEST).write_text(json.dumps(manifest | measured))


def test_the_latency_is_measured_as_it_was_recorded_and_printed_beside_it(folder, capsys):
    record(folder)
    code, out, _ = hpo_says("evaluate", str(folder), "--latency", "--json", capsys=capsys)
    both = json.loads(out)["latency"]
    assert code == 0
    assert both["recorded"] == RECORDED.as_dict()
    here = Latency.from_dict(both["measured"])
    assert (here.size, here.threads, here.processor) == (64, 2, processor())
    code, out, _ = hpo_says("evaluate", str(folder), "--latency", "--size", "32", "--threads", "1", capsys=capsys)
    assert code == 0
    assert "recorded  1.5 ms (95th percentile 2 ms): 64x64 pixels, 30 runs, 2 threads, another CPU" in out
    assert "32x32 pixels" in out
    assert processor() in out
    assert "\x1b" not in out


def test_an_export_of_an_old_version_has_no_latency_and_gets_one(folder, capsys):
    code, out, _ = hpo_says("evaluate", str(folder), "--latency", capsys=capsys)
    assert code == 0
    assert "recorded  not measured by the version that exported it" in out
    assert "here      " in out
    assert "16x16 pixels" in out
    assert "1 thread," in out
