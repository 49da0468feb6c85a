"""golf: an experiment framework for Parameter Golf. `golf.load_run(dir)` opens a finished run in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from golf.common.version import VERSION as __version__

__all__ = ["__version__", "find_runs", "load_run"]

if TYPE_CHECKING:
    from golf.launch.work.notebook import find_runs, load_run


def __getattr__(name: str) -> Any:
    if name in ("load_run", "find_runs"):  # late, so that `import golf` costs nothing
        from golf.launch.work import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module 'golf' has no attribute {name!r}")
