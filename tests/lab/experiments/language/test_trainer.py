import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from lab.experiments.language.tiny import (
    CONFIG,
    build_tiny,
    tiny_text,
    train_here,
    trainer_of,
    variant_of,
)
from lab.run.tiny import KillAt, Killed, assert_goes_on, assert_same_bits
from orthotrain.errors import CheckpointError, ConfigError
from orthotrain.lab.experiments.branches.variants import DENSE
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.language.build import passes_of
from orthotrain.lab.experiments.language.trainer import bits_per_byte
from orthotrain.lab.experiments.language.variants import language_variants
from orthotrain.lab.report import closing_table
from orthotrain.lab.run.checkpoint import load_checkpoint
from orthotrain.lab.run.jobs import Run, run_all
from orthotrain.lab.run.record import RunFolder, SeedFolder, read_json, read_metrics
from orthotrain.lab.run.restore import read_network
from orthotrain.layers import _inference

STEPS = CONFIG.optim.steps
FIELDS = {
    "validation_bits", "test_bits", "stored", "stored_folded", "dense", "trainable", "compute",
    "compute_before", "switch_step", "data_sha256", "settings", "step_ms_final",
}  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A finished dense training. Do not write into it."""
    folder = tmp_path_factory.mktemp("dense")
    train_here(folder)
    return folder


def lines_of(folder, kind):
    return [line for line in read_metrics(SeedFolder(folder).metrics) if line["kind"] == kind]


def test_dense_training_learns_and_leaves_its_record(dense):
    result = read_json(SeedFolder(dense).result)
    assert set(result) >= FIELDS
    losses = [line["loss"] for line in lines_of(dense, "step")]
    assert len(losses) == STEPS
    assert losses[-1] < 0.7 * losses[0]
    looks = lines_of(dense, "eval")
    assert [line["step"] for line in looks] == [12, 24, 36, 48, 60]
    assert looks[-1]["bits"] < looks[0]["bits"]
    assert result["validation_bits"] == pytest.approx(looks[-1]["bits"], rel=0.2)
    assert result["data_sha256"] == "ab" * 32
    assert result["compute_before"] == 0
    assert (result["settings"]["steps"], result["switch_step"]) == (STEPS, None)
    assert result["stored"] == result["dense"]


def test_a_branch_starts_from_the_finished_model(tmp_path, dense):
    trainer = trainer_of("branch-50-20", dense=dense)
    finished = read_network(SeedFolder(dense).checkpoint)
    assert_same_bits(trainer.branching.teacher.state_dict(), finished.state_dict())
    # What is not cut is as it was; what is cut is the finished model's as well as it can be.
    left = trainer.model.state_dict()
    assert_same_bits(left["position"], finished.state_dict()["position"])
    assert trainer.total_steps == 12
    first = trainer.batches.next_batch()[0]
    assert not torch.equal(first, trainer_of().batches.next_batch()[0])
    result = train_here(tmp_path, name="branch-50-20", dense=dense)
    assert result["stored"] <= 0.5 * result["dense"]
    assert result["switch_step"] == 0
    before = read_json(SeedFolder(dense).result)["compute"]
    assert result["compute_before"] == before
    # Twelve steps, and the eight batches that it is cut by: here as much as the steps.
    assert 0 < result["compute"] < 0.8 * before
    assert result["settings"]["start"] == result["settings"]["teacher"] == "dense"


def test_right_after_a_cut_there_is_one_line_with_bits_before_and_after(tmp_path, dense):
    train_here(tmp_path, name="branch-30-37", dense=dense)
    (line,) = lines_of(tmp_path, "cut")
    assert line["step"] == 1
    finished = bits_per_byte(
        read_network(SeedFolder(dense).checkpoint), tiny_text().validation, count=8, length=16
    )
    assert line["bits_before"] == finished
    assert line["bits"] > line["bits_before"]


@pytest.mark.slow
def test_cuts_on_the_way(tmp_path):
    result = train_here(tmp_path / "half", name="half-50")
    assert result["switch_step"] == STEPS // 2
    assert [line["step"] for line in lines_of(tmp_path / "half", "cut")] == [STEPS // 2]
    assert result["stored"] <= 0.5 * result["dense"]
    assert result["trainable"] == result["stored"]
    assert result["compute_before"] == 0
    result = train_here(tmp_path / "frozen", name="frozen-50")
    assert result["trainable"] < 0.8 * result["stored"]
    result = train_here(tmp_path / "published", name="oialr-paper")
    cuts = lines_of(tmp_path / "published", "cut")
    assert cuts[0]["step"] == result["switch_step"] == STEPS // 6
    assert len(cuts) > 1


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        (DENSE, [33]),
        ("branch-50-20", [6]),
        pytest.param("branch-50-20", [1, 11], marks=pytest.mark.slow),
        pytest.param("half-50", [29, 30, 31], marks=pytest.mark.slow),
        pytest.param("narrow-50-teacher", [17], marks=pytest.mark.slow),
        pytest.param("oialr-paper", [16], marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_goes_on_bit_for_bit(tmp_path, dense, name, steps):
    needed = dense if variant_of(name).needs else None
    assert_goes_on(partial(train_here, name=name, dense=needed), tmp_path, at=steps)


def test_the_test_part_is_read_once_after_the_last_step(tmp_path):
    data = tiny_text()
    with pytest.raises(Killed):
        train_here(tmp_path, data=data, on_progress=KillAt(STEPS, stage="evaluated"))
    assert data.read_test.reads == 0
    result = train_here(tmp_path, data=data)
    assert data.read_test.reads == 1
    assert result["test_bits"] > 0


def test_the_test_part_is_not_read_while_settings_are_chosen(tmp_path):
    data = tiny_text()
    assert train_here(tmp_path, data=data, read_test=False)["test_bits"] is None
    assert data.read_test.reads == 0


def test_bits_are_the_mean_of_every_byte_of_every_window(monkeypatch):
    monkeypatch.setattr("orthotrain.lab.experiments.language.trainer._EVALUATION_BATCH", 3)
    model, text = trainer_of().model, tiny_text().validation
    found = bits_per_byte(model, text, count=7, length=16)
    starts = [i * (len(text) - 16) // 7 for i in range(7)]
    bits = []
    with torch.no_grad():
        for start in starts:
            window = text[start : start + 17].long()
            scores = model(window[None, :-1])[0].double().log_softmax(-1)
            bits += [-scores[i, window[i + 1]].item() / math.log(2) for i in range(16)]
    assert found == pytest.approx(sum(bits) / len(bits), rel=1e-5)
    assert model.training


def test_the_teacher_is_half_of_the_loss_and_is_not_trained(dense):
    trainer = trainer_of("narrow-50-teacher", dense=dense)
    teacher = {
        name: value.clone() for name, value in trainer.branching.teacher.state_dict().items()
    }
    read, told = trainer.batches.next_batch()
    trainer = trainer_of("narrow-50-teacher", dense=dense)
    with torch.no_grad():
        scores = trainer.model(read).flatten(0, 1)
        probabilities = trainer.branching.teacher(read).flatten(0, 1).softmax(-1)
    expected = F.cross_entropy(scores, told.flatten())
    divergence = -(probabilities * scores.log_softmax(-1)).sum(-1).mean()
    loss = trainer.step().values["loss"]
    assert loss.item() == pytest.approx((expected + divergence).item() / 2, rel=1e-5)
    for _ in range(3):
        trainer.step()
    assert_same_bits(trainer.branching.teacher.state_dict(), teacher)


def test_operations_are_counted_and_agree_with_the_formula(dense):
    batch, model = CONFIG.data.batch_size, CONFIG.model
    full, look = (getattr(passes_of(model, batch=batch), name) for name in ("step", "forward"))
    plain, taught = trainer_of(), trainer_of("narrow-50-teacher", dense=dense)
    for trainer in (plain, taught):
        trainer.step()
        trainer.step()
    assert plain.branching.meter.operations == 2 * full
    narrow = replace(model, width=taught.settings["model"]["width"])
    assert narrow.width < model.width
    assert taught.branching.meter.operations == 2 * (passes_of(narrow, batch=batch).step + look)


def test_a_branch_counts_the_cut_and_then_its_steps(tmp_path, dense, monkeypatch):
    monkeypatch.setattr(_inference, "_CALL", 0)  # layers so small take one product without gradient
    trainer = trainer_of("branch-50-20", dense=dense)
    stored = sum(p.numel() for p in trainer.model.parameters())
    share = stored / sum(p.numel() for p in trainer_of().model.parameters())
    full = passes_of(CONFIG.model, batch=CONFIG.data.batch_size)
    cut = passes_of(CONFIG.model, batch=CONFIG.data.batch_size, stored=share)
    # Eight batches forward and backward, then forward before and after the cut.
    expected = 8 * (full.measured + full.forward + cut.forward)
    before = trainer.branching.meter.operations
    assert before == pytest.approx(expected, rel=0.05)  # products of the cut itself come on top
    trainer.step()
    one = trainer.branching.meter.operations - before
    assert one == pytest.approx(cut.step + full.forward, rel=0.02)
    train_here(tmp_path, name="branch-50-20", dense=dense)
    (line,) = lines_of(tmp_path, "cut")
    assert line["compute"] == before


def test_after_a_cut_on_the_way_a_step_is_counted_anew():
    trainer = trainer_of("half-50")
    batch, numbers = CONFIG.data.batch_size, sum(p.numel() for p in trainer.model.parameters())
    spent = []
    for _ in range(STEPS // 2 + 2):
        before = trainer.branching.meter.operations
        list(trainer.step().lines)
        spent.append(trainer.branching.meter.operations - before)
    share = sum(p.numel() for p in trainer.model.parameters()) / numbers
    assert set(spent[: STEPS // 2]) == {passes_of(CONFIG.model, batch=batch).step}
    expected = passes_of(CONFIG.model, batch=batch, stored=share).step
    assert spent[-2:] == pytest.approx([expected, expected], rel=0.02)


@pytest.mark.parametrize("name", ["narrow-50-short", "narrow-50-teacher-short"])
def test_a_short_narrow_training_computes_as_much_as_its_branch(tmp_path, dense, name):
    needed = dense if variant_of(name).needs else None
    short = train_here(tmp_path / "short", name=name, dense=needed)
    branch = train_here(tmp_path / "branch", name="branch-50-20", dense=dense)
    assert short["compute"] == pytest.approx(branch["compute"], rel=0.1)
    assert short["steps"] < STEPS


@pytest.mark.slow
def test_variants_of_a_seed_wait_for_the_dense_training_of_that_seed(tmp_path):
    names = (DENSE, "branch-50-20", "narrow-50-teacher-short")
    config = replace(CONFIG, seeds=(0, 1), variants=names)
    folder = RunFolder(tmp_path)
    folder.open(config)
    variants = [one for one in language_variants(config) if one.name in names]
    order = []
    run_all(
        Run("lab.experiments.language.tiny:build_tiny", config, folder),
        variants,
        on_progress=lambda p: order.append((p.variant, p.seed)) if p.stage == "finished" else None,
    )
    assert order == [(name, seed) for seed in (0, 1) for name in (v.name for v in variants)]
    for seed in (0, 1):
        finished = read_network(folder.seed(DENSE, seed).checkpoint).state_dict()
        branch = build_tiny(
            config, variant_of("branch-50-20", dense=folder.seed(DENSE, seed).path), seed
        )
        assert_same_bits(branch.branching.teacher.state_dict(), finished)
    one, other = (
        load_checkpoint(folder.seed("branch-50-20", seed).checkpoint)["training"]["model"]
        for seed in (0, 1)
    )
    assert not torch.equal(one["position"], other["position"])


@pytest.mark.bad_input
def test_a_branch_whose_dense_checkpoint_is_gone_says_so(tmp_path):
    train_here(tmp_path)
    SeedFolder(tmp_path).checkpoint.unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt does not exist"):
        trainer_of("branch-50-5", dense=tmp_path)


def test_the_general_page_has_bits_per_byte(tmp_path):
    config = replace(CONFIG, variants=(DENSE,))
    folder = RunFolder(tmp_path)
    folder.open(config)
    variants = [variant_of(DENSE)]
    recipe = replace(find_recipe("stdlib-gpt"), page="")
    folder.describe(recipe, config, variants=variants, environment={})
    train_here(folder.seed(DENSE, 0).path)
    title, row = closing_table(tmp_path).splitlines()
    assert "test bits  validation bits" in title
    result = read_json(folder.seed(DENSE, 0).result)
    assert f"{result['test_bits']:.3f}" in row


@pytest.mark.bad_input
def test_a_branch_without_a_finished_training_is_refused():
    for name in ("branch-50-20", "narrow-50-teacher"):
        with pytest.raises(ConfigError, match="is built from the finished dense training"):
            trainer_of(name)
