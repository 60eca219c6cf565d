"""Figures show medians, bands and references of the table, and never mix targets."""

import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tables import INPUTS, RANKS, rank_table

from softlab.figures import METHODS, Lines, draw, save, summary

RANK = Lines(
    x="op.rank",
    y="output_error",
    group="method",
    panel="source",
    page="target",
    xlabel="rank",
    ylabel="relative output error",
    references=("Uniform", "TruncatedSVD"),
    exact="exact",
)
COST = replace(RANK, x="flops", by="op.rank", references=("Uniform",), xlabel="FLOPs")


def line(axes, label):
    (found,) = [x for x in axes.get_lines() if x.get_label() == label]
    return np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)


def test_a_panel_an_input_with_medians_over_seeds():
    table = rank_table(seeds=3)
    figure = draw(table, RANK, "softmax")
    assert [axes.get_title() for axes in figure.axes] == list(INPUTS)
    x, y = line(figure.axes[1], "Nystromformer")
    assert tuple(x) == RANKS
    # Errors grow with the seed, so the median over three seeds is that of seed 1.
    middle = table[(table.source == INPUTS[1]) & (table.seed == 1) & (table.target == "softmax")]
    middle = middle[middle.method == "Nystromformer"].sort_values("op.rank")
    assert tuple(y) == tuple(middle.output_error)
    (band,) = figure.axes[1].collections
    low, high = band.get_datalim(figure.axes[1].transData).intervaly
    assert low < y.min() < y.max() < high


def test_references_are_thin_black_and_flat():
    axes = draw(rank_table(), RANK, "Gaussian").axes[0]
    black = [x for x in axes.get_lines() if x.get_color() == "black"]
    assert {x.get_label() for x in black} == {"Uniform", "TruncatedSVD"}
    assert all(x.get_marker() in {"None", ""} and x.get_linewidth() <= 1 for x in black)
    _, flat = line(axes, "Uniform")
    assert flat[0] == flat[1]
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_another_targets_rows_never_show():
    table = rank_table()
    doubled = table.copy()
    doubled.loc[doubled.target != "softmax", "output_error"] *= 100
    before, after = (line(draw(t, RANK, "softmax").axes[0], "Uniform") for t in (table, doubled))
    assert np.array_equal(before, after)
    labels = {x.get_label() for x in draw(table, RANK, "softmax").axes[0].get_lines()}
    assert "Soft" not in labels


def test_cost_runs_along_the_rank_and_marks_the_exact_operator():
    table = rank_table()
    axes = draw(table, COST, "Gaussian").axes[0]
    x, y = line(axes, "Soft")
    assert tuple(x) == tuple(1e5 * rank for rank in RANKS)
    assert all(np.diff(y) < 0)
    assert line(axes, "exact")[0][0] == 1e5 * 600


def test_failed_rows_are_left_out_and_unusable_points_counted():
    table = rank_table()
    where = (table.target == "softmax") & (table.source == INPUTS[0]) & (table["op.rank"] == 8)
    table.loc[where & (table.method == "Nystromformer"), "output_error"] = np.inf
    figure = draw(table, RANK, "softmax")
    (text,) = figure.axes[0].texts
    assert text.get_text().startswith("3 of ")
    assert not figure.axes[1].texts
    assert 8 not in line(figure.axes[0], "Nystromformer")[0]
    failed = table.assign(status="failed")
    with pytest.raises(ValueError, match="no finished row"):
        draw(failed, RANK, "softmax")


@pytest.mark.parametrize(
    ("lines", "page", "said"),
    [
        (replace(RANK, y="nonsense"), "softmax", "no column 'nonsense'"),
        (RANK, "nothing", "no finished row with target = 'nothing'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(lines, page, said):
    with pytest.raises(ValueError, match=said):
        draw(rank_table(), lines, page)


def test_methods_differ_in_marker_line_and_grey():
    from matplotlib.colors import to_rgb

    markers, lines, colours = zip(*METHODS, strict=True)
    assert len(set(markers)) == len(set(lines)) == len(METHODS)
    grey = [float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114))) for colour in colours]
    assert all(abs(a - b) > 0.1 for a, b in itertools.pairwise(grey))
    assert max(grey) < 0.75  # readable on white


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_equal_figures_are_equal_files(tmp_path, kind):
    pair = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for path in pair:
        save(draw(rank_table(), RANK, "softmax"), path)
    assert pair[0].read_bytes() == pair[1].read_bytes()


def test_summary_is_quartiles():
    table = rank_table(seeds=4)
    mine = table[(table.method == "Soft") & (table.target == "Gaussian")]
    points = summary(mine, ["source", "op.rank"], "output_error")
    errors = mine[(mine.source == INPUTS[0]) & (mine["op.rank"] == 16)].output_error
    row = points[(points.source == INPUTS[0]) & (points["op.rank"] == 16)].iloc[0]
    assert list(row[["q1", "median", "q3"]]) == pytest.approx(
        np.quantile(errors, [0.25, 0.5, 0.75])
    )


def test_figures_and_reports_leave_no_global_state_and_need_no_torch():
    code = (
        "import sys, types; m = types.ModuleType('softlab'); m.__path__ = ['softlab'];"
        "sys.modules['softlab'] = m; import softlab.figures, softlab.report;"
        "assert 'torch' not in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
