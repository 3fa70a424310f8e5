from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

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
from orthotrain.lab.run.jobs import Run, run_all
from orthotrain.lab.run.record import RunFolder, read_json

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
def test_more_workers_than_useful_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="need 1 or 2"):
        run(tmp_path, DENSE, workers=3)


@pytest.mark.bad_input
def test_two_commands_cannot_train_in_one_folder(tmp_path):
    def second(progress):
        if progress.stage == "stepped" and progress.step == 1:
            with pytest.raises(ConfigError, match="another process is training in"):
                run(tmp_path, DENSE)
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, DENSE, on_progress=second)
    run(tmp_path, DENSE)


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


def test_a_worker_that_was_ended_from_outside_is_named(tmp_path, monkeypatch):
    @contextmanager
    def broken(*given, **options):
        def submit(*work):
            future = Future()
            future.set_exception(BrokenProcessPool("a process was terminated abruptly"))
            return future

        yield submit

    monkeypatch.setattr(jobs, "workers_that_report", broken)
    config = replace(CONFIG, seeds=(0, 1))
    with pytest.raises(WorkerError, match="ended from outside while it trained dense"):
        run(tmp_path, DENSE, config=config, workers=2)
