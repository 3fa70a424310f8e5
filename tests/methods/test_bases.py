"""What the bases of methods promise to the method and to the optimizer."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from methods.doubles import backward, small_model
from orthotrain.errors import NonFiniteError, ShapeError, StateError
from orthotrain.methods import GradientMethod, Phase, WeightMethod, attach

SEEN: list[tuple[str, torch.Tensor]] = []


@dataclass(frozen=True)
class Seen(GradientMethod):
    _: KW_ONLY
    factor: float = 1.0

    name: ClassVar[str] = "seen"

    def change(self, gradient, target):
        SEEN.append((target.name, gradient.clone()))
        assert not torch.is_grad_enabled()
        return self.factor * gradient


@dataclass(frozen=True)
class Halved(WeightMethod):
    name: ClassVar[str] = "halved"

    def change(self, weight, target):
        assert not torch.is_grad_enabled()
        return weight / 2


def stepped(method, make_optimizer, *, gradient, layer=None):
    """The weight after one step from ``gradient``."""
    SEEN.clear()
    model = nn.Sequential(layer or nn.Linear(3, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    optimizer = make_optimizer(model.parameters())
    handle = attach(model, optimizer, method)
    model[0].weight.grad = gradient.clone()
    optimizer.step()
    return model[0].weight.detach(), handle


G = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]], dtype=torch.float64)


def test_the_optimizer_steps_with_what_change_returns():
    weight, handle = stepped(
        Seen("0", factor=10.0), lambda p: torch.optim.SGD(p, lr=0.5), gradient=G
    )
    assert torch.equal(weight, 1 - 5 * G)
    ((name, seen),) = SEEN
    assert (name, seen.shape) == ("0", (1, 2, 3))
    assert torch.equal(seen[0], G)
    assert handle.plan == "Seen at every step: 0 (2x3)"
    assert handle.summary().notes == ("Seen on 1 weight",)


def test_the_gradient_points_up_the_loss_also_where_the_optimizer_goes_up():
    weight, _ = stepped(
        Seen("0", factor=2.0), lambda p: torch.optim.SGD(p, lr=0.5, maximize=True), gradient=G
    )
    assert torch.equal(SEEN[0][1][0], -G)
    assert torch.equal(weight, 1 + G)


def test_the_gradient_carries_no_loss_scale():
    def scaled(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.5, fused=True)
        optimizer.grad_scale = torch.tensor(8.0)  # as GradScaler does in a fused optimizer's step
        return optimizer

    weight, _ = stepped(Seen("0"), scaled, gradient=8 * G)
    assert torch.equal(SEEN[0][1][0], G)
    assert torch.equal(weight, 1 - G / 2)


def test_groups_come_as_matrices_and_go_back_to_their_place():
    layer = nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False)
    gradient = torch.arange(36, dtype=torch.float64).reshape(4, 3, 3)
    weight, _ = stepped(
        Seen("0", factor=2.0), lambda p: torch.optim.SGD(p, lr=1.0), gradient=gradient, layer=layer
    )
    assert SEEN[0][1].shape == (2, 3, 6)
    assert torch.equal(weight, 1 - 2 * gradient)


@pytest.mark.parametrize("base", [GradientMethod, WeightMethod])
def test_a_change_of_shape_is_named(base):
    @dataclass(frozen=True)
    class Cropped(base):
        name: ClassVar[str] = "cropped"

        def change(self, matrices, target):
            return matrices[..., :1]

    with pytest.raises(ShapeError, match=r"Cropped.change .* \(1, 2, 3\), got \(1, 2, 1\)"):
        stepped(Cropped("0"), lambda p: torch.optim.SGD(p, lr=1.0), gradient=G)


def test_a_weight_method_acts_after_the_step():
    weight, handle = stepped(Halved("0"), lambda p: torch.optim.SGD(p, lr=1.0), gradient=G)
    assert torch.equal(weight, (1 - G) / 2)
    assert handle.plan == "Halved at every step: 0 (2x3)"


def test_a_weight_method_is_shown_no_nan():
    with pytest.raises(NonFiniteError, match="Halved: the weight of 0"):
        stepped(Halved("0"), lambda p: torch.optim.SGD(p, lr=1.0), gradient=G * torch.nan)


def test_a_step_whose_gradients_were_not_shown_is_refused():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, Seen("0"), auto=False)
    backward(model)
    optimizer.step()
    with pytest.raises(StateError, match=r"handle\.before_step"):
        handle.step()


def test_a_base_cannot_be_made_and_says_its_phase():
    with pytest.raises(TypeError, match="abstract method"):
        GradientMethod("0")
    assert (GradientMethod.phase, WeightMethod.phase) == (Phase.GRADIENT, Phase.UPDATE)
