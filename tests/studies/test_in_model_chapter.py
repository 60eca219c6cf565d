"""Every number of the chapter on substitution in models, against ranks and draws by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from softlab.report.numbers import sentence
from studies.in_model.chapter import (
    PREDICTION,
    binned,
    correlations,
    findings,
    gathered,
    prediction,
    saving,
    scope,
    tables,
)

PREDICTORS = ("matrix_error", "output_error", "lack_of_skill")


def made(seed=0, methods=("a", "b", "c", "d", "e"), models=("one", "duo"), knobs=(16, 64)):
    """Changes that follow the matrix error at a place, loosely; rows that no rank may count."""
    rng, rows = np.random.default_rng(seed), []
    for model in models:
        for i, method in enumerate(methods):
            for knob in knobs:
                for part in ("all layers", "first third") if knob == 64 else ("all layers",):
                    error = 0.01 * 2 ** rng.uniform(0, 6)
                    rows.append({
                        "status": "ok", "model": model, "method": method, "op": f"{method}({knob})",
                        "family": ("tensor", "sparse")[i % 2], "part": part, "layers": 1,
                        "depth": 4, "matrix_error": error,
                        "output_error": round(rng.uniform(0.1, 1), 1),
                        "lack_of_skill": rng.uniform(0.1, 1), "within": 0.1, "work": 0.25,
                        "change": error * 2 ** rng.normal(0, 1.5), "task_loss": None,
                    })  # fmt: skip
    lost = {**rows[0], "matrix_error": 9.0, "change": 1e-9}
    rows += [
        lost | {"status": "failed"},
        lost | {"layers": 0},
        lost | {"part": "greedy"},
        lost | {"change": None},
        lost | {"lack_of_skill": None, "part": "last third"},
    ]
    return pd.DataFrame(rows)


def counted(table):
    rows = table[(table["status"] == "ok") & (table["layers"] > 0) & (table["part"] != "greedy")]
    return rows.dropna(subset=["change", *PREDICTORS])


def rho(parts, column, weights=None):
    """The mean of Spearman's coefficients of parts; ``weights``: how often each method is drawn."""
    each = []
    for rows in parts:
        if weights is not None:
            rows = rows.loc[rows.index.repeat(rows["method"].map(weights))]
        if rows["method"].nunique() >= 3:
            each.append(spearmanr(rows[column], rows["change"]).statistic)
    return np.mean(each) if each else np.nan


def by_hand(rows, strata, column, draws):
    """rho with the 95 % interval of draws of methods, each with all its rows."""
    parts = [of for _, of in rows.groupby(strata)]
    names = sorted(set(rows["method"]))
    times = np.random.default_rng(0).multinomial(len(names), [1 / len(names)] * len(names), draws)
    found = [rho(parts, column, dict(zip(names, drawn, strict=True))) for drawn in times]
    # Phi(-sqrt(5 / 4) 2.7764): the expanded percentiles of five units
    return rho(parts, column), np.nanquantile(found, [0.000955, 1 - 0.000955])


@pytest.mark.parametrize(("family", "strata"), [("one place", ["model", "part"]), ("all", "model")])
def test_correlations_are_spearmans_and_draws_are_of_methods(monkeypatch, family, strata):
    monkeypatch.setattr("studies.in_model.chapter.DRAWS", 20)
    found = correlations(made()).set_index(["model", "family", "predictor"])
    for model in ("one", "all"):
        rows = counted(made())
        rows = rows if model == "all" else rows[rows["model"] == model]
        value, ends = by_hand(rows, strata, "matrix_error", 20)
        at = found.loc[(model, family, "matrix_error")]
        assert at["rho"] == pytest.approx(value)
        assert (at["low"], at["high"]) == pytest.approx(ends, rel=1e-3)
        assert (at["rows"], at["operators"]) == (len(rows), 10)


def test_knobs_and_places_that_agree_are_no_more_methods():
    """A method at twenty knobs of the same numbers is one method: its interval is as wide."""
    one = made(knobs=(64,))
    many = pd.concat([one.assign(op=one["op"] + str(i)) for i in range(20)], ignore_index=True)
    columns = ["rho", "low", "high"]
    few, more = (
        correlations(t).set_index(["model", "family", "predictor"])[columns] for t in (one, many)
    )
    same = few.index[few["low"].notna()]
    assert len(same)
    np.testing.assert_allclose(more.loc[same], few.loc[same], atol=1e-12)


