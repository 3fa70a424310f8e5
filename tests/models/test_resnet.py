import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.models._residual import BasicBlock, Bottleneck
from orthotrain.models.resnet import ResNet, feature_channels

SMALL = {"width": 3, "stem_channels": 5, "classes": 4, "channels": 2}
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def model_of(seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    return ResNet(**{**SMALL, **changes}, generator=generator)


def images_of(batch=3, size=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, size, size, generator=generator)


def reference(model, images, *, depth, stem, last_stride, training):
    """The network written out in float64 from the names of its weights."""
    state = {k: v.double() for k, v in model.state_dict().items()}

    def norm(x, name):
        if training:
            mean = x.mean(dim=(0, 2, 3))
            variance = x.var(dim=(0, 2, 3), correction=0)
        else:
            mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / (variance + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][
            :, None, None
        ]

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = conv(images.double(), "stem", 1 if stem == "cifar" else 2)
    x = norm(x, "norm").clamp(min=0)
    if stem == "imagenet":
        x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, count in enumerate(BLOCKS[depth]):
        for block in range(count):
            stride = (1, 2, 2, last_stride)[stage] if block == 0 else 1
            name = f"layers.{stage}.{block}"
            convs = 2 if depth == 18 else 3
            strided = 1 if depth == 18 else 2
            y = x
            for i in range(1, convs + 1):
                y = conv(y, f"{name}.conv{i}", stride if i == strided else 1)
                y = norm(y, f"{name}.norm{i}")
                y = y.clamp(min=0) if i < convs else y
            if f"{name}.shortcut.0.weight" in state:
                x = norm(conv(x, f"{name}.shortcut.0", stride), f"{name}.shortcut.1")
            x = (x + y).clamp(min=0)
    return x.mean(dim=(2, 3)) @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("depth", "stem", "last_stride", "size"),
    [
        (18, "cifar", 2, 16),
        (18, "strided", 2, 17),
        (18, "imagenet", 1, 33),
        (50, "cifar", 1, 8),
        (50, "imagenet", 2, 64),
    ],
)
def test_agrees_with_the_network_written_out(depth, stem, last_stride, size, training):
    model = model_of(depth=depth, stem=stem, last_stride=last_stride).double()
    # Norms and running statistics away from their neutral start, so leaving one out would show.
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.add_(0.3 * noise)
    images = images_of(size=size).double()
    model.train(training)
    expected = reference(
        model, images, depth=depth, stem=stem, last_stride=last_stride, training=training
    )
    assert torch.allclose(model(images), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("depth", "parameters"), [(18, 11_689_512), (50, 25_557_032), (101, 44_549_160)]
)
def test_size_of_the_published_networks(depth, parameters):
    with torch.device("meta"):
        model = ResNet(depth=depth, classes=1000, stem="imagenet")
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_stem_of_a_narrow_network_still_sees_27_numbers():
    model = ResNet(width=8, classes=10, generator=torch.Generator().manual_seed(0))
    assert model.stem.weight.shape == (64, 3, 3, 3)
    assert model.layers[0][0].conv1.weight.shape == (8, 64, 3, 3)
    assert model.head.in_features == 64


def test_every_parameter_gets_a_gradient():
    model = model_of(depth=50)
    model(images_of()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_generator_decides_all_weights_and_global_state_stays():
    before = torch.get_rng_state()
    one = model_of()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    other = model_of()
    torch.set_rng_state(before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.stem.weight, model_of(seed=3).stem.weight)


def test_initial_weights_keep_the_variance_of_gradients():
    model = ResNet(classes=10, width=32, generator=torch.Generator().manual_seed(0))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            outputs = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / outputs) ** 0.5, rel=0.1)
    bound = model.head.in_features**-0.5
    assert 0.9 * bound < model.head.weight.abs().max() <= bound


def test_a_stem_that_draws_for_itself_follows_the_generator():
    def stem(inputs, outputs, kernel, stride):
        conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
        return parametrizations.spectral_norm(conv)

    before = torch.get_rng_state()
    one = model_of(stem_conv=stem)
    torch.rand(7)
    other = model_of(stem_conv=stem)
    torch.set_rng_state(before)
    # Its weight is computed, so drawing it anew would change nothing and tell nobody.
    states = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
    assert torch.equal(one(images_of()), other(images_of()))


def test_a_stem_that_is_more_than_a_convolution_keeps_its_weights():
    class Ones(nn.Conv2d):
        def reset_parameters(self):
            nn.init.ones_(self.weight)

    def stem(inputs, outputs, kernel, stride):
        return Ones(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)

    assert (model_of(stem_conv=stem).stem.weight == 1).all()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_strided_block_projects_even_where_the_channels_stay(block):
    one = block(4 * block.expansion, 4, stride=2)
    assert one(torch.zeros(2, 4 * block.expansion, 6, 6)).shape == (2, 4 * block.expansion, 3, 3)


def test_the_first_norm_alone_is_exchanged():
    model = model_of(norm=lambda channels: nn.GroupNorm(1, channels))
    assert isinstance(model.norm, nn.GroupNorm)
    assert model.norm.num_channels == SMALL["stem_channels"]
    assert all(not isinstance(m, nn.GroupNorm) for m in model.layers.modules())


@pytest.mark.parametrize("last_stride", [1, 2])
@pytest.mark.parametrize("depth", [18, 50])
def test_a_pool_sees_the_last_stage_and_feeds_the_head(depth, last_stride):
    seen = []

    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.reduce = nn.Conv2d(feature_channels(depth=depth, width=3), 6, 1, bias=False)

        def forward(self, x):
            seen.append(x.shape)
            return self.reduce(x).flatten(2).mean(2)

    one, other = (
        model_of(depth=depth, pool=Pool(), pool_features=6, last_stride=last_stride)
        for _ in range(2)
    )
    assert one(images_of(size=16)).shape == (3, 4)
    side = 2 if last_stride == 2 else 4
    assert seen == [(3, feature_channels(depth=depth, width=3), side, side)]
    assert torch.equal(one.pool.reduce.weight, other.pool.reduce.weight)


def test_state_dict_and_deepcopy_keep_the_outputs():
    model, images = model_of(), images_of()
    model(images)
    other = model_of(seed=5)
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    for network in (model, other, twin):
        network.eval()
    assert torch.equal(other(images), model(images))
    assert torch.equal(twin(images), model(images))


@pytest.mark.slow
def test_compiled_network_agrees():
    model, images = model_of(), images_of()
    expected = copy.deepcopy(model)(images)
    # Capture and derivative are what can fail; code for a whole ResNet takes a minute.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width=0 must be at least 1"),
        ({"stem_channels": 0}, "stem_channels=0 must be at least 1"),
        ({"classes": 0}, "classes=0 must be at least 1"),
        ({"channels": -1}, "channels=-1 must be at least 1"),
        ({"last_stride": 0}, "last_stride=0 must be at least 1"),
        ({"depth": 34}, "depth to be one of 18, 50, 101, got 34"),
        ({"stem": "mnist"}, "stem to be one of cifar, strided, imagenet, got 'mnist'"),
        ({"pool": nn.Identity()}, "pool_features=None; give both"),
        ({"pool_features": 3}, "pool=NoneType with pool_features=3; give both"),
        ({"pool": nn.Identity(), "pool_features": 0}, "pool_features=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        model_of(**changes)


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (0, 2, 8, 8), (2, 8, 8), (1, 2, 0, 8)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(
        ShapeError, match=r"need \(batch, 2, height, width\) with at least one image"
    ):
        model_of()(torch.zeros(shape))
