"""Forward and backward passes of the four systems at a small size, with the deterministic fill."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from golf.launch.compose.build import make
from golf.nn.linear import EffectiveWeights
from golf.nn.models.gpt import GPT

S2, S3 = "sp2048_normuon_int6", "gradquant_11l"
NTK = "model.position.ntk_seq_len=2048"
WATCHED = (1, 2, 3, 10, 14, 15, 18)

#: recipe, layers, QAT, overrides → loss, total gradient norm, norms of the watched tensors
TABLE = {
    ("naive_baseline", 4, False, ()): (
        16.303852, 9.09097, (1.930554, 0.216733, None, 1.785193, 3.920799, 4.872125, 1.379139)),
    ("naive_baseline", 5, False, ()): (
        16.062105, 9.33306, (1.948077, 0.222986, None, 1.812669, 3.929196, 4.911111, 1.369968)),
    ("seq4096", 5, False, ()): (
        16.062105, 9.33306, (1.948077, 0.222986, None, 1.812669, 3.929196, 4.911111, 1.369968)),
    (S2, 4, False, ()): (15.862399, 9.86791, (1.882242, 0.224279, None, 1.772881, 3.678511, 6.022546, 1.344810)),
    (S2, 4, True, ()): (15.857668, 9.85762, (1.881708, 0.224108, None, 1.773973, 3.676934, 6.014048, 1.341664)),
    (S2, 5, False, ()): (15.723567, 10.00991, (1.915648, 0.231538, None, 1.811057, 3.716174, 5.901225, 1.331130)),
    (S2, 5, True, ()): (15.712469, 10.00219, (1.914195, 0.231654, None, 1.808304, 3.715809, 5.900153, 1.327726)),
    (S3, 4, False, ()): (13.913897, 8.46981, (1.760140, 0.172224, 0.207905, 1.584610, 3.323520, 4.967241, 0.886768)),
    (S3, 4, False, (NTK,)): (
        13.983527, 8.50001, (1.757466, 0.175219, 0.208744, 1.590180, 3.323786, 4.993308, 0.879311)),
    (S3, 5, False, ()): (13.779674, 8.68502, (1.782480, 0.176630, 0.204693, 1.624047, 3.361999, 4.971958, 0.859482)),
    (S3, 5, False, (NTK,)): (
        13.842124, 8.69010, (1.776247, 0.177197, 0.203762, 1.628126, 3.348194, 4.983150, 0.844724)),
}  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    """Inputs and targets [2, 64]: ids[b, t] = (17b + 31t + 7t²) mod 1024."""
    b, t = torch.arange(2)[:, None], torch.arange(65)
    ids = (17 * b + 31 * t + 7 * t * t) % 1024
    assert ids[0, :6].tolist() == [0, 38, 90, 156, 236, 330]
    assert ids[1, :4].tolist() == [17, 55, 107, 173]
    assert ids[1, 64] == 977
    return ids[:, :-1], ids[:, 1:]


def backward(model: GPT, config: dict[str, Any], qat: bool) -> Tensor:
    """The loss of the batch, with its gradients left in the parameters."""
    weights = EffectiveWeights(model)
    weights.refresh(make(config["qat"], "qat") if qat else None)
    loss = model(*batch())
    loss.backward()
    weights.collect_gradients()
    return loss.detach()


@pytest.mark.parametrize("case", TABLE, ids=lambda c: "-".join([c[0], str(c[1]), "qat" * c[2], "ntk" * len(c[3])]))
def test_loss_and_gradient_norms(originals, case):
    recipe, layers, qat, overrides = case
    config = originals.small_config(recipe, layers, *overrides)
    model = originals.filled_model(config)
    loss = backward(model, config, qat)
    grads = {originals.tensor_id(name): p.grad for name, p in model.named_parameters()}
    total = torch.stack([g.norm() for g in grads.values()]).norm()
    watched = [float(grads[i].norm()) if i in grads else None for i in WATCHED]
    expected_loss, expected_total, expected = TABLE[case]
    near = 1e-4 if qat else 1e-5  # a value on the edge between two levels falls to either side with the summing order
    assert float(loss) == pytest.approx(expected_loss, rel=near)
    assert float(total) == pytest.approx(expected_total, rel=near)
    assert watched == [value if value is None else pytest.approx(value, rel=near) for value in expected]


@pytest.mark.parametrize(
    ("left_out", "loss"), [("technique/smear_gate=none", 15.767805), ("technique/xsa=none", 13.740983)]
)
def test_without_a_technique(originals, left_out, loss):
    model = originals.filled_model(originals.small_config(S3, 5, left_out))
    assert float(model(*batch()).detach()) == pytest.approx(loss, rel=1e-5)


def test_logits_of_the_int6_system(originals):
    logits = originals.filled_model(originals.small_config(S2, 5))(batch()[0])
    assert logits[0, 0, :4].tolist() == pytest.approx([8.59602, -3.64894, -3.82793, -0.77085], abs=2e-5)
    assert logits[1, 63, :4].tolist() == pytest.approx([2.46112, -2.16579, 3.79191, 0.61402], abs=2e-5)


def test_token_losses_of_the_gradquant_system(originals):
    nll = originals.filled_model(originals.small_config(S3, 5, NTK))(*batch(), reduction="none").detach()
    assert nll[0, :4].tolist() == pytest.approx([18.34187, 13.77700, 14.37819, 7.01231], abs=5e-5)
    assert float(nll[1, 63]) == pytest.approx(10.72865, abs=5e-5)


@pytest.mark.parametrize(
    ("recipe", "layers", "count"),
    [("naive_baseline", 4, 592_144), (S2, 4, 723_216), (S3, 4, 723_344),
     ("naive_baseline", 5, 707_348), (S2, 5, 871_188), (S3, 5, 871_316)],
)  # fmt: skip
def test_parameter_counts(originals, recipe, layers, count):
    model = originals.filled_model(originals.small_config(recipe, layers))
    assert sum(p.numel() for p in model.parameters()) == count
