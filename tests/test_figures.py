"""Figures show medians, bands and references of the table, and never mix targets."""

import io
import itertools
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tables import CONDITIONS, INPUTS, RANKS, SOLVERS, rank_table, steps_table

from softlab.figures import Lines
from softlab.report.drawing import METHODS, STYLE, caption, draw, file_name, pages, save

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
    edge = band.get_paths()[0].vertices[:, 1]
    assert edge.min() < y.min() < y.max() < edge.max()


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
        (replace(RANK, expected="nonsense"), "softmax", "no column 'nonsense'"),
        (replace(RANK, panel="nonsense"), "softmax", "no column 'nonsense'"),
        (replace(RANK, guides={"nonsense": "a"}), "softmax", "no column 'nonsense'"),
        (replace(RANK, where={"nonsense": 1}), "softmax", "no column 'nonsense'"),
        (replace(RANK, where={"real": "word"}), "softmax", "no finished row with real = 'word'"),
        (RANK, "nothing", "no finished row with target = 'nothing'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(lines, page, said):
    with pytest.raises(ValueError, match=said):
        draw(rank_table(), lines, page)


def test_methods_differ_in_marker_line_and_grey():
    from matplotlib.colors import to_rgb

    markers, filled, lines, colours = zip(*METHODS, strict=True)
    assert len(set(zip(markers, filled, strict=True))) == len(set(lines)) == len(METHODS) == 10
    grey = [float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114))) for colour in colours]
    assert all(abs(a - b) > 0.1 for a, b in itertools.pairwise(grey))
    assert max(grey) < 0.75  # readable on white


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_equal_figures_are_equal_files(tmp_path, kind):
    pair = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for path in pair:
        save(draw(rank_table(), RANK, "softmax"), path)
    assert pair[0].read_bytes() == pair[1].read_bytes()


def solvers(**changes):
    base = Lines(
        x="condition", y="steps", group="solver", xlabel="condition", ylabel="steps",
        where={"spectrum": "flat", "bits": 64},
    )  # fmt: skip
    return replace(base, **changes)


def test_without_page_and_panel_there_is_one_figure_of_one_panel():
    table = steps_table()
    assert pages(table, solvers()) == [""]
    (axes,) = draw(table, solvers()).axes
    assert axes.get_title() == ""
    for i, solver in enumerate(SOLVERS):
        x, y = line(axes, solver)
        assert tuple(x) == CONDITIONS
        assert tuple(y) == tuple((i + 1) * (2 + 3 * j) + 1 for j in range(4))  # of seeds 0, 1, 2


def test_pages_are_the_values_that_where_leaves():
    table = steps_table()
    lines = solvers(page="spectrum", where={})
    assert pages(table, lines) == ["flat", "step"]
    assert pages(table, replace(lines, where={"symmetric": True})) == ["flat"]
    assert pages(rank_table(), RANK) == ["softmax", "Gaussian", "row-normalised Gaussian"]


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({}, slice(None)),
        ({"solver": "Newton"}, ["Newton"]),
        ({"solver": ["Newton", "Cubic"], "bits": 32}, ["Newton", "Cubic"]),
        ({"symmetric": False, "condition": 10.0, "solver": "Cubic"}, ["Cubic"]),
    ],
)
def test_where_keeps_rows_by_word_number_and_truth(tmp_path, where, kept):
    table = steps_table()
    table["mark"] = 1.0
    for column, wanted in where.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        table.loc[~table[column].isin(values), "mark"] = 100.0
    table.to_csv(tmp_path / "table.csv", index=False)
    read = pd.read_csv(tmp_path / "table.csv")  # as a report reads it, types and all
    axes = draw(read, solvers(y="mark", where=where)).axes[0]
    labels = [x.get_label() for x in axes.get_lines()]
    assert labels == list(np.array(SOLVERS)[:3] if kept == slice(None) else kept)
    if where:
        assert all(set(x.get_ydata()) == {1.0} for x in axes.get_lines())


def test_where_finds_truth_values_beside_gaps(tmp_path):
    table = steps_table()
    table["odd"] = None
    table.loc[table.solver != "Cubic", "odd"] = table.loc[table.solver != "Cubic", "bits"] == 64
    table.to_csv(tmp_path / "table.csv", index=False)
    read = pd.read_csv(tmp_path / "table.csv")
    axes = draw(read, solvers(where={"odd": True})).axes[0]
    assert [x.get_label() for x in axes.get_lines()] == ["Newton", "Chebyshev"]


