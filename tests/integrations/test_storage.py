"""Commands that divide the trainings of a run by a storage of Optuna, which need not be there."""

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")

from lab.run import toy  # noqa: E402
from lab.run.tiny import without_times  # noqa: E402
from orthotrain.errors import ConfigError, DataError, MissingPackageError  # noqa: E402
from orthotrain.lab.run.claims import Claims  # noqa: E402
from orthotrain.lab.run.jobs import Run, run_all  # noqa: E402
from orthotrain.lab.run.record import RunFolder, read_json, read_metrics  # noqa: E402

SEEDS = (0, 1, 2, 3)
CONFIG = toy.ToyRun(recipe="toy", scale="smoke", seeds=SEEDS)
JOBS = [(variant.name, seed) for variant in toy.variants(CONFIG) for seed in SEEDS]
# Above what a loaded machine may let a thread wait.
STALE = 4.0


class Slow(toy.ToyTrainer):
    """Notes in a file which process takes which step, and takes its time.

    ``MEET`` is how many processes must train before the first training ends.
    """

    def __init__(self, config, variant, seed):
        rate = config.rate if variant.rate is None else variant.rate
        super().__init__(1.0 + seed, rate)
        self.job = f"{variant.name} {seed}"

    def step(self):
        with open(os.environ["STEPS_FILE"], "a", encoding="ascii") as file:
            file.write(f"{os.getpid()} {self.job} {self.steps}\n")
        time.sleep(0.05)
        if self.job == "plain 0" and self.steps == 7:
            steps = Path(os.environ["STEPS_FILE"])
            wait_until(
                lambda: (
                    len({pid for pid, *_ in steps_taken(steps)}) >= int(os.environ.get("MEET", "1"))
                )
            )
        return super().step()


def run_of(path, storage, **changes):
    folder = RunFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.open(CONFIG)
    settings = {"storage": str(storage), "stale_seconds": STALE, **changes}
    return Run("integrations.test_storage:Slow", CONFIG, folder, **settings)


def command(path, storage, steps, workers, meet):
    """What one command does."""
    os.environ.update(STEPS_FILE=str(steps), MEET=str(meet))
    run_all(run_of(path, storage), toy.variants(CONFIG), workers=workers)


def started(path, storage, steps, workers=1, meet=1):
    process = multiprocessing.get_context("spawn").Process(
        target=command, args=(path, storage, steps, workers, meet)
    )
    process.start()
    return process


@pytest.fixture
def place(tmp_path):
    """Run folder, journal, and the file of steps."""
    return tmp_path / "run", tmp_path / "journal.log", tmp_path / "steps.txt"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run by one process, without a storage."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPS_FILE", str(folder / "steps.txt"))
        run = replace(run_of(folder / "run", ""), storage=None)
        run_all(run, toy.variants(CONFIG))
    return run.folder


def assert_same(path, alone):
    """Results and metrics of a run are those of one process."""
    for name in JOBS:
        places = [folder.seed(*name) for folder in (RunFolder(path), alone)]
        results = [without_times([read_json(one.result)]) for one in places]
        assert results[0] == results[1]
        lines = [without_times(read_metrics(one.metrics)) for one in places]
        assert lines[0] == lines[1]


def steps_taken(path):
    """Which process took which step of which training."""
    words = [line.split() for line in path.read_text().splitlines()]
    return [(int(pid), (variant, int(seed)), int(step)) for pid, variant, seed, step in words]


def ended(process):
    """Its exit status; a process that does not end is killed."""
    process.join(300)
    if process.is_alive():
        process.kill()
        process.join()
        pytest.fail("it did not end")
    return process.exitcode


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_commands_divide_the_trainings_and_do_none_twice(place, alone):
    path, _, steps = place
    commands = [started(*place, meet=3), started(*place, workers=2, meet=3)]
    assert [ended(one) for one in commands] == [0, 0]
    assert_same(path, alone)
    taken = steps_taken(steps)
    assert len(taken) == len({(job, step) for _, job, step in taken}) == 8 * len(JOBS)
    assert len({pid for pid, *_ in taken}) == 3


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_command_s_training_is_taken_over_from_its_checkpoint(place, alone, workers):
    path, _, steps = place
    victim = started(*place, workers=workers)
    saved = RunFolder(path).seed("plain", 0).checkpoint
    wait_until(saved.exists)
    os.kill(victim.pid, signal.SIGKILL)
    ended(victim)
    assert not RunFolder(path).seed("plain", 0).result.exists()
    before = {pid for pid, *_ in steps_taken(steps)}
    assert ended(started(*place)) == 0
    assert_same(path, alone)
    # From its checkpoint, not from its start.
    again = [step for pid, job, step in steps_taken(steps) if job == ("plain", 0)
             and pid not in before]  # fmt: skip
    assert min(again) >= 3


def test_a_stopped_command_s_training_is_free_at_once(place, alone):
    path, storage, steps = place
    first = started(*place)
    wait_until(RunFolder(path).seed("plain", 0).metrics.exists)
    wait_until(lambda: steps.exists() and len(steps_taken(steps)) > 1)
    os.kill(first.pid, signal.SIGTERM)
    ended(first)
    claims = Claims(str(storage), RunFolder(path), settings=_settings(), stale_seconds=1000.0)
    assert claims.take([("plain", 0)]) == ("plain", 0)


def _settings(**changes):
    from orthotrain.lab.run.record import plain

    return plain(replace(CONFIG, **changes))


