"""Options of dataclasses, where a setting may be one of several classes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from orthotrain.cli.settings import add_settings, built, given_names


@dataclass(frozen=True)
class Wide:
    """Wide network.

    Attributes:
        width: Width in channels.
        heads: Attention heads.
    """

    width: int = 1
    heads: int = 2


@dataclass(frozen=True)
class Deep:
    """Deep network."""

    depth: int = 3
    stem: Literal["small", "large"] = "small"


@dataclass(frozen=True)
class Share:
    """A rule without a default."""

    share: float


@dataclass(frozen=True)
class Relative:
    """Another rule."""

    rtol: float = 0.1
    floor: float | None = None


@dataclass(frozen=True)
class LowRank:
    """A setting of several classes inside a group."""

    rank: Relative | Share = field(default_factory=Relative)
    delay: float | Literal["auto"] = 0.5


@dataclass(frozen=True)
class Run:
    """A run whose network is one of two."""

    name: str = "run"
    model: Wide | Deep = field(default_factory=Wide)
    lowrank: LowRank = field(default_factory=LowRank)
    decay_at: tuple[float, ...] = (0.5,)
    teacher: Wide | None = None


# What a recipe would say: no value is the default of its class.
DEEP = Run("deep", Deep(8, "large"), LowRank(Relative(0.3, 0.2), "auto"), (0.1, 0.2))


def parsed(*words, base=DEEP, file=None):
    """The run that words and a file describe."""
    options = [word[2:].split("=")[0] for word in words]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    add_settings(parser, Run, base, given=given_names(file or {}, options))
    config = [] if file is None else ["--config", yaml.safe_dump(file)]
    return built(Run, base, parser.parse_args([*config, *words]))


def test_without_options_the_settings_are_the_defaults():
    assert parsed() == DEEP
    assert parsed(base=Run()) == Run()


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["--model.depth=9"], {"model": Deep(9, "large")}),
        (["--model.stem=small"], {"model": Deep(8, "small")}),
        (["--lowrank.rank.rtol=.5"], {"lowrank": LowRank(Relative(0.5, 0.2), "auto")}),
        (["--lowrank.rank.floor=null"], {"lowrank": LowRank(Relative(0.3, None), "auto")}),
        (["--lowrank.delay=.1"], {"lowrank": LowRank(Relative(0.3, 0.2), 0.1)}),
        (["--decay_at=[.7]", "--name=other"], {"decay_at": (0.7,), "name": "other"}),
    ],
)
def test_an_option_changes_what_it_names_and_nothing_beside_it(words, changed):
    assert parsed(*words) == replace(DEEP, **changed)


def test_names_of_another_class_choose_it():
    assert parsed("--model.heads=4") == replace(DEEP, model=Wide(heads=4))
    assert parsed("--model.depth=4", base=Run()) == Run(model=Deep(4))
    chosen = parsed("--lowrank.rank.share=.9")
    assert chosen == replace(DEEP, lowrank=LowRank(Share(0.9), "auto"))


def test_what_is_unset_stays_so_until_a_setting_of_it_is_given():
    assert parsed("--model.depth=9").teacher is None
    assert parsed("--teacher.width=9").teacher == Wide(9)
    assert parsed(file={"teacher": {"heads": 4}}).teacher == Wide(heads=4)


def test_a_file_names_a_class_and_options_change_it():
    file = {"model": {"width": 5}, "lowrank": {"rank": {"share": 0.25}}}
    assert parsed(file=file).model == Wide(5)
    assert parsed(file=file).lowrank == LowRank(Share(0.25), "auto")
    assert parsed("--model.heads=7", file=file).model == Wide(5, 7)
    assert parsed("--lowrank.rank.share=.5", file=file).lowrank.rank == Share(0.5)


def test_what_is_written_is_read_again():
    for run in (DEEP, Run(), parsed("--lowrank.rank.share=.9", "--model.heads=4")):
        file = json.loads(json.dumps(asdict(run)))
        assert parsed(file=file) == run
        assert parsed(file=file, base=Run()) == run


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.depth=deep"], "model.depth"),
        (["--model.stem=medium"], "model.stem"),
        (["--model.height=1"], "--model.height"),
        (["--model.depth=1", "--model.width=1"], "--model.width"),
        (["--lowrank.rank.rtol=.1", "--lowrank.rank.share=.1"], "--lowrank.rank.share"),
    ],
)
def test_what_no_class_takes_is_an_error(words, message):
    with pytest.raises(ArgumentError, match=message):
        parsed(*words)


def test_help_says_what_the_docstrings_say(capsys):
    parser = ArgumentParser(exit_on_error=False)
    add_settings(parser, Run, Run(), given={})
    text = " ".join(parser.format_help().split())
    assert "--model.width WIDTH Width in channels. (type: int, default: 1)" in text
    assert "--model.depth" not in text
