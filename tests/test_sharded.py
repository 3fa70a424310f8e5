"""A model that processes hold in parts: what works, and what is refused before it is trained."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import orthotrain
from orthotrain import attach
from orthotrain._sharded import sharding_of
from orthotrain.errors import CheckpointError, ConfigError
from orthotrain.layers import LowRankLinear
from processes import outcomes_of
from sharded_worker import (
    BASES,
    CUT_BEFORE,
    METHODS,
    SHARDED,
    STEPS,
    WORLD,
    DeepSpeedEngine,
    adamw,
    batch,
    doors,
    entries_of,
    half,
    loaded,
    net,
    parts_of,
    restored,
    train,
)

WORKER = Path(__file__).with_name("sharded_worker.py")
NAMED = {
    "FSDP2": "FSDP2 (fully_shard)",
    "FSDP2 at the root": "FSDP2 (fully_shard)",
    "FSDP1": "FSDP1 (FullyShardedDataParallel)",
    "FSDP1, flat": "FSDP1 (FullyShardedDataParallel)",
    "tensor parallel": "DTensor (tensor parallel, parallelize_module)",
    "DeepSpeed": "DeepSpeed",
}
# torch says so wherever there is one process.
ONE_PROCESS = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
READ_ONE_BY_ONE = set(METHODS) - {"AdaptiveLowRank", "BasisStability"}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Outcomes of every scenario, on the first and on the other process."""
    return outcomes_of(WORKER, WORLD, name="sharded", tmp_path_factory=tmp_path_factory)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- refused ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shard", SHARDED)
@pytest.mark.parametrize("door", sorted(doors(Path())))
def test_every_door_refuses_a_sharded_model_by_name(both, shard, door):
    for outcomes in both:
        kind, words = outcomes["doors"][shard][door]
        assert kind == "ConfigError"
        assert door.split(",")[0] in words or shard == "DeepSpeed"
        dtensor = shard.startswith(("FSDP2", "tensor"))
        assert ("sharded (DTensor)" if dtensor and door in READ_ONE_BY_ONE else NAMED[shard]) in (
            words
        )
        assert "DDP" in words or "docs/sharding.md" in words


@pytest.mark.slow
@pytest.mark.parametrize("shard", [name for name in SHARDED if name != "DeepSpeed"])
@pytest.mark.parametrize(
    "method", ["AdaptiveLowRank", "BasisStability", "NearestOrthogonalGradient"]
)
def test_a_model_sharded_after_attach_is_refused_at_the_first_pass_and_step(both, method, shard):
    for outcomes in both:
        passed, first, second, steps = outcomes["before"][f"{method}, {shard}"]
        assert first[0] == "ConfigError"
        assert f"attach came before the model was sharded ({NAMED[shard]})" in first[1]
        # Not forgotten by a loop that goes on, and there where another optimizer steps.
        assert (passed, second, steps) == (first, first, 0)


@pytest.mark.slow
def test_an_optimizer_that_lost_the_model_is_refused_at_the_first_step(both):
    for outcomes in both:
        kind, words = outcomes["replaced"]
        assert kind == "ConfigError"
        assert "at its first step it holds none" in words


@pytest.mark.slow
@pytest.mark.parametrize("bases", BASES)
def test_what_needs_the_whole_of_a_sharded_low_rank_model_is_refused(both, bases):
    for outcomes in both:
        found = outcomes["low-rank doors"][bases]
        assert "to_dense needs" in found["to_dense"][1]
        assert "before it is sharded" in found["another structure"][1]
        if bases == "trained":
            assert found["dense_parameters"] is None
        else:
            assert "dense_parameters needs" in found["dense_parameters"][1]