def claims_of(path, storage, **options):
    path.mkdir(parents=True, exist_ok=True)
    options = {"settings": _settings(), "stale_seconds": STALE, **options}
    return Claims(str(storage), RunFolder(path), **options)


@pytest.mark.parametrize("kind", ["{}/journal.log", "sqlite:///{}/run.db"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_claim_is_the_first_one_s_until_it_ends(tmp_path, kind):
    storage = kind.format(tmp_path)
    one, two = (claims_of(tmp_path / "run", storage) for _ in range(2))
    jobs = [("plain", 0), ("plain", 1)]
    assert one.take(jobs) == jobs[0]
    assert two.take(jobs) == jobs[1]
    assert one.take(jobs) is None
    with pytest.raises(RuntimeError, match="broken"), two.held(jobs[1]):
        raise RuntimeError("broken")
    assert one.take(jobs) == jobs[1]
    with one.held(jobs[0]) as found:
        found["validation_loss"] = 0.5
    trials = optuna.load_study(study_name="run", storage=one._storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "RUNNING"]
    assert trials[0].value == 0.5
    assert [trial.user_attrs["seed"] for trial in trials] == [0, 1, 1]


def test_of_two_claims_at_the_same_moment_the_first_one_counts(tmp_path, monkeypatch):
    one, two = (claims_of(tmp_path / "run", tmp_path / "j.log") for _ in range(2))
    # The second one has looked before the first one claimed.
    monkeypatch.setattr(two, "_living", list)
    assert one.take([("plain", 0)]) == ("plain", 0)
    assert two.take([("plain", 0)]) is None
    with one.held(("plain", 0)):
        pass


def test_signs_of_life_keep_a_claim_and_without_them_it_ends(tmp_path):
    jobs = [("plain", 0)]
    one, two = (
        claims_of(tmp_path / "run", tmp_path / "j.log", stale_seconds=0.4) for _ in range(2)
    )
    assert one.take(jobs) == jobs[0]
    with one.held(jobs[0]):
        for _ in range(10):
            time.sleep(0.1)
            assert two.take(jobs) is None
    assert two.take(jobs) == jobs[0]  # and gives no sign
    assert one.take(jobs) is None
    time.sleep(0.5)
    assert one.take(jobs) == jobs[0]


def stand_still(path, storage, steps):
    """A claim whose process gives no sign for too long."""
    claims = claims_of(path, storage, stale_seconds=0.4)
    assert claims.take([("plain", 0)])
    with claims.held(("plain", 0)):
        steps.write_text("held")
        time.sleep(30)


def test_a_process_that_stood_still_ends_when_it_was_replaced(place):
    path, storage, steps = place
    process = multiprocessing.get_context("spawn").Process(target=stand_still, args=place)
    process.start()
    wait_until(steps.exists)
    os.kill(process.pid, signal.SIGSTOP)
    other = claims_of(path, storage, stale_seconds=0.4)
    wait_until(lambda: other.take([("plain", 0)]) is not None)
    os.kill(process.pid, signal.SIGCONT)
    assert ended(process) == 1


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.bad_input
def test_a_run_of_another_kind_is_refused(tmp_path):
    claims_of(tmp_path / "run", tmp_path / "j.log")
    for changes, named in (
        ({"recipe": "other"}, "recipe is toy there"),
        ({"rate": 1.0}, "rate is"),
    ):
        with pytest.raises(ConfigError, match=f"other settings .*{named}"):
            claims_of(tmp_path / "run", tmp_path / "j.log", settings=_settings(**changes))


@pytest.mark.bad_input
def test_another_folder_of_the_same_name_is_refused(tmp_path):
    claims_of(tmp_path / "here/run", tmp_path / "j.log")
    with pytest.raises(ConfigError, match=r"trains in another folder than .*there/run"):
        claims_of(tmp_path / "there/run", tmp_path / "j.log")
    # A run of another name has a study of its own.
    claims_of(tmp_path / "there/more", tmp_path / "j.log")


@pytest.mark.bad_input
@pytest.mark.parametrize("what", ["no folder", "a folder", "below a file", "a database"])
def test_a_place_that_cannot_be_used_is_refused(tmp_path, what):
    (tmp_path / "file").write_text("x")
    place, named = {
        "no folder": (tmp_path / "none/j.log", "make the folder"),
        "a folder": (tmp_path, "is a folder"),
        "below a file": (tmp_path / "file/j.log", "folder"),
        "a database": ("nosuch://x/y", "cannot be opened"),
    }[what]
    with pytest.raises(ConfigError, match=f"--storage: .*{named}"):
        claims_of(tmp_path / "run", place)


@pytest.mark.bad_input
@pytest.mark.parametrize("content", ["hello\nyou\nthere\n", "[1]\n[2]\n", '{"a": 1}\n{"b": 2}\n'])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "notes.txt").write_text(content)
    with pytest.raises((ConfigError, DataError), match="choose another file"):
        claims_of(tmp_path / "run", tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text().startswith(content)


@pytest.mark.bad_input
def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackageError, match=r"orthotrain\[search\]"):
        claims_of(tmp_path / "run", tmp_path / "j.log")


@pytest.mark.bad_input
def test_a_command_without_the_storage_is_kept_out(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.locked(shared=True), folder.locked(shared=True):
        pass
    with (
        folder.locked(shared=True),
        pytest.raises(ConfigError, match="--storage"),
        folder.locked(),
    ):
        pass
