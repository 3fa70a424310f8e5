"""A training goes on from its own checkpoint, whole, or names what is wrong with it."""

import math
import shutil
from dataclasses import replace

import pytest
import torch

from lab.run.tiny import (
    KillAt,
    Killed,
    assert_same_training,
    tiny_data,
    train_here,
    without_times,
)
from lab.run.toy import ToyRun, ToyTrainer, ToyVariant
from orthotrain.data.lazy import ImageArray
from orthotrain.errors import CheckpointError, NonFiniteError, OrthotrainWarning, StateError
from orthotrain.lab.run.checkpoint import load_checkpoint, save_checkpoint
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import SeedFolder, training_settings
from orthotrain.lab.run.resume import fingerprint
from orthotrain.lab.run.trainer import Cadence, Step

PLAIN = ToyVariant("plain", "plain", "")
CONFIG = ToyRun(recipe="toy", scale="smoke")


def train_toy(path, *, variant=PLAIN, seed=0, config=CONFIG, **options):
    folder = SeedFolder(path, training_settings(config))
    trainer = ToyTrainer(1.0 + seed, config.rate)
    return train(trainer, variant=variant, seed=seed, folder=folder, **options)


def stopped_toy(path):
    """The checkpoint of step 3 and metrics of a training that was killed."""
    with pytest.raises(Killed):
        train_toy(path, on_progress=KillAt(4))
    assert load_checkpoint(path / "checkpoint.pt")["step"] == 3
    return path / "checkpoint.pt"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"variant": replace(PLAIN, name="after")}, "variant is plain there and after here"),
        ({"config": replace(CONFIG, recipe="more")}, r"settings\.recipe is toy there and more"),
        ({"config": replace(CONFIG, rate=0.2)}, r"settings\.rate is 0\.1 there and 0\.2 here"),
    ],
    ids=["seed", "variant", "recipe", "settings"],
)
def test_the_checkpoint_of_another_training_is_refused_by_name(tmp_path, other, named):
    path = stopped_toy(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=f"another training: {named}"):
        train_toy(tmp_path, **other)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert load_checkpoint(path)["step"] == 3


def test_which_other_trainings_a_run_has_is_no_part_of_the_identity(tmp_path):
    stopped_toy(tmp_path)
    train_toy(tmp_path, config=replace(CONFIG, seeds=(0, 1, 2), variants=("plain",)))


@pytest.mark.bad_input
@pytest.mark.parametrize("what", ["labels", "images", "validation"])
def test_other_data_of_the_same_size_is_refused(tmp_path, what):
    with pytest.raises(Killed):
        train_here(tmp_path, on_progress=KillAt(6))
    data = tiny_data()
    if what == "labels":
        data.train.labels[[0, 1]] = data.train.labels[[1, 0]]
    elif what == "images":
        data.train.images[-1, 0, 7, 7] += 1
    else:
        data.validation.labels[0] = 2
    with pytest.raises(CheckpointError, match="another training: data is"):
        train_here(tmp_path, data=data)
    train_here(tmp_path)