def test_an_optimizer_of_deepspeed_is_refused():
    class ZeRO:
        __module__ = "deepspeed.runtime.zero.stage_1_and_2"

    class Adam(torch.optim.Adam):
        __module__ = "deepspeed.ops.adam"

    model = net()
    method = METHODS["AdaptiveLowRank"]()
    with pytest.raises(ConfigError, match="DeepSpeed steps flat copies"):
        attach(model, ZeRO(), method)
    attach(model, Adam(model.parameters()), method).detach()
    model[0].weight.ds_id = 7
    assert sharding_of(model) == "DeepSpeed (ZeRO-3)"


def test_what_is_not_sharded_is_whole():
    assert sharding_of(nn.DataParallel(net())) is None
    assert sharding_of(half("frozen")) is None
    assert sharding_of(DeepSpeedEngine(net())) == "DeepSpeed"


# --- cut before it is sharded -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shard", CUT_BEFORE)
@pytest.mark.parametrize("bases", BASES)
def test_a_model_that_is_cut_and_then_sharded_trains_like_one_process(both, bases, shard, tmp_path):
    model = half(bases)
    train(model, adamw(model), range(STEPS))
    first, other = (outcomes["sharded"][f"{bases}, {shard}"] for outcomes in both)
    assert same(first, other)
    assert first.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-12)
    exported = orthotrain.follow(net())
    exported.load_state_dict(first)
    orthotrain.save(exported, tmp_path / "model.safetensors")
    assert same(orthotrain.load(net(), tmp_path / "model.safetensors").state_dict(), first)


@pytest.mark.slow
def test_a_tensor_parallel_model_is_gathered_as_the_page_says(both):
    for outcomes in both:
        assert same(outcomes["gathered"], net().state_dict())