def test_a_description_survives_json():
    lines = solvers(guides={"most": "at most"}, expected="predicted", references=("Newton",))
    again = Lines(**json.loads(json.dumps(asdict(lines))))
    images = []
    for one in (lines, again):
        with io.BytesIO() as file, rc_context(STYLE):
            draw(steps_table(), one).savefig(file, format="png")
            images.append(file.getvalue())
    assert images[0] == images[1]
    assert asdict(again) == asdict(lines) | {"references": ["Newton"]}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_expected_lies_beside_observed_in_the_same_colour_with_one_entry():
    table = steps_table()
    table.loc[table.condition == CONDITIONS[1], "predicted"] = np.nan
    figure = draw(table, solvers(expected="predicted", expected_label="from the spectrum"))
    (axes,) = figure.axes
    for i, solver in enumerate(SOLVERS):
        (observed,) = [x for x in axes.get_lines() if x.get_label() == solver]
        colour = observed.get_color()
        (expected,) = [x for x in axes.get_lines() if x.get_color() == colour and x != observed]
        assert expected.get_marker() in {"None", ""}
        assert expected.get_linewidth() < observed.get_linewidth()
        assert expected.is_dashed()
        assert tuple(expected.get_xdata()) == (CONDITIONS[0], *CONDITIONS[2:])
        assert tuple(expected.get_ydata()) == tuple((i + 1) * (2 + 3 * j) + 1 for j in (0, 2, 3))
    assert legend(figure) == [*SOLVERS, "from the spectrum"]
    assert not axes.texts  # a missing prediction is not a missing observation


def test_expected_is_shown_where_nothing_was_observed():
    table = steps_table()
    table.loc[table.solver == "Cubic", "steps"] = np.nan
    axes = draw(table, solvers(expected="predicted")).axes[0]
    cubic = METHODS[1][-1]
    (alone,) = [x for x in axes.get_lines() if x.get_color() == cubic]
    assert len(alone.get_xdata()) == len(CONDITIONS)
    assert axes.texts[0].get_text() == "12 of 36 not drawn: not positive or not finite"


def test_guides_are_grey_once_a_panel_and_labelled():
    table = steps_table()
    guides = {"most": "at most", "predicted": "$\\kappa$"}
    figure = draw(table, solvers(panel="spectrum", where={"bits": 64}, guides=guides))
    assert [axes.get_title() for axes in figure.axes] == ["flat", "step"]
    for axes in figure.axes:
        x, y = line(axes, "at most")
        assert (tuple(x), tuple(y)) == (CONDITIONS, (40.0, 41.0, 42.0, 43.0))
        grey = [x for x in axes.get_lines() if x.get_color() == "0.6"]
        assert len(grey) == 2
        assert len({str(x.get_linestyle()) + str(x.is_dashed()) for x in grey}) == 2
    assert legend(figure) == [*SOLVERS, *guides.values()]


def test_linear_axes_show_what_a_logarithm_cannot():
    table = steps_table()
    table["steps"] = table["steps"] - 3.0
    axes = draw(table, solvers()).axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.texts[0].get_text() == "2 of 36 not drawn: not positive or not finite"
    axes = draw(table, solvers(yscale="linear")).axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert not axes.texts
    assert min(line(axes, SOLVERS[0])[1]) == 0
    table["condition"] = table["condition"] - 1
    assert draw(table, solvers(yscale="linear")).axes[0].texts[0].get_text().startswith("9 of 36")
    assert not draw(table, solvers(xscale="linear", yscale="linear")).axes[0].texts
    with pytest.raises(ValueError, match=r"Lines.yscale is 'symlog'; use 'log' or 'linear'"):
        solvers(yscale="symlog")


@pytest.mark.parametrize("value", [True, None, np.nan, np.inf, -1.0, "word"])
def test_what_is_no_number_is_left_out_and_counted(value):
    table = steps_table()
    table["steps"] = table["steps"].astype(object)
    table.loc[(table.solver == "Newton") & (table.condition == 1.0), "steps"] = value
    axes = draw(table, solvers()).axes[0]
    assert axes.texts[0].get_text().startswith("3 of 36 not drawn")
    assert tuple(line(axes, "Newton")[0]) == CONDITIONS[1:]


def test_a_column_of_truth_values_draws_nothing():
    axes = draw(steps_table(), solvers(y="converged")).axes[0]
    assert axes.texts[0].get_text().startswith("36 of 36 not drawn")
    assert not axes.get_lines()


