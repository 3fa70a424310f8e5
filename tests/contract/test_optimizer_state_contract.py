"""One table of optimizers, one suite: each steps on after the switch and after a cut."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from orthotrain.errors import ConfigError, OrthotrainWarning
from orthotrain.linalg.factor_pair import balanced_pair, halves
from orthotrain.methods.basis_change import CoordinateChange
from orthotrain.methods.optimizer_state import (
    BasisChange,
    check_shapes,
    check_supported,
    resize,
    state_bytes,
)
from orthotrain.methods.pair_change import PairCut, PairSwitch


class LionLike(optim.Optimizer):
    """Its one buffer has a name that no table knows."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> None:
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    self.start(state, p)
                p.sub_(group["lr"] * self.direction(state, p.grad))

    def start(self, state: dict[str, Any], p: Tensor) -> None:
        state["ema_of_gradient"] = torch.zeros_like(p)

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        return state["ema_of_gradient"].lerp_(grad, 0.1).sign()


class UnknownSecondMoment(LionLike):
    """A second moment of an unknown name: rotated as if linear it would end in NaN."""

    def start(self, state: dict[str, Any], p: Tensor) -> None:
        state.update(count=0, curvature=torch.zeros_like(p), note="plain", seen=[1, {"a": None}])

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        state["count"] += 1
        return grad / (state["curvature"].add_(grad.square()).sqrt() + 1e-8)


class Nested(LionLike):
    def start(self, state: dict[str, Any], p: Tensor) -> None:
        state["moments"] = [{"first": torch.zeros_like(p)}, torch.zeros_like(p)]

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        return state["moments"][0]["first"].lerp_(grad, 0.1).sign() + state["moments"][1]


class Quantized(LionLike):
    def start(self, state: dict[str, Any], p: Tensor) -> None:
        state["codes"] = torch.zeros_like(p, dtype=torch.uint8)
        state["scale"] = torch.ones(1)

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        state["codes"].copy_((grad / grad.abs().max() * 127 + 127).round())
        return (state["codes"].to(grad.dtype) - 127) / 127 * state["scale"]


class OwnFactors(LionLike):
    """Row and column means under names that no table knows."""

    def start(self, state: dict[str, Any], p: Tensor) -> None:
        state["rows"], state["cols"] = p.new_zeros(p.shape[-2]), p.new_zeros(p.shape[-1])

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        rows = state["rows"].add_(grad.square().mean(-1))
        cols = state["cols"].add_(grad.square().mean(-2))
        return grad / (torch.outer(rows, cols) / rows.mean()).sqrt()


class VectorFactors(LionLike):
    """Adafactor as in Transformers and timm: the reduced dimension is gone."""

    def start(self, state: dict[str, Any], p: Tensor) -> None:
        state["exp_avg_sq_row"] = p.new_zeros(p.shape[-2])
        state["exp_avg_sq_col"] = p.new_zeros(p.shape[-1])

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        rows = state["exp_avg_sq_row"].lerp_(grad.square().mean(-1), 0.1)
        cols = state["exp_avg_sq_col"].lerp_(grad.square().mean(-2), 0.1)
        return grad / (torch.outer(rows, cols) / rows.mean()).sqrt()


class Projector:
    """Stands for the objects that GaLore keeps in its state."""


class Projected(LionLike):
    def start(self, state: dict[str, Any], p: Tensor) -> None:
        state["projector"] = Projector()
        state["exp_avg"] = p.new_zeros(1, p.shape[-1])

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        return state["exp_avg"].lerp_(grad.mean(-2, keepdim=True), 0.1) + grad


class Wrapper(optim.Optimizer):
    """Lookahead: holds another optimizer, keeps a slow copy and an entry of no parameter."""

    def __init__(self, inner: optim.Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, {})
        self.state["rounds"] = {"count": 0, "losses": torch.zeros(5)}  # type: ignore[index]

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> None:
        self.inner.step(closure)
        self.state["rounds"]["count"] += 1  # type: ignore[index]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                slow = state.setdefault("slow_buffer", p.clone())
                p.lerp_(slow, 0.1)


