import multiprocessing
import os
import signal
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from lab.run import toy
from lab.run.tiny import CONFIG, KillAt, Killed
from orthotrain.errors import ConfigError, NonFiniteError, WorkerError
from orthotrain.lab.experiments.lowrank.config import (
    DENSE,
    NARROW,
    PAPER,
    TUNED,
    lowrank_variants,
)
from orthotrain.lab.experiments.lowrank.networks import build_vit, narrow_to
from orthotrain.lab.run import jobs
from orthotrain.lab.run.config import Variant
from orthotrain.lab.run.jobs import Run, run_all
from orthotrain.lab.run.record import RunFolder, SeedFolder, read_json
from orthotrain.lab.run.workers import _end_of

IMAGE = {"image_shape": (1, 8, 8), "classes": 3}


TINY = "lab.run.tiny:build_tiny"


def numbers(config):
    return sum(p.numel() for p in build_vit(config, **IMAGE).parameters())


def opened(path, config):
    folder = RunFolder(path)
    folder.open(config)
    return folder


def run(path, *names, config=CONFIG, build=TINY, **options):
    config = replace(config, variants=names)
    folder = opened(path, config)
    variants = [variant for variant in lowrank_variants(config) if variant.name in names]
    run_all(Run(build, config, folder), variants, **options)
    return folder


def test_the_rival_is_the_narrowest_network_that_stores_as_much():
    full = replace(CONFIG.model, width=24)
    sizes = {width: numbers(replace(full, width=width)) for width in range(2, 25, 2)}
    for width in (8, 16):
        for stored, expected in ((sizes[width], width), (sizes[width] + 1, width + 2)):
            assert narrow_to(full, stored=stored, **IMAGE).width == expected
    assert narrow_to(full, stored=10 * sizes[24], **IMAGE) == full
    assert narrow_to(full, stored=1, **IMAGE).width == 2


def test_the_rival_waits_for_all_seeds_and_takes_their_mean_size(tmp_path):
    order = []
    config = replace(CONFIG, seeds=(0, 1))
    folder = run(
        tmp_path,
        NARROW,
        TUNED,
        config=config,
        on_progress=lambda p: order.append((p.variant, p.seed)) if p.stage == "finished" else None,
    )
    assert order == [(TUNED, 0), (TUNED, 1), (NARROW, 0), (NARROW, 1)]
    stored = [result["stored"] for result in folder.results(TUNED, (0, 1))]
    expected = narrow_to(CONFIG.model, stored=round(sum(stored) / 2), **IMAGE)
    for result in folder.results(NARROW, (0, 1)):
        assert result["settings"]["model"]["width"] == expected.width


@dataclass(frozen=True)
class After(Variant):
    """Starts where the training of its own seed ended."""

    start: Path | None = None

    def with_trainings(self, finished):
        (start,) = finished
        return replace(self, start=start)


class AfterToy(toy.ToyTrainer):
    def __init__(self, config, variant, seed):
        if variant.needs is None:
            weight = 1.0 + seed
        else:
            # Where the needed one has not ended, there is no such file.
            weight = read_json(SeedFolder(variant.start).result)["final"]
        super().__init__(weight, config.rate)
        self.weight = weight

    def result(self, ending):
        return {**super().result(ending), "start": self.weight}


AFTER = (
    After("plain", "plain", ""),
    After("next", "next", "", needs="plain", same_seed=True),
    After("last", "last", "", needs="next", same_seed=True),
)


def run_after(path, *, seeds=(0, 1, 2), variants=AFTER, **options):
    config = toy.ToyRun(recipe="toy", scale="smoke", seeds=seeds)
    folder = opened(path, config)
    run_all(Run("lab.run.test_jobs:AfterToy", config, folder), variants, **options)
    return folder


def assert_each_went_on(folder):
    for seed in (0, 1, 2):
        for needed, name in (("plain", "next"), ("next", "last")):
            (before,), (after,) = folder.results(needed, (seed,)), folder.results(name, (seed,))
            assert after["start"] == before["final"]


def test_what_needs_its_own_seed_waits_for_that_one_only(tmp_path):
    order = []
    folder = run_after(
        tmp_path,
        on_progress=lambda p: order.append((p.variant, p.seed)) if p.stage == "finished" else None,
    )
    assert order == [(one.name, seed) for seed in (0, 1, 2) for one in AFTER]
    assert_each_went_on(folder)


@pytest.mark.slow
def test_workers_wait_for_the_training_of_the_own_seed(tmp_path):
    assert_each_went_on(run_after(tmp_path, workers=2))


def test_workers_start_what_only_waited_for_its_own_seed(tmp_path, monkeypatch):
    """Without processes: what is submitted while a training of another seed still runs."""
    submitted, futures = [], []

    @contextmanager
    def by_hand(*given, **options):
        def submit(work, task):
            submitted.append(task.name)
            futures.append(Future())
            return futures[-1]

        yield submit

    def one_ends(running, **options):
        # The last one that was begun ends first.
        last = futures.pop()
        last.set_result(None)
        return {last}, set(running) - {last}

    monkeypatch.setattr(jobs, "workers_that_report", by_hand)
    monkeypatch.setattr(jobs, "wait", one_ends)
    run_after(tmp_path, seeds=(0, 1), variants=AFTER[:2], workers=2)
    assert submitted == [("plain", 0), ("plain", 1), ("next", 1), ("next", 0)]


