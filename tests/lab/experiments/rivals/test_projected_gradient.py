import pytest
import torch
from torch import nn

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.rivals.projected_gradient import ProjectedAdamW
from reference.projected_adamw import projected_adamw

SETTINGS = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.2}


def gradients_of(shape, *, count, dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
@pytest.mark.parametrize("rank", [1, 3])
def test_steps_are_those_of_the_slow_twin(shape, rank):
    weight = nn.Parameter(gradients_of(shape, count=1)[0].clone())
    given = gradients_of(shape, count=10)
    expected = projected_adamw(
        weight.detach().clone(), given, rank=rank, refresh_steps=4, **SETTINGS
    )
    optimizer = ProjectedAdamW([weight], ranks={weight: rank}, refresh_steps=4, **SETTINGS)
    for gradient, after in zip(given, expected, strict=True):
        weight.grad = gradient
        optimizer.step()
        torch.testing.assert_close(weight.detach(), after, rtol=1e-9, atol=1e-9)
    assert optimizer.state[weight]["mean"].numel() == rank * max(shape)


def test_what_is_not_projected_has_adamw():
    vector, other = (nn.Parameter(gradients_of((6,), count=1)[0].clone()) for _ in range(2))
    mine = ProjectedAdamW([vector], ranks={}, refresh_steps=3, **SETTINGS)
    theirs = torch.optim.AdamW([other], **SETTINGS)
    for gradient in gradients_of((6,), count=8):
        vector.grad, other.grad = gradient, gradient.clone()
        mine.step()
        theirs.step()
        torch.testing.assert_close(vector, other, rtol=1e-12, atol=1e-12)


@pytest.mark.bad_input
def test_what_is_no_matrix_or_of_smaller_rank_is_refused():
    kernel, matrix = nn.Parameter(torch.zeros(2, 2, 3, 3)), nn.Parameter(torch.zeros(3, 5))
    for parameter, rank in ((kernel, 1), (matrix, 4), (matrix, 0)):
        with pytest.raises(ConfigError, match=f"rank {rank} of a parameter of shape"):
            ProjectedAdamW([parameter], ranks={parameter: rank}, refresh_steps=3)
