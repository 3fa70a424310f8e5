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
    other = replace(CONFIG, optim=replace(CONFIG.optim, lr=0.5))
    with pytest.raises(ConfigError, match=r"optim\.lr is 0\.01 there and 0\.5 here.*--resume"):
        folder.open(other)


@pytest.mark.bad_input
def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").open(CONFIG)


def test_the_description_is_that_of_the_start(tmp_path):
    folder = RunFolder(tmp_path)
    for command in ("first", "second"):
        folder.describe(TINY, CONFIG, variants=(), environment={"command": command})
    content = json.loads(folder.run.read_text())
    assert (content["schema"], content["command"], content["seeds"]) == (1, "first", [0])
    assert (content["recipe"], content["page"], content["baseline"]) == ("tiny", "a.b:C", "dense")
