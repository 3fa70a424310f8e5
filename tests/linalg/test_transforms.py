"""Kernels under ``torch.vmap``, ``torch.func`` and in forward mode, against plain reverse mode."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from orthotrain.errors import ConfigError, ConvergenceError, NumericalWarning
from orthotrain.linalg import (
    condition_number,
    eigh,
    polar_factor,
    spd_inv_sqrt,
    spd_sqrt,
    svd,
    thin_svd,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def randn(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64)


TALL = randn(3, 4, 3)
SPD = TALL.mT @ TALL + torch.eye(3, dtype=torch.float64)
KERNELS = {
    "sqrt": (spd_sqrt, SPD),
    "inverse sqrt": (spd_inv_sqrt, SPD),
    "sqrt with relative ridge": (partial(spd_sqrt, relative_ridge=0.1), SPD),
    "sqrt by Newton-Schulz": (
        partial(spd_sqrt, method="newton_schulz", gradient="newton_schulz"),
        SPD,
    ),
    "inverse by Polar Express": (
        partial(spd_inv_sqrt, method="polar_express", iterations=20, ridge=0.1),
        SPD,
    ),
    "singular values": (lambda a: svd(a)[1], TALL),
    "left vectors": (lambda a: svd(a)[0].square(), TALL),
    "right vectors": (lambda a: svd(a)[2].square(), TALL),
    "eigenvalues": (lambda a: eigh(a)[0], SPD),
    "eigenvectors": (lambda a: eigh(a)[1].square(), SPD),
    "condition number": (condition_number, TALL),
    "condition on the range": (partial(condition_number, rtol=0.5), TALL),
    "polar": (polar_factor, TALL),
    "polar of wide": (polar_factor, TALL.mT.contiguous()),
    "polar by QDWH": (partial(polar_factor, method="qdwh"), TALL),
    "polar by Gram": (partial(polar_factor, method="gram"), TALL),
}


def scalar(name: str):
    function, batch = KERNELS[name]
    weights = randn(*function(batch[0]).shape, seed=5)
    return lambda a: (function(a) * weights).sum()


@pytest.mark.parametrize("name", KERNELS)
def test_vmap_grad_and_both(name):
    function, batch = KERNELS[name]
    torch.testing.assert_close(vmap(function)(batch), torch.stack([function(a) for a in batch]))
    leaves = batch.clone().requires_grad_()
    sum(scalar(name)(a) for a in leaves).backward()
    torch.testing.assert_close(grad(scalar(name))(batch[0]), leaves.grad[0])
    torch.testing.assert_close(vmap(grad(scalar(name)))(batch), leaves.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch", [TALL, TALL.mT.contiguous()], ids=["tall", "wide"])
def test_measurements_under_vmap_are_those_of_a_loop(batch, dtype):
    a = batch.to(dtype)
    for together, alone in zip(vmap(thin_svd)(a), zip(*map(thin_svd, a), strict=True), strict=True):
        torch.testing.assert_close(together.abs(), torch.stack(alone).abs(), rtol=0, atol=1e-6)
    singular = torch.stack([a[0], torch.zeros_like(a[0]), a[0].clone()])
    singular[2, 0], singular[2, :, 0] = 0, 0
    for rtol in (None, 1e-3):
        f = partial(condition_number, rtol=rtol)
        torch.testing.assert_close(vmap(f)(singular), torch.stack([f(each) for each in singular]))


@pytest.mark.bad_input
def test_nan_under_vmap_is_a_typed_error():
    with pytest.raises(ConvergenceError, match=r"NaN and infinity are refused without it"):
        vmap(condition_number)(torch.full((2, 3, 3), torch.nan))


@pytest.mark.parametrize("name", KERNELS)
def test_forward_mode(name):
    function, batch = KERNELS[name]
    reverse = torch.autograd.functional.jacobian(function, batch[0])
    along = torch.einsum("...ij,ij->...", reverse, batch[1])
    torch.testing.assert_close(jvp(function, (batch[0],), (batch[1],))[1], along)
    torch.testing.assert_close(jacfwd(function)(batch[0]), reverse)
    torch.testing.assert_close(jacrev(function)(batch[0]), reverse)
    both = vmap(lambda a, t: jvp(function, (a,), (t,))[1])(batch, batch.roll(-1, 0))
    torch.testing.assert_close(both[0], along)


@pytest.mark.parametrize("name", KERNELS)
def test_hessian_is_that_of_two_backward_passes(name):
    _, batch = KERNELS[name]
    reverse = torch.autograd.functional.hessian(scalar(name), batch[0])
    torch.testing.assert_close(hessian(scalar(name))(batch[0]), reverse)
    torch.testing.assert_close(vmap(hessian(scalar(name)))(batch)[0], reverse)


@pytest.mark.parametrize("name", KERNELS)
def test_gradcheck_in_forward_mode(name):
    function, batch = KERNELS[name]
    a = batch[:2].clone().requires_grad_()
    # Only the symmetric part of a perturbation means anything to a root.
    symmetric = batch is SPD
    assert torch.autograd.gradcheck(
        lambda x: function((x + x.mT) / 2 if symmetric else x), a, check_forward_ad=True
    )


@pytest.mark.parametrize("name", ["sqrt", "inverse by Polar Express", "left vectors", "polar"])
def test_forward_over_forward_is_refused_by_name(name):
    function, batch = KERNELS[name]
    with pytest.raises(NotImplementedError, match=r"forward mode over forward mode.*hessian"):
        jacfwd(jacfwd(function))(batch[0])


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_null_directions_in_forward_mode_and_under_vmap(rank):
    low = randn(4, rank, seed=1) @ randn(rank, 3, seed=2) if rank else torch.zeros(4, 3).double()
    direction, upstream = randn(4, 3, seed=3), randn(4, 3, seed=4)
    a = low.clone().requires_grad_()
    with pytest.warns(NumericalWarning, match="null"):
        (gradient,) = torch.autograd.grad((polar_factor(a) * upstream).sum(), a)
    with pytest.warns(NumericalWarning, match="null"):
        moved = jvp(polar_factor, (low,), (direction,))[1]
    # The forward map is the adjoint of the backward one.
    torch.testing.assert_close((moved * upstream).sum(), (gradient * direction).sum())
    full = TALL[0]
    together = vmap(grad(lambda x: (polar_factor(x) * upstream).sum()))(torch.stack([low, full]))
    torch.testing.assert_close(together[0], gradient)
    torch.testing.assert_close(
        together[1], grad(lambda x: (polar_factor(x) * upstream).sum())(full)
    )


def test_float32_in_forward_mode():
    a, da = TALL[0].float(), TALL[1].float()
    exact = jvp(polar_factor, (a.double(),), (da.double(),))[1]
    torch.testing.assert_close(
        jvp(polar_factor, (a,), (da,))[1].double(), exact, rtol=1e-5, atol=1e-6
    )
    p = SPD[0].float()
    exact = jvp(spd_inv_sqrt, (p.double(),), (p.double(),))[1]
    torch.testing.assert_close(
        jvp(spd_inv_sqrt, (p,), (p,))[1].double(), exact, rtol=1e-5, atol=1e-6
    )


def test_a_float32_matrix_by_itself_is_not_taken_for_values_alone():
    # The lean way of the polar factor is for values. Where singular values are equal, eigenvectors
    # of its Gram matrix have no derivative, and the factor has one.
    a, tangent = 2 * torch.eye(5, 3), randn(5, 3, seed=1).float()
    expected, slope = jvp(polar_factor, (a.double(),), (tangent.double(),))
    q, dq = jvp(polar_factor, (a,), (tangent,))
    torch.testing.assert_close(dq, slope.float())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(a, tangent)
        dq = torch.autograd.forward_ad.unpack_dual(polar_factor(dual)).tangent
    torch.testing.assert_close(dq, slope.float())
    leaf, wide_leaf = a.clone().requires_grad_(), a.double().requires_grad_()
    for each in (leaf, wide_leaf):
        (polar_factor(each) * tangent).sum().backward()
    torch.testing.assert_close(leaf.grad, wide_leaf.grad.float())
    gradient = grad(lambda x: (polar_factor(x) * tangent).sum())
    torch.testing.assert_close(gradient(a), leaf.grad)
    torch.testing.assert_close(vmap(gradient)(torch.stack([a, 2 * a]))[0], leaf.grad)
    with torch.no_grad():
        assert not polar_factor(leaf).requires_grad
    torch.testing.assert_close(q, expected.float())
    torch.testing.assert_close(vmap(polar_factor)(torch.stack([a, -a]))[1], -expected.float())


class Marked(Tensor):
    """A tensor of another class, which results keep."""


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.bad_input
def test_what_is_no_plain_matrix_goes_through_the_checks():
    a = randn(5, 3).float()
    assert type(polar_factor(a.as_subclass(Marked))) is Marked
    ragged = torch.nested.nested_tensor([a, a[:2]], layout=torch.strided)
    for other in (a.to_sparse(), a.to("meta"), ragged, a.tolist(), a.to(torch.complex64)):
        with pytest.raises(ConfigError, match="polar_factor needs"):
            polar_factor(other)
    for settings in ({"method": ["auto"]}, {"rtol": "0"}, {"complete": 1}, {"max_iters": 3}):
        with pytest.raises(ConfigError, match="polar_factor "):
            polar_factor(a, **settings)
    with pytest.raises(TypeError, match=r"polar_factor\(\) got an unexpected keyword"):
        polar_factor(a, tolerance=0.1)
