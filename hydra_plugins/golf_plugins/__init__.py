"""Where Hydra looks for plugins: golf's launchers and sweeper, under the only package whose classes Hydra accepts."""

from golf.launch.sweep.local import LocalLauncher as _LocalLauncher
from golf.launch.sweep.slurm import SlurmLauncher as _SlurmLauncher
from golf.launch.sweep.sweeper import GolfSweeper as _GolfSweeper


class LocalLauncher(_LocalLauncher):
    """`hydra/launcher=local`: the jobs of a sweep in processes of their own, packed onto this machine."""


class SlurmLauncher(_SlurmLauncher):
    """`hydra/launcher=slurm`: the jobs of a sweep as a Slurm job array, through submitit."""


class GolfSweeper(_GolfSweeper):
    """`hydra/sweeper=golf`: grids, sets of overrides and ablations, each job composed once."""
