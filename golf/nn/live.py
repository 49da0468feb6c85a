"""A model's state by name, looked up when it is asked for: a module may put another tensor in the place of one."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import nn

PLAIN = (torch.Tensor, bool, int, float, str, type(None), list, tuple, dict, set, deque)
HOUSE = __name__.partition(".")[0]
"""What golf's own classes are at home in; in a file that runs alone they are at home in that."""
_EVERY_MODULES = frozenset(vars(nn.Module()))


class Live(MutableMapping[str, torch.Tensor]):
    """What `state_dict` has of a model, under its names; the tensors themselves, as they are now.

    temporary: buffers that are no part of state_dict too. Setting a name puts a tensor into the model, deleting one
    takes it out.
    """

    def __init__(self, model: nn.Module, temporary: bool = False) -> None:
        self.model, self.temporary = model, temporary
        self._places: dict[str, tuple[dict[str, Any], str]] = {}
        self._find()
        self._first = set(self._places)  # a place that was empty is empty again, not gone, when its tensor is taken out

    def _find(self) -> None:
        self._places = {}
        for prefix, module in self.model.named_modules(remove_duplicate=False):
            for owner in (module._parameters, module._buffers):
                for name in owner:
                    if self.temporary or name not in module._non_persistent_buffers_set:
                        self._places[f"{prefix}.{name}" if prefix else name] = (owner, name)

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor of this name, or `default`."""
        place = self._places.get(name)
        found = None if place is None else place[0].get(place[1])
        return default if found is None else found

    @property
    def declared(self) -> frozenset[str]:
        """The names that had a place from the start, be it an empty one."""
        return frozenset(self._first)

    def getter(self, name: str) -> Callable[[], torch.Tensor | None]:
        """What gives the tensor of this name quickly, for those who ask for every tensor at every step."""
        owner, last = self._places[name]
        return partial(owner.get, last)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor | None = self.get(name)
        if tensor is None:
            raise KeyError(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        self._find()  # a module may have made one meanwhile
        return iter([name for name in self._places if self.get(name) is not None])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __setitem__(self, name: str, tensor: torch.Tensor) -> None:
        path, _, last = name.rpartition(".")
        module = self.model.get_submodule(path)
        if last in module._parameters:
            module._parameters[last] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
        else:
            module._buffers[last] = tensor

    def __delitem__(self, name: str) -> None:
        path, _, last = name.rpartition(".")
        module = self.model.get_submodule(path)
        owner = module._parameters if last in module._parameters else module._buffers
        if name in self._first:
            owner[last] = None
        else:
            owner.pop(last, None)  # a module that has two names was seen before


def home(part: object) -> str:
    """The package whose class an object is of."""
    return type(part).__module__.partition(".")[0]


def attributes(model: nn.Module) -> dict[str, Any]:
    """Plain values that modules of others than golf's keep beside their parameters and buffers, by name: tensors,
    numbers, texts, and what holds these."""
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, module in model.named_modules()
        if home(module) != HOUSE
        for name, value in vars(module).items()
        if name not in _EVERY_MODULES and isinstance(value, PLAIN)
    }


def copied(model: nn.Module, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The `attributes` of a model as they are now (or those given, copied again): containers and tensors are copies,
    what two share stays shared, and its modules, parameters and buffers are themselves."""
    values = attributes(model) if values is None else values
    keep = (*model.modules(), *model.parameters(), *model.buffers())
    memo: dict[int, Any] = {id(one): one for one in keep}
    for one in within(values):
        if isinstance(one, torch.Tensor):  # deepcopy takes none that a graph made
            memo.setdefault(id(one), one.detach().clone())
    return copy.deepcopy(values, memo)


def within(value: Any) -> Iterator[Any]:
    """A value and, if it is a plain container, what lies in it, all the way down."""
    yield value
    if isinstance(value, dict | list | tuple | set | deque):
        for item in value.values() if isinstance(value, dict) else value:
            yield from within(item)


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are of one shape and dtype, on one device."""
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal, bit for bit; of what is not plain only the type counts."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        if not alike(one, other):
            return False
        return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(item, other[key]) for key, item in one.items())
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    return not isinstance(one, PLAIN) or bool(one == other or (one != one and other != other))


def beside_state(model: nn.Module) -> dict[str, Any]:
    """What a model keeps that no state_dict has, by name: buffers that are not persistent, and `attributes`."""
    temporary, kept = Live(model, temporary=True), Live(model)
    return {name: tensor for name, tensor in temporary.items() if name not in kept} | attributes(model)


def set_attributes(model: nn.Module, values: dict[str, Any]) -> None:
    """Put back what `attributes` gave; what it did not know of is taken away."""
    for name in attributes(model).keys() | values.keys():
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        if name in values:
            vars(module)[last] = values[name]
        else:
            vars(module).pop(last)
