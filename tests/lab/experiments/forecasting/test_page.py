from dataclasses import replace

import pytest

from lab.experiments.forecasting.tiny import CONFIG, train_here
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.forecasting.variants import forecast_variants
from orthotrain.lab.report import closing_table
from orthotrain.lab.report.write import write_report
from orthotrain.lab.run.record import RunFolder


@pytest.mark.slow
def test_a_page_shows_errors_against_sizes_and_the_published_ones(tmp_path):
    names = ("dense", "half-50")
    optim, record = replace(CONFIG.optim, steps=12), replace(CONFIG.record, log_every_steps=2)
    config = replace(CONFIG, variants=names, optim=optim, record=record)
    folder = RunFolder(tmp_path / "run")
    folder.open(config)
    variants = [one for one in forecast_variants(config) if one.name in names]
    recipe = find_recipe("ettm2-autoformer")
    folder.describe(recipe, config, variants=variants, environment={})
    for name in names:
        train_here(folder.seed(name, 0).path, name=name, config=config)
    assert "cut at half" in closing_table(folder.path)
    page = write_report([folder.path]).read_text()
    asked = "Have trained factors a lower error than the dense forecaster, 12 steps ahead?"
    shown = ("Published errors", "0.3244", "Error against trained and stored size")
    columns = ("Test error (MSE), 12 steps ahead", "Best of so many looks")
    for said in (*shown, *columns, asked):
        assert said in page, said
    assert (folder.path / "report" / "published.png").is_file()
    assert "Has OIALR" not in page  # no variant of it was trained
