"""Two processes attach: what differs is told to both, in the same words, and at once."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from methods.doubles import Idle, small_model
from methods.peers_worker import WORLD
from orthotrain.errors import ConfigError
from orthotrain.methods import attach
from orthotrain.methods import processes as module
from orthotrain.methods._compat import store_of
from processes import outcomes_of

WORKER = Path(__file__).with_name("peers_worker.py")

DIFFERENT = {  # what the first process has, and what the other one
    "every_steps": ("every_steps=2", "every_steps=3"),
    "skip": ("skip=['2']", "skip=[]"),
    "skip, not wrapped": ("skip=['2']", "skip=[]"),
    "scale": ("scale='none'", "scale='gradient_norm'"),
    "optimizer_state": ("optimizer_state='rotate'", "optimizer_state='reset'"),
    "rank rule": ("rank=StoredBudget(", "rank=Energy("),
    "at once": ("skip=['2']", "skip=[]"),
    "params": ("params='0'", "params='2'"),
    "module": ("params=0.0", "params=1"),
    "one method more": ("methods NearestOrthogonalGradient", "methods none"),
    "one method less": ("methods none", "methods NearestOrthogonalGradient"),
    "order": (
        "methods NearestOrthogonalGradient, EarlyDiary",
        "methods EarlyDiary, NearestOrthogonalGradient",
    ),
    "another method": ("methods NearestOrthogonalGradient", "methods OptimalLearningRate"),
    "auto": ("auto=True", "auto=False"),
    "learning rate": ("learning rates 0.1", "learning rates 0.25"),
    "total_steps": ("total_steps=100", "total_steps=101"),
    "sites": ("adaptive_low_rank on 2 (2x4)", "not."),
    "many settings": ("skip=['x", "skip=['x"),
}
ALIKE = [
    "alike", "watched by one", "records", "rates of one value", "same object", "odd setting",
    "wrapper of a part",
]  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Outcomes of every scenario, on the first and on the other process."""
    return outcomes_of(WORKER, WORLD, name="peers", tmp_path_factory=tmp_path_factory)


def found(both, scenario):
    outcomes = [outcomes[scenario] for outcomes in both]
    assert None not in outcomes, "a process went on in silence"
    return outcomes


@pytest.mark.parametrize("scenario", DIFFERENT)
def test_attach_tells_all_processes_what_differs(both, scenario):
    (kind, words, *_), other = found(both, scenario)
    assert kind == "ConfigError"
    assert other[:2] == [kind, words]
    ours, theirs = DIFFERENT[scenario]
    here, there = words.split("process 1 has")
    assert "process 0 has" in here
    assert ours in here
    assert theirs in there
    assert "process_group=" in words


@pytest.mark.parametrize("scenario", sorted(set(DIFFERENT) - {"sites"}))
def test_a_refused_attach_leaves_nothing(both, scenario):
    assert [outcome[2] for outcome in found(both, scenario)] == [True, True]


@pytest.mark.parametrize(
    ("scenario", "failing", "words"),
    [
        ("no method", 1, "no method given"),
        ("pattern", 1, "no module or parameter matches '2'"),
        ("failure of the first", 0, "does not fit"),
        ("failure of the other", 1, "does not fit"),
    ],
)
def test_a_process_that_fails_in_attach_tells_the_others(both, scenario, failing, words):
    outcomes = found(both, scenario)
    kinds = [outcome[0] for outcome in outcomes]
    assert kinds == ["ConfigError", "ConfigError"]
    assert words in outcomes[failing][1]
    told = outcomes[1 - failing][1]
    assert f"process {failing} failed with ConfigError" in told
    assert words in told


def test_messages_have_one_size_and_what_they_do_not_hold_is_told(both):
    assert [outcomes["size"] for outcomes in both] == [0, 0]
    (_, words, *_), _ = found(both, "many settings")
    assert len(set(re.findall(r"SHA-256 \w{16}", words))) == 2
    for scenario, ours, theirs in (
        ("last of many", "label='0'", "label='1'"),
        ("far beyond", "diary=['last of 0']", "diary=['last of 1']"),
        ("a shorter list", "process 0 has q,", "process 1 has not."),
        ("an order", "processes 0 and 1 differ in an order, from p on", ""),
    ):
        (_, words, *_), other = found(both, scenario)
        assert other[1] == words
        assert ours in words
        assert theirs in words


