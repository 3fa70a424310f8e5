"""The claims, one row each; see ``ledger.py``.

A new record is one row: what it claims, where its figure is, which direction is good. A run that is
described nowhere yet gets one entry in ``ledger_runs.py`` besides. Tables of a run are kept as
``RECIPE_SCALE_TABLE.csv``. A row whose file is not there yet says "not run". Published figures are
those of the papers' abstracts, the authors' code and their figures; nothing else was available.
"""

from __future__ import annotations

from typing import Final

from ledger import Good, Row, Section
from ledger_records import BySeed, Compared, Counted, Share, Tested, Timed, Unpaired

# fmt: off

_GPT, _BITS = "stdlib_gpt_cpu", "Test loss (bits per byte)"
_ACCURACY, _STORED = "Test accuracy (%)", "Stored (% of dense)"
_COMPUTE = "Compute (% of the dense run)"
_PAPER, _TUNED = "OIALR, published settings", "OIALR, tuned"
_MIN_LOSS = "Minimal loss of accuracy with the published settings"
_FEWER = "Fewer trainable parameters with the published settings"
_SURPASSES = "Surpasses dense when tuned"
_BRANCH = "branch, 50 %, + 20 % of the steps"
_TEST = "test_accuracy_percent"

_SETTLING = "digits_settling_cpu"


def _forecasts() -> list[Row]:
    """Each strength beside dense, and beside the dense network that is regularised as well."""
    published = (
        "Autoformer, ETTm2, mean squared error: 192 steps ahead .2684 at 7.1 % trainable, dense "
        ".2741; 720 ahead .4201 at 37.2 %, dense .4201"
    )
    return [
        Row(f"{_SURPASSES} (forecaster), singular values below {strength} dropped",
            BySeed("ettm2_autoformer_cpu", f"OIALR, threshold {strength}", other, "test_mse"),
            "less", published if other == "dense" else "")
        for strength in ("0.1", "0.2", "0.35", "0.5")
        for other in ("dense", "dense, regularised")
    ] + [
        Row("Its control: a regularised dense forecaster surpasses the plain one",
            BySeed("ettm2_autoformer_cpu", "dense, regularised", "dense", "test_mse"), "less"),
    ]


OIALR: Final = Section(
    "OIALR: low-rank training in a settled basis (arXiv 2401.08505)",
    "*Trainable* counts what an optimizer updates. *Stored* also counts frozen bases.",
    (
        Row("Stability rises more than in a random walk of the same step sizes, falling rate",
            BySeed(_SETTLING, "falling rate", "random walk, steps of falling rate", "rise"),
            "more", "mean stability over 5 epochs, at epochs 10, 30, 100: ViT-B/16 .755, .878, "
            ".996; ResNet-RS101 .889, .939, .995"),
        Row("Stability rises more than in a random walk of the same step sizes, constant rate",
            BySeed(_SETTLING, "constant rate", "random walk, steps of constant rate", "rise"),
            "more"),
        *(Row(f"At the end bases are more stable than in that walk, {rate} rate",
              BySeed(_SETTLING, f"{rate} rate", f"random walk, steps of {rate} rate",
                     "end_stability"), "more")
          for rate in ("falling", "constant")),
        Row("Bases are as stable at the end without a falling rate",
            BySeed(_SETTLING, "constant rate", "falling rate", "end_stability"), "no less"),
        Row(_MIN_LOSS, Compared(_GPT, "oialr-paper", "dense", _BITS), "no more"),
        Row(f"{_MIN_LOSS} (ViT)", Unpaired("digits_minivit_cpu", _PAPER, "dense", _TEST),
            "no less"),
        Row(f"{_MIN_LOSS} (ViT)", Unpaired("cifar10_minivit_cpu", _PAPER, "dense", _TEST),
            "no less"),
        Row(f"{_FEWER} (ViT)", Share("digits_minivit_cpu", _PAPER, "trainable_percent_of_dense"),
            "less", published="down to 9.97 %"),
        Row(f"{_FEWER} (ViT)", Share("cifar10_minivit_cpu", _PAPER, "trainable_percent_of_dense"),
            "less", published="down to 9.97 %"),
        Row("Fewer stored numbers with the published settings (ViT)", Share("cifar10_minivit_cpu",
            _PAPER, "stored_percent_of_dense"), "less"),
        Row("Fewer stored numbers with the published settings", Compared(_GPT, "oialr-paper",
            "dense", _STORED), "less"),
        Row(f"{_SURPASSES} (ViT)", Unpaired("digits_minivit_cpu", _TUNED, "dense", _TEST),
            "more"),
        Row(f"{_SURPASSES} (ViT)", Unpaired("cifar10_minivit_cpu", _TUNED, "dense", _TEST),
            "more"),
        *_forecasts(),
        Row("As accurate as a narrow dense network of its stored size (ViT, tuned)",
            Unpaired("digits_minivit_cpu", _TUNED, "narrow dense", _TEST), "no less"),
        Row("As accurate as a narrow dense network of its stored size (ViT, tuned)",
            Unpaired("cifar10_minivit_cpu", _TUNED, "narrow dense", _TEST), "no less"),
        Row(f"{_MIN_LOSS} (convolutional network)", BySeed("cifar10_resnet_cpu_long", _PAPER,
            "dense", "test_accuracy"), "no less"),
        Row("A step takes no more time (frozen bases, a quarter of the rank)",
            Timed("peers", "low rank, frozen bases", "step", control="dense"), "no more",
            published="training time nearly identical, sometimes longer",
            scale="ViT of width 768, 8 images, one CPU thread"),
    ),
)

