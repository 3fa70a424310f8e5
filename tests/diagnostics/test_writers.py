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
from orthotrain.methods.processes import Processes

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
    return [{k: v for k, v in line.items() if k not in ("seconds", "run")} for line in lines(path)]


def test_each_record_becomes_a_line_with_sizes_and_ranks_at_the_start_and_after_updates(tmp_path):
    path = tmp_path / "run.jsonl"
    model, optimizer, handle = start(path)
    train(model, optimizer, range(STEPS))
    found = lines(path)
    assert found[0] == {"kind": "run", "step": 0, "run": handle.run.id, "records": 0}
    assert [line for line in found if line["kind"] not in ("run", "size", "rank")] == [
        json.loads(json.dumps(line_of(record))) for record in handle.records
    ]
    updates = [r["step"] for r in handle.records if r.get("event") == "update"]
    sizes = [line for line in found if line["kind"] == "size"]
    assert [line["step"] for line in sizes] == [3, *updates]
    assert sizes[-1]["stored"] == handle.summary().total.stored
    ranks = {line["layer"]: line["rank"] for line in found if line["kind"] == "rank"}
    assert ranks == {row.name: row.rank for row in handle.summary().rows}


@pytest.mark.parametrize("at", [2, 10, 13], ids=["before a record", "at", "after the switch"])
def test_a_killed_run_goes_on_in_its_file_without_a_hole_or_a_double(tmp_path, at):
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

    model, optimizer, handle = start()
    for part, saved in zip((model, optimizer, handle), state, strict=True):
        part.load_state_dict(saved)
    JsonlWriter(handle, path)
    train(model, optimizer, range(at, STEPS))
    assert without_times(path) == without_times(whole)


def _saved(tmp_path, state):
    torch.save(state, tmp_path / "state.pt")
    return tmp_path / "state.pt"


def watched(path=None, *, every=2):
    """Cheap: a model of two layers whose bases are watched, and a function that trains it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, BasisStability(every_steps=every))
    if path is not None:
        JsonlWriter(handle, path)

    def go(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()

    return handle, go


def resumed(handle, path):
    again, go = watched()
    again.load_state_dict(handle.state_dict())
    JsonlWriter(again, path)
    return go


def refused(path, said, make):
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=said):
        make()
    assert path.read_bytes() == before


@pytest.mark.parametrize("every", [2, 3], ids=["the same settings", "others"])
def test_a_run_that_starts_anew_does_not_touch_an_earlier_file(tmp_path, every):
    path = tmp_path / "run.jsonl"
    first, go = watched(path)
    go(6)
    said = "this run starts at step 0.*choose another path or delete the file.*load the handle's"
    refused(path, said, lambda: watched(path, every=every))
    other, go = watched(tmp_path / "other.jsonl")
    go(2)
    refused(path, f"of run {first.run.id}.*is of run {other.run.id}", lambda: resumed(other, path))


def test_a_file_that_ends_before_the_checkpoint_is_refused_with_its_last_step(tmp_path):
    path = tmp_path / "run.jsonl"
    handle, go = watched(path)
    go(7)
    resumed(handle, path)  # the last record is of step 6: nothing is missing
    whole = path.read_bytes()
    path.write_bytes(b"".join(x for x in whole.splitlines(True) if json.loads(x)["step"] < 6))
    refused(
        path, r"6 records until step 7; .* ends at step 4, with 4", lambda: resumed(handle, path)
    )
    path.unlink()
    resumed(handle, path)(1)  # a new file says where it begins
    assert lines(path)[0] == {"kind": "run", "step": 7, "run": handle.run.id, "records": 6}


def test_the_file_of_a_user_is_refused_as_it_is(tmp_path):
    path = tmp_path / "mine.jsonl"
    handle, go = watched()
    go(4)
    for content in (
        '{"step": 3, "loss": 2.0}\n{"step": 300, "loss": 2.0}\n',
        '{"kind": "train", "step": 3}\n{"kind": "train", "step": 300}\n',
        '{"kind": "run", "step": 3}\n',
        "[1]\n",
        "half a line",
    ):
        path.write_text(content)
        refused(path, "needs a file that it wrote", lambda: JsonlWriter(handle, path))


def test_a_second_writer_to_one_file_is_told_and_not_mixed_in(tmp_path):
    path = tmp_path / "run.jsonl"
    handle, go = watched(path)
    JsonlWriter(handle, path)
    with pytest.raises(CheckpointError, match="alone may write"):
        go(2)
    assert [line["kind"] for line in lines(path)] == ["run", "stability", "size"]


def test_a_file_without_an_id_goes_on_by_steps_where_the_state_has_none(tmp_path):
    path = tmp_path / "run.jsonl"
    handle, go = watched(path)
    go(4)
    state = handle.state_dict()
    go(2)
    old = b"".join(path.read_bytes().splitlines(True)[1:])
    path.write_bytes(old)
    refused(path, "older version.*is of run", lambda: JsonlWriter(handle, path))
    again, go = watched()
    again.load_state_dict({"step": state["step"], "methods": state["methods"]})
    JsonlWriter(again, path)
    go(2)
    assert [line["step"] for line in lines(path)] == [
        line["step"] for line in map(json.loads, old.splitlines())
    ]
    refused(path, "older version.*starts at step 0", lambda: watched(path))


def test_a_writer_made_before_the_state_is_loaded_and_a_step_back_keep_one_line_per_record(
    tmp_path,
):
    path = tmp_path / "run.jsonl"
    handle, go = watched(tmp_path / "first.jsonl")
    go(4)
    again, go = watched(path)
    again.load_state_dict(handle.state_dict())
    go(4)
    state = again.state_dict()
    whole = path.read_bytes()
    go(2)
    again.load_state_dict(state)
    assert json.loads(whole.splitlines()[0])["run"] == handle.run.id
    go(2)
    assert path.read_bytes().startswith(whole)
    assert [x["step"] for x in lines(path) if x["kind"] == "stability"] == [6, 6, 8, 8, 10, 10]


def test_only_the_first_process_of_a_group_writes(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    monkeypatch.setattr(Processes, "is_first", False)
    _, go = watched(path)
    go(2)
    assert not path.exists()


def test_a_number_that_json_does_not_have_becomes_null(tmp_path):
    _, _, handle = start(tmp_path / "run.jsonl")
    handle.run.record(method="mine", value=math.nan, values=[1.0, math.inf])
    first = lines(tmp_path / "run.jsonl")[1]
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