def test_a_seed_that_ended_earlier_is_gone_on_from(tmp_path):
    run_after(tmp_path, variants=AFTER[:1])
    assert_each_went_on(run_after(tmp_path))


@pytest.mark.bad_input
def test_a_seed_that_is_missing_is_named(tmp_path):
    run_after(tmp_path, variants=AFTER[:1], seeds=(0,))
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"next is built from .* plain, .* none with seed 1"):
        run_after(tmp_path, variants=AFTER[1:2], seeds=(0, 1))


def test_trainings_go_seed_by_seed(tmp_path):
    order = []
    run(
        tmp_path,
        DENSE,
        TUNED,
        config=replace(CONFIG, seeds=(0, 1)),
        on_progress=lambda p: order.append((p.variant, p.seed)) if p.stage == "finished" else None,
    )
    assert order == [(DENSE, 0), (TUNED, 0), (DENSE, 1), (TUNED, 1)]


def test_finished_trainings_are_skipped_and_an_interrupted_one_goes_on(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, DENSE, PAPER, on_progress=_first_done_then_killed())
    seen = []
    folder = run(tmp_path, DENSE, PAPER, on_progress=seen.append)
    starts = [(p.variant, p.stage, p.step) for p in seen if p.stage in ("skipped", "started")]
    assert starts == [(DENSE, "skipped", 16), (PAPER, "started", 8)]
    assert len(folder.results(PAPER, (0,))) == 1


def _first_done_then_killed():
    kill = KillAt(10)

    def take(progress):
        if progress.variant == PAPER:
            kill(progress)

    return take


@pytest.mark.bad_input
def test_the_rival_alone_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="is built from the results of oialr-tuned, which has none"
    ):
        run(tmp_path, DENSE, NARROW)


@pytest.mark.bad_input
def test_less_than_one_worker_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="workers=0; need at least 1"):
        run(tmp_path, DENSE, workers=0)


def test_the_number_of_threads_is_put_back(tmp_path):
    before = torch.get_num_threads()
    seen = set()
    run(
        tmp_path,
        DENSE,
        config=replace(CONFIG, threads=before + 1),
        on_progress=lambda progress: seen.add(torch.get_num_threads()),
    )
    assert seen == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.bad_input
def test_an_error_in_a_worker_keeps_its_type_and_stops_the_others(tmp_path):
    config = replace(
        CONFIG,
        seeds=(0, 1, 2),
        optim=replace(CONFIG.optim, lr=1e30, min_lr=0.0, clip_norm=None, epochs=200),
    )
    with pytest.raises(NonFiniteError, match="learning rate"):
        run(tmp_path, DENSE, config=config, workers=2)
    # What is left can be gone on with: no half written file.
    for path in tmp_path.rglob("*.json"):
        read_json(path)


class Slow(toy.ToyTrainer):
    """Takes two thousand steps, and tells of each."""

    total_steps = 2000
    cadence = replace(toy.ToyTrainer.cadence, log=1, checkpoint=100_000)

    def __init__(self, config, variant, seed):
        super().__init__(1.0 + seed, config.rate)

    def step(self):
        time.sleep(0.002)
        return super().step()


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_with_one_line_and_it_goes_on(tmp_path):
    """The kill comes while messages of both are on their way: nobody waits for the dead one."""
    config = toy.ToyRun(recipe="toy", scale="smoke", seeds=(0, 1))
    run = Run("lab.run.test_jobs:Slow", config, opened(tmp_path, config))
    seen, killed = set(), []

    def kill(progress):
        seen.add(progress.seed)
        if len(seen) == 2 and progress.step > 20 and not killed:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"trained plain with seed . did not finish: .*SIGKILL"):
        run_all(run, AFTER[:1], workers=2, on_progress=kill)
    # What trained beside it was stopped with a checkpoint, and both go on.
    saved = [run.folder.seed("plain", seed).checkpoint for seed in (0, 1)]
    assert [path.exists() for path in saved].count(True) == 1
    run_all(run, AFTER[:1])
    assert len(run.folder.results("plain", (0, 1))) == 2


def test_a_worker_that_was_ended_from_outside_is_named(tmp_path, monkeypatch):
    @contextmanager
    def broken(*given, **options):
        def submit(*work):
            future = Future()
            future.set_exception(WorkerError("it was ended from outside by SIGTERM"))
            return future

        yield submit

    monkeypatch.setattr(jobs, "workers_that_report", broken)
    config = replace(CONFIG, seeds=(0, 1))
    with pytest.raises(WorkerError, match=r"trained dense with seed . did not .* by SIGTERM"):
        run(tmp_path, DENSE, config=config, workers=2)


def test_how_a_process_ended_is_told_by_its_cause_and_no_other():
    assert _end_of(-9) == "it was ended from outside by SIGKILL, perhaps for lack of memory"
    assert _end_of(-15) == _end_of(143) == "it was ended from outside by SIGTERM"
    assert _end_of(1) == "it ended with exit status 1"
