"""Output that is closed, full or of another encoding does not end what runs."""

import errno
import importlib
import io
import os
import subprocess
import sys

import pytest

from orthotrain.cli.output import print_what_it_can, steady_output

main_module = importlib.import_module("orthotrain.cli.main")  # the package has a function main


class Full(io.StringIO):
    """Takes some text, then is full."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def write(self, text):
        if self.tell() + len(text) > self.room:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_what_is_printed_is_dropped_once_the_output_is_full(monkeypatch, capsys):
    full = Full(12)
    monkeypatch.setattr(sys, "stdout", full)
    with steady_output():
        for line in ("first", "second line", "third"):
            print(line, flush=True)  # noqa: T201
    assert sys.stdout is full
    assert full.getvalue().startswith("first\n")
    assert "third" not in full.getvalue()
    told = capsys.readouterr().err
    assert told.count("takes no more text (No space left on device); the run goes on") == 1


def test_a_command_whose_reader_is_gone_ends_without_a_word(monkeypatch, capsys):
    """As of ``orthotrain inspect FILE | head -1``."""

    def closed(arguments):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(main_module, "_dispatch", closed)
    monkeypatch.setattr(main_module, "drop_output", lambda stream: None)
    assert main_module.main(["inspect", "file"]) == 2
    assert capsys.readouterr().err == ""


def test_without_any_output_nothing_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with steady_output():
        print("nobody reads this", flush=True)  # noqa: T201
        assert not sys.stdout.isatty()


def test_a_character_that_the_encoding_lacks_is_shown_by_its_code(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    print_what_it_can()
    print("2.092 \u00b1 0.016", flush=True)  # noqa: T201
    assert raw.getvalue() == b"2.092 \\xb1 0.016\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed", "full"])
def test_a_training_whose_output_ends_goes_on_to_its_result(tmp_path, kind):
    if kind == "full" and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    command = [
        sys.executable, "-m", "orthotrain", "train", "digits-minivit", "--scale", "smoke",
        "--variants", "dense", "--run-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    if kind == "full":
        with open("/dev/full", "w") as output:
            ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
        code, told = ended.returncode, ended.stderr
    else:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            process.stdout.readline()
            process.stdout.close()
            told = process.stderr.read()
        code = process.returncode
    assert code == 0, told
    assert "takes no more text" in told
    assert (tmp_path / "run" / "variants" / "dense" / "seed-0" / "result.json").is_file()
    assert (tmp_path / "run" / "report" / "index.html").is_file()