@dataclass(frozen=True)
class Row:
    kind: type[optim.Optimizer]
    options: dict[str, Any] = field(default_factory=dict)
    restarts: bool = False  # not understood: warned about and started again
    wrapped: bool = False

    def build(self, params: Sequence[nn.Parameter]) -> optim.Optimizer:
        optimizer = self.kind(list(params), **self.options)  # type: ignore[call-arg]
        return Wrapper(optimizer) if self.wrapped else optimizer

    def __str__(self) -> str:
        words = [f"{k}={v}" for k, v in self.options.items() if k != "lr"]
        return "-".join(["Wrapper"] * self.wrapped + [self.kind.__name__, *words])


PLAIN = [
    Row(optim.SGD, {"lr": 0.05}),
    Row(optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    Row(optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    Row(optim.Adam),
    Row(optim.Adam, {"amsgrad": True}),
    Row(optim.AdamW),
    Row(optim.AdamW, {"amsgrad": True}),
    Row(optim.Adamax),
    Row(optim.NAdam),
    Row(optim.RAdam),
    Row(optim.RMSprop),
    Row(optim.RMSprop, {"centered": True, "momentum": 0.9}),
    Row(optim.Rprop),
    Row(optim.Adagrad, {"initial_accumulator_value": 0.1}),
    Row(optim.Adadelta),
    Row(optim.ASGD, {"t0": 2}),
    Row(optim.Adafactor),
    Row(optim.Muon),
    Row(optim.LBFGS, {"lr": 0.1, "max_iter": 2}, restarts=True),
]


def variants(row: Row, flag: str) -> list[Row]:
    """The row with foreach, fused or differentiable where the class takes it on CPU."""
    if flag not in inspect.signature(row.kind).parameters:
        return []
    return [Row(row.kind, {**row.options, flag: True})]


FUSED_ON_CPU = (optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad)
OPTIMIZERS = [
    *PLAIN,
    *[v for row in PLAIN for v in variants(row, "foreach")],
    *[v for row in PLAIN if row.kind in FUSED_ON_CPU for v in variants(row, "fused")],
    Row(LionLike),
    Row(UnknownSecondMoment),
    Row(VectorFactors),
    Row(Nested, restarts=True),
    Row(Quantized, restarts=True),
    Row(OwnFactors, restarts=True),
    Row(Projected, restarts=True),
    Row(optim.AdamW, wrapped=True),
]
both_bases = pytest.mark.parametrize("bases", ["frozen", "trained"])
every_optimizer = pytest.mark.parametrize("row", OPTIMIZERS, ids=str)
# A square root of what a wrong sign made negative is the fault these names guard against.
NEVER_NEGATIVE = {
    *("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "exp_inf", "step_size"),
    *("row_var", "col_var", "exp_avg_sq_row", "exp_avg_sq_col", "curvature"),
}


class Regression:
    """Least squares with a weight that is dense at first and low-rank later.

    With frozen bases it becomes ``u @ core @ vh``, with trained ones a pair.
    """

    def __init__(
        self, m: int, n: int, *, dtype: torch.dtype = torch.float32, bases: str = "frozen"
    ) -> None:
        self.m, self.bases, self.in_pair = m, bases, False
        self.random = torch.Generator().manual_seed(m * 100 + n)
        self.u = torch.eye(m, dtype=dtype)
        self.vh = torch.eye(n, dtype=dtype)
        self.weight = nn.Parameter(self.draw(m, n) / n**0.5)
        self.bias = nn.Parameter(self.draw(1, m))  # a matrix: Muon takes nothing else
        self.target = self.draw(m, n) / n**0.5
        self.inputs = [self.draw(16, n) for _ in range(4)]
        self.steps = 0

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=self.u.dtype)

    @property
    def dense(self) -> Tensor:
        if self.in_pair:
            left, right = halves(self.weight, self.m)
            return left @ right
        return self.u @ self.weight @ self.vh

    def train(self, optimizer: optim.Optimizer, *, steps: int) -> None:
        for _ in range(steps):
            x = self.inputs[self.steps % len(self.inputs)]
            self.steps += 1

            def closure(x: Tensor = x) -> Tensor:
                optimizer.zero_grad()
                error = x @ (self.dense - self.target).mT + self.bias
                loss = error.square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)

    def change(self, rank: int) -> CoordinateChange:
        """Take the weight into its low-rank form, or cut it further, to ``rank``."""
        if self.bases == "frozen":
            return self.change_basis(rank)
        p, s, qh = torch.linalg.svd(self.dense.detach(), full_matrices=False)
        p, s, qh = p[:, :rank].contiguous(), s[:rank], qh[:rank].contiguous()
        change = PairSwitch(p, s, qh)
        if self.in_pair:
            left, right = (t.detach().clone() for t in halves(self.weight, self.m))
            change = PairCut(left, right, p, s, qh)
        with torch.no_grad():
            self.weight.set_(balanced_pair(p, s, qh))
        self.weight.grad, self.in_pair = None, True
        return change

    def change_basis(self, rank: int, *, mix: bool = False) -> BasisChange:
        """Take the weight into its own singular basis (or a random one) and cut it to ``rank``."""
        core = self.weight.detach()
        p, _, qh = torch.linalg.svd(self.draw(*core.shape) if mix else core, full_matrices=False)
        left, right = p[:, :rank].contiguous(), qh.mT[:, :rank].contiguous()
        with torch.no_grad():
            self.weight.set_((left.mT @ core @ right).contiguous())
        self.weight.grad = None
        self.u, self.vh = self.u @ left, right.mT @ self.vh
        return BasisChange(left, right)


def entries(optimizer: optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    inner = getattr(optimizer, "inner", None)
    return {**(entries(inner, parameter) if inner else {}), **optimizer.state.get(parameter, {})}


def assert_fits(optimizer: optim.Optimizer, parameter: Tensor) -> None:
    check_shapes(optimizer)
    m, n = parameter.shape
    for key, value in entries(optimizer, parameter).items():
        if not isinstance(value, Tensor) or value.numel() <= 1 or key in {"d", "prev_flat_grad"}:
            continue
        factors = {(m, 1), (1, n), (m,), (n,)}
        assert tuple(value.shape) == (m, n) or tuple(value.shape) in factors, key
        assert value.is_contiguous(), key
        assert value.grad_fn is None, key
        assert bool(value.isfinite().all()), key
        if key in NEVER_NEGATIVE:
            assert bool((value >= 0).all()), key


def expected_warning(row: Row, mode: str) -> Any:
    if row.restarts and mode != "reset":
        return pytest.warns(OrthotrainWarning, match=row.kind.__name__)
    return nullcontext()


def test_the_table_holds_every_class_of_torch() -> None:
    classes = {
        kind
        for kind in vars(optim).values()
        if isinstance(kind, type) and issubclass(kind, optim.Optimizer)
    }
    refused = {optim.Optimizer, optim.SparseAdam}
    assert {row.kind for row in PLAIN} == classes - refused


@every_optimizer
@pytest.mark.parametrize(
    ("mode", "m", "n", "bases"),
    [
        ("rotate", 9, 6, "frozen"),
        ("rotate", 6, 9, "frozen"),
        ("slice", 9, 6, "frozen"),
        ("reset", 6, 9, "frozen"),
        ("rotate", 9, 6, "trained"),
        ("rotate", 6, 9, "trained"),
        ("reset", 6, 9, "trained"),
    ],
)
def test_steps_on_after_the_switch_and_after_a_cut(
    row: Row, mode: Any, m: int, n: int, bases: str
) -> None:
    problem = Regression(m, n, bases=bases)
    weight = problem.weight
    optimizer = row.build([weight, problem.bias])
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    for rank in (6, 4, 1):
        problem.train(optimizer, steps=3)
        before = entries(optimizer, weight)
        with expected_warning(row, mode):
            change = problem.change(rank)
            lost = resize(optimizer, weight, change, new_shape=change.after, mode=mode)
        assert sorted(lost) == (sorted(before) if row.restarts or mode == "reset" else [])
        assert_fits(optimizer, weight)
        start, bias = weight.detach().clone(), problem.bias.detach().clone()
        problem.train(optimizer, steps=3)
        assert weight is problem.weight
        moved = weight != start
        few = row.kind is Quantized and bases == "trained"  # 127 steps: the smallest round to none
        assert bool(moved.any() if few else moved.all())
        assert bool((problem.bias != bias).all())
        assert bool(weight.isfinite().all())
        assert_fits(optimizer, weight)
    assert groups == [[id(p) for p in group["params"]] for group in optimizer.param_groups]


@every_optimizer
@both_bases
def test_a_parameter_without_state_is_fine(row: Row, bases: str) -> None:
    problem = Regression(9, 6, bases=bases)
    optimizer = row.build([problem.weight, problem.bias])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        change = problem.change(4)
        assert resize(optimizer, problem.weight, change, new_shape=change.after) == []
    assert_fits(optimizer, problem.weight)
    start = problem.weight.detach().clone()
    problem.train(optimizer, steps=3)
    assert bool((problem.weight != start).all())


# The objects of ``Projected`` are refused by ``weights_only`` before a resize, too.
@pytest.mark.parametrize("row", [row for row in OPTIMIZERS if row.kind is not Projected], ids=str)
@both_bases
def test_state_round_trip_after_a_resize(row: Row, bases: str) -> None:
    problem = Regression(9, 6, bases=bases)
    optimizer = row.build([problem.weight, problem.bias])
    problem.train(optimizer, steps=3)
    with expected_warning(row, "rotate"):
        change = problem.change(5)
        resize(optimizer, problem.weight, change, new_shape=change.after)
    states = [o.state_dict() for o in (optimizer, getattr(optimizer, "inner", None)) if o]
    buffer = io.BytesIO()
    torch.save(states, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)

    twin = Regression(9, 6, bases=bases)
    twin.in_pair = problem.in_pair
    with torch.no_grad():
        twin.weight.set_(problem.weight.detach().clone())
        twin.bias.copy_(problem.bias)
    twin.u, twin.vh, twin.steps = problem.u, problem.vh, problem.steps
    other = row.build([twin.weight, twin.bias])
    for member, state in zip((other, getattr(other, "inner", None)), loaded, strict=False):
        member.load_state_dict(state)
    check_shapes(other)
    problem.train(optimizer, steps=3)
    twin.train(other, steps=3)
    assert torch.equal(problem.weight, twin.weight)


@every_optimizer
@both_bases
def test_bytes_shrink_with_the_weight(row: Row, bases: str) -> None:
    problem = Regression(24, 20, bases=bases)
    optimizer = row.build([problem.weight])
    problem.bias.requires_grad_(False)
    problem.train(optimizer, steps=2)
    before = state_bytes(optimizer)
    with expected_warning(row, "rotate"):
        change = problem.change(4)
        resize(optimizer, problem.weight, change, new_shape=change.after)
    problem.train(optimizer, steps=2)
    after = state_bytes(optimizer)
    # Plain SGD keeps nothing; means of rows and columns of a pair are as many as of the weight.
    if before > (100 if bases == "frozen" else 400):
        assert 0 < after < 0.4 * before


def test_sparse_adam_says_why_it_cannot_be() -> None:
    weight = nn.Parameter(torch.zeros(4, 4))
    optimizer = optim.SparseAdam([weight])
    with pytest.raises(ConfigError, match="gradient of a core is dense"):
        resize(optimizer, weight, BasisChange(torch.eye(4), torch.eye(4)), new_shape=(4, 4))


def test_muon_says_why_it_cannot_take_groups() -> None:
    optimizer = optim.Muon([nn.Parameter(torch.zeros(6, 4))])
    check_supported(optimizer, new_shape=(3, 3))
    with pytest.raises(ConfigError, match="matrices only"):
        check_supported(optimizer, new_shape=(2, 3, 3))


EQUIVARIANT = [
    Row(optim.SGD, {"lr": 0.2}),
    Row(optim.SGD, {"lr": 0.2, "weight_decay": 0.1}),
    Row(optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    Row(optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    Row(optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    Row(optim.SGD, {"lr": 0.1, "momentum": 0.9, "foreach": True}),
    Row(optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    Row(optim.ASGD, {"lr": 0.1, "t0": 2, "weight_decay": 0.1}),
]


@pytest.mark.parametrize("row", EQUIVARIANT, ids=str)
def test_linear_optimizers_follow_the_run_without_rotations(row: Row) -> None:
    plain, rotated = (Regression(6, 6, dtype=torch.float64) for _ in range(2))
    reference = row.build([plain.weight, plain.bias])
    optimizer = row.build([rotated.weight, rotated.bias])
    start = plain.dense.detach()
    for round_ in range(8):
        plain.train(reference, steps=3)
        rotated.train(optimizer, steps=3)
        torch.testing.assert_close(rotated.dense, plain.dense, rtol=0, atol=1e-12)
        for key in ("momentum_buffer", "ax"):
            if key in optimizer.state[rotated.weight]:
                turned = rotated.u @ optimizer.state[rotated.weight][key] @ rotated.vh
                kept = reference.state[plain.weight][key]
                torch.testing.assert_close(turned, kept, rtol=0, atol=1e-12)
        change = rotated.change_basis(6, mix=round_ % 2 == 1)
        resize(optimizer, rotated.weight, change, new_shape=(6, 6))
    assert float((plain.dense.detach() - start).norm()) > 0.5  # the runs went somewhere


def test_lockstep_notices_a_slice() -> None:
    """Negative control: the same comparison fails when momentum is not rotated."""
    plain, rotated = (Regression(6, 6, dtype=torch.float64) for _ in range(2))
    row = Row(optim.SGD, {"lr": 0.1, "momentum": 0.9})
    reference, optimizer = row.build([plain.weight]), row.build([rotated.weight])
    plain.train(reference, steps=3)
    rotated.train(optimizer, steps=3)
    resize(optimizer, rotated.weight, rotated.change_basis(6), new_shape=(6, 6), mode="slice")
    plain.train(reference, steps=3)
    rotated.train(optimizer, steps=3)
    assert float((plain.dense - rotated.dense).detach().abs().max()) > 1e-3


def adam_step_sizes(*, zeroed: bool, seed: int) -> tuple[float, list[float]]:
    """Root mean square of Adam's steps in learning rates: before a switch, and after it."""
    learning_rate, random = 1e-4, torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(12, 12, generator=random))
    target = torch.randn(12, 12, generator=random)
    optimizer = optim.Adam([weight], lr=learning_rate)
    u = vh = torch.eye(12)

    def step() -> float:
        x = torch.randn(16, 12, generator=random)
        noise = torch.randn(16, 12, generator=random)
        optimizer.zero_grad()
        (x @ (u @ weight @ vh - target).mT + noise).square().mean().backward()
        start = weight.detach().clone()
        optimizer.step()
        return float((weight.detach() - start).square().mean().sqrt()) / learning_rate

    before = max([step() for _ in range(2000)][-20:])
    u, s, vh = torch.linalg.svd(weight.detach())
    with torch.no_grad():
        weight.set_(torch.diag(s))
    weight.grad = None
    if zeroed:
        optimizer.state[weight]["exp_avg"] = torch.zeros(12, 12)
        optimizer.state[weight]["exp_avg_sq"] = torch.zeros(12, 12)
    else:
        resize(optimizer, weight, BasisChange(u, vh.mT), new_shape=(12, 12))
    return before, [step() for _ in range(10)]


@pytest.mark.parametrize("seed", [0, 1])
def test_adam_steps_after_a_switch_are_as_large_as_before(seed: int) -> None:
    before, after = adam_step_sizes(zeroed=False, seed=seed)
    # Adam is not equivariant: 1.07 to 1.12 was measured over four seeds, so 1.25 is the budget.
    assert max(after) <= 1.25 * before
    assert max(after) < 1


def test_zeroed_moments_beside_an_old_step_count_blow_the_step_up() -> None:
    """Negative control, and the fault of the published code: 3 to 6 learning rates."""
    before, after = adam_step_sizes(zeroed=True, seed=0)
    assert before < 1
    assert 3 < max(after) < 6
