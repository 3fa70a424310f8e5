import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cli.calls import SOURCE, fails, without
from orthotrain.cli import main
from orthotrain.cli.bench import benchmark_scripts
from orthotrain.cli.main import LABORATORY, build_parser
from orthotrain.cli.parser import parse_run, run_parser
from orthotrain.cli.train import worker_count
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe, recipe_config, recipe_names
from orthotrain.lab.run.record import RunFolder

LOWRANK = {
    "delay_fraction", "every_fraction", "rank", "importance", "bases", "core_step",
    "layer_fraction", "max_drop", "min_rank_fraction", "only_if_cheaper", "optimizer_state",
    "dense_first",
}  # fmt: skip
SETTINGS = {
    "data": {
        "name", "dir", "image_size", "batch_size", "crop_padding", "crop_area", "flip",
        "train_limit", "mixup",
    },
    "model": {"patch_size", "width", "depth", "heads", "mlp_ratio"},
    "optim": {
        "epochs", "lr", "min_lr", "warmup_fraction", "weight_decay", "clip_norm",
        "label_smoothing",
    },
    "record": {
        "log_every_steps", "eval_every_epochs", "stability_every_epochs",
        "checkpoint_every_epochs",
    },
    "branch": {"warmup_fraction", "teacher_share", "rate_factor", "steps_fraction"},
}  # fmt: skip
# Recipes with a spectral layer have a network, an optimizer and settings of their own.
SPECTRAL_SETTINGS = {
    "data": SETTINGS["data"],
    "record": SETTINGS["record"],
    "model": {
        "depth", "width", "stem_channels", "stem", "last_stride", "reduced_channels",
    },
    "optim": {
        "epochs", "lr", "momentum", "weight_decay", "decay_at", "decay_factor",
        "head_lr_factor", "clip_norm", "label_smoothing",
    },
    "spectral": {
        "layer", "ridge", "relative_ridge", "group_size", "ns_iterations", "penalty",
        "nog_scale", "nog_when", "olr_target", "olr_floor", "monitor_every_steps",
    },
}  # fmt: skip
COMMON = {
    "help",
    "recipe",
    "config",
    "print_config",
    "scale",
    "workers",
    "storage",
    "device",
    "precision",
    "threads",
}
# A new option is a decision: it is made here, too.
OPTIONS = {
    "train": COMMON
    | {"run-dir", "resume", "report", "variants", "seeds"}
    | {f"{group}.{name}" for group, names in SETTINGS.items() for name in names}
    | {f"{group}.{name}" for group in ("paper", "tuned") for name in LOWRANK}
    | {"own"},
    # What the search decides is no option of it.
    "tune": COMMON
    | {"run-dir", "output", "trials", "parts", "objectives", "at-most"}
    | {f"{group}.{name}" for group, names in SETTINGS.items() for name in names}
    | {f"{group}.{name}" for group in ("paper", "tuned") for name in LOWRANK},
    "report": {"help", "output"},
    "inspect": {"help", "key", "also", "max-aspect", "json", "picture"},
    "compress": {
        "help",
        "key",
        "also",
        "max-aspect",
        "rank",
        "stored-budget",
        "out",
        "dense",
        "only",
        "skip",
    },
    "bench": {"help"},
}
OPTIONS["tune"] -= find_recipe("digits-minivit").tuned_by().decides

# A run of seconds: one epoch on a small network.
QUICK = [
    "digits-minivit", "--scale", "smoke", "--optim.epochs", "1", "--data.batch_size", "256",
    "--model.width", "8", "--model.depth", "1", "--workers", "1",
]  # fmt: skip


def parser_of(command, recipe="digits-minivit"):
    if command in ("train", "tune"):
        return run_parser(command, recipe_config(recipe, "cpu"), {})
    return build_parser()._subparsers._group_actions[0].choices[command]


def config_of(*arguments):
    """The run that the options of ``train`` describe, of digits-minivit where none is named."""
    words = [*map(str, arguments)]
    names = (*recipe_names(), "--config", "--resume", "--recipe")
    named = any(word.split("=")[0] in names for word in words)
    return parse_run("train", words if named else ["digits-minivit", *words]).config


def options_of(parser):
    return {s[2:] for a in parser._actions for s in a.option_strings if s.startswith("--")}


