"""Options of Hydra's own groups: what a user may choose, golf's, Hydra's and those of plugins that are installed."""

from __future__ import annotations

from collections.abc import Iterable

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override

from golf.common.errors import ConfigError, did_you_mean

TOLD = {
    "hydra/launcher": {
        "local": "golf's, on this machine, as many jobs at a time as there is room for",
        "slurm": "golf's, on a Slurm cluster",
        "basic": "Hydra's, one job after the other",
    },
    "hydra/sweeper": {
        "golf": "golf's, with sweep=grid, seeds, ablate, tpe (Optuna), halving",
        "basic": "Hydra's plain grid",
    },
}
"""Group → what its options are, in words; both groups are for sweeps (-m)."""

INTERNAL = {"hydra/config", "hydra/env", "hydra/output"}


def group_options(group: str) -> list[str]:
    """Options of a group below hydra/, golf's first; within `composer`."""
    loader = GlobalHydra.instance().config_loader()
    found = [name for name in loader.get_group_options(group) if not name.startswith("_")]
    ours = list(TOLD.get(group, ()))
    return sorted(found, key=lambda name: (ours.index(name) if name in ours else len(ours), name))


def group_names() -> list[str]:
    """The groups below hydra/ that have options; within `composer`."""
    loader = GlobalHydra.instance().config_loader()
    names = {f"hydra/{name}" for name in loader.list_groups("hydra")}
    return sorted(name for name in names - INTERNAL if group_options(name))


def check(override: Override, names: Iterable[str]) -> None:
    """Raises ConfigError for an option (one of `names`) that a group below hydra/ does not have."""
    group = override.key_or_group
    known = group_options(group)
    if not known:
        every = group_names()
        raise ConfigError(f"{group}: there is no such group {did_you_mean(group, every)}\ngroups: {', '.join(every)}")
    for name in names:
        if name not in known:
            told = TOLD.get(group, {})
            choices = "; ".join(f"{one} ({told[one]})" if one in told else one for one in known)
            raise ConfigError(f"{group}={name}: there is no such option\nchoices: {choices}")