def test_three_operators_at_a_place_are_enough():
    table = made(methods=("a", "b", "c"), knobs=(16, 32, 64))
    found = correlations(table).set_index(["model", "family", "predictor"])
    parts = [of for _, of in counted(table)[lambda x: x["model"] == "one"].groupby("part")]
    assert sorted(map(len, parts)) == [3, 9]
    for predictor in PREDICTORS:
        at = found.loc[("one", "one place", predictor)]
        assert at["rho"] == pytest.approx(rho(parts, predictor))


def test_families_of_few_methods_have_no_interval():
    found = correlations(made()).set_index(["model", "family", "predictor"])
    family = found.xs("tensor", level="family")  # three methods, six operators
    assert family["rho"].notna().all()
    assert family[["low", "high"]].isna().all(axis=None)
    assert (family["operators"] == 6).all()
    few = correlations(made(methods=("a", "b"), knobs=(64,)))
    assert few.empty
    four = correlations(made(methods=("a", "b", "c", "d"), knobs=(64,)))
    assert four.loc[four["family"] == "all", "low"].notna().all()
    assert "tensor" not in set(four["family"])  # two operators


def words(at):
    return f"{at['rho']:.2f} ({at['low']:.2f} to {at['high']:.2f})"


def test_the_sentence_says_over_what_and_how_sure():
    found = correlations(made()).set_index(["model", "family", "predictor"])
    (said, *_) = findings(made())
    place, whole = ([words(found.loc[("all", family, p)]) for p in PREDICTORS]
                    for family in ("one place", "all"))  # fmt: skip
    start = (
        "Rank correlation with the relative change of the model's output, among 10 operators at one"
        " place, mean over the places of 2 models, with the 95 % interval of other methods in the "
        f"same models: matrix error {place[0]}, output error {place[1]} and 1 - skill {place[2]}; "
        f"over all places together (30 substitutions): matrix error {whole[0]}, output error "
        f"{whole[1]} and 1 - skill {whole[2]}. So the error of the attention matrix "
    )
    assert said.startswith(start)
    of_models = found.drop("all", level="model").xs("one place", level="family")["rho"]
    model, predictor = of_models.idxmin()
    name = {"matrix_error": "matrix error", "output_error": "output error"}.get(predictor, "1 - ")
    assert said.endswith(f"{of_models.min():.2f} in {model}.")
    assert f"Least of 6 at one place of one model: {name}" in said


@pytest.mark.parametrize(
    ("low", "high", "verb", "may_swap"),
    [
        (0.95, 1.0, "predicts", False),
        (0.9, 1.0, "predicts", True),
        (0.51, 0.9, "predicts", True),
        (0.5, 0.9, "orders, loosely,", True),
        (0.0, 0.9, "does not order", True),
        (-0.9, -0.1, "does not order", False),
    ],
)
def test_the_verdict_follows_the_interval(low, high, verb, may_swap):
    row = {"predictor": "matrix_error", "rho": 0.5, "rows": 9, "operators": 5}
    groups = [(m, f) for m in ("one", "all") for f in ("one place", "all")]
    found = pd.DataFrame(
        [{"model": m, "family": f, **row, "low": low, "high": high} for m, f in groups]
    )
    facts = prediction(found)
    assert (facts["verb"], facts["may_swap"], facts["compared"]) == (verb, may_swap, 1)
    doubt = "; operators may still change places" * may_swap
    said = f"So the error of the attention matrix {verb} the change of the output{doubt}. Least of"
    assert said in sentence(PREDICTION, facts)
    unsure = prediction(found.assign(low=np.nan, high=np.nan))
    assert "verb" not in unsure
    assert unsure["place"] == ["matrix error 0.50"]
    found.loc[found["model"] == "one", "rho"] = np.nan
    assert "compared" not in prediction(found)


def test_the_table_of_correlations():
    found = correlations(made()).set_index(["model", "family", "predictor"])
    (table, *_) = tables(made())
    assert table["header"][2:] == ["rows", "matrix error", "output error", "1 - skill"]
    assert [row[:3] for row in table["rows"]] == [
        [model if i == 0 else "", family, str(count)]
        for model, times in (("one", 1), ("duo", 1), ("all", 2))
        for i, (family, count) in enumerate(zip(
            ("one place", "all", "tensor", "sparse"), np.array((15, 15, 9, 6)) * times,
            strict=True))
    ]  # fmt: skip
    at = found.loc[("one", "one place", "output_error")]
    assert table["rows"][0][4] == [f"{at['rho']:.2f}", f"{at['low']:.2f} to {at['high']:.2f}"]
    assert table["rows"][2][3] == f"{found.loc[('one', 'tensor', 'matrix_error'), 'rho']:.2f}"
    assert table["left"] == 2