def test_numbers_and_words_of_the_table_are_titles_as_they_are(tmp_path):
    table = steps_table()
    figure = draw(table, solvers(panel="bits", where={"spectrum": "flat"}))
    assert [axes.get_title() for axes in figure.axes] == ["bits = 32", "bits = 64"]
    table["solver"] = table["solver"].replace({"Newton": "$a_b$ #x"})
    table["spectrum"] = "$\\nonsense$"  # as mathematics it would not parse
    figure = draw(table, solvers(panel="spectrum", where={}))
    assert figure.axes[0].get_title() == "$\\nonsense$"
    texts = figure.legends[0].get_texts()
    assert {x.get_text(): x.get_parse_math() for x in texts}["$a_b$ #x"] is False
    save(figure, tmp_path / "literal.svg")


def test_a_group_looks_the_same_on_all_pages():
    table = steps_table()
    table = table[(table.solver != "Newton") | (table.spectrum == "step")]
    colours = []
    for page in ("flat", "step"):
        axes = draw(table, solvers(page="spectrum", where={}), page).axes[0]
        colours.append({x.get_label(): x.get_color() for x in axes.get_lines()})
    assert set(colours[0]) == {"Cubic", "Chebyshev"}
    assert colours[0].items() <= colours[1].items()


def test_more_groups_than_can_be_told_apart_are_refused():
    table = pd.concat(
        [steps_table().assign(solver=f"solver {i:02}", steps=i + 1.0) for i in range(11)]
    )
    ten = sorted(table.solver.unique())[:10]
    axes = draw(table, solvers(where={"solver": ten})).axes[0]
    assert len(axes.get_lines()) == 10
    with pytest.raises(ValueError, match="solver has 11 values, and at most 10 lines"):
        draw(table, solvers())


def test_long_names_share_the_legend_without_leaving_the_figure():
    table = steps_table()
    for length in (3, 20, 45):
        names = {solver: f"{solver} {'m' * length}" for solver in SOLVERS}
        figure = draw(table.assign(solver=table.solver.replace(names)), solvers())
        FigureCanvasAgg(figure).draw()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0, length
        assert box.x1 <= figure.bbox.x1, length
        assert box.y0 >= figure.axes[0].get_window_extent().y1, length


@pytest.mark.parametrize(
    ("lines", "page", "said"),
    [
        (solvers(), "", "Steps against condition; medians and quartiles."),
        (
            solvers(page="spectrum", expected="p", expected_label="predicted", where={}),
            "flat",
            "Steps against condition, flat; medians and quartiles; thin dashed: predicted.",
        ),
        (solvers(page="bits", caption="Own words, {page}."), 64, "Own words, bits = 64."),
        (solvers(caption="Own {words}."), "", "Own {words}."),
        (
            solvers(references=("A", "B"), exact="E"),
            "",
            "Steps against condition; medians and quartiles; thin black: A, B.",
        ),
        (
            solvers(exact="E", by="b"),
            "",
            "Steps against condition; medians and quartiles; grey vertical: E.",
        ),
    ],
)
def test_caption_is_own_or_says_what_is_drawn(lines, page, said):
    assert caption(lines, page) == said


@pytest.mark.parametrize(
    ("lines", "page", "said"),
    [
        (RANK, "row-normalised Gaussian", "output_error-op_rank-row-normalised-Gaussian"),
        (solvers(), "", "steps-condition"),
        (solvers(name="atlas"), 1e-3, "atlas-0_001"),
        (solvers(name="a/../b"), "Recorded('x')", "a-__-b-Recorded-x"),
    ],
)
def test_file_names_hold_no_path_and_no_ending(lines, page, said):
    assert file_name(lines, page) == said


