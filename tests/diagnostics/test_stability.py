from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from methods.doubles import backward, small_model
from orthotrain.diagnostics import BasisStability
from orthotrain.errors import ConfigError, OrthotrainWarning, StateError
from orthotrain.layers import LowRankTransposedLinear
from orthotrain.linalg import basis_stability, mixing_similarity
from orthotrain.lowrank import to_dense
from orthotrain.methods import attach


class Zoo(nn.Module):
    """One layer of every kind that has a basis, and some that have none."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.embed = nn.Embedding(5, 4)
        self.attn = nn.MultiheadAttention(4, 2)
        self.cross = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
        self.head = nn.Linear(7, 4)


def fill_(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def step_to(model, optimizer, seed):
    """An optimizer step that leaves the weights of ``seed``."""
    optimizer.step()
    return fill_(model, seed)


def attached(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return optimizer, attach(model, optimizer, BasisStability(**options))


def matrices(model):
    q, k, v = model.attn.in_proj_weight.detach().chunk(3)
    return {
        "conv": model.conv.weight.detach().flatten(1),
        "attn.q": q, "attn.k": k, "attn.v": v,
        "attn.out_proj": model.attn.out_proj.weight.detach(),
        "cross.q": model.cross.q_proj_weight.detach(),
        "cross.k": model.cross.k_proj_weight.detach(),
        "cross.v": model.cross.v_proj_weight.detach(),
        "cross.out_proj": model.cross.out_proj.weight.detach(),
        "head": model.head.weight.detach(),
    }  # fmt: skip


def change_weights_by_a_step(model, optimizer, seed):
    """Gradients that turn the present weights into those of ``seed`` at learning rate 1."""
    target = fill_(Zoo(), seed)
    for parameter, wanted in zip(model.parameters(), target.parameters(), strict=True):
        parameter.grad = (parameter - wanted).detach()
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()


def test_records_are_the_measures_of_every_matrix_between_two_looks():
    model = fill_(Zoo(), 0).double()
    optimizer, handle = attached(model, every_steps=2)
    first = {name: m.clone() for name, m in matrices(model).items()}
    for seed in (1, 2):
        change_weights_by_a_step(model, optimizer, seed)
    now = matrices(model)
    assert [record["layer"] for record in handle.records] == list(first)
    for record in handle.records:
        before, after = first[record["layer"]], now[record["layer"]]
        assert record == {
            "step": 2,
            "method": "basis_stability",
            "layer": record["layer"],
            # Different weights: rounding only. Budget 32 eps of the condition number's order.
            "stability": pytest.approx(basis_stability(before, after).item(), abs=1e-13),
            "mixing": pytest.approx(mixing_similarity(before, after).item(), abs=1e-13),
            "rank": min(before.shape),
        }


@pytest.mark.parametrize(
    ("layer", "cut"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), lambda w: w.reshape(2, 4, 36)),
        # (in, out, ...): to outputs by inputs and taps.
        (nn.ConvTranspose2d(3, 5, 2), lambda w: w.transpose(0, 1).reshape(1, 5, 12)),
        (
            nn.ConvTranspose1d(4, 6, 3, groups=2),
            lambda w: torch.stack([g.transpose(0, 1).reshape(3, 6) for g in w.chunk(2)]),
        ),
    ],
    ids=["grouped", "transposed", "transposed, grouped"],
)
def test_a_convolution_is_watched_as_the_matrices_that_are_frozen(layer, cut):
    model = fill_(nn.Sequential(layer), 0).double()
    optimizer, handle = attached(model, every_steps=1)
    before = cut(model[0].weight.detach()).clone()
    step_to(model, optimizer, 1)
    # Nothing moved at step 1 itself: the values came after it. Step 2 sees them.
    optimizer.step()
    after = cut(model[0].weight.detach())
    last = handle.records[-1]
    pairs = list(zip(before, after, strict=True))
    mean = sum(basis_stability(b, a).item() for b, a in pairs) / len(pairs)
    mixing = sum(mixing_similarity(b, a).item() for b, a in pairs) / len(pairs)
    assert last["stability"] == pytest.approx(mean, abs=1e-12)
    assert last["mixing"] == pytest.approx(mixing, abs=1e-12)
    assert last["rank"] == min(before.shape[-2:])
    assert last["layer"] == "0"


def test_a_group_without_a_direction_does_not_lower_the_mean():
    model = fill_(nn.Sequential(nn.Conv1d(4, 4, 1, groups=2, bias=False)), 0)
    with torch.no_grad():
        model[0].weight[2:] = 0
    optimizer, handle = attached(model, every_steps=1)
    optimizer.step()
    assert handle.records[0]["stability"] == pytest.approx(1.0, abs=1e-6)
    with torch.no_grad():
        model[0].weight[0, 0, 0] = torch.nan
    with pytest.warns(OrthotrainWarning, match="NaN"):
        optimizer.step()
    assert handle.records[1]["stability"] is None


def test_lag_compares_with_an_earlier_look():
    model = fill_(Zoo(), 0)
    optimizer, handle = attached(model, every_steps=1, lag=3, params="head")
    seen = [model.head.weight.detach().clone()]
    for seed in range(1, 6):
        change_weights_by_a_step(model, optimizer, seed)
        seen.append(model.head.weight.detach().clone())
    expected = [(step, basis_stability(seen[step - 3], seen[step]).item()) for step in (3, 4, 5)]
    assert [(r["step"], r["stability"]) for r in handle.records] == [
        (step, pytest.approx(value, abs=1e-6)) for step, value in expected
    ]


def test_what_does_not_move_is_stable():
    model = fill_(Zoo(), 0)
    optimizer, handle = attached(model, every_steps=1)
    optimizer.step()
    for record in handle.records:
        assert record["stability"] == pytest.approx(1.0, abs=1e-6)
        assert record["mixing"] == pytest.approx(1.0, abs=1e-6)
    assert "lowest 1.000" in handle.summary().notes[0]


def test_a_wide_weight_in_bfloat16_has_a_basis():
    # 128 * eps is one there, and no value is larger than the largest.
    model = nn.Sequential(nn.Linear(128, 4, bias=False)).bfloat16()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4, 128))
    optimizer, handle = attached(model, every_steps=1)
    optimizer.step()
    (record,) = handle.records
    assert (record["rank"], record["stability"]) == (4, 1.0)


def test_a_low_rank_layer_is_seen_as_its_full_weight():
    model = nn.Sequential(nn.Linear(6, 5))
    generator = torch.Generator().manual_seed(0)
    u, s, vh = torch.linalg.svd(torch.randn(5, 6, generator=generator), full_matrices=False)
    with torch.no_grad():
        model[0].weight.copy_(u * s @ vh)
    optimizer, handle = attached(model, every_steps=1)
    optimizer.step()

    class Low(nn.Linear):
        rank = 2

        @property
        def weight(self):
            return self.u @ self.core @ self.vh

    core = model[0].weight
    del model[0].weight
    model[0].__class__ = Low
    with torch.no_grad():
        core.set_(torch.diag(s[:2]))
    core.grad = None
    model[0].core, model[0].u, model[0].vh = core, u[:, :2].clone(), vh[:2].clone()
    optimizer.step()
    first, second = handle.records
    assert (first["rank"], second["rank"]) == (5, 2)
    # Three directions are gone; the two that are left have not moved.
    assert second["stability"] == pytest.approx(1.0, abs=1e-6)
    assert second["mixing"] < 1


def test_a_transposed_linear_layer_is_watched_in_both_forms():
    model = nn.Sequential(LowRankTransposedLinear(6, 5, rank=2))
    optimizer, handle = attached(model, every_steps=1)
    optimizer.step()
    to_dense(model)
    optimizer.step()
    assert [(record["layer"], record["rank"]) for record in handle.records] == [("0", 2), ("0", 5)]
    assert [r["stability"] for r in handle.records] == pytest.approx([1.0, 1.0], abs=1e-6)


def test_a_cut_basis_that_then_turns_is_measured_over_what_is_left():
    q = torch.eye(4)[:, :3]
    model = nn.Linear(3, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(q)
    optimizer, handle = attached(model, every_steps=1)
    optimizer.step()
    turned = torch.zeros(4, 3)
    turned[0, 0], turned[2, 1] = 2.0, 1.0  # one direction kept, one turned away, one gone
    model.weight.grad = q - turned
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert [r["stability"] for r in handle.records] == [1.0, pytest.approx(0.5, abs=1e-6)]


def test_a_layer_that_starts_at_zero_has_no_basis_yet():
    model = small_model()
    with torch.no_grad():
        model[2].weight.zero_()
    optimizer, handle = attached(model, every_steps=1, params="2")
    model[2].weight.grad = torch.ones(2, 4)
    optimizer.param_groups[0]["lr"] = 1.0
    for _ in range(2):
        optimizer.step()
    assert [r["stability"] for r in handle.records] == [None, pytest.approx(1.0, abs=1e-6)]
    assert [r["mixing"] for r in handle.records] == [0.0, pytest.approx(2 / 3, abs=1e-6)]


def test_a_weight_that_was_cut_by_hand_starts_again():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
    optimizer, handle = attached(model, every_steps=1)
    for seed in range(2):
        step_to(model, optimizer, seed)
    layer = model[1]
    layer.weight.data, layer.bias.data = layer.weight.data[:2].clone(), layer.bias.data[:2].clone()
    for seed in range(2, 4):
        step_to(model, optimizer, seed)
    steps = {name: [r["step"] for r in handle.records if r["layer"] == name] for name in "01"}
    assert steps == {"0": [1, 2, 3, 4], "1": [1, 2, 4]}


def test_a_weight_that_is_not_finite_is_recorded_as_unknown_and_warned_about_once():
    model = small_model()
    optimizer, handle = attached(model, every_steps=1)
    backward(model)
    optimizer.step()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.warns(OrthotrainWarning, match="weight of 0 holds NaN"):
        optimizer.step()
    optimizer.step()
    assert [(r["layer"], r["stability"] is None, r["mixing"] is None) for r in handle.records] == [
        ("0", False, False), ("2", False, False),
        ("0", True, True), ("2", False, False),
        ("0", True, True), ("2", False, False),
    ]  # fmt: skip


def test_resume_records_what_an_unbroken_run_records(tmp_path):
    def run(model, handle, optimizer, seeds):
        for seed in seeds:
            change_weights_by_a_step(model, optimizer, seed)
        return handle.records

    model = fill_(Zoo(), 0)
    optimizer, handle = attached(model, every_steps=2, lag=2)
    run(model, handle, optimizer, range(1, 6))
    torch.save({"model": model.state_dict(), "handle": handle.state_dict()}, tmp_path / "state")
    count = len(handle.records)
    rest = run(model, handle, optimizer, range(6, 11))[count:]

    state = torch.load(tmp_path / "state", weights_only=True)
    again = Zoo()
    again_optimizer, again_handle = attached(again, every_steps=2, lag=2)
    again_handle.load_state_dict(state["handle"])
    again.load_state_dict(state["model"])
    assert len(rest) == 30
    assert run(again, again_handle, again_optimizer, range(6, 11)) == rest


def test_state_of_other_weights_is_refused():
    small, large = nn.Linear(3, 4), nn.Linear(5, 4)
    optimizer, handle = attached(small, every_steps=1)
    optimizer.step()
    _other, other_handle = attached(large, every_steps=1)
    with pytest.raises(StateError, match=r"differing in \(model\)"):
        other_handle.load_state_dict(handle.state_dict())
    with pytest.raises(StateError, match="looks"):
        other_handle.load_state_dict({"step": 0, "methods": {"basis_stability": {}}})


def test_nothing_is_changed_and_no_random_number_drawn():
    model = fill_(Zoo(), 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    optimizer, _handle = attached(model, every_steps=1)
    optimizer.step()
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.grad is None


def test_params_choose_the_layers():
    model = fill_(Zoo(), 0)
    optimizer, handle = attached(model, every_steps=1, params=("attn", model.head))
    optimizer.step()
    assert [r["layer"] for r in handle.records] == ["attn.q", "attn.k", "attn.v", "head"]


def test_the_plan_says_when_and_that_it_is_never():
    _optimizer, handle = attached(small_model(), every_steps=5, lag=2)
    assert "2 layers" in handle.plan
    assert "every 5 steps, first at step 10" in handle.plan
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    handle = attach(model, optimizer, BasisStability(every_steps=5, lag=2), total_steps=9)
    assert "never" in handle.plan


@pytest.mark.parametrize("options", [{"every_steps": 0}, {"every_steps": 1, "lag": 0},
                                     {"every_steps": 1, "params": ()}])  # fmt: skip
def test_settings_that_cannot_work(options):
    with pytest.raises(ConfigError, match=r"1 or more|empty"):
        BasisStability(**options)


def test_a_selection_without_any_matrix():
    with pytest.raises(ConfigError, match="nothing selected"):
        attached(Zoo(), every_steps=1, params="norm")
    with pytest.raises(ConfigError, match="'haed'"):
        attached(Zoo(), every_steps=1, params="haed")


def test_a_monitor_may_join_a_run_that_was_resumed_without_one():
    def made():
        model = nn.Sequential(nn.Linear(4, 4))
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = made()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    model, optimizer = made()
    handle = attach(model, optimizer, BasisStability(every_steps=1))
    optimizer.load_state_dict(state)  # of a run without methods, after attach
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert handle.run.step == 1
