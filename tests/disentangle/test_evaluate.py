"""One call for all scores: which rows there are, what stands beside them, and what it refuses."""

import dataclasses
import json
import math

import pytest
import torch

from disentangle.generators import Normed, constant, disjoint
from orthotrain.data import Sprites
from orthotrain.disentangle import (
    Budget,
    ClassifierBudget,
    Evaluation,
    FactorBudget,
    FeatureSpace,
    Score,
    activeness,
    evaluate,
    interventions,
    path_length,
    pixel_features,
    random_features,
    random_rotation,
    rotated,
    sap,
)
from orthotrain.errors import ConfigError, NonFiniteError, OrthotrainWarning, ShapeError
from orthotrain.models import EigenGenerator
from reference.matrices import generator

SMALL = Budget(
    latents=20,
    classifier=ClassifierBudget(
        pairs=48, epochs=1, width=2, train_fraction=0.5, validation_fraction=0.2
    ),
    interventions=40,
    paths=20,
    images=30,
    splits=2,
    pca_images=20,
    factors=FactorBudget(
        samples=300,
        train_votes=50,
        evaluation_votes=50,
        chance_repeats=2,
        dci_model="random_forest",
    ),
)
MEASURES = ("FD", "KD", "precision", "recall", "density", "coverage")


def run(generate=disjoint, **settings):
    return evaluate(generate, **({"latent_dim": 3, "seed": 0, "budget": SMALL} | settings))


def real_images(n=100, channels=1, side=12, seed=0):
    """What ``disjoint`` draws, of latents of another seed."""
    z = torch.randn(n, 3, generator=generator(seed + 50))
    return disjoint(z, side).expand(-1, channels, -1, -1)


