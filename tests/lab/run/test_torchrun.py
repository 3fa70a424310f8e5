"""``torchrun -m orthotrain train``: whole commands, their deaths, and what they print."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.run.tiny import assert_same_training, without_times
from orthotrain.cli import main
from orthotrain.lab.run.record import RunFolder, SeedFolder, read_json

ROOT = Path(__file__).parents[3]
TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
RECIPE = [
    "train", "digits-minivit", "--scale", "smoke", "--seeds", "0", "--variants", "dense",
    "--record.checkpoint_every_epochs", "1", "--record.log_every_steps", "1",
]  # fmt: skip


def started(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*TOGETHER, "-m", "orthotrain", *map(str, arguments)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options,
    )  # fmt: skip


def together(*arguments):
    """Exit status, output and errors of a command on two processes."""
    with started(*arguments) as process:
        output, errors = process.communicate(timeout=240)
    return process.returncode, output, errors


def ranks_of(process):
    """Process ids by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for word in words:
            if parent == process.pid and word.startswith(b"RANK="):
                found[int(word[5:])] = int(folder.name)
    return found


def wait_for(path, process):
    deadline = time.monotonic() + 100
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nobody disturbed, its output and its folder."""
    path = tmp_path_factory.mktemp("whole") / "run"
    status, output, errors = together(*RECIPE, "--run-dir", path)
    assert status == 0, errors
    return output, path


@pytest.mark.slow
def test_the_report_and_the_progress_are_those_of_one_process(whole, tmp_path, capsys):
    output, path = whole
    assert main([*RECIPE, "--workers", "1", "--run-dir", str(tmp_path / "one")]) == 0
    alone = capsys.readouterr().out

    def shape(text):
        return [line.split("  ")[0].split(":")[0] for line in text.splitlines()]

    assert shape(output) == shape(alone)
    files = [
        {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
        for folder in (path, tmp_path / "one")
    ]
    assert files[0] == files[1]
    results = [
        read_json(RunFolder(folder).seed("dense", 0).result) for folder in (path, tmp_path / "one")
    ]
    assert results[0]["compute"] == results[1]["compute"]
    assert results[0]["test_loss"] == pytest.approx(results[1]["test_loss"], rel=1e-5)
    assert [read_json(folder / "run.json")["processes"] for folder in (path, tmp_path / "one")] == [
        2, 1,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_group_that_is_killed_goes_on_bit_for_bit(whole, tmp_path):
    place = RunFolder(tmp_path / "run").seed("dense", 0)
    with started(*RECIPE, "--run-dir", tmp_path / "run") as process:
        wait_for(place.previous_checkpoint, process)
        os.killpg(process.pid, signal.SIGKILL)
    assert not place.result.exists()
    status, output, errors = together(*RECIPE, "--run-dir", tmp_path / "run")
    assert status == 0, errors
    assert "goes on at step" in output
    undisturbed = RunFolder(whole[1]).seed("dense", 0)
    assert_same_training(place, undisturbed)
    results = [without_times([read_json(one.result)]) for one in (place, undisturbed)]
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_a_clear_error(tmp_path, victim):
    place = RunFolder(tmp_path / "run").seed("dense", 0)
    with started(*RECIPE, "--optim.epochs", "1000", "--run-dir", tmp_path / "run") as process:
        wait_for(place.checkpoint, process)
        os.kill(ranks_of(process)[victim], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"orthotrain: process {1 - victim}: error: process {1 - victim} of 2" in errors
    assert "another one did not go on" in errors
    assert "The same command goes on from the last checkpoint" in errors


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_first(tmp_path):
    place = RunFolder(tmp_path / "run").seed("dense", 0)
    command = [*RECIPE, "--optim.epochs", "1000", "--record.checkpoint_every_epochs", "900"]
    with started(*command, "--run-dir", tmp_path / "run") as process:
        wait_for(place.metrics, process)
        time.sleep(1)
        process.terminate()
        process.communicate(timeout=60)
    assert place.checkpoint.exists()
    assert not place.result.exists()


@pytest.mark.slow
@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["latent-linear", "--scale", "smoke"], "cannot be trained by 2 processes together"),
        (["--workers", "2"], "torchrun started 2 processes"),
        (["digits-minivit", "--scale", "smoke", "--data.batch_size", "1"], "a batch of 1 cannot"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(tmp_path, arguments, error):
    status, _, errors = together("train", *arguments, "--run-dir", tmp_path / "run")
    assert status != 0
    # torchrun ends the others as soon as one has failed, before or after they have spoken.
    assert any(f"orthotrain: process {rank}: error: " in errors for rank in range(2))
    assert error in errors
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.slow
@pytest.mark.bad_input
def test_a_folder_that_cannot_be_opened_is_told_by_all(whole, tmp_path):
    other = [*RECIPE, "--optim.lr", "0.5", "--run-dir", whole[1]]
    status, _, errors = together(*other)
    assert status != 0
    assert "process 0: error: " in errors
    assert "holds a run with other settings" in errors
    assert "process 1: error: train: process 0 failed" in errors or "process 1" in errors
    assert SeedFolder(whole[1]).path.exists()
