"""On what a figure was measured."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def processor() -> str:
    """The CPU's name, as the system has it."""
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpus.read_text()) if cpus.exists() else []
    return names[0] if names else platform.processor() or platform.machine()
