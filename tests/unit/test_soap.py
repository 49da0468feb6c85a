"""SOAP against its formula in float64, and what must hold for a rule with state of its own kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from golf.common.errors import ArtifactError, ConfigError
from golf.common.ranks import Ranks
from golf.learn.soap import FIRST_TURNS, SOAP
from golf.train.state import cloned


def gradients(shape: tuple[int, int], count: int) -> list[Tensor]:
    """Of full rank and uneven directions."""
    torch.manual_seed(1)
    small = min(shape)
    spread = torch.diag(torch.logspace(0, -1, small))
    left, right = (torch.linalg.qr(torch.randn(size, small)).Q for size in shape)
    return [left @ spread @ right.T + 0.02 * torch.randn(shape) for _ in range(count)]


def plain_soap(weight: Tensor, grads: list[Tensor], betas: list[float], every: int, sides: tuple[bool, bool]) -> Tensor:
    """The paper's algorithm for one matrix in float64; lr 0.02, weight decay 0.1, other settings the defaults."""
    w, b2, eps = weight.double(), 0.95, 1e-8
    m = v = torch.zeros_like(w)
    means = [torch.zeros(size, size).double() for size in w.shape]
    bases = [torch.eye(size).double() for size in w.shape]
    left = 1.0
    for t, (grad, b1) in enumerate(zip(grads, betas, strict=True)):
        g = grad.double()
        if t:
            left *= b1
            m, turned = b1 * m + (1 - b1) * g, bases[0].T @ g @ bases[1]
            v = b2 * v + (1 - b2) * turned**2
            n = (bases[0].T @ m @ bases[1]) / (1 - left) / ((v / (1 - b2**t)).sqrt() + eps)
            w = w * (1 - 0.02 * 0.1) - 0.02 * bases[0] @ n @ bases[1].T
        for i, outer in enumerate((g @ g.T, g.T @ g)):
            means[i] = 0.95 * means[i] + 0.05 * outer
        for _ in range(FIRST_TURNS if t == 0 else int(t % every == 0)):
            for i in (0, 1):
                if sides[i]:
                    order = torch.diag(bases[i].T @ means[i] @ bases[i]).argsort(descending=True)
                    v = v.index_select(i, order)
                    bases[i] = torch.linalg.qr(means[i] @ bases[i][:, order]).Q
    return w


@pytest.mark.parametrize(
    ("shape", "max_dim", "sides"),
    [((12, 12), 12, (True, True)), ((8, 20), 12, (True, False)), ((20, 8), 8, (False, True))],
)
def test_soap_is_its_formula(shape: tuple[int, int], max_dim: int, sides: tuple[bool, bool]) -> None:
    grads, betas = gradients(shape, 9), [0.8, 0.8, 0.85, 0.9, 0.95, 0.95, 0.95, 0.95, 0.95]
    start = torch.randn(shape)
    weight, rule = nn.Parameter(start.clone()), SOAP(every=3, max_dim=max_dim)
    rule.attach({"w": weight}, Ranks())
    for grad, momentum in zip(grads, betas, strict=True):
        weight.grad = grad.clone()
        rule.step(lr=0.02, momentum=momentum, weight_decay=0.1)
        assert torch.equal(weight.grad, grad)
    expected = plain_soap(start, grads, betas, 3, sides)
    moved = (expected - start.double()).norm()
    assert (weight.detach().double() - expected).norm() < 1e-3 * moved


def test_without_bases_it_is_adam() -> None:
    grads = gradients((6, 9), 5)
    weight, other = nn.Parameter(torch.ones(6, 9)), nn.Parameter(torch.ones(6, 9))
    rule, adam = SOAP(max_dim=0), torch.optim.AdamW([other], lr=0.02, betas=(0.9, 0.95), weight_decay=0.1)
    rule.attach({"w": weight}, Ranks())
    for index, grad in enumerate(grads):
        weight.grad, other.grad = grad.clone(), grad.clone()
        rule.step(lr=0.02, momentum=0.9, weight_decay=0.1)
        if index:  # the first gradient makes the bases alone
            adam.step()
    torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-6)