class Grid:
    """Images whose two factors, of 4 and 3 values, are the brightness of two halves."""

    factor_sizes = (4, 3)

    def __len__(self):
        return 12

    def index_of(self, factors):
        return factors[:, 0] * 3 + factors[:, 1]

    def __getitem__(self, index):
        factors = torch.stack([index // 3, index % 3], dim=1)
        images = torch.zeros(len(index), 1, 4, 4)
        images[:, :, :2] = (factors[:, 0] / 3)[:, None, None, None]
        images[:, :, 2:] = (factors[:, 1] / 2)[:, None, None, None]
        return images, factors


def halves(images):
    """The brightness of both halves, as codes."""
    return torch.stack([images[:, 0, 0, 0], images[:, 0, 3, 0]], dim=1)


@pytest.fixture(scope="module")
def plain():
    return run()


# --- rows -----------------------------------------------------------------------------------------


def test_without_real_images_latents_and_paths_are_scored(plain):
    assert [s.name for s in plain.scores] == [
        "active dimensions",
        "VP",
        "VP, latents rotated",
        "PPL[pixels, 20]",
        "PPL[random 0, 20]",
        "PPL[random 1, 20]",
        "PPL[random 2, 20]",
    ]
    assert all(s.spread is not None and s.spread >= 0 for s in plain.scores)
    assert plain["VP"].chance == plain["VP, latents rotated"].chance == 1 / 3
    assert plain.activeness == pytest.approx(activeness(disjoint, 3, seed=0, samples=20).tolist())
    for space in (pixel_features(), *(random_features(seed=s) for s in (0, 1, 2))):
        path = path_length(disjoint, 3, seed=0, space=space, samples=20)
        assert (plain[path.label].value, plain[path.label].spread) == (path.mean, path.spread)


def test_with_real_images_every_space_has_every_measure_beside_its_floor():
    mine = FeatureSpace("mine", lambda x: x.mean(dim=(2, 3)))
    found = run(reference=real_images(), spaces=[mine])
    rows = found.scores[7:]
    spaces = ["random 0", "random 1", "random 2", "pca 19", "mine"]
    # 20 are set apart for the PCA, and the other 80 give two sets of at most 30.
    assert [s.name for s in rows] == [f"{m}[{space}, 30]" for space in spaces for m in MEASURES]
    assert all(s.floor is not None and s.spread is not None for s in rows)


def test_active_dimensions_count_what_moves():
    """Two of four coordinates move the image, equally: two are active, and that is certain."""

    def two(z):
        return torch.tanh(torch.stack([z[:, 0], z[:, 2]], dim=1))[:, None, None, :]

    row = run(two, latent_dim=4)["active dimensions"]
    assert row.value == pytest.approx(2)
    assert row.spread == pytest.approx(0, abs=1e-9)
    assert run(constant)["active dimensions"].value == 0


def test_spread_of_the_active_dimensions_is_that_of_new_latents():
    """Against the deviation over seeds, which is what a standard error estimates."""
    model = Normed().eval()
    rows = [
        run(model, seed=seed, budget=dataclasses.replace(SMALL, latents=40))["active dimensions"]
        for seed in range(6)
    ]
    over_seeds = torch.tensor([r.value for r in rows]).std()
    mean = torch.tensor([r.spread for r in rows]).mean()
    # A deviation of six values is known to a factor of 2.5 or so.
    assert 1 / 2.5 < float(mean / over_seeds) < 2.5


def test_true_factors_are_scored_by_encode_and_dataset():
    found = run(encode=halves, dataset=Grid())
    rows = {s.name: s for s in found.scores[7:]}
    assert list(rows) == [
        "MIG",
        "SAP",
        "modularity",
        "DCI disentanglement",
        "DCI completeness",
        "DCI informativeness",
        "FactorVAE score",
        "beta-VAE score",
    ]
    assert all(s.chance is not None and s.spread is not None for s in rows.values())
    measured = [name for name, s in rows.items() if s.chance_spread is not None]
    assert measured == [*rows][:6]  # chance of the two votes is known
    # Between independent factors a sample of 300 shows some information, 6 / (2 * 300) nats.
    assert rows["MIG"].value == pytest.approx(1, abs=0.03)
    assert rows["FactorVAE score"].value == 1
    assert rows["MIG"].chance < 0.1


def test_moves_are_scored_along_axes_and_given_directions_beside_those_at_random():
    """Three coordinates set the brightness of three bands."""

    def bands(z, strength=1.0):
        brightness = torch.tanh(strength * z).repeat_interleave(4, dim=1)
        return brightness[:, None, None].expand(-1, 1, 12, -1)

    def measure(images):
        return torch.stack([part.mean(dim=(1, 2, 3)) for part in images.chunk(3, dim=3)], dim=1)

    mixed = random_rotation(3, seed=5)
    real = bands(torch.randn(100, 3, generator=generator(50)))
    found = run(bands, measure=measure, reference=real, turned={"mixed": mixed})
    rows = {s.name: s for s in found.scores}
    assert [name for name in rows if name.startswith("VP")] == [
        "VP",
        "VP, mixed",
        "VP, latents rotated",
    ]
    for part in ("disentanglement", "completeness"):
        axes, turned, at_random = (
            rows[f"{part} by intervention{end}"] for end in ("", ", mixed", ", latents rotated")
        )
        assert axes.value == pytest.approx(1)
        assert turned.value < 0.9
        assert axes.chance == turned.chance == at_random.value < 0.9
        assert all(row.spread is not None for row in (axes, turned))
    direct = interventions(
        rotated(bands, mixed), 3, measure=measure, seed=0, samples=SMALL.interventions
    )
    row = rows["disentanglement by intervention, mixed"]
    assert (row.value, row.spread) == (direct.disentanglement, direct.disentanglement_error)
    # The same distribution, drawn anew.
    assert rows["least spread of a factor"].value > 0.7
    still = run(lambda z: bands(z, 0.1), measure=measure, reference=real)
    assert still["least spread of a factor"].value < 0.3


def test_the_turn_at_random_can_be_given():
    axes = run(turned={"latents rotated": torch.eye(3)})
    assert axes["VP, latents rotated"].value == axes["VP"].value
    with pytest.raises(ShapeError, match=r"\(3, 3\) in turned, got \(2, 2\) for 'SeFa'"):
        run(turned={"SeFa": torch.eye(2)})


def test_classes_are_not_an_order_for_sap():
    """A code that sorts the values of a factor otherwise than they are numbered."""

    def encode(images):
        first = (3 * images[:, 0, 0, 0]).round().long()
        shuffled = torch.tensor([0.0, 3.0, 1.0, 2.0])[first]
        return torch.stack([shuffled, images[:, 0, 3, 0]], dim=1)

    settings = {"encode": encode, "dataset": Grid()}
    images, factors = Grid()[torch.randint(12, (300,), generator=generator(0))]
    codes = encode(images)
    assert run(**settings)["SAP"].value == pytest.approx(sap(codes, factors))
    named = (sap(codes, factors[:, :1], kind="discrete") + sap(codes, factors[:, 1:])) / 2
    assert run(**settings, nominal_columns=[0])["SAP"].value == pytest.approx(named)
    assert named != pytest.approx(sap(codes, factors))
    with pytest.raises(ConfigError, match=r"among the scored columns \[0, 1\], got \[-1\]"):
        run(**settings, nominal_columns=[-1])


def test_a_class_that_is_always_the_same_leaves_the_others():
    class Rare(Grid):
        """A third factor that could vary and is never seen to."""

        factor_sizes = (4, 3, 2)

        def index_of(self, factors):
            return super().index_of(factors[:, :2])

        def __getitem__(self, index):
            images, factors = super().__getitem__(index)
            return images, torch.cat([factors, 0 * factors[:, :1]], dim=1)

    with pytest.warns(OrthotrainWarning, match="one value"):
        found = run(encode=halves, dataset=Rare(), nominal_columns=[2])
    assert found["SAP"].value == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_the_spread_of_a_score_is_that_over_new_samples():
    """A code with noise: what ten resamples of one draw say against eight draws."""

    def encode(images):
        noise = torch.randn(len(images), 2, generator=generator(int(1e4 * images.sum())))
        return torch.stack([images[:, 0, 0, 0], images[:, 0, 3, 0]], dim=1) + noise

    rows = [run(encode=encode, dataset=Grid(), seed=seed)["modularity"] for seed in range(8)]
    over_draws = torch.tensor([r.value for r in rows]).std()
    mean = torch.tensor([r.spread for r in rows]).mean()
    assert 1 / 3 < float(mean / over_draws) < 3


def test_columns_that_no_code_can_tell_are_left_out():
    class Turned(Grid):
        """A third factor that the image does not show."""

        factor_sizes = (4, 3, 5)

        def __len__(self):
            return 60

        def index_of(self, factors):
            return super().index_of(factors[:, :2]) * 5 + factors[:, 2]

        def __getitem__(self, index):
            images, factors = super().__getitem__(index // 5)
            return images, torch.cat([factors, (index % 5)[:, None]], dim=1)

    everything = run(encode=halves, dataset=Turned())
    shown = run(encode=halves, dataset=Turned(), factor_columns=(0, 1))
    assert everything["MIG"].value < 0.75
    assert shown["MIG"].value == pytest.approx(1, abs=0.03)
    assert everything["FactorVAE score"].chance == pytest.approx(1 / 3)
    assert shown["FactorVAE score"].chance == 0.5
    assert shown["FactorVAE score"].value == 1
    with pytest.raises(ConfigError, match="different columns from 0 to 2, got"):
        run(encode=halves, dataset=Turned(), factor_columns=(0, 3))


def test_scores_from_elsewhere_become_rows():
    found = run(factor_scores={"MIG (regressed)": 0.25})
    assert found["MIG (regressed)"] == Score("MIG (regressed)", 0.25, note="given")


def test_real_images_of_every_kind_count_alike():
    signed = real_images()

    class Lazy:
        def __len__(self):
            return len(signed)

        def __getitem__(self, index):
            assert isinstance(index, torch.Tensor)
            return (signed[index] + 1) / 2, index

    expected = run(reference=signed)
    as_unit = run(reference=Lazy(), reference_range="unit")
    as_bytes = run(reference=((signed + 1) * 127.5).round().byte())
    for a, b, c in zip(expected.scores, as_unit.scores, as_bytes.scores, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-4, abs=1e-6)
        # Bytes round a pixel by 0.004.
        assert a.value == pytest.approx(c.value, rel=0.05, abs=0.1)


def test_images_that_fitted_the_pca_are_not_scored():
    signed, asked = real_images(), []

    class Recorded:
        def __len__(self):
            return len(signed)

        def __getitem__(self, index):
            asked.extend(index.tolist())
            return signed[index]

    run(reference=Recorded())
    # 20 for the PCA and twice 30 to compare, each once.
    assert len(asked) == len(set(asked)) == 80


def test_noise_beside_the_factors():
    """The fourth coordinate is drawn, and neither scored nor turned."""
    found = run(lambda z: disjoint(z[:, :3]) * torch.sigmoid(z[:, 3:, None, None]),
                latent_dim=4, factors=3)  # fmt: skip
    assert len(found.activeness) == 3
    assert found["VP"].chance == 1 / 3
    assert found.settings["factors"] == 3


def test_a_model_of_the_package_against_the_sprites_it_would_learn():
    model = EigenGenerator(
        16, noise_dim=4, num_basis=2, base_channels=2, channels=1, generator=generator(0)
    )
    dim = model.latent_dim
    found = run(
        lambda v: model(v[:, :dim], v[:, dim:]),
        latent_dim=dim + 4,
        factors=dim,
        reference=Sprites(16),
        reference_range="unit",
    )
    assert len(found.activeness) == dim
    # It has learned nothing, and every measure says so.
    for row in found.scores:
        if row.name.startswith(("FD", "KD")):
            assert row.value > row.floor + 4 * row.spread
        if row.name.startswith("coverage"):
            assert row.value < row.floor


def test_same_seed_same_result_and_nothing_is_left_changed():
    model, space = Normed(), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(48))
    real = torch.tanh(torch.randn(60, 3, 4, 4, generator=generator(0)))
    kept = real.clone()
    before = torch.get_rng_state()
    settings = {"reference": real, "spaces": [FeatureSpace("mine", space)]}
    first, again, other = (run(model, seed=s, **settings) for s in (0, 0, 1))
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(real, kept)
    assert model.training
    assert space.training
    assert all(p.grad is None for p in model.parameters())


# --- what it prints and stores --------------------------------------------------------------------


def test_table():
    found = Evaluation(
        (
            Score("VP", 0.81234, 0.013, chance=1 / 6, note="higher"),
            Score("FD[random 0, 2,000]", 12.5, 0.5, floor=1.25, note="lower"),
            Score("MIG", 0.25),
            Score("SAP", 0.5, 0.125, chance=0.02, chance_spread=0.0123),
        ),
        activeness=(0.01, 0.5),
        activeness_spread=(0.002, 0.03),
        settings={"seed": 0},
    )
    head, rule, *rows, last = str(found).splitlines()
    assert [row.split()[0] for row in rows] == ["VP", "FD[random", "MIG", "SAP"]
    # Numbers end under the end of their column's title.
    for title, cells in (
        ("value", ("0.8123", "12.5", "0.25", "0.5")),
        ("spread", ("0.013", "0.5", "-", "0.125")),
        ("chance level", ("0.1667", "-", "-", "0.02 +- 0.01")),
        ("real vs real", ("-", "1.25", "-", "-")),
    ):
        end = head.index(title) + len(title)
        assert all(row[:end].endswith(f" {cell}") for row, cell in zip(rows, cells, strict=True))
    assert len(rule) == max(map(len, (head, *rows)))
    # The most active coordinate first.
    assert last.endswith("1: 0.5 +- 0.03  0: 0.01 +- 0.002")


def test_record_is_plain_and_strict_json():
    found = run(reference=real_images(), factor_scores={"given": math.nan})
    record = found.to_dict()
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text) == record
    assert record["scores"][-1]["value"] is None
    assert [row["name"] for row in record["scores"]] == [s.name for s in found.scores]
    assert record["settings"]["budget"]["classifier"]["pairs"] == 48


def test_rows_are_found_by_name(plain):
    assert plain["VP"] is plain.scores[1]
    with pytest.raises(KeyError, match="no score 'FID'; the rows are active dimensions, VP"):
        plain["FID"]


# --- what bad input gets --------------------------------------------------------------------------


@pytest.mark.bad_input
def test_a_generator_with_noise_of_its_own_is_refused():
    random = generator(0)

    def noisy(z):
        return (disjoint(z) + 0.1 * torch.randn(len(z), 1, 12, 12, generator=random)).clamp(-1, 1)

    with pytest.raises(ConfigError, match="one image for one latent"):
        run(noisy)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda z: disjoint(z)[:, 0], ShapeError),
        (lambda z: disjoint(z) * torch.nan, NonFiniteError),
        (lambda z: disjoint(z) * 2, ConfigError),
        (lambda z: None, ConfigError),
    ],
    ids=["shape", "nan", "range", "none"],
)
def test_what_is_no_image_is_named(wrong, error):
    with pytest.raises(error, match=r"^evaluate"):
        run(wrong)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        (real_images(14), ShapeError, "at least 15 real images, got 14"),
        (real_images(40, side=8), ShapeError, r"\(1, 12, 12\).*got \(1, 8, 8\)"),
        (real_images(40, channels=3), ShapeError, r"got \(3, 12, 12\)"),
        (real_images(40).flatten(1), ShapeError, "of shape"),
        (real_images(40) * 200, ConfigError, "200"),
        (real_images(40) * torch.nan, NonFiniteError, "finite"),
        (real_images(40).long(), ConfigError, "int64"),
        (7, ConfigError, "with a length"),
    ],
    ids=["few", "size", "channels", "flat", "range", "nan", "int", "number"],
)
def test_wrong_real_images(reference, error, message):
    with pytest.raises(error, match=message):
        run(reference=reference)


