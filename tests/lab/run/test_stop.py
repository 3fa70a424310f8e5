"""A stop from outside saves first; what killed saves left behind goes at the next start."""

import os
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import pytest

from lab.run.test_resume import PLAIN
from lab.run.tiny import assert_same_training, without_times
from lab.run.toy import ToyTrainer, ToyVariant
from orthotrain import files
from orthotrain.files import remove_abandoned, write_atomically
from orthotrain.lab.run import stop as stop_module
from orthotrain.lab.run.checkpoint import load_checkpoint
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.stop import Stopped, held_signals, listen_to, termination_raises

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal():
    """A process that a shell started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def train_toy(path, **options):
    return train(ToyTrainer(1.0, 0.1), variant=PLAIN, seed=0, folder=SeedFolder(path), **options)


class SignalAt:
    def __init__(self, number, step, stage="stepped"):
        self.number, self.step, self.stage = number, step, stage

    def __call__(self, progress):
        if (progress.step, progress.stage) == (self.step, self.stage):
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [2, 4])
def test_a_stop_saves_after_its_step_and_the_training_goes_on(tmp_path, number, step):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    whole, stopped = SeedFolder(tmp_path / "whole"), SeedFolder(tmp_path / "stopped")
    expected = train_toy(whole.path)
    with pytest.raises(Stopped) as raised:
        train_toy(stopped.path, on_progress=SignalAt(number, step))
    assert raised.value.args == (number,)
    assert load_checkpoint(stopped.checkpoint)["step"] == step  # between those of the cadence
    assert not stopped.result.exists()
    assert without_times([train_toy(stopped.path)]) == without_times([expected])
    assert_same_training(stopped, whole)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_stop_in_the_last_evaluation_is_not_lost(tmp_path):
    with pytest.raises(Stopped):
        train_toy(tmp_path, on_progress=SignalAt(signal.SIGTERM, 8, "evaluated"))
    assert load_checkpoint(SeedFolder(tmp_path).checkpoint)["step"] == 8
    assert train_toy(tmp_path)["steps"] == 8


def test_a_second_signal_is_not_held_back():
    with held_signals() as asked:
        assert asked() is None
        os.kill(os.getpid(), signal.SIGINT)
        assert asked() == signal.SIGINT
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_between_trainings_ends_the_run_as_ctrl_c_does():
    with termination_raises(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_worker_stops_where_its_parent_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(stop_module, "_others", [])
    asked = []
    listen_to(lambda: bool(asked))
    with pytest.raises(Stopped):
        train_toy(tmp_path, on_progress=lambda p: asked.append(p) if p.step == 4 else None)
    assert load_checkpoint(SeedFolder(tmp_path).checkpoint)["step"] == 4


def test_a_training_in_a_thread_leaves_signals_alone(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train_toy(tmp_path)))
    thread.start()
    thread.join()
    assert done[0]["steps"] == 8


def test_the_command_ends_with_the_status_of_the_signal(capsys, monkeypatch):
    module = import_module("orthotrain.cli.main")  # the package has a function of that name

    for error, status in ((KeyboardInterrupt(), 130), (Stopped(2), 130), (Stopped(15), 143)):

        def stopped(arguments, error=error):
            raise error

        monkeypatch.setattr(module, "_dispatch", stopped)
        assert module.main(["train"]) == status
        assert "same command goes on" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_command_that_is_terminated_saves_first(tmp_path, jobs):
    command = [
        sys.executable, "-m", "orthotrain", "train", "digits-minivit", "--scale", "smoke",
        "--variants", "dense", "--seeds", "0", "1", "--optim.epochs", "1000", "--workers", jobs,
        "--record.checkpoint_every_epochs", "900", "--report", "false", "--run-dir", str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    place = SeedFolder(tmp_path / "variants" / "dense" / "seed-0")
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while not (place.metrics.exists() and place.metrics.stat().st_size > 0):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait() == 143
    # Long before the first checkpoint of its cadence.
    assert load_checkpoint(place.checkpoint)["step"] > 0
    assert not place.result.exists()


# --- files ----------------------------------------------------------------------------------------


def left_behind(path, *, age=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_temporary_files_of_killed_saves_go_at_the_next_start(tmp_path):
    from lab.run.toy import ToyRun
    from orthotrain.lab.run.jobs import Run, run_all
    from orthotrain.lab.run.record import RunFolder

    place = tmp_path / "variants" / "plain" / "seed-0"
    gone = [
        left_behind(place / ".checkpoint.pt.0123abcd.tmp"),
        left_behind(tmp_path / ".config.yaml.ffffffff.tmp"),
    ]
    kept = [left_behind(place / name) for name in (".mine.tmp", "a.0123abcd.tmp", ".a.0123abcd")]
    config = ToyRun(recipe="toy", scale="smoke", seeds=(0,))
    run = Run("lab.run.toy:build", config, RunFolder(tmp_path))
    run_all(run, [ToyVariant("plain", "plain", "")])
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


def test_a_save_removes_what_a_killed_one_left_long_ago_of_the_same_file(tmp_path):
    old = left_behind(tmp_path / ".m.safetensors.0123abcd.tmp", age=2 * 24 * 3600)
    kept = [
        left_behind(tmp_path / ".m.safetensors.89abcdef.tmp", age=60),  # perhaps being written
        left_behind(tmp_path / ".other.0123abcd.tmp", age=2 * 24 * 3600),
        left_behind(tmp_path / "below" / ".m.safetensors.0123abcd.tmp", age=2 * 24 * 3600),
    ]
    write_atomically(tmp_path / "m.safetensors", b"content")
    assert not old.exists()
    assert all(path.exists() for path in kept)
    assert len(remove_abandoned(tmp_path)) == 3


def test_the_folder_is_synced_after_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = files.os.fsync, files.os.replace

    def synced(descriptor):
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def replaced(*paths):
        calls.append("rename")
        replace(*paths)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", replaced)
    write_atomically(tmp_path / "file", b"content")
    assert calls == ["file", "rename", "folder"]


@pytest.mark.bad_input
def test_a_failed_rename_puts_the_earlier_file_back(tmp_path, monkeypatch):
    path, keep = tmp_path / "file", tmp_path / "kept"
    for content in (b"1", b"2"):
        write_atomically(path, content, keep=keep)
    replace = files.os.replace

    def failing(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"3", keep=keep)
    assert path.read_bytes() == b"2"
