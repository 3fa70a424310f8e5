"""Groups of variants in one picture: labels that keep off each other, a compressed axis."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from orthotrain.lab.report.compressed import fit_height
from orthotrain.lab.report.labels import Label, place_labels
from orthotrain.lab.report.load import Run, SeedRun, Variant
from orthotrain.lab.report.measures import result
from orthotrain.lab.report.scatter import Group, Over, Scatter
from orthotrain.lab.report.style import DARK, LIGHT, looks, styled

LOSS, SIZE, WORK = (result(key, key.capitalize()) for key in ("loss", "size", "work"))


def variant(name, *results):
    seeds = tuple(SeedRun(i, {}, dict(one)) for i, one in enumerate(results))
    return Variant(name, name, "", seeds, len(seeds))


def one(loss, size, work=1.0):
    return {"loss": loss, "size": size, "work": work}


def scattered(tmp_path, variants, groups, **settings):
    run = Run(tmp_path, "run", {"baseline": "base"}, None, tuple(variants), ())
    panels = [Over(SIZE, lambda v: v.name), Over(WORK)]
    scatter = Scatter(
        "s", "Loss", "How.", lambda run: LOSS, lambda run: panels,
        lambda run: groups, **settings,
    )  # fmt: skip
    return scatter.plot(run, looks)


def test_points_are_means_with_bars_and_paths_join_them(tmp_path):
    a, b = variant("a", one(2.0, 50), one(3.0, 50)), variant("b", one(1.0, 80))
    plot = scattered(tmp_path, [a, b], [Group("both", 0, "o", [a, b], paths=[[b, a]])])
    with styled(LIGHT):
        figure = plot.draw(LIGHT)
    axes = figure.axes[0]
    points = [line.get_xydata() for line in axes.get_lines() if line.get_marker() == "o"]
    assert np.concatenate(points).tolist() == [[50, 2.5], [80, 1.0]]
    path = next(line for line in axes.get_lines() if len(line.get_xdata()) == 2 and
                line.get_linestyle() == "-")  # fmt: skip
    assert path.get_xydata().tolist() == [[80, 1.0], [50, 2.5]]
    bars = np.concatenate([c.get_segments()[0] for c in axes.collections if c.get_segments()])
    assert bars[:, 1].min() == pytest.approx(2.5 - math.sqrt(0.5))
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    assert (
        plot.alt
        == "Loss. Loss over Size: a 2.5 at 50, b 1 at 80; Loss over Work: a 2.5 at 1, b 1 at 1."
    )


def test_what_has_no_number_is_left_out_and_so_is_an_empty_panel(tmp_path):
    a, b = variant("a", {"loss": 2.0, "size": 50}), variant("b", {"size": 80})
    groups = [Group("first", 0, "o", [a]), Group("second", 1, "s", [b])]
    plot = scattered(tmp_path, [a, b], groups)
    with styled(DARK):
        figure = plot.draw(DARK)
    assert len(figure.axes) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first"]
    assert scattered(tmp_path, [b], groups[1:]).draw is None


def test_the_baseline_is_a_dashed_line_and_its_group_says_so(tmp_path):
    base = variant("base", one(1.5, 100))
    plot = scattered(tmp_path, [base], [Group("dense", None, "D", [base])])
    with styled(LIGHT):
        figure = plot.draw(LIGHT)
    level = figure.axes[1].get_lines()[0]
    assert set(level.get_ydata()) == {1.5}
    assert level.get_linestyle() == "--"
    assert figure.legends[0].get_lines()[0].get_linestyle() == "--"


def test_the_sentences_of_a_run_go_with_the_figure(tmp_path):
    a = variant("a", one(2.0, 50))
    plot = scattered(
        tmp_path, [a], [Group("g", 0, "o", [a])], says=lambda run: [f"{run.slug} pays."]
    )
    assert plot.says == ("run pays.",)


# --- the axis -----------------------------------------------------------------------------------


def heights(low, high, knee, values):
    figure = Figure()
    grid = figure.subplots(1, 2, sharey=True)
    fit_height(grid, low, high, knee, LIGHT)
    figure.draw_without_rendering()
    for axes in grid:
        bottom, top = axes.transAxes.inverted().transform(
            axes.transData.transform([(0, value) for value in values])
        )[:, 1][[0, -1]]
        assert bottom >= 0
        assert top <= 1
    inside = axes.transAxes.inverted().transform(
        axes.transData.transform([(0, value) for value in values])
    )
    return inside[:, 1], grid[0].get_yticks()


def test_far_values_are_compressed_and_stay_in_order():
    places, ticks = heights(1.0, 10.0, 2.0, [1.0, 1.5, 2.0, 6.0, 10.0])
    assert (np.diff(places) > 0).all()
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])
    assert places[4] - places[3] == pytest.approx(places[3] - places[2])
    assert 0.6 < places[2] < 0.85
    assert any(tick > 2.0 for tick in ticks)
    assert sum(tick <= 2.0 for tick in ticks) >= 4


@pytest.mark.parametrize("knee", [math.nan, 2.0, 0.5, 1.8])
def test_an_axis_with_little_to_gain_stays_as_it_is(knee):
    places, _ = heights(1.0, 2.0, knee, [1.0, 1.5, 2.0])
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])


def test_a_single_value_has_an_axis():
    places, _ = heights(1.0, 1.0, math.nan, [1.0])
    assert 0 < places[0] < 1


# --- labels -------------------------------------------------------------------------------------


def test_labels_cover_neither_each_other_nor_points():
    figure = Figure(figsize=(4, 4), dpi=100)
    axes = figure.subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    random = np.random.default_rng(0)
    near = 0.5 + 0.06 * random.standard_normal((7, 2))
    figure.draw_without_rendering()
    place_labels(axes, [Label("50 %", x, y, "black") for x, y in [*near, (0.99, 0.99), (0, 0)]])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 9
    inside = axes.get_window_extent().padded(1).contains
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert inside(box.x0, box.y0)
        assert inside(box.x1, box.y1)
        assert not any(box.contains(*axes.transData.transform(point)) for point in near)


def test_an_empty_label_is_not_written_and_keeps_its_point_free():
    figure = Figure(figsize=(4, 4), dpi=100)
    axes = figure.subplots()
    figure.draw_without_rendering()
    dot = 1 / axes.get_window_extent().width
    place_labels(axes, [Label("a", 0.5, 0.5, "black"), Label("", 0.5 + 15 * dot, 0.5, "black")])
    (text,) = axes.texts
    assert text.xy[0] < axes.transData.transform((0.5, 0.5))[0] + 5


def test_where_more_is_better_the_lower_part_is_compressed():
    with styled(LIGHT):
        axes = Figure().subplots()
        fit_height([axes], 10.0, 100.0, 90.0, LIGHT, below=True)
    low, high = axes.get_ylim()
    assert low < 10.0
    assert high > 100.0
    at = axes.transData.transform([(0, y) for y in (10.0, 50.0, 90.0, 95.0, 100.0)])[:, 1]
    assert list(at) == sorted(at)
    # Ten points above the knee have more room than eighty below it.
    assert at[4] - at[2] > 2 * (at[2] - at[0])
    assert all(low <= tick <= high for tick in axes.get_yticks())
