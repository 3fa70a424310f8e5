"""A plain state dict: what could be saved of it, and a smaller one out of it."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import orthotrain
from orthotrain.errors import CheckpointError, ConfigError, NonFiniteError
from orthotrain.lowrank.state_dicts import StoredModel, compress_state, read_any, survey
from orthotrain.lowrank.state_dicts.survey import surveyed


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights whose singular values fall, so that a cut keeps most of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            matrix = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                flat = matrix.flatten(1)
                u, s, vh = torch.linalg.svd(flat, full_matrices=False)
                s = 2.0 ** -torch.arange(len(s))
                matrix = (u * s @ vh).reshape(matrix.shape)
            parameter.copy_(matrix)
    return model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 48, 3)
        self.norm = nn.BatchNorm2d(48)
        self.linear = nn.Linear(48, 40)
        self.bare = nn.Linear(40, 40, bias=False)
        self.attention = nn.MultiheadAttention(40, 4, batch_first=True)
        self.head = nn.Linear(40, 40)
        self.tied = nn.Linear(40, 40)
        self.tied.weight = self.head.weight
        self.position = nn.Parameter(torch.zeros(1, 6, 40))

    def forward(self, x):
        x = self.norm(self.conv(x)).flatten(2).mT
        x = self.bare(self.linear(x)) + self.position
        return self.tied(self.head(self.attention(x, x, x, need_weights=False)[0]))


def image():
    return torch.randn(2, 4, 4, 5, generator=torch.Generator().manual_seed(3))


def test_two_factors_load_into_the_model_and_compute_what_the_report_says(tmp_path):
    model = filled(Net()).eval()
    made = compress_state(model.state_dict(), energy=0.999)
    made.save(tmp_path / "small.safetensors")
    loaded = orthotrain.load(Net().eval(), tmp_path / "small.safetensors")
    # The same cut by the library on the model itself.
    expected = orthotrain.compress(copy.deepcopy(model), energy=0.999)
    ranks = {layer.name: layer.rank for layer in expected.compression.layers}
    named = {"attention.in_proj": "attention.in_proj_weight"}
    assert {named.get(each.name, each.name): each.rank for each in made.report.layers} == ranks
    assert sum(p.numel() for p in loaded.parameters()) == sum(
        p.numel() for p in expected.parameters()
    )
    torch.testing.assert_close(loaded(image()), expected(image()), rtol=1e-4, atol=1e-5)
    assert loaded.tied.pair is loaded.head.pair
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        metadata = file.metadata()
        assert "tied.pair" not in file.keys()  # noqa: SIM118  # stored once
    assert json.loads(metadata["ranks"])["linear.pair"] == ranks["linear"]
    assert json.loads(metadata["aliases"]) == {"tied.pair": "head.pair"}
    assert made.report.stored == sum(
        t.numel() for t in load_file(tmp_path / "small.safetensors").values()
    )


def test_plain_torch_loads_what_restore_structure_or_follow_has_shaped(tmp_path):
    made = compress_state(filled(Net()).state_dict(), energy=0.99)
    shaped = orthotrain.restore_structure(Net(), made.tensors)
    shaped.load_state_dict(made.tensors)
    following = orthotrain.follow(Net())
    following.load_state_dict(made.tensors)
    for model in (shaped, following):
        assert type(model.linear).__name__ == "LowRankLinear"
        assert torch.equal(model.linear.pair, made.tensors["linear.pair"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_wrappers_make_no_difference(tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in filled(Net()).state_dict().items()}
    made = compress_state(state, energy=0.99)
    made.save(tmp_path / "small.safetensors")
    loaded = orthotrain.load(Net(), tmp_path / "small.safetensors")
    assert torch.equal(loaded.linear.pair, made.tensors[f"{prefix}linear.pair"])


def test_dense_keeps_every_name_and_shape_and_loads_without_this_library(tmp_path):
    model = filled(Net()).eval()
    state = model.state_dict()
    made = compress_state(state, energy=0.99, form="dense")
    made.save(tmp_path / "dense.safetensors")
    tensors = load_file(tmp_path / "dense.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in state.items()
    }
    with safe_open(tmp_path / "dense.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"  # Transformers loads no other
    ranks = json.loads(metadata["orthotrain.ranks"])
    assert ranks["tied.weight"] == ranks["head.weight"] == made.report.layers[-1].rank
    rank = torch.linalg.matrix_rank(tensors["linear.weight"].double(), rtol=1e-6)
    assert rank == ranks["linear.weight"]
    factors = compress_state(state, energy=0.99)
    factored = orthotrain.restore_structure(Net().eval(), factors.tensors)
    factored.load_state_dict(factors.tensors)
    dense = Net().eval()
    dense.load_state_dict(tensors)
    torch.testing.assert_close(dense(image()), factored(image()), rtol=1e-4, atol=1e-5)
    # Damage to it is noticed as to any file of this library.
    content = bytearray((tmp_path / "dense.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "dense.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match the hash"):
        read_any(tmp_path / "dense.safetensors")


class OnRequest(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(60, 32)
        self.lstm = nn.LSTM(32, 24, num_layers=2, bidirectional=True, proj_size=16)
        self.gru = nn.GRU(32, 24)
        self.cell = nn.RNNCell(32, 24)
        self.up = nn.ConvTranspose1d(24, 40, 3)
        self.head = nn.Linear(40, 40)


KINDS = ("lstm", "gru", "rnn", "embedding", "transposed")


def test_kinds_on_request_stay_unless_they_are_named():
    state = filled(OnRequest()).state_dict()
    made = compress_state(state, energy=0.9)
    assert [layer.name for layer in made.report.layers] == ["head"]
    reasons = made.report.refused
    assert reasons["embed.weight"] == "an embedding by its name, cut on request: also embedding"
    assert "also lstm" in reasons["lstm.weight_hr_l1_reverse"]
    assert "also gru" in reasons["gru.weight_ih_l0"]
    assert "also rnn" in reasons["cell.weight_hh"]
    assert "also transposed" in reasons["up.weight"]
    assert (
        compress_state(state, energy=0.9, also=["gru"]).report.layers[0].name == "gru.weight_ih_l0"
    )


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("form", ["factors", "dense"])
def test_kinds_on_request_load_into_their_layers(tmp_path, form):
    model = filled(OnRequest()).eval()
    made = compress_state(model.state_dict(), energy=0.999, also=KINDS, form=form)
    assert len(made.report.layers) == 1 + 12 + 2 + 2 + 1 + 1
    made.save(tmp_path / "small.safetensors")
    loaded = orthotrain.load(OnRequest().eval(), tmp_path / "small.safetensors")
    expected = orthotrain.compress(copy.deepcopy(model), energy=0.999, also=KINDS)
    ids = torch.arange(7)
    for network in (loaded, expected):
        steps = network.embed(ids)
        hidden = network.gru(steps)[0]
        up = network.up(hidden.mT)
        network.outputs = (network.lstm(steps)[0], hidden, network.cell(steps), up)
    torch.testing.assert_close(loaded.outputs, expected.outputs, rtol=1e-4, atol=1e-5)
    if form == "factors":
        assert loaded.lstm.ih_l0_pair.shape == expected.lstm.ih_l0_pair.shape


@pytest.mark.bad_input
def test_factors_of_a_weight_that_was_read_as_another_layer_are_refused(tmp_path):
    """Nothing in a name tells this embedding from a linear layer, and the shapes agree."""
    model = nn.ModuleDict({"users": nn.Embedding(30, 24)})
    made = compress_state(filled(model).state_dict(), energy=0.9)
    made.save(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"users.pair was made of a weight read as .*skip"):
        orthotrain.load(copy.deepcopy(model), tmp_path / "m.safetensors")
    grouped = nn.Sequential(nn.Conv2d(64, 64, 3, groups=2))
    compress_state(filled(grouped).state_dict(), energy=0.9).save(tmp_path / "g.safetensors")
    words = r"0.weight: the checkpoint holds a pair of shape .* this layer out \(--skip, skip="
    with pytest.raises(CheckpointError, match=words):
        orthotrain.load(copy.deepcopy(grouped), tmp_path / "g.safetensors")


@pytest.mark.bad_input
def test_factors_that_no_layer_of_the_model_can_hold_are_told_with_what_to_leave_out(tmp_path):
    weight = filled(nn.Linear(24, 24)).weight.detach()
    compress_state({"router.weight": weight}, energy=0.9).save(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"router.pair has no layer .* --skip router "):
        orthotrain.load(
            nn.ModuleDict({"router": nn.Bilinear(4, 6, 24)}), tmp_path / "m.safetensors"
        )
    # A file that holds a tied weight under one name only, as Transformers writes it.
    tied = nn.ModuleDict({"embed": nn.Embedding(24, 24), "head": nn.Linear(24, 24)})
    tied["head"].weight = tied["embed"].weight
    state = {"embed.weight": weight, "head.bias": torch.zeros(24)}
    compress_state(state, energy=0.9, also=["embedding"]).save(tmp_path / "t.safetensors")
    with pytest.raises(CheckpointError, match=r"embed.pair: an embedding .* --skip embed "):
        orthotrain.load(tied, tmp_path / "t.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_come_back_in_their_own_dtype(dtype):
    state = {n: t.to(dtype) for n, t in filled(nn.Linear(32, 40)).state_dict().items()}
    for form in ("factors", "dense"):
        made = compress_state(state, energy=0.99, form=form)
        assert {tensor.dtype for tensor in made.tensors.values()} == {dtype}
    best = torch.linalg.svd(state["weight"].double(), full_matrices=False)
    k = made.report.layers[0].rank
    expected = (best.U[:, :k] * best.S[:k]) @ best.Vh[:k]
    eps = torch.finfo(dtype).eps  # one rounding of each entry
    torch.testing.assert_close(made.tensors["weight"].double(), expected, rtol=eps, atol=6e-8)


def test_tied_weights_stay_tied_where_they_are_equal_or_one():
    weight = filled(nn.Linear(40, 40)).weight.detach()
    state = {"a.weight": weight, "b.weight": weight.clone(), "c.weight": 2 * weight}
    made = compress_state(state, energy=0.9)
    assert made.tensors["a.pair"] is made.tensors["b.pair"]
    assert [layer.name for layer in made.report.layers] == ["a", "c"]
    assert made.report.stored_before == 2 * 1600
    # Tied to what stays dense, a weight stays dense; zeros are not tied to zeros.
    state = {"embed.weight": weight, "head.weight": weight, "bias": torch.zeros(40, 40)}
    with pytest.raises(ConfigError, match=r"head\.weight: tied, embed\.weight, .* never cut"):
        compress_state(state, energy=0.9)
    zeros = {"a.weight": torch.zeros(8, 8), "b.weight": torch.zeros(8, 8)}
    assert len(survey(zeros).weights) == 2


def test_what_has_no_low_rank_form_is_named_with_the_reason_every_layer_of_it():
    linear = filled(nn.Linear(32, 40)).weight.detach()
    state = {
        "a.weight": linear,
        "quantized.weight": torch.ones(40, 32, dtype=torch.int8),
        "flags": torch.ones(3, 3, dtype=torch.bool),
        "empty.weight": torch.empty(0, 4),
        "norm.weight": torch.ones(32),
        "thin.weight": torch.ones(200, 4),
        "row.weight": torch.ones(1, 4),
        "depth.weight": torch.ones(16, 1, 3, 3),
        "g.weight_v": torch.ones(8, 8),
        "p.parametrizations.weight.original": torch.ones(8, 8),
        "pos_embed": torch.ones(1, 4, 32),
        "meta.weight": torch.empty(8, 8, device="meta"),
        "sparse.weight": torch.eye(8).to_sparse(),
        "eight.weight": torch.ones(8, 8).to(torch.float8_e4m3fn),
        "experts.weight": torch.ones(2, 2, 2, 2, 2, 2),
    }
    found = survey(StoredModel(state, without={"packed": "tuple"}))
    reasons = {each.name: each.reason for each in found.left}
    assert [(weight.name, bool(weight.stays)) for weight in found.weights] == [
        ("a", False), ("thin", True),
    ]  # fmt: skip
    assert reasons.keys() == state.keys() - {"a.weight"} | {"packed"}
    for name, words in {
        "quantized.weight": "int8 numbers: quantized",
        "flags": "bool numbers",
        "empty.weight": "empty",
        "norm.weight": "vector",
        "thin.weight": "too thin: 200 x 4, max_aspect=10",
        "row.weight": "single row",
        "depth.weight": "depthwise",
        "g.weight_v": "computed from other parameters",
        "p.parametrizations.weight.original": "computed from other parameters",
        "pos_embed": "not the weight of a layer",
        "meta.weight": "meta device",
        "sparse.weight": "sparse",
        "eight.weight": "float8_e4m3fn numbers",
        "experts.weight": "not the weight of a layer",
        "packed": "no tensor (tuple)",
    }.items():
        assert words in reasons[name], name
    for limit in (100, math.inf):
        assert not any(weight.stays for weight in survey(state, max_aspect=limit).weights)
    made = compress_state({"a.weight": linear, "q.weight": state["quantized.weight"]}, energy=0.9)
    assert made.tensors["q.weight"].data_ptr() == state["quantized.weight"].data_ptr()


def test_a_survey_tells_ranks_sizes_and_totals():
    model = filled(Net())
    found = survey(model.state_dict())
    linear = next(weight for weight in found.weights if weight.name == "linear")
    s = torch.linalg.svdvals(model.linear.weight.detach().double())
    energy = s.square().cumsum(0) / s.square().sum()
    for at in linear.at:
        assert at.rank == int((energy < at.energy).sum()) + 1
        assert at.stored == at.rank * (48 + 40)
    assert linear.break_even_rank == (48 * 40 - 1) // 88
    assert linear.condition is None  # 2^39, beyond what float32 resolves
    assert [w.name for w in found.weights if w.aliases] == ["head"]
    total = sum(t.numel() for n, t in model.state_dict().items() if n != "tied.weight")
    assert found.stored == total
    assert found.bytes == 4 * total + 4  # one int64 counter
    for budget in found.budgets:
        made = compress_state(model.state_dict(), stored_budget=budget.share)
        assert made.report.stored == budget.stored <= budget.share * total
    assert json.loads(json.dumps(found.to_dict()))["weights"][0]["name"] == "conv"


def test_groups_are_read_where_the_network_is_known():
    model = nn.Sequential(nn.Conv2d(32, 32, 3, groups=4))
    stored = StoredModel(model.state_dict())
    owners = dict(model.named_modules())
    assert surveyed(stored).weights[0].shape == "32x72"
    assert surveyed(stored, owners=owners).weights[0].shape == "4 of 8x72"


def test_a_file_in_factors_can_be_cut_again(tmp_path):
    model = filled(nn.Sequential(nn.Linear(32, 40, bias=False), nn.Linear(40, 32)))
    compress_state(model.state_dict(), energy=0.999).save(tmp_path / "a.safetensors")
    first = read_any(tmp_path / "a.safetensors")
    again = compress_state(first, energy=0.9)
    again.save(tmp_path / "b.safetensors")
    loaded = orthotrain.load(copy.deepcopy(model), tmp_path / "b.safetensors")
    assert loaded[0].rank < first.tensors["0.pair"].shape[0]
    s = torch.linalg.svd(model[0].weight.double(), full_matrices=False)
    k = loaded[0].rank
    best = (s.U[:, :k] * s.S[:k]) @ s.Vh[:k]
    torch.testing.assert_close(loaded[0].weight.double(), best, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="cannot write 0 dense: the file holds it in factors"):
        compress_state(first, energy=0.9, form="dense")
    frozen = orthotrain.compress(copy.deepcopy(model), energy=0.999, bases="frozen")
    frozen_again = compress_state(frozen.state_dict(), energy=0.9)
    shaped = orthotrain.restore_structure(copy.deepcopy(model), frozen_again.tensors)
    shaped.load_state_dict(frozen_again.tensors)
    torch.testing.assert_close(shaped[0].weight.double(), best, rtol=0, atol=1e-6)
    # Where the halves of a pair part is told by the bias, or by nothing.
    compressed = orthotrain.compress(copy.deepcopy(model), energy=0.9)
    orthotrain.save(compressed, tmp_path / "saved.safetensors")
    saved = survey(read_any(tmp_path / "saved.safetensors"))
    assert [weight.shape for weight in saved.weights] == ["40x32", "32x40"]
    bare = survey(compressed.state_dict())
    assert [weight.name for weight in bare.weights] == ["1"]
    assert "the model alone can tell" in bare.left[0].reason


@pytest.mark.bad_input
def test_a_weight_with_nan_is_refused_by_name():
    state = filled(Net()).state_dict()
    state["bare.weight"] = state["bare.weight"].clone()
    state["bare.weight"][3, 4] = float("nan")
    with pytest.raises(NonFiniteError, match=r"1 NaN and 0 infinite of 1600 in bare.weight"):
        compress_state(state, energy=0.9)
    found, whole = survey(state), survey(filled(Net()).state_dict())
    assert {each.name: each.reason for each in found.left}["bare.weight"] == "holds NaN or infinity"
    assert found.stored == whole.stored
    names = {weight.name for weight in whole.weights}
    assert {weight.name for weight in found.weights} == names - {"bare"}


@pytest.mark.bad_input
def test_a_budget_that_no_rank_can_meet_names_what_stands_in_the_way():
    state = {**filled(Net()).state_dict(), "embed.weight": torch.ones(500, 64)}
    with pytest.raises(
        ConfigError, match=r"Raise stored_budget to .* embed.weight, 32,000 \(an emb"
    ):
        compress_state(state, stored_budget=0.2)
    (_, _, last) = survey(state).budgets
    assert last.stored is None
    assert "embed.weight" in last.problem


@pytest.mark.bad_input
def test_a_mapping_is_read_as_a_file_is():
    state = filled(Net()).state_dict()
    whole = survey({"state_dict": state, "epoch": 3, "optimizer": {"m": torch.ones(9, 9)}})
    assert whole.stored == survey(state).stored
    for call in (survey, lambda given: compress_state(given, energy=0.9)):
        with pytest.raises(CheckpointError, match="the state dict holds no weights"):
            call({"epoch": 3})
        with pytest.raises(ConfigError, match="needs stored to be a StoredModel or a mapping"):
            call("model.pt")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"energy": 0.9, "only": ["liner"]}, "'liner' matches no layer .* like linear"),
        ({"energy": 0.9, "skip": ["*"]}, "at least one weight that can be low-rank, got none"),
        ({"energy": 0.9, "max_aspect": 1.0}, "max_aspect"),
        ({"energy": 0.9, "also": ["lstms"]}, "also"),
        ({"energy": 0.9, "form": "sparse"}, "form"),
        ({}, "one rank rule"),
    ],
)
def test_settings_that_cannot_work(settings, words):
    with pytest.raises(ConfigError, match=words):
        compress_state(filled(Net()).state_dict(), **settings)


def test_patterns_choose_layers():
    state = filled(Net()).state_dict()
    only = compress_state(state, energy=0.9, only=["attention*"])
    assert [layer.name for layer in only.report.layers] == [
        "attention.in_proj",
        "attention.out_proj",
    ]
    assert only.report.refused["linear.weight"] == "not named by only"
    skip = compress_state(state, energy=0.9, skip=["attention*", "conv"])
    assert skip.report.refused["conv.weight"] == "skipped by pattern"
    assert [layer.name for layer in skip.report.layers] == ["linear", "bare", "head"]


def test_nothing_given_is_changed(tmp_path):
    state = filled(Net()).state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    save_file({n: t.clone() for n, t in state.items()}, tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    for form in ("factors", "dense"):
        compress_state(read_any(tmp_path / "m.safetensors"), energy=0.9, form=form)
        compress_state(state, energy=0.9, form=form)
    assert (tmp_path / "m.safetensors").read_bytes() == content
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)
