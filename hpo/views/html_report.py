"""The report: a search as one HTML file that opens from disk and needs no network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo.store.record import Record
from hpo.views.report_contents import contents
from model.common.files import write_atomically

REPORT = "report.html"  # in a search's folder
_TEMPLATE = Path(__file__).with_suffix(".html")


def write_report(record: Record, to: Path | None = None) -> Path:
    """Write the report to a file (default: report.html in the search's folder), and return its path. Raises OSError."""
    path = to or record.user_folder / REPORT
    write_atomically(path, page(contents(record)).encode())
    return path


def page(data: Mapping[str, Any]) -> str:
    """The HTML file for report_contents.contents.

    A browser runs the page's own script and style only, by their digests. All that comes from a search is data.
    """
    template = _TEMPLATE.read_text(encoding="utf-8")
    script, style = (re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL) for tag in ("script", "style"))
    assert script
    assert style
    policy = (
        f"default-src 'none'; script-src '{_digest(script[1])}'; style-src '{_digest(style[1])}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # Escape <, > and & in the JSON, so that no text in it can end the element that holds it.
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    values = {"{{policy}}": policy, "{{title}}": html.escape(f"{data['name']}: a search"), "{{data}}": text}
    return re.sub("|".join(map(re.escape, values)), lambda match: values[match[0]], template)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