def test_a_long_failure_is_told_with_its_end(both):
    told, failing = found(both, "long failure")
    assert "process 1 failed with ConfigError" in told[1]
    assert "(cut here; the process's own log has all)" in told[1]
    assert len(told[1]) < 4_500 < len(failing[1])
    assert failing[1].endswith("; take another")
    assert "; take another" in told[1]


@pytest.mark.parametrize(
    ("scenario", "ours", "theirs"),
    [
        ("step, loaded by one", "step 1;", "step 61."),
        ("step, loaded apart", "step 61;", "step 62."),
    ],
)
def test_processes_at_different_steps_are_told_at_the_next_step(both, scenario, ours, theirs):
    for outcomes in both:
        told = [outcome for outcome in outcomes[scenario] if outcome]
        assert len(told) == 1
        assert told[0][0] == "StateError"
        assert "Load the handle's state on every process" in told[0][1]
        assert ours.rstrip(";.") in told[0][1]
        assert theirs.rstrip(";.") in told[0][1]


def test_layers_that_differ_later_are_told_before_anything_is_sent(both):
    first, other = found(both, "layers later")
    assert first[0] == "StateError"
    assert first[:2] == other[:2]
    assert "process 1 has 0 (2, 2)" in first[1]


@pytest.mark.parametrize("scenario", ALIKE)
def test_processes_that_agree_go_on(both, scenario):
    assert [outcomes[scenario] for outcomes in both] == [None, None]


def test_steps_that_were_loaded_alike_go_on(both):
    assert [outcomes["step, loaded alike"] for outcomes in both] == [[None, None]] * 2


def test_processes_that_train_alone_may_differ(both):
    assert [outcomes["one by one"] for outcomes in both] == [[3, None], [4, None]]


def test_a_comparison_leaves_nothing_in_the_store(both):
    assert [outcomes["kept in the store"] for outcomes in both] == [0, 0]


def test_a_process_that_never_attaches_is_named(both):
    for rank, outcomes in enumerate(both):
        (kind, words), warned = outcomes["missing"]
        assert kind == "ConfigError"
        assert f"process {1 - rank} did not come within the group's timeout of 1 s" in words
        assert len(warned) == 1
        assert f"attach: waiting for process {1 - rank} since" in warned[0]


# --- one process ----------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize("group", [0, "world", dist.GroupMember.NON_GROUP_MEMBER])
def test_a_process_group_is_one_of_torch(group):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="process_group to be a group"):
        attach(model, optimizer, Idle(), process_group=group)


def test_the_private_name_of_the_store_still_exists(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    group = dist.group.WORLD
    backend, store = dist.distributed_c10d._world.pg_map[group]
    assert backend == "gloo"
    assert store.timeout == dist.default_pg_timeout
    assert store_of(group) is None  # nobody to agree with
    dist.destroy_process_group()
    assert store_of(group) is None


def test_one_process_that_pretends_to_be_many_has_nobody_to_ask():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        model = small_model()
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Idle())
    finally:
        dist.destroy_process_group()


def test_of_several_that_differ_one_is_told_whose_difference_is_seen():
    store = dist.HashStore()
    exchange = module._Exchange("x", store, [0, 1, 2], "n", "")
    ours = module._message("a\nb", b"a")
    store.set("n/1", module._message("a\nc", b"a"))
    store.set("n/2", module._message("d\nb", b"d"))
    verdict = exchange.verdict(ours, 0, wait=True)
    assert "process 0 has a, process 2 has d (2 of 3 differ from it)" in verdict


def test_one_process_is_the_first(both):
    assert [outcomes["first"] for outcomes in both] == [True, False]
    assert module.Processes(None).is_first
