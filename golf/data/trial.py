"""A loader tried before the run: whether it is one, and whether its settings and sizes fit."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from golf.common.errors import ConfigError
from golf.data.loader import Feed, Loader, TrainLoader
from golf.data.shards import Shards

_ENDLESS = 10**12


def blank(vocab_size: int) -> Shards:
    """As many tokens as any loader asks for, all of one id, which take no memory."""
    ids = np.broadcast_to(np.array(vocab_size - 1, np.uint16), _ENDLESS)
    return Shards([Path("no data yet")], [ids], vocab_size)


def packs(build: Callable[..., Any], feed: Feed) -> bool:
    """Whether what `build(feed=…)` makes hands out documents' borders, as far as can be known before there is data.

    One of the engine's kind reads a step of blank tokens. Raises ConfigError, or what the user's own code raises.
    """
    target = build.func if isinstance(build, functools.partial) else build
    if not isinstance(target, type):
        return False
    methods = [name for name, value in vars(Loader).items() if inspect.isfunction(value) and not name.startswith("_")]
    if missing := [name for name in methods if not hasattr(target, name)]:
        raise ConfigError(f"loader: {target.__name__} has no {', '.join(missing)} "
                          "(golf.data.loader.Loader says what is needed)")  # fmt: skip
    if not issubclass(target, TrainLoader):
        return False
    loader = build(feed=feed)
    try:
        return any(batch.borders is not None for batch in loader.next_step())
    finally:
        loader.close()
