"""Rules by which single tensors move, and what the optimizer-wide functions promise."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn, optim

from orthotrain.errors import ConfigError, OrthotrainWarning, ShapeError, StateError
from orthotrain.methods.optimizer_state import (
    BasisChange,
    check_shapes,
    resize,
    state_bytes,
)


def random_change(
    m: int, n: int, k: int, *, groups: tuple[int, ...] = (), seed: int = 0
) -> BasisChange:
    random = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(*groups, m, k, generator=random, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(*groups, n, k, generator=random, dtype=torch.float64))
    return BasisChange(left, right)


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def set_core(parameter: nn.Parameter, core: Tensor) -> None:
    with torch.no_grad():
        parameter.set_(core)
    parameter.grad = None


def trained(kind: Any, *shape: int, steps: int = 3, **options: Any) -> tuple[Any, nn.Parameter]:
    """An optimizer with state after a few steps on gradients of both signs."""
    parameter = nn.Parameter(draw(*shape, seed=5, dtype=torch.float32))
    optimizer = kind([parameter], **options)
    advance(optimizer, parameter, steps=steps)
    return optimizer, parameter


def advance(optimizer: Any, parameter: nn.Parameter, *, steps: int) -> None:
    for step in range(steps):
        parameter.grad = draw(*parameter.shape, seed=100 + step, dtype=parameter.dtype)
        optimizer.step()


class TestBasisChange:
    def test_formulas(self) -> None:
        change, x = random_change(7, 5, 3), draw(7, 5)
        p, q = change.left, change.right
        linear = torch.einsum("ip,ij,jq->pq", p, x, q)
        squared = torch.einsum("ip,ij,jq->pq", p**2, x**2, q**2)
        torch.testing.assert_close(change.linear(x), linear, rtol=0, atol=1e-14)
        torch.testing.assert_close(change.squared(x**2), squared, rtol=0, atol=1e-14)
        assert torch.equal(change.leading(x), x[:3, :3])

    def test_second_moment_of_uncorrelated_gradients(self) -> None:
        """What ``squared`` stands for: the mean of the squares of rotated gradients."""
        change, deviation = random_change(5, 4, 4), draw(5, 4).abs()
        gradients = draw(20_000, 5, 4, seed=2) * deviation
        rotated = change.left.mT @ gradients @ change.right
        expected = change.squared(deviation**2)
        # A variance from 20,000 draws is off by 1 % (one sigma); 5 % is five of them.
        torch.testing.assert_close(rotated.square().mean(0), expected, rtol=0.05, atol=0)

    @given(seed=st.integers(0, 999), m=st.integers(1, 6), n=st.integers(1, 6))
    @settings(max_examples=25, deadline=None)
    def test_squared_is_an_average(self, seed: int, m: int, n: int) -> None:
        change = random_change(m, n, min(m, n), seed=seed)
        x = draw(m, n, seed=seed).abs()
        out = change.squared(x)
        assert bool((out >= x.min() * (1 - 1e-12)).all())
        assert bool((out <= x.max() * (1 + 1e-12)).all())

    def test_groups_are_independent(self) -> None:
        change, x = random_change(4, 6, 2, groups=(3,)), draw(3, 4, 6)
        for i in range(3):
            one = BasisChange(change.left[i], change.right[i])
            torch.testing.assert_close(change.linear(x)[i], one.linear(x[i]))
            torch.testing.assert_close(change.squared(x.abs())[i], one.squared(x[i].abs()))

    def test_inverse_is_a_change_too(self) -> None:
        change, x = random_change(5, 5, 5), draw(5, 5)
        back = BasisChange(change.left.mT, change.right.mT)
        torch.testing.assert_close(back.linear(change.linear(x)), x, rtol=0, atol=1e-14)

    @pytest.mark.parametrize(
        ("groups", "shape", "fits"),
        [
            ((), (8, 12), True),
            ((), (8, 3, 2, 2), True),  # convolution
            ((), (8, 12, 1), True),
            ((), (12, 8), False),
            ((), (96,), False),
            ((), (8, 1), False),
            ((), (4, 24), False),
            ((2,), (2, 8, 12), True),
            ((2,), (16, 12), True),  # packed projections
            ((2,), (16, 3, 2, 2), True),  # grouped convolution
            ((2,), (8, 12), False),
        ],
    )
    def test_shapes_it_fits(self, groups: Any, shape: Any, fits: bool) -> None:
        assert random_change(8, 12, 4, groups=groups).fits(shape) is fits

    def test_a_column_vector_is_not_taken_for_a_matrix(self) -> None:
        assert not random_change(8, 1, 1).fits((8,))

    def test_convolution_rows_are_output_channels(self) -> None:
        change, x = random_change(8, 12, 4), draw(8, 3, 2, 2)
        assert torch.equal(change.linear(x), change.linear(x.reshape(8, 12)))
        channels_last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(change.linear(channels_last), change.linear(x))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_computed_in_float32_without_autocast(self, dtype: torch.dtype) -> None:
        change = random_change(64, 64, 64)
        x = draw(64, 64).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = change.linear(x)
            squared = change.squared(x.square())
        eps = torch.finfo(dtype).eps / 2
        for got, exact in (
            (out, change.linear(x.double())),
            (squared, change.squared(x.square().double())),
        ):
            assert got.dtype == dtype
            # Measured 3e-7 of the largest entry, beside the last rounding.
            bound = 1e-6 * exact.abs().max() + eps * exact.abs()
            assert bool(((got.double() - exact).abs() <= bound).all())

    def test_no_graph_no_alias_no_mutation(self) -> None:
        change, x = random_change(6, 6, 6), draw(6, 6).requires_grad_()
        kept = x.detach().clone()
        for out in (change.linear(x), change.squared(x), change.leading(x)):
            assert not out.requires_grad
            assert out.is_contiguous()
            assert out.data_ptr() != x.data_ptr()
        assert torch.equal(x, kept)

    @pytest.mark.bad_input
    @pytest.mark.parametrize(("left", "right"), [((4,), (4, 2)), ((2, 4, 2), (4, 2))])
    def test_refuses_other_shapes(self, left: Any, right: Any) -> None:
        with pytest.raises(ShapeError, match="same \\*g"):
            BasisChange(torch.zeros(left), torch.zeros(right))


def state_after(key: str, x: Tensor, change: BasisChange, **options: Any) -> Tensor:
    """What ``resize`` makes of one tensor beside a parameter of the same shape."""
    parameter = nn.Parameter(torch.zeros_like(x))
    optimizer = optim.SGD([parameter])
    optimizer.state[parameter][key] = x
    set_core(parameter, torch.zeros(change.after, dtype=x.dtype))
    assert resize(optimizer, parameter, change, new_shape=change.after, **options) == []
    return optimizer.state[parameter][key]


class TestRules:
    @pytest.mark.parametrize(
        "key", ["exp_avg", "momentum_buffer", "grad_avg", "prev", "ax", "z", "slow_buffer"]
    )
    def test_linear_names_whatever_the_sign(self, key: str) -> None:
        change = random_change(6, 4, 3)
        for x in (draw(6, 4), draw(6, 4).abs()):
            assert torch.equal(state_after(key, x, change), change.linear(x))

    @pytest.mark.parametrize(
        "key",
        ["exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "step_size", "new"],
    )
    def test_squared_names_and_unknown_ones_without_a_negative_entry(self, key: str) -> None:
        change, x = random_change(6, 4, 3), draw(6, 4).abs()
        assert torch.equal(state_after(key, x, change), change.squared(x))

    @pytest.mark.parametrize("key", ["anything", "sum"])
    def test_a_negative_entry_makes_it_linear(self, key: str) -> None:
        change, x = random_change(6, 4, 3), draw(6, 4)
        assert torch.equal(state_after(key, x, change), change.linear(x))

    def test_infinity_norm_keeps_its_degree(self) -> None:
        change, x = random_change(6, 4, 3), draw(6, 4).abs()
        moved = state_after("exp_inf", x, change)
        torch.testing.assert_close(moved, change.squared(x**2).sqrt())
        tiny = state_after("exp_inf", (1e-30 * x).float(), change)  # its square is no float32
        torch.testing.assert_close(tiny.double() * 1e30, moved, rtol=1e-6, atol=0)

    def test_slice_keeps_the_leading_block(self) -> None:
        change, x = random_change(6, 4, 3), draw(6, 4)
        assert torch.equal(state_after("exp_avg", x, change, mode="slice"), x[:3, :3])

    @pytest.mark.parametrize("shape", [(6, 4), (6, 2, 2), (6, 1, 2, 2)])
    def test_adafactor_factors_lose_nothing(self, shape: tuple[int, ...]) -> None:
        def moment(state: dict[str, Tensor]) -> Tensor:
            row, col = state["row_var"].double(), state["col_var"].double()
            return row * col / row.mean(-2, keepdim=True)

        optimizer, parameter = trained(optim.Adafactor, *shape)
        before, change = moment(optimizer.state[parameter]), random_change(6, 4, 3)
        set_core(parameter, torch.zeros(3, 3))
        resize(optimizer, parameter, change, new_shape=(3, 3))
        after = moment(optimizer.state[parameter])
        if len(shape) == 2:  # rank one stays rank one
            torch.testing.assert_close(after, change.squared(before), rtol=1e-5, atol=0)
        torch.testing.assert_close(after.sum(), change.squared(before).sum(), rtol=1e-5, atol=0)
        row, col = (optimizer.state[parameter][key].double() for key in ("row_var", "col_var"))
        torch.testing.assert_close(row, after.mean(-1, keepdim=True), rtol=1e-5, atol=0)
        torch.testing.assert_close(col, after.mean(-2, keepdim=True), rtol=1e-5, atol=0)

    def test_centered_rmsprop_survives_gradients_that_keep_their_direction(self) -> None:
        parameter = nn.Parameter(torch.zeros(8, 8))
        optimizer = optim.RMSprop([parameter], centered=True)
        gradient = torch.ones(8, 8)
        for step in range(50):
            parameter.grad = gradient + 0.01 * draw(8, 8, seed=step, dtype=torch.float32)
            optimizer.step()
        u, s, vh = torch.linalg.svd(gradient)
        set_core(parameter, torch.zeros(8, 8))
        resize(optimizer, parameter, BasisChange(u, vh.mT), new_shape=(8, 8))
        state = optimizer.state[parameter]
        assert float(state["grad_avg"].max()) > 3 * float(gradient.max()) * 0.39
        assert bool((state["square_avg"] >= state["grad_avg"].square()).all())
        parameter.grad = torch.diag(s)
        optimizer.step()
        assert bool(parameter.isfinite().all())

    def test_centered_rmsprop_without_any_spread_is_not_rounded_below_zero(self) -> None:
        optimizer, parameter = trained(optim.RMSprop, 32, 32, centered=True)
        state = optimizer.state[parameter]
        state["square_avg"] = state["grad_avg"].square()
        set_core(parameter, torch.zeros(32, 32))
        resize(optimizer, parameter, random_change(32, 32, 32), new_shape=(32, 32))
        mean, moment = state["grad_avg"].double(), state["square_avg"].double()
        assert bool((moment >= mean.square()).all())
        torch.testing.assert_close(moment, mean.square(), rtol=1e-6, atol=0)


class TestResize:
    @pytest.mark.parametrize(
        ("before", "matrix", "groups"),
        [
            ((8, 3, 2, 2), (8, 12), ()),
            ((8, 3, 2, 2), (4, 12), (2,)),
            ((12, 5), (4, 5), (3,)),
            ((8, 6, 3), (8, 18), (1,)),
        ],
    )
    @pytest.mark.parametrize("mode", ["rotate", "slice", "reset"])
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            (optim.AdamW, {"fused": True}),
            (optim.Adafactor, {}),
            (optim.RMSprop, {"centered": True}),
            (optim.LBFGS, {"max_iter": 2}),
        ],
    )
    def test_convolutions_groups_and_packed_weights(
        self, before: Any, matrix: Any, groups: Any, mode: Any, kind: Any, options: Any
    ) -> None:
        parameter = nn.Parameter(draw(*before, dtype=torch.float32))
        optimizer = kind([parameter], **options)

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = (parameter - 1).square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        shape = (*groups, 3, 3)
        set_core(parameter, draw(*shape, dtype=torch.float32))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if kind is optim.LBFGS else "error", OrthotrainWarning)
            change = random_change(*matrix, 3, groups=groups)
            resize(optimizer, parameter, change, new_shape=shape, mode=mode)
        check_shapes(optimizer)
        start = parameter.detach().clone()
        optimizer.step(loss)
        assert bool((parameter != start).all())

    def test_what_has_no_shape_stays_and_other_parameters_are_untouched(self) -> None:
        weight, other = (nn.Parameter(draw(6, 4, seed=i)) for i in range(2))
        optimizer = optim.NAdam([{"params": [weight], "lr": 0.5}, {"params": [other]}])
        for p in (weight, other):
            p.grad = draw(6, 4)
        optimizer.step()
        state, neighbor = optimizer.state[weight], dict(optimizer.state[other])
        step, product = state["step"], state["mu_product"]
        groups = [{**g, "params": list(map(id, g["params"]))} for g in optimizer.param_groups]
        set_core(weight, torch.zeros(3, 3, dtype=torch.float64))
        resize(optimizer, weight, random_change(6, 4, 3), new_shape=(3, 3))
        assert optimizer.state[weight] is state
        assert state["step"] is step
        assert state["mu_product"] is product
        assert all(optimizer.state[other][key] is value for key, value in neighbor.items())
        after = [{**g, "params": list(map(id, g["params"]))} for g in optimizer.param_groups]
        assert groups == after

    def test_one_by_one_matrices(self) -> None:
        optimizer, parameter = trained(optim.AdamW, 1, 1)
        first, step = optimizer.state[parameter]["exp_avg"].clone(), 3.0
        set_core(parameter, torch.zeros(1, 1))
        minus = BasisChange(-torch.ones(1, 1), torch.ones(1, 1))
        resize(optimizer, parameter, minus, new_shape=(1, 1))
        assert torch.equal(optimizer.state[parameter]["exp_avg"], -first)
        assert float(optimizer.state[parameter]["step"]) == step

    def test_differentiable_state_loses_its_graph(self) -> None:
        weight = nn.Parameter(draw(6, 4))
        optimizer = optim.SGD([weight], momentum=0.9, differentiable=True)
        optimizer.state[weight]["momentum_buffer"] = draw(6, 4).requires_grad_() * 2
        set_core(weight, torch.zeros(3, 3, dtype=torch.float64))
        resize(optimizer, weight, random_change(6, 4, 3), new_shape=(3, 3))
        assert not optimizer.state[weight]["momentum_buffer"].requires_grad

    def test_state_in_another_dtype_keeps_it(self) -> None:
        weight = nn.Parameter(draw(6, 4).bfloat16())
        optimizer = optim.SGD([weight])
        optimizer.state[weight].update(master=draw(6, 4).float(), momentum_buffer=weight.detach())
        set_core(weight, torch.zeros(3, 3, dtype=torch.bfloat16))
        resize(optimizer, weight, random_change(6, 4, 3), new_shape=(3, 3))
        dtypes = {key: value.dtype for key, value in optimizer.state[weight].items()}
        assert dtypes == {"master": torch.float32, "momentum_buffer": torch.bfloat16}

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (torch.zeros(6, 4, dtype=torch.uint8), r"'odd' \(6, 4\) uint8"),
            (torch.zeros(6, 6), r"'odd' \(6, 6\) float32"),
            (torch.zeros(6, 4, dtype=torch.complex64), r"'odd' \(6, 4\) complex64"),
            (torch.zeros(6, 4).to_sparse(), r"'odd' \(6, 4\) float32"),
            ([torch.zeros(6, 4)], "'odd' of type list"),
            ({"a": {"b": torch.zeros(6, 4)}}, "'odd' of type dict"),
            (object(), "'odd' of type object"),
        ],
        ids=["integer", "other-shape", "complex", "sparse", "list", "dict", "object"],
    )
    def test_what_is_not_understood_is_named_and_starts_again(self, value: Any, words: str) -> None:
        optimizer, parameter = trained(optim.AdamW, 6, 4)
        optimizer.state[parameter]["odd"] = value
        set_core(parameter, torch.zeros(3, 3))
        with pytest.warns(OrthotrainWarning, match=f"AdamW keeps {words} for block.0.weight"):
            lost = resize(
                optimizer,
                parameter,
                random_change(6, 4, 3),
                new_shape=(3, 3),
                name="block.0.weight",
            )
        assert lost == ["step", "exp_avg", "exp_avg_sq", "odd"]
        assert parameter not in optimizer.state
        advance(optimizer, parameter, steps=1)
        assert float(optimizer.state[parameter]["step"]) == 1

    def test_half_of_a_pair_of_factors_is_not_understood(self) -> None:
        optimizer, parameter = trained(optim.Adafactor, 6, 4)
        del optimizer.state[parameter]["col_var"]
        set_core(parameter, torch.zeros(3, 3))
        with pytest.warns(OrthotrainWarning, match=r"'row_var' \(6, 1\)"):
            resize(optimizer, parameter, random_change(6, 4, 3), new_shape=(3, 3))

    def test_adagrad_starts_again_as_built(self) -> None:
        """Its state is filled when it is built, and not every release fills it later."""
        optimizer, parameter = trained(optim.Adagrad, 6, 4, initial_accumulator_value=0.25)
        set_core(parameter, torch.zeros(3, 3))
        change = random_change(6, 4, 3)
        assert resize(optimizer, parameter, change, new_shape=(3, 3), mode="reset")
        assert torch.equal(optimizer.state[parameter]["sum"], torch.full((3, 3), 0.25))
        assert float(optimizer.state[parameter]["step"]) == 0

    def test_lbfgs_forgets_the_history_of_all_parameters(self) -> None:
        first, second = (nn.Parameter(draw(6, 4, seed=i)) for i in range(2))
        optimizer = optim.LBFGS([first, second], max_iter=3)

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = (first.square() * 2).sum() + (second - 1).square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        set_core(second, torch.zeros(3, 3, dtype=torch.float64))
        with pytest.raises(StateError, match="48 entries for 33"):
            check_shapes(optimizer)
        with pytest.warns(OrthotrainWarning, match=r"flat history .*'old_dirs'.* second"):
            resize(optimizer, second, random_change(6, 4, 3), new_shape=(3, 3), name="second")
        check_shapes(optimizer)
        optimizer.step(loss)
        assert float((second - 1).detach().abs().max()) < 1

    @pytest.mark.skipif(hasattr(resize, "__wrapped__"), reason="run-time types add frames")
    def test_the_warning_points_at_the_caller(self) -> None:
        optimizer, parameter = trained(optim.AdamW, 6, 4)
        optimizer.state[parameter]["odd"] = object()
        set_core(parameter, torch.zeros(3, 3))
        with pytest.warns(OrthotrainWarning) as caught:
            resize(optimizer, parameter, random_change(6, 4, 3), new_shape=(3, 3))
        assert caught[0].filename == __file__

    def test_a_state_shared_with_a_wrapper_moves_once(self) -> None:
        inner, parameter = trained(optim.AdamW, 5, 5)
        outer = Foreign([parameter])
        outer.inner, outer.state = inner, inner.state  # type: ignore[attr-defined]
        before, change = inner.state[parameter]["exp_avg"], random_change(5, 5, 5)
        set_core(parameter, torch.zeros(5, 5))
        assert resize(outer, parameter, change, new_shape=(5, 5)) == []
        assert torch.equal(inner.state[parameter]["exp_avg"], change.linear(before))

    def test_a_parameter_of_no_group_is_left_alone(self) -> None:
        optimizer, parameter = trained(optim.AdamW, 6, 4)
        stranger = nn.Parameter(torch.zeros(3, 3))
        assert resize(optimizer, stranger, random_change(6, 4, 3), new_shape=(3, 3)) == []
        assert list(optimizer.state) == [parameter]

    @pytest.mark.bad_input
    def test_refuses_a_parameter_in_its_old_shape_and_other_modes(self) -> None:
        optimizer, parameter = trained(optim.AdamW, 6, 4)
        change = random_change(6, 4, 3)
        before = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(StateError, match=r"set_\(core\) first"):
            resize(optimizer, parameter, change, new_shape=(3, 3))
        set_core(parameter, torch.zeros(2, 2))
        with pytest.raises(StateError, match=r"change to \(3, 3\)"):
            resize(optimizer, parameter, change, new_shape=(2, 2))
        set_core(parameter, torch.zeros(3, 3))
        with pytest.raises(ConfigError, match="'turn'"):
            resize(optimizer, parameter, change, new_shape=(3, 3), mode="turn")  # type: ignore[arg-type]
        torch.testing.assert_close(optimizer.state_dict()["state"], before["state"])


class Foreign(optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})


class TestCheckShapes:
    @pytest.mark.parametrize("kind", [optim.AdamW, optim.Adafactor, optim.RMSprop, optim.SGD])
    def test_state_of_another_shape_is_refused_after_loading(self, kind: Any) -> None:
        """Torch loads it without a word; fused AdamW on CPU then kills the process."""
        options: dict[str, Any] = {
            optim.AdamW: {"fused": True},
            optim.SGD: {"momentum": 0.9},
        }.get(kind, {})
        saved, _ = trained(kind, 6, 4, **options)
        bias, core = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(3, 3))
        state = saved.state_dict()
        state["state"] = {1: state["state"][0]}
        state["param_groups"][0]["params"] = [0, 1]
        optimizer = kind([bias, core], **options)
        check_shapes(optimizer)
        optimizer.load_state_dict(state)
        with pytest.raises(StateError, match=r"\['params'\]\[1\] has shape \(3, 3\).*\(6, "):
            check_shapes(optimizer)

    def test_names_group_key_and_shapes_and_counts_the_rest(self) -> None:
        params = [nn.Parameter(torch.zeros(3, 3)) for _ in range(3)]
        optimizer = optim.AdamW([{"params": params[:1]}, {"params": params[1:]}])
        for p in params[1:]:
            optimizer.state[p].update(exp_avg=torch.zeros(6, 4), exp_avg_sq=torch.zeros(1, 1))
        words = r"param_groups\[1\]\['params'\]\[0\] .* 'exp_avg' \(6, 4\).*\(1, 1\).*1 more"
        with pytest.raises(StateError, match=words):
            check_shapes(optimizer)

    def test_a_wrapped_optimizer_is_checked_too(self) -> None:
        parameter = nn.Parameter(torch.zeros(3, 3))
        outer = Foreign([parameter])
        outer.parts = [optim.SGD([parameter]), optim.AdamW([parameter])]  # type: ignore[attr-defined]
        check_shapes(outer)
        outer.parts[1].state[parameter]["exp_avg"] = torch.zeros(6, 4)  # type: ignore[attr-defined]
        with pytest.raises(StateError, match="exp_avg"):
            check_shapes(outer)

    @pytest.mark.parametrize(
        "state",
        [
            {"exp_avg": torch.zeros(9)},  # flattened
            {"exp_avg": torch.tensor(0.0), "step": torch.zeros(1)},
            {"exp_avg": torch.zeros(2, 3), "projector": object()},  # GaLore
            {"precond": torch.zeros(7, 7), "levels": torch.zeros(2, dtype=torch.uint8)},
        ],
        ids=["flat", "scalar", "own objects", "own names"],
    )
    def test_foreign_layouts_are_their_own(self, state: dict[str, Any]) -> None:
        parameter = nn.Parameter(torch.zeros(3, 3))
        optimizer = Foreign([parameter])
        optimizer.state[parameter].update(state)
        check_shapes(optimizer)

    def test_foreign_moments_of_another_size_are_refused(self) -> None:
        parameter = nn.Parameter(torch.zeros(3, 3))
        optimizer = Foreign([parameter])
        optimizer.state[parameter]["exp_avg_sq"] = torch.zeros(6, 4)
        with pytest.raises(StateError, match=r"Foreign.*exp_avg_sq"):
            check_shapes(optimizer)

    @pytest.mark.parametrize("shape", [(4,), (6, 4), (6, 3, 2), (6, 3, 2, 2)])
    @pytest.mark.parametrize("kind", [optim.AdamW, optim.Adafactor, optim.Adamax])
    def test_every_own_shape_passes(self, kind: Any, shape: tuple[int, ...]) -> None:
        optimizer, _ = trained(kind, *shape)
        check_shapes(optimizer)


class TestStateBytes:
    def test_counts_every_storage_once(self) -> None:
        optimizer, parameter = trained(optim.AdamW, 6, 4)
        assert state_bytes(optimizer) == 2 * 6 * 4 * 4 + 4
        optimizer.state[parameter]["same"] = optimizer.state[parameter]["exp_avg"]
        optimizer.state[parameter]["nest"] = [{"a": torch.zeros(5, dtype=torch.uint8)}, (3, None)]
        assert state_bytes(optimizer) == 2 * 6 * 4 * 4 + 4 + 5

    def test_a_view_counts_all_that_it_keeps_alive(self) -> None:
        parameter = nn.Parameter(torch.zeros(2, 2))
        optimizer = optim.SGD([parameter])
        assert state_bytes(optimizer) == 0
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros(10, 10)[:2, :2]
        assert state_bytes(optimizer) == 400

    def test_looks_inside_tensor_subclasses(self) -> None:
        sparse_like = torch.nested.nested_tensor(
            [torch.zeros(2, 3), torch.zeros(4, 3)], layout=torch.jagged
        )
        parameter = nn.Parameter(torch.zeros(2, 2))
        optimizer = optim.SGD([parameter])
        optimizer.state[parameter]["jagged"] = sparse_like
        assert state_bytes(optimizer) >= 6 * 3 * 4


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (optim.AdamW, {"fused": True}),
        (optim.AdamW, {"capturable": True, "foreach": True}),
        (optim.SGD, {"momentum": 0.9, "fused": True}),
        (optim.Adagrad, {"fused": True}),
        (optim.RMSprop, {"centered": True, "foreach": True}),
        (optim.Adafactor, {"foreach": True}),
    ],
)
@pytest.mark.parametrize("mode", ["rotate", "slice", "reset"])
@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable:UserWarning")
def test_on_a_gpu(kind: Any, options: dict[str, Any], mode: Any) -> None:
    if kind is optim.Adagrad and torch.cuda.is_available():
        options = {}  # fused Adagrad exists on CPU only
    random = torch.Generator("cuda").manual_seed(0)
    parameter = nn.Parameter(torch.randn(24, 16, generator=random, device="cuda"))
    optimizer = kind([parameter], **options)
    for shape in ((24, 16), (8, 8)):
        if shape == (8, 8):
            old = {k: v.double().cpu() for k, v in optimizer.state[parameter].items()}
            set_core(parameter, torch.randn(8, 8, generator=random, device="cuda"))
            change = random_change(24, 16, 8)
            with torch.autocast("cuda", dtype=torch.bfloat16):  # must not reach the products
                resize(optimizer, parameter, change, new_shape=shape, mode=mode)
            state = optimizer.state[parameter]
            if mode == "rotate" and "exp_avg" in state:
                moved = state["exp_avg"].double().cpu()
                torch.testing.assert_close(moved, change.linear(old["exp_avg"]), rtol=0, atol=1e-6)
            assert all(v.is_cuda for v in state.values() if v.ndim)
        for _ in range(3):
            parameter.grad = torch.randn(shape, generator=random, device="cuda")
            start = parameter.detach().clone()
            optimizer.step()
            assert bool((parameter != start).all())
        check_shapes(optimizer)