@pytest.mark.parametrize("command", OPTIONS)
def test_options_are_the_frozen_set(command):
    assert options_of(parser_of(command)) == OPTIONS[command]


@pytest.mark.parametrize("recipe", ["cifar10-dbn", "texture-gcp", "clothing-gcp"])
def test_options_of_spectral_recipes_are_the_frozen_set(recipe):
    assert options_of(parser_of("train", recipe)) == (
        COMMON
        | {"run-dir", "resume", "report", "variants", "seeds", "own"}
        | {f"{group}.{name}" for group, names in SPECTRAL_SETTINGS.items() for name in names}
    )


def test_commands_are_the_frozen_set():
    assert set(build_parser()._subparsers._group_actions[0].choices) == set(OPTIONS)


def test_a_recipe_may_stand_behind_two_dashes(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--scale", "smoke", "--print_config", "--", "latent-linear"])
    assert end.value.code == 0
    assert "\nrecipe: latent-linear\n" in capsys.readouterr().out


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "digits-minivit", "latent-linear"], "need one recipe, got digits-minivit and"),
        (["train", "digits-minivit", "--recipe", "latent-linear"], "need one recipe"),
        (["train", "--recipe", "digits-minivit", "--recipe", "latent-linear"], "need one recipe"),
        (
            ["train", "--resum", "latent-linear", "--workers", "9"],
            "unrecognized arguments: --resum",
        ),
        (["train", "nope"], "recipe 'nope' does not exist; choose from stdlib-gpt"),
        (
            ["train", "cifar10-dbn", "--tuned.rank", "energy=1"],
            "unrecognized arguments: --tuned.rank",
        ),
        (["train", "cifar10-dbn", "--variants", "gcp"], "'gcp' is not a variant; choose from bn"),
        (["train", "cifar10-dbn", "--spectral.ridge", "-1"], "spectral.ridge=-1"),
        (["train", "cifar10-dbn", "--model.depth", "20"], "model.depth"),
        (["tune", "cifar10-dbn"], "cifar10-dbn has no settings to search for"),
        (["train", "--nope", "1"], "unrecognized arguments: --nope"),
        (["train", "--optim.lr", "fast"], "optim.lr"),
        (["train", "digits-minivit", "--optim.lr", "-1"], "optim.lr=-1.0 must be positive"),
        (["train", "--scale", "huge"], "has no scale 'huge'; choose from smoke"),
        (
            ["train", "--config", "/does/not/exist.yaml"],
            "exist.yaml does not exist; need a YAML file",
        ),
        (
            ["train", "digits-minivit", "--paper.delay_fraction", "-0.5"],
            "delay_fraction=-0.5 must lie in [0, 1)",
        ),
        (["train", "--variants", "wide"], "'wide' is not a variant"),
        (["train", "--seeds", "-1"], "must not be negative"),
        (["train", "--workers", "9999"], "--workers 9999: need 1 to "),
        (["train", "--resume"], "--resume needs the folder"),
        (["train", "--resume", "--run-dir", "/does/not/exist"], "does not exist"),
        (["train", "--resume", "--run-dir", "x", "--config", "y"], "leave --config out"),
        (["tune", "--output", "/does/not/exist/x.json"], "make the folder"),
        (["tune", "--output", "/"], "a folder has this name"),
        (["tune", "--run-dir", "a", "--output", "a/run.json"], "file of the search itself"),
        (["report"], "required: RUN"),
        (["report", "/does/not/exist"], "/does/not/exist"),
        (["inspect", "/does/not/exist.pt"], "/does/not/exist.pt does not exist"),
        (["inspect", "/does/not/exist.safetensors"], "does not exist"),
        (["inspect", "/usr"], "is a folder without weights: no .safetensors, .bin"),
        (["inspect", "x" * 300], "choose a shorter name"),
        (["inspect", f"{'x' * 300}.safetensors"], "choose a shorter name"),
        (["compress", "x" * 300, "--rank", "energy=.9", "-o", "y"], "choose a shorter name"),
        (["compress", "x", "--rank", "energy=.9", "-o", "y" * 300], "choose a shorter name"),
        (["compress", "x", "--rank", "energy=.9", "-o", "/does/not/exist/y"], "make the folder"),
        (["compress", "x", "--rank", "energy=.9", "-o", "/dev/null/y"], "needs a folder"),
        (["compress", "x", "--rank", "energy=.9", "-o", "/"], "a folder has this name"),
        (["report", "x" * 300], "choose a shorter name"),
        (["train", "--config", "x" * 300], "choose a shorter name"),
        (["train", "--config", "/"], "cannot be read ([Errno 21] Is a directory"),
        (["compress", "/x.pt", "-o", "/y"], "one of the arguments --rank --stored-budget"),
        (
            ["compress", "x", "--rank", "energy=1", "--stored-budget", "1", "-o", "/y"],
            "not allowed",
        ),
        (["compress", "x.safetensors", "--stored-budget", ".5", "-o", "y"], "does not exist"),
        (["compress", "x", "--stored-budget", "2", "-o", "y"], "a share in (0, 1], got 2.0"),
        (["compress", "x", "--stored-budget", ".5", "-o", "y.pt"], "name it y.safetensors"),
        (["compress", "x", "--stored-budget", ".5", "-o", "y", "--also", "x"], "choose from"),
        (["compress", "/x.pt", "--rank", "energy:.9", "-o", "/y"], "energy=NUMBER, stored_budget"),
        (["bench", "nope"], "'nope' does not exist; choose from"),
    ],
)
def test_mistakes_are_one_clear_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("optim: {speed: 3}\n", "speed"),
        ("optim: [\n", "is no configuration"),
        ("- 1\n", "need settings by name"),
        ("nope: 1\n", "nope"),
        ("optim: 5\n", "optim: 5 is no group of settings"),
        ("optim: [5]\n", "no group of settings"),
        ("1: 2\n", "names that are no text"),
        ("recipe: [1]\n", "recipe: [1] is no name"),
        ("scale: {a: 1}\n", "scale: {'a': 1} is no name"),
        ("recipe: stdlib-gpt\n", "need one recipe, got digits-minivit and stdlib-gpt"),
    ],
)
def test_a_config_file_with_an_unknown_key_or_no_yaml_is_refused(
    capsys, tmp_path, content, message
):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    name = ["digits-minivit"] if content.startswith("recipe: std") else []
    line = [*name, "--config", path, "--run-dir", tmp_path / "run"]
    assert message in fails(capsys, "train", *line)
    assert not (tmp_path / "run").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "content", ["optim: {lr: 0.1}\n", "optim.lr: 0.1\n", "own: {dense: {optim.lr: 0.1}}\n"]
)
def test_a_search_refuses_a_file_that_gives_what_it_decides(capsys, tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    name = content.split(":")[0] if content.startswith("own") else "optim.lr"
    said = f"{path} gives {name}, which the search decides; leave that out"
    assert said in fails(capsys, "tune", "digits-minivit", "--config", path)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "1000000"], "threads=1000000 must be 1 to 1024"),
        (["--device", "cuda"], "device=cuda needs a GPU"),
        (["--run-dir", "x" * 300], "cannot be written"),
    ],
)
def test_what_the_machine_cannot_do_is_one_clear_line(
    capsys, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert message in fails(capsys, "train", *QUICK, *options)
    assert not list(tmp_path.iterdir())  # nothing was written


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\xff\xfe", "no configuration"),
        (b"optim: [1,", "no configuration"),
        (b"- 1", "need settings by name"),
    ],
)
def test_a_run_folder_with_garbage_in_its_settings_is_refused(capsys, tmp_path, content, message):
    (tmp_path / "config.yaml").write_bytes(content)
    assert message in fails(capsys, "train", *QUICK, "--run-dir", tmp_path)
    assert (tmp_path / "config.yaml").read_bytes() == content


