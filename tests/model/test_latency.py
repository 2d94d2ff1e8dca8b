import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import model.latency
from model.common.errors import ConfigError
from model.common.machine import processor
from model.config import TrainConfig
from model.generator import Generator
from model.latency import Latency, measure_latencies, measure_latency, untrained_figures
from model.onnx_session import open_session

SMALL = TrainConfig(width=4, depth=2)
MEASURED = Latency(
    median_ms=1.5,
    p95_ms=2.0,
    runs=30,
    size=32,
    threads=1,
    device="cpu",
    processor="a CPU",
    provider="CPUExecutionProvider",
    onnxruntime="1.32.0",
)


class Session:
    """Takes the times that it is given, on a clock of its own; logs who ran."""

    def __init__(self, name, times, clock, log):
        self.name, self.times, self.clock, self.log = name, times, clock, log
        self.runs = []

    def get_inputs(self):
        class Noisy:
            name, shape = "noisy", ["n", 1, "h", "w"]

        return [Noisy]

    def get_providers(self):
        return ["CPUExecutionProvider"]

    def run(self, outputs, inputs):
        assert inputs["noisy"].shape == (1, 1, 64, 64)
        assert inputs["noisy"].dtype == np.float32
        taken = self.times(len(self.runs))
        self.clock[0] += taken
        self.runs.append(taken)
        self.log.append(self.name)


@pytest.fixture
def sessions(monkeypatch):
    """Sessions on a clock that only they move: how they are made, from the content of their file."""
    clock, log, made = [0.0], [], {}
    times = {b"slow": lambda i: 1.0 + i / 1000, b"fast": lambda i: 1e-5, b"first": lambda i: 0.02 if i else 900.0}

    def fake(content, *, threads):
        made[content] = Session(content, times[content], clock, log)
        return made[content]

    monkeypatch.setattr(model.latency, "open_session", fake)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    return made, log


def test_a_latency_is_numpys_percentiles_of_the_runs_and_has_at_least_thirty(sessions):
    measured = measure_latency(b"slow", size=64)
    runs = sessions[0][b"slow"].runs
    counted = [taken for i, taken in enumerate(runs[1:]) if i % 4]  # not the first one, and not the first of a round
    assert measured.runs == len(counted) == 30
    assert measured.median_ms == pytest.approx(1e3 * np.percentile(counted, 50))
    assert measured.p95_ms == pytest.approx(1e3 * np.percentile(counted, 95))


def test_a_slow_first_run_is_not_measured(sessions):
    assert measure_latency(b"first", size=64).p95_ms == pytest.approx(20)


def test_files_take_turns_and_a_fast_one_runs_more_often(sessions):
    slow, fast = measure_latencies([b"slow", b"fast"], size=64)
    assert (slow.runs, fast.runs) == (30, 1000)
    changes = [name for i, name in enumerate(sessions[1]) if i == 0 or sessions[1][i - 1] != name]
    assert changes == [b"slow", b"fast"] * 11  # the first runs, and ten rounds
    assert slow.median_ms > 1000
    assert fast.median_ms == pytest.approx(0.01)


def test_the_threads_are_those_of_onnxruntime_and_the_machine_is_named(exported, monkeypatch):
    opened = []

    def opening(content, *, threads):
        opened.append(open_session(content, threads=threads))
        return opened[-1]

    monkeypatch.setattr(model.latency, "open_session", opening)
    measured = measure_latency(exported.folder / "generator.onnx", size=64, threads=2)
    assert opened[0].get_session_options().intra_op_num_threads == measured.threads == 2
    assert (measured.processor, measured.onnxruntime) == (processor(), onnxruntime.__version__)
    assert measured.provider in onnxruntime.get_available_providers()
    assert (measured.device == "cpu") == (measured.provider == "CPUExecutionProvider")
    assert 0 < measured.median_ms <= measured.p95_ms
    assert measured.size == 64


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"size": 0}, "size=0: must be at least 1"),
        ({"size": 32.0}, "size=32.0: must be at least 1"),
        ({"size": 1 << 20}, "size=1048576: must be at least 1 and at most"),
        ({"size": 32, "threads": 0}, "threads=0: must be at least 1 and at most .* this machine has "),
        ({"size": 32, "threads": True}, "threads=True: must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_named_before_anything_is_opened(wrong, why, tmp_path):
    with pytest.raises(ConfigError, match=why):
        measure_latency(tmp_path / "missing", **wrong)


def test_a_size_that_the_network_cannot_halve_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"size=45: must be a multiple of 4, .* the nearest is 44"):
        untrained_figures(SMALL, (1, 32, 32), size=45)
    with pytest.raises(ConfigError, match=r"size=1: must be a multiple of 4, .* the nearest is 4"):
        untrained_figures(SMALL, (1, 32, 32), size=1)


