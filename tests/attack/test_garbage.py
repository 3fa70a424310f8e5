"""The command line over files that somebody damaged: one line and an exit status, or it goes on."""

import contextlib
import io
import random
import shutil
import sys
import warnings

import pytest
import yaml

from attack.counts import Counts, times
from orthotrain.cli import main
from orthotrain.errors import ConfigError, DataError
from orthotrain.lab.report.closing import closing_table

RECIPE = ["lab.run.toy:TOY", "--scale", "smoke", "--workers", "1", "--report", "false"]
CEILINGS = {"raw": 0, "many lines": 0, "without a word": 0}

VALUES = (
    None, True, 0, -1, 10**30, 1e400, float("nan"), "", "x" * 5000, "nan", "1,2", [], [1, [2]],
    {}, {"a": {"b": 1}}, {1: 2}, "2026-99-99", "!!python/name:os.system", "\\ud800", "a\\0b",
)  # fmt: skip
BYTES = (
    b"", b"\0", b"\xff\xfe\x00", b"[" * 1_200, b"{", b"{}", b"[]", b"null", b"1", b'"x"', b"- 1\n",
    b"a: &a [*a, *a]\n", b"!!python/object:os.system x", b"\n" * 1000, b'{"kind": 1}\n',
    b'{"schema": 1}', b"PK\x03\x04", bytes(range(256)),
)  # fmt: skip


def call(*arguments):
    """What a command line makes of its words: a class of outcomes, and what it printed."""
    out, error = io.StringIO(), io.StringIO()
    before = sys.stdout
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(error),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            status = main([*map(str, arguments)])
    except SystemExit as end:  # after --print_config
        status = end.code
    except Exception as raised:
        return "raw", f"{type(raised).__name__}: {raised}"
    finally:
        sys.stdout = before
    said = error.getvalue()
    if status == 0:
        return "goes on", out.getvalue()
    if not said.startswith("orthotrain: error: "):
        return "without a word", said
    return ("one line" if said.count("\n") == 1 else "many lines"), said


def settings_of(content, chance):
    """Settings of which one, at any depth, is another value, is missing or is new."""
    place = content
    while True:
        name = chance.choice(list(place))
        if isinstance(place[name], dict) and place[name] and chance.random() < 0.8:
            place = place[name]
            continue
        break
    match chance.randrange(4):
        case 0:
            del place[name]
        case 1:
            place[chance.choice(["more", name + "s", "", "a.b", "--x"])] = chance.choice(VALUES)
        case _:
            place[name] = chance.choice(VALUES)
    return content


def settings_attacked(folder, capsys, counts, *, number, seed):
    """Files of settings with garbage in them, as --config."""
    chance = random.Random(seed)
    for recipe in ("digits-minivit", "latent-linear"):
        with pytest.raises(SystemExit):
            main(["train", recipe, "--scale", "smoke", "--print_config"])
        text = capsys.readouterr().out
        for i in range(number):
            path = folder / "config.yaml"
            if i % 4 == 0:
                start = chance.randrange(len(text))
                whole = text.encode()
                garbage = chance.choice(BYTES)
                path.write_bytes(chance.choice([garbage, whole[:start] + garbage + whole[start:]]))
            else:
                path.write_text(yaml.safe_dump(settings_of(yaml.safe_load(text), chance)))
            outcome, said = call("train", "--config", path, "--print_config")
            counts.add(outcome, (recipe, i, said))
            if outcome in CEILINGS:
                print(f"{outcome}: {recipe} {i}, seed {seed}: {said}")  # noqa: T201


def test_garbage_in_settings(tmp_path, capsys):
    counts = Counts("garbage in settings", **CEILINGS)
    settings_attacked(tmp_path, capsys, counts, number=15, seed=12)
    counts.check(least=30)


@pytest.mark.slow
def test_much_garbage_in_settings(tmp_path, capsys):
    counts = Counts("much garbage in settings", **CEILINGS)
    settings_attacked(tmp_path, capsys, counts, number=(number := times(60, 400)), seed=13)
    counts.check(least=2 * number)


def remove(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def spoil(path, chance):
    """Garbage in place of a file or folder of a run."""
    kind = chance.choice(["bytes", "bytes", "bytes", "folder", "full folder", "link", "nothing"])
    content = path.read_bytes() if path.is_file() else b""
    remove(path)
    match kind:
        case "bytes":
            start = chance.randrange(len(content) + 1)
            garbage = chance.choice(BYTES)
            path.write_bytes(chance.choice([garbage, content[:start] + garbage + content[start:]]))
        case "folder":
            path.mkdir()
        case "full folder":
            (path / "more").mkdir(parents=True)
        case "link":
            path.symlink_to(path.name)
    return kind


def run_folders_attacked(folder, counts, *, number, seed):
    """A run of which one file or folder is garbage: trained on, and read for a report."""
    chance = random.Random(seed)
    whole = folder / "whole"
    assert call("train", *RECIPE, "--run-dir", whole)[0] == "goes on"
    (whole / "variants" / "after" / "seed-1" / "result.json").unlink()
    for i in range(number):
        path = folder / "spoilt"
        shutil.copytree(whole, path)
        place = chance.choice(sorted(path.rglob("*")))
        kind = spoil(place, chance)
        example = f"{kind} for {place.relative_to(path)} ({i}, seed {seed})"
        for outcome, said in (
            call("train", *RECIPE, "--run-dir", path), read(path),
            call("inspect", path / "variants" / "plain" / "seed-0" / "checkpoint.pt"),
        ):  # fmt: skip
            counts.add(outcome, f"{example}: {said}")
            if outcome in CEILINGS:
                print(f"{outcome}: {example}: {said}")  # noqa: T201
        shutil.rmtree(path)


def read(path):
    """The part of a report that draws nothing."""
    try:
        closing_table(path)
    except (ConfigError, DataError) as error:
        return "one line", str(error)
    except Exception as raised:
        return "raw", f"{type(raised).__name__}: {raised}"
    return "goes on", ""


def test_garbage_in_a_run_folder(tmp_path):
    counts = Counts("garbage in a run folder", **CEILINGS)
    run_folders_attacked(tmp_path, counts, number=12, seed=14)
    counts.check(least=36)


@pytest.mark.slow
def test_much_garbage_in_run_folders(tmp_path):
    counts = Counts("much garbage in run folders", **CEILINGS)
    run_folders_attacked(tmp_path, counts, number=(number := times(40, 250)), seed=15)
    counts.check(least=3 * number)