def test_figures_and_reports_leave_no_global_state_and_need_no_torch():
    code = (
        "import sys, types; m = types.ModuleType('softlab'); m.__path__ = ['softlab'];"
        "sys.modules['softlab'] = m; import softlab.figures, softlab.report;"
        "assert 'torch' not in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_panels_own_legend_names_its_own_groups_and_looks_begin_anew():
    lines = solvers(panel="solver", legend="panel", guides={"most": "at most"})
    figure = draw(steps_table(), lines)
    looks = set()
    for axes, name in zip(figure.axes, SOLVERS, strict=True):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [name]
        (curve,) = [x for x in axes.get_lines() if x.get_label() == name]
        looks.add((curve.get_marker(), curve.get_color()))
    assert len(looks) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["at most"]
    with pytest.raises(ValueError, match=r"Lines.legend is 'none'; use 'figure' or 'panel'"):
        replace(lines, legend="none")


def test_more_groups_than_looks_are_drawn_where_no_page_has_too_many():
    half = rank_table(seeds=1)
    copies = [half.assign(method=half.method + f" {i}", target=f"page {i}") for i in range(6)]
    table, lines = pd.concat(copies), replace(RANK, references=(), exact="")
    assert table.method.nunique() > len(METHODS)
    assert draw(table, lines, "page 3").axes
    with pytest.raises(ValueError, match="told apart"):
        draw(table.assign(target="one"), lines, "one")


UNEVEN = {
    # At each x: five values whose mean, median, extremes and count all differ.
    10.0: [1.0, 2.0, 3.0, 5.0, 90.0],
    100.0: [2.0, 4.0, 7.0, 8.0, 60.0],
    1.0: [0.5, 1.5, 4.0, 6.0, 40.0],
}


def uneven(**more):
    rows = [
        {"case": i, "status": "ok", "x": x, "y": y, "name": "Own", "low": y / 10, "said": y * 3}
        for x, values in UNEVEN.items()
        for i, y in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**more)


def own(**changes):
    return replace(Lines(x="x", y="y", group="name", xlabel="x", ylabel="y"), **changes)


def band(axes):
    """For each x of the only band: its lowest and its highest point."""
    (found,) = axes.collections
    corners = found.get_paths()[0].vertices
    return {x: (min(ys), max(ys)) for x in {*corners[:, 0]}
            for ys in [[y for at, y in corners if at == x]]}  # fmt: skip


def test_a_line_is_the_medians_in_the_order_of_x_and_its_band_the_quartiles():
    figure = draw(uneven(), own())
    (axes,) = figure.axes
    x, y = line(axes, "Own")
    assert x.tolist() == [1.0, 10.0, 100.0]  # sorted, whatever the order of the table
    assert y.tolist() == [4.0, 3.0, 7.0]
    assert band(axes) == {1.0: (1.5, 6.0), 10.0: (2.0, 5.0), 100.0: (4.0, 8.0)}
    assert [(m.x, m.y, m.q1, m.q3, m.cases) for m in figure.marks] == [
        (1.0, 4.0, 1.5, 6.0, 5), (10.0, 3.0, 2.0, 5.0, 5), (100.0, 7.0, 4.0, 8.0, 5)
    ]  # fmt: skip
    assert figure.left_out == ()
    low, high = axes.get_ylim()
    assert low < 1.5
    assert high > 8.0  # the frame holds the band


def test_along_a_line_x_is_the_median_too_and_the_order_that_of_by():
    table = uneven().assign(step=lambda t: t["x"].map({1.0: 3, 10.0: 1, 100.0: 2}))
    table["x"] = table["x"] * table["y"]
    figure = draw(table, own(by="step"))
    x, y = line(figure.axes[0], "Own")
    assert x.tolist() == [10 * 3.0, 100 * 7.0, 4.0]
    assert y.tolist() == [3.0, 7.0, 4.0]


def test_expected_and_guides_are_medians_in_the_order_of_x():
    figure = draw(uneven(), own(expected="said", guides={"low": "bound"}))
    (axes,) = figure.axes
    x, y = line(axes, "bound")
    assert (x.tolist(), y.tolist()) == ([1.0, 10.0, 100.0], pytest.approx([0.4, 0.3, 0.7]))
    (dashed,) = [z for z in axes.get_lines() if z.get_label().startswith("_")]
    assert dashed.get_ydata().tolist() == [12.0, 9.0, 21.0]
    assert dashed.get_xdata().tolist() == [1.0, 10.0, 100.0]
    beyond = draw(uneven(low=lambda t: t["low"].where(t["x"] > 1, -1.0)), own(guides={"low": "b"}))
    assert line(beyond.axes[0], "b")[0].tolist() == [10.0, 100.0]
    left = uneven(x=lambda t: t["x"].where(t["x"] > 1, -1.0))  # no place on a logarithm
    axes = draw(left, own(expected="said", guides={"low": "b"})).axes[0]
    assert all(z.get_xdata().tolist() == [10.0, 100.0] for z in axes.get_lines())


def test_references_are_medians_flat_without_a_place_and_curves_with_one():
    flat = uneven(name="Flat", x=None)
    curve = uneven(name="Curve")
    exact = uneven(name="Exact", x=[3.0, 4.0, 5.0, 70.0, 80.0] * 3, y=2.0)
    table = pd.concat([uneven(), flat, curve, exact], ignore_index=True)
    lines = own(references=("Flat", "Curve"), exact="Exact")
    figure = draw(table, lines)
    (axes,) = figure.axes
    everything = [y for values in UNEVEN.values() for y in values]
    assert {*line(axes, "Flat")[1]} == {np.median(everything)}
    x, y = line(axes, "Curve")
    assert (x.tolist(), y.tolist()) == ([1.0, 10.0, 100.0], [4.0, 3.0, 7.0])
    assert {*line(axes, "Exact")[0]} == {5.0}  # the mean is 32.4, the greatest 80
    assert {m.group for m in figure.marks} == {"Own"}
    assert figure.left_out == ()
    assert legend(draw(uneven(), own(exact="Exact"))) == ["Own"]  # of which there is no row


def test_the_frame_follows_methods_and_expected_and_not_what_lies_far_below():
    table = pd.concat([uneven(), uneven(name="Far", y=1e-9)], ignore_index=True)
    low, _ = draw(table, own(references=("Far",))).axes[0].get_ylim()
    assert low == pytest.approx(0.5 / 4)  # the least value of the methods, not of their medians
    low, _ = (
        draw(table.assign(said=0.01), own(references=("Far",), expected="said")).axes[0].get_ylim()
    )
    assert low == pytest.approx(0.01 / 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y": [None, *[1.0] * 14]}, "1 of 15 rows are not drawn: y is missing (1: Own)."),
        ({"y": ["a", *[1.0] * 14]}, "1 of 15 rows are not drawn: y is no number (1: Own)."),
        ({"y": [True, *[1.0] * 14]}, "1 of 15 rows are not drawn: y is no number (1: Own)."),
        ({"y": [10**400, *[1.0] * 14]}, "1 of 15 rows are not drawn: y is not finite (1: Own)."),
        ({"y": [0.0, -1.0, *[1.0] * 13]},
         "2 of 15 rows are not drawn: y is not positive (2: Own)."),
        ({"x": [-np.inf, *[1.0] * 14]}, "1 of 15 rows are not drawn: x is not finite (1: Own)."),
        ({"x": [None] * 15}, "15 of 15 rows are not drawn: x is missing (15: Own)."),
        ({"status": ["failed"] * 3 + ["ok"] * 12}, "3 cases failed."),
    ],
)  # fmt: skip
def test_what_a_figure_leaves_out_is_counted_with_its_reason(change, said):
    change = {x: pd.Series(y, dtype=object) for x, y in change.items()}
    figure = draw(uneven(**change), own())
    assert figure.left_out == (said,)


