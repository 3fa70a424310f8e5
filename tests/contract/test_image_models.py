"""What every image generator and discriminator promises: one table, one suite.

A new model is enrolled by one row of ``MODELS``.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers import EigenSubspace
from orthotrain.models import (
    EigenDiscriminator,
    EigenGenerator,
    SimpleDiscriminator,
    SimpleGenerator,
)
from reference.matrices import generator


@dataclass(frozen=True)
class Model:
    """A row: how to make a model from its channels and the generator of its weights."""

    name: str
    make: Callable[..., nn.Module]
    size: int
    generates: bool

    def __str__(self) -> str:
        return self.name

    def model(self, *, seed: int = 0, channels: int = 3) -> nn.Module:
        return self.make(channels=channels, generator=generator(seed))

    def inputs(self, model: nn.Module, *, n: int = 3, seed: int = 1) -> tuple[Tensor, ...]:
        if self.generates:
            return model.latents(n, generator=generator(seed))
        shape = (n, *model.image_shape)
        images = torch.randn(shape, generator=generator(seed)).tanh()
        return (images.to(next(model.parameters())),)


GENERATORS = (
    Model("eigen-generator",
          lambda **k: EigenGenerator(16, noise_dim=7, num_basis=3, base_channels=4, **k), 16, True),
    Model("eigen-generator-without-noise",
          lambda **k: EigenGenerator(8, noise_dim=0, base_channels=4, **k), 8, True),
    Model("simple-generator", lambda **k: SimpleGenerator(16, latent_dim=4, **k), 16, True),
)  # fmt: skip
DISCRIMINATORS = (
    Model("eigen-discriminator", lambda **k: EigenDiscriminator(16, base_channels=4, **k), 16,
          False),
    Model("simple-discriminator", lambda **k: SimpleDiscriminator(16, **k), 16, False),
)  # fmt: skip
MODELS = GENERATORS + DISCRIMINATORS

every_model = pytest.mark.parametrize("row", MODELS, ids=str)
every_generator = pytest.mark.parametrize("row", GENERATORS, ids=str)
every_discriminator = pytest.mark.parametrize("row", DISCRIMINATORS, ids=str)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)


def train_a_little(model: nn.Module, row: Model) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for seed in (5, 6):
        optimizer.zero_grad()
        out = model(*row.inputs(model, seed=seed))
        (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum().backward()
        optimizer.step()


# --- weights --------------------------------------------------------------------------------------


@every_model
def test_the_generator_decides_all_weights_and_global_state_stays(row: Model):
    before = torch.get_rng_state()
    one = row.model()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    other = row.model()
    torch.set_rng_state(before)
    assert same_state(one, other)
    assert not torch.equal(next(one.parameters()), next(row.model(seed=3).parameters()))
    other.reset_parameters(generator=generator(3))
    assert same_state(other, row.model(seed=3))


@every_model
def test_without_a_generator_the_global_state_decides(row: Model):
    with torch.random.fork_rng(devices=[]):
        models = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            models.append(row.make(channels=3))
    assert same_state(*models[:2])
    assert not same_state(*models[1:])


@every_model
def test_layers_start_as_torch_starts_them(row: Model):
    model = row.model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = copy.deepcopy(model)
        if isinstance(model, SimpleGenerator):
            # Its own layer comes first; held against nn.ConvTranspose2d in a test of its own.
            expected.latent.reset_parameters()
        plain = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
        for module in expected.modules():
            if isinstance(module, plain):
                module.reset_parameters()
    compared = 0
    for one, other in zip(model.modules(), expected.modules(), strict=True):
        if isinstance(one, plain):
            compared += 1
            for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
                assert torch.equal(mine, theirs)
        if isinstance(one, nn.InstanceNorm2d):
            assert (one.weight == 1).all()
            assert (one.bias == 0).all()
        if isinstance(one, EigenSubspace):
            assert one.orthonormality_error() < 1e-6
    assert compared >= 3


@every_model
def test_every_parameter_is_trained(row: Model):
    model = row.model()
    out = model(*row.inputs(model))
    (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name
    assert list(model.buffers()) == []


@every_model
def test_state_dict_copies_and_pickles_keep_the_outputs(row: Model):
    model = row.model()
    train_a_little(model, row)
    inputs = row.inputs(model)
    expected = model(*inputs)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = row.model(seed=9)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twins = (loaded, copy.deepcopy(model), torch.load(file, weights_only=False))
    for twin in twins:
        assert torch.equal(twin(*inputs), expected)
        train_a_little(twin, row)
        assert not torch.equal(twin(*inputs), expected)
    assert torch.equal(model(*inputs), expected)
    train_a_little(model, row)
    for twin in twins:
        assert same_state(twin, model)


@every_model
def test_repr_names_the_class_and_its_size(row: Model):
    text = repr(row.model())
    assert text.startswith(type(row.model()).__name__)
    if row.generates:
        assert f"{row.size}, latent_dim={row.model().latent_dim}" in text


# --- forward --------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(row: Model, channels: int):
    model = row.model(channels=channels)
    assert model.image_shape == (channels, row.size, row.size)
    out = model(*row.inputs(model))
    assert out.shape == ((3, channels, row.size, row.size) if row.generates else (3,))
    if row.generates:
        assert out.abs().max() < 1


@every_model
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_samples_do_not_meet_and_the_mode_does_not_matter(row: Model, training: bool):
    model = row.model().double()
    inputs = row.inputs(model)
    whole = model.train(training)(*inputs)
    assert torch.equal(model.train(not training)(*inputs), whole)
    for i in range(3):
        one = model(*(None if x is None else x[i : i + 1] for x in inputs))
        torch.testing.assert_close(one, whole[i : i + 1], rtol=0, atol=1e-12)


@every_model
def test_forward_draws_nothing_and_changes_no_input(row: Model):
    model = row.model()
    inputs = row.inputs(model)
    kept = [None if x is None else x.clone() for x in inputs]
    before = torch.get_rng_state()
    model(*inputs)
    assert torch.equal(torch.get_rng_state(), before)
    for x, y in zip(inputs, kept, strict=True):
        assert x is y is None or torch.equal(x, y)


@every_model
def test_autocast_stays_close_and_trains(row: Model):
    model = row.model()
    inputs = row.inputs(model)
    expected = model(*inputs).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(*inputs)
    # Measured over five seeds: .011 at most, with images up to one in size.
    assert (out.float() - expected).abs().max() < 0.04
    assert (out.float() - expected).abs().max() > 0
    out.float().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad.dtype == torch.float32, name
        assert p.grad.isfinite().all(), name


@every_model
def test_memory_format_changes_nothing(row: Model):
    model = row.model().double()
    inputs = row.inputs(model)
    expected = model(*inputs)
    if not row.generates:
        inputs = (inputs[0].to(memory_format=torch.channels_last),)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(other(*inputs), expected, rtol=0, atol=1e-12)


@pytest.mark.slow
@every_model
def test_compiled_model_agrees(row: Model):
    model = row.model()
    inputs = row.inputs(model)
    expected = copy.deepcopy(model)
    torch.compiler.reset()
    # Capture and derivative are what can fail; the code made of them is not ours.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    one, two = compiled(*inputs), expected(*inputs)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    one.square().sum().backward()
    two.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4, msg=name)


# --- sampling -------------------------------------------------------------------------------------


@every_generator
def test_samples_are_reproducible_and_leave_no_trace(row: Model):
    model = row.model().train()
    before = torch.get_rng_state()
    images = model.sample(4, generator=generator(2))
    assert images.shape == (4, *model.image_shape)
    assert not images.requires_grad
    assert torch.equal(model.eval().sample(4, generator=generator(2)), images)
    assert not torch.equal(model.sample(4, generator=generator(3)), images)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), before)
    random = generator(2)
    assert torch.equal(model(*model.latents(4, generator=random)), images)
    assert not torch.equal(model.sample(4, generator=random), images)


@every_generator
def test_latents_are_standard_normal_in_every_dtype(row: Model):
    model = row.model()
    drawn = [x for x in model.latents(2000, generator=generator(0)) if x is not None]
    assert drawn[0].shape == (2000, model.latent_dim)
    for x in drawn:
        # Five standard deviations of a mean of 2000 numbers and of their mean square.
        assert x.mean(dim=0).abs().max() < 5 / 2000**0.5
        assert (x.square().mean(dim=0) - 1).abs().max() < 5 * (2 / 2000) ** 0.5
    wide = model.double().latents(2000, generator=generator(0))
    for x, y in zip(drawn, (x for x in wide if x is not None), strict=True):
        assert y.dtype == torch.float64
        assert torch.equal(y.float(), x)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize("make", [EigenGenerator, EigenDiscriminator])
@pytest.mark.parametrize(
    ("size", "nearest"),
    [(48, "32 and 64"), (4, "8"), (1, "8"), (0, "8"), (-16, "8"), (9, "8 and 16"),
     (100, "64 and 128"), (1000, "512 and 1024")],
)  # fmt: skip
def test_sizes_of_eigengan(make, size, nearest):
    with pytest.raises(ConfigError, match=rf"from 8 up; the nearest: {nearest}\. Resize or pad"):
        make(size)


@pytest.mark.bad_input
@pytest.mark.parametrize("make", [EigenGenerator, EigenDiscriminator])
@pytest.mark.parametrize("size", [16.0, True])
def test_a_size_that_is_no_whole_number(make, size):
    with pytest.raises(ConfigError, match=f"size to be a whole number, got {size}"):
        make(size)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("size", "nearest"),
    [(8, "16"), (24, "16 and 32"), (100, "64 and 128"), (256, "128"), (200, "128")],
)
@pytest.mark.parametrize("make", [partial(SimpleGenerator, latent_dim=3), SimpleDiscriminator])
def test_sizes_of_simple_gan(make, size, nearest):
    with pytest.raises(ConfigError, match=rf"from 16 to 128; the nearest: {nearest}\. Resize"):
        make(size)


@pytest.mark.bad_input
@every_model
def test_no_channel_is_refused(row: Model):
    with pytest.raises(ConfigError, match="channels=0 must be at least 1"):
        row.make(channels=0)


@pytest.mark.bad_input
@every_generator
def test_no_sample_is_refused(row: Model):
    for draw in (row.model().sample, row.model().latents):
        with pytest.raises(ConfigError, match="at least one sample, got n=0"):
            draw(0, generator=generator(0))


@pytest.mark.bad_input
@every_discriminator
@pytest.mark.parametrize(
    "shape", [(3, 16, 16), (2, 1, 16, 16), (2, 3, 16, 8), (0, 3, 16, 16)], ids=str
)
def test_images_of_another_shape_are_refused(row: Model, shape: tuple[int, ...]):
    with pytest.raises(ShapeError, match=r"need \(batch, 3, 16, 16\) with at least one image"):
        row.model()(torch.zeros(shape))
