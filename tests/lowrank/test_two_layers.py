"""What a pair answers in the place of a layer, and which layers must stay one."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import orthotrain
from lowrank.nets import filled
from orthotrain.errors import CheckpointError, OrthotrainWarning
from orthotrain.layers import LowRankConv1d
from orthotrain.lowrank.readers import readers
from orthotrain.lowrank.state_dicts import compress_state, read_any
from orthotrain.lowrank.two_layers import is_pair, put_pairs_, ranks_of_pairs


class Reads(nn.Module):
    """Reads things of its layers in ways that a pair answers, too."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.wo = nn.Conv1d(8, 16, 3, padding=1), nn.Linear(16, 16)

    @property
    def dtype(self) -> torch.dtype:
        return self.proj.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x.to(self.proj.weight.device, self.dtype)).mT
        if isinstance(self.wo.weight, Tensor) and x.dtype != self.wo.weight.dtype:
            x = x.to(self.wo.weight.dtype)
        assert self.wo.weight is not None
        sizes = self.wo.in_features, self.wo.out_features, *self.proj.kernel_size
        assert sizes == (16, 16, 3)
        return self.wo(x)


def helper(module: nn.Module, x: Tensor) -> Tensor:
    return F.linear(x, module.by_helper.weight)


class Values(nn.Module):
    """Reads values, each layer in another way; ``called`` is only called."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("called", "direct", "alias", "bias_of", "in_method", "by_helper"):
            self.add_module(name, nn.Linear(16, 16))
        self.inside = nn.Sequential(nn.Linear(16, 16))
        self.looped = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.indexed = nn.ModuleList([nn.Linear(16, 16)])

    def _init_weights(self) -> None:  # nobody calls it in forward
        nn.init.zeros_(self.called.weight)

    def method(self, x: Tensor) -> Tensor:
        return x @ self.in_method.weight

    def forward(self, x: Tensor) -> Tensor:
        self.called.eval()
        x = F.linear(self.called(x), self.direct.weight)
        layer = self.alias
        x = F.linear(x, layer.weight, layer.bias) + self.inside[0].weight.sum()
        for each in self.looped:
            x = x @ each.weight
        x = x @ self.indexed[0].weight + self.bias_of.bias
        return helper(self, self.method(x))


READ = {"direct", "alias", "bias_of", "in_method", "by_helper", "inside.0", "looped.0", "looped.1",
        "indexed.0"}  # fmt: skip


def cut(model: nn.Module, **convolutions: int) -> nn.Module:
    for name, rank in convolutions.items():
        convolution = filled(model.get_submodule(name))
        setattr(model, name, LowRankConv1d.from_conv(convolution, rank=rank))
    return orthotrain.compress(filled(model), rank=orthotrain.Relative(0.7)).eval()


def test_code_that_reads_dtype_device_and_sizes_of_a_pair_goes_on():
    model, x = cut(Reads(), proj=3), torch.ones(2, 8, 5, dtype=torch.float64)
    before = model(x)
    orthotrain.to_factored(model)
    assert ranks_of_pairs(model).keys() == {"proj", "wo"}
    torch.testing.assert_close(model(x), before)
    for dtype in (torch.bfloat16, torch.float64):
        assert copy.deepcopy(model).to(dtype)(x).dtype == dtype
    assert model.to("meta")(x).is_meta
    assert not any(key.endswith("proj.weight") for key in model.state_dict())


def test_layers_whose_values_are_read_become_dense_with_a_warning():
    model, x = cut(Values()), torch.ones(2, 16, dtype=torch.float64)
    before = model(x)
    with pytest.warns(OrthotrainWarning, match=r"direct \(Values reads \.weight\)") as caught:
        orthotrain.to_factored(model)
    assert len(caught) == 1
    assert ranks_of_pairs(model).keys() == {"called"}
    torch.testing.assert_close(model(x), before)


def test_all_ways_to_read_a_value_are_found_through_wrappers():
    model = nn.Sequential(nn.Linear(16, 16), torch.compile(Values(), backend="eager"))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert {name.rpartition("_orig_mod.")[2] for name in readers(model, layers)} == READ


class Hidden(nn.Module):
    """Reads values in ways that the source does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.named = nn.ModuleDict({"q": nn.Linear(16, 16)})

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a, self.b
        x = self.named["q"](b(a(x)))
        for _, layer in enumerate(self.layers):
            x = layer(x)
        return x

    def penalties(self) -> list[Tensor]:  # nobody calls it in forward
        named = {**self.named}
        a, _ = self.a, self.b
        found = [a, getattr(self, "b"), named["q"], *(m for _, m in enumerate(self.layers))]  # noqa: B009
        return [each.weight.pow(2).sum() for each in found]


def pickled(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "moved",
    [pickled, copy.deepcopy, nn.Module.bfloat16, nn.Module.half, nn.Module.float],
    ids=["pickled", "copied", "bfloat16", "half", "float"],
)
def test_code_that_is_not_found_gets_nan_or_an_error(moved):
    model, x = cut(Hidden()), torch.ones(2, 16)
    assert all(each > 0 for each in model.penalties())
    orthotrain.to_factored(model)
    assert len(ranks_of_pairs(model)) == 5
    model = moved(model)
    dtype = model.a[0].weight.dtype
    for read in model.penalties():
        assert read.isnan()
        assert read.dtype == dtype
    assert model(x.to(dtype)).isfinite().all()
    with pytest.raises(IndexError):
        model.a.weight.shape[0]
    with pytest.raises(RuntimeError):
        F.linear(x.to(dtype), model.a.weight)
    assert model.to("meta").a.weight.device == torch.device("meta")


