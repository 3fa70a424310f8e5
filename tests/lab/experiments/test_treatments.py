"""A treatment is one row: with it come its variants and its method, in both families."""

from orthotrain.lab.experiments import treatments
from orthotrain.lab.experiments.latent.build import build_methods as latent_methods
from orthotrain.lab.experiments.latent.config import LatentRun, latent_variants
from orthotrain.lab.experiments.spectral.build import build_methods as spectral_methods
from orthotrain.lab.experiments.spectral.config import SpectralRun, spectral_variants
from orthotrain.methods import Retraction


def test_one_more_row_is_a_variant_of_both_families(monkeypatch):
    row = treatments.Treatment(
        "stay", "STAY", "{weight} brought back", (treatments.SPECTRAL, treatments.LATENT),
        lambda weight, settings: Retraction(weight, onto="norm"),
    )  # fmt: skip
    monkeypatch.setattr(treatments, "TREATMENTS", [*treatments.TREATMENTS, row])
    spectral = next(v for v in spectral_variants(SpectralRun()) if v.name == "stay")
    latent = next(v for v in latent_variants(LatentRun()) if v.name == "stay")
    assert (spectral.title, spectral.note) == ("ZCA + STAY", "the weight before it brought back")
    assert (latent.title, latent.note) == ("STAY", "the latent weight brought back")
    assert "stay-sgd" in {v.name for v in latent_variants(LatentRun())}
    assert spectral_methods(spectral, SpectralRun())[0] == Retraction("stem", onto="norm")
    assert latent_methods(latent, LatentRun())[0] == Retraction("*.u", onto="norm")


def test_methods_are_attached_in_the_published_order():
    settings = treatments.Settings(penalty=0.5, record_every=7)
    names = [row.name for row in reversed(treatments.TREATMENTS)]
    methods = treatments.methods_of(names, weight="stem", settings=settings)
    kinds = [method.name for method in methods]
    assert kinds[:2] == ["orthogonal_penalty", "nearest_orthogonal_gradient"]
    assert kinds.index("optimal_learning_rate") > kinds.index("nearest_orthogonal_gradient")
    assert len(methods) == sum(row.make is not None for row in treatments.TREATMENTS)
    assert methods[0].weight == 0.5
    assert {m.record_every for m in methods if hasattr(m, "record_every")} == {7}
