"""EigenGAN: its published sizes, its formula written out, and its noise; see also the contract."""

import pytest
import torch
from torch.autograd import gradcheck

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.models import EigenDiscriminator, EigenGenerator
from reference import generators as reference
from reference.matrices import generator, normal, shaken


def model_of(size=8, *, noise_dim=5, seed=0, **changes):
    settings = {"num_basis": 3, "base_channels": 2} | changes
    return EigenGenerator(size, noise_dim=noise_dim, generator=generator(seed), **settings)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "millions_g", "millions_d"),
    [(64, "3.60", "2.23"), (128, "10.26", "8.92"), (256, "22.99", "13.64")],
)
def test_parameters_of_the_published_networks(size, millions_g, millions_d):
    with torch.device("meta"):
        models = EigenGenerator(size), EigenDiscriminator(size)
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert [f"{count / 1e6:.2f}" for count in counts] == [millions_g, millions_d]


@pytest.mark.parametrize(
    ("size", "base", "widths"),
    [(8, 16, [32, 16]), (16, 16, [64, 32, 16]), (32, 8, [64, 32, 16, 8]),
     (256, 16, [512, 512, 256, 128, 64, 32, 16]), (16, 300, [512, 512, 300])],
)  # fmt: skip
def test_blocks_and_channels(size, base, widths):
    with torch.device("meta"):
        model = EigenGenerator(size, base_channels=base, num_basis=4)
        discriminator = EigenDiscriminator(size, base_channels=base)
    shapes = [block.subspace.out_shape for block in model.blocks]
    assert shapes == [(c, 4 << i, 4 << i) for i, c in enumerate(widths[:-1])]
    assert model.latent_dim == 4 * (len(widths) - 1)
    assert model.to_image.weight.shape == (3, widths[-1], 7, 7)
    halving = [c for c in discriminator.convolutions if c.stride == (2, 2)]
    assert [c.out_channels for c in halving] == widths[-2::-1]


# --- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "noise_dim"), [(8, 5), (16, 0), (16, 4)])
def test_generator_agrees_with_the_network_written_out(size, noise_dim, channels):
    model = shaken(model_of(size, noise_dim=noise_dim, channels=channels), size=0.1)
    z = normal(3, len(model.blocks), 3)
    e = normal(3, noise_dim, seed=3) if noise_dim else None
    expected = reference.eigen_generator(model.state_dict(), z, e)
    torch.testing.assert_close(model(z, e), expected, rtol=0, atol=1e-11)
    assert expected.std() > 0.1
    assert expected.abs().max() < 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 32])
def test_discriminator_agrees_with_the_network_written_out(size, channels):
    made = EigenDiscriminator(size, base_channels=3, channels=channels, generator=generator(0))
    model = shaken(made, size=0.1)
    images = normal(2, channels, size, size)
    expected = reference.eigen_discriminator(model.state_dict(), images)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-11)
    assert expected[0] != expected[1]


def test_coordinates_flat_or_by_blocks_are_the_same():
    model = model_of(16)
    z, e = model.latents(4, generator=generator(0))
    assert z.shape == (4, 6)
    assert torch.equal(model(z, e), model(z.view(4, 2, 3), e))


def test_each_coordinate_belongs_to_its_block():
    model = shaken(model_of(16, noise_dim=0), size=0.1)
    z = normal(1, 6)
    silent = model(z).detach()
    with torch.no_grad():
        model.blocks[1].subspace.u.zero_()
    # Without its directions the second block's coordinates, the last three, do nothing.
    moved = model(z)
    assert not torch.equal(moved, silent)
    z[0, 3:] += 1
    assert torch.equal(model(z), moved)
    z[0, :3] += 1
    assert not torch.equal(model(z), moved)


def test_derivatives_of_images_by_latents_and_directions():
    model = shaken(model_of(8, base_channels=1, num_basis=2), size=0.1)
    z, e, u = normal(2, 2), normal(2, 5, seed=3), model.blocks[0].subspace.u

    def run(z, e, u):
        return torch.func.functional_call(model, {"blocks.0.subspace.u": u}, (z, e))

    assert gradcheck(run, (z.requires_grad_(), e.requires_grad_(), u), fast_mode=True)


def test_without_noise_the_start_is_learned():
    model = model_of(noise_dim=0)
    assert model.start is None
    assert model.constant.shape == (4, 4, 4)
    with torch.device("meta"):
        large = EigenGenerator(64, noise_dim=0)
    assert large.constant.shape == (256, 4, 4)
    start = EigenGenerator(64, noise_dim=0, generator=generator(0)).constant
    # 4096 standard normal numbers: five standard deviations.
    assert abs(start.mean()) < 5 / 64
    assert abs(start.std() - 1) < 5 / 90
    z, e = model.latents(2, generator=generator(0))
    assert e is None
    assert model(z).shape == (2, 3, 8, 8)


# --- coordinates and noise in one vector ----------------------------------------------------------


@pytest.mark.parametrize("noise_dim", [0, 5])
def test_one_vector_of_coordinates_and_noise(noise_dim):
    model = model_of(16, noise_dim=noise_dim)
    z, e = model.latents(4, generator=generator(0))
    joined = z if e is None else torch.cat([z, e], dim=1)
    assert torch.equal(model.joint(joined), model(z, e))


def test_a_joint_vector_is_differentiable():
    model = model_of().double()
    v = normal(2, 8).requires_grad_()
    (slope,) = torch.autograd.grad(model.joint(v).square().sum(), v)
    assert (slope.abs().amax(dim=0) > 0).all()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_dim": -1}, "noise_dim=-1 and num_basis=3"),
        ({"num_basis": 0}, "num_basis=0"),
        ({"num_basis": 65}, "from 1 to prod"),
        ({"base_channels": 0}, "base_channels=0 must be at least 1"),
        ({"base_channels": 513}, "base_channels=513 must be at most 512"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        model_of(**changes)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "shape", [(6,), (2, 5), (2, 3, 2), (2, 6, 1), (2, 2, 3, 1), (0, 6)], ids=str
)
def test_coordinates_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError, match=r"need \(n, 6\) or \(n, 2, 3\)"):
        model_of(16, noise_dim=0)(torch.zeros(shape))


@pytest.mark.bad_input
def test_noise_that_is_missing_or_does_not_fit_is_refused():
    model, plain = model_of(), model_of(noise_dim=0)
    z = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match=r"needs noise e of shape \(2, 5\); draw it with latents"):
        model(z)
    with pytest.raises(ConfigError, match="made with noise_dim=0; leave it out"):
        plain(z, torch.zeros(2, 5))
    for shape in [(1, 5), (2, 4), (5,)]:
        with pytest.raises(ShapeError, match=r"need \(2, 5\), one row"):
            model(z, torch.zeros(shape))


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(8,), (2, 3), (2, 9), (2, 8, 1)], ids=str)
def test_a_joint_vector_of_another_length_is_refused(shape):
    with pytest.raises(ShapeError, match=r"need \(n, 8\): 3 coordinates, then 5 of noise"):
        model_of().joint(torch.zeros(shape))
