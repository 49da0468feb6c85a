"""The optimizer as a whole: groups by role, Adam's rule, clipping, schedule of rate and momentum, state."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from golf.common.errors import ArtifactError, ConfigError
from golf.common.progress import Progress
from golf.common.ranks import Ranks
from golf.learn.muon import Muon, NorMuon
from golf.learn.optimizer import Optimizer
from golf.learn.schedule import momentum_at
from golf.nn.params import ParamSpec
from golf.train.state import cloned

SPECS = {
    "embed": ParamSpec("embed", "embed"),
    "head": ParamSpec("head", "head"),
    "up": ParamSpec("matrix", "mlp.up", 0),
    "down": ParamSpec("matrix", "mlp.down", 0),
    "gain": ParamSpec("scalar", "attn.q_gain", 0),
    "gate": ParamSpec("gate", "smear"),
}


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    torch.manual_seed(seed)
    return {
        "embed": nn.Parameter(torch.randn(10, 8).bfloat16()),
        "head": nn.Parameter(torch.randn(10, 8)),
        "up": nn.Parameter(torch.randn(16, 8)),
        "down": nn.Parameter(torch.randn(8, 16)),
        "gain": nn.Parameter(torch.randn(8)),
        "gate": nn.Parameter(torch.randn(8)),
    }


def give_gradients(params: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in params.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def attached(optimizer: Optimizer, params: dict[str, nn.Parameter], tied: bool = True) -> Optimizer:
    optimizer.attach(params, {name: SPECS[name] for name in params}, Ranks(), tied)
    return optimizer


def train(optimizer: Optimizer, params: dict[str, nn.Parameter], steps: range, multiplier: float = 1.0) -> None:
    for step in steps:
        optimizer.zero_grad()
        give_gradients(params, step)
        optimizer.reduce_gradients()
        optimizer.step(step, multiplier)


def copies(params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in params.items()}


@pytest.mark.parametrize(
    ("rate", "tied", "moved"),
    [
        ("matrix_lr", True, {"up", "down"}),
        ("tied_embed_lr", True, {"embed"}),
        ("embed_lr", True, set()),
        ("embed_lr", False, {"embed"}),
        ("tied_embed_lr", False, set()),
        ("head_lr", True, {"head"}),
        ("scalar_lr", True, {"gain", "gate"}),
    ],
)
def test_role_picks_the_learning_rate(rate: str, tied: bool, moved: set[str]) -> None:
    rates = dict.fromkeys(("matrix_lr", "embed_lr", "tied_embed_lr", "head_lr", "scalar_lr"), 0.0)
    params = parameters()
    before = copies(params)
    train(attached(Optimizer(**{**rates, rate: 0.1}), params, tied), params, range(1))  # type: ignore[arg-type]
    assert {name for name in params if not torch.equal(params[name], before[name])} == moved


def test_every_parameter_is_in_exactly_one_group() -> None:
    params = parameters()
    optimizer = attached(Optimizer(), params)
    in_adam = [id(p) for group in optimizer.adam.param_groups for p in group["params"]]  # type: ignore[union-attr]
    in_matrix = [id(p) for group in optimizer.matrix.groups for p in group.params]  # type: ignore[attr-defined]
    assert sorted(in_adam + in_matrix) == sorted(id(p) for p in params.values())


@pytest.mark.parametrize("weight_decay", [0.0, 0.04])
def test_adam_is_the_textbook_rule_with_decoupled_decay(weight_decay: float) -> None:
    gain = nn.Parameter(torch.linspace(-1, 1, 7))
    optimizer = attached(Optimizer(scalar_lr=0.03, adam_weight_decay=weight_decay), {"gain": gain})
    p, m, v = gain.detach().double().clone(), torch.zeros(7).double(), torch.zeros(7).double()
    for step in range(5):
        multiplier = 1.0 - 0.1 * step
        train(optimizer, {"gain": gain}, range(step, step + 1), multiplier)
        g, lr = gain.grad.double(), 0.03 * multiplier  # type: ignore[union-attr]
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        corrected = (v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
        p = p * (1 - lr * weight_decay) - lr * m / (1 - 0.9 ** (step + 1)) / corrected
    torch.testing.assert_close(gain.detach().double(), p, rtol=1e-5, atol=1e-6)


def test_parts_of_adam_have_decay_and_betas_of_their_own() -> None:
    own = {"embed": (0.3, [0.8, 0.9]), "head": (None, [0.7, 0.85]), "scalar": (0.0, None)}
    settings = {f"{part}_weight_decay": decay for part, (decay, _) in own.items()}
    settings |= {f"{part}_betas": betas for part, (_, betas) in own.items()}
    rates = {"tied_embed_lr": 0.03, "head_lr": 0.02, "scalar_lr": 0.01}
    optimizer = Optimizer(**rates, adam_weight_decay=0.1, adam_beta2=0.99, **settings)  # type: ignore[arg-type]
    params = {name: nn.Parameter(p.detach().float()) for name, p in parameters().items() if name not in ("up", "down")}
    expected = {name: p.detach().double() for name, p in params.items()}
    train(attached(optimizer, params), params, range(3), multiplier=0.5)
    for name, part in {"embed": "embed", "head": "head", "gain": "scalar", "gate": "scalar"}.items():
        lr = 0.5 * rates["tied_embed_lr" if part == "embed" else f"{part}_lr"]
        decay = 0.1 if own[part][0] is None else own[part][0]
        b1, b2 = own[part][1] or (0.9, 0.99)
        m = v = torch.zeros(()).double()
        for step in range(3):
            give_gradients(params, step)
            g = params[name].grad.double()  # type: ignore[union-attr]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            update = m / (1 - b1 ** (step + 1)) / ((v / (1 - b2 ** (step + 1))).sqrt() + 1e-8)
            expected[name] = expected[name] * (1 - lr * decay) - lr * update  # type: ignore[operator]
        torch.testing.assert_close(params[name].detach().double(), expected[name], rtol=1e-5, atol=1e-6)


def test_adams_settings_are_looked_up_at_each_step_since_phases_change_them() -> None:
    gain = nn.Parameter(torch.ones(3))
    optimizer = attached(Optimizer(scalar_lr=0.1), {"gain": gain})
    for decay, expected in ((0.0, 1.0), (0.5, 0.95)):
        optimizer.adam_weight_decay = decay
        gain.grad = torch.zeros(3)
        optimizer.step(0, 1.0)
        assert gain.tolist() == pytest.approx([expected] * 3)


def test_the_matrices_decay_tapers_from_a_fraction_of_the_run() -> None:
    def moved(**settings: float) -> list[float]:
        weight = nn.Parameter(torch.ones(4, 4))
        optimizer = attached(Optimizer(matrix_lr=0.1, matrix_weight_decay=0.2, **settings), {"up": weight})  # type: ignore[arg-type]
        weight.grad = torch.zeros(4, 4)
        shrunk = []
        for fraction in (0.0, 0.7, 0.85, 1.0):
            optimizer.at_step(Progress(fraction=fraction))
            before = weight[0, 0].item()
            optimizer.step(0, 1.0)
            shrunk.append((1 - weight[0, 0].item() / before) / 0.1)
        return shrunk

    assert moved() == pytest.approx([0.2] * 4, rel=1e-4)
    tapered = moved(matrix_decay_taper_from=0.7, matrix_decay_taper_to=0.5)
    assert tapered == pytest.approx([0.2, 0.2, 0.15, 0.1], rel=1e-4)


def test_bf16_embedding_has_bf16_moments_and_fp32_arithmetic() -> None:
    embed = nn.Parameter(torch.randn(4, 3).bfloat16())
    optimizer = attached(Optimizer(tied_embed_lr=0.05), {"embed": embed})
    before = embed.detach().float()
    train(optimizer, {"embed": embed}, range(1))
    state = optimizer.state_dict()
    assert state["adam/exp_avg/embed"].dtype == state["adam/exp_avg_sq/embed"].dtype == torch.bfloat16
    # Adam's first step is lr·sign(g): only the stored weight is rounded
    expected = (before - 0.05 * embed.grad.float().sign()).bfloat16()  # type: ignore[union-attr]
    torch.testing.assert_close(embed.detach(), expected, rtol=2**-8, atol=0)


def test_momentum_and_rate_follow_the_step() -> None:
    params = {"up": nn.Parameter(torch.zeros(16, 8)), "down": nn.Parameter(torch.zeros(8, 16))}
    by_hand = {name: nn.Parameter(torch.zeros_like(p)) for name, p in params.items()}
    optimizer = attached(
        Optimizer(matrix_lr=0.02, momentum_start=0.5, momentum=0.9, momentum_warmup_steps=4, matrix_weight_decay=0.1),
        params,
    )
    rule = Muon()
    rule.attach(by_hand, Ranks())
    for step in range(6):
        train(optimizer, params, range(step, step + 1), multiplier=1 / (step + 1))
        give_gradients(by_hand, step)
        rule.step(0.02 / (step + 1), momentum_at(step, 0.5, 0.9, 4), 0.1)
    assert all(torch.equal(params[name], by_hand[name]) for name in params)


def test_matrix_rule_is_a_component() -> None:
    params, other = parameters(), parameters()
    train(attached(Optimizer(matrix=partial(NorMuon, beta2=0.9)), params), params, range(2))
    train(attached(Optimizer(), other), other, range(2))
    assert not torch.equal(params["up"], other["up"])
    assert torch.equal(params["head"], other["head"])


@pytest.mark.parametrize("scope", ["global", "local"])
def test_clipping_limits_the_norm_over_all_gradients(scope: str) -> None:
    params = parameters()
    optimizer = attached(Optimizer(grad_clip=0.3, grad_clip_scope=scope), params)  # type: ignore[arg-type]
    give_gradients(params, 0)
    before = {name: parameter.grad.clone() for name, parameter in params.items()}  # type: ignore[union-attr]
    norm = torch.stack([grad.float().norm() for grad in before.values()]).norm()
    optimizer.reduce_gradients()
    optimizer.step(0, 1.0)
    assert optimizer.grad_norm is not None
    assert optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=3e-3)  # the embedding's norm is bf16
    for name, parameter in params.items():
        torch.testing.assert_close(
            parameter.grad.float(),  # type: ignore[union-attr]
            before[name].float() * (0.3 / (optimizer.grad_norm.float() + 1e-6)),
            rtol=2**-7 if name == "embed" else 1e-5,
            atol=0,
        )


def test_a_norm_below_the_limit_is_left_alone() -> None:
    params = parameters()
    optimizer = attached(Optimizer(grad_clip=1e6), params)
    give_gradients(params, 0)
    before = {name: parameter.grad.clone() for name, parameter in params.items()}  # type: ignore[union-attr]
    optimizer.step(0, 1.0)
    assert all(torch.equal(params[name].grad, before[name]) for name in params)  # type: ignore[arg-type]


def test_missing_gradients_leave_parameters_alone() -> None:
    params = parameters()
    optimizer = attached(Optimizer(grad_clip=0.3, matrix_weight_decay=0.1, adam_weight_decay=0.1), params)
    before = copies(params)
    optimizer.zero_grad()
    optimizer.reduce_gradients()
    optimizer.step(0, 1.0)
    assert all(torch.equal(params[name], before[name]) for name in params)


@pytest.mark.parametrize("matrix", [Muon, NorMuon])
@pytest.mark.parametrize("first", [0, 3])
def test_loading_a_state_undoes_steps(matrix: type[Muon] | type[NorMuon], first: int) -> None:
    params = parameters()
    optimizer = attached(Optimizer(matrix=matrix), params)
    train(optimizer, params, range(first))
    weights, state = copies(params), cloned(optimizer.state_dict())
    straight = parameters()
    train(attached(Optimizer(matrix=matrix), straight), straight, range(first + 2))
    for _ in range(2):  # a state may be used again
        train(optimizer, params, range(10, 14))
        with torch.no_grad():
            for name, parameter in params.items():
                parameter.copy_(weights[name])
        optimizer.load_state_dict(state)
        train(optimizer, params, range(first, first + 2))
        assert all(torch.equal(params[name], straight[name]) for name in params)


def test_a_loaded_state_continues_as_if_never_stopped() -> None:
    straight = parameters()
    train(attached(Optimizer(), straight), straight, range(5))
    params = parameters()
    optimizer = attached(Optimizer(), params)
    train(optimizer, params, range(3))
    resumed = {name: nn.Parameter(tensor) for name, tensor in copies(params).items()}
    second = attached(Optimizer(), resumed)
    second.load_state_dict(cloned(optimizer.state_dict()))
    train(second, resumed, range(3, 5))
    assert all(torch.equal(resumed[name], straight[name]) for name in params)


def test_state_that_does_not_fit_is_refused() -> None:
    params = parameters()
    optimizer = attached(Optimizer(), params)
    train(optimizer, params, range(1))
    state = cloned(optimizer.state_dict())
    for damaged in (
        {**state, "adam/exp_avg/other": torch.zeros(1)},
        {**state, "adam/exp_avg/gain": torch.zeros(3)},
        {key: tensor for key, tensor in state.items() if key != "adam/step/gain"},
        {key: tensor for key, tensor in state.items() if key != "matrix/momentum/up"},
        {**state, "loader/position": torch.zeros(1)},
    ):
        with pytest.raises(ArtifactError):
            optimizer.load_state_dict(damaged)


def test_parameters_without_role_are_refused() -> None:
    params = parameters()
    with pytest.raises(ConfigError, match="extra"):
        Optimizer().attach({**params, "extra": nn.Parameter(torch.zeros(2))}, SPECS, Ranks(), tied=True)
    with pytest.raises(ConfigError, match="gate"):
        Optimizer().attach({k: p for k, p in params.items() if k != "gate"}, SPECS, Ranks(), tied=True)
    with pytest.raises(ConfigError, match="two names"):
        Optimizer().attach({**params, "gate": params["gain"]}, SPECS, Ranks(), tied=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"matrix_lr": -0.1},
        {"scalar_lr": -1.0},
        {"momentum": 1.0},
        {"momentum_start": -0.1},
        {"momentum_warmup_steps": -1},
        {"adam_beta2": 1.0},
        {"adam_eps": 0.0},
        {"adam_weight_decay": -0.1},
        {"embed_weight_decay": -0.1},
        {"head_betas": [0.9]},
        {"scalar_betas": [0.9, 1.0]},
        {"matrix_decay_taper_from": 1.0},
        {"matrix_decay_taper_to": -0.5},
        {"grad_clip": 0.0},
        {"grad_clip_scope": "rank"},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.{next(iter(settings))}="):
        Optimizer(**settings)  # type: ignore[arg-type]
