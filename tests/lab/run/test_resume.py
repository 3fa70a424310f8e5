"""A training goes on from its own checkpoint, whole, or names what is wrong with it."""

import math
import shutil
from dataclasses import replace

import pytest
import torch

from lab.run.tiny import KillAt, Killed, tiny_data, train_here
from lab.run.toy import ToyRun, ToyTrainer, ToyVariant
from orthotrain.data.lazy import ImageArray
from orthotrain.errors import CheckpointError, StateError
from orthotrain.lab.run.checkpoint import load_checkpoint, save_checkpoint
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import SeedFolder, training_settings
from orthotrain.lab.run.resume import fingerprint

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