def test_rows_without_group_panel_or_page_are_counted_and_groups_are_named():
    names = ["A"] * 5 + ["B"] * 5 + [None] * 5
    table = uneven(name=names, part=["p"] * 14 + [None], kind=["k"] * 13 + ["l", None])
    figure = draw(table, own(panel="part", page="kind"), "k")
    assert figure.left_out == (
        "3 of 13 rows are not drawn: no name (3).", "1 rows have no kind and are on no page."
    )  # fmt: skip
    assert draw(table, own(panel="part", page="kind"), "l").left_out[0].startswith("1 of 1 rows")
    assert len(draw(uneven(part=["p"] * 14 + [None]), own(panel="part")).axes) == 1
    places = [None, *uneven()["x"][1:]]
    partly = pd.concat([uneven(), uneven(name="Ref", x=places)], ignore_index=True)
    figure = draw(partly, own(references=("Ref",)))
    assert figure.left_out == ("1 of 30 rows are not drawn: x is missing (1: Ref).",)
    x, y = line(figure.axes[0], "Ref")  # with a place here and there it is a curve, and not flat
    assert (x.tolist(), y.tolist()) == ([1.0, 10.0, 100.0], [4.0, 4.0, 7.0])
    far = pd.concat([table[:10], uneven(name="Unplaced", x=None, part="p", kind="k")])
    assert draw(far, own()).left_out == (
        "15 of 25 rows are not drawn: x is missing (15: Unplaced).",
    )
    many = pd.concat([uneven(name=f"G{i}", x=None) for i in range(7)] + [uneven()])
    (said,) = draw(many, own()).left_out
    assert said.endswith("x is missing (105: G0, G1, G2, G3, G4 and 2 more).")
    (said,) = draw(many[~many["name"].isin(["G5", "G6"])], own()).left_out
    assert said.endswith("x is missing (75: G0, G1, G2, G3, G4).")
    part = uneven(name=["A"] * 5 + ["B"] * 10, y=[0.0, *[1.0] * 14])
    (axes,) = draw(part, own()).axes
    assert axes.texts[0].get_position() == (0.5, 0.02)


