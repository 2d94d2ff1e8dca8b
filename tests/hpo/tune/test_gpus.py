"""GPUs by Ray's word alone: a node says that it has some, and torch finds none."""

from __future__ import annotations

import json
import sys

import gpu_search
import pytest
import torch
from drivers import GUARD_SECONDS, driver

from hpo.tune.trainable import DeviceMissingError, _device

ASKED = {"gpus": 0.25, "allow_cpu": False}


@pytest.mark.parametrize(
    ("config", "there", "device"),
    [
        (ASKED, True, "cuda:0"),  # Ray hides all but those that it assigned
        ({**ASKED, "gpus": 0.0}, True, "cpu"),
        ({**ASKED, "gpus": 0.0}, False, "cpu"),
        ({**ASKED, "allow_cpu": True}, True, "cuda:0"),
        ({**ASKED, "allow_cpu": True}, False, "cpu"),
    ],
)
def test_a_trial_runs_where_it_was_asked_to(config, there, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert _device(config) == torch.device(device)


def test_a_gpu_that_does_not_work_is_never_silently_replaced_by_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceMissingError, match=r"needs 0\.25 GPUs, and torch .* finds none .*--allow-cpu"):
        _device(ASKED)


@pytest.mark.slow
@pytest.mark.timeout(2 * GUARD_SECONDS)
def test_trials_share_gpus_as_asked_each_sees_its_own_and_without_leave_none_uses_the_cpu(tmp_path):
    """Four at once on two GPUs; then as many that refuse."""
    with driver(tmp_path, [], (sys.executable, gpu_search.__file__, str(tmp_path))) as running:
        out, errors = running.process.communicate(timeout=GUARD_SECONDS)
        assert running.process.returncode == 0, errors
    seen, refused = (json.loads(line) for line in out.splitlines())
    assert sorted(seen) == ["0", "0", "1", "1"]
    assert "4 at a time with 0.5 GPUs and 0.5 CPUs each" in errors
    assert "3 trials failed and none finished an epoch" in refused
    assert "asked for 0.5 GPUs, and torch" in refused