def changed(path, **changes):
    saved = {**load_checkpoint(path), **changes}
    save_checkpoint(path, {name: value for name, value in saved.items() if value is not None})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "changes",
    [
        {"training": None},
        {"training": [1]},
        {"training": {}},
        {"training": {"generator": {}, "average": {}, "optimizers": [], "step": 3}},
        {"seconds": None},
        {"seconds": math.nan},
        {"seconds": -1.0},
        {"metrics_size": None},
        {"metrics_size": 1.5},
        {"metrics_size": -1},
        {"step": None},
        {"step": 9},
        {"step": -1},
        {"step": True},
        {"step": 2.0},
        {"step": 4},
        {"identity": None},
        {"identity": 3},
        {"identity": {}},
    ],
    ids=str,
)
def test_an_incomplete_or_impossible_checkpoint_is_refused(tmp_path, changes):
    path = stopped_toy(tmp_path)
    changed(path, **changes)
    with pytest.raises(CheckpointError, match=str(path)):
        train_toy(tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize("part", ["model", "optimizer", "handle", "step"])
@pytest.mark.parametrize("value", [None, 3, {}, {"weight": torch.zeros(2, 2)}], ids=str)
def test_a_part_of_another_family_is_refused(tmp_path, part, value):
    path = stopped_toy(tmp_path)
    training = load_checkpoint(path)["training"]
    if part == "step" and value == 3:
        value = 12
    training[part] = value
    changed(path, training=training)
    with pytest.raises((CheckpointError, StateError)):
        train_toy(tmp_path)


def test_a_checkpoint_of_an_earlier_version_goes_on_with_a_note(tmp_path, caplog):
    whole, old = tmp_path / "whole", tmp_path / "old"
    expected = train_toy(whole)
    saved = load_checkpoint(stopped_toy(old))
    for name in ("identity", "step", "schema"):
        del saved[name]
    torch.save({**saved, "schema": 1}, old / "checkpoint.pt")
    assert train_toy(old)["final"] == expected["final"]
    assert "taken as the checkpoint of plain with seed 0" in caplog.text


def test_the_fingerprint_of_images_that_are_decoded_on_demand():
    class Encoded:
        shape, ndim, dtype = torch.Size((200, 1, 2, 2)), 4, torch.uint8
        device = torch.device("cpu")

        def __init__(self, value=0):
            self.images = torch.zeros(self.shape, dtype=self.dtype)
            self.images[-1] = value

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            assert len(index) == 64
            return self.images[index]

        def to(self, device):
            return self

    assert isinstance(Encoded(), ImageArray)
    assert fingerprint(Encoded()) == fingerprint(Encoded())
    assert fingerprint(Encoded()) != fingerprint(Encoded(1))
    labels = torch.tensor([0, 1])
    assert fingerprint(labels, labels.flip(0)) != fingerprint(labels.flip(0), labels)
    assert fingerprint(labels) != fingerprint(labels.int())


def test_a_copied_run_folder_goes_on(tmp_path):
    stopped_toy(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert train_toy(tmp_path / "there")["final"] == train_toy(tmp_path / "here")["final"]


# --- the last two ---------------------------------------------------------------------------------


def test_the_last_two_checkpoints_are_kept(tmp_path):
    train_toy(tmp_path)
    folder = SeedFolder(tmp_path)
    steps = [load_checkpoint(p)["step"] for p in (folder.checkpoint, folder.previous_checkpoint)]
    assert steps == [8, 6]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    whole, folder = SeedFolder(tmp_path / "whole"), SeedFolder(tmp_path / "damaged")
    expected = train_toy(whole.path)
    with pytest.raises(Killed):
        train_toy(folder.path, on_progress=KillAt(8))
    content = bytearray(folder.checkpoint.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "missing":  # killed between the two renames
        folder.checkpoint.unlink()
    else:
        folder.checkpoint.write_bytes(content if damage == "flip" else content[:-100])
    seen = []
    with pytest.warns(
        OrthotrainWarning, match=r"checkpoint\.pt .*checkpoint\.previous\.pt, at step 3"
    ):
        result = train_toy(folder.path, on_progress=seen.append)
    assert seen[0].step == 3
    assert without_times([result]) == without_times([expected])
    assert_same_training(folder, whole)
    # The damaged one did not take the place of the one before.
    assert load_checkpoint(folder.previous_checkpoint)["step"] == 6
    assert (folder.path / "checkpoint.damaged.pt").exists() == (damage != "missing")


@pytest.mark.bad_input
def test_two_damaged_checkpoints_are_refused_and_left(tmp_path):
    train_toy(tmp_path)
    folder = SeedFolder(tmp_path)
    folder.result.unlink()
    for path in (folder.checkpoint, folder.previous_checkpoint):
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"checkpoint\.previous\.pt is damaged"):
        train_toy(tmp_path)
    assert folder.checkpoint.read_bytes() == folder.previous_checkpoint.read_bytes() == b"nothing"


@pytest.mark.bad_input
def test_the_checkpoint_of_another_training_does_not_fall_back(tmp_path):
    train_toy(tmp_path)
    SeedFolder(tmp_path).result.unlink()
    with pytest.raises(CheckpointError, match="seed is 0 there and 1 here"):
        train_toy(tmp_path, seed=1)
    assert load_checkpoint(SeedFolder(tmp_path).checkpoint)["step"] == 8


# --- what is not finite ---------------------------------------------------------------------------


class Spoilt(ToyTrainer):
    """Does something at step 5, after its step, and tells a loss that is finite."""

    def __init__(self, spoil):
        super().__init__(1.0, 0.1)
        self.spoil = spoil

    def step(self):
        super().step()
        if self.steps == 5:
            self.spoil(self)
        return Step({"loss": torch.tensor(1.0)})


def nan_weight(trainer):
    torch.nn.init.constant_(trainer.model.weight, torch.nan)


def infinite_momentum(trainer):
    (state,) = trainer.optimizer.state.values()
    state["momentum_buffer"].fill_(torch.inf)
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    trainer.optimizer.step = lambda: None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (nan_weight, "weight of the model"),
        (infinite_momentum, r"state\.0\.momentum_buffer of the optimizer"),
    ],
)
def test_what_is_not_finite_never_replaces_a_checkpoint(tmp_path, spoil, named):
    folder = SeedFolder(tmp_path)
    with pytest.raises(NonFiniteError, match=f"{named} in .* is not finite at step 6"):
        train(Spoilt(spoil), variant=PLAIN, seed=0, folder=folder)
    assert load_checkpoint(folder.checkpoint)["step"] == 3
    assert not folder.result.exists()


