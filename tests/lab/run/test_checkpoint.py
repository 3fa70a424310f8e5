import zipfile

import pytest
import torch

from orthotrain.errors import CheckpointError
from orthotrain.lab.run import record
from orthotrain.lab.run.checkpoint import is_run_checkpoint, load_checkpoint, save_checkpoint
from reference.damage import flipped


def state_of(value):
    return {"weight": torch.full((64, 64), float(value)), "step": value, "names": ["a", "b"]}


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state_of(3))
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["weight"], state_of(3)["weight"])
    assert (loaded["step"], loaded["names"]) == (3, ["a", "b"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.bad_input
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch, call):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state_of(1))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.os, call, full)
    with pytest.raises(CheckpointError, match=r"No space left.*intact.*same command again"):
        save_checkpoint(path, state_of(2))
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.bad_input
@pytest.mark.parametrize("keep", [0, 3, 0.3, 0.7, 0.999])
def test_a_truncated_checkpoint_is_refused_with_advice(tmp_path, keep):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state_of(1))
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(CheckpointError, match="move it away and run the same command"):
        load_checkpoint(path)


@pytest.mark.bad_input
def test_flipped_bits_are_noticed_wherever_they_are(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state_of(1))
    content = path.read_bytes()
    directory = content.rindex(b"PK\x05\x06") - 400  # of the archive, its end and the digest
    random = torch.Generator().manual_seed(0)
    places = [
        *torch.randint(8 * directory, (40,), generator=random).tolist(),
        *torch.randint(8 * directory, 8 * len(content), (150,), generator=random).tolist(),
        8 * len(content) - 1,
    ]
    for place in places:
        path.write_bytes(flipped(content, place))
        with pytest.raises(CheckpointError, match="is damaged"):
            load_checkpoint(path)


def test_a_checkpoint_is_a_file_that_torch_reads(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, state_of(3))
    assert torch.load(path, weights_only=True)["step"] == 3
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"orthotrain-sha256:")


def test_a_checkpoint_of_the_version_without_a_digest_is_read_with_a_note(tmp_path, caplog):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": "orthotrain-checkpoint", "schema": 1, **state_of(2)}, path)
    assert load_checkpoint(path)["step"] == 2
    assert "is of an earlier version, without a digest" in caplog.text


@pytest.mark.bad_input
def test_a_checkpoint_that_lost_its_digest_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": "orthotrain-checkpoint", "schema": 2, **state_of(2)}, path)
    with pytest.raises(CheckpointError, match="digest at its end is missing"):
        load_checkpoint(path)


@pytest.mark.bad_input
def test_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="was not written by orthotrain train"):
        load_checkpoint(path)
    save_checkpoint(path, {"schema": 99})
    with pytest.raises(CheckpointError, match="schema 99"):
        load_checkpoint(path)


@pytest.mark.bad_input
def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (pytest.fail, ("the checkpoint ran code",))

    path = tmp_path / "checkpoint.pt"
    torch.save({"format": "orthotrain-checkpoint", "schema": 1, "x": Harmful()}, path)
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
        load_checkpoint(path)


def test_a_file_tells_whether_it_is_the_checkpoint_of_a_run(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 3})
    assert is_run_checkpoint(path)
    content = path.read_bytes()
    path.write_bytes(b"damaged" + content[100:])  # by the digest at its end
    assert is_run_checkpoint(path)
    torch.save({"format": "orthotrain-checkpoint", "schema": 1}, path)  # of the version without one
    assert is_run_checkpoint(path)
    for foreign in ({"model": {"weight": torch.ones(2)}}, [1]):
        torch.save(foreign, path)
        assert not is_run_checkpoint(path)
    path.write_bytes(b"")
    assert not any(map(is_run_checkpoint, (path, tmp_path, tmp_path / "nowhere")))
