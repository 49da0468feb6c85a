"""What a run stood on: versions, git state, hardware, peak memory. Nothing here ever fails a run."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from golf.common.process import usable_cores
from golf.common.version import VERSION
from golf.runs.record import Git, Gpu, Hardware, PeakMemory

_PACKAGES = (
    *("golf", "torch", "triton", "numpy", "hydra-core", "omegaconf", "sentencepiece", "safetensors"),
    *("zstandard", "brotli", "pydantic", "wandb", "flash-attn", "flash-attn-4", "nvidia-cudnn-frontend"),
)


def versions() -> dict[str, str]:
    """Versions of python, golf, torch, its CUDA and cuDNN, and the packages that can change a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found.setdefault("golf", VERSION)  # run from a source tree that was never installed
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = str(torch.__version__)
        if torch.version.cuda:
            found["cuda"] = str(torch.version.cuda)
            found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def git_state(directory: Path | None = None) -> Git | None:
    """Commit, branch and whether it holds uncommitted work, of the checkout that holds `directory`.

    Without an argument it is golf's own source, and None for an installed wheel or where there is no git.
    """
    source = Path(__file__).parent if directory is None else Path(directory)
    if directory is None and {"site-packages", "dist-packages"} & set(source.parts):
        return None  # a virtual environment inside someone's checkout says nothing about golf's code
    commit = _git(source, "rev-parse", "HEAD")
    if not commit:
        return None
    branch = _git(source, "rev-parse", "--abbrev-ref", "HEAD")
    changes = _git(source, "status", "--porcelain")
    return Git(commit=commit, branch=None if branch in (None, "HEAD") else branch, dirty=changes != "")


def hardware() -> Hardware:
    """This machine, and the GPUs if torch is loaded and sees any."""
    return Hardware(
        host=socket.gethostname(),
        platform=platform.platform(),
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        gpus=_gpus(),
    )


def peak_memory() -> PeakMemory:
    """This process's peaks so far: its GPU's allocator (rank-local) and its resident set."""
    peak = PeakMemory(host_rss=_peak_rss())
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak.gpu_allocated = [int(torch.cuda.max_memory_allocated())]
        peak.gpu_reserved = [int(torch.cuda.max_memory_reserved())]
    return peak


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(directory), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # read only: never touch the user's index
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=environment, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _gpus() -> list[Gpu]:
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    try:
        if not torch.cuda.is_available():
            return []
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    except Exception:  # a broken driver raises whatever it likes; the record goes without
        return []
    return [Gpu(name=p.name, memory_bytes=p.total_memory, capability=f"{p.major}.{p.minor}") for p in properties]


def _peak_rss() -> int | None:
    try:
        import resource
    except ImportError:  # no such module on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
