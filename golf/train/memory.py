"""What an evaluation leaves in a model: found, told by name, and taken away again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from golf.nn.live import Live, attributes, copied, same, set_attributes
from golf.train.state import Saved, cloned

AT_SITE = re.compile(r"(?:^|\.)at_\w+\.([^.]+)\.")


@contextmanager
def put_back(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Leave the model's parameters, buffers and attributes after the block as they were before it; once it has ended,
    the dict has what had changed there, by name, with the values that it had come to."""
    changed: dict[str, Any] = {}
    tensors, held = Saved(Live(model, temporary=True)), copied(model)
    try:
        yield changed
    finally:
        now, plain = {name: tensor.detach() for name, tensor in tensors.tensors.items()}, attributes(model)
        changed |= {
            name: cloned(now.get(name))
            for name in now.keys() | tensors.copy.keys()
            if not same(now.get(name), tensors.copy.get(name))
        }
        if left := [name for name in plain.keys() | held.keys() if not same(plain.get(name), held.get(name))]:
            values = copied(model, plain)
            changed |= {name: values.get(name) for name in left}
        if changed:
            tensors.restore()
            set_attributes(model, held)


def told(names: Iterable[str]) -> str:
    """The names of what a model holds, each with the technique that it belongs to."""
    listed = sorted(names)
    found = [f"technique/{at[1]} ({name})" if (at := AT_SITE.search(name)) else name for name in listed[:4]]
    return ", ".join(found) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
