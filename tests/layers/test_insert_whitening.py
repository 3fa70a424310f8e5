"""Whitening put into models that exist: where it goes, what it takes over, what cannot be."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

from orthotrain.errors import ConfigError
from orthotrain.layers import (
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
    LowRankConv2d,
    OrthogonalConv2d,
    insert_whitening,
    orthogonal_weight,
)
from orthotrain.models.resnet import ResNet
from reference.matrices import generator


class Net(nn.Module):
    """As torchvision writes a stem: attributes, not a sequence."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = norm(8)
        self.body = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.body(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def images(seed=0):
    return torch.randn(6, 3, 8, 8, generator=generator(seed))


def step(model, optimizer, seed=0):
    optimizer.zero_grad()
    model(images(seed)).square().sum().backward()
    optimizer.step()


# --- where it goes --------------------------------------------------------------------------------


def test_a_named_norm_is_exchanged():
    model = Net()
    convolution = model.conv1
    assert insert_whitening(model, after="conv1", replaces="bn1", ridge=1e-2, groups=2) is model
    assert model.conv1 is convolution
    assert type(model.bn1) is DecorrelatedBatchNorm2d
    assert (model.bn1.ridge, model.bn1.groups, model.bn1.num_features) == (1e-2, 2, 8)
    assert list(model.state_dict())[:6] == [
        "conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_covariance",
        "bn1.num_batches_tracked",
    ]  # fmt: skip
    assert model(images()).shape == (6, 2)


def test_in_a_sequence_the_norm_behind_the_layer_is_exchanged():
    model = Net()
    insert_whitening(model, after="body.0")
    assert [type(m) for m in model.body] == [nn.Conv2d, DecorrelatedBatchNorm2d, nn.ReLU]
    assert type(model.bn1) is nn.BatchNorm2d


@pytest.mark.parametrize(
    "behind", [nn.ReLU(), nn.BatchNorm2d(5), nn.LayerNorm(8)], ids=lambda m: type(m).__name__
)
def test_without_a_norm_that_fits_the_layer_is_wrapped(behind):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), behind)
    convolution = model[0]
    insert_whitening(model, after="0", affine=False)
    assert type(model[0]) is nn.Sequential
    assert model[0][0] is convolution
    assert type(model[0][1]) is DecorrelatedBatchNorm2d
    assert model[1] is behind
    assert next(iter(model[0].state_dict())) == "0.weight"


def test_an_attribute_is_wrapped():
    model = Net()
    insert_whitening(model, after="fc")
    assert [type(m) for m in model.fc] == [nn.Linear, DecorrelatedBatchNorm1d]
    assert model(images()).shape == (6, 2)


def test_a_layer_used_in_two_places_is_wrapped_in_both():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Sequential(shared))
    insert_whitening(model, after="2")
    assert model[0] is model[2]
    assert model[3][0] is model[0]
    assert model[0][0] is shared
    assert model(torch.randn(9, 4, generator=generator(0))).shape == (9, 4)


