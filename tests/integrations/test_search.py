"""``orthotrain tune`` on Optuna, which need not be there."""

import json
import math
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import yaml

optuna = pytest.importorskip("optuna")

from lab.run import searched as toy  # noqa: E402
from orthotrain.cli import main  # noqa: E402
from orthotrain.cli.parser import parse_run  # noqa: E402
from orthotrain.errors import ConfigError, MissingPackageError  # noqa: E402
from orthotrain.lab.experiments.catalog import find_recipe, recipe_config  # noqa: E402
from orthotrain.lab.report.load import load_run  # noqa: E402
from orthotrain.lab.report.searched import PAGE, parts_of  # noqa: E402
from orthotrain.lab.run.jobs import Run  # noqa: E402
from orthotrain.lab.run.record import RunFolder, read_json  # noqa: E402
from orthotrain.lab.run.search import SearchOptions, choose, run_search  # noqa: E402
from orthotrain.lab.run.space import Number, OneOf, Part  # noqa: E402
from orthotrain.lab.run.trials import Searched, Trials  # noqa: E402

PLAIN, AFTER = toy.SEARCH.parts
CONFIG = toy.SEARCH.config(replace(toy.EXPERIMENT.at("smoke"), scale="smoke"))


def search(
    path, *, parts=(PLAIN,), trials=6, config=CONFIG, storage=None, at_most=None, name="s", **more
):
    """A search in a folder; what tune.json says of its first part."""
    path.mkdir(parents=True, exist_ok=True)
    run = Run(toy.EXPERIMENT.build, config, RunFolder(path), read_test=False, storage=storage)
    options = SearchOptions(trials, at_most or {}, **more)
    return run_search(run, toy.EXPERIMENT, parts, options, name=name)[0]