@pytest.mark.slow
def test_layers_beside_tensor_parallel_ones_may_be_cut(both):
    torch.testing.assert_close(both[0]["beside"], both[0]["not parallel"], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_covariances_are_watched_in_a_sharded_model(both):
    for outcomes in both:
        assert outcomes["covariances"] == ["1", "1"]


@pytest.mark.slow
def test_stages_of_a_pipeline_are_cut_each_for_itself(both):
    sizes, ranks = zip(*(outcomes["pipeline"] for outcomes in both), strict=True)
    assert all(size["stored"] <= 0.6 * size["dense"] for size in sizes)
    assert [len(each) for each in ranks] == [1, 2]


@pytest.mark.slow
def test_the_page_runs_in_two_processes(both):
    first, other = (outcomes["page"] for outcomes in both)
    assert first == other
    assert any(first)


# --- checkpoints of torch.distributed.checkpoint ------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("at", [4, 9], ids=["before the switch", "after it"])
@pytest.mark.parametrize("bases", BASES)
def test_two_processes_resume_from_a_distributed_checkpoint_bit_for_bit(both, bases, at):
    for outcomes in both:
        straight, resumed = outcomes["resumed"][f"{bases}, {at}"]
        assert "module.0.pair" in straight or "module.0.core" in straight
        assert same(straight, resumed)


@pytest.mark.slow
def test_a_sharded_low_rank_model_resumes_from_a_distributed_checkpoint(both):
    for outcomes in both:
        assert same(*outcomes["resumed, FSDP2"])


@ONE_PROCESS
def test_one_process_resumes_from_a_distributed_checkpoint_bit_for_bit(tmp_path):
    def attached(model):
        optimizer = adamw(model)
        return optimizer, attach(model, optimizer, METHODS["AdaptiveLowRank"]())

    model = net()
    optimizer, handle = attached(model)
    train(model, optimizer, range(4))
    # An averaged copy beside it has the same names, and something else some of them.
    copy = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    parts = {"a": {"0.weight": torch.zeros(2, 2)}, **parts_of(model, optimizer), "ema": copy}
    dcp.save(parts, checkpoint_id=tmp_path)
    torch.save(handle.state_dict(), tmp_path / "handle.pt")
    train(model, optimizer, range(4, 9))

    fresh = net()
    with pytest.raises(
        CheckpointException, match=r"Missing key in checkpoint state_dict: model.0.w"
    ):
        dcp.load(parts_of(fresh, adamw(fresh)), checkpoint_id=tmp_path)
    dcp_to_torch_save(tmp_path, tmp_path / "plain.pt")
    plain = torch.load(tmp_path / "plain.pt")["model"]
    orthotrain.follow(fresh).load_state_dict(plain)
    assert same(fresh.state_dict(), plain)

    again = restored(tmp_path)
    assert {n: p.shape for n, p in again.named_parameters()} == {
        name.removeprefix("ema."): entry.size
        for name, entry in entries_of(tmp_path).items()
        if name.startswith("ema.")
    }
    other, resumed = attached(again)
    loaded(again, other, tmp_path)
    resumed.load_state_dict(torch.load(tmp_path / "handle.pt"))
    train(again, other, range(4, 9))
    assert same(model.state_dict(), again.state_dict())
    assert resumed.run.step == 9


@ONE_PROCESS
def test_metadata_of_one_layer_of_wrapped_parts_and_of_another_model(tmp_path):
    layer = orthotrain.compress(nn.Linear(8, 8), rank_rtol=0.5, only_if_cheaper=False)
    dcp.save({"deep": {"er": layer.state_dict()}}, checkpoint_id=tmp_path / "layer")
    fresh = orthotrain.restore_structure(nn.Linear(8, 8), entries_of(tmp_path / "layer"))
    assert fresh.rank == layer.rank
    wrapped = {f"net._orig_mod.{name}": value for name, value in half().state_dict().items()}
    dcp.save(wrapped, checkpoint_id=tmp_path / "wrapped")
    assert restored(tmp_path / "wrapped")[0].rank == half()[0].rank
    other = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(CheckpointError, match="restore_structure needs the model"):
        orthotrain.restore_structure(other, entries_of(tmp_path / "wrapped"))


# --- DataParallel -------------------------------------------------------------------------------


def replica_of(model):
    """What ``nn.parallel.replicate`` makes for one device, with parameters as plain tensors."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, twin in copies.items():
        twin._former_parameters = OrderedDict()
        for name, child in module._modules.items():
            setattr(twin, name, copies[child])
        for name, parameter in module._parameters.items():
            if parameter is None:
                twin._parameters[name] = None
            else:
                setattr(twin, name, parameter * 1.0)
    return copies[model]


NETS = {
    "linear": (net, batch(0)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).double(),
        torch.ones(2, 8, 6, 6, dtype=torch.float64),
    ),
    "attention": (
        lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).double(),
        batch(0).view(1, 8, 16),
    ),
}


@pytest.mark.parametrize("bases", BASES)
@pytest.mark.parametrize("kind", NETS)
def test_a_replica_computes_and_learns_like_the_model(kind, bases):
    make, x = NETS[kind]
    model = orthotrain.compress(make(), energy=0.5, bases=bases, only_if_cheaper=False)
    twin = replica_of(model)
    torch.testing.assert_close(twin(x), model(x))
    twin(x).square().sum().backward()
    found = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found)


def test_a_computed_factor_cannot_be_written():
    layer = LowRankLinear.from_linear(nn.Linear(8, 8), rank=2, bases="trained")
    with pytest.raises(AttributeError, match="computes 'core'"):
        layer.core = torch.zeros(2, 2)


def test_low_rank_training_refuses_data_parallel_on_several_devices():
    model = net()
    handle = attach(model, adamw(model), METHODS["AdaptiveLowRank"]())
    with pytest.raises(ConfigError, match="AdaptiveLowRank sees no pass of a model in DataPar"):
        replica_of(model)(batch(0))
    handle.detach()
    wrapper = nn.DataParallel(model)
    wrapper.device_ids = [0, 1]
    with pytest.raises(ConfigError, match="one process per device"):
        attach(wrapper, adamw(model), METHODS["AdaptiveLowRank"]())
    attach(wrapper, adamw(model), METHODS["NearestOrthogonalGradient"]())
    replica_of(model)(batch(0))