def test_bins_are_thirds_of_a_decade():
    table = made()[:6].assign(matrix_error=[0.1, 0.21, 0.22, 1.0, 0.0, np.inf],
                              output_error=0.5, lack_of_skill=-1.0)  # fmt: skip
    points = binned(table)
    of_matrix = points[points["predictor"] == "matrix error"]
    assert of_matrix["bin"].tolist() == [-3, -3, -2, 0]
    assert of_matrix["error"].tolist() == pytest.approx(
        [10 ** (-2.5 / 3), 10 ** (-2.5 / 3), 10 ** (-1.5 / 3), 10 ** (0.5 / 3)]
    )
    assert (points["error"] == points["same"]).all()
    assert points["predictor"].value_counts().to_dict() == {"output error": 6, "matrix error": 4}
    assert binned(costs()).empty
    bare = made().assign(**dict.fromkeys(PREDICTORS))
    assert binned(bare).empty
    assert {"predictor", "bin", "error", "same"} < set(binned(bare))


# --- swaps -------------------------------------------------------------------------------------


def swaps():
    rows = [  # model, operator, part, layers, change, task loss
        ("one", "a(16)", "all layers", 6, 0.3, 0.1), ("one", "a(64)", "all layers", 6, 0.1, 0.02),
        ("one", "a(64)", "first third", 2, 0.05, None),
        ("one", "b(16)", "all layers", 6, 0.11, None), ("one", "b(64)", "all layers", 6, 0.2, None),
        ("one", "b(64)", "first third", 2, 0.1, None),
        ("one", "b(64)", "last third", 2, 0.05, None),
        ("one", "b(64)", "middle third", 2, 0.11, None), ("one", "b(64)", "greedy", 4, 0.09, None),
        ("duo", "c(64)", "all layers", 6, 0.5, 3.0), ("duo", "c(64)", "first third", 2, 0.4, None),
        ("duo", "d(64)", "all layers", 6, 0.7, 3.0), ("duo", "d(64)", "greedy", 1, 0.05, None),
        ("duo", "e(64)", "all layers", 6, 0.05, None), ("duo", "d(16)", "greedy", 5, 0.05, None),
        ("duo", "b(64)", "middle third", 2, 0.05, None),
    ]  # fmt: skip
    found = pd.DataFrame(
        rows, columns=["model", "op", "part", "layers", "change", "task_loss"]
    ).assign(status="ok", family="tensor", depth=6, within=0.1, work=0.25)
    found = found.assign(**dict.fromkeys(PREDICTORS))
    found["method"] = found["op"].str[0]
    late = {"part": "first third", "change": 0.01, "status": "failed"}
    return pd.concat([found, found.iloc[[9]].assign(**late)], ignore_index=True)


def test_what_can_be_swapped_is_what_moves_the_output_little():
    assert findings(swaps()) == [
        "In all layers at once these move the output by at most 0.1: one: a(64) (0.100); duo: e(64)"
        " (0.0500). All others belong into some layers only, or nowhere."
    ]
    alone = findings(swaps().query("method == 'b'"))
    assert "at most 0.1: one: none. All others" in alone[0]


def test_the_table_of_swaps_says_where():
    (table,) = tables(swaps())
    assert table["rows"] == [
        ["one", "a(64)", "0.250", "0.100", "0.0200", "all layers"],
        ["", "b(16)", "0.250", "0.110", "", ["first, last", "greedy 4 of 6"]],
        ["duo", "e(64)", "0.250", "0.0500", "", "all layers"],
        ["", "c(64)", "0.250", "0.500", "3.00", "nowhere"],
        ["", "d(64)", "0.250", "0.700", "3.00", ["no third", "greedy 1 of 6"]],
    ]
    assert table["header"] == ["model", "operator", "work", "change", "task", "where"]
    assert "moves by at most 0.1: in all layers" in table["caption"]
    assert table["left"] == 2