@pytest.mark.bad_input
def test_real_images_that_are_indexed_wrongly():
    class Pairs:
        def __init__(self, give):
            self.give = give

        def __len__(self):
            return 40

        def __getitem__(self, index):
            return self.give(index)

    with pytest.raises(ConfigError, match="got str"):
        run(reference=Pairs(lambda index: "an image"))
    with pytest.raises(ShapeError, match=r"for k = \d+ indices"):
        run(reference=Pairs(lambda index: real_images(3)))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encode": lambda x: x}, "got only encode"),
        ({"dataset": Grid()}, "got only dataset"),
        ({"latent_dim": 1}, "at least two coordinates"),
        ({"seed": None}, "seed"),
        ({"reference": real_images(), "reference_range": "bytes"}, "reference_range"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        run(**settings)


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [1, 0, -3, 2.5, float("nan"), float("inf"), True, "many", None])
@pytest.mark.parametrize("kind", [Budget, FactorBudget, ClassifierBudget])
def test_a_budget_of_nonsense_is_refused_where_it_is_written(kind, value):
    counts = [f.name for f in dataclasses.fields(kind) if f.type == "int"]
    few = {"train_votes", "evaluation_votes", "pairs", "epochs", "width"} if value == 1 else set()
    for name in counts:
        if name not in few or isinstance(value, bool):
            with pytest.raises(ConfigError, match=f"{kind.__name__} needs {name}"):
                kind(**{name: value})
