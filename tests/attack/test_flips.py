"""Damage to saved files is noticed, wherever it is: flipped bits, zeros, cuts, bytes too many."""

import random
from functools import partial

import pytest
import torch
from torch import nn

import orthotrain
from attack.counts import Counts, times
from lab.run.tiny import KillAt, Killed, train_here
from orthotrain.errors import CheckpointError
from orthotrain.lab.run.checkpoint import load_checkpoint, save_checkpoint
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.restore import read_network
from orthotrain.lowrank.state_dicts import read_any
from reference.damage import flipped

CEILINGS = {"other values": 0, "raw": 0}


def network():
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape) + i)
    return orthotrain.compress(model, energy=0.9, only_if_cheaper=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files by kind, and how each is read."""
    folder = tmp_path_factory.mktemp("saved")
    model = network()
    orthotrain.save(model, folder / "model.safetensors")
    state = {"weight": torch.arange(600.0).reshape(20, 30), "step": 3, "names": ["a", "b"]}
    save_checkpoint(folder / "checkpoint.pt", state)
    with pytest.raises(Killed):
        train_here(folder / "run", on_progress=KillAt(9))
    return {
        "model": (folder / "model.safetensors", partial(orthotrain.load, model)),
        "weights of a model": (folder / "model.safetensors", read_any),
        "checkpoint": (folder / "checkpoint.pt", load_checkpoint),
        "checkpoint of a run": (SeedFolder(folder / "run").checkpoint, load_checkpoint),
        "network of a run": (SeedFolder(folder / "run").checkpoint, read_network),
    }


def flip(content, chance):
    return flipped(content, chance.randrange(8 * len(content)))


def flip_at_the_ends(content, chance):
    """In the header of a safetensors file; in the directory of an archive, and its digest."""
    place = chance.randrange(8 * min(600, len(content)))
    return flipped(content, place if chance.random() < 0.5 else 8 * len(content) - 1 - place)


def zeros(content, chance):
    start, size = chance.randrange(len(content)), chance.choice([1, 16, 512, 4096])
    stop = min(len(content), start + size)
    return content[:start] + bytes(stop - start) + content[stop:]


def other_bytes(content, chance):
    start = chance.randrange(len(content))
    return content[:start] + chance.randbytes(8) + content[start + 8 :]


def cut(content, chance):
    return content[: chance.randrange(len(content))]


def longer(content, chance):
    return content + chance.randbytes(chance.choice([1, 100, 5000]))


def piece_missing(content, chance):
    start = chance.randrange(len(content))
    return content[:start] + content[start + chance.choice([1, 64, 4096]) :]


def pieces_swapped(content, chance):
    one, other = sorted(chance.randrange(len(content) - 64) for _ in range(2))
    parts = content[one : one + 64], content[other : other + 64]
    if one + 64 > other:
        return content
    middle = content[one + 64 : other]
    return content[:one] + parts[1] + middle + parts[0] + content[other + 64 :]


DAMAGES = (
    flip, flip_at_the_ends, zeros, other_bytes, cut, longer, piece_missing, pieces_swapped,
)  # fmt: skip


def damage(saved, folder, *, number, seed):
    """Every kind of file is damaged in every way so many times, and read."""
    chance = random.Random(seed)
    for name, (source, read) in saved.items():
        content = source.read_bytes()
        counts = Counts(f"damage to files, {name}", **CEILINGS)
        path = folder / source.name
        for kind in DAMAGES:
            for i in range(number):
                damaged = kind(content, chance)
                if damaged == content:
                    continue
                path.write_bytes(damaged)
                counts.add(_outcome(partial(read, path)), f"{kind.__name__} {i}, seed {seed}")
        counts.check(least=5 * number)


def _outcome(read):
    try:
        read()
    except CheckpointError:
        return "noticed"
    except Exception as error:
        print(f"raw: {type(error).__name__}: {error}")  # noqa: T201
        return "raw"
    return "other values"


def test_damage_is_noticed(tmp_path, saved):
    damage(saved, tmp_path, number=12, seed=6)


@pytest.mark.slow
def test_much_damage_is_noticed(tmp_path, saved):
    damage(saved, tmp_path, number=times(60, 300), seed=7)


def lines_damaged(folder, *, number, seed):
    """Lines that were recorded before a checkpoint, damaged; the training goes on from it."""
    counts = Counts("damage to files, lines before a checkpoint", **CEILINGS)
    with pytest.raises(Killed):
        train_here(folder, on_progress=KillAt(9))
    place = SeedFolder(folder)
    content, chance = place.metrics.read_bytes(), random.Random(seed)
    saved = load_checkpoint(place.checkpoint)["metrics_size"]
    for i in range(number):
        kept = content[:saved]
        damaged = (flip, zeros, other_bytes, cut)[i % 4](kept, chance)
        if damaged != kept:
            place.metrics.write_bytes(damaged)
            counts.add(_outcome(partial(train_here, folder)), f"{i}, seed {seed}")
            assert place.metrics.read_bytes() == damaged
    counts.check(least=number // 2)
    place.metrics.write_bytes(content)
    assert train_here(folder)["steps"] == 16


def test_damage_to_lines_before_a_checkpoint_is_noticed(tmp_path):
    lines_damaged(tmp_path, number=8, seed=8)


@pytest.mark.slow
def test_much_damage_to_lines_before_a_checkpoint_is_noticed(tmp_path):
    lines_damaged(tmp_path, number=times(40, 200), seed=9)