@pytest.mark.parametrize(
    ("layer", "shape", "kind"),
    [
        (nn.Linear(5, 4), (9, 5), DecorrelatedBatchNorm1d),
        (nn.Conv1d(5, 4, 3), (9, 5, 7), DecorrelatedBatchNorm1d),
        (nn.Conv2d(5, 4, 3), (9, 5, 7, 7), DecorrelatedBatchNorm2d),
        (nn.ConvTranspose2d(5, 4, 3), (9, 5, 7, 7), DecorrelatedBatchNorm2d),
        (nn.Conv3d(5, 4, 3), (9, 5, 4, 4, 4), DecorrelatedBatchNorm3d),
        (LowRankConv2d(5, 4, 3, rank=2), (9, 5, 7, 7), DecorrelatedBatchNorm2d),
        (OrthogonalConv2d(5, 4, 3), (9, 5, 7, 7), DecorrelatedBatchNorm2d),
        (orthogonal_weight(nn.Linear(5, 4)), (9, 5), DecorrelatedBatchNorm1d),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_the_kind_follows_the_layer(layer, shape, kind):
    model = insert_whitening(nn.Sequential(copy.deepcopy(layer)), after="0")
    assert type(model[0][1]) is kind
    y = model(torch.randn(shape, generator=generator(0)))
    assert y.shape[1] == 4
    assert model[0][1].num_batches_tracked == 1


def test_after_the_stem_of_a_resnet():
    model = ResNet(classes=3, width=8, stem_channels=16, generator=generator(0))
    insert_whitening(model, after="stem", replaces="norm", ridge=1e-2)
    assert type(model.norm) is DecorrelatedBatchNorm2d
    model(images()).sum().backward()
    assert model.stem.weight.grad is not None


# --- what it takes over ---------------------------------------------------------------------------


def test_parameters_stay_in_the_optimizer():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    kept = dict(model.named_parameters())
    insert_whitening(model, after="conv1", replaces="bn1")
    assert all(p is kept[name] for name, p in model.named_parameters())
    before = model.bn1.weight.detach().clone()
    step(model, optimizer)
    assert not torch.equal(model.bn1.weight, before)


def test_wrapping_keeps_the_parameters_of_the_layer_and_adds_two():
    model = Net()
    old = {*model.parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    insert_whitening(model, after="fc")
    new = [p for p in model.parameters() if p not in old]
    assert [id(p) for p in new] == [id(p) for p in model.fc[1].parameters()]
    assert old <= {*model.parameters()}
    optimizer.add_param_group({"params": new})
    before = [p.detach().clone() for p in model.fc.parameters()]
    step(model, optimizer)
    changed = [not torch.equal(a, b) for a, b in zip(model.fc.parameters(), before, strict=True)]
    # All but the bias of the layer, which centring takes away again.
    assert changed[0]
    assert changed[2:] == [True, True]


def test_evaluation_goes_on_as_it_was():
    """A diagonal covariance, until a batch says otherwise; the ridge in the place of eps."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(3):
        step(model, optimizer, seed)
    model.eval()
    expected = model(images(7))
    insert_whitening(model, after="conv1", replaces="bn1", ridge=model.bn1.eps, groups=4)
    assert not model.bn1.training
    torch.testing.assert_close(model(images(7)), expected, rtol=1e-4, atol=1e-5)
    assert int(model.bn1.num_batches_tracked) == 3


def whitened(**settings):
    """A model that has whitening already, and statistics of three batches."""
    model = insert_whitening(Net(), after="conv1", replaces="bn1", ridge=0.05, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(3):
        step(model, optimizer, seed)
    return model.eval()


@pytest.mark.parametrize(
    "made",
    [
        {"groups": 2, "momentum": None},
        {"group_size": 2, "affine": False},
        {"method": "newton_schulz", "gradient": "newton_schulz", "iterations": 3},
        {"method": "mpa", "gradient": "lyapunov", "synchronize": True},
    ],
    ids=str,
)
def test_whitening_that_is_exchanged_hands_over_all_it_has(made):
    model = whitened(**made)
    expected, old, kept = model(images(7)), model.bn1, dict(model.named_parameters())
    insert_whitening(model, after="conv1", replaces="bn1")
    assert model.bn1 is not old
    assert repr(model.bn1) == repr(old)
    assert not model.bn1.training
    assert torch.equal(model(images(7)), expected)
    assert int(model.bn1.num_batches_tracked) == 3
    assert all(p is kept[name] for name, p in model.named_parameters())
    model.train()(images(8))
    assert (int(model.bn1.num_batches_tracked), int(old.num_batches_tracked)) == (4, 3)


def test_a_process_group_of_whitening_is_handed_over():
    model, group = whitened(), object()
    model.bn1.process_group = group
    insert_whitening(model, after="conv1", replaces="bn1")
    assert model.bn1.process_group is group


def test_other_groups_take_from_a_running_covariance_what_it_knows():
    model = whitened(groups=2)
    joined = copy.deepcopy(model)
    old = torch.block_diag(*model.bn1.running_covariance)
    assert old[:4, :4].count_nonzero() == 16
    insert_whitening(model, after="conv1", replaces="bn1", group_size=2, ridge=0.3)
    assert (model.bn1.ridge, model.bn1.groups) == (0.3, 4)
    for i, block in enumerate(model.bn1.running_covariance):
        assert torch.equal(block, old[2 * i : 2 * i + 2, 2 * i : 2 * i + 2])
    assert int(model.bn1.num_batches_tracked) == 3
    insert_whitening(joined, after="conv1", replaces="bn1", groups=1)
    assert torch.equal(joined.bn1.running_covariance[0], old)


def test_another_method_leaves_the_derivative_and_steps_of_the_old_one():
    model = whitened(method="newton_schulz", gradient="newton_schulz", iterations=3)
    insert_whitening(model, after="conv1", replaces="bn1", method="eigh")
    chosen = model.bn1.method, model.bn1.gradient, model.bn1.iterations
    assert chosen == ("eigh", "exact", None)


def test_whitening_without_running_statistics_hands_over_none():
    model = whitened(track_running_stats=False)
    insert_whitening(model, after="conv1", replaces="bn1")
    assert model.bn1.running_covariance is None
    insert_whitening(model, after="conv1", replaces="bn1", track_running_stats=True)
    assert torch.equal(model.bn1.running_covariance[0], torch.eye(8))


def test_a_norm_in_float32_behind_a_layer_in_half_precision_stays_so():
    model = Net()
    step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.conv1.bfloat16()
    insert_whitening(model, after="conv1", replaces="bn1", groups=8, ridge=1e-5)
    tensors = [*model.bn1.parameters(), model.bn1.running_mean, model.bn1.running_covariance]
    assert {t.dtype for t in tensors} == {torch.float32}


@pytest.mark.parametrize(
    "made",
    [
        {"momentum": None},
        {"momentum": 0.3, "affine": False},
        {"track_running_stats": False},
    ],
    ids=str,
)
def test_settings_of_the_norm_are_taken_over_unless_said_otherwise(made):
    model = Net(lambda channels: nn.BatchNorm2d(channels, **made))
    insert_whitening(model, after="conv1", replaces="bn1")
    for name, value in made.items():
        assert getattr(model.bn1, name) == value
    other = Net(lambda channels: nn.BatchNorm2d(channels, **made))
    said = {"momentum": 0.7, "affine": True, "track_running_stats": True}
    insert_whitening(other, after="conv1", replaces="bn1", **said)
    for name, value in said.items():
        assert getattr(other.bn1, name) == value
    assert other(images()).shape == (6, 2)


def test_statistics_shared_by_a_sync_batch_norm_stay_shared():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Net())
    insert_whitening(model, after="conv1", replaces="bn1")
    assert model.bn1.synchronize
    plain = insert_whitening(Net(), after="conv1", replaces="bn1")
    assert not plain.bn1.synchronize


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, lambda c: nn.GroupNorm(2, c)])
def test_other_norms_over_channels_are_exchanged_too(norm):
    model = Net(norm)
    weight = getattr(model.bn1, "weight", None)
    insert_whitening(model, after="conv1", replaces="bn1")
    assert type(model.bn1) is DecorrelatedBatchNorm2d
    assert model.bn1.weight is weight
    assert model(images()).shape == (6, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_device_and_dtype_are_those_of_the_layer(dtype, device):
    model = Net().to(device, dtype)
    insert_whitening(model, after="conv1", replaces="bn1")
    insert_whitening(model, after="fc")
    for module in (model.bn1, model.fc[1]):
        assert {t.device.type for t in module.state_dict().values()} == {device}
        tensors = [*module.parameters(), module.running_mean, module.running_covariance]
        assert {t.dtype for t in tensors} == {dtype}


def test_mode_is_kept():
    model = Net().eval()
    insert_whitening(model, after="fc")
    insert_whitening(model, after="conv1", replaces="bn1")
    assert not any(module.training for module in model.modules())


# --- what cannot be -------------------------------------------------------------------------------


def unchanged(model, message, **arguments):
    before = [(name, id(module)) for name, module in model.named_modules()]
    with pytest.raises(ConfigError, match=message) as caught:
        insert_whitening(model, **arguments)
    assert str(caught.value).startswith(("insert_whitening needs ", "DecorrelatedBatchNorm2d("))
    assert [(name, id(module)) for name, module in model.named_modules()] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"after": "conv"}, "'conv'; close to it: .*conv1"),
        ({"after": "body.7"}, "'body.7'; close to it: .*body.0"),
        ({"after": ""}, "''; the model has: conv1, bn1, body"),
        ({"after": "conv*"}, r"'conv\*'"),
        ({"after": "conv1", "replaces": "bn2"}, "'bn2'; close to it: bn1"),
        ({"after": "bn1"}, "'bn1', a BatchNorm2d"),
        ({"after": "body"}, "'body', a Sequential"),
        ({"after": "body.2"}, "'body.2', a ReLU"),
        ({"after": "conv1", "replaces": "body.1"}, "a norm of 4 channels"),
        ({"after": "conv1", "replaces": "fc"}, "a Linear: no norm over channels"),
        ({"after": "conv1", "replaces": "bn1", "groups": 3}, "groups=3"),
    ],
    ids=str,
)
def test_a_name_or_setting_that_cannot_work_changes_nothing(arguments, message):
    unchanged(Net(), message, **arguments)


def test_an_unknown_setting_changes_nothing():
    model = Net()
    with pytest.raises(TypeError, match="grops"):
        insert_whitening(model, after="conv1", replaces="bn1", grops=2)
    assert type(model.bn1) is nn.BatchNorm2d


def test_a_wrapped_model():
    unchanged(DataParallel(Net()), "the bare model, got a DataParallel", after="module.conv1")


def test_a_weight_that_is_read_and_not_called():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    unchanged(model, "MultiheadAttention only reads", after="attention.out_proj")


def test_a_model_that_is_the_layer_itself():
    unchanged(nn.Linear(3, 4), "none at all", after="weight")