_DBN = ("cifar10_dbn_cpu", "cifar10_dbn_cpu_long")
_RANGE, _RIDGE, _ERROR = "Condition on the range", "Condition with the ridge", "Test error (%)"
_WITHOUT = "without 1e10"
_CURVES = {
    "NOG": f"2.2e5, {_WITHOUT}",
    "OLR": f"3.9e3, {_WITHOUT}",
    "NOG + OLR": f"2.8e5, {_WITHOUT}",
    "OW": "",
    "NOG + OW + OLR": f"5.3e2, {_WITHOUT}",
}


def _whitening(record: str) -> list[Row]:
    """NOG, OLR and both before whitening, the norm free and held; then orthogonal weights."""
    rows = []
    for name in ("NOG", "OLR", "NOG + OLR"):
        free, held = (
            (f"ZCA + {name}", "ZCA alone"),
            (f"ZCA + {name}, norm fixed", "ZCA, norm fixed"),
        )
        for measure, sense in ((_RANGE, "on the range"), (_RIDGE, "with the ridge")):
            claim = f"{name} conditions the whitened covariance better, {sense}"
            rows.append(Row(claim, Compared(record, *free, measure), "less", _CURVES[name]))
            if name != "NOG + OLR" or record != _DBN[0]:
                rows.append(
                    Row(f"{claim}, weight norm held", Compared(record, *held, measure), "less")
                )
        rows.append(Row(f"{name} adds no test error", Compared(record, *free, _ERROR), "no more"))
    for name in ("OW", "NOG + OW + OLR"):
        for measure, sense in ((_RANGE, "on the range"), (_RIDGE, "with the ridge")):
            claim = f"{name} conditions it better, {sense}"
            found = Compared(record, f"ZCA + {name}", "ZCA alone", measure)
            rows.append(Row(claim, found, "less", _CURVES[name]))
        found = Compared(record, f"ZCA + {name}", "ZCA alone", _ERROR)
        rows.append(Row(f"{name} adds no test error", found, "no more"))
    return rows


def _pooling(record: str) -> list[Row]:
    rows = []
    for name in ("NOG", "OLR", "NOG + OLR"):
        pair = (f"GCP + {name}", "GCP alone")
        rows += [
            Row(f"{name} conditions the pooled covariance better, on the range", Compared(record,
                *pair, _RANGE), "less"),
            Row(f"{name} before pooling adds no test error", Compared(record, *pair, _ERROR),
                "no more"),
        ]
    return rows


SPECTRAL: Final = Section(
    "NOG and OLR before a spectral layer (arXiv 2207.02119)",
    "NOG is the nearest-orthogonal gradient, OLR the optimal learning rate, OW an orthogonal "
    "weight, ZCA whitening, GCP covariance pooling. With the norm of the weight held, what is left "
    "is the direction. The layer's root alone is the control. The published conditions were read "
    "from a curve at step 130,000; in which sense they were computed is not known.",
    (
        *_whitening(_DBN[0]),
        Row("NOG adds to OW, with the ridge", Compared(_DBN[0], "ZCA + NOG + OW", "ZCA + OW",
            _RIDGE), "less", "5.3e2 together"),
        Row("OLR adds to OW, with the ridge", Compared(_DBN[0], "ZCA + OW + OLR", "ZCA + OW",
            _RIDGE), "less", "7.8e2 together"),
        *_pooling("texture_gcp_cpu"),
        *_pooling("clothing_gcp_cpu"),
        *_whitening(_DBN[1]),
        *_pooling("texture_gcp_cpu_long"),
    ),
)

_ALIGNED = "Alignment with the true directions"


