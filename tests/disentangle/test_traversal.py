"""Traversals: which images they hold, in which order."""

from functools import partial

import pytest
import torch

from disentangle.generators import Normed, linear
from orthotrain.disentangle import activeness, traversals
from orthotrain.errors import ConfigError


def test_every_image_is_the_generator_at_that_latent():
    model = Normed().eval()
    values = [-1.0, 0.5]
    rows = traversals(model, 3, seed=4, samples=2, values=values)
    assert rows.shape == (2, 3, 2, 3, 4, 4)
    latents = []
    traversals(
        lambda z: latents.append(z) or torch.zeros(len(z), 1, 1, 1),
        3, seed=4, samples=2, values=values,
    )  # fmt: skip
    z = latents[0].reshape(2, 3, 2, 3)
    for sample in range(2):
        for dim in range(3):
            kept = [d for d in range(3) if d != dim]
            assert z[sample, dim, :, dim].tolist() == values
            # What is kept is the same in every row and column that keeps it.
            other = z[sample, (dim + 1) % 3, 0, kept]
            fixed = [k for k in range(len(kept)) if kept[k] != (dim + 1) % 3]
            for column in range(2):
                assert torch.equal(z[sample, dim, column, kept][fixed], other[fixed])
            with torch.no_grad():
                expected = model(z[sample, dim])
            torch.testing.assert_close(rows[sample, dim], expected, rtol=0, atol=1e-6)


def test_more_samples_keep_the_first():
    one, three = (traversals(Normed(), 3, seed=1, samples=n) for n in (1, 3))
    torch.testing.assert_close(three[:1], one, rtol=0, atol=1e-6)
    assert not torch.allclose(three[1], three[0])


def test_rows_are_chosen_and_ordered():
    model = linear(4)
    with torch.no_grad():
        model.weight *= torch.tensor([1.0, 4.0, 2.0, 3.0])[:, None] / model.weight.norm(
            dim=1, keepdim=True
        )
    rows = partial(traversals, model, 4, seed=0, value_range="any")
    every = rows()
    for settings, expected in (
        ({"dims": [3, 1]}, [3, 1]),
        ({"order": "activeness"}, [1, 3, 2, 0]),
        ({"order": "activeness", "dims": [0, 2]}, [2, 0]),
    ):
        torch.testing.assert_close(rows(**settings), every[:, expected], rtol=0, atol=1e-12)
    order = activeness(model, 4, seed=0, value_range="any").argsort(descending=True)
    assert order.tolist() == [1, 3, 2, 0]


def test_factors_limit_the_rows():
    rows = traversals(linear(5), 5, seed=0, factors=2, value_range="any")
    assert rows.shape[1] == 2


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples"),
        ({"values": ()}, "at least one value"),
        ({"dims": []}, "dims"),
        ({"dims": [3]}, "between 0 and 2"),
        ({"dims": [2], "factors": 2}, "between 0 and 1"),
        ({"order": "size"}, "order"),
    ],
    ids=str,
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=f"traversals needs .*{message}"):
        traversals(linear(), 3, seed=0, **settings)