def make_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


def write(content):
    def put(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    return put


# What lies in a run folder in place of a file of the run, and what the one line says of it.
GARBAGE = {
    "run.json": [(write("{"), "need a JSON file"), (make_folder, "Is a directory")],
    "config.yaml": [(make_folder, "Is a directory")],
    ".lock": [(make_folder, "a folder has this name")],
    "variants": [(write(""), "a file stands where")],
    "variants/dense/seed-0": [(write(""), "something else has this name")],
    "variants/dense/seed-0/metrics.jsonl": [(make_folder, "a folder has this name")],
    "variants/dense/seed-0/checkpoint.pt": [
        (make_folder, "a folder has this name"),
        (write("PK"), "is damaged"),
    ],
    "variants/dense/seed-0/result.json": [
        (make_folder, "Is a directory"),
        (write("{}"), "is not the result of dense with seed 0"),
        (write('{"variant": "dense", "seed": 1, "steps": 3}'), "is not the result of dense"),
        (write('{"variant": "dense", "seed": 0, "steps": "3"}'), "is not the result of dense"),
        (write("[" * 100_000), "need a JSON file"),
    ],
}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "put", "message"),
    [(name, *one) for name, several in GARBAGE.items() for one in several],
)
def test_garbage_in_a_run_folder_is_one_clear_line_before_anything_trains(
    capsys, tmp_path, monkeypatch, name, put, message
):
    def trained(*arguments, **options):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(
        "orthotrain.lab.experiments.classifier.trainer.ClassifierTrainer.step", trained
    )
    line = [*QUICK, "--variants", "dense", "--seeds", "0", "--run-dir", tmp_path]
    put(tmp_path / name)
    assert message in fails(capsys, "train", *line)


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", ["same", "link", "hard link"])
def test_compress_does_not_write_over_what_it_reads(capsys, tmp_path, kind):
    path, output = tmp_path / "checkpoint.pt", tmp_path / "out.safetensors"
    path.write_bytes(b"weights")
    if kind == "same":
        output = tmp_path / "x" / ".." / "checkpoint.pt"
        (tmp_path / "x").mkdir()
    elif kind == "link":
        output.symlink_to(path)
    else:
        output.hardlink_to(path)
    error = fails(capsys, "compress", path, "--rank", "energy=.9", "-o", output)
    assert "is the file that is read" in error
    assert path.read_bytes() == b"weights"