def test_pages_are_values_and_none_where_the_study_has_it_as_one():
    table = uneven(kind=["k"] * 10 + [None] * 5, case=[2.0, 1.0, 3.0] * 5)
    assert pages(table, own(page="kind")) == ["k"]  # measured: a row without it is on no page
    assert draw(table, own(page="kind"), "k").left_out == (
        "5 rows have no kind and are on no page.",
    )
    assert pages(table, own(page="case")) == [2.0, 1.0, 3.0]
    assert draw(table, own(page="case"), 2.0).left_out == ()
    several = uneven(case=[None, 1.0, 2.0] * 5)
    assert pages(several, own(page="case")) == [1.0, 2.0, None]
    assert draw(several, own(page="case"), 1.0).left_out == ()
    assert pages(uneven(case=None), own(page="case")) == [None]


@pytest.mark.parametrize(
    ("label", "mathematics"),
    [("$x^2$", True), ("error", True), ("$x^{2$", False), ("$\\nothing$", False)],
)
def test_a_label_that_is_no_mathematics_stands_as_written_and_is_named(label, mathematics):
    figure = draw(uneven(), own(ylabel=label, guides={"low": label}))
    FigureCanvasAgg(figure).draw()
    assert figure._supylabel.get_text() == label
    said = f"The label {label!r} is no mathematics that can be set, and stands as written."
    assert figure.left_out == (() if mathematics else (said, said))


def test_as_many_groups_as_looks_keep_them_on_all_pages():
    names = [f"g{i:02}" for i in range(len(METHODS))]
    table = pd.concat(
        uneven(name=name, kind=kind) for i, name in enumerate(names)
        for kind in (["a", "b"] if i % 3 else ["b"])
    )  # fmt: skip
    seen = {}
    for page in ("a", "b"):
        for axes in draw(table, own(page="kind"), page).axes:
            for x in axes.get_lines():
                look = (x.get_marker(), x.get_color(), str(x.get_linestyle()))
                assert seen.setdefault(x.get_label(), look) == look
    assert set(seen) == set(names)
    assert len({*seen.values()}) == len(names)


@pytest.mark.parametrize("role", ["group", "panel", "page"])
def test_none_on_an_axis_is_a_line_a_panel_or_a_page_of_its_own(role):
    table = uneven(case=[None, 0.5, 3.0] * 5)
    lines = own(**{role: "case"})
    shown = pages(table, lines) if role == "page" else [""]
    assert shown == ([0.5, 3.0, None] if role == "page" else [""])
    figures = [draw(table, lines, page) for page in shown]
    assert sum(mark.cases for figure in figures for mark in figure.marks) == 15
    assert all(figure.left_out == () for figure in figures)
    if role == "group":
        assert set(legend(figures[0])) == {"case = None", "case = 0.5", "case = 3"}
    if role == "panel":
        assert [axes.get_title() for axes in figures[0].axes] == [
            "case = None", "case = 0.5", "case = 3"
        ]  # fmt: skip
    if role == "page":
        assert caption(lines, None) == "Y against x, case = None; medians and quartiles."
        one = draw(table, own(where={"case": None}))
        assert sum(mark.cases for mark in one.marks) == 5


@pytest.mark.parametrize(
    "values", [["_own", "", "a"], [True, 1, 0], [0.1, 0.10000000149, 0.2], ["None", None, "nan"],
               ["a" * 500 + "b", "a" * 500 + "c", "d"], [2**70, 10**400, 1]],
)  # fmt: skip
def test_groups_that_print_alike_or_not_at_all_keep_their_lines_and_entries(values):
    table = uneven(case=pd.Series(values * 5, dtype=object))
    figure = draw(table, own(group="case"))
    assert len({mark.group for mark in figure.marks}) == 3
    assert len({*legend(figure)}) == 3
    assert all(len(x) < 100 for x in legend(figure))


def test_descriptions_and_marks_cannot_be_changed_by_who_reads_them():
    for one in (own(), draw(uneven(), own()).marks[0]):
        with pytest.raises(FrozenInstanceError):
            one.y = "z"


def test_a_word_of_sixty_letters_is_drawn_whole_and_of_a_longer_one_sixty():
    table = pd.concat(uneven(name=letter * (60 + i)) for i, letter in enumerate("ab"))
    assert legend(draw(table, own())) == ["a" * 60, "b" * 60 + "… (61 letters)"]


def test_a_point_tells_what_all_its_rows_have_in_common_and_no_more():
    table = uneven(case="c").assign(scale=[None, 0.5, 0.5, 0.5, 0.5] * 3, none=None)
    table["op.k"] = 3  # a field of an axis
    names = ["case", "scale", "none", "op.k", "x", "status"]
    table = table[[*names, *(x for x in table if x not in names)]]
    assert {str(mark.case) for mark in draw(table, own()).marks} == {
        "{'case': 'c', 'none': 'None'}"
    }


