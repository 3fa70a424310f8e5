"""Scores of image generators: directions of several layers, factors of blobs, the whole list."""

from __future__ import annotations

import math

import pytest
import torch

from data.packed import write_folder
from orthotrain.data import Sprites, image_set
from orthotrain.data.splits import random_parts
from orthotrain.lab.experiments.latent.image_score import (
    BUDGETS,
    block_directions,
    identifiable,
    image_scores,
    shape_features,
    sprite_factors,
)
from orthotrain.models import EigenGenerator, SimpleGenerator


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_directions_of_blocks_turn_their_own_coordinates_only():
    model = EigenGenerator(16, noise_dim=0, num_basis=3, base_channels=2, generator=random())
    directions = block_directions(model)
    assert directions.shape == (6, 6)
    assert directions[:3, 3:].abs().max() == directions[3:, :3].abs().max() == 0
    torch.testing.assert_close(directions @ directions.mT, torch.eye(6, dtype=torch.float64))


def test_directions_of_a_simple_generator_diagonalise_its_weight():
    model = SimpleGenerator(16, latent_dim=4, channels=1, generator=random())
    directions = block_directions(model)
    w = model.latent.weight.detach().double()
    turned = directions @ (w / w.norm(dim=0))
    gram = turned @ turned.mT
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-9 * gram.abs().max()


def test_factors_of_blobs_are_side_and_place():
    sprites = Sprites(32, held={"orientation": 0, "shape": 0})
    values = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.5, 0.5], [1.0, 1.0, 0.5], [1.0, 1.0, 0.0]])
    factors = sprite_factors(2 * sprites.render_values(values) - 1)
    # A side of .3 times the scale; pixels are 1/32.
    torch.testing.assert_close(factors[:, 0], 0.3 * values[:, 0].double(), rtol=0, atol=0.03)
    torch.testing.assert_close(
        factors[:, 1:], 0.25 + 0.5 * values[:, 1:].double(), rtol=0, atol=0.03
    )


@pytest.mark.slow
def test_the_scores_of_a_run_are_all_there_and_seeded():
    model = EigenGenerator(
        16, noise_dim=0, num_basis=2, base_channels=2, channels=1, generator=random()
    ).eval()
    sprites = Sprites(16, held={"orientation": 0})
    real = image_set(sprites, part="test", channels=1)
    settings = {"sprites": sprites, "budget": BUDGETS["smoke"], "seed": 0}
    scores, evaluation = image_scores(model, real, **settings)
    again, _ = image_scores(model, real, **settings)
    assert scores == again
    assert all(math.isfinite(value) for value in scores.values())
    assert {
        "disentanglement", "disentanglement_sefa", "disentanglement_rotated", "completeness",
        "encoder_r2", "factor_spread", "vp", "vp_sefa", "vp_rotated", "ppl", "frechet",
        "frechet_floor", "frechet_classifier", "frechet_classifier_floor", "mig", "mig_chance",
        "sap", "modularity", "factor_vae", "beta_vae",
    } <= set(scores)  # fmt: skip
    assert scores["frechet_floor"] < scores["frechet"]
    assert evaluation["VP"].chance == 0.25


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eigen", "simple"])
def test_images_without_factors_are_scored_in_color(kind, tmp_path):
    if kind == "eigen":
        model = EigenGenerator(16, noise_dim=3, num_basis=2, base_channels=2, generator=random())
    else:
        model = SimpleGenerator(16, latent_dim=4, generator=random())
    folder = write_folder(tmp_path / "images", per_class=40)
    real = image_set("image-folder", data=str(folder), image_size=16, part="test")
    scores, evaluation = image_scores(
        model.eval(), real, sprites=None, budget=BUDGETS["smoke"], seed=0
    )
    assert all(math.isfinite(value) for value in scores.values())
    assert set(scores) == {
        "vp", "vp_chance", "vp_sefa", "vp_rotated", "ppl", "frechet", "frechet_floor", "coverage",
        "coverage_floor",
    }  # fmt: skip
    # Coordinates alone are moved; noise is drawn.
    assert evaluation["VP"].chance == scores["vp_chance"] == 0.25
    assert len(evaluation.activeness) == 4


@pytest.mark.slow
def test_directions_turn_what_is_scored_and_not_the_images():
    model = SimpleGenerator(16, latent_dim=3, channels=1, generator=random()).eval()
    sprites = Sprites(16, held={"orientation": 0})
    settings = {
        "real": image_set(sprites, part="test", channels=1), "sprites": sprites,
        "budget": BUDGETS["smoke"], "seed": 0,
    }  # fmt: skip
    axes, _ = image_scores(model, **settings)
    turned, _ = image_scores(model, **settings, directions=block_directions(model))
    assert turned["disentanglement"] == pytest.approx(axes["disentanglement_sefa"])
    assert turned["vp"] == pytest.approx(axes["vp_sefa"])
    assert turned["disentanglement"] != axes["disentanglement"]
    assert turned["disentanglement_sefa"] == axes["disentanglement_sefa"]


@pytest.mark.slow
def test_sprites_in_color_are_scored():
    model = EigenGenerator(16, noise_dim=0, num_basis=2, base_channels=2, generator=random())
    sprites = Sprites(16, color=True, held={"orientation": 0})
    real = image_set(sprites, part="test", channels=3)
    scores, _ = image_scores(model.eval(), real, sprites=sprites, budget=BUDGETS["smoke"], seed=0)
    assert all(math.isfinite(value) for value in scores.values())


def test_features_of_shapes_are_learned_on_the_validation_part(monkeypatch):
    sprites = Sprites(16, held={"orientation": 0})
    parts = random_parts(len(sprites), parts=["train", "validation", "test"], title="sprites")
    seen = []
    real = Sprites.__getitem__
    monkeypatch.setattr(
        Sprites, "__getitem__", lambda self, index: seen.append(index) or real(self, index)
    )
    space = shape_features(sprites, 60)
    (index,) = seen
    assert len(index) == len(set(index.tolist())) == 60
    assert torch.isin(index, parts["validation"]).all()
    assert space.accuracy is not None


def test_a_turn_is_no_factor_that_an_image_tells():
    assert identifiable(Sprites(16, held={"orientation": 0})) == [0, 1, 2, 3]
    sprites = Sprites(16)
    left = [sprites.factor_names[i] for i in identifiable(sprites)]
    assert left == ["shape", "scale", "x", "y"]