@pytest.mark.bad_input
def test_a_report_does_not_go_among_the_files_of_a_run(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for output in ("run", "link"):
        error = fails(capsys, "report", tmp_path / "run", "-o", tmp_path / output)
        assert "is the folder of a run" in error


@pytest.mark.bad_input
def test_settings_that_do_not_fit_together_are_one_clear_line(capsys, tmp_path):
    error = fails(capsys, "train", *QUICK, "--model.heads", "3", "--run-dir", tmp_path / "a")
    assert "width=8 is no multiple of heads=3" in error
    error = fails(capsys, "train", *QUICK, "--data.batch_size", "5000", "--run-dir", tmp_path / "b")
    assert "batch_size=5000 does not fit 1079 images" in error
    error = fails(
        capsys, "train", *QUICK, "--variants", "oialr-paper", "--paper.rank", "rank_rtol=1.5",
        "--run-dir", tmp_path / "c",
    )  # fmt: skip
    assert "rank_rtol" in error
    assert not (tmp_path / "c").exists()  # refused before anything is written
    error = fails(
        capsys, "train", "cifar10-minivit", *QUICK[1:], "--data.dir", tmp_path, "--run-dir",
        tmp_path / "d",
    )  # fmt: skip
    assert "cifar10_jpeg.npz" in error
    error = fails(
        capsys, "train", "texture-gcp", "--scale", "smoke", "--data.name", "image-folder",
        "--data.dir", tmp_path, "--workers", "1", "--run-dir", tmp_path / "e",
    )  # fmt: skip
    assert "has no folder train" in error


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "recipe: cifar10-minivit\nscale: full\noptim: {lr: 0.5, epochs: 7}\nseeds: [5]\n"
    )
    config = config_of("--config", path, "--optim.lr", "0.25")
    assert (config.recipe, config.scale) == ("cifar10-minivit", "full")
    assert (config.optim.lr, config.optim.epochs, config.seeds) == (0.25, 7, (5,))
    assert config.model == recipe_config("cifar10-minivit", "full").model


def test_values_may_be_unset_and_auto():
    config = config_of(
        "--optim.clip_norm", "null", "--tuned.rank", "energy=.9",
        "--paper.delay_fraction", "auto",
    )  # fmt: skip
    assert config.optim.clip_norm is None
    assert config.tuned.rank == "energy=.9"
    assert config.paper.delay_fraction == "auto"