@pytest.mark.parametrize(
    ("panels", "groups", "legend_of", "size"),
    [
        (1, 1, "figure", 0.1 + 0.18 + 0.42 + 2.4), (2, 1, "figure", 0.3 + 0.18 + 0.42 + 1.75),
        (3, 6, "figure", 0.3 + 2 * 0.18 + 0.42 + 2.4), (4, 1, "figure", 0.3 + 0.18 + 0.42 + 3.5),
        (4, 6, "figure", 0.3 + 2 * 0.18 + 0.42 + 3.5),
        (7, 1, "figure", 0.3 + 0.18 + 0.42 + 3 * 1.07),
        (10, 1, "figure", 0.3 + 0.18 + 0.42 + 4 * 1.75),
        (15, 1, "figure", 0.3 + 0.18 + 0.42 + 7.6), (2, 2, "panel", 0.3 + 0.42 + 2.0),
    ],
)  # fmt: skip
def test_the_size_of_a_figure_is_that_of_its_panels_and_legend(panels, groups, legend_of, size):
    table = pd.concat(
        uneven(name=f"g{j}", part=f"p{i}") for i in range(panels) for j in range(groups)
    )
    figure = draw(table, own(panel="part" if panels > 1 else "", legend=legend_of))
    assert figure.get_size_inches().tolist() == pytest.approx([6.3, size])
    assert len(figure.axes) == panels
    shown = [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes]
    assert shown == [i + min(3, panels) >= panels for i in range(panels)]


def test_ticks_are_the_few_values_of_x_or_plain_numbers_of_a_short_axis():
    figure = draw(uneven(), own())
    (axes,) = figure.axes
    assert axes.xaxis.get_major_locator().locs.tolist() == [1.0, 10.0, 100.0]
    many = pd.concat([uneven(x=2.0**i) for i in range(9)])
    (axes,) = draw(many, own()).axes
    assert not hasattr(axes.xaxis.get_major_locator(), "locs")
    close = pd.concat([uneven(x=x) for x in (1.0, 1.05, 1000.0)])
    assert not hasattr(draw(close, own()).axes[0].xaxis.get_major_locator(), "locs")
    assert axes.yaxis.get_major_formatter()(0.5, 0) == "0.5"
    wide = draw(uneven(y=np.geomspace(1, 1e5, 15)), own()).axes[0]
    assert wide.yaxis.get_major_formatter()(1000.0, 0) != "1000"


@pytest.mark.parametrize(
    ("xs", "fixed"),
    [
        ([1e-3, 1e-2, 1e-1], True), ([1.0, 1.6, 100.0], True), ([7.0], True),
        ([2.0**i for i in range(8)], True), ([1.0, 1.3, 100.0], False), ([1.0, 50.0, 51.0], False),
    ],
)  # fmt: skip
def test_ticks_stand_at_eight_values_at_most_that_are_apart(xs, fixed):
    (axes,) = draw(pd.concat([uneven(x=x) for x in xs]), own()).axes
    found = getattr(axes.xaxis.get_major_locator(), "locs", None)
    assert (found is not None and list(found) == xs) == fixed
    linear = draw(uneven(), own(xscale="linear")).axes[0]
    assert not hasattr(linear.xaxis.get_major_locator(), "locs")


@pytest.mark.parametrize(
    ("low", "high", "between", "plain"),
    [(1, 50, True, True), (1e-3, 0.5, False, True), (1e-3, 20.0, False, False), (1, 9, True, True)],
)
def test_ticks_of_a_short_axis_are_close_and_of_one_of_three_decades_plain(
    low, high, between, plain
):
    table = uneven(y=np.geomspace(low, high, 15))
    (axes,) = draw(table, own(xscale="linear")).axes
    ticks = [x / 10 ** np.floor(np.log10(x)) for x in axes.get_yticks()]
    assert {round(x, 3) for x in ticks} == ({1, 2, 5} if between else {1})
    assert (axes.yaxis.get_major_formatter()(0.002, 0) == "0.002") == plain
    assert not len(axes.yaxis.get_minorticklocs())


def test_panels_share_their_axes_and_a_panels_own_legend_leaves_the_frame_to_methods():
    far = uneven(name="Far", y=1e-9)
    table = pd.concat([uneven(part="p"), uneven(part="q", x=3000.0, y=500.0), far.assign(part="q")])
    figure = draw(table, own(panel="part", legend="panel", references=("None", "Far")))
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    assert first.get_ylim()[0] == pytest.approx(0.5 / 4)
    assert second.get_ylim()[1] > 500
    assert legend(figure) == ["Far"]  # a reference without rows hides no other


