"""Newton–Schulz and the matrix rules: published units, and what must hold for any matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from golf.common.errors import ArtifactError, ConfigError
from golf.common.ranks import Ranks
from golf.learn.muon import POLAR_EXPRESS, QUINTIC, Muon, NorMuon, newton_schulz, shape_scale
from golf.learn.rule import MatrixRule


def fill(tensor_id: int, rows: int, cols: int) -> Tensor:
    """The deterministic fill in (-1, 1) that the published units were computed from."""
    index = torch.arange(1, rows * cols + 1, dtype=torch.float64)
    z = torch.sin(12.9898 * index + 78.233 * tensor_id) * 43758.5453
    return (2 * (z - z.floor()) - 1).float().view(rows, cols)


def three_steps(rule: MatrixRule, rows: int, cols: int, weight_decay: float = 0.0) -> nn.Parameter:
    weight = nn.Parameter(fill(101, rows, cols))
    rule.attach({"w": weight}, Ranks())
    for tensor_id in (110, 111, 112):
        weight.grad = fill(tensor_id, rows, cols)
        rule.step(lr=0.02, momentum=0.95, weight_decay=weight_decay)
    return weight.detach()


def test_fill_is_the_published_one() -> None:
    assert fill(1, 1, 4).add(1).div(2).flatten().tolist() == pytest.approx(
        [0.74008482, 0.56439513, 0.45474926, 0.27240074], abs=1e-6
    )


@pytest.mark.parametrize(
    ("shape", "norm", "largest", "smallest"), [((8, 16), 2.6030, 1.119, 0.686), ((16, 8), 2.7497, 1.141, 0.683)]
)
def test_newton_schulz_units(shape: tuple[int, int], norm: float, largest: float, smallest: float) -> None:
    result = newton_schulz(fill(100, *shape)[None])[0].float()
    singular = torch.linalg.svdvals(result)
    assert [result.norm().item(), singular[0].item(), singular[-1].item()] == pytest.approx(
        [norm, largest, smallest], abs=1e-2
    )


@pytest.mark.parametrize(
    ("shape", "moved", "head", "total", "decayed_total"),
    [
        ((8, 16), 0.12432, [0.84453, -0.28161, 0.38947, 0.71870], -2.12486, -2.11961),
        ((16, 8), 0.17652, [0.84393, -0.29545, 0.38550, 0.71821], -2.12734, -2.12208),
    ],
)
def test_muon_units(
    shape: tuple[int, int], moved: float, head: list[float], total: float, decayed_total: float
) -> None:
    weight = three_steps(Muon(), *shape)
    assert (weight - fill(101, *shape)).norm().item() == pytest.approx(moved, abs=2e-5)
    assert weight[0, :4].tolist() == pytest.approx(head, abs=2e-5)
    assert weight.sum().item() == pytest.approx(total, abs=5e-5)
    assert three_steps(Muon(), *shape, weight_decay=0.04).sum().item() == pytest.approx(decayed_total, abs=5e-5)


@pytest.mark.parametrize(
    ("shape", "moved", "head", "total", "second"),
    [
        ((8, 16), 0.12490, [0.84520, -0.28173, 0.38991, 0.71889], -2.12111, [0.007598, 0.007842, 0.007790]),
        ((16, 8), 0.17325, [0.84362, -0.29629, 0.38656, 0.71773], -2.14213, [0.006488, 0.007979, 0.007940]),
    ],
)
def test_normuon_units(
    shape: tuple[int, int], moved: float, head: list[float], total: float, second: list[float]
) -> None:
    rule = NorMuon(beta2=0.95)
    weight = three_steps(rule, *shape)
    assert (weight - fill(101, *shape)).norm().item() == pytest.approx(moved, abs=2e-5)
    assert weight[0, :4].tolist() == pytest.approx(head, abs=2e-5)
    assert weight.sum().item() == pytest.approx(total, abs=5e-5)
    state = rule.state_dict()
    assert state["second/w"][:3, 0].tolist() == pytest.approx(second, abs=2e-6)
    if shape == (8, 16):
        assert state["momentum/w"].norm().item() == pytest.approx(0.57574, abs=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128), (7, 33)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("fused", [False, True])
def test_singular_values_come_into_a_band(shape: tuple[int, int], scale: float, fused: bool) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(2, *shape)
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    spread = torch.linspace(1.0, 0.05, singular.size(1)) * scale  # condition number 20, known directions
    result = newton_schulz(left @ torch.diag(spread) @ right, fused=fused).float()
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    alignment = (left.mT @ result @ right.mT).diagonal(dim1=-2, dim2=-1)
    assert alignment.min() > 0.6  # the singular vectors stay


def test_zero_matrix_gives_zero() -> None:
    assert torch.equal(newton_schulz(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6, dtype=torch.bfloat16))


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (48, 48), (16, 8)])
def test_a_stack_is_its_matrices_one_by_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    stack = torch.randn(5, *shape)
    alone = torch.cat([newton_schulz(matrix[None]) for matrix in stack])
    assert torch.equal(newton_schulz(stack), alone)


def test_stack_order_does_not_matter() -> None:
    torch.manual_seed(2)
    stack, order = torch.randn(4, 24, 40), torch.tensor([2, 0, 3, 1])
    assert torch.equal(newton_schulz(stack[order]), newton_schulz(stack)[order])


def test_tall_is_the_transpose_of_wide() -> None:
    torch.manual_seed(3)
    wide = torch.randn(2, 24, 40)
    assert torch.equal(newton_schulz(wide.mT.contiguous()), newton_schulz(wide).mT)


def test_fused_differs_by_rounding_only() -> None:
    torch.manual_seed(4)
    stack = torch.randn(3, 64, 96)
    plain, fused = newton_schulz(stack).float(), newton_schulz(stack, fused=True).float()
    assert (plain - fused).norm() / plain.norm() < 5e-2


def test_one_triple_is_the_same_as_one_for_each_step() -> None:
    torch.manual_seed(5)
    stack, triple = torch.randn(1, 8, 8), (3.0, -4.0, 2.0)
    assert torch.equal(newton_schulz(stack, 3, [triple]), newton_schulz(stack, 3, [triple] * 3))


def plain_muon(weight: Tensor, grads: list[Tensor], row_norm: bool, triples: list[tuple[float, ...]]) -> Tensor:
    """The rule in float64, one matrix, as its papers have it."""
    w, m = weight.double(), torch.zeros_like(weight).double()
    for grad in grads:
        m = 0.95 * m + grad.double()
        x = grad.double() + 0.95 * m
        if row_norm:
            x = x / x.norm(dim=1, keepdim=True)
        x = x / x.norm()
        for a, b, c in triples:
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        w = w * (1 - 0.02 * 0.1) - 0.02 * max(1.0, w.shape[0] / w.shape[1]) ** 0.5 * x
    return w


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize("row_norm", [False, True])
@pytest.mark.parametrize("coefficients", [None, "polar_express"])
def test_muon_is_its_formula(shape: tuple[int, int], row_norm: bool, coefficients: str | None) -> None:
    torch.manual_seed(8)
    start = torch.randn(shape)
    rows = torch.logspace(-2, 1, shape[0])[:, None]  # uneven: without their norm another direction comes out
    grads = [rows * torch.randn(shape) for _ in range(3)]
    weight, rule = nn.Parameter(start.clone()), Muon(row_norm=row_norm, coefficients=coefficients)  # type: ignore[arg-type]
    rule.attach({"w": weight}, Ranks())
    for grad in grads:
        weight.grad = grad.clone()
        rule.step(lr=0.02, momentum=0.95, weight_decay=0.1)
    expected = plain_muon(start, grads, row_norm, [QUINTIC] * 5 if coefficients is None else list(POLAR_EXPRESS))
    moved = (expected - start.double()).norm()
    assert (weight.detach().double() - expected).norm() < 0.05 * moved
    other = plain_muon(start, grads, not row_norm, [QUINTIC] * 5)
    assert (other - expected).norm() > 0.1 * moved


def test_polar_express_brings_singular_values_nearer_to_one() -> None:
    torch.manual_seed(9)
    left, _, right = torch.linalg.svd(torch.randn(48, 64), full_matrices=False)
    matrix = (left @ torch.diag(torch.logspace(0, -2, 48)) @ right)[None]
    spread = [
        (torch.linalg.svdvals(newton_schulz(matrix, 5, triples)[0].float()) - 1).abs().max()
        for triples in ([QUINTIC], POLAR_EXPRESS)
    ]
    assert spread[1] < 0.2 < spread[0]


def test_a_row_of_zeros_stays_one() -> None:
    weight, rule = nn.Parameter(torch.zeros(6, 8)), Muon(row_norm=True)
    rule.attach({"w": weight}, Ranks())
    weight.grad = fill(1, 6, 8)
    weight.grad[2] = 0
    rule.step(lr=0.1, momentum=0.9, weight_decay=0.0)
    assert weight[2].abs().max() == 0
    assert weight[1].norm() > 0


@pytest.mark.parametrize("make", [Muon, NorMuon])
def test_every_shape_moves_as_it_would_alone(make: type[Muon] | type[NorMuon]) -> None:
    torch.manual_seed(6)
    shapes = {"a": (16, 8), "b": (8, 16), "c": (16, 8), "d": (12, 12), "e": (8, 16)}
    start = {name: torch.randn(shape) for name, shape in shapes.items()}
    grads = {name: torch.randn(shape) for name, shape in shapes.items()}

    def run(names: list[str]) -> dict[str, Tensor]:
        params = {name: nn.Parameter(start[name].clone()) for name in names}
        rule = make()
        rule.attach(params, Ranks())
        for name, parameter in params.items():
            parameter.grad = grads[name].clone()
        rule.step(lr=0.1, momentum=0.9, weight_decay=0.1)
        return params

    together = run(list(shapes))
    for name in shapes:
        assert torch.equal(together[name], run([name])[name])


def test_step_leaves_gradients_alone() -> None:
    for rule in (Muon(), NorMuon()):
        weight = nn.Parameter(fill(1, 6, 4))
        rule.attach({"w": weight}, Ranks())
        weight.grad = fill(2, 6, 4)
        rule.step(lr=0.1, momentum=0.9, weight_decay=0.0)
        assert torch.equal(weight.grad, fill(2, 6, 4))


@pytest.mark.parametrize("make", [Muon, NorMuon])
def test_gradients_that_lie_end_to_end_are_neither_copied_nor_changed(make: type[Muon] | type[NorMuon]) -> None:
    params = {name: nn.Parameter(fill(i, 6, 4)) for i, name in enumerate("abc")}
    rule = make()
    rule.attach(params, Ranks())
    together = torch.stack([fill(5 + i, 6, 4) for i in range(3)])
    for parameter, grad in zip(params.values(), together):
        parameter.grad = grad
    before = together.clone()
    assert rule.groups[0].gradients().data_ptr() == together.data_ptr()
    rule.step(lr=0.1, momentum=0.9, weight_decay=0.1)
    assert torch.equal(together, before)


def test_update_norm_is_the_rate_times_that_of_an_orthogonal_matrix() -> None:
    weight = nn.Parameter(torch.zeros(64, 32))
    rule = Muon()
    rule.attach({"w": weight}, Ranks())
    torch.manual_seed(7)
    weight.grad = torch.randn(64, 32)
    rule.step(lr=0.5, momentum=0.0, weight_decay=0.0)
    assert weight.norm().item() == pytest.approx(0.5 * math.sqrt(32) * shape_scale(64, 32), rel=0.2)


def test_muon_leaves_a_parameter_without_gradient() -> None:
    params = {name: nn.Parameter(fill(i, 6, 4)) for i, name in enumerate("ab")}
    rule = Muon()
    rule.attach(params, Ranks())
    for parameter in params.values():
        parameter.grad = fill(9, 6, 4)
    rule.step(0.1, 0.9, 0.0)
    kept, momentum = params["a"].detach().clone(), rule.state_dict()["momentum/a"].clone()
    params["a"].grad = None
    rule.step(0.1, 0.9, 0.1)
    assert torch.equal(params["a"], kept)
    assert torch.equal(rule.state_dict()["momentum/a"], momentum)


def test_normuon_treats_a_missing_gradient_as_zero_without_decay() -> None:
    def run(missing: bool, weight_decay: float) -> Tensor:
        weight = nn.Parameter(fill(3, 6, 4))
        rule = NorMuon()
        rule.attach({"w": weight}, Ranks())
        weight.grad = fill(4, 6, 4)
        rule.step(0.1, 0.9, 0.0)
        weight.grad = None if missing else torch.zeros(6, 4)
        rule.step(0.1, 0.9, weight_decay)
        return weight.detach()

    assert torch.equal(run(missing=True, weight_decay=0.5), run(missing=False, weight_decay=0.0))


def test_state_of_another_model_is_refused() -> None:
    rule, other = Muon(), Muon()
    rule.attach({"w": nn.Parameter(torch.zeros(3, 4))}, Ranks())
    other.attach({"w": nn.Parameter(torch.zeros(4, 3))}, Ranks())
    with pytest.raises(ArtifactError, match="shape"):
        rule.load_state_dict(other.state_dict())
    with pytest.raises(ArtifactError, match="does not fit"):
        rule.load_state_dict({})


def test_a_vector_is_no_matrix() -> None:
    with pytest.raises(ValueError, match="2-D"):
        Muon().attach({"gain": nn.Parameter(torch.zeros(3))}, Ranks())


@pytest.mark.parametrize(
    "build",
    [
        lambda: Muon(ns_steps=0),
        lambda: NorMuon(beta2=1.0),
        lambda: Muon(coefficients=[[1.0, 2.0]]),
        lambda: Muon(ns_steps=5, coefficients=[[1.0, 2.0, 3.0]] * 2),
        lambda: Muon(ns_steps=4, coefficients="polar_express"),
        lambda: Muon(coefficients="quintic"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused(build: object) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.matrix"):
        build()  # type: ignore[operator]