@pytest.mark.parametrize(
    "line",
    [
        ["--run-dir", "latent-linear"],
        ["--run-dir=latent-linear"],
        ["--data.dir", "latent-linear"],
        ["--config", "latent-linear.yaml"],
    ],
    ids=" ".join,
)
def test_a_value_of_an_option_is_no_recipe(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latent-linear.yaml").write_text("data: {batch_size: 7}\n")
    assert parse_run("train", line).config.recipe == "stdlib-gpt"
    assert config_of(*line, "cifar10-minivit", "--seeds", 7).recipe == "cifar10-minivit"


def test_the_printed_settings_are_a_configuration_file(capsys, tmp_path):
    line = ["cifar10-dbn", "--spectral.ridge", "0.5", "--seeds", "4", "--optim.decay_at", "[0.5]"]
    with pytest.raises(SystemExit, match="0"):
        main(["train", *line, "--print_config"])
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out)
    assert config_of("--config", path) == config_of(*line)


@pytest.mark.bad_input
def test_a_run_goes_on_as_what_it_is(capsys, tmp_path):
    RunFolder(tmp_path).open(config_of("latent-linear", "--seeds", "3", "--optim.steps", "5"))
    config = config_of("--resume", "--run-dir", tmp_path)
    assert (config.recipe, config.seeds, config.optim.steps) == ("latent-linear", (3,), 5)
    for other in (["digits-minivit"], ["--scale", "smoke"]):
        error = fails(capsys, "train", *other, "--resume", "--run-dir", tmp_path)
        assert f"not of {other[-1]}" in error


def test_the_recipe_of_a_spectral_run_is_found_wherever_it_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("recipe: cifar10-dbn\nspectral: {ridge: 0.5}\noptim: {decay_at: [0.5]}\n")
    for line in (
        ["--spectral.ridge", "0.5", "--optim.decay_at", "[0.5]", "cifar10-dbn"],
        ["--recipe=cifar10-dbn", "--spectral.ridge", "0.5", "--optim.decay_at", "[0.5]"],
        ["--config", str(path)],
    ):
        config = config_of(*line)
        assert config == replace(
            recipe_config("cifar10-dbn", "cpu"),
            spectral=replace(recipe_config("cifar10-dbn", "cpu").spectral, ridge=0.5),
            optim=replace(recipe_config("cifar10-dbn", "cpu").optim, decay_at=(0.5,)),
        )


def test_what_is_given_for_a_variant_goes_beside_what_the_recipe_gives(tmp_path):
    recipes = recipe_config("digits-minivit", "cpu").own
    given = {"narrow-50": {"optim.lr": 0.1}, "half-50": {"optim.lr": 0.2}}
    words = ["digits-minivit", "--scale", "cpu"]
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"own": given}))
    for options in (["--own", json.dumps(given)], ["--config", str(path)]):
        own = parse_run("train", [*words, *options]).config.own
        assert own == {**recipes, "narrow-50": {**recipes["narrow-50"], "optim.lr": 0.1},
                       "half-50": {"optim.lr": 0.2}}  # fmt: skip
    assert len(recipes["narrow-50"]) > 1


