import pytest

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.classifier.config import (
    DataConfig,
    OptimConfig,
    RecordConfig,
    SgdConfig,
)
from orthotrain.lab.experiments.lowrank.config import LowRankConfig, LowRankRun


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (DataConfig, {"batch_size": 0}, "batch_size=0"),
        (DataConfig, {"crop_padding": -1}, "crop_padding=-1"),
        (DataConfig, {"train_limit": 0}, "train_limit=0"),
        (OptimConfig, {"epochs": 0}, "epochs=0"),
        (OptimConfig, {"lr": float("nan")}, "lr=nan"),
        (OptimConfig, {"lr": 0.0}, "lr=0.0"),
        (OptimConfig, {"min_lr": 1.0}, "min_lr=1.0 must lie between 0 and"),
        (OptimConfig, {"warmup_fraction": 1.0}, "warmup_fraction=1.0"),
        (OptimConfig, {"clip_norm": 0.0}, "clip_norm=0.0"),
        (OptimConfig, {"label_smoothing": 1.0}, "label_smoothing=1.0"),
        (LowRankConfig, {"delay_fraction": -0.1}, "delay_fraction=-0.1"),
        (LowRankConfig, {"every_fraction": 0.0}, "every_fraction=0.0"),
        (DataConfig, {"crop_area": 0.5}, "crop_area=0.5 must lie in .*crop_padding=0"),
        (DataConfig, {"crop_area": 0.0, "crop_padding": 0}, "crop_area=0.0"),
        (DataConfig, {"image_size": 64}, "the images of digits have one size"),
        (DataConfig, {"name": "textures", "image_size": 4}, "image_size=4"),
        (SgdConfig, {"epochs": 0}, "epochs=0"),
        (SgdConfig, {"lr": -1.0}, "lr=-1.0"),
        (SgdConfig, {"momentum": 1.0}, "momentum=1.0"),
        (SgdConfig, {"decay_at": (0.5, 0.2)}, "decay_at"),
        (SgdConfig, {"decay_at": (1.0,)}, "decay_at"),
        (SgdConfig, {"decay_factor": 0.0}, "decay_factor=0.0"),
        (SgdConfig, {"head_lr_factor": 0.0}, "head_lr_factor=0.0"),
        (RecordConfig, {"log_every_steps": 0}, "log_every_steps=0"),
        (RecordConfig, {"stability_every_epochs": 0}, "stability_every_epochs=0"),
        (LowRankRun, {"recipe": "r", "seeds": ()}, "seeds is empty"),
        (LowRankRun, {"recipe": "r", "variants": ("a", "a")}, "names one twice"),
        (LowRankRun, {"recipe": "r", "seeds": (1, 1)}, "names one twice"),
        (LowRankRun, {"recipe": "r", "seeds": (-1,)}, "must not be negative"),
        (LowRankRun, {"recipe": "r", "threads": 0}, "threads=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


def test_a_record_in_short_says_steps_of_lines_and_epochs_of_the_rest():
    assert RecordConfig.every(steps=3, epochs=2) == RecordConfig(
        log_every_steps=3,
        eval_every_epochs=2,
        stability_every_epochs=2,
        checkpoint_every_epochs=2,
    )
