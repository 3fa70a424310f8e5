"""SeFa directions, and generators that are moved along them or along random ones."""

import pytest
import torch
from torch import nn

from disentangle.generators import Normed, linear
from orthotrain.disentangle import activeness, random_rotation, rotated, sefa_directions
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from reference import generator_metrics as twins
from reference.matrices import from_spectrum, generator, orthonormal


def weight(latent=5, features=12, seed=0):
    return torch.randn(latent, features, generator=generator(seed), dtype=torch.float64)


# --- directions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 12), (5, 3), (4, 4), (1, 6), (6, 1)], ids=str)
def test_agrees_with_the_twin(shape):
    w = weight(*shape)
    directions, strengths = sefa_directions(w, latent_axis=0)
    values, projectors = twins.sefa(w)
    torch.testing.assert_close(strengths, values.clamp(min=0), rtol=0, atol=1e-12)
    for i, value in enumerate(values):
        # Null directions, of which there may be several, are arbitrary among each other.
        if value > 1e-9:
            found = torch.outer(directions[i], directions[i])
            torch.testing.assert_close(found, projectors[i], rtol=0, atol=1e-9)


def test_every_shape_gives_the_same():
    w = weight(5, 24)
    expected = sefa_directions(w, latent_axis=0)
    convolution = nn.ConvTranspose2d(5, 6, 2)
    assert convolution.weight.shape == (5, 6, 2, 2)
    for shaped, axis in (
        (w.mT.contiguous(), None),  # nn.Linear: (out, in)
        (w, None),  # EigenSubspace.u: (latent, features)
        (w.reshape(5, 6, 2, 2), None),  # nn.ConvTranspose2d: (in, out, kh, kw)
        (w.reshape(5, 6, 2, 2).movedim(0, 2), 2),
        (w.mT, -1),
    ):
        for a, b in zip(sefa_directions(shaped, latent_axis=axis), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_of_orthogonal_columns_are_the_columns_by_how_many_there_are():
    """Columns are scaled to one, so what counts is how many point somewhere, not how far."""
    q = orthonormal(3, 3, seed=1)
    columns = [2] * 4 + [0] * 2 + [1] * 1
    w = torch.stack([10.0**i * q[:, c] for i, c in enumerate(columns)], dim=1)
    directions, strengths = sefa_directions(w, latent_axis=0)
    assert strengths.tolist() == pytest.approx([4, 2, 1])
    for row, c in zip(directions, (2, 0, 1), strict=True):
        assert abs(float(row @ q[:, c])) == pytest.approx(1)


def test_signs_are_fixed():
    w = weight()
    directions, _ = sefa_directions(w, latent_axis=0)
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()
    for turned in (sefa_directions(-w, latent_axis=0)[0], sefa_directions(3 * w, latent_axis=0)[0]):
        torch.testing.assert_close(turned, directions, rtol=0, atol=1e-12)
    # Equal entries of unequal sign: the first is positive, however rounding falls.
    for sign in (1, -1):
        tied = sign * torch.tensor([[1.0, 1.0], [-1.0 - 1e-9, -1.0]], dtype=torch.float64)
        assert (sefa_directions(tied, latent_axis=0)[0][:, 0] > 0).all()


def test_zero_columns_and_dtypes():
    w = torch.cat([weight(4, 6), torch.zeros(4, 3)], dim=1)
    expected = sefa_directions(weight(4, 6), latent_axis=0)
    for a, b in zip(sefa_directions(w, latent_axis=0), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for dtype in (torch.float32, torch.bfloat16):
        directions, strengths = sefa_directions(w.to(dtype).requires_grad_(), latent_axis=0)
        assert directions.dtype == strengths.dtype == dtype
        assert not directions.requires_grad
    directions, strengths = sefa_directions(torch.zeros(3, 4))
    assert strengths.tolist() == [0.0] * 3
    torch.testing.assert_close(directions @ directions.mT, torch.eye(3))


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(4,), (), (0, 3), (3, 0)], ids=str)
def test_wrong_shapes(shape):
    with pytest.raises(ShapeError, match="sefa_directions needs a weight"):
        sefa_directions(torch.zeros(shape))


@pytest.mark.bad_input
def test_wrong_input():
    with pytest.raises(ConfigError, match=r"torch\.int64"):
        sefa_directions(torch.zeros(3, 4, dtype=torch.int64))
    for axis in (2, -3, True):
        with pytest.raises(ConfigError, match="latent_axis"):
            sefa_directions(torch.zeros(3, 4), latent_axis=axis)
    # A square matrix does not tell which of its axes is the latent.
    with pytest.raises(ConfigError, match=r"latent_axis.*got None for shape \(4, 4\)"):
        sefa_directions(torch.eye(4))
    with pytest.raises(NonFiniteError, match=r"finite numbers.* in weight"):
        sefa_directions(torch.full((3, 4), torch.nan))