def _latent() -> list[Row]:
    rows = [
        Row(f"{name} helps: coordinates closer to the true directions",
            Compared("latent_linear_cpu", name, "none", _ALIGNED), "more")
        for name in ("NOG", "OLR", "NOG + OLR", "OL")
    ]
    rows += [
        Row(f"{name} helps to disentangle: {measure}", Compared("sprites_eigengan_five", name,
            "none", measure), "more")
        for name in ("NOG", "OLR", "OL")
        for measure in ("Disentanglement by intervention", "MIG", "FactorVAE score")
    ]
    return [
        *rows,
        Row("NOG + OLR helps to disentangle: Disentanglement by intervention",
            Compared("sprites_eigengan_cpu", "NOG + OLR", "none",
            "Disentanglement by intervention" ), "more"),
        Row("OL helps more than directions found after training, linear",
            BySeed("latent_linear_cpu", "OL", "none", "alignment", after="_sefa",
            told="SeFa on the baseline"), "more"),
        *(Row(f"{name} helps more than directions found after training: Disentanglement by "
            "intervention", BySeed("sprites_eigengan_five", name, "none", "disentanglement",
            after="_sefa", told="SeFa on the baseline"), "more") for name in ("NOG", "OLR", "OL")),
        Row("NOG helps without worse images: Frechet distance", Compared("sprites_eigengan_five",
            "NOG", "none", "Frechet distance"), "no more"),
    ]


LATENT: Final = Section(
    "NOG and OLR at the latent weight of a generator (arXiv 2212.05599)",
    "OL is a penalty on `U U^T - I`. The control is the same training without a treatment.",
    _latent(),
)

_HALF = (
    "Half of the dense model's numbers, 20 % more steps: better than a narrow network of the size"
)


def _steps(row: str, title: str) -> Row:
    """A step with a quarter of the rank, or half of the numbers, beside a dense one."""
    table = "Forward, backward and AdamW"
    found = Timed("trained_factors", row, "to dense", table, control="dense")
    return Row(f"A step of trained factors is faster: {title}", found, "less", scale=_ONE_THREAD)


def _rivals(record: str, column: str, good: Good) -> list[Row]:
    names = (
        "dense", "narrow, 50 %", "fixed rank, 50 %", "Pufferfish-like, 50 %", "Cuttlefish-like",
        "GaLore-like", "ReLoRA-like", "LoRA (PEFT)", _PAPER,
    )
    found = {name: BySeed(record, "AdaptiveLowRank()", name, column) for name in names}
    return [
        Row("The default loses nothing against dense, each tuned alike", found["dense"],
            "no more" if good == "less" else "no less"),
        *(Row(f"The default is better than {name}, each tuned alike", one, good)
          for name, one in found.items()),
    ]


_ONE_THREAD = "one layer, one CPU thread, a ratio within rounds"

