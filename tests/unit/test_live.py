"""A model's state by name, and copies of it: a module may put another tensor in the place of one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

import pytest
import torch
from torch import nn

from golf.nn.live import Live, attributes, copied, set_attributes
from golf.train.state import Saved


class Inner(nn.Module):
    """A module with tensors of every kind."""

    none: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("none", None)
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.plain, self.steps, self.name = torch.zeros(2), 0, "inner"


@pytest.fixture
def model() -> nn.Module:
    shared = Inner()
    return nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, Inner())})


def inner(model: nn.Module) -> Inner:
    return model.get_submodule("a")  # type: ignore[return-value]


def test_it_has_what_state_dict_has(model: nn.Module) -> None:
    live, state = Live(model), model.state_dict(keep_vars=True)
    assert list(live) == list(state)
    assert all(live[name] is tensor for name, tensor in state.items())
    assert set(Live(model, temporary=True)) - set(live) == {"a.scratch", "b.0.scratch", "b.1.scratch"}


def test_it_follows_what_is_replaced_made_and_taken_away(model: nn.Module) -> None:
    live = Live(model)
    module = inner(model)
    module.mean = torch.ones(3)
    assert live["a.mean"] is live.get("b.0.mean") is module.mean
    module.none = torch.ones(1)
    module.register_buffer("late", torch.ones(1))
    del module.count
    assert list(live) == list(model.state_dict())
    assert live.get("a.count") is None


CHANGES: dict[str, Callable[[Inner], object]] = {
    "in place": lambda m: m.mean.add_(1),
    "replaced": lambda m: setattr(m, "mean", m.mean + 1),
    "of another shape": lambda m: setattr(m, "mean", torch.ones(7)),
    "of another kind": lambda m: setattr(m, "count", torch.tensor(2.5)),
    "its storage": lambda m: setattr(m.linear.weight, "data", torch.ones(3, 2)),
    "made": lambda m: setattr(m, "none", torch.ones(1)),
    "made under a new name": lambda m: m.register_buffer("late", torch.ones(1)),
    "taken away": lambda m: delattr(m, "mean"),
    "temporary": lambda m: setattr(m, "scratch", torch.zeros(2)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("refreshed", [False, True])
@torch.no_grad()
def test_a_copy_puts_back_whatever_was_done(model: nn.Module, change: str, refreshed: bool) -> None:
    saved = Saved(Live(model, temporary=True))
    if refreshed:
        inner(model).mean = torch.full((3,), 5.0)
        saved.refresh()
    before = {name: tensor.clone() for name, tensor in Live(model, temporary=True).items()}
    CHANGES[change](inner(model))
    saved.restore()
    after = Live(model, temporary=True)
    assert set(after) == set(before)
    assert inner(model).none is None
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )


def test_a_copy_is_written_into_the_tensors_that_are_still_there(model: nn.Module) -> None:
    saved, tensor = Saved(Live(model)), inner(model).mean
    tensor.add_(1)
    saved.restore()
    assert inner(model).mean is tensor


def test_plain_values_are_put_back_too(model: nn.Module) -> None:
    module = inner(model)
    before = attributes(model)
    assert before["a.steps"] == 0
    module.steps, module.plain, module.name, module.late = 3, torch.ones(2), "other", 1
    set_attributes(model, before)
    assert (module.steps, module.name, module.plain.sum().item()) == (0, "inner", 0.0)
    assert not hasattr(module, "late")


def test_a_copy_of_plain_values_keeps_their_kinds_and_what_they_share(model: nn.Module) -> None:
    module = inner(model)
    shared = torch.ones(2) * torch.ones(2, requires_grad=True)  # a graph made it
    module.last, module.counts, module.pair = deque([1], maxlen=2), Counter("aab"), [shared, shared]
    module.own = [next(model.parameters())]
    values = copied(model)
    module.last.append(2)
    module.counts["c"] += 1
    set_attributes(model, values)
    assert (module.last.maxlen, list(module.last), module.counts["a"], module.counts["z"]) == (2, [1], 2, 0)
    assert module.pair[0] is module.pair[1]
    assert module.own[0] is next(model.parameters())
