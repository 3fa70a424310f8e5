"""One file holds a model with its ranks; a failed write leaves the last good one."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from lowrank.nets import Everything, batch, filled, mlp
from orthotrain import files
from orthotrain.errors import CheckpointError
from orthotrain.layers import LowRankLinear
from orthotrain.lowrank import compress, load, restore_structure, save
from orthotrain.lowrank.state_dicts import read_any
from reference.damage import flipped


def low_rank(seed=0, width=12):
    return compress(mlp(width, seed=seed), rank_rtol=0.5, only_if_cheaper=False, bases="frozen")


def test_a_round_trip_keeps_every_bit_and_the_ranks(tmp_path):
    model = compress(filled(Everything()), rank_rtol=0.4, only_if_cheaper=False, bases="frozen")
    path = tmp_path / "model.safetensors"
    save(model, path)
    with safe_open(path, "pt") as file:
        ranks = json.loads(file.metadata()["ranks"])
        names = set(file.keys())
    assert ranks["shared.core"] == model.shared.rank
    assert ranks["encoder.self_attn.in_proj_core"] == model.encoder.self_attn.rank
    assert "tied.1.core" not in names  # stored once
    fresh = filled(Everything(), seed=5)
    assert load(fresh, path) is fresh
    assert fresh.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key
    assert fresh.tied[0].core is fresh.tied[1].core
    x = Everything.batch(0)
    assert torch.equal(fresh(x), model(x))


def test_a_dense_model_and_a_wrapped_one(tmp_path):
    dense = mlp(8)
    save(torch.nn.DataParallel(dense), str(tmp_path / "dense"))
    into = load(torch.optim.swa_utils.AveragedModel(low_rank(width=8)), tmp_path / "dense")
    assert type(into.module[0]) is nn.Linear
    x = batch(0, 3, 8)
    assert torch.equal(into(x), dense(x))


def test_views_and_buffers_are_stored_as_they_are(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).double()
    with torch.no_grad():
        model[0].weight.set_(torch.arange(72.0, dtype=torch.float64).reshape(12, 6)[::2])
    model.register_buffer("same_memory", model[0].weight.detach()[:3])
    save(model, tmp_path / "m")
    fresh = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).double()
    fresh.register_buffer("same_memory", torch.zeros(3, 6, dtype=torch.float64))
    load(fresh, tmp_path / "m")
    for key, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_the_file_can_be_read_by_whom_a_new_file_can(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    save(low_rank(), tmp_path / "model")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "model")]
    assert modes[0] == modes[1]


# --- files that cannot be read --------------------------------------------------------------------


@pytest.mark.bad_input
def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist"):
        load(low_rank(), tmp_path / "nowhere")


@pytest.mark.bad_input
def test_advice_about_a_damaged_file_depends_on_who_wrote_it(tmp_path):
    save(low_rank(), tmp_path / "ours")
    save_file(low_rank().state_dict(), tmp_path / "foreign")
    for name, advice in (("ours", "write it again with orthotrain.save"), ("foreign", "fetching")):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=advice) as error:
            read_any(path)
        assert ("orthotrain.save" in str(error.value)) == (name == "ours")


@pytest.mark.bad_input
@pytest.mark.parametrize("damage", ["cut", "header", "empty", "text"])
def test_a_damaged_file(tmp_path, damage):
    path = tmp_path / "model"
    save(low_rank(), path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-100], "header": b"\xff" * 16 + content[16:], "empty": b"",
            "text": b"not a checkpoint at all",
        }[damage]
    )  # fmt: skip
    model = low_rank(seed=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.bad_input
def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(CheckpointError):
        load(low_rank(), tmp_path)


def test_a_file_of_somebody_else_loads_with_a_note(tmp_path, caplog):
    model = mlp(8)
    for metadata in (None, {"format": "pt"}):
        save_file(model.state_dict(), tmp_path / "other", metadata=metadata)
        caplog.clear()
        into = load(mlp(8, seed=3), tmp_path / "other")
        assert "other has no hash of its content" in caplog.text
        assert all(
            torch.equal(value, model.state_dict()[k]) for k, value in into.named_parameters()
        )
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="needs the model that"):
        load(low_rank(), tmp_path / "other")


def test_a_file_of_the_version_without_a_hash_loads_with_a_note(tmp_path, caplog):
    tied = filled(Everything())
    save(tied, tmp_path / "new")
    assert not caplog.records
    rewrite(tmp_path / "new", tmp_path / "old", format="orthotrain.model.1", **{HASH: None})
    into = load(filled(Everything(), seed=5), tmp_path / "old")
    assert "old has no hash of its content" in caplog.text
    for key, value in tied.state_dict().items():
        assert torch.equal(into.state_dict()[key], value), key


# --- damage ---------------------------------------------------------------------------------------

HASH = "orthotrain.sha256"


def rewrite(source, target, *, tensors=None, **changes):
    """Copy a file with other metadata (None leaves an entry out) or tensors, its hash unchanged."""
    with safe_open(source, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {**file.metadata(), **changes}
    kept = {name: value for name, value in metadata.items() if value is not None}
    save_file(found if tensors is None else tensors(found), target, metadata=kept)


def reading_of(path):
    """What loads it, and what ``orthotrain inspect`` reads it with."""
    return (lambda: load(mlp(6, depth=2), path)), (lambda: read_any(path))


@pytest.mark.bad_input
def test_flipped_bits_are_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    save(low_rank(width=6), path)
    content = path.read_bytes()
    random = torch.Generator().manual_seed(0)
    header = 8 * (8 + int.from_bytes(content[:8], "little"))
    # In the header a name, a dtype or a place may turn into another one that is valid.
    places = [
        *torch.randint(header, (120,), generator=random).tolist(),
        *torch.randint(header, 8 * len(content), (20,), generator=random).tolist(),
        8 * len(content) - 1,
    ]
    for place in places:
        path.write_bytes(flipped(content, place))
        with pytest.raises(CheckpointError):
            read_any(path)
    for place in places[-3:]:
        path.write_bytes(flipped(content, place))
        model = low_rank(width=6, seed=3)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match="does not match the hash"):
            load(model, path)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name: t.to(torch.float16) for name, t in tensors.items()},
        lambda tensors: {name: t.mT.contiguous() if t.ndim > 1 else t for name, t in tensors.items()},  # noqa: E501
        lambda tensors: {name: t.flatten() for name, t in tensors.items()},
        lambda tensors: dict(zip(tensors, reversed(tensors.values()), strict=True)),
        lambda tensors: dict(list(tensors.items())[1:]),
        lambda tensors: {**tensors, "more": torch.zeros(1)},
    ],
    ids=["dtype", "transposed", "flat", "exchanged", "missing", "more"],
)  # fmt: skip
def test_other_tensors_under_the_same_hash_are_refused(tmp_path, change):
    save(mlp(6), tmp_path / "good")
    rewrite(tmp_path / "good", tmp_path / "bad", tensors=change)
    with pytest.raises(CheckpointError, match="does not match the hash"):
        load(mlp(6), tmp_path / "bad")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ranks": "{}"}, "does not match the hash"),
        ({HASH: None}, "its metadata has no orthotrain.sha256"),
        ({HASH: "0" * 64}, "does not match the hash"),
        # Names of entries are damaged, so that the file seems to be of another program.
        ({"format": None, "formaz": "orthotrain.model.2", HASH: None}, "has no orthotrain.sha256"),
        ({"format": None, "orthotrain.shb256": "0" * 64, HASH: None}, "has no orthotrain.sha256"),
        ({"format": "orthotrain.model.9", HASH: None}, "has the format 'orthotrain.model.9'"),
    ],
)
def test_other_metadata_is_refused(tmp_path, changes, named):
    save(low_rank(), tmp_path / "good")
    rewrite(tmp_path / "good", tmp_path / "bad.safetensors", **changes)
    for read in reading_of(tmp_path / "bad.safetensors"):
        with pytest.raises(CheckpointError, match=named):
            read()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ranks": None}, "'ranks': it is missing"),
        ({"aliases": None}, "'aliases': it is missing"),
        ({"ranks": "{"}, "'ranks': it is no JSON"),
        ({"aliases": "[" * 100_000}, "'aliases': it is no JSON"),
        ({"aliases": "[]"}, "'aliases': it is a list"),
        ({"ranks": "null"}, "'ranks': it is a NoneType"),
        ({"ranks": "{}"}, "'ranks': they are not those"),
        ({"ranks": '{"0.core": 1}'}, "'ranks': they are not those"),
        ({"aliases": '{"more": "nowhere"}'}, "'more' cannot stand for 'nowhere'"),
        ({"aliases": '{"more": ["0.core"]}'}, "'more' cannot stand for"),
        ({"aliases": '{"0.core": "0.bias"}'}, "'0.core' cannot stand for '0.bias'"),
    ],
)
def test_malformed_metadata_is_refused_by_name(tmp_path, changes, named):
    """In a file of the version without a hash: with one, any change is damage."""
    save(low_rank(), tmp_path / "good")
    old = {"format": "orthotrain.model.1", HASH: None, **changes}
    rewrite(tmp_path / "good", tmp_path / "bad.safetensors", **old)
    for read in reading_of(tmp_path / "bad.safetensors"):
        with pytest.raises(CheckpointError, match=named):
            read()


def test_every_dtype_and_shape_comes_back_as_it_was(tmp_path):
    dtypes = (torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
    model = nn.Module()
    for dtype in dtypes:
        for shape in ((), (0,), (3, 2)):
            name = f"b{len(dict(model.named_buffers()))}"
            model.register_buffer(name, torch.ones(shape).to(dtype))
    save(model, tmp_path / "m")
    into = nn.Module()
    for name, value in model.named_buffers():
        into.register_buffer(name, torch.zeros_like(value))
    load(into, tmp_path / "m")
    assert all(torch.equal(into.get_buffer(name), value) for name, value in model.named_buffers())


@pytest.mark.bad_input
@pytest.mark.parametrize("other", [mlp(10), mlp(12, depth=2), mlp(12, depth=4)])
def test_another_architecture(tmp_path, other):
    save(low_rank(), tmp_path / "model")
    with pytest.raises(CheckpointError, match="needs the model that"):
        load(other, tmp_path / "model")


@pytest.mark.bad_input
def test_another_architecture_that_differs_outside_the_factors(tmp_path):
    save(nn.Sequential(*low_rank(), nn.LayerNorm(12)), tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"5\.weight"):
        load(low_rank(), tmp_path / "model")


# --- files that cannot be written -----------------------------------------------------------------


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.bad_input
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_good_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "model"
    good = low_rank()
    save(good, path)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, failing, full_disk)
        with pytest.raises(CheckpointError, match=r"No space left.*unchanged"):
            save(low_rank(seed=4), path)
    assert os.listdir(tmp_path) == ["model"]
    x = batch(0, 3, 12)
    assert torch.equal(load(mlp(12, seed=2), path)(x), good(x))


@pytest.mark.bad_input
@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_really_full_device(tmp_path, monkeypatch):
    path = tmp_path / "model"
    save(low_rank(), path)
    before = path.read_bytes()
    opened = files.Path.open  # the temporary file is on a device without room
    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "open", lambda *_: opened(files.Path("/dev/full"), "wb"))
        with pytest.raises(CheckpointError, match="No space left"):
            save(low_rank(seed=4), path)
    assert path.read_bytes() == before


@pytest.mark.bad_input
def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="no regular file"):
        save(low_rank(), pipe)
    assert pipe.is_fifo()


@pytest.mark.bad_input
def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(CheckpointError, match="needs to write"):
        save(low_rank(), tmp_path / "no" / "model")


@pytest.mark.bad_input
def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(tmp_path / "file", b"content")
    assert os.listdir(tmp_path) == []


@pytest.mark.bad_input
def test_extra_state_is_refused(tmp_path):
    class WithExtra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(CheckpointError, match="extra state"):
        save(nn.Sequential(WithExtra(3, 3)), tmp_path / "model")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("buffer", "words"),
    [
        (torch.ones(3, device="meta"), "meta"),
        (torch.eye(3).to_sparse(), "sparse_coo"),
        (torch.ones(3, dtype=torch.complex128), "complex128"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, buffer, words):
    model = nn.Linear(3, 3)
    model.register_buffer("extra", buffer)
    with pytest.raises(CheckpointError, match=f"save needs dense .*got extra.*{words}"):
        save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_weights_that_were_never_loaded_are_seen(tmp_path):
    """Shaped without values, a model gives NaN, not what happens to lie in memory."""
    frozen = compress(mlp(12), energy=0.5, bases="frozen", only_if_cheaper=False)
    for source, model in ((low_rank(), mlp(12)), (frozen, mlp(12)), (mlp(12), low_rank())):
        restore_structure(model, source.state_dict())
        assert model(batch(0, 2, 12)).isnan().all()
        model.load_state_dict(source.state_dict())
        assert torch.equal(model(batch(0, 2, 12)), source(batch(0, 2, 12)))


@pytest.mark.bad_input
def test_a_name_with_a_null_character_is_refused():
    with pytest.raises(CheckpointError, match="null character"):
        save(nn.Linear(3, 3), "a\0b")
    with pytest.raises(CheckpointError, match="null"):
        load(nn.Linear(3, 3), "a\0b")


def test_type_of_a_loaded_layer(tmp_path):
    save(low_rank(), tmp_path / "model")
    assert type(load(mlp(12), tmp_path / "model")[0]) is LowRankLinear
