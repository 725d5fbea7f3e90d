"""What was measured on: a line for a benchmark's table."""

import os
import platform
from pathlib import Path

from utils.files import counted


def about_computer() -> str:
    """The processor, and how many of its cores this process may use (Linux; elsewhere, what Python knows)."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {counted(cores, 'core')}"
