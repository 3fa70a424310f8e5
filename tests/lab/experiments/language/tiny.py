"""A language model so small that a test can train it, kill it and train it again."""

from dataclasses import replace

import torch

from orthotrain.data.stdlib_text import PartSize, TextData
from orthotrain.lab.experiments.branches.variants import DENSE
from orthotrain.lab.experiments.catalog import recipe_config
from orthotrain.lab.experiments.language.build import build_on
from orthotrain.lab.experiments.language.config import LanguageRecord
from orthotrain.lab.experiments.language.variants import language_variants
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import SeedFolder

_SMOKE = recipe_config("stdlib-gpt", "smoke")
CONFIG = replace(
    _SMOKE,
    optim=replace(_SMOKE.optim, steps=60),
    record=LanguageRecord(
        log_every_steps=1,
        eval_every_steps=12,
        checkpoint_every_steps=5,
        eval_windows=8,
        final_windows=16,
    ),
)


def text_of(size, seed):
    """Bytes that can be learned: a few words in random order."""
    generator = torch.Generator().manual_seed(seed)
    words = [b"def ", b"return ", b"self.", b"x = 1\n", b"for i in range(3):\n"]
    order = torch.randint(len(words), (size // 4,), generator=generator).tolist()
    joined = b"".join(words[i] for i in order)[:size]
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8)


class CountedTest:
    """The test part; counts how often it is read."""

    def __init__(self):
        self.reads = 0

    def __call__(self):
        self.reads += 1
        return text_of(300, 2)


def tiny_text():
    size = PartSize(files=1, bytes=300)
    sizes = {"train": PartSize(files=4, bytes=2000), "validation": size, "test": size}
    return TextData(text_of(2000, 0), text_of(300, 1), CountedTest(), "ab" * 32, sizes)


def variant_of(name, config=CONFIG, *, dense=None):
    found = next(one for one in language_variants(config) if one.name == name)
    return found if dense is None else found.with_trainings([dense])


def trainer_of(name=DENSE, seed=0, *, config=CONFIG, dense=None, data=None):
    return build_on(data or tiny_text(), config, variant_of(name, config, dense=dense), seed)


def build_tiny(config, variant, seed):
    """What jobs are given in place of the real text."""
    return build_on(tiny_text(), config, variant, seed)


def train_here(folder, *, name=DENSE, config=CONFIG, dense=None, data=None, **options):
    return train(
        trainer_of(name, config=config, dense=dense, data=data),
        variant=variant_of(name, config, dense=dense), seed=0, folder=SeedFolder(folder), **options,
    )  # fmt: skip
