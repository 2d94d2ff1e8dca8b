"""The model card of an export, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .data.data_config import DataConfig
from .data.noise import REAL, parse_noise
from .data.pixel_format import EIGHT_BITS, PixelFormat
from .export_quality import compare_with_slides, network_table, quality_table

_OTHER_COLOURS = {  # how Denoiser handles them
    1: "It takes grey images. Each channel of a colour image is denoised separately.",
    3: "It takes colour images. A grey image is used for all three channels, and the result is their mean.",
}


def model_card(manifest: Mapping[str, Any], *, onnx_file: str, strip_file: str) -> str:
    """Markdown, from a manifest with its metrics; the file names are those in the folder."""
    origin, model, config = manifest["origin"], manifest["model"], manifest["config"]
    metrics, data = manifest["metrics"], manifest["data"]
    noise = data["noise"]
    where = ", ".join(f"{name} {value}" for name, value in origin.items() if value is not None)
    settings = "\n".join(f"| {name} | {value} |" for name, value in config.items() if value is not None)
    units = "of the noisy images of its pairs" if noise == REAL else parse_noise(noise).units()
    is_slides = metrics["test"] and DataConfig(**data).is_slides
    pixel_format = PixelFormat(model["depth"], DataConfig(**data).range)
    verdict = f"\n{compare_with_slides(metrics['test'])}.\n" if is_slides else ""
    scale = (
        "[-1, 1]" if pixel_format == EIGHT_BITS else f"the values of {pixel_format}, but for L1 and HaarPSI, on [-1, 1]"
    )
    return f"""# Image denoiser (pix2pix U-Net)

Removes noise `{noise}` ({units}) from images like those of
{data["data"]} ({pixel_format}). {model["parameters"]:,} parameters. From {where}.

![Input, ground truth, predicted]({strip_file})

Input / Ground Truth / Predicted, images that it was not trained on.

## Quality

Measured on `{onnx_file}` itself, on {scale}: SSIM with an 11x11 Gaussian window, sigma 1.5, and PSNR by scikit-image;
HaarPSI as in arXiv 1607.06140, from 0 to 1.

{quality_table(metrics)}
{verdict}
## Size and latency

{network_table(manifest)}
{_choice(manifest)}
## Use

```python
from pix2pix_search import Denoiser     # needs onnxruntime, numpy, pillow

denoised = Denoiser("path/to/this/folder")(noisy)     # (H, W) or (H, W, C) of any size; uint8, uint16, float in [-1, 1]
```

{_OTHER_COLOURS[model["channels"]]}

Any ONNX runtime: input `noisy` and output `denoised` are float32 (N, {model["channels"]}, H, W) in [-1, 1], H and W
multiples of {model["size_multiple"]}. It was trained on {model["image_size"]}x{model["image_size"]}
pixels; larger images are best cut into overlapping tiles of that size, which is what `Denoiser` does.

## Training

| setting | value |
|---|---|
{settings}

## Limits

It knows only the noise and the kind of images above; on others it may blur or invent structure. Don't use it where
an invented detail does harm (medicine, evidence).
"""


def _choice(manifest: Mapping[str, Any]) -> str:
    """How the network was chosen, by its certificate."""
    certificate = manifest.get("certificate", {"statement": []})
    chosen = "\n".join(f"- {line.strip()}" for line in certificate["statement"])
    return f"\n## How it was chosen\n\n{chosen}\n" if chosen else ""
