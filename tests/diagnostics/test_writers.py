"""Records on their way out: a file that a killed run goes on with, and a TensorBoard."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lowrank.nets import mlp, train
from orthotrain import AdaptiveLowRank, BasisStability, attach
from orthotrain.diagnostics import JsonlWriter, TensorBoardWriter
from orthotrain.diagnostics.writers import line_of
from orthotrain.errors import CheckpointError, ConfigError

STEPS = 20


def start(path=None):
    model = mlp(10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    method = AdaptiveLowRank(every_steps=4, energy=0.7, dense_last=False)
    handle = attach(model, optimizer, BasisStability(every_steps=3), method, total_steps=STEPS)
    if path is not None:
        JsonlWriter(handle, path)
    return model, optimizer, handle


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(path):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines(path)]


def test_each_record_becomes_a_line_with_sizes_and_ranks_at_the_start_and_after_updates(tmp_path):
    path = tmp_path / "run.jsonl"
    model, optimizer, handle = start(path)
    train(model, optimizer, range(STEPS))
    found = lines(path)
    assert [line for line in found if line["kind"] not in ("size", "rank")] == [
        json.loads(json.dumps(line_of(record))) for record in handle.records
    ]
    updates = [r["step"] for r in handle.records if r.get("event") == "update"]
    sizes = [line for line in found if line["kind"] == "size"]
    assert [line["step"] for line in sizes] == [3, *updates]
    assert sizes[-1]["stored"] == handle.summary().total.stored
    ranks = {line["layer"]: line["rank"] for line in found if line["kind"] == "rank"}
    assert ranks == {row.name: row.rank for row in handle.summary().rows}


@pytest.mark.parametrize("at", [5, 10, 13], ids=["before", "at", "after the switch"])
@pytest.mark.parametrize("loaded_first", [True, False])
def test_a_killed_run_goes_on_in_its_file_without_a_hole_or_a_double(tmp_path, at, loaded_first):
    whole, path = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    model, optimizer, _ = start(whole)
    train(model, optimizer, range(STEPS))

    model, optimizer, handle = start(path)
    train(model, optimizer, range(at))
    state = [part.state_dict() for part in (model, optimizer, handle)]
    state = torch.load(_saved(tmp_path, state), weights_only=True)
    train(model, optimizer, range(at, at + 4))  # after its checkpoint
    with path.open("a") as file:
        file.write('{"kind": "stabil')  # killed while it wrote

    model, optimizer, handle = start(None if loaded_first else path)
    for part, saved in zip((model, optimizer, handle), state, strict=True):
        part.load_state_dict(saved)
    if loaded_first:
        JsonlWriter(handle, path)
    train(model, optimizer, range(at, STEPS))
    assert without_times(path) == without_times(whole)


def _saved(tmp_path, state):
    torch.save(state, tmp_path / "state.pt")
    return tmp_path / "state.pt"


def test_a_number_that_json_does_not_have_becomes_null(tmp_path):
    _, _, handle = start(tmp_path / "run.jsonl")
    handle.run.record(method="mine", value=math.nan, values=[1.0, math.inf])
    first = lines(tmp_path / "run.jsonl")[0]
    assert (first["kind"], first["value"], first["values"]) == ("mine", None, [1.0, None])


def test_every_number_goes_to_a_tensorboard():
    given = []
    writer = SimpleNamespace(
        add_scalar=lambda tag, scalar_value, global_step: given.append(
            (tag, scalar_value, global_step)
        )
    )
    model, optimizer, handle = start()
    TensorBoardWriter(handle, writer)
    train(model, optimizer, range(STEPS))
    assert ("orthotrain/basis_stability/0/rank", 10.0, 3) in given
    tags = {tag for tag, _, _ in given}
    assert "orthotrain/adaptive_low_rank/update" in tags
    assert not any(tag.endswith(("/step", "/event", "/layer")) for tag in tags)
    stability = [r["stability"] for r in handle.records if r.get("layer") == "0" and "mixing" in r]
    assert [v for tag, v, _ in given if tag == "orthotrain/basis_stability/0/stability"] == (
        stability
    )


@pytest.mark.bad_input
def test_what_takes_no_numbers_is_no_writer():
    model = mlp(8)
    handle = attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1), BasisStability(every_steps=1)
    )
    for wrong in (None, [], "runs", SimpleNamespace(add_scalar=3)):
        with pytest.raises(ConfigError, match="TensorBoardWriter needs writer to have add_scalar"):
            TensorBoardWriter(handle, wrong)


@pytest.mark.bad_input
def test_a_file_of_something_else_and_a_folder_that_is_missing_are_refused(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("hello\nthere\n")
    with pytest.raises(CheckpointError, match=r"line 1 of .*notes\.txt"):
        start(other)
    assert other.read_text() == "hello\nthere\n"
    with pytest.raises(CheckpointError, match="make its folder"):
        start(tmp_path / "none" / "run.jsonl")


def test_a_summary_is_plain_numbers_and_a_few_words():
    model, optimizer, handle = start()
    assert handle.summary().short == "stored 100.0%, trainable 100.0%"
    train(model, optimizer, range(STEPS))
    summary = handle.summary()
    plain = summary.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["total"]["stored"] == summary.total.stored
    assert [row["rank"] for row in plain["rows"]] == [row.rank for row in summary.rows]
    first, *others = summary.rows
    assert summary.short.endswith(f"%, rank {first.rank}")
    several = replace(summary, rows=(replace(first, rank=1), *others))
    assert several.short.endswith(f"%, rank 1 to {first.rank}")
