"""What is said about a file that cannot be written names the cause that the system gave."""

import errno

import pytest
from torch import nn

import orthotrain
from lab.run.tiny import CONFIG
from orthotrain import files
from orthotrain.errors import OrthotrainError
from orthotrain.files import remedy, write_atomically
from orthotrain.lab.report.write import _write_all
from orthotrain.lab.run.checkpoint import save_checkpoint
from orthotrain.lab.run.record import RunFolder, write_json

CAUSES = {
    errno.ENOENT: "make the folder",
    errno.EACCES: "get the permission",
    errno.ENOSPC: "free some space",
    errno.EROFS: "can only be read",
    errno.ENAMETOOLONG: "a shorter name",
    errno.EISDIR: "a folder has this name",
    errno.EFBIG: "may not grow so large",
    errno.EIO: "reports a fault",
    errno.EXDEV: "mend that",
}

DOORS = {
    "save": lambda path: orthotrain.save(nn.Linear(2, 2), path),
    "checkpoint": lambda path: save_checkpoint(path, {"step": 1}),
    "result": lambda path: write_json(path, {"a": 1}),
    "report": lambda path: _write_all(path.parent, {path.name: b"page"}),
    "run folder": lambda path: RunFolder(path).open(CONFIG),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("number", CAUSES)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_names_its_cause_and_no_other(tmp_path, monkeypatch, door, number):
    def fails(*arguments):
        raise OSError(number, "what the system says")

    monkeypatch.setattr(files.os, "fsync", fails)
    with pytest.raises(OrthotrainError, match="what the system says") as raised:
        DOORS[door](tmp_path / "file")
    said = str(raised.value)
    assert [text for text in CAUSES.values() if text in said] == [CAUSES[number]]


@pytest.mark.bad_input
@pytest.mark.parametrize("door", sorted(set(DOORS) - {"run folder", "report"}))
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing/file", "make the folder"),
        ("plain/file", "a file stands where"),
        ("folder", "a folder has this name"),
        ("x" * 300, "a shorter name"),
    ],
)
def test_what_a_path_can_be_is_told_by_its_own_cause(tmp_path, door, name, said):
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OrthotrainError, match=said):
        DOORS[door](tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "plain"]


def test_a_name_too_long_for_its_temporary_file_is_still_a_name(tmp_path):
    """The longest name that a file system takes leaves no room for one beside it."""
    path = tmp_path / ("x" * 250)
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_an_error_without_a_number_has_a_remedy():
    assert remedy(OSError("only a text")) == "mend that, or choose another place"
