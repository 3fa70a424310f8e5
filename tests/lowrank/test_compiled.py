"""A model that ``torch.compile`` runs: few versions of it, rounded ranks, passes that are seen."""

from __future__ import annotations

import gc
import re
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from orthotrain import AdaptiveLowRank, attach, follow
from orthotrain.errors import ConfigError, OrthotrainWarning
from orthotrain.layers import (
    LowRankConv2d,
    LowRankGRUCell,
    LowRankLinear,
    LowRankLSTM,
    LowRankMultiheadAttention,
    _rank_symbols,
)
from orthotrain.lowrank import LayerRule
from orthotrain.lowrank.rank_rule import Candidate
from orthotrain.methods._compiled import has_compiled_parts

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute"),  # the compiler looks at tensors
]


@pytest.fixture(autouse=True)
def fresh():
    listed = torch.compiler.config.dynamic_sources
    torch.compiler.config.dynamic_sources = ""
    torch.compiler.reset()
    gc.collect()  # ends the watches of models that are gone
    yield
    torch.compiler.reset()
    gc.collect()
    torch.compiler.config.dynamic_sources = listed


@dataclass(frozen=True)
class Falling(LayerRule):
    """Each layer loses a little at each update, every layer another part."""

    def rank(self, layer: Candidate) -> int:
        return max(2, layer.ceiling - 1 - len(layer.name) % 2)