def test_bases_come_to_diagonalize_the_means() -> None:
    weight, rule = nn.Parameter(torch.zeros(10, 10)), SOAP(every=1)
    rule.attach({"w": weight}, Ranks())
    for grad in gradients((10, 10), 40):
        weight.grad = grad
        rule.step(lr=0.01, momentum=0.9, weight_decay=0.0)
    state = rule.state_dict()
    for side in ("left", "right"):
        mean, basis = state[f"{side}/w"], state[f"{side}_basis/w"]
        torch.testing.assert_close(basis.T @ basis, torch.eye(10), rtol=0, atol=1e-5)
        turned = basis.T @ mean @ basis
        assert (turned - torch.diag(turned.diagonal())).norm() < 0.01 * turned.norm()


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_loaded_state_goes_on_to_the_bit(stop: int) -> None:
    shapes = {"a": (6, 9), "b": (9, 6), "c": (6, 9)}
    grads = {name: gradients(shape, 8) for name, shape in shapes.items()}

    def go(rule: SOAP, params: dict[str, nn.Parameter], steps: range) -> None:
        for step in steps:
            for name, parameter in params.items():
                parameter.grad = grads[name][step].clone()
            rule.step(lr=0.02, momentum=0.8 + 0.01 * step, weight_decay=0.1)

    torch.manual_seed(2)
    straight = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    resumed = {name: nn.Parameter(p.detach().clone()) for name, p in straight.items()}
    first, second = SOAP(every=3), SOAP(every=3)
    first.attach(straight, Ranks())
    go(first, straight, range(stop))
    state = cloned(first.state_dict())
    for name, parameter in straight.items():
        resumed[name].data.copy_(parameter.data)
    go(first, straight, range(stop, 8))
    second.attach(resumed, Ranks())
    second.load_state_dict(state)
    go(second, resumed, range(stop, 8))
    assert all(torch.equal(straight[name], resumed[name]) for name in shapes)


def test_bfloat16_weights_move_by_float32_state() -> None:
    start = torch.randn(8, 8).bfloat16()
    low, high = nn.Parameter(start.clone()), nn.Parameter(start.float())
    for weight in (low, high):
        rule = SOAP()
        rule.attach({"w": weight}, Ranks())
        for grad in gradients((8, 8), 3):
            weight.grad = grad.bfloat16().to(weight.dtype)
            rule.step(lr=0.1, momentum=0.9, weight_decay=0.0)
        assert rule.state_dict()["second/w"].dtype == torch.float32
    torch.testing.assert_close(low.float(), high.bfloat16().float(), rtol=2**-6, atol=2**-6)


def test_a_matrix_without_gradients_stays() -> None:
    params = {name: nn.Parameter(torch.ones(4, 6)) for name in "ab"}
    rule = SOAP(every=1)
    rule.attach(params, Ranks())
    for grad in gradients((4, 6), 4):
        params["a"].grad = grad
        rule.step(lr=0.1, momentum=0.9, weight_decay=0.1)
    assert torch.equal(params["b"], torch.ones(4, 6))
    assert params["a"].isfinite().all()


def test_state_of_another_model_is_refused() -> None:
    rule, other = SOAP(), SOAP()
    rule.attach({"w": nn.Parameter(torch.zeros(3, 4))}, Ranks())
    other.attach({"w": nn.Parameter(torch.zeros(4, 3))}, Ranks())
    with pytest.raises(ArtifactError, match="shape"):
        rule.load_state_dict(other.state_dict())


@pytest.mark.parametrize("settings", [{"beta2": 1.0}, {"mean_beta": -0.1}, {"eps": 0.0}, {"every": 0}, {"max_dim": -1}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.matrix.{next(iter(settings))}"):
        SOAP(**settings)  # type: ignore[arg-type]