OURS: Final = Section(
    "This library",
    "What `AdaptiveLowRank()` and `orthotrain.sizes` are for, what they cost, what is promised.",
    (
        Row(_HALF, Compared(_GPT, "branch-50-20", "narrow, 50 %", _BITS), "less"),
        Row("The same, in compute after the dense run", Compared(_GPT, "branch-50-20",
            "narrow, 50 %", _COMPUTE), "less"),
        Row("The same with 5 % more steps", Compared(_GPT, "branch-50-5", "narrow, 50 %", _BITS),
            "less"),
        Row("The same, in compute after the dense run", Compared(_GPT, "branch-50-5",
            "narrow, 50 %", _COMPUTE), "less"),
        Row("At 30 % of the numbers, 37 % more steps", Compared(_GPT, "branch-30-37",
            "narrow, 30 %", _BITS), "less"),
        Row("At 75 % of the numbers, 5 % more steps", Compared(_GPT, "branch-75-5",
            "narrow, 75 %", _BITS), "less"),
        Row(_HALF, Compared("digits_minivit_branch_cpu", _BRANCH, "narrow, 50 %", _ACCURACY),
            "more"),
        Row(_HALF, Compared("cifar10_minivit_branch_cpu", _BRANCH, "narrow, 50 %", _ACCURACY),
            "more"),
        Row(_HALF.replace("network", "residual network"), Timed("branch_resnet",
            "branch 50% + 20% of the steps narrow 50%", "difference", "Paired differences", 0.0,
            "narrow 50 %, points of accuracy"), "more",
            scale="ResNet-18 of width 12, 3,000 images of CIFAR-10, 5 epochs, 3 seeds"),
        Row("Cut at half of the run: better than a narrow network of the size", Compared(_GPT,
            "half-50", "narrow, 50 %", _BITS), "less"),
        Row("The same, in compute with its dense half", Compared(_GPT, "half-50", "narrow, 50 %",
            _COMPUTE), "less"),
        Row("A branch at half of the numbers loses nothing against dense", Compared(_GPT,
            "branch-50-20", "dense", _BITS), "no more"),
        Row("At 50 %: better than a narrow network taught by the dense one for a run of its own",
            BySeed(_GPT, "branch-50-20", "narrow-50-teacher", "test_bits"), "less"),
        Row("At 75 %: better than a narrow network taught by the dense one for a run of its own",
            BySeed(_GPT, "branch-75-5", "narrow-75-teacher", "test_bits"), "less"),
        Row("A cut in the metric of the loss beats a plain one, each trained on",
            Timed("branch_ablation", "importance=weight (shares of energy)", "at the end",
            target=0.0, control="the loss's cut; what the plain one loses, bits per byte"),
            "more", scale="GPT of 0.43 M, half of the numbers, 10 % more steps, 3 seeds"),
        Row("Frozen bases gain by both repairs at the same ranks", BySeed(_GPT, "frozen-50",
            "frozen-50-plain", "test_bits"), "less"),
        Row("Frozen bases are as good as trained ones at the same size", BySeed(_GPT, "frozen-50",
            "half-50", "test_bits"), "no more"),
        Row("Cut at half of the run: better than a narrow residual network",
            BySeed("cifar10_resnet_cpu_long", "cut at half, 50 %", "narrow, 50 %",
            "test_accuracy"), "more"),
        Row("Cut at half of the run, half of the numbers: no more error than dense (forecaster)",
            BySeed("ettm2_autoformer_cpu", "cut at half, 50 %", "dense", "test_mse"), "no more"),
        Row("The same: better than a narrow forecaster", BySeed("ettm2_autoformer_cpu",
            "cut at half, 50 %", "narrow, 50 %", "test_mse"), "less"),
        *_rivals("stdlib_gpt_rivals_cpu", "test_bits", "less"),
        *_rivals("cifar10_minivit_rivals_cpu", "test_accuracy", "more"),
        _steps("Linear 768 to 768", "linear, width 768"),
        _steps("Linear 256 to 256", "linear, width 256"),
        _steps("Linear 128 to 128", "linear, width 128"),
        _steps("Conv 128 3x3", "convolution of 128 channels"),
        Row("A block of width 96 is faster at a quarter of the rank, one image",
            Timed("vit_block", "96 1", "to dense", control="dense"), "less",
            scale="ViT block, one CPU thread"),
        Row("A block of width 768 is faster at a quarter of the rank", Timed("vit_block", "768 8",
            "to dense", control="dense"), "less", scale="ViT block, one CPU thread"),
        Row("Training takes less memory, trained bases", Compared("digits_minivit_branch_cpu",
            "cut at half, 50 %", "dense", "Training memory at the end (MiB)"), "less"),
        Row("Training takes less memory, frozen bases", Compared("digits_minivit_branch_cpu",
            "frozen bases, 50 %", "dense", "Training memory at the end (MiB)"), "less"),
        Row("Inference costs at most 1.05 of two plain layers, width 128, 256 rows",
            Timed("inference", "Linear 128 to 128, 256 rows 0.25", "trained to two", target=1.05,
            control="two plain layers"), "less", scale=_ONE_THREAD),
        Row("Inference costs at most 1.05 of two plain layers, width 768, 4,096 rows",
            Timed("inference", "Linear 768 to 768, 4096 rows 0.5", "trained to two", target=1.05,
            control="two plain layers"), "less", scale=_ONE_THREAD),
        Row("NOG's polar factor is cheaper than an SVD, 256x2304", Timed("polar", "1e+04",
            "over svd", "Polar factor of 256x2304", control="torch's SVD"), "less",
            scale="condition 1e4, one CPU thread"),
        Row("NOG's polar factor is cheaper than an SVD, 64x27", Timed("polar", "1e+04",
            "over svd", "Polar factor of 64x27", control="torch's SVD"), "less",
            scale="condition 1e4, one CPU thread"),
        Row("NOG + OLR do not slow a step", Timed("gradient_methods", "whole step with NOG + OLR",
            "measured", control="no method"), "no more",
            scale="ResNet-18 of width 64, batch of 128, one CPU thread"),
        Row("`attach` with nothing due does not slow a step", Timed("attach_overhead",
            "whole step, ratio", "measured", control="no `attach`"), "no more",
            scale="small ViT, batch of 32, one CPU thread"),
        Row("A killed training goes on bit for bit", Counted("same_bits",
            "trainings equal bit for bit"), "no less", scale="nine recipes at scale smoke"),
        Row("A low-rank training saved at any step goes on bit for bit",
            Tested("tests/lowrank/test_resume.py",
            "test_saved_at_any_step_a_run_goes_on_bit_for_bit", "a run without a break"),
            "no less", scale="small networks"),
        Row("Two processes train what one trains", Tested("tests/lab/run/test_team.py",
            "test_a_team_trains_what_one_process_trains", "one process"), "no less",
            scale="small networks, float64"),
    ),
)

SECTIONS: Final = (OIALR, SPECTRAL, LATENT, OURS)
