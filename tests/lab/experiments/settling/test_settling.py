import pytest
import torch
from torch import nn

from lab.experiments.settling.tiny import CONFIG, build_tiny
from lab.run.tiny import assert_goes_on
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.lowrank.published import PUBLISHED_STABILITY
from orthotrain.lab.experiments.settling.config import settling_variants
from orthotrain.lab.experiments.settling.page import PAGE
from orthotrain.lab.experiments.settling.walk import RandomWalk, norms_of
from orthotrain.lab.report import closing_table
from orthotrain.lab.report.load import load_run
from orthotrain.lab.run.jobs import Run, run_all
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import RunFolder, SeedFolder
from orthotrain.methods import attach


def variant_of(name):
    return next(one for one in settling_variants(CONFIG) if one.name == name)


def train_in(folder, name="falling", *, of=None, **options):
    variant = variant_of(name)
    variant = variant if of is None else variant.with_trainings([of])
    trainer = build_tiny(CONFIG, variant, 0)
    return train(trainer, variant=variant, seed=0, folder=SeedFolder(folder), **options)


def path_of(trainer):
    """Weights before the first step and after each."""
    named = dict(trainer.model.named_parameters())
    passed = [{name: p.detach().clone() for name, p in named.items()}]
    while trainer.steps < trainer.total_steps:
        trainer.step()
        passed.append({name: p.detach().clone() for name, p in named.items()})
    return passed


def test_a_walk_goes_as_far_per_step_and_parameter_as_training_in_other_directions(tmp_path):
    train_in(tmp_path)
    norms = norms_of(SeedFolder(tmp_path))
    walk = variant_of("walk-falling").with_trainings([tmp_path])
    trained, walked = (path_of(build_tiny(CONFIG, v, 0)) for v in (variant_of("falling"), walk))
    assert len(norms) == len(trained) - 1 == 16
    for name, start in trained[0].items():
        assert torch.equal(walked[0][name], start)
        for step, norm in enumerate(norms, start=1):
            mine, theirs = (p[step][name] - p[step - 1][name] for p in (walked, trained))
            assert norm[name] == pytest.approx(theirs.double().norm().item(), rel=1e-5)
            torch.testing.assert_close(mine.norm(), theirs.norm(), rtol=1e-4, atol=1e-7)
    way = [
        torch.cat([(p[8][n] - p[7][n]).flatten() for n in trained[0]]) for p in (trained, walked)
    ]
    assert abs(torch.cosine_similarity(*way, dim=0)) < 0.15


def test_the_constant_rate_stays_at_its_peak_and_the_falling_one_ends_at_its_least():
    rates = {}
    for name in ("falling", "constant"):
        trainer = build_tiny(CONFIG, variant_of(name), 0)
        rates[name] = [trainer.step().values["lr"] for _ in range(trainer.total_steps)]
    assert set(rates["constant"]) == {CONFIG.optim.lr}
    assert rates["falling"][-1] == pytest.approx(CONFIG.optim.min_lr)


def test_a_walk_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    train_in(tmp_path / "of")
    assert_goes_on(
        lambda folder, **options: train_in(
            folder, "walk-falling", of=tmp_path / "of", **options
        ),
        tmp_path, at=(6,), saved=(4,),
    )  # fmt: skip


def test_the_page_shows_both_schedules_their_walks_and_the_published_curves(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.open(CONFIG)
        experiment = find_recipe("digits-settling")
        folder.describe(experiment, CONFIG, variants=settling_variants(CONFIG), environment={})
        here = "lab.experiments.settling.tiny:build_tiny"
        run_all(Run(here, CONFIG, folder), settling_variants(CONFIG))
    run = load_run(folder.path)
    panel, other = PAGE.lead[0].panels
    assert [v.name for v, _ in panel.curves(run)] == [v.name for v in settling_variants(CONFIG)]
    published = [tuple(line.y) for line in other.beside]
    assert published == list(PUBLISHED_STABILITY.values())
    assert all("ImageNet (published)" in line.label for line in other.beside)
    assert "random walk, steps of constant rate" in closing_table(folder.path)


@pytest.mark.bad_input
def test_a_walk_needs_the_record_of_a_training_of_its_kind():
    with pytest.raises(ConfigError, match="walk-falling has the step sizes of falling"):
        build_tiny(CONFIG, variant_of("walk-falling"), 0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = [{"weight": 1.0, "bias": 1.0}] * 3
    with pytest.raises(ConfigError, match=r"recorded 3 steps .* this run has 4 steps"):
        attach(model, optimizer, RandomWalk(norms, 0), total_steps=4)
    with pytest.raises(ConfigError, match="of 1 parameters"):
        attach(model, optimizer, RandomWalk([{"weight": 1.0}] * 4, 0), total_steps=4)
