"""Two processes train one model: what they hold must be the same to the last bit."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel

from lowrank.ddp_worker import (
    BY_LOSS,
    BY_LOSS_FROZEN,
    METHOD,
    MODES,
    RESUMES,
    SPREAD,
    STEPS,
    TRAINED,
    WORLD,
    Net,
    adamw,
    dense_weights,
    joined_batch,
    train,
)
from lowrank.nets import as_published
from orthotrain import attach
from orthotrain.errors import ConfigError
from orthotrain.methods._compat import (
    cannot_resize_under,
    keep_buffers_at_home,
    may_run_out_of_inputs_alone,
    rebuild_reducer,
)
from processes import outcomes_of

WORKER = Path(__file__).with_name("ddp_worker.py")

AGREEING = [
    *MODES,
    "first process decides",
    "communication hook",
    "PowerSGD",
    "accumulation",
    "accumulation, static graph",
    "low-rank before it is wrapped",
    "evaluation on one process",
    "jump on the first",
    "jump on another",
    "automatic delay",
    *(f"resume, {name}" for name in RESUMES),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Outcomes of every scenario, on the first and on the other process."""
    return outcomes_of(WORKER, WORLD, name="two-processes", tmp_path_factory=tmp_path_factory)


def differing(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


# --- what all processes hold ----------------------------------------------------------------------


@pytest.mark.parametrize("scenario", AGREEING)
def test_parameters_factors_and_optimizer_state_are_bit_equal(both, scenario):
    first, other = (outcomes[scenario]["held"] for outcomes in both)
    assert {"wide.u", "wide.core", "wide.vh", "0.exp_avg", "0.exp_avg_sq"} <= first.keys()
    assert differing(first, other) == []


@pytest.mark.parametrize("scenario", ["trained bases", "trained bases, static graph"])
def test_trained_bases_are_bit_equal_and_follow_the_joined_run(both, scenario):
    first, other = (outcomes[scenario]["held"] for outcomes in both)
    assert {"wide.pair", "square.pair", "0.exp_avg", "0.exp_avg_sq"} <= first.keys()
    assert differing(first, other) == []
    model = Net()
    optimizer = adamw(model)
    attach(model, optimizer, TRAINED)
    train(model, optimizer, steps=STEPS, batches=joined_batch)
    assert both[0][scenario]["ranks"] == [model.wide.rank, model.square.rank]
    for ours, theirs in zip(dense_weights(model), both[0][scenario]["dense"], strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-9)


RESUMED = ("by loss, resume", "spread, resume")
BY_LOSS_METHODS = {
    "by loss": BY_LOSS,
    "by loss, accumulation": BY_LOSS,
    "by loss, frozen bases": BY_LOSS_FROZEN,
    "spread": SPREAD,
}


@pytest.mark.parametrize("scenario", BY_LOSS_METHODS)
def test_cuts_by_the_loss_are_bit_equal_and_those_of_the_joined_run(both, scenario):
    first, other = (outcomes[scenario]["held"] for outcomes in both)
    assert differing(first, other) == []
    model = Net()
    optimizer = adamw(model)
    attach(model, optimizer, BY_LOSS_METHODS[scenario])
    train(model, optimizer, steps=STEPS, batches=joined_batch)
    assert model.square.rank < 12
    for ours, theirs in zip(dense_weights(model), both[0][scenario]["dense"], strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-8)


def test_statistics_saved_by_one_process_are_those_of_all(both):
    for outcome in (outcomes[name] for outcomes in both for name in RESUMED):
        assert differing(outcome["held"], outcome["straight"]) == []
    for name in ("by loss, unused", *RESUMED):
        assert differing(*(outcomes[name]["held"] for outcomes in both)) == []


def test_the_comparison_notices_a_wrapper_that_was_not_told(both):
    first, other = (outcomes["wrapper not told"]["held"] for outcomes in both)
    assert "square.core" in differing(first, other)


@pytest.fixture(scope="module")
def alone():
    """The same training on one process, with the batches of all of them joined."""
    model = Net()
    optimizer = adamw(model)
    attach(model, optimizer, METHOD)
    train(model, optimizer, steps=STEPS, batches=joined_batch)
    return model


@pytest.mark.parametrize("scenario", [*MODES, "accumulation", "accumulation, static graph"])
def test_gradients_are_averaged_over_processes(both, alone, scenario):
    for ours, theirs in zip(dense_weights(alone), both[0][scenario]["dense"], strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_ranks_fell_and_the_wrapper_is_the_same_object_as_before(both, alone, mode):
    for outcomes in both:
        outcome = outcomes[mode]
        assert outcome["ranks"] == [alone.wide.rank, alone.square.rank]
        assert outcome["ranks"][1] <= 8  # of 16
        assert outcome["kept"] == ("kept", STEPS, True, mode == "static_graph")


# --- who decides ----------------------------------------------------------------------------------


def test_only_the_first_process_decomposes_and_the_others_take_its_factors(both):
    first, other = (outcomes["first process decides"] for outcomes in both)
    assert first["calls"] == {"leading": 2, "spectrum": 2}
    assert other["calls"] == {"leading": 0, "spectrum": 0}


def test_the_loss_of_the_first_process_alone_makes_layers_wait(both):
    first, other = (outcomes["jump on the first"]["events"] for outcomes in both)
    assert first.count("loss_jump") == 1
    assert [event for event in first if event != "loss_jump"] == other
    for outcomes in both:
        assert "loss_jump" not in outcomes["jump on another"]["events"]
    assert len(other) < len(both[1]["jump on another"]["events"])


def test_layers_that_switch_by_themselves_switch_together(both):
    first, other = (outcomes["automatic delay"]["switches"] for outcomes in both)
    assert first
    assert first == other


def test_a_failure_of_the_first_process_is_told_to_the_others(both):
    assert [outcomes["failure of the first"]["error"] for outcomes in both] == [
        "NonFiniteError",
        "StateError",
    ]


def test_processes_at_different_steps_are_noticed(both):
    for outcomes in both:
        first, later = outcomes["another step"]["errors"]
        assert "step: processes that train together must agree" in first
        assert "process 0 has step 1, process 1 has step 11." in first
        assert "AdaptiveLowRank: processes that train together must agree" in later
        assert "process 0 has step 2, process 1 has step 22." in later


@pytest.mark.bad_input
def test_inputs_that_run_out_on_one_process_are_refused(both):
    for outcomes in both:
        assert "throw_on_early_termination=True" in outcomes["uneven inputs"]["error"]


def test_a_model_that_is_not_wrapped_is_warned_about_once(both):
    for outcomes in both:
        (message,) = outcomes["low-rank before it is wrapped"]["warned"]
        assert "2 processes but no DistributedDataParallel" in message


# --- the wrapper ----------------------------------------------------------------------------------


def test_frozen_factors_are_not_broadcast_and_other_buffers_are(both):
    for outcomes in both:
        outcome = outcomes["factors stay at home"]
        assert outcome["sent"] == [3] * STEPS
        # what a forward sees is what the first process wrote after the step before
        assert outcome["offsets"] == [[float(max(step - 1, 0))] * 3 for step in range(STEPS)]
    factors = (outcomes["factors stay at home"]["held"] for outcomes in both)
    assert differing(*factors) == ["offset"]  # last written after the last forward


def test_the_first_synchronization_of_any_wrapper_covers_factors_made_before(both):
    first, other = (outcomes["low-rank before it is wrapped"] for outcomes in both)
    assert "wide.u" in first["after_wrapping"]
    assert differing(first["after_wrapping"], other["after_wrapping"]) == []
    assert first["traveling"] == [0] * (STEPS + 1)


def test_a_communication_hook_is_called_for_the_smaller_gradients(both):
    for outcomes in both:
        outcome = outcomes["communication hook"]
        assert len(outcome["sent"]) == STEPS - 1
        assert outcome["sent"][-1] == outcome["trained"] < outcome["sent"][0]


def test_a_hook_that_keeps_tensors_of_the_old_shapes_forgets_them(both):
    for outcomes in both:
        # PowerSGD waits two steps at the start, after the switch and after the cut
        compressed = outcomes["PowerSGD"]["compressed"]
        assert compressed == [step in {5, 9} for step in range(STEPS)]


def test_evaluation_on_one_process_neither_hangs_nor_moves_the_schedule(both):
    first, other = (outcomes["evaluation on one process"] for outcomes in both)
    assert first["ranks"] == other["ranks"]
    trained = both[0]["default"]["held"]
    assert differing(first["held"], trained) == []


@pytest.mark.parametrize("name", RESUMES)
def test_resume_goes_on_as_if_nothing_had_happened(both, name):
    for outcomes in both:
        outcome = outcomes[f"resume, {name}"]
        assert differing(outcome["held"], outcome["straight"]) == []


# --- private names of torch -----------------------------------------------------------------------


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_private_names_of_ddp_still_exist(process_group):
    wrapper = DistributedDataParallel(Net(buffer=True), static_graph=True)
    assert not wrapper._static_graph_delay_allreduce_enqueued
    assert wrapper._comm_hooks == []
    assert not wrapper._has_rebuilt_buckets
    assert wrapper.require_backward_grad_sync
    assert list(inspect.signature(wrapper._ddp_init_helper).parameters) == [
        "parameters",
        "expect_sparse_gradient",
        "param_to_name_mapping",
        "static_graph",
    ]
    parameters, sparse = wrapper._build_params_for_reducer()
    assert len(parameters) == len(sparse) == len(list(wrapper.parameters()))
    assert len(wrapper._build_debug_param_to_name_mapping(parameters)) == len(parameters)
    assert callable(wrapper.reducer._set_static_graph)
    assert callable(wrapper.logger._set_static_graph)
    # what the rebuilt wrapper must have is what unpickling restores, by the same calls
    restored = inspect.getsource(DistributedDataParallel.__setstate__)
    for name in ("_build_params_for_reducer", "_ddp_init_helper", "_set_static_graph"):
        assert name in restored


def test_buffers_named_to_stay_at_home_leave_the_broadcast(process_group):
    wrapper = DistributedDataParallel(Net(buffer=True))
    assert len(wrapper.modules_buffers) == 1
    keep_buffers_at_home(wrapper, ["offset"])
    assert wrapper.modules_buffers == []
    assert not wrapper.will_sync_module_buffers()
    rebuild_reducer(wrapper)
    assert wrapper.modules_buffers == []


@pytest.mark.parametrize("kind", ["ALLREDUCE", "FP16_COMPRESS"])
def test_a_built_in_communication_hook_survives(process_group, kind):
    wrapper = DistributedDataParallel(Net())
    wrapper._register_builtin_comm_hook(getattr(torch.distributed.BuiltinCommHookType, kind))
    rebuild_reducer(wrapper)
    assert wrapper._get_ddp_logging_data()["comm_hook"].endswith(kind)


def test_the_memory_of_power_sgd_still_has_its_names(process_group):
    state = PowerSGDState(None)
    assert state.error_dict == state.p_memory_dict == state.q_memory_dict == {}
    assert state.iter < state.start_powerSGD_iter


def test_options_under_which_nothing_may_be_resized_are_named(process_group):
    wrapper = DistributedDataParallel(Net())
    assert cannot_resize_under(wrapper) is None
    wrapper.mixed_precision = object()
    assert "mixed_precision" in cannot_resize_under(wrapper)


def test_uneven_inputs_are_known_from_the_join(process_group):
    wrapper = DistributedDataParallel(Net())
    assert not may_run_out_of_inputs_alone(wrapper)
    with wrapper.join():
        assert may_run_out_of_inputs_alone(wrapper)
    with wrapper.join(throw_on_early_termination=True):
        assert not may_run_out_of_inputs_alone(wrapper)


@pytest.mark.bad_input
def test_a_wrapper_that_reduces_some_gradients_by_itself_is_refused(process_group):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    wrapper = DistributedDataParallel(
        model,
        delay_all_reduce_named_params=[("0.weight", model[0].weight)],
        param_to_hook_all_reduce=model[1].weight,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="delay_all_reduce_named_params"):
        attach(wrapper, optimizer, as_published(delay_steps=1, every_steps=1))