class Net(nn.Module):
    """Two low-rank layers between plain ones."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.a = nn.Linear(width, width)
        self.bb = nn.Linear(width, 2 * width, bias=False)
        self.last = nn.Linear(2 * width, 3)
        self.draw()

    def draw(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.bb(torch.relu(self.a(x)))))


class Mixed(Net):
    """A convolution, attention and linear layers."""

    def __init__(self) -> None:
        super().__init__(32)
        self.conv = nn.Conv2d(8, 32, 3)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.draw()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x.view(-1, 8, 4, 4)).flatten(2).mT.repeat(2, 1, 1)[: len(x)]
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return super().forward(tokens).mean(1)


def inputs(step: int, width: int = 32) -> Tensor:
    return torch.randn(96, width, generator=torch.Generator().manual_seed(step))


def trained(model, optimizer, steps, *, first=0, width=32) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = model(inputs(step, width)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def method(**settings) -> AdaptiveLowRank:
    return AdaptiveLowRank(
        **{"delay_steps": 1, "every_steps": 1, "importance": "weight", **settings}
    )


@pytest.mark.parametrize(
    ("make", "width"), [(Net, 32), pytest.param(Mixed, 128, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("bases", ["trained", "frozen"])
def test_twelve_cuts_need_one_version_after_the_dense_one(make, width, bases):
    falling = method(rank=Falling(), only_if_cheaper=False, rank_multiple=1, bases=bases)
    plain, model, counter = make(), make(), CompileCounter()
    expected = []
    optimizer = sgd(plain)
    attach(plain, optimizer, falling)
    expected = trained(plain, optimizer, 15, width=width)
    optimizer = sgd(model)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    handle = attach(compiled, optimizer, falling)
    cuts = []
    handle.on_record(lambda r: cuts.append(r["rank"]) if r.get("layer") == "a" else None)
    losses = trained(compiled, optimizer, 15, width=width)
    assert len(set(cuts)) >= 13  # the switch and twelve cuts
    assert counter.frame_count == 2
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected))


@pytest.mark.parametrize("bases", ["trained", "frozen"])
def test_a_layer_has_one_symbol_in_the_graph(bases):
    """With one per size of its factors, 26 in a block of a GPT, compiling took 219 s, not 13."""
    sizes = []

    def symbols_of(graph, _):
        inputs = [n.meta["example_value"] for n in graph.graph.nodes if n.op == "placeholder"]
        shapes = [t.shape for t in inputs if isinstance(t, Tensor)]
        dims = [d for shape in shapes for d in shape if isinstance(d, torch.SymInt)]
        sizes.append({s for d in dims for s in d.node.expr.free_symbols})
        return graph.forward

    model = nn.Sequential(
        nn.Conv2d(4, 32, 3, bias=False), nn.Flatten(2), nn.Linear(4, 32, bias=False),
        nn.Linear(32, 4),
    )  # fmt: skip
    optimizer = sgd(model)
    compiled = torch.compile(model, backend=symbols_of, fullgraph=True)
    attach(compiled, optimizer, method(rank=Falling(), only_if_cheaper=False, bases=bases))
    for step in range(2):
        optimizer.zero_grad()
        compiled(inputs(step, 64).view(96, 4, 4, 4)).square().mean().backward()
        optimizer.step()
    assert [len(each) for each in sizes] == [0, 2]


@pytest.mark.slow  # and needs a C++ compiler
@pytest.mark.parametrize("bases", ["trained", "frozen"])
def test_twelve_cuts_need_one_version_of_machine_code(bases):
    falling = method(rank=Falling(), only_if_cheaper=False, rank_multiple=1, bases=bases)
    model = Net()
    optimizer = sgd(model)
    attach(model, optimizer, falling)
    torch._dynamo.utils.counters.clear()
    trained(torch.compile(model), optimizer, 15)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert torch._dynamo.utils.counters["aot_autograd"]["ok"] == 2


def test_an_update_that_watches_passes_compiles_nothing_anew():
    model, counter, other = Net(), CompileCounter(), CompileCounter()
    beside = torch.compile(lambda x: x + 1, backend=other)
    optimizer = sgd(model)
    compiled = torch.compile(model, backend=counter)
    trained(compiled, optimizer, 1)
    beside(torch.ones(2))
    falling = AdaptiveLowRank(delay_steps=9, every_steps=9, rank=Falling(), only_if_cheaper=False)
    handle = attach(compiled, optimizer, falling)
    trained(compiled, optimizer, 40)
    assert counter.frame_count == 2
    beside(torch.ones(2))
    assert other.frame_count == 1
    assert not any("no gradient" in note for note in handle.summary().notes)


def runs_uncompiled() -> bool:
    counter = CompileCounter()
    torch.compile(lambda x: x + 1, backend=counter)(torch.ones(2))
    return counter.frame_count == 0


def watched(steps: int = 3):
    """A compiled model amid the watch before an update, and its handle."""
    model = Net()
    optimizer = sgd(model)
    compiled = torch.compile(model, backend="eager")
    handle = attach(compiled, optimizer, AdaptiveLowRank(delay_steps=10))
    trained(compiled, optimizer, steps)
    return compiled, optimizer, handle


def test_only_a_watch_has_compiled_code_run_uncompiled():
    one, other = watched(), watched()
    assert runs_uncompiled()
    one[2].detach()
    assert runs_uncompiled()  # the other still watches
    trained(other[0], other[1], 7, first=3)
    assert not runs_uncompiled()


def test_a_watch_that_nobody_ends_lets_go():
    compiled, optimizer, handle = watched()
    del compiled, optimizer, handle
    gc.collect()
    assert not runs_uncompiled()


def test_evaluation_without_end_is_compiled_and_training_after_it_is_watched():
    compiled, optimizer, handle = watched()
    with torch.no_grad():
        for _ in range(70):
            compiled(inputs(0))
    assert not runs_uncompiled()
    trained(compiled, optimizer, 1, first=3)
    assert runs_uncompiled()
    trained(compiled, optimizer, 6, first=4)
    assert not runs_uncompiled()
    assert not any("no gradient" in note for note in handle.summary().notes)


def whole(model):
    return torch.compile(model, backend="eager")


def step_of(model):
    return torch.compile(lambda x: model(x) * 1, backend="eager")


def itself(model):
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("compile_it", [whole, step_of, itself])
def test_a_model_compiled_after_attach_is_noticed(compile_it):
    model = Net()
    optimizer = sgd(model)
    attach(model, optimizer, method(delay_steps=2, energy=0.7, only_if_cheaper=False))
    trained(compile_it(model), optimizer, 3)
    assert [model.a.rank % 4, model.bb.rank % 4] == [0, 0]  # 32 has eight multiples of 4


def test_an_exported_model_is_not_taken_for_a_compiled_one():
    model = Net()
    optimizer = sgd(model)
    handle = attach(model, optimizer, method(delay_steps=1, stored_budget=0.7))
    torch.export.export(model, (inputs(0),))
    trained(model, optimizer, 1)
    assert not handle.state_dict()["methods"]["adaptive_low_rank"]["compiled"]["compiled"]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_rounded_ranks_keep_the_budget(share):
    model = Net(256)
    optimizer = sgd(model)
    numbers = sum(p.numel() for p in model.parameters())
    handle = attach(whole(model), optimizer, method(every_steps="auto", stored_budget=share))
    trained(model, optimizer, 2, width=256)  # the model itself: nothing is compiled here
    ranks = [layer.rank for layer in (model.a, model.bb) if isinstance(layer, LowRankLinear)]
    assert ranks
    assert all(rank % 32 == 0 for rank in ranks)
    assert handle.summary().total.stored <= share * numbers


def test_a_budget_that_rounded_ranks_would_exceed_is_kept_with_finer_ones():
    model, share = Net(256), 0.12
    optimizer = sgd(model)
    numbers = sum(p.numel() for p in model.parameters())
    handle = attach(whole(model), optimizer, method(every_steps="auto", stored_budget=share))
    trained(model, optimizer, 2, width=256)
    assert handle.summary().total.stored <= share * numbers
    assert {model.a.rank, model.bb.rank} == {16}  # two ranks of 32 would hold 0.21


def test_a_model_that_is_not_compiled_is_not_rounded():
    model = Net(256)
    optimizer = sgd(model)
    once = method(every_steps="auto", energy=0.5, only_if_cheaper=False, spread=False)
    attach(model, optimizer, once)
    trained(model, optimizer, 2, width=256)
    assert any(layer.rank % 32 for layer in (model.a, model.bb))


def test_a_multiple_of_your_own_and_what_is_refused():
    model = Net(64)
    optimizer = sgd(model)
    attach(model, optimizer, method(energy=0.5, only_if_cheaper=False, rank_multiple=5))
    trained(model, optimizer, 2, width=64)
    assert [model.a.rank % 5, model.bb.rank % 5] == [0, 0]
    for wrong in (0, -16, 1.5, True, "16"):
        with pytest.raises(ConfigError, match="rank_multiple"):
            AdaptiveLowRank(rank_multiple=wrong)


def test_a_cut_finer_than_the_multiples_goes_down_by_one_of_them():
    model = Net(64)
    optimizer = sgd(model)
    gentle = method(energy=0.3, only_if_cheaper=False, rank_multiple=8, max_drop=0.1)
    attach(model, optimizer, gentle)
    seen = []
    for step in range(4):
        trained(model, optimizer, 1, first=step, width=64)
        seen.append(model.a.rank)
    assert seen == [56, 48, 40, 32]


def test_a_resumed_run_goes_on_with_rounded_ranks_bit_for_bit():
    def make():
        model = follow(Net(64))
        optimizer = sgd(model)
        return model, optimizer, attach(model, optimizer, method(energy=0.7, every_steps=3))

    model = Net(64)
    optimizer = sgd(model)
    handle = attach(whole(model), optimizer, method(energy=0.7, every_steps=3))
    trained(model, optimizer, 3, width=64)
    saved = [t.state_dict() for t in (model, optimizer, handle)]
    saved = torch.utils._pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, saved)
    whole_losses = trained(model, optimizer, 6, first=3, width=64)
    other = make()
    for part, state in zip(other, saved, strict=True):
        part.load_state_dict(state)
    assert trained(other[0], other[1], 6, first=3, width=64) == whole_losses
    assert other[0].a.rank == model.a.rank
    assert model.a.rank % 8 == 0


@dataclass(frozen=True)
class OneByOne(LayerRule):
    """At each update one more layer is small enough to pay."""

    seen: list[str]

    def rank(self, layer: Candidate) -> int:
        self.seen.append(layer.name)
        pays = self.seen.count(layer.name) > int(layer.name)
        return 8 if pays else layer.ceiling


@pytest.mark.parametrize("compiled", [True, False])
def test_layers_of_a_compiled_model_turn_together(compiled):
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(8)), nn.Linear(32, 3))
    optimizer = sgd(model)
    handle = attach(whole(model) if compiled else model, optimizer, method(rank=OneByOne([])))
    turned = []
    handle.on_record(lambda r: turned.append(r["step"]) if r.get("event") == "switch" else None)
    waiting = []
    for step in range(10):
        trained(model, optimizer, 1, first=step)
        waiting += [note for note in handle.summary().notes if note.startswith("compiled:")]
    assert len(turned) == 8
    assert len(set(turned)) == (3 if compiled else 8)
    assert bool(waiting) == compiled


def test_layers_of_a_compiled_model_turn_in_one_step_though_updates_are_spread():
    model = Net()
    optimizer = sgd(model)
    spread = method(delay_steps=4, every_steps=20, energy=0.5, only_if_cheaper=False, max_drop=0.2)
    handle = attach(whole(model), optimizer, spread)
    steps = []
    handle.on_record(lambda r: steps.append((r["event"], r["step"])) if "event" in r else None)
    trained(model, optimizer, 30)
    assert len({step for event, step in steps if event == "switch"}) == 1
    assert len({step for event, step in steps if event == "turn"}) > 1


def test_it_is_told_before_torch_gives_up():
    model = Net()
    optimizer = sgd(model)
    compiled = whole(model)
    attach(model, optimizer, method(energy=0.5, every_steps=2, only_if_cheaper=False))
    with torch._dynamo.config.patch(recompile_limit=5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trained(compiled, optimizer, 2)  # dense, low-rank
            with torch.no_grad():
                compiled(inputs(0))
        with pytest.warns(OrthotrainWarning, match=r"compiled the model 3 times. After 5 versions"):
            trained(compiled, optimizer, 1)


def test_a_detached_handle_leaves_no_hook():
    model = Net()
    optimizer = sgd(model)
    handle = attach(model, optimizer, method())
    handle.detach()
    assert not model._forward_pre_hooks


def test_what_was_given_to_the_compiler_is_found():
    assert not has_compiled_parts(Net())
    inside = Net()
    inside.a = torch.compile(inside.a, backend="eager")
    for model in (whole(Net()), itself(Net()), inside, nn.DataParallel(whole(Net()))):
        assert has_compiled_parts(model)


def test_every_factor_has_a_rank_that_may_vary_and_nothing_else():
    layers = [
        LowRankLinear(4, 4, rank=2), LowRankConv2d(4, 4, 3, rank=2),
        LowRankMultiheadAttention(4, 2, rank=2), LowRankMultiheadAttention(4, 2, rank=2, kdim=3),
        LowRankLSTM(4, 4, 2, rank=2, bidirectional=True, proj_size=2), LowRankGRUCell(4, 4, rank=2),
        LowRankLinear.from_linear(nn.Linear(4, 4), rank=2, bases="trained"),
    ]  # fmt: skip
    others = [nn.BatchNorm2d(3), nn.utils.spectral_norm(nn.Linear(3, 3)), nn.LSTM(3, 3)]
    torch.compiler.config.dynamic_sources = "L['mine']"
    _rank_symbols.let_ranks_vary()
    _rank_symbols.let_ranks_vary()
    mine, pattern = torch.compiler.config.dynamic_sources.split(",")
    assert mine == "L['mine']"

    def sources(module: nn.Module):
        for kind, held in (("parameters", module._parameters), ("buffers", module._buffers)):
            yield from (
                f"L['self']._modules['x']._{kind}['{n}']" for n, t in held.items() if t is not None
            )

    for layer in layers:
        ours = [s for s in sources(layer) if "bias" not in s]
        assert ours
        assert all(re.match(pattern, s) for s in ours)
        assert not any(re.match(pattern, s) for s in sources(layer) if "bias" in s)
    for module in others:
        assert not any(re.match(pattern, s) for s in sources(module))