def test_own_settings_of_file_and_command_line_are_merged_and_an_empty_one_takes_back(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("own: {half-50: {optim.lr: 0.5}, narrow-50: {}}\n")
    line = ["digits-minivit", "--scale", "cpu", "--config", str(path)]
    own = parse_run("train", [*line, "--own", '{"dense": {"optim.lr": 0.1}}']).config.own
    assert (own["half-50"], own["dense"], own["narrow-50"]) == (
        {"optim.lr": 0.5}, {"optim.lr": 0.1}, {},
    )  # fmt: skip
    assert own["narrow-50-short"] == recipe_config("digits-minivit", "cpu").own["narrow-50-short"]


def test_a_resumed_run_has_the_own_settings_of_its_folder_alone(tmp_path):
    for own in ({}, {"dense": {"optim.lr": 0.1}}):
        folder = RunFolder(tmp_path / str(len(own)))
        folder.path.mkdir()
        folder.open(replace(recipe_config("digits-minivit", "smoke"), own=own))
        resumed = parse_run("train", ["--resume", "--run-dir", str(folder.path)]).config
        assert resumed.own == own


def test_a_known_recipe_goes_before_a_value_that_looks_like_one_of_a_users_own():
    config = config_of("--run-dir", "host:folder", "cifar10-dbn")
    assert config.recipe == "cifar10-dbn"


def test_options_of_a_search_take_several_names():
    line = ["digits-minivit", "--parts", "branch-50", "oialr-tuned", "--at-most", "stored=0.5"]
    arguments = parse_run("tune", [*line, "--objectives", "loss", "stored"]).arguments
    assert arguments.parts == ["branch-50", "oialr-tuned"]
    assert (arguments.at_most, arguments.objectives) == (["stored=0.5"], ["loss", "stored"])


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("scale", ["smoke", "cpu", "full"])
def test_without_options_the_settings_are_the_recipes(name, scale):
    assert config_of(name, "--scale", scale) == recipe_config(name, scale)
    assert parse_run("tune", [name, "--scale", scale]).config == recipe_config(name, scale)


def test_train_inspect_compress_report_and_train_again(capsys, tmp_path):
    run = tmp_path / "run"
    arguments = ["train", *QUICK, "--variants", "dense", "oialr-paper", "--run-dir", str(run)]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == f"report: {run / 'report' / 'index.html'}"
    assert "OIALR, published settings" in output
    assert output.count("oialr-paper: all layers switch after step") == 1
    assert json.loads((run / "run.json").read_text())["command"].startswith("orthotrain train")

    # The resolved settings are a config file of the same run.
    again = ["train", "--config", str(run / "config.yaml"), "--run-dir", str(run), "--workers", "1"]
    for command in (arguments, again, ["train", "--resume", "--run-dir", str(run)]):
        assert main([*command, "--report", "false"]) == 0
        assert capsys.readouterr().out.count("was done before") == 2

    checkpoint = run / "variants" / "oialr-paper" / "seed-0" / "checkpoint.pt"
    assert main(["inspect", str(checkpoint)]) == 0
    table = capsys.readouterr().out
    assert "blocks.0.attention.query" in table
    assert "8x8" in table
    small = tmp_path / "small.safetensors"
    assert main(["compress", str(checkpoint), "--rank", "rank_rtol=0.5", "-o", str(small)]) == 0
    assert "numbers stored" in capsys.readouterr().out
    assert main(["inspect", str(small)]) == 0

    error = fails(capsys, *arguments, "--optim.lr", "0.5")
    assert "optim.lr is" in error
    assert "--resume" in error


def test_a_run_of_generators_ends_with_a_table_that_fits_a_line(capsys, tmp_path):
    arguments = ["--scale", "smoke", "--variants", "baseline", "nog", "--workers", "1"]
    folder = tmp_path / "run"
    assert main(["train", "latent-linear", *arguments, "--run-dir", str(folder)]) == 0
    *_, heading, baseline, nog, report = capsys.readouterr().out.splitlines()
    assert max(map(len, (heading, baseline, nog))) <= 120
    assert report.startswith("report: ")
    assert (folder / "report" / "index.html").is_file()


def test_the_report_command_writes_where_it_is_told(capsys, tmp_path, monkeypatch):
    calls = []

    def write_report(run_dirs, out_dir):
        calls.append((run_dirs, out_dir))
        return tmp_path / "index.html"

    monkeypatch.setattr("orthotrain.lab.report.write_report", write_report)
    assert main(["report", "a", "b"]) == 0
    assert main(["report", "a", "-o", "page"]) == 0
    assert calls == [([Path("a"), Path("b")], None), ([Path("a")], Path("page"))]
    assert str(tmp_path / "index.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["train"], ["train", "--help"], ["tune"], ["report", "."], ["bench"]],
    ids=" ".join,
)
def test_other_commands_name_the_line_that_installs_the_extra(arguments):
    done = without(LABORATORY, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith('install them with: pip install "orthotrain[lab]"\n')


HELP = [["--version"], ["--help"], *([command, "--help"] for command in OPTIONS)]


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_needs_no_torch_and_but_for_trainings_no_extra(arguments):
    blocked = ("torch",) if arguments[0] in ("train", "tune") else ("torch", *LABORATORY)
    done = without(blocked, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "orthotrain" in done.stdout


@pytest.mark.bad_input
def test_a_damaged_checkpoint_is_one_clear_line(capsys, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"PK nothing")
    assert "damaged" in fails(capsys, "inspect", path)
    assert "damaged" in fails(
        capsys, "compress", path, "--rank", "energy=0.9", "-o", tmp_path / "x"
    )
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"nothing")
    assert "no safetensors file" in fails(capsys, "inspect", path)
    path.write_bytes(b"")
    assert "is empty; take another copy" in fails(capsys, "inspect", path)


@pytest.mark.bad_input
def test_a_damaged_configuration_in_the_run_folder_is_one_clear_line(capsys, tmp_path):
    for content in ("- 1\n", "recipe: [\n", "recipe: digits-minivit\nscale: cpu\nspeed: 3\n"):
        (tmp_path / "config.yaml").write_text(content)
        error = fails(capsys, "train", "--resume", "--run-dir", tmp_path)
        assert "is no configuration" in error


def test_ctrl_c_ends_with_advice(capsys, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("orthotrain.lab.run.jobs.run_all", interrupted)
    assert main(["train", *QUICK, "--run-dir", str(tmp_path)]) == 130
    assert "same command goes on" in capsys.readouterr().err


@pytest.mark.bad_input
def test_benchmarks_need_a_checkout(tmp_path):
    with pytest.raises(ConfigError, match="part of the source checkout"):
        benchmark_scripts(tmp_path / "site-packages" / "orthotrain" / "__init__.py")


@pytest.fixture
def second_of_two(monkeypatch):
    """As the second process that torchrun started."""
    given = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)


@pytest.mark.bad_input
@pytest.mark.parametrize("option", [("--workers", "2"), ("--storage", "journal.log")])
def test_torchrun_is_not_mixed_with_other_ways_to_divide(second_of_two, tmp_path, capsys, option):
    assert main(["train", "--scale", "smoke", "--run-dir", str(tmp_path / "run"), *option]) == 2
    error = capsys.readouterr().err
    assert error.startswith("orthotrain: process 1: error: ")
    assert f"{option[0]} {option[1]}: torchrun started 2 processes" in error
    assert not (tmp_path / "run").exists()


def test_processes_of_torchrun_take_one_training_at_a_time(second_of_two):
    assert worker_count(None, device="cpu", threads=1) == 1


def test_workers_default_to_two_only_on_cpu_with_cores_for_both():
    assert worker_count(1, device="cpu", threads=1) == 1
    assert worker_count(None, device="cuda", threads=1) == 1
    assert worker_count(None, device="cpu", threads=10_000) == 1


@pytest.mark.slow
def test_a_command_killed_at_any_moment_goes_on_to_the_same_numbers(tmp_path):
    arguments = [
        "train", "digits-minivit", "--scale", "smoke", "--variants", "oialr-paper",
        "--workers", "1", "--report", "false",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*arguments, "--run-dir", str(whole)]) == 0
    place = Path("variants") / "oialr-paper" / "seed-0"
    command = [sys.executable, "-m", "orthotrain", *arguments, "--run-dir", str(killed)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while not (killed / place / "checkpoint.pt").exists():
            assert process.poll() is None, "the training ended before its first checkpoint"
            time.sleep(0.01)
        process.kill()
    assert not (killed / place / "result.json").exists()
    assert main([*arguments, "--run-dir", str(killed)]) == 0
    one, other = (json.loads((run / place / "result.json").read_text()) for run in (whole, killed))
    for name in ("validation_loss", "test_loss", "stored", "trainable", "switch_step"):
        assert one[name] == other[name], name


def test_inspect_goes_on_where_nothing_rebuilds_the_network(capsys, tmp_path):
    from orthotrain.lab.run.checkpoint import save_checkpoint

    network = {"build": "no.such.module:build", "settings": {}, "weights": "model", "prefix": ""}
    weights = {"0.weight": torch.eye(6, 4)}
    save_checkpoint(tmp_path / "a.pt", {"training": {"model": weights}, "network": network})
    assert main(["inspect", str(tmp_path / "a.pt")]) == 0
    output = capsys.readouterr().out
    assert "weights alone" in output
    assert "24 numbers stored" in output
