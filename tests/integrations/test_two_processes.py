"""The callbacks, and a loop of Accelerate, in two processes: all of it is the same on both."""

from pathlib import Path

import pytest
import torch

from integrations.join import WORLD
from processes import outcomes_of

pytestmark = pytest.mark.slow
STEPS = 12

LOOPS = {
    "transformers": [
        f"{model}, {loop}" for model in ("gpt", "vit") for loop in ("plain", "accumulation, bf16")
    ],
    "lightning": ["plain", "accumulation, bf16", "EMA"],
    "accelerate": ["before, 1", "before, 2", "after, 1", "after, 2"],
    "timm": ["plain", "accumulation, bf16", "Lookahead"],
}
SAVED = {"transformers": (4, 8), "lightning": (4, 8), "accelerate": (3, 6), "timm": (2, 4)}
RUNS = [(framework, loop) for framework, loops in LOOPS.items() for loop in loops]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of a framework: what each process has kept; started once."""
    known = {}

    def of(framework):
        pytest.importorskip(framework, exc_type=ImportError)
        if framework not in known:
            known[framework] = outcomes_of(
                Path(__file__).with_name(f"{framework}_worker.py"), WORLD,
                name=f"two-{framework}", tmp_path_factory=tmp_path_factory, seconds=400,
            )  # fmt: skip
        return known[framework]

    return of


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("framework", "loop"), RUNS)
def test_both_processes_hold_the_same_smaller_model(outcomes, framework, loop):
    first, other = (each[f"{loop}, whole"] for each in outcomes(framework))
    assert first["shrunk"]
    assert equal(first["held"], other["held"])


@pytest.mark.parametrize(("framework", "loop"), RUNS)
@pytest.mark.parametrize("when", [0, 1], ids=["before the cut", "after the cut"])
def test_a_resumed_run_equals_the_unbroken_one(outcomes, framework, loop, when):
    for i, process in enumerate(outcomes(framework)):
        whole = process[f"{loop}, whole"]
        resumed = process[f"{loop}, resumed at {SAVED[framework][when]}"]
        assert equal(whole["held"], resumed["held"])
        if i == 0:  # of the others some notes are those of the first, after a resume
            assert whole["summary"] == resumed["summary"]


@pytest.mark.parametrize("model", ["gpt", "vit"])
def test_transformers_each_process_observes_its_own_loss_once_per_step(outcomes, model):
    first, other = (each[f"{model}, plain, whole"] for each in outcomes("transformers"))
    assert len(first["seen"]) == len(other["seen"]) == STEPS
    assert first["seen"] != other["seen"]
    # The Trainer divides each by the number of items on all processes, and logs the sum.
    sums = [a + b for a, b in zip(first["seen"], other["seen"], strict=True)]
    assert sums == pytest.approx(first["logged"], rel=1e-4)


@pytest.mark.parametrize("loop", LOOPS["lightning"])
def test_lightning_each_process_observes_its_own_loss_once_per_pass(outcomes, loop):
    first, other = (each[f"{loop}, whole"] for each in outcomes("lightning"))
    for process in (first, other):
        assert process["world"] == WORLD
        assert process["seen"] == pytest.approx(process["expected"])
    assert first["seen"] != other["seen"]


@pytest.mark.parametrize("loop", LOOPS["transformers"])
def test_transformers_the_main_process_alone_writes_the_state(outcomes, loop):
    first, other = (each[f"{loop}, whole"]["written"] for each in outcomes("transformers"))
    folders = [Path(path).parent.name for path in first if path.endswith("orthotrain.pt")]
    assert folders == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]
    assert other == []


@pytest.mark.parametrize("model", ["gpt", "vit"])
@pytest.mark.parametrize("greater", [True, False], ids=["dense, early", "low-rank, late"])
def test_transformers_the_best_model_is_loaded_on_both(outcomes, model, greater):
    first, other = (each[f"{model}, best, {greater}"] for each in outcomes("transformers"))
    assert equal(first["held"], other["held"])
    assert first["at"] == other["at"]
    assert any("pair" in name for name in first["held"]) is not greater
    for process in (first, other):
        assert process["evaluated"] == pytest.approx(process["metric"], rel=1e-6)


@pytest.mark.parametrize("framework", ["transformers", "lightning"])
def test_a_resume_without_the_state_is_refused_on_both(outcomes, framework):
    for process in outcomes(framework):
        assert process["lost state"].startswith("CheckpointError: resuming needs")
        assert "start over" in process["lost state"]