@pytest.mark.parametrize(("letters", "rows"), [(3, 2), (8, 2), (17, 2), (20, 3), (58, 7)])
def test_a_legend_has_as_many_columns_as_fit_and_five_at_most(letters, rows):
    """Seven entries: 6.3 inches over 0.5 and 0.06 a letter are 9.3, 6.4, 4.1, 3.7 and 1.6."""
    table = pd.concat([uneven(name=f"{i}" * letters) for i in range(7)])
    figure = draw(table, own())
    assert figure.get_size_inches()[1] == pytest.approx(0.1 + 0.18 * rows + 0.42 + 2.4)
    FigureCanvasAgg(figure).draw()
    box = figure.legends[0].get_window_extent()
    assert (box.x0 + box.x1) / 2 == pytest.approx(figure.bbox.x1 / 2, abs=1)
    assert box.y1 <= figure.bbox.y1


def test_words_stand_beside_the_frame_and_within_the_figure():
    figure = draw(uneven(), own())
    width, height = figure.get_size_inches()
    frame = figure.axes[0].get_position()
    assert (frame.x0 * width, (1 - frame.x1) * width) == pytest.approx((0.62, 0.08))
    assert (frame.y0 * height, (1 - frame.y1) * height) == pytest.approx((0.42, 0.1 + 0.18))
    below, beside = figure._supxlabel, figure._supylabel
    assert (below.get_position()[1] * height, beside.get_position()[0] * width) == pytest.approx(
        (0.06, 0.06)
    )
    assert beside.get_position()[1] == pytest.approx((frame.y0 + frame.y1) / 2)
    figure = draw(pd.concat([uneven(part="p"), uneven(part="q")]), own(panel="part"))
    FigureCanvasAgg(figure).draw()
    box = figure.axes[0].title.get_window_extent()
    assert figure.axes[0].bbox.y1 < box.y0 < box.y1 < figure.legends[0].get_window_extent().y0


@pytest.mark.parametrize(
    ("letters", "panels", "lines"), [(28, 3, 1), (29, 3, 2), (29, 2, 1), (60, 4, 2)]
)
def test_a_title_that_is_wider_than_one_of_three_panels_has_two_lines(letters, panels, lines):
    name = "a, b, " + "c" * (letters - 6)
    table = pd.concat(uneven(part=x) for x in [name, *"pqr"[: panels - 1]])
    figure = draw(table, own(panel="part"))
    title = figure.axes[0].get_title()
    assert title == (name if lines == 1 else name.replace("a, b", "a,\nb"))
    height = 0.3 + 0.18 + 0.42 + 1.75 * -(-panels // 3)
    made, more = figure.get_size_inches()[1], 0.15 * (lines - 1)
    assert made == pytest.approx(height + more)
    assert (1 - figure.axes[0].get_position().y1) * made == pytest.approx(0.3 + 0.18 + more)


def test_five_lines_leave_a_row_of_panels_low_and_six_make_it_high():
    table = pd.concat(uneven(name=f"g{j}", part=f"p{i}") for i in range(2) for j in range(5))
    height = draw(table, own(panel="part")).get_size_inches()[1]
    assert height == pytest.approx(0.3 + 0.18 + 0.42 + 1.75)


def test_marks_lie_where_their_points_do():
    figure = draw(uneven(), own())
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    for mark in figure.marks:
        at = figure.transFigure.inverted().transform(axes.transData.transform((mark.x, mark.y)))
        assert (mark.left, 1 - mark.top) == pytest.approx(tuple(at), abs=1e-4)


def test_a_files_name_is_no_longer_than_a_file_system_takes():
    name = file_name(own(name="誤" * 400), "x")
    assert len(name.encode()) <= 200
    assert set(name) == {"誤"}


def test_few_points_far_apart_have_words_on_their_axis():
    table = pd.DataFrame({
        "n": [7.0, 300.0, 2e4, 9e5], "status": "ok", "error": [1.0, 2.0, 3.0, 4.0], "op": "A",
    })  # fmt: skip
    figure = draw(table, Lines(x="n", y="error", group="op", xlabel="n", ylabel="error"))
    FigureCanvasAgg(figure).draw()
    low, high = figure.axes[0].get_xlim()
    shown = [
        tick.label1.get_text()
        for tick in figure.axes[0].xaxis.get_major_ticks()
        if low <= tick.get_loc() <= high
    ]
    assert len(list(filter(None, shown))) >= 3
