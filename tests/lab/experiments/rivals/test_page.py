from dataclasses import replace

import pytest

from lab.experiments.rivals.tiny import CONFIG, train_here
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.rivals.variants import rival_variants
from orthotrain.lab.report import closing_table
from orthotrain.lab.report.write import write_report
from orthotrain.lab.run.record import RunFolder


@pytest.mark.slow
def test_a_page_has_one_table_one_figure_and_what_each_lacks(tmp_path):
    names = ("dense", "narrow-50", "galore-like", "relora-like", "default")
    config = replace(CONFIG, variants=names)
    folder = RunFolder(tmp_path / "run")
    folder.open(config)
    variants = [one for one in rival_variants(config) if one.name in names]
    recipe = find_recipe("stdlib-gpt-rivals")
    folder.describe(recipe, config, variants=variants, environment={})
    for name in names:
        train_here(folder.seed(name, 0).path, name=name)
    table = closing_table(folder.path)
    assert "GaLore-like" in table
    assert all(head in table for head in ("stored %", "trained %", "MiB", "compute %", "seconds"))
    page = write_report([folder.path]).read_text()
    for said in (
        "Rivals: what each reaches, over what it costs",
        "What each rival lacks",
        "arXiv:2403.03507",
        "none of it is the authors&#39; code",
        "Which have a lower loss than the default?",
        "Which have a lower loss than a narrow network?",
        "pip install &#34;orthotrain[peft]&#34;",
    ):
        assert said in page, said
    said = "All rivals have the same learning rate, which no search chose"
    assert said in page
    own = "own: {dense: {optim.lr: 0.1}}\n"
    folder.config.write_text(folder.config.read_text() + own)
    assert said not in write_report([folder.path]).read_text()
    lines = (folder.path / "report" / "results.csv").read_text().splitlines()
    rows = {line.split(",")[0]: line.split(",") for line in lines[1:]}
    stored = lines[0].split(",").index("stored_folded_percent_of_dense")
    assert float(rows["ReLoRA-like"][stored]) == 100  # its updates are merged
    assert (folder.path / "report" / "rivals.png").is_file()