def comparable(found):
    """Without what may differ: which number of a study a trial has."""
    trials = [{k: v for k, v in one.items() if k != "trial"} for one in found["trials"]]
    return trials, found["chosen"]["settings"], found["importance"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that nothing interrupts."""
    return search(tmp_path_factory.mktemp("whole"), trials=12)


def test_the_same_search_gives_the_same_trials_and_finds_a_good_one(whole, tmp_path):
    assert comparable(search(tmp_path, trials=12)) == comparable(whole)
    states = [one["state"] for one in whole["trials"]]
    assert len(states) == 12
    assert set(states) <= {"complete", "pruned"}
    losses = [one["values"]["loss"] for one in whole["trials"] if one["values"]]
    assert whole["chosen"]["values"]["loss"] == min(losses) < 0.1
    assert whole["front"] == [whole["chosen"]["trial"]]
    assert sum(whole["importance"]["loss"].values()) == pytest.approx(1)
    for one in whole["trials"]:
        settings = one["settings"]
        assert 0.01 <= settings["optim.lr"] <= 1
        assert settings["optim.min_lr"] <= settings["optim.lr"]


def test_a_search_goes_on_where_it_stood_and_may_be_made_longer(whole, tmp_path):
    first = search(tmp_path, trials=5)
    assert len(first["trials"]) == 5
    assert comparable(search(tmp_path, trials=12)) == comparable(whole)


def test_the_first_trials_are_spread_over_the_bounds(tmp_path):
    part = replace(PLAIN, space={"optim.lr": Number(0.01, 1.0, log=True)})
    first = search(tmp_path, trials=5, parts=(part,))  # stopped between them
    assert len(first["trials"]) == 5
    found = search(tmp_path, trials=8, parts=(part,))
    rates = [one["settings"]["optim.lr"] for one in found["trials"]]
    eighths = [int(8 * math.log(rate / 0.01) / math.log(100)) for rate in rates]
    assert sorted(eighths) == list(range(8))  # Drawn at random, some would have two, and some none.


def test_a_search_of_few_whole_numbers_may_try_one_again(tmp_path):
    part = replace(PLAIN, space={"optim.width": Number(1, 3, whole=True)})
    found = search(tmp_path, trials=12, parts=(part,))
    assert len(found["trials"]) == 12
    assert {one["settings"]["optim.width"] for one in found["trials"]} == {1, 2, 3}


def trials_of(tmp_path, part):
    """Two commands on one storage."""
    run = Run(
        toy.EXPERIMENT.build, CONFIG, RunFolder(tmp_path), read_test=False,
        storage=str(tmp_path / "both.journal"),
    )  # fmt: skip
    searched = Searched(run, toy.EXPERIMENT, part, "s", 8, run.storage, {})
    return [Trials(searched, stale_seconds=60) for _ in range(2)]


def test_two_commands_that_see_the_same_trials_do_not_try_one_setting_twice(tmp_path):
    part = replace(PLAIN, space={"optim.lr": Number(0.01, 1.0, log=True)})
    first, second = trials_of(tmp_path, part)
    spread = [one["optim.lr"] for one in first._searched.spread()]
    first.study.enqueue_trial({"optim.lr": spread[0]})  # Seen by neither of two looks ...
    second.study.enqueue_trial({"optim.lr": spread[0]})  # ... so both ask for the same.
    taken = [one.take().params["optim.lr"] for one in (first, second, first, second)]
    assert taken == spread[:4]


def test_a_trial_that_was_taken_and_not_begun_keeps_its_setting(tmp_path):
    part = replace(PLAIN, space={"optim.lr": Number(0.01, 1.0, log=True)})
    first, second = trials_of(tmp_path, part)
    setting = first._searched.spread()[0]
    first.study.enqueue_trial(setting)
    number = first.study._pop_waiting_trial_id()  # and the command dies
    assert number is not None
    (dead,) = second.running()
    assert dead.params == {}
    second.free(dead)
    assert second.take().params == setting


def test_only_the_seeds_of_the_search_and_only_the_validation_part_are_read(tmp_path):
    search(tmp_path, trials=2, parts=(AFTER,))
    results = [read_json(path) for path in tmp_path.rglob("result.json")]
    assert {one["seed"] for one in results} == {100}
    assert {one["read_test"] for one in results} == {False}
    # What the variant is built from was trained once, with the recipe's own settings.
    assert [one["lr"] for one in results if one["variant"] == "plain"] == [0.1]


def test_two_objectives_give_a_front_and_the_smaller_one_within_reach_is_chosen(tmp_path):
    part = replace(AFTER, within=0.2)
    found = search(tmp_path, trials=14, parts=(part,))
    values = {one["trial"]: one["values"] for one in found["trials"]}
    assert all(one["state"] == "complete" for one in found["trials"])  # nothing is pruned
    for trial, mine in values.items():
        beaten = any(
            other["loss"] <= mine["loss"] and other["stored"] <= mine["stored"] and other != mine
            for other in values.values()
        )
        assert (trial in found["front"]) == (not beaten)
    best = min(one["loss"] for one in values.values())
    close = [values[i]["stored"] for i in found["front"] if values[i]["loss"] <= best + 0.2]
    assert found["chosen"]["values"]["stored"] == min(close)
    assert set(found["importance"]) == {"loss", "stored"}


def test_a_budget_holds_for_what_is_chosen(tmp_path, whole):
    assert whole["chosen"]["settings"]["optim.width"] > 4
    found = search(tmp_path, trials=12, at_most={"stored": 0.25})
    assert found["chosen"]["settings"]["optim.width"] <= 4
    assert any(one["settings"]["optim.width"] > 4 for one in found["trials"])
    with pytest.raises(ConfigError, match=r"no trial of plain ended within .*larger --at-most"):
        search(tmp_path / "none", trials=2, at_most={"stored": 1e-3})


def test_a_bad_trial_is_given_up_on_its_way_and_one_that_is_not_finite_at_once(tmp_path):
    wide = replace(PLAIN, space={"optim.lr": Number(0.01, 1.9)})
    found = search(tmp_path, trials=20, parts=(wide,))
    pruned = [one for one in found["trials"] if one["state"] == "pruned"]
    assert pruned
    whole = [one["values"]["loss"] for one in found["trials"] if one["values"]]
    # What they would have reached, at the recipe's width of 4.
    worst = [(one["settings"]["optim.lr"] - 0.3) ** 2 + 0.16 for one in pruned]
    assert min(worst) > min(whole)
    endless = replace(PLAIN, space={"optim.lr": Number(0.5, 5.0)})
    found = search(tmp_path / "endless", trials=8, parts=(endless,), name="endless")
    broken = [one for one in found["trials"] if one["settings"]["optim.lr"] > 2]
    assert broken
    assert all("not finite" in one["why"] or "is nan" in one["why"] for one in broken)
    assert found["chosen"]["settings"]["optim.lr"] <= 2


LISTED = replace(
    PLAIN,
    space={"optim.lr": OneOf((0.05, 0.1, 0.3)), "optim.rule": OneOf(("energy=0.5", "energy=0.9"))},
)
BOTH_LISTS = [(lr, rule) for lr in (0.05, 0.1, 0.3) for rule in ("energy=0.5", "energy=0.9")]


def tried(found):
    return sorted((one["settings"]["optim.lr"], one["settings"]["optim.rule"]) for one in found)


def test_lists_no_longer_than_the_trials_are_tried_in_full_each_setting_once(tmp_path):
    found = search(tmp_path, parts=(LISTED,), trials=8)
    assert tried(found["trials"]) == BOTH_LISTS
    assert found["chosen"]["settings"]["optim.lr"] == 0.3
    assert found["chosen"]["at_edge"] == ["optim.lr"]
    few = partial(search, tmp_path / "few", parts=(LISTED,), name="few")
    assert len({*tried(few(trials=3)["trials"])}) == 3
    assert tried(few(trials=6)["trials"]) == BOTH_LISTS
    inside = search(tmp_path / "in", trials=12, name="in")["chosen"]
    assert "optim.lr" not in inside["at_edge"]


def test_settings_that_a_variant_has_of_its_own_give_way_to_what_is_tried_and_stay_otherwise(
    tmp_path,
):
    own = {"plain": {"optim.lr": 0.9, "optim.width": 8}}
    part = replace(PLAIN, space={"optim.lr": OneOf((0.1, 0.3))})
    config = replace(CONFIG, own=own)
    found = search(tmp_path, parts=(part,), trials=2, config=config)
    results = [read_json(path) for path in tmp_path.rglob("result.json")]
    assert sorted(one["lr"] for one in results) == [0.1, 0.3]
    assert {one["stored"] for one in results} == {8}
    assert found["chosen"]["settings"] == {"optim.lr": 0.3}
    # So does a variant that another one is built from.
    search(tmp_path / "after", parts=(replace(part, variant="after"),), trials=2, config=config)
    (plain,) = (tmp_path / "after").rglob("plain/seed-100/result.json")
    assert read_json(plain)["lr"] == 0.9


def test_a_list_may_have_multiples_of_the_recipes_own_setting(tmp_path):
    part = replace(PLAIN, space={"optim.lr": OneOf((0.5, 3.0), of="optim.lr")})
    found = search(tmp_path, parts=(part,), trials=2)
    rates = sorted(one["settings"]["optim.lr"] for one in found["trials"])
    assert rates == pytest.approx([0.05, 0.3])
    assert found["chosen"]["settings"]["optim.lr"] == pytest.approx(0.3)


def test_a_part_may_have_more_trials_than_others(tmp_path):
    assert len(search(tmp_path, parts=(replace(PLAIN, times=3),), trials=2)["trials"]) == 6


def test_a_trial_that_is_freed_keeps_what_it_was_judged_by(tmp_path):
    run = Run(toy.EXPERIMENT.build, CONFIG, RunFolder(tmp_path), read_test=False)
    searched = Searched(run, toy.EXPERIMENT, PLAIN, "s", 4, str(tmp_path / "journal"), {})
    trials = Trials(searched, stale_seconds=60)
    trial = trials.take()
    trial.report(0.7, 40)
    trials.free(trial)
    (left,) = trials._kept()
    assert left.intermediate_values == {40: 0.7}


def test_two_workers_divide_lists(tmp_path):
    found = search(tmp_path, parts=(LISTED,), trials=6, workers=2)
    assert tried(found["trials"]) == BOTH_LISTS


def test_the_yardstick_of_the_choice_may_be_another_variant():
    part = Part("plain", {"optim.lr": Number(0, 1)}, (toy.LOSS, toy.STORED), within=0.1)
    front = [
        {"trial": i, "values": {"loss": loss, "stored": stored}}
        for i, (loss, stored) in enumerate([(1.0, 0.9), (1.05, 0.6), (1.3, 0.2)])
    ]
    assert choose(part, front)["trial"] == 1
    assert choose(part, front, beside=1.25)["trial"] == 2
    assert choose(part, front, beside=0.5)["trial"] == 0
    assert choose(replace(part, aims=(toy.LOSS,)), front)["trial"] == 0


# --- kills ----------------------------------------------------------------------------------------


def command(path, steps, options):
    """What one command does."""
    os.environ["STEPS_FILE"] = str(steps)
    search(path, config=replace(CONFIG, slow=0.02), **options)


def started(path, steps, **options):
    process = multiprocessing.get_context("spawn").Process(
        target=command, args=(path, steps, options)
    )
    process.start()
    return process


def taken(steps):
    words = [line.split() for line in steps.read_text().splitlines()] if steps.exists() else []
    return [(int(pid), name, int(step)) for pid, name, step in words]


def wait_until(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_search_goes_on_with_its_trial_from_the_checkpoint(tmp_path, how):
    steps = tmp_path / "steps.txt"
    victim = started(tmp_path / "run", steps, trials=4)
    wait_until(lambda: any(name.endswith("0001") and step >= 5 for _, name, step in taken(steps)))
    os.kill(victim.pid, how)
    victim.join(300)
    before = len(taken(steps))
    slow = replace(CONFIG, slow=0.02)
    os.environ["STEPS_FILE"] = str(steps)
    try:
        found = search(tmp_path / "run", trials=4, config=slow)
    finally:
        del os.environ["STEPS_FILE"]
    again = [(name, step) for _, name, step in taken(steps)[before:]]
    resumed = [step for name, step in again if name.endswith("0001")]
    assert resumed
    assert min(resumed) >= 3  # from its checkpoint
    assert not any(name.endswith("0000") for name, _ in again)
    # The same trials as without the kill.
    alone = search(tmp_path / "alone", trials=4, config=slow)
    assert comparable(found) == comparable(alone)


@pytest.mark.parametrize("kind", ["{}/journal.log", "sqlite:///{}/run.db"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_two_commands_divide_the_trials_of_one_storage(tmp_path, kind):
    steps, storage = tmp_path / "steps.txt", kind.format(tmp_path)
    options = {"trials": 6, "storage": storage, "stale_seconds": 8.0}
    both = [started(tmp_path / "run", steps, **options) for _ in range(2)]
    for one in both:
        one.join(300)
        assert one.exitcode == 0
    found = search(tmp_path / "run", config=replace(CONFIG, slow=0.02), **options)
    assert len(found["trials"]) == 6
    done = taken(steps)
    assert len({pid for pid, *_ in done}) == 2
    assert len(done) == len({(name, step) for _, name, step in done})  # nothing twice


@pytest.mark.slow
def test_workers_of_one_command_divide_its_trials(tmp_path):
    found = search(tmp_path, trials=6, workers=2)
    # One that both took is given back, so that the numbers may have a hole.
    assert len({one["trial"] for one in found["trials"]}) == len(found["trials"]) == 6
    assert len({tuple(one["settings"].values()) for one in found["trials"]}) == 6


# --- the command and its report -------------------------------------------------------------------


def test_the_command_writes_what_trains_the_chosen_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("orthotrain.lab.report.style.DOTS_PER_INCH", 60)
    recipe, run = "lab.run.searched:EXPERIMENT", tmp_path / "tune"
    base = [recipe, "--scale", "smoke", "--workers", "1"]
    assert main(["tune", *base, "--trials", "5", "--run-dir", str(run)]) == 0
    said = capsys.readouterr().out
    line = next(text for text in said.splitlines() if "orthotrain train --config" in text).split()
    tuned = json.loads((run / "tuned.json").read_text())
    assert tuned["source"].startswith("orthotrain tune lab.run.searched:EXPERIMENT")
    assert set(tuned["own"]) == {"plain", "after", "alike"}
    assert tuned["own"]["alike"] == tuned["own"]["plain"]
    assert type(tuned["own"]["plain"]["optim.width"]) is int
    content = yaml.safe_load((run / "chosen.yaml").read_text())
    assert (content["own"], content["seeds"]) == (tuned["own"], [0, 1])
    # That line trains each variant at what was found for it.
    there = tmp_path / "train"
    assert main([*line[1:], "--run-dir", str(there), "--workers", "1", "--report", "false"]) == 0
    for name, own in tuned["own"].items():
        for result in RunFolder(there).results(name, (0, 1)):
            assert result["lr"] == own["optim.lr"]
            assert (result["rule"], result["read_test"]) == (own["optim.rule"], True)
    # The report shows the front, what mattered, and the line.
    loaded = load_run(run)
    assert len(parts_of(loaded)) == 2
    tables = {table.name: table for table in (one.table(loaded) for one in PAGE.results)}
    assert "orthotrain train --config" in tables["chosen"].note
    edges = [", ".join(part["chosen"]["at_edge"]) for part in parts_of(loaded)]
    assert [row[4].shown for row in tables["chosen"].rows] == edges
    assert {row[2].shown for row in tables["importance"].rows} == set(toy.SPACE)
    assert PAGE.lead[0].plot(loaded, PAGE.look).draw is not None
    html = (run / "report" / "index.html").read_text()
    assert "orthotrain train --config" in html
    assert "never started" not in html


@pytest.mark.slow
def test_a_true_recipe_is_searched(tmp_path, capsys):
    quick = [
        "digits-minivit", "--scale", "smoke", "--optim.epochs", "1", "--data.batch_size", "256",
        "--model.width", "8", "--model.depth", "1", "--workers", "1",
    ]  # fmt: skip
    parts = ["--parts", "oialr-tuned", "branch-50", "--trials", "2"]
    assert main(["tune", *quick, *parts, "--run-dir", str(tmp_path / "tune")]) == 0
    results = [read_json(path) for path in tmp_path.rglob("result.json")]
    assert {one["seed"] for one in results} == {100, 101}
    assert all(one["test_accuracy"] is None for one in results)
    content = yaml.safe_load((tmp_path / "tune" / "chosen.yaml").read_text())
    assert content["optim"]["epochs"] == 1
    recipe = recipe_config("digits-minivit", "smoke").own
    assert set(content["own"]) == {"oialr-tuned", "branch-50", *recipe}
    assert all(content["own"][name] == recipe[name] for name in recipe)
    assert capsys.readouterr().out


def test_a_part_without_a_setting_to_take_is_told_and_the_others_are_there(tmp_path, caplog):
    hopeless = replace(PLAIN, space={"optim.lr": Number(4.0, 5.0)})
    (found,) = run_search(
        Run(toy.EXPERIMENT.build, CONFIG, RunFolder(tmp_path), read_test=False, storage=None),
        toy.EXPERIMENT, (hopeless, AFTER), SearchOptions(2, {}), name="s",
    )  # fmt: skip
    assert found["variant"] == AFTER.variant
    assert "no trial of plain ended" in caplog.text


def test_a_later_search_of_another_part_keeps_what_was_found(tmp_path):
    quick = [
        "digits-minivit", "--scale", "smoke", "--optim.epochs", "1", "--data.batch_size", "256",
        "--model.width", "8", "--model.depth", "1", "--workers", "1", "--trials", "1",
    ]  # fmt: skip
    for part in ("dense", "half-50"):
        assert main(["tune", *quick, "--parts", part, "--run-dir", str(tmp_path / "tune")]) == 0
    assert set(read_json(tmp_path / "tune" / "tuned.json")["own"]) == {"dense", "half-50"}


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.bad_input
def test_the_loss_is_the_first_objective_and_each_is_named_once():
    for names in (["stored", "loss"], ["loss", "loss"]):
        with pytest.raises(ConfigError, match="need loss first and each once"):
            PLAIN.with_objectives(names)


@pytest.mark.bad_input
def test_a_password_is_neither_told_nor_kept(tmp_path):
    url = "postgresql://user:word@host/optuna"
    with pytest.raises(ConfigError) as told:
        search(tmp_path / "run", trials=1, storage=url)
    assert "word" not in str(told.value)
    assert "://***@host" in parse_run("tune", ["digits-minivit", "--storage", url]).line


@pytest.mark.bad_input
def test_a_storage_of_another_search_or_version_is_refused(tmp_path):
    storage = str(tmp_path / "journal.log")
    search(tmp_path / "run", trials=1, storage=storage)
    for changes, named in (
        ({"parts": (replace(PLAIN, space={"optim.lr": Number(0.1, 0.2)}),)}, "space"),
        ({"config": replace(CONFIG, slow=1e-6)}, "settings.slow"),
        ({"at_most": {"stored": 1.0}}, "at_most"),
    ):
        with pytest.raises(ConfigError, match=rf"another search or version \({named}"):
            search(tmp_path / "run", trials=1, storage=storage, **changes)
    study = optuna.load_study(study_name="s: plain", storage=optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(storage)))  # fmt: skip
    study.set_user_attr("search", {**study.user_attrs["search"], "schema": 0})
    with pytest.raises(ConfigError, match=r"version \(schema is 0 there"):
        search(tmp_path / "run", trials=1, storage=storage)
    foreign = optuna.create_study(storage=study._storage, study_name="mine: plain")
    foreign.tell(foreign.ask(), 1.0)
    with pytest.raises(ConfigError, match="orthotrain tune did not make"):
        search(tmp_path / "run", trials=1, storage=storage, name="mine")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--trials", "0"], "--trials 0: need at least 1"),
        (["--parts", "aftr"], "'aftr' is not searched; did you mean"),
        (["--objectives", "speed"], "speed"),
        (["--at-most", "stored"], "--at-most stored: need a name and a positive number"),
        (["--at-most", "size=1"], "names are compute, loss, stored"),
        (["--storage", "nosuch://x/y"], "cannot be opened"),
        (["--optim.lr", "1"], "unrecognized arguments: --optim.lr"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path, capsys, options, named):
    base = ["tune", "lab.run.searched:EXPERIMENT", "--scale", "smoke", "--workers", "1"]
    assert main([*base, *options, "--run-dir", str(tmp_path / "run")]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.bad_input
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackageError, match=r"tune: optuna .*orthotrain\[search\]"):
        search(tmp_path / "run")
    line = ["tune", "digits-minivit", "--scale", "smoke", "--run-dir", str(tmp_path / "tune")]
    assert main(line) == 2
    assert 'pip install "orthotrain[search]"' in capsys.readouterr().err
    assert not (tmp_path / "tune").exists()
    assert math.isfinite(recipe_config("digits-minivit", "smoke").optim.lr)
    assert find_recipe("digits-minivit").search
