"""onnxruntime's sessions, for denoising and for measuring latency."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would send usage data, and store it in ~/.cache

import onnxruntime

_EXTERNAL_WEIGHTS = "session.model_external_initializers_file_folder_path"


def open_session(content: bytes, *, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A session on the GPU, where onnxruntime has a provider for one, or on the CPU.

    Raises onnxruntime's exceptions, which have no common base but Exception.

    Args:
        content: an ONNX file, which may be untrusted.
        threads: threads of the CPU for one operator; None: one for each core.
    """
    options = onnxruntime.SessionOptions()
    # Weights in other files have no digest, and onnxruntime would search the current folder for them.
    options.add_session_config_entry(_EXTERNAL_WEIGHTS, "/dev/null/no-weights-outside-the-file")
    if threads is not None:
        options.intra_op_num_threads = threads
        # Otherwise threads wait actively after a run, and take the cores from the next file that is measured.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = [name for name in onnxruntime.get_available_providers() if name != "AzureExecutionProvider"]  # remote
    return onnxruntime.InferenceSession(content, options, providers=providers)
