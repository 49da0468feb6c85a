"""Where Hydra looks for plugins: golf's launcher and sweeper, under the only package whose classes Hydra accepts."""

from golf.launch.local import LocalLauncher as _LocalLauncher
from golf.launch.sweep import GolfSweeper as _GolfSweeper


class LocalLauncher(_LocalLauncher):
    """`hydra/launcher=local`: the jobs of a sweep in processes of their own, packed onto this machine."""


class GolfSweeper(_GolfSweeper):
    """`hydra/sweeper=golf`: grids, sets of overrides and ablations, each job composed once."""
