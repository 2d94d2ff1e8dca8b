"""fp32, fp16 and int8 of one network: quality, megabytes, latency.

    python benchmarks/precision.py EXPORT [--images 10000] [--sizes 32,256] [--threads 1,2]

EXPORT is a folder with a float32 network, as `hpo export` writes it. The three files are measured on the same noisy
test images, and their latency in turns. int8 is calibrated on training images, as in `hpo export --precision int8`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from model.data.data_config import DataConfig
from model.denoise import MANIFEST, Denoiser
from model.export_quality import evaluate
from model.latency import Latency, measure_latencies
from model.quantization import PRECISIONS, reduced


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, metavar="EXPORT")
    parser.add_argument("--images", type=int, default=10_000, help="test images (default: 10000)")
    parser.add_argument("--sizes", type=numbers, default=[32, 256], help="pixels a side (default: 32,256)")
    parser.add_argument("--threads", type=numbers, default=[1], help="threads of the CPU (default: 1)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    float32 = Denoiser(arguments.export)
    if float32.manifest.get("precision", "fp32") != "fp32":
        parser.error(f"{arguments.export}: is in {float32.manifest['precision']}; name an export in fp32")
    data = DataConfig.from_dict(float32.manifest["data"])
    images, test = data.load(), data.load_test()[: arguments.images]
    content = (arguments.export / float32.manifest["model"]["file"]).read_bytes()
    networks = {
        name: content if name == "fp32" else reduced(content, name, images, data.noise)  # type: ignore[arg-type]
        for name in PRECISIONS
    }
    quality = {name: quality_of(network, float32.manifest, test, data.noise) for name, network in networks.items()}
    latencies = {
        (size, threads): dict(
            zip(networks, measure_latencies(list(networks.values()), size=size, threads=threads), strict=True)
        )
        for size in arguments.sizes
        for threads in arguments.threads
    }
    if arguments.json:
        rows = [{name: each.as_dict() for name, each in by.items()} for by in latencies.values()]
        print(json.dumps({"images": len(test), "quality": quality, "latency": rows}, indent=2))
        return
    print(table(networks, quality, latencies, len(test)))


def quality_of(network: bytes, manifest: dict[str, Any], test: Any, noise: str) -> dict[str, Any]:
    """The row of the denoised images."""
    with tempfile.TemporaryDirectory() as folder:
        file = manifest["model"]["file"]
        (Path(folder) / file).write_bytes(network)
        changed = {**manifest, "files": {file: hashlib.sha256(network).hexdigest()}, "strip": None}
        (Path(folder) / MANIFEST).write_text(json.dumps(changed))
        row: dict[str, Any] = evaluate(Denoiser(folder), test, noise, "test")["denoised"]
    return row


def table(
    networks: dict[str, bytes],
    quality: dict[str, Any],
    latencies: dict[tuple[int, int], dict[str, Latency]],
    images: int,
) -> str:
    """Markdown."""
    heads = [f"{size}x{size}, {threads} thread{'s' * (threads > 1)}" for size, threads in latencies]
    lines = [f"| {images:,} test images | PSNR dB | SSIM | MB | {' | '.join(f'{head}: ms (p95)' for head in heads)} |"]
    lines.append("|---" * (4 + len(heads)) + "|")
    for name, network in networks.items():
        row = quality[name]
        times = [f"{by[name].median_ms:.3g} ({by[name].p95_ms:.3g})" for by in latencies.values()]
        figures = [f"{float(row['psnr_db']):.3f}", f"{row['ssim']:.4f}", f"{len(network) / 1e6:.2f}", *times]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    first = next(iter(next(iter(latencies.values())).values()))
    lines += ["", f"{first.processor}, {first.device}, {first.provider} of onnxruntime {first.onnxruntime}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
