"""What benchmarks say of the machine they ran on, and how much memory a process took. Imported by scripts beside it."""

import platform
from pathlib import Path

import torch


def machine(device: str = "cpu", threads: int | None = None) -> str:
    """The device's name and how many threads compute: PyTorch's, unless a number is given (faiss counts its own)."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    names = cpu.read_text().splitlines() if cpu.exists() else []
    name = next((row.split(":")[1].strip() for row in names if row.startswith("model name")), platform.processor())
    return f"{name}, {threads or torch.get_num_threads()} threads"


def resident(what: str) -> float:
    """MiB of this process in memory: VmRSS now, VmHWM at most. nan where the system does not say: all but Linux."""
    status = Path("/proc/self/status")
    rows = status.read_text().splitlines() if status.exists() else []
    return next((int(row.split()[1]) / 1024 for row in rows if row.startswith(f"{what}:")), float("nan"))


def forget_peak() -> None:
    """VmHWM starts anew from what is resident now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
