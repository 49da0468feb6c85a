"""`golf doctor`: what this machine has, and what of golf was never run on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from golf.cli.tables import Column, Table, print_table, size
from golf.common.errors import ConfigError, GolfError

PAGE = """golf doctor

Shows versions, devices, memory, golf's cache, the attention backends that are installed here (and which of them golf
was ever run with), how wandb would log, and free disk space. Needs no network; always ends with 0.

  golf doctor
  golf doctor | grep cache
"""

TRIED = {
    "sdpa": "yes",
    "cudnn": "yes, 1.18.0 on an H200",
    "flash_attn_2": "yes, 2.8.3.post2 on an H200",
    "flash_attn_3": "not yet: held to its documented interface, never run",
    "flash_attn_4": "yes, 4.0.0b36 on an H200",
    "cudnn_flash_attn_4": "yes, 1.18.0 and 4.0.0b36 on an H200",
}
"""Whether golf was ever run with an attention backend."""


def run(argv: list[str]) -> int:
    """Print the page. Raises ConfigError for any argument."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    if argv:
        raise ConfigError(f"{argv[0]}: golf doctor takes no arguments")
    table = Table(Column("what", right=False, style="bold"), Column("", right=False, prose=True), header=False)
    for title, facts in (("software", software()), ("machine", machine()), ("folders", folders()), ("wandb", wandb())):
        table.add_section()
        for index, (name, text) in enumerate(facts):
            table.add_row(f"{title}: {name}" if index == 0 else f"{' ' * len(title)}  {name}", text)
    print_table(table)
    backends = Table(
        Column("backend", right=False),
        *(Column(name, right=False, prose=True) for name in ("installed here", "golf was run with it")),
        title="attention backends (model.attention.backend=…)",
    )
    for row in attention():
        backends.add_row(*row)
    print_table(backends)
    return 0


def software() -> Iterator[tuple[str, str]]:
    """Versions, and golf's own files."""
    import torch  # noqa: F401 (so that `versions` can tell its CUDA and cuDNN)

    from golf.common.paths import conf_dir
    from golf.runs import environment

    versions = environment.versions()
    yield "golf", versions.pop("golf")
    yield "python", versions.pop("python")
    yield from versions.items()
    try:
        yield "conf", str(conf_dir())
    except GolfError as error:
        yield "conf", f"MISSING: {error}"
    git = environment.git_state()
    if git is not None:
        yield "checkout", f"{git.commit[:10]} on {git.branch or 'no branch'}{', with changes' if git.dirty else ''}"


def machine() -> Iterator[tuple[str, str]]:
    """Cores, memory, GPUs."""
    import psutil
    import torch

    from golf.runs import environment

    here = environment.hardware()
    memory = psutil.virtual_memory()
    yield "cpu", f"{here.cpu}, {here.cores} cores for this process"
    yield "memory", f"{size(memory.total)}, {size(memory.available)} free"
    for index, gpu in enumerate(here.gpus):
        yield f"gpu {index}", f"{gpu.name}, {size(gpu.memory_bytes)}, compute capability {gpu.capability}"
    if not here.gpus:
        why = "torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        yield "gpu", f"none ({why}): runtime=auto means runtime=cpu"


def folders() -> Iterator[tuple[str, str]]:
    """Cache and free disk."""
    from golf.common.files import cache_dir, unusable

    cache = cache_dir()
    chosen = "$GOLF_CACHE" if os.environ.get("GOLF_CACHE") else "the default; $GOLF_CACHE chooses another"
    why = unusable(cache)
    held = f"CANNOT BE USED, {why} ({chosen})" if why else f"{size(bytes_below(cache))} ({chosen})"
    yield "cache", f"{cache}: {held}"
    yield "disk of the cache", free(cache)
    yield "disk of this folder", free(Path.cwd())


def wandb() -> Iterator[tuple[str, str]]:
    """How logger=wandb would behave: its mode, its project, and what it makes of wandb's own variables."""
    from golf.runs.loggers import has_wandb_key
    from golf.runs.wandb_environment import choose

    key = "found" if has_wandb_key() else "none; logger.mode=online needs one (WANDB_API_KEY, or `wandb login`)"
    try:
        chosen = choose({}, os.environ)
    except ConfigError as error:
        yield "variables", str(error).splitlines()[0]
    else:
        later = "; `wandb sync` uploads later" if chosen.mode == "offline" else ""
        yield "mode", f"{chosen.mode} unless logger.mode says otherwise{later}"
        yield "project", chosen.project
        for line in chosen.told:
            yield "variables", line
    yield "key", key


def attention() -> Iterator[tuple[str, str, str]]:
    """(backend, installed or how to install, whether golf was run with it)."""
    from golf.nn.attend import OPTIONAL, installed

    for name, tried in TRIED.items():
        yield name, "yes" if installed(name) else f"no: {OPTIONAL[name][1]}", tried


def bytes_below(folder: Path) -> int:
    """The size of all files in a folder; those that vanish meanwhile count nothing."""
    total = 0
    for directory, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(directory, name)).st_size
            except OSError:
                continue
    return total


def free(folder: Path) -> str:
    """Free space of the disk that holds a folder, or will."""
    existing = next((one for one in (folder, *folder.parents) if os.path.exists(one)), Path("/"))
    try:
        return f"{size(shutil.disk_usage(existing).free)} free"
    except OSError as error:
        return f"unknown ({error.strerror})"