# --- turned generators ----------------------------------------------------------------------------


def test_a_coordinate_walks_along_its_direction():
    model = linear(3)
    directions, _ = sefa_directions(model.weight, latent_axis=0)
    turned = rotated(model, directions)
    for i in range(3):
        e = torch.eye(3, dtype=torch.float64)[i : i + 1]
        torch.testing.assert_close(turned(2.5 * e), model(2.5 * directions[i : i + 1]))


def test_sefa_leaves_the_set_of_images_unchanged():
    """Every image of the generator is one of the turned generator, at the turned-back latent."""
    model = Normed().eval().requires_grad_(False)
    directions, _ = sefa_directions(model.grow.weight)
    turned = rotated(model, directions)
    z = torch.randn(50, 3, generator=generator(2))
    torch.testing.assert_close(turned(z @ directions.mT), model(z), rtol=0, atol=1e-5)
    # And the turned latent is as normal: a rotation keeps its length.
    torch.testing.assert_close((z @ directions.mT).norm(dim=1), z.norm(dim=1))


def test_sefa_finds_the_axes_of_a_generator_whose_latent_was_turned():
    # Rows of unequal length in a basis of their own; all features have columns of length one.
    axes = torch.block_diag(torch.ones(1, 9), torch.ones(1, 6), torch.ones(1, 1)).double()
    q = random_rotation(3, seed=7)
    model = linear(3)
    with torch.no_grad():
        model.weight.copy_(q.mT @ axes)
    directions, strengths = sefa_directions(model.weight, latent_axis=0)
    assert strengths.tolist() == pytest.approx([9, 6, 1])
    found = activeness(rotated(model, directions), 3, seed=0, samples=3, value_range="any")
    assert found.tolist() == pytest.approx([4 * 9 / 16, 4 * 6 / 16, 4 / 16])


def test_coordinates_beyond_the_directions_stay():
    seen = []
    turned = rotated(lambda z: seen.append(z) or z[:, :, None, None], random_rotation(2, seed=0))
    z = torch.randn(4, 5, generator=generator(0))
    turned(z)
    assert torch.equal(seen[0][:, 2:], z[:, 2:])
    assert not torch.equal(seen[0][:, :2], z[:, :2])
    assert seen[0].dtype == torch.float32


def test_a_turned_module_is_still_measured_in_evaluation_mode():
    model = Normed()
    found = activeness(rotated(model, torch.eye(3)), 3, seed=0, samples=4)
    torch.testing.assert_close(found, activeness(model, 3, seed=0, samples=4))
    assert model.training


def test_random_rotation():
    q = random_rotation(6, seed=3)
    torch.testing.assert_close(q @ q.mT, torch.eye(6, dtype=torch.float64))
    assert torch.equal(q, random_rotation(6, seed=3))
    assert not torch.equal(q, random_rotation(6, seed=4))
    # Even over all rotations: no entry prefers a sign, which a plain QR does on its diagonal.
    entries = torch.stack([random_rotation(3, seed=s) for s in range(400)])
    assert entries.mean(dim=0).abs().max() < 4 * (1 / 3 / 400) ** 0.5
    torch.testing.assert_close(
        entries.square().mean(dim=0), torch.full((3, 3), 1 / 3).double(), rtol=0, atol=0.06
    )


def test_blocks_are_turned_by_themselves():
    q = random_rotation(5, seed=3, blocks=[2, 3])
    torch.testing.assert_close(q @ q.mT, torch.eye(5, dtype=torch.float64))
    assert q[:2, 2:].abs().max() == q[2:, :2].abs().max() == 0
    assert (q[:2, :2] != 0).all()
    assert (q[2:, 2:] != 0).all()


@pytest.mark.bad_input
def test_wrong_directions():
    for shape in ((3,), (2, 3), (0, 0)):
        with pytest.raises(ShapeError, match="rotated needs directions"):
            rotated(linear(), torch.zeros(shape))
    bad = from_spectrum([1, 1, 1.1], 3, 3)
    for directions in (bad, torch.full((2, 2), torch.nan)):
        with pytest.raises(ConfigError, match="orthogonal"):
            rotated(linear(), directions)
    with pytest.raises(ShapeError, match="d >= 3"):
        rotated(linear(), torch.eye(3))(torch.zeros(4, 2))
    with pytest.raises(ConfigError, match="dim"):
        random_rotation(0, seed=0)
    with pytest.raises(ConfigError, match=r"add up to 4 coordinates, got \[2, 3\]"):
        random_rotation(4, seed=0, blocks=[2, 3])
    with pytest.raises(ConfigError, match="a block"):
        random_rotation(4, seed=0, blocks=[4, 0])
