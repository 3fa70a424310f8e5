"""What is read from a run folder, what is an error, and what is only said."""

import json
import shutil

import pytest

from orthotrain.errors import ConfigError, DataError
from orthotrain.lab.report.load import load_run
from orthotrain.lab.report.rows import read_metrics

STEP = '{"kind": "step", "step": %d, "loss": %s}\n'


def notes(folder):
    return " ".join(load_run(folder).notes)


def test_a_finished_run_lacks_nothing(finished_run):
    run = load_run(finished_run)
    assert run.notes == ()
    assert [v.name for v in run.variants] == ["dense", "oialr-paper", "oialr-tuned", "narrow"]
    assert [s.seed for s in run.variants[0].seeds] == [0, 1, 2]
    assert run.baseline is run.variants[0]
    assert run.finished("narrow") is run.variants[3]
    assert run.finished("wide") is None


def test_the_file_of_one_training_is_a_run_without_a_result(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(STEP % (1, 2.0) + STEP % (2, 1.0))
    run = load_run(path)
    (variant,) = run.variants
    assert (run.slug, variant.name, variant.finished, run.notes) == ("mine", "mine", (), ())
    assert [row["loss"] for row in variant.seeds[0].of_kind("step")] == [2.0, 1.0]


@pytest.mark.bad_input
def test_a_file_without_a_line_is_told(tmp_path):
    (tmp_path / "mine.jsonl").touch()
    with pytest.raises(DataError, match="it has none yet"):
        load_run(tmp_path / "mine.jsonl")
    (tmp_path / "mine.jsonl").write_text('{"kind": "run", "step": 0, "run": "a", "records": 0}\n')
    with pytest.raises(DataError, match="it has none yet"):
        load_run(tmp_path / "mine.jsonl")


@pytest.mark.bad_input
def test_a_path_that_is_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere, which is no folder.*run\.json"):
        load_run(tmp_path / "nowhere")


@pytest.mark.bad_input
def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(DataError, match=rf"run\.json in {tmp_path}.*orthotrain train"):
        load_run(tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "got a list"),
        ("{", "line 1 is broken"),
        ('{"schema": 2}', "says 2"),
        ('{"schema": 1, "variants": [{"title": "x"}]}', "'name'"),
        ('{"schema": 1, "variants": "dense"}', "list of objects"),
    ],
)
def test_a_run_json_of_another_kind(tmp_path, content, said):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=said):
        load_run(tmp_path)


def test_a_half_last_line_is_left_out_and_said(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(STEP % (1, 2.0) + STEP % (2, 1.5) + '{"kind": "step", "st')
    rows, said = read_metrics(file)
    assert [row["step"] for row in rows["step"]] == [1, 2]
    assert len(said) == 1
    assert "cut off" in said[0]


@pytest.mark.bad_input
@pytest.mark.parametrize("broken", ['{"kind": "st', "[1, 2]", '{"step": 3}', "nonsense"])
def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path, broken):
    file = tmp_path / "metrics.jsonl"
    file.write_text(STEP % (1, 2.0) + broken + "\n" + STEP % (2, 1.5))
    with pytest.raises(DataError, match="line 2 of 3"):
        read_metrics(file)


@pytest.mark.bad_input
def test_a_step_that_is_no_number_is_an_error(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(STEP % (1, 2.0) + '{"kind": "step", "step": null, "loss": 1}\n')
    with pytest.raises(DataError, match=r"a number as 'step'.*line 2 of kind 'step'"):
        read_metrics(file)


def test_of_two_lines_for_one_step_the_later_counts(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(STEP % (1, 2.0) + STEP % (2, 9.0) + STEP % (2, 1.5))
    rows, _ = read_metrics(file)
    assert [row["loss"] for row in rows["step"]] == [2.0, 1.5]


def test_layers_and_splits_of_one_step_are_kept_apart(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [
        {"kind": "rank", "step": 1, "layer": "a", "rank": 1},
        {"kind": "rank", "step": 1, "layer": "b", "rank": 2},
        {"kind": "eval", "step": 1, "split": "validation", "accuracy": 0.5},
        {"kind": "eval", "step": 1, "split": "train", "accuracy": 0.6},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, _ = read_metrics(file)
    assert len(rows["rank"]) == 2
    assert len(rows["eval"]) == 2


def test_lines_of_any_kind_are_read_and_lost_losses_are_said(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(STEP % (1, "null") + '{"kind": "weather", "step": 1}\n')
    rows, said = read_metrics(file)
    assert rows["weather"] == [{"kind": "weather", "step": 1}]
    assert any("not finite in 1 record" in sentence for sentence in said)


def test_a_seed_without_a_result_is_said_and_not_counted(write_run):
    folder = write_run(variants=["dense", "narrow"])
    (folder / "variants/dense/seed-1/result.json").unlink()
    run = load_run(folder)
    assert len(run.variants[0].finished) == 2
    assert len(run.variants[0].seeds) == 3
    assert any("dense, seed 1: no result.json" in n and "step 400" in n for n in run.notes)


def test_seeds_and_variants_never_started_are_said(write_run):
    folder = write_run()
    shutil.rmtree(folder / "variants/oialr-tuned/seed-2")
    shutil.rmtree(folder / "variants/narrow")
    said = notes(folder)
    assert "OIALR, tuned: seed 2 has no folder" in said
    assert "narrow dense: no results at all" in said


def test_a_run_that_only_has_run_json_is_read(tmp_path):
    (tmp_path / "run.json").write_text('{"schema": 1, "variants": [], "seeds": []}')
    said = notes(tmp_path)
    assert "nothing to compare" in said
    assert "no config.yaml" in said


def test_a_run_without_its_baseline_says_so(write_run):
    assert "no variant 'dense', the baseline" in notes(write_run(variants=["oialr-tuned"]))
    folder = write_run(name="other", variants=["dense", "narrow"], seeds=[0])
    (folder / "variants/dense/seed-0/result.json").unlink()
    assert "The baseline, dense, has no finished seed" in notes(folder)


def test_a_variant_that_run_json_does_not_list_is_shown_last(write_run):
    folder = write_run(variants=["dense", "narrow"])
    shutil.copytree(folder / "variants/dense", folder / "variants/another")
    run = load_run(folder)
    assert run.variants[-1].name == "another"
    assert any("'another' that run.json does not list" in note for note in run.notes)


def test_a_variant_never_started_still_has_its_planned_seeds(write_run):
    folder = write_run(variants=["dense", "narrow"])
    shutil.rmtree(folder / "variants/narrow")
    assert [(len(v.seeds), v.planned) for v in load_run(folder).variants] == [(3, 3), (0, 3)]
