"""The averaged copy: its warm-up, its half-life, its buffers, its state, and that it follows."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

import orthotrain
from lowrank.nets import as_published
from orthotrain.errors import ConfigError
from orthotrain.layers import LowRankLinear
from orthotrain.models import EigenGenerator, ema_of
from reference.matrices import generator


class Scalar(nn.Module):
    """One parameter, so that an average can be followed by hand."""

    def __init__(self, value=0.0):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([value], dtype=torch.float64))


def set_to(model, value):
    with torch.no_grad():
        model.p.fill_(value)


def averaged_over(values, **settings):
    """The average after each of the values."""
    model = Scalar()
    ema = ema_of(model, **settings)
    found = []
    for value in values:
        set_to(model, value)
        ema.update_parameters(model)
        found.append(ema.module.p.item())
    return found


# --- the weights of the average -------------------------------------------------------------------


def test_without_warm_up_the_weight_of_a_step_halves_over_the_half_life():
    # One at the first step and zero from then on: what is left of the first step.
    left = averaged_over([1.0] + [0.0] * 40, half_life_images=80.0, batch_size=8, warmup=0.0)
    assert left[0] == 1
    for steps in (10, 20, 30, 40):
        assert left[steps] == pytest.approx(0.5 ** (steps / 10), rel=1e-12)


def test_the_half_life_is_in_images_not_in_steps():
    values = torch.rand(120, generator=generator(0)).tolist()
    small = averaged_over(values, half_life_images=100.0, batch_size=5, warmup=0.0)
    pairs = [x for value in values[:60] for x in (value, value)]
    large = averaged_over(values[:60], half_life_images=100.0, batch_size=10, warmup=0.0)
    doubled = averaged_over(pairs, half_life_images=100.0, batch_size=5, warmup=0.0)
    assert large == pytest.approx(doubled[1::2], rel=1e-12)
    assert small[:60] != pytest.approx(large, rel=1e-3)


def test_warm_up_starts_as_the_model_and_forgets_the_start():
    values = [100.0, *torch.rand(30, generator=generator(1)).tolist()]
    found = averaged_over(values, half_life_images=1e6, batch_size=4)
    assert found[0] == 100
    # Half-lives of .05, .1 and .15 of a step: 2^-20, 2^-10 and 2^(-20/3) of the old one stay.
    assert found[1] == pytest.approx(values[1] + (100 - values[1]) * 2**-20, rel=1e-12)
    assert found[2] == pytest.approx(values[2] + (found[1] - values[2]) * 2**-10, rel=1e-12)
    assert found[3] == pytest.approx(values[3] + (found[2] - values[3]) * 2 ** (-20 / 3), rel=1e-12)
    assert max(found[3:]) < 1
    cold = averaged_over(values, half_life_images=1e6, batch_size=4, warmup=0.0)
    assert cold[-1] > 99


def test_warm_up_ends_where_the_half_life_is_reached():
    # A twentieth of 2,000 images is the half-life, so from step 200 on nothing is different.
    settings = {"half_life_images": 100.0, "batch_size": 10}
    values = torch.rand(260, generator=generator(2), dtype=torch.float64).tolist()
    found = averaged_over(values, **settings)
    for step in (199, 200, 201, 250):
        seen = min(100, 0.05 * step * 10)
        decay = 0.5 ** (10 / seen)
        expected = decay * found[step - 1] + (1 - decay) * values[step]
        assert found[step] == pytest.approx(expected, rel=1e-12)
    assert 0.05 * 199 * 10 < 100 == 0.05 * 200 * 10


def test_the_published_decay_is_the_half_life_of_the_docstring():
    decay, batch = 0.999, 64
    half_life = batch * math.log(0.5) / math.log(decay)
    assert half_life / batch == pytest.approx(692.8, abs=0.05)
    left = averaged_over([1.0, 0.0], half_life_images=half_life, batch_size=batch, warmup=0.0)
    assert left[1] == pytest.approx(decay, rel=1e-12)


# --- the copy -------------------------------------------------------------------------------------


def small_net():
    torch_seeded = generator(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 6))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=torch_seeded))
    return net


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(8, 6, generator=generator(100 + step))
        (model(x) - x.flip(1)).square().mean().backward()
        optimizer.step()


def test_the_copy_is_apart_and_takes_no_gradient():
    model = small_net().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, [0])
    ema = ema_of(model, half_life_images=100.0, batch_size=8)
    assert not ema.module.training
    assert model.training
    for mine, theirs in zip(model.parameters(), ema.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
        assert mine.requires_grad
        assert mine.grad is not None
        assert not theirs.requires_grad
        assert theirs.grad is None
    before = copy.deepcopy(ema.state_dict())
    train(model, optimizer, [1])
    for name, value in ema.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_buffers_are_those_of_the_model():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = ema_of(model, half_life_images=1000.0, batch_size=8, warmup=0.0)
    for step in range(4):
        train(model, optimizer, [step])
        ema.update_parameters(model)
    averaged, norm = ema.module[1], model[1]
    assert torch.equal(averaged.running_mean, norm.running_mean)
    assert torch.equal(averaged.running_var, norm.running_var)
    assert averaged.num_batches_tracked == 4
    assert not torch.equal(ema.module[0].weight, model[0].weight)


def test_state_dict_goes_on_with_the_warm_up():
    settings = {"half_life_images": 1000.0, "batch_size": 8}
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = ema_of(model, **settings)
    for step in range(5):
        train(model, optimizer, [step])
        ema.update_parameters(model)
    file = io.BytesIO()
    torch.save(ema.state_dict(), file)
    file.seek(0)
    other = ema_of(small_net(), **settings)
    other.load_state_dict(torch.load(file, weights_only=True))
    again = pickle.loads(pickle.dumps(ema))
    for step in range(5, 9):
        train(model, optimizer, [step])
        for average in (ema, other, again):
            average.update_parameters(model)
    for name, value in ema.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
        assert torch.equal(again.state_dict()[name], value), name


def test_wrappers_are_looked_through():
    model = small_net()
    ema = ema_of(torch.optim.swa_utils.AveragedModel(model), half_life_images=10.0, batch_size=1)
    assert type(ema.module) is nn.Sequential


def test_a_generator_samples_from_its_average():
    model = EigenGenerator(8, noise_dim=3, base_channels=1, generator=generator(0))
    ema = ema_of(model, half_life_images=100.0, batch_size=4)
    images = model.sample(2, generator=generator(1))
    with torch.no_grad():
        model.to_image.bias.add_(1)
    assert torch.equal(ema.module.sample(2, generator=generator(1)), images)
    ema.update_parameters(model)
    assert torch.equal(
        ema.module.sample(2, generator=generator(1)), model.sample(2, generator=generator(1))
    )


def test_a_tracked_average_follows_the_structure_of_the_model():
    random = generator(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=p.dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    method = as_published(
        delay_steps=2, every_steps=2, rank_rtol=0.3, dense_last=False, only_if_cheaper=False,
        layer_fraction=1.0,
    )  # fmt: skip
    handle = orthotrain.attach(model, optimizer, method)
    ema = ema_of(model, half_life_images=100.0, batch_size=10)
    handle.track(ema)
    x = torch.randn(10, 12, generator=random, dtype=torch.float64)
    for _ in range(8):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        ema.update_parameters(model)
    assert isinstance(ema.module[0], LowRankLinear)
    assert ema.module[0].rank == model[0].rank < 12
    assert torch.equal(ema.module[0].u, model[0].u)
    difference = (ema.module[0].weight - model[0].weight).norm()
    assert 0 < difference < 0.01 * model[0].weight.norm()
    assert not any(p.requires_grad for p in ema.parameters())


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"half_life_images": 0.0}, "half_life_images, got 0.0"),
        ({"half_life_images": math.inf}, "half_life_images, got inf"),
        ({"half_life_images": math.nan}, "half_life_images to be a number, got nan"),
        ({"batch_size": 0}, "batch_size of at least 1, got 0"),
        ({"warmup": -0.1}, "warmup of at least 0, got -0.1"),
        ({"warmup": math.inf}, "warmup of at least 0, got inf"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ema_of(Scalar(), **{"half_life_images": 10.0, "batch_size": 2} | changes)
