"""Running statistics kept in half precision: rounding below zero, and what is not rounding."""

import copy

import pytest
import torch
from torch import nn

from orthotrain.errors import NotPositiveDefiniteError
from orthotrain.layers import DecorrelatedBatchNorm1d, DecorrelatedBatchNorm2d
from reference.matrices import generator
from reference.spd_root import matrix_function, spd

halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def evaluated(covariance, dtype, **settings):
    """A layer in evaluation that keeps this covariance in this dtype."""
    layer = DecorrelatedBatchNorm1d(len(covariance), affine=False, dtype=dtype, **settings).eval()
    layer.running_covariance.copy_(covariance[None])
    return layer


@halves
def test_a_trained_stem_evaluates_as_in_float32(dtype):
    """27 numbers in, 64 channels out: 37 directions without variance, at the default ridge."""
    torch_layers = nn.Conv2d(3, 64, 3, padding=1), DecorrelatedBatchNorm2d(64, momentum=None)
    model = nn.Sequential(*torch_layers)
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.copy_((torch.rand(parameter.shape, generator=generator(1)) * 2 - 1) / 27**0.5)
        x = torch.randn(16, 3, 16, 16, generator=generator(0))
        for part in (x, x + 0.1, 1.1 * x):
            model(part)
        expected = model.eval()(x)
        layer = copy.deepcopy(model[1]).to(dtype)
        actual = layer(model[0](x))
    # Measured: 4 to 4.5 eps of the dtype over six seeds, by what the covariance lost.
    error = (actual - expected).norm() / expected.norm()
    assert error < 8 * torch.finfo(dtype).eps
    assert torch.isfinite(model.to(dtype)(x.to(dtype))).all()


@halves
@pytest.mark.parametrize("method", ["auto", "newton_schulz"])
def test_eigenvalues_that_rounding_made_negative_count_as_zero(dtype, method):
    """Of a covariance of rank 8 in 24 dimensions, large enough for its rounding to show."""
    largest = 4 * 2**-7 / torch.finfo(dtype).eps
    covariance = spd([0.0] * 16 + [largest] * 8)
    settings = {} if method == "auto" else {"method": method, "iterations": 40}
    layer = evaluated(covariance, dtype, **settings)
    kept = layer.running_covariance[0].double()
    assert torch.linalg.eigvalsh(kept)[0] < -2 * layer.ridge
    expected = matrix_function(kept, lambda value: (max(value, 0.0) + layer.ridge) ** -0.5)
    # Rows of the identity, so that the map itself comes out.
    actual = layer(torch.eye(24)).double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@halves
def test_a_negative_eigenvalue_beyond_rounding_is_refused(dtype):
    layer = evaluated(spd([-0.2, 0.5, 1.0, 1.0]), dtype)
    with pytest.raises(NotPositiveDefiniteError, match=r"DecorrelatedBatchNorm1d\(4\)"):
        layer(torch.eye(4))


@halves
def test_without_a_ridge_small_variances_stay_what_they_are(dtype):
    """A condition beyond what the dtype resolves: no rounding took these from zero."""
    layer = evaluated(torch.diag(torch.tensor([1.0, 2.0**-14])), dtype, ridge=0.0)
    assert torch.equal(layer(torch.eye(2)), torch.diag(torch.tensor([1.0, 2.0**7])))


def test_statistics_in_float32_are_held_to_float32():
    """Above a half's rounding and below zero: an error there, not rounding here."""
    layer = evaluated(spd([-0.01, 0.5, 1.0, 1.0]), torch.float32)
    for x in (torch.eye(4), torch.eye(4, dtype=torch.bfloat16)):
        with pytest.raises(NotPositiveDefiniteError):
            layer(x)