# --- depth -------------------------------------------------------------------------------------


def depths():
    """At the last layer 2, 3 and 10 times in one model; an own error of 0 is no ratio."""
    rows = [
        ("one", 5, 0.1, 0.2), ("one", 5, 0.1, 1.0), ("one", 5, 0.1, 0.3), ("one", 5, 0.0, 0.3),
        ("one", 4, 0.1, 90.0), ("duo", 3, 0.5, 0.25), ("one", 5, 0.1, None), ("odd", 1, 0.0, 1.0),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model", "layer", "own", "accumulated"])
    table = table.assign(status="ok", method="a")
    return pd.concat([table, table.iloc[[0]].assign(status="failed", accumulated=99.0)])


def test_errors_that_gather_have_a_range_over_the_operators():
    assert findings(depths()) == [
        "At the last layer, with the operator in all of them, the attention's output has moved by "
        "so many times the operator's own error there, from the least to the greatest of the "
        "operators (in brackets how many): one 2.00 to 10.0 (3) and duo 0.500 (1)."
    ]
    assert gathered(depths()[-2:]) == {}


# --- costs -------------------------------------------------------------------------------------


def costs():
    rows = [  # model, method, tokens, time, q1, q3, attention's share
        ("one", "exact", 512, 1.02, 0.99, 1.03, 0.125), ("one", "a", 512, 0.8, 0.75, 0.9, 0.125),
        ("one", "b", 512, 0.9, 0.85, 1.0, 0.125), ("one", "c", 512, 0.7, 0.5, 0.8, 0.125),
        ("one", "d", 512, 1.3, 1.2, 1.35, 0.125), ("one", "a", 128, 0.1, 0.1, 0.1, 0.5),
        ("duo", "a", 1500, 0.5, 0.49, 0.52, 0.31), ("duo", "exact", 1500, 0.97, 0.96, 0.98, 0.31),
    ]  # fmt: skip
    names = ["model", "method", "tokens", "time", "time_q1", "time_q3", "attention_share"]
    found = pd.DataFrame(rows, columns=names)
    found = found.assign(status="ok", op=found["method"] + "(64)", work=0.755, memory=0.345)
    lost = found.iloc[[6]].assign(status="failed", tokens=3000, time=0.1, time_q3=0.1)
    return pd.concat([found, lost], ignore_index=True)


def test_what_is_faster_is_so_with_its_quartiles():
    """b reaches 1 with its third quartile, c is too noisy: (0.8 - 0.5) / 0.7 is above 0.25."""
    assert findings(costs()) == [
        "At the greatest length attention's scores and sums are of the counted work: one 12 % and "
        "duo 31 %. Faster than the model as it is, then, quartiles too: a(64) in one 0.800 "
        "(quartiles 0.750 to 0.900) and a(64) in duo 0.500 (quartiles 0.490 to 0.520). Too noisy to"
        " compare: 1. Exact attention substituted for itself takes 0.970 to 1.02."
    ]
    slow = saving(costs().query("method == 'd'"))
    assert (slow["faster"], slow["noisy"], slow["itself"]) == ("none", 0, "")


def test_the_table_of_costs_has_a_row_an_operator():
    (table,) = tables(costs())
    assert [row[:3] for row in table["rows"]] == [
        ["one", "512", "exact(64)"], ["", "", "a(64)"], ["", "", "b(64)"], ["", "", "c(64)"],
        ["", "", "d(64)"], ["one", "128", "a(64)"], ["duo", "1500", "a(64)"], ["", "", "exact(64)"],
    ]  # fmt: skip
    assert [row[3:] for row in table["rows"]][:4] == [
        ["0.76", ["1.02", ".99–1.0"], "0.34"], ["0.76", ["0.800", ".75–.90"], "0.34"],
        ["0.76", ["0.900", ".85–1.0"], "0.34"], ["0.76", "noisy", "0.34"],
    ]  # fmt: skip
    assert table["header"] == ["model", "tokens", "operator", "work", "time", "memory"]
    assert table["left"] == 3


def test_the_scope_and_what_failed():
    assert scope(swaps()) == "Models: one and duo. Operators: a, b, c, d and e."
    assert scope(pd.DataFrame({"model": ["one"], "status": "failed"})) == ""
    for table in (made(), swaps(), costs()):
        failed = table.assign(status="failed")
        assert findings(failed) == list(tables(failed)) == []