@pytest.mark.parametrize("content", [b"", b"not a network"])
def test_a_file_that_is_no_network_is_bad_input(content):
    with pytest.raises(ConfigError, match="onnxruntime cannot run the network"):
        measure_latency(content, size=32)


def test_a_latency_survives_json():
    assert Latency.from_dict(json.loads(json.dumps(MEASURED.as_dict()))) == MEASURED
    assert "1.5 ms (95th percentile 2 ms): 32x32 pixels, 30 runs, 1 thread, a CPU" in str(MEASURED)


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {},
        *({**MEASURED.as_dict(), name: None} for name in MEASURED.as_dict()),
        {**MEASURED.as_dict(), "median_ms": float("nan")},
        {**MEASURED.as_dict(), "median_ms": 0},
        {**MEASURED.as_dict(), "median_ms": 3.0},  # above the 95th percentile
        {**MEASURED.as_dict(), "p95_ms": float("inf")},
        {**MEASURED.as_dict(), "runs": 0},
        {**MEASURED.as_dict(), "size": True},
        {**MEASURED.as_dict(), "threads": 0},
        {**MEASURED.as_dict(), "more": 1},
    ],
    ids=str,
)
def test_a_broken_latency_is_bad_input(broken):
    with pytest.raises(ConfigError):
        Latency.from_dict(broken)


# --- before training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"width": 8}, {"width": 4, "blocks": 1, "depth": 3, "output": "residual"}, {"norm": "instance"}],
    ids=str,
)
def test_parameters_and_megabytes_of_an_untrained_network_are_those_of_torch(settings):
    config = TrainConfig(**settings)
    generator = Generator(config, channels=3, image_size=32)
    figures = untrained_figures(config, (3, 32, 32))
    assert figures.keys() == {"latency", "params", "size_mb"}
    assert figures["params"] == sum(p.numel() for p in generator.parameters())
    tensors = [tensor for tensor in generator.state_dict().values() if tensor.is_floating_point()]
    assert figures["size_mb"] == pytest.approx(sum(t.numel() for t in tensors) * 4e-6, rel=0.02, abs=0.03)
    assert figures["latency"] > 0


def test_the_megabytes_are_those_of_the_file_that_is_exported_later(exported):
    config = TrainConfig.from_dict(exported.manifest["config"])
    file = exported.folder / "generator.onnx"
    assert untrained_figures(config, (1, 32, 32))["size_mb"] == pytest.approx(file.stat().st_size / 1e6, rel=0.01)


def test_the_untrained_network_is_that_of_the_export(exported):
    """onnxruntime runs the same operators of both files, after its own optimisation."""
    config = TrainConfig.from_dict(exported.manifest["config"])
    generator = Generator(config, channels=1, image_size=32).eval()
    contents = [
        (exported.folder / "generator.onnx").read_bytes(),
        model.latency._former_export(generator, 1),
    ]
    image = {"noisy": np.zeros((1, 1, 32, 32), np.float32)}
    operators = []
    for content in contents:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(exported.folder.parent / "profile")
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        session.run(None, image)
        events = json.loads(Path(session.end_profiling()).read_text())
        operators.append([e["args"]["op_name"] for e in events if e["name"].endswith("_kernel_time")])
    assert len(operators[0]) > 10
    assert operators[0] == operators[1]


def test_measuring_leaves_the_random_numbers_of_the_training_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    untrained_figures(SMALL, (1, 32, 32))
    assert torch.equal(torch.rand(3), expected)


def test_with_one_thread_waiting_for_the_cpu_does_not_lengthen_the_latency(monkeypatch):
    """Each run waits a second for the CPU, by the clock on the wall."""
    clock = [0.0]

    def later():
        clock[0] += 1.0
        return clock[0]

    monkeypatch.setattr(time, "perf_counter", later)
    assert untrained_figures(SMALL, (1, 32, 32), threads=1)["latency"] < 900
    assert untrained_figures(SMALL, (1, 32, 32), threads=2)["latency"] == pytest.approx(1000)


def test_waiting_counts_in_an_export_unless_it_is_left_out(sessions, monkeypatch):
    """The fake sessions move the clock on the wall alone, as waiting does."""
    own = iter(range(10**6))
    monkeypatch.setattr(time, "thread_time", lambda: next(own) / 1e3)
    for counts, threads, ms in ((True, 1, 0.01), (False, 1, 1.0), (False, 2, 0.01)):
        (latency,) = measure_latencies([b"fast"], size=64, threads=threads, counts_waiting=counts)
        assert latency.median_ms == pytest.approx(ms)


def test_a_network_too_large_for_an_onnx_file_is_refused_before_it_is_made():
    with pytest.raises(ConfigError, match=r"width=1024: makes .* parameters, too many for an ONNX file"):
        untrained_figures(TrainConfig(width=1024), (1, 256, 256))
