"""Any file in: safetensors, formats of torch, checkpoints, folders; no code is run."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from orthotrain.errors import CheckpointError, ConfigError
from orthotrain.lowrank.state_dicts import read_any


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (8, 6), "0.bias": (8,), "1.weight": (4, 8)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def same(tensors, others) -> bool:
    return tensors.keys() == others.keys() and all(
        torch.equal(tensors[n], others[n]) for n in others
    )


class Settings(dict):
    """Stands for Lightning's mapping of hyper parameters, under its name."""


Settings.__module__, Settings.__qualname__ = "lightning.fabric.utilities.data", "AttributeDict"


class Code:
    """What runs code where a pickle is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_both_formats_of_torch(tmp_path, zipped):
    path = tmp_path / "model.any"
    torch.save(weights(), path, _use_new_zipfile_serialization=zipped)
    found = read_any(path)
    assert same(found.tensors, weights())
    assert (found.format, found.entry, found.files) == (
        "torch zip" if zipped else "torch legacy", "", (path,),
    )  # fmt: skip


def test_safetensors_by_their_content_whatever_the_name(tmp_path):
    save_file(weights(), tmp_path / "model")
    assert same(read_any(str(tmp_path / "model")).tensors, weights())
    names = {f"h.{i}.weight": torch.ones(2, 2) for i in (10, 9, 2)}
    save_file(names, tmp_path / "m.safetensors")
    assert list(read_any(tmp_path / "m.safetensors").tensors) == [
        f"h.{i}.weight" for i in (2, 9, 10)
    ]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_of_lightning_with_settings(tmp_path, zipped, monkeypatch):
    # pickle looks the class up where it says it is; nobody has it when the file is read.
    lightning = type(os)("lightning.fabric.utilities.data")
    lightning.AttributeDict = Settings
    for name in ("lightning", "lightning.fabric", "lightning.fabric.utilities", lightning.__name__):
        monkeypatch.setitem(__import__("sys").modules, name, lightning)
    checkpoint = {
        "epoch": 3,
        "state_dict": {f"model.{n}": t for n, t in weights().items()},
        "hyper_parameters": Settings(lr=0.1, folder=pathlib.PurePosixPath("/data")),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
        "callbacks": {"ModelCheckpoint": {"best": torch.tensor(1.0)}},
    }
    torch.save(checkpoint, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    found = read_any(tmp_path / "a.ckpt")
    assert (found.entry, found.other_entries, dict(found.without)) == ("state_dict", (), {})
    assert same(found.tensors, {f"model.{n}": t for n, t in weights().items()})


def test_a_checkpoint_of_timm_and_its_average(tmp_path):
    path = tmp_path / "last.pth.tar"
    args = argparse.Namespace(model="vit", folder=pathlib.Path("/data"))
    content = {
        "arch": "vit", "epoch": 1, "args": args, "metric": np.float64(71.5),
        "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"params": [0]}]},
        "state_dict": weights(), "state_dict_ema": weights(1), "amp_scaler": {"scale": 1.0},
    }  # fmt: skip
    torch.save(content, path)
    found = read_any(path)
    assert same(found.tensors, weights())
    assert found.other_entries == ("state_dict_ema",)
    assert "not read: state_dict_ema" in str(found)
    assert same(read_any(path, key="state_dict_ema").tensors, weights(1))
    with pytest.raises(ConfigError, match=r"is no entry with tensors .*there is state_d"):
        read_any(path, key="state_dict_em")


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        ({"model": weights(), "rng_state": torch.get_rng_state()}, "model"),
        ({"model": {"module": weights()}}, "model.module"),
        ({"run": {"weights": weights()}, "step": 3}, "run.weights"),
        ({"anything": weights()}, "anything"),
        ({"net": weights(), "optimizer_state": {"m": torch.ones(2, 2)}}, "net"),
        ({"x": weights(), "adam": {"param_groups": [], "state": {0: torch.ones(2)}}}, "x"),
    ],
)
def test_weights_are_found_where_programs_keep_them(tmp_path, content, entry):
    torch.save(content, tmp_path / "m.pt")
    found = read_any(tmp_path / "m.pt")
    assert found.entry == entry
    assert same(found.tensors, weights())


def test_parts_side_by_side_are_one_model(tmp_path):
    torch.save({"encoder": weights(), "decoder": weights(1), "epoch": 1}, tmp_path / "m.pt")
    found = read_any(tmp_path / "m.pt")
    assert found.entry == ""
    assert same(
        found.tensors,
        {f"encoder.{n}": t for n, t in weights().items()}
        | {f"decoder.{n}": t for n, t in weights(1).items()},
    )


def test_what_is_no_tensor_is_named(tmp_path):
    torch.save({"state_dict": {**weights(), "0._packed": (1, 2)}}, tmp_path / "m.pt")
    assert read_any(tmp_path / "m.pt").without == {"0._packed": "tuple"}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_folder_with_an_index_over_files(tmp_path, kind):
    all_of_it = weights()
    parts = [dict(list(all_of_it.items())[:2]), dict(list(all_of_it.items())[2:])]
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = [f"{stem}-0000{i}-of-00002.{kind}" for i in (1, 2)]
    for part, name in zip(parts, names, strict=True):
        write = save_file if kind == "safetensors" else torch.save
        write(part, tmp_path / name)
    where = {n: name for part, name in zip(parts, names, strict=True) for n in part}
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (tmp_path / "config.json").write_text("{}")
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    for given in (tmp_path, index):
        found = read_any(given)
        assert same(found.tensors, all_of_it)
        assert found.files == (index, *(tmp_path / name for name in names))
    (tmp_path / names[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"needs {names[1]}, which is not beside it"):
        read_any(tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / names[1])
    for bad, words in (
        ({}, "it has no weight_map"),
        ({"weight_map": {"a": "../secret"}}, "names '../secret', which is no file beside it"),
        ({"weight_map": {**where, "more": names[0]}}, "names more, which its files do not hold"),
    ):
        index.write_text(json.dumps(bad))
        with pytest.raises(CheckpointError, match=words):
            read_any(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_with_one_file_and_what_a_trainer_keeps_beside_it(tmp_path, name):
    (save_file if "safe" in name else torch.save)(weights(), tmp_path / name)
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        torch.save({"x": torch.ones(1)}, tmp_path / name)
    assert same(read_any(tmp_path).tensors, weights())


@pytest.mark.bad_input
def test_folders_that_hold_no_model_or_several(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a folder without weights"):
        read_any(tmp_path)
    for name in ("a.pt", "b.ckpt"):
        torch.save(weights(), tmp_path / name)
    with pytest.raises(ConfigError, match=r"several models: a.pt, b.ckpt; give one of these"):
        read_any(tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_by_name_and_not_run(tmp_path, zipped):
    path, done = tmp_path / "m.pt", tmp_path / "done"
    torch.save({"state_dict": weights(), "x": Code(done)}, path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    with pytest.raises(CheckpointError, match=r"would run code of \w+\.mkdir, and is not loaded"):
        read_any(path)
    assert not done.exists()


@pytest.mark.bad_input
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_pickle_with_code_is_refused_by_name_and_not_run(tmp_path, protocol):
    path, done = tmp_path / "m.pkl", tmp_path / "done"
    path.write_bytes(pickle.dumps({"x": Code(done)}, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"would run code of \w+\.mkdir"):
        read_any(path)
    assert not done.exists()


@pytest.mark.bad_input
def test_a_whole_module_is_code_and_named(tmp_path):
    torch.save(nn.Sequential(nn.Linear(3, 3)), tmp_path / "m.pt")
    with pytest.raises(
        CheckpointError, match=r"code of torch.nn.modules.container.Sequential.*state_d"
    ):
        read_any(tmp_path / "m.pt")


@pytest.mark.bad_input
def test_a_torchscript_program_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"):
            archive.writestr(name, b"")
    with pytest.raises(CheckpointError, match="a TorchScript program, which is code"):
        read_any(tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "text.docx", "w") as archive:
        archive.writestr("word/document.xml", b"")
    with pytest.raises(CheckpointError, match="a zip archive without weights of torch"):
        read_any(tmp_path / "text.docx")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (
            b"hello, this is no model",
            r"model \(no such file begins with b'hello, t'\)",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"GGUF\x03\x00", "a GGUF file"),
        (b"\x1f\x8b\x08", "unpack it first"),
        (
            b"PK\x03\x04 half of an archive",
            r"model \(a zip archive that is cut short\)",
        ),
        (pickle.dumps({"a": 1}, protocol=4), "is damaged or no model"),
    ],
)
def test_files_that_are_no_model(tmp_path, content, words):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as raised:
        read_any(path)
    # Nobody is told to delete a file, or to load it with less care.
    assert not any(word in str(raised.value) for word in ("delete", "remove", "weights_only"))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "holds a list, not tensors by name"),
        (torch.ones(2), "holds a Tensor"),
        (
            {"epoch": 3, "optimizer": {"state": {0: torch.ones(1)}, "param_groups": []}},
            "no weights",
        ),
    ],
)
def test_files_of_torch_without_weights(tmp_path, content, words):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=words):
        read_any(tmp_path / "m.pt")


@pytest.mark.bad_input
def test_a_truncated_file_is_damaged(tmp_path):
    torch.save(weights(), tmp_path / "m.pt")
    content = (tmp_path / "m.pt").read_bytes()
    for length in (20, len(content) // 2, len(content) - 30):
        (tmp_path / "m.pt").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            read_any(tmp_path / "m.pt")