def test_frozen_weights_and_evaluation_mode_stay_so():
    model = orthotrain.compress(
        filled(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))), energy=0.6
    )
    model[0].requires_grad_(False).eval()
    orthotrain.to_factored(model)
    assert [p.requires_grad for p in model.parameters()] == 3 * [False] + 3 * [True]
    assert [layer.training for layer in (*model[0], *model[1])] == [False, False, True, True]


def two() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Embedding(9, 4))


def factored_two() -> nn.Module:
    return orthotrain.to_factored(orthotrain.compress(filled(two()), rank=orthotrain.Relative(0.7)))


@pytest.mark.bad_input
@pytest.mark.parametrize("strict", [True, False])
def test_two_layers_are_never_left_out_of_a_layer_that_follows(strict):
    state = factored_two().state_dict()
    model = orthotrain.follow(two().double())
    for load in (
        lambda: model.load_state_dict(state, strict=strict),
        lambda: orthotrain.restore_structure(model, state),
    ):
        with pytest.raises(CheckpointError, match=r"0 is two layers.*after to_factored of"):
            load()
    factored = orthotrain.follow(factored_two())
    factored.load_state_dict(state, strict=strict)


@pytest.mark.bad_input
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_file_of_a_factored_model_is_loaded_into_a_fresh_one(tmp_path, device):
    model, path = factored_two(), tmp_path / "model.safetensors"
    orthotrain.save(model, path)
    with torch.device(device):
        fresh = two().double()
    loaded = orthotrain.load(fresh, path)
    assert ranks_of_pairs(loaded) == ranks_of_pairs(model)
    assert equal(loaded, model)
    assert loaded[0].weight.isnan()
    assert equal(orthotrain.load(factored_two(), path), model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was saved from.*'0'"):
        orthotrain.load(nn.Sequential(nn.ReLU(), nn.Linear(16, 16), nn.Embedding(9, 4)), path)


def equal(model: nn.Module, other: nn.Module) -> bool:
    one, two = model.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_circular_padding_stays():
    layer = nn.Conv1d(8, 8, 3, padding=1, padding_mode="circular")
    model = nn.Sequential(filled(LowRankConv1d.from_conv(filled(layer), rank=2)))
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(1, 8, 5)
    before = model(x)
    orthotrain.to_factored(model)
    assert model[0][0].padding_mode == "circular"
    torch.testing.assert_close(model(x), before)


def test_two_layers_inside_two_layers_are_put_in_whatever_the_order():
    model = nn.Sequential(nn.Linear(12, 12))
    put_pairs_(model, {"0.0": 2, "0": 4})
    assert ranks_of_pairs(model) == {"0": 4, "0.0": 2}


def test_code_without_a_source_is_taken_by_its_names():
    typed: dict[str, type[nn.Module]] = {}
    code = "def forward(self, x):\n    return self.used(x) @ self.read.weight\n"
    exec(code, {}, typed)
    cls = type("Typed", (nn.Module,), {"forward": typed["forward"]})
    model = cls()
    for name in ("used", "read", "other"):
        model.add_module(name, nn.Linear(4, 4))
    # Which of the two is read cannot be told.
    assert readers(model, dict(model.named_children())).keys() == {"used", "read"}


@pytest.mark.bad_input
def test_a_pair_takes_the_place_of_a_layer_that_has_such_a_form():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.LSTM(4, 4), nn.Linear(4, 4))
    put_pairs_(model, {"0": 2})
    assert is_pair(model[0])
    assert [tuple(layer.weight.shape) for layer in model[0]] == [(2, 6), (5, 2)]
    for name, rank in (("1", 2), ("2", 2), ("9", 2), ("a.b", 2), ("2", 0), ("3", 0)):
        with pytest.raises(CheckpointError, match="build the model that was saved"):
            put_pairs_(model, {name: rank})


def test_a_file_with_pairs_that_is_compressed_again_loads_into_a_fresh_model(tmp_path):
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    orthotrain.compress(filled(model), stored_budget=0.5)
    orthotrain.save(orthotrain.to_factored(model), tmp_path / "pairs.safetensors")
    smaller = compress_state(
        read_any(tmp_path / "pairs.safetensors"), energy=0.7, max_aspect=40, only_if_cheaper=False
    )
    smaller.save(tmp_path / "smaller.safetensors")
    fresh = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).double()
    orthotrain.load(fresh, tmp_path / "smaller.safetensors")
    assert ranks_of_pairs(fresh) == ranks_of_pairs(model) != {}
    assert smaller.report.stored < smaller.report.stored_before
    x = torch.ones(2, 32, dtype=torch.float64)
    by_hand = orthotrain.load(copy.deepcopy(model), tmp_path / "smaller.safetensors")
    torch.testing.assert_close(fresh(x), by_hand(x))
