import hashlib
import sysconfig
from pathlib import Path

import pytest
import torch

from orthotrain.data import stdlib_text
from orthotrain.data.stdlib_text import load_stdlib, part_of
from orthotrain.errors import DataError

# Names until every part has some.
NAMES = [f"package{i % 3}/module{i}.py" for i in range(60)]


def library(folder, names=NAMES, size=1500):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((f"# {name}\n" * size)[:size].encode())
    return folder


def files_of(text):
    """The files of a part, by their first line."""
    joined = bytes(text.tolist())
    assert joined.endswith(b"\0")
    return {one.split(b"\n")[0].removeprefix(b"# ").decode() for one in joined[:-1].split(b"\0")}


def parts_of(data):
    return [files_of(part) for part in (data.train, data.validation, data.read_test())]


def test_each_file_lies_whole_in_one_part(tmp_path):
    data = load_stdlib(library(tmp_path))
    parts = parts_of(data)
    assert set.union(*parts) == set(NAMES)
    assert sum(map(len, parts)) == len(NAMES)
    assert data.train.dtype == torch.uint8
    for part, text, files in zip(
        ("train", "validation", "test"), (data.train, data.validation, data.read_test()), parts,
        strict=True,
    ):  # fmt: skip
        assert all(part_of(name) == part for name in files)
        size = data.sizes[part]
        assert (size.files, size.bytes) == (len(files), 1500 * len(files))
        assert len(text) == size.bytes + size.files


def test_an_added_file_moves_no_other_one(tmp_path):
    before = parts_of(load_stdlib(library(tmp_path)))
    added = [f"another/file{i}.py" for i in range(20)]
    after = parts_of(load_stdlib(library(tmp_path, added)))
    for old, new in zip(before, after, strict=True):
        assert old == new - set(added)


def test_about_a_tenth_each_is_held_out():
    parts = [part_of(f"name{i}.py") for i in range(5000)]
    assert parts.count("validation") == pytest.approx(500, rel=0.2)
    assert parts.count("test") == pytest.approx(500, rel=0.2)


def test_tests_packages_and_tables_are_left_out(tmp_path):
    left_out = [
        "test/test_a.py", "package0/tests/a.py", "idlelib/idle_test/a.py", "lib2to3/tests/a.py",
        "site-packages/torch/a.py", "encodings/cp1252.py", "pydoc_data/topics.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py", "config-3.11-x86_64-linux-gnu/a.py",
        "__pycache__/a.py", "html/entities.py", "sitecustomize.py", "package0/a.txt",
    ]  # fmt: skip
    plain = load_stdlib(library(tmp_path))
    data = load_stdlib(library(tmp_path, left_out))
    assert set.union(*parts_of(data)) == set(NAMES)
    assert data.sha256 == plain.sha256


def test_the_hash_is_of_names_and_contents(tmp_path):
    first = load_stdlib(library(tmp_path / "one")).sha256
    assert load_stdlib(library(tmp_path / "two")).sha256 == first
    (tmp_path / "two" / NAMES[0]).write_bytes(b"# other\n" * 200)
    assert load_stdlib(tmp_path / "two").sha256 != first
    moved = tmp_path / "one" / NAMES[0]
    moved.rename(moved.with_name("renamed.py"))
    assert load_stdlib(tmp_path / "one").sha256 != first


def test_the_hash_can_be_made_again(tmp_path):
    root = library(tmp_path)
    digest = hashlib.sha256()
    for name in sorted(NAMES):
        content = (root / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    assert load_stdlib(root).sha256 == digest.hexdigest()


def test_the_library_of_this_python_is_read():
    data = load_stdlib()
    assert data.sizes["train"].bytes > 3 * data.sizes["test"].bytes > 0
    some = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_bytes()
    parts = [bytes(part.numpy()) for part in (data.train, data.validation, data.read_test())]
    assert [some in part for part in parts].count(True) == 1


@pytest.mark.bad_input
def test_a_zipped_library_is_refused(tmp_path, monkeypatch):
    zipped = tmp_path / "python311.zip"
    zipped.write_bytes(b"PK")
    monkeypatch.setattr(stdlib_text.sysconfig, "get_paths", lambda: {"stdlib": str(zipped)})
    with pytest.raises(DataError, match=r"python311\.zip is no folder.*zip file.*its sources"):
        load_stdlib()


@pytest.mark.bad_input
def test_a_stripped_library_is_refused(tmp_path):
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "abc.cpython-311.pyc").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"compiled files only; need the sources"):
        load_stdlib(tmp_path)


@pytest.mark.bad_input
def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no Python files"):
        load_stdlib(tmp_path)


@pytest.mark.bad_input
def test_too_small_a_library_is_refused(tmp_path):
    with pytest.raises(DataError, match="need 4096 bytes in each"):
        load_stdlib(library(tmp_path, NAMES[:3]))