@pytest.mark.bad_input
def test_a_loss_that_is_not_logged_is_looked_at_before_a_checkpoint(tmp_path):
    class Lossy(Spoilt):
        cadence = Cadence(1000, 1000, 3, sizes=False)

        def step(self):
            super().step()
            return Step({"loss": torch.tensor(math.nan if self.steps > 4 else 1.0), "lr": 0.1})

    folder = SeedFolder(tmp_path)
    with pytest.raises(
        NonFiniteError, match=r"the loss in .* is nan at step 6, learning rate 0\.1"
    ):
        train(Lossy(lambda _: None), variant=PLAIN, seed=0, folder=folder)
    assert load_checkpoint(folder.checkpoint)["step"] == 3


@pytest.mark.bad_input
def test_a_loss_of_an_evaluation_that_is_not_finite_ends_the_run(tmp_path):
    class Looked(ToyTrainer):
        def evaluate(self, folder):
            return {"split": "validation", "loss": math.inf, "score": math.nan}

    folder = SeedFolder(tmp_path)
    with pytest.raises(NonFiniteError, match=r"the loss in .* is inf at step 4"):
        train(Looked(1.0, 0.1), variant=PLAIN, seed=0, folder=folder)
    assert load_checkpoint(folder.checkpoint)["step"] == 3


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["validation_loss", "test_bits", "loss"])
def test_a_result_with_a_loss_that_is_not_finite_is_not_written(tmp_path, name):
    class Ended(ToyTrainer):
        def result(self, ending):
            return {"score": math.nan, "test_loss": None, name: math.nan}

    folder = SeedFolder(tmp_path)
    with pytest.raises(
        NonFiniteError, match=f"the {name.replace('_', ' ')} in .* is nan at step 8"
    ):
        train(Ended(1.0, 0.1), variant=PLAIN, seed=0, folder=folder)
    assert not folder.result.exists()


@pytest.mark.bad_input
def test_a_finished_state_that_is_not_finite_gives_no_result(tmp_path):
    """A checkpoint of the last step that an earlier version wrote, which did not look."""
    train_toy(tmp_path)
    folder = SeedFolder(tmp_path)
    folder.result.unlink()
    saved = load_checkpoint(folder.checkpoint)
    saved["training"]["model"]["weight"].fill_(torch.nan)
    save_checkpoint(folder.checkpoint, saved)
    with pytest.raises(NonFiniteError, match="weight of the model"):
        train_toy(tmp_path)
    assert not folder.result.exists()
