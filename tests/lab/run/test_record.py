import hashlib
import json
import math
from dataclasses import replace

import pytest

from lab.run.tiny import CONFIG
from orthotrain.errors import CheckpointError, ConfigError, DataError
from orthotrain.lab.experiments.lowrank.config import lowrank_variants
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.record import (
    MetricsFile,
    RunFolder,
    finite,
    read_json,
    read_metrics,
    read_settings,
    write_json,
)

TINY = Experiment("tiny", "Tiny", {"smoke": CONFIG}, lowrank_variants, "a.b:build", "a.b:C")


def test_lines_come_back_as_they_were(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        metrics.append("step", step=1, loss=0.5)
        metrics.append("rank", layer="a", shape=[2, 3])
    assert read_metrics(path) == [
        {"kind": "step", "step": 1, "loss": 0.5},
        {"kind": "rank", "layer": "a", "shape": [2, 3]},
    ]


def test_a_resume_cuts_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        metrics.append("step", step=1)
        size = metrics.sync()
        assert size == path.stat().st_size
        metrics.append("step", step=2)
    with path.open("a") as file:
        file.write('{"kind": "ste')
    with MetricsFile(path, size=size) as metrics:
        metrics.append("step", step=2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


@pytest.mark.bad_input
def test_lost_lines_are_noticed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    with pytest.raises(CheckpointError, match="has 3 bytes, its checkpoint was written at 10"):
        MetricsFile(path, size=10)


def test_numbers_json_cannot_say_become_null(tmp_path):
    value = {"a": [math.nan, 1.5, {"b": -math.inf}], "c": (1, "x")}
    assert finite(value) == {"a": [None, 1.5, {"b": None}], "c": [1, "x"]}
    path = tmp_path / "result.json"
    write_json(path, value)
    assert read_json(path) == finite(value)


@pytest.mark.bad_input
def test_a_broken_json_file_is_named(tmp_path):
    path = tmp_path / "result.json"
    with pytest.raises(DataError, match=r"result\.json cannot be read"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(DataError, match="need a JSON object"):
        read_json(path)


def test_a_folder_opens_again_with_the_same_settings(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(CONFIG)
    before = folder.config.read_bytes()
    folder.open(CONFIG)
    assert folder.config.read_bytes() == before


@pytest.mark.bad_input
def test_a_folder_with_other_settings_is_refused_and_the_difference_named(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(CONFIG)
    folder.seed("dense", 0).path.mkdir(parents=True)
    folder.seed("dense", 0).metrics.write_text("")
    other = replace(CONFIG, optim=replace(CONFIG.optim, lr=0.5))
    with pytest.raises(ConfigError, match=r"optim\.lr is 0\.01 there and 0\.5 here.*--resume"):
        folder.open(other)


def test_a_folder_in_which_nothing_was_trained_is_begun_anew_unless_others_share_it(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(CONFIG)
    folder.run.write_text("{}")
    other = replace(CONFIG, optim=replace(CONFIG.optim, lr=0.5))
    with pytest.raises(ConfigError, match="other settings"):
        folder.open(other, shared=True)
    folder.open(other)
    assert "lr: 0.5" in folder.config.read_text()
    assert not folder.run.exists()


@pytest.mark.bad_input
def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").open(CONFIG)


@pytest.mark.bad_input
def test_two_commands_cannot_train_in_one_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        with pytest.raises(ConfigError, match="another process is training in"), folder.locked():
            pass
        assert not folder.config.exists()
    with folder.locked():
        folder.open(CONFIG)


@pytest.mark.bad_input
def test_a_lock_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match="a folder has this name"), RunFolder(tmp_path).locked():
        pass


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "said"),
    [("a\0b", "choose another name"), ("x" * 300, "a shorter name"), ("\ud800", "another name")],
    ids=["zero", "long", "surrogate"],
)
def test_a_name_that_the_file_system_refuses_is_refused(tmp_path, name, said):
    with pytest.raises(ConfigError, match=said), RunFolder(tmp_path / name).locked():
        pass


@pytest.mark.bad_input
@pytest.mark.parametrize("content", ["[" * 100_000, '{"schema": 2}', "[]", "\0"], ids=len)
def test_a_description_that_is_none_is_refused_before_anything_trains(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.run.write_text(content)
    with pytest.raises((ConfigError, DataError), match=r"run\.json"):
        folder.describe(TINY, CONFIG, variants=(), environment={})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"when: 2026-99-99\n",
        b"[" * 1_200,
        b"1: 2\nb: 3\n",
        b"!!python/none:x y",
        b"a: &a [*a]",
    ],
    ids=["binary", "date", "deep", "numbers", "tag", "circle"],
)
def test_settings_that_are_none_are_one_typed_error(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no configuration"):
        read_settings(path)
    with pytest.raises(ConfigError, match="no configuration"):
        RunFolder(tmp_path).open(CONFIG)


@pytest.mark.bad_input
def test_metrics_that_changed_under_their_checkpoint_are_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        metrics.append("step", step=1, loss=0.5)
        size, digest = metrics.sync(), metrics.digest()
        metrics.append("step", step=2, loss=0.5)
    with MetricsFile(path, size=size, digest=digest) as metrics:
        metrics.append("step", step=2, loss=0.25)
        metrics.sync()
        assert metrics.digest() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [line["loss"] for line in read_metrics(path)] == [0.5, 0.25]
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.4"))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"other bytes.*lines are lost"):
        MetricsFile(path, size=size, digest=digest)
    assert path.read_bytes() == before


@pytest.mark.bad_input
def test_metrics_that_are_none_are_one_typed_error(tmp_path):
    for content in (b"\xff\n", b"{}\n{\n", b"[" * 100_000):
        (tmp_path / "metrics.jsonl").write_bytes(content)
        with pytest.raises(DataError, match="one JSON object per line"):
            read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_metrics(tmp_path)


def test_the_description_is_that_of_the_start(tmp_path):
    folder = RunFolder(tmp_path)
    for command in ("first", "second"):
        folder.describe(TINY, CONFIG, variants=(), environment={"command": command})
    content = json.loads(folder.run.read_text())
    assert (content["schema"], content["command"], content["seeds"]) == (1, "first", [0])
    assert (content["recipe"], content["page"], content["baseline"]) == ("tiny", "a.b:C", "dense")
