"""EigenGAN: its published sizes, its formula written out, and its noise; see also the contract."""

import pytest
import torch
from torch.autograd import gradcheck

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.models import EigenDiscriminator, EigenGenerator
from reference import generators as reference
from reference.matrices import generator


def model_of(size=8, *, noise_dim=5, seed=0, **changes):
    settings = {"num_basis": 3, "base_channels": 2} | changes
    return EigenGenerator(size, noise_dim=noise_dim, generator=generator(seed), **settings)


def normal(*shape, seed=2):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def shaken(model, *, seed=1):
    """In float64, with every parameter away from a start that hides it."""
    random = generator(seed)
    with torch.no_grad():
        for p in model.double().parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=random, dtype=torch.float64))
    return model


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
    model = shaken(model_of(size, noise_dim=noise_dim, channels=channels))
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
    model = shaken(made)
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
    model = shaken(model_of(16, noise_dim=0))
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
    model = shaken(model_of(8, base_channels=1, num_basis=2))
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


# --- a function of z alone ------------------------------------------------------------------------


def test_one_noise_vector_for_all():
    model = model_of(16)
    z, e = model.latents(4, generator=generator(0))
    generate = model.with_noise(e[1])
    torch.testing.assert_close(generate(z), model(z, e[1].expand(4, -1)), rtol=0, atol=0)


def test_row_by_row_every_call_has_the_noise_of_the_seed():
    model = model_of(16)
    before = torch.get_rng_state()
    z, _ = model.latents(6, generator=generator(0))
    images = model.with_noise(seed=3)(z)
    other = model.with_noise(seed=3)
    # In parts, and more rows after fewer.
    torch.testing.assert_close(other(z[:2]), images[:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(other(z), images, rtol=0, atol=1e-6)
    torch.testing.assert_close(other(z[:5]), images[:5], rtol=0, atol=1e-6)
    assert (model.with_noise(seed=4)(z) - images).abs().max() > 1e-3
    # Equal codes, different noise.
    rows = other(z[:1].expand(3, -1))
    assert (rows[0] - rows[1]).abs().max() > 1e-3
    assert torch.equal(torch.get_rng_state(), before)


def test_the_noise_is_standard_normal_and_each_row_its_own():
    model = model_of(noise_dim=50)
    seen = []
    hook = model.start.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.with_noise(seed=0)(torch.zeros(40, model.latent_dim))
    hook.remove()
    (e,) = seen
    assert e.shape == (40, 50)
    assert abs(e.mean()) < 5 / 2000**0.5
    assert abs(e.square().mean() - 1) < 5 * (2 / 2000) ** 0.5
    assert len({tuple(row) for row in e.tolist()}) == 40


def test_the_function_is_differentiable_and_follows_the_model():
    model = model_of().double()
    generate = model.with_noise(seed=1)
    z = normal(2, 3).requires_grad_()
    before = generate(z)
    (slope,) = torch.autograd.grad(before.square().sum(), z)
    assert slope.abs().max() > 0
    with torch.no_grad():
        model.to_image.bias.add_(1)
    assert not torch.equal(generate(z), before)


def test_without_noise_the_function_is_the_model():
    model = model_of(noise_dim=0)
    z, _ = model.latents(3, generator=generator(0))
    for generate in (model.with_noise(), model.with_noise(seed=3)):
        assert torch.equal(generate(z), model(z))


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
    with pytest.raises(ShapeError, match=r"need \(n, 6\) or \(n, 2, 3\)"):
        model_of(16).with_noise(seed=0)(torch.zeros(shape))


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
def test_noise_of_a_function_that_is_unclear_is_refused():
    model = model_of()
    with pytest.raises(ConfigError, match="no e with seed=None"):
        model.with_noise()
    with pytest.raises(ConfigError, match="got e with seed=3"):
        model.with_noise(torch.zeros(5), seed=3)
    with pytest.raises(ConfigError, match="noise_dim=0"):
        model_of(noise_dim=0).with_noise(torch.zeros(5))
    with pytest.raises(ShapeError, match=r"\(2, 5\), need \(5,\)"):
        model.with_noise(torch.zeros(2, 5))
