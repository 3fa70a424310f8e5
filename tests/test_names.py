"""A public name that does not exist says which one was meant."""

from __future__ import annotations

import importlib

import pytest

import orthotrain

MODULES = ["orthotrain", *(f"orthotrain.{name}" for name in sorted(orthotrain._SUBMODULES))]


def said(module, name):
    with pytest.raises(AttributeError) as caught:
        getattr(importlib.import_module(module), name)
    return str(caught.value)


@pytest.mark.parametrize("module", MODULES)
def test_a_mistyped_name_gets_the_near_one(module):
    public = importlib.import_module(module).__all__
    meant = max(public, key=len)
    for name in (meant + "s", meant[:-1], meant.swapcase()):
        answer = said(module, name)
        assert answer.startswith(f"module {module!r} has no attribute {name!r}; did you mean ")
        assert answer.removesuffix("?").rsplit(".", 1)[-1] in public
    assert said(module, "xyzzy").endswith("'xyzzy'")


@pytest.mark.parametrize(
    ("acronym", "meant"),
    [
        ("NOG", "orthotrain.NearestOrthogonalGradient"),
        ("OLR", "orthotrain.OptimalLearningRate"),
        ("OIALR", "orthotrain.AdaptiveLowRank"),
        ("Nog", "orthotrain.NearestOrthogonalGradient"),
        ("DBN", "orthotrain.layers.DecorrelatedBatchNorm2d"),
        ("GCP", "orthotrain.layers.GlobalCovariancePool"),
        ("OL", "orthotrain.OrthogonalPenalty"),
        ("SN", "orthotrain.SpectralNormalization"),
    ],
)
@pytest.mark.parametrize("module", MODULES)
def test_an_acronym_of_the_papers_names_the_class(module, acronym, meant):
    assert f"did you mean {meant}?" in said(module, acronym)
    home, name = meant.rsplit(".", 1)
    assert getattr(importlib.import_module(home), name).__name__ == name


def test_submodules_can_still_be_imported():
    from orthotrain.linalg import matrices

    assert matrices.WeightLayout


def test_attach_of_methods_is_the_function():
    from orthotrain.methods import attach

    assert attach is orthotrain.attach
    assert callable(attach)
