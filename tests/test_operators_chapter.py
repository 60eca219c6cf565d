"""Every number that the chapter of operators says, against the lists that its table is made of.

Each seed's error is 0.3, 1 and 4.1 times that of its input: medians over seeds are the
listed numbers, means, maxima and pooled medians are not.
"""

import re
from statistics import median

import numpy as np
import pandas as pd
import pytest
from tables import below, three

from softlab.report.operators.chapter import findings, headlines, scope, tables

SEEDS = (0.3, 1.0, 4.1)
RANKS = (64, 16, 128)
"""Not in order, as rows of a resumed run are not."""
SOURCES = {
    "h5": (0.31, 0.55, 0.12),
    "h1": (0.42, 0.81, 0.35),
    "h2": (0.11, 0.64, 0.099),  # 0.099 / 0.11 is 0.9 exactly: no longer less than a tenth
    "h3": (0.57, 0.93, 0.58),  # the last step does harm
    "h4": (1.00, 1.20, 0.91),  # and here little
    "h6": (0.21, 0.77, 0.21),  # nothing
    "b7": (0.73, 0.36, 0.67),  # 0.36 is the best smaller
    "made": (0.013, 0.017, 0.009),
}
LENGTHS = {"h1": 100, "h5": 300, "made": 300}
UNIFORM = {source: 0.5 + 0.07 * i for i, source in enumerate(SOURCES)}
REAL = [source for source in SOURCES if source != "made"]


def table(**more):
    rows = []
    for source, errors in SOURCES.items():
        n = LENGTHS.get(source, 200)
        for seed, factor in enumerate(SEEDS):
            base = {
                "status": "ok", "error": None, "target": "softmax", "source": source, "seed": seed,
                "real": source != "made", "n": n, "row_mass": 1.0, "op.rank": None,
                "uniform_error": UNIFORM[source] * factor, "ratio_to_bound": None,
                "core_status": None, "core_residual": None,
            }  # fmt: skip
            cost = {"flops": 8e6 * n, "kernel_entries": 7e3 * n, "seconds": 3e-5 * n * factor,
                    "seconds_q1": 2.9e-5 * n * factor, "seconds_q3": 3.2e-5 * n * factor,
                    "peak_bytes": 2e4 * n * factor}  # fmt: skip
            rows.append(base | cost | {"method": "exact", "output_error": 1e-7, "skill": 1.0})
            rows.append(base | {"method": "Uniform", "output_error": 9.0, "skill": 0.0})
            for rank, error in zip(RANKS, errors, strict=True):
                ranked = base | {"op.rank": rank}
                rows.append(ranked | {"method": "TruncatedSVD", "skill": 0.9,
                                      "output_error": 0.01 * error * factor})  # fmt: skip
                costs = {name: x * rank / 1000 for name, x in cost.items()}
                rows.append(ranked | costs | {
                    "method": "Low", "output_error": error * factor, "skill": 0.4 - error * factor,
                    "ratio_to_bound": 3 * error * factor, "core_status": "CONVERGED",
                    "core_residual": 1e-8,
                })  # fmt: skip
    made = pd.DataFrame(rows).assign(**more)
    lost = made[made["method"] == "Low"].assign(
        status="failed", output_error=99.0, skill=-9.0, core_status="DIVERGED", core_residual=77.0
    )
    return pd.concat([made, lost], ignore_index=True)


def low(rows):
    return (rows["method"] == "Low") & (rows["status"] == "ok")


def middle(rank, sources=REAL, factor=1.0):
    return three(factor * median(SOURCES[source][RANKS.index(rank)] for source in sources))


def test_the_paragraph_says_the_tables_numbers():
    """Seven inputs: the interval of their median is from the least to the greatest."""
    (said,) = findings(table())
    at = sorted(SOURCES[source][0] for source in REAL)
    trivial = [(s, i) for s in SOURCES for i, x in enumerate(SOURCES[s])
               for f in SEEDS if not 0.4 - x * f > 0]  # fmt: skip
    names = list(dict.fromkeys(source for source, _ in trivial))
    assert said == (
        f"At rank 64 the relative output error of Low against softmax attention is {middle(64)}, "
        f"in the median over 7 recorded inputs, each the median over its samples (95 % "
        f"{three(at[0])} to {three(at[-1])}; 21 cases); that of the uniform average is "
        f"{three(median(UNIFORM[s] for s in REAL))}, that of the truncated SVD "
        f"{three(0.01 * median(at))}. "
        f"Its matrix is {middle(64, factor=3)} times as far from the target's, in Frobenius norm, "
        "as the best matrix of that rank. "
        f"From rank 16 to rank 128 the median goes from {middle(16)} to {middle(128)}. "
        "Rank 128 errs more than the best smaller rank on h3 (0.570 to 0.580) and b7 (0.360 to "
        "0.670). "
        "Rank 128 gains less than a tenth over the best smaller rank on h4 (1.00 to 0.910) and h6 "
        "(0.210 to 0.210). "
        f"It is no better than a trivial answer (skill at most 0) in {len(trivial)} of 72 cases: "
        f"at rank 16, 64 and 128, on {', '.join(names[:-1])} and {names[-1]}. "
        "Its solver stopped before it had inverted the core in 0 of 72 cases. "
        "At n = 300 and rank 64 a call takes 0.576 ms (quartiles 0.557 to 0.614) and 0.384 MB, the "
        "exact operator 9.00 ms (quartiles 8.70 to 9.60) and 6.00 MB."
    )
    assert "made" not in names


def test_what_certificates_are_worth():
    """They are 3, 5 and 100 times the error by rank, finite on four inputs, one row is broken."""
    made = table()
    factor = made["op.rank"].map(dict(zip(RANKS, (3.0, 5.0, 100.0), strict=True)))
    factor = factor.where(made["source"].isin(["h1", "h2", "h3", "made"]), np.inf)
    made["certified_error"] = (factor * made["output_error"]).where(made["method"].eq("Low"))
    broken = low(made) & made["source"].eq("h2") & made["op.rank"].eq(16) & made["seed"].eq(1)
    made.loc[broken, "certified_error"] *= 0.1
    said = findings(made)[-1]
    ratio = (3.0 * 5.0 * 100.0) ** (1 / 3)
    assert said == (
        "A certificate, a bound of the error that needs no exact output, is below the output's "
        "norm in 36 of 72 cases with one, on 8 inputs; there it is, over the error, "
        f"{three(ratio)} for Low against softmax attention (36 of 72 cases; range over 4 inputs: "
        f"{three(ratio * 0.1 ** (1 / 9))} to {three(ratio)}). 1 of 72 are below the error: this is "
        "a bug."
    )
    rows = below("Certificates", tables(made))["rows"]
    assert [row[:5] for row in rows] == [
        ["softmax", "Low", "64", "12 of 24", "8"],
        ["", "", "16", "12 of 24", "8"],
        ["", "", "128", "12 of 24", "8"],
    ]
    assert rows[1][6] == ["5.00", "0.500 to 5.00"]
    at = [100 * SOURCES[s][2] * f for s in ("h1", "h2", "h3", "made") for f in SEEDS]
    assert rows[2][5] == f"{median(at):.1f}"
    silent = made.assign(certified_error=made["certified_error"] * np.inf)
    assert findings(silent)[-1].endswith(
        "in 0 of 72 cases with one, on 8 inputs. It says nothing of Low against softmax attention."
    )
    assert not [x for x in tables(silent) if "Certificates" in x["caption"]]


def test_the_headline_counts_inputs_and_not_their_samples():
    (found,) = headlines(table())
    assert found["text"] == (
        "Low of rank 64 misses softmax attention by a relative error of {}, in the median over 7 "
        "recorded inputs (each the median over its samples)."
    )
    assert (found["value"], found["interval"]) == (middle(64), "95 % 0.110 to 1.00")
    made = table()
    made = made[~made["real"].astype(bool)]
    (alone,) = headlines(made)
    assert (alone["value"], alone["interval"]) == ("0.0130", "")
    assert alone["text"].endswith("of {} (inputs: 1).")


def test_without_rank_64_the_middle_rank_tells_and_one_rank_has_no_trend():
    rows = table()
    rows["op.rank"] = rows["op.rank"].replace({64: 32, 128: 63})
    (said,) = findings(rows)
    assert said.startswith("At rank 32 ")
    (said,) = findings(table().assign(**{"op.rank": table()["op.rank"].replace({128: 32})}))
    assert said.startswith("At rank 64 ")  # of 16, 32 and 64
    (said,) = findings(rows[rows["op.rank"].isna() | (rows["op.rank"] == 16)])
    assert said.startswith("At rank 16 ")
    assert "goes from" not in said


def test_a_trend_is_of_the_inputs_that_have_both_ranks():
    rows = table()
    rows = rows[~((rows["source"] == "h1") & (rows["op.rank"] == 128))]
    rest = [source for source in REAL if source != "h1"]
    said = " ".join(findings(rows))
    assert f"goes from {middle(16, rest)} to {middle(128, rest)}." in said
    assert f"is {middle(64)}, in the median over 7" in said


def test_sentences_without_a_case_are_not_said():
    rows = table()
    real = rows["real"].astype(bool)
    apart = rows[~(real & (rows["op.rank"] == 128)) & ~(~real & (rows["op.rank"] == 16))]
    assert "goes from" not in " ".join(findings(apart))  # no input has the least and the greatest
    falling = rows[rows["source"].isin(["h5", "h1"])]
    said = " ".join(findings(falling))
    assert "smaller rank" not in said
    assert "goes from" in said
    some = rows.copy()
    some.loc[low(some) & (some["source"] == "h1"), ["ratio_to_bound", "core_status"]] = None
    said = " ".join(findings(some))
    assert f"Its matrix is {middle(64, [s for s in REAL if s != 'h1'], 3)} times" in said
    assert "inverted the core in 0 of 72 cases." in said


def test_solvers_that_stopped_early_are_counted_and_those_at_rounding_are_not():
    rows = table()
    own = rows.index[low(rows)]
    states = ["OUT_OF_STEPS", "DIVERGED", "NON_FINITE", "STAGNATED"]
    rows.loc[own[:4], "core_status"] = states
    rows.loc[own[:4], "core_residual"] = [0.25, 0.5, 0.125, 0.75]
    (said,) = findings(rows)
    assert "inverted the core in 3 of 72 cases, relative residual up to 0.500." in said
    rows["core_status"] = None
    assert "solver" not in " ".join(findings(rows))
    assert "solver" not in " ".join(findings(rows.drop(columns="core_status")))


@pytest.mark.parametrize(
    ("mass", "said"), [(0.99, False), (0.989, True), (1.01, False), (1.011, True)]
)
def test_row_sums_are_said_where_an_input_loses_more_than_a_hundredth(mass, said):
    rows = table()
    masses = [mass, mass, 77.0]  # the median over the seeds
    rows.loc[low(rows) & (rows["source"] == "h2"), "row_mass"] = np.repeat(masses, 3)
    words = {True: f"between {three(min(mass, 1))} ({'h2' if mass < 1 else 'h5'}) and "
                   f"{three(max(mass, 1))} ({'h2' if mass > 1 else 'h5'})."}  # fmt: skip
    text = " ".join(findings(rows))
    assert ("The mean row sum of the target's matrix lies" in text) == said
    assert words.get(said, "") in text
    assert "row sum" not in " ".join(findings(rows.drop(columns="row_mass")))


def test_what_is_absent_is_left_out():
    rows = table()
    for column in ("seconds", "n", "peak_bytes"):
        assert "a call takes" not in " ".join(findings(rows.drop(columns=column)))
    assert "a call takes" not in " ".join(findings(rows[rows["method"] != "exact"]))
    assert "Its matrix is" not in " ".join(findings(rows.assign(ratio_to_bound=None)))
    assert "Its matrix is" not in " ".join(findings(rows.drop(columns="ratio_to_bound")))
    assert "truncated SVD" not in " ".join(findings(rows[rows["method"] != "TruncatedSVD"]))
    assert "in the median over 8 inputs," in " ".join(findings(rows.drop(columns="real")))
    better = rows.assign(skill=0.1)
    assert "trivial" not in " ".join(findings(better))
    other = rows.drop(columns=["output_error", "uniform_error", "skill"])  # of no operators
    assert scope(other) == ""
    (said,) = findings(other)
    assert said.startswith("The cases fall into 16 groups, told apart by source")
    assert "seed" not in said
    assert len([*tables(other)]) == 1
    (said,) = findings(rows.drop(columns="op.rank").query("method == 'Low'"))
    assert said.startswith(
        "Low has no rank. Against softmax attention its relative output error is"
    )


def test_each_target_has_its_own_paragraph_and_its_own_exact_operator():
    times = dict.fromkeys(
        ("seconds", "seconds_q1", "seconds_q3"), lambda t: 0.02 + 0 * t["peak_bytes"]
    )
    other = table(target="Gaussian", flops=lambda t: 2 * t["flops"], **times)
    rows = pd.concat([table(), other], ignore_index=True)
    assert [re.search(r"against (\w+) attention", text)[1] for text in findings(rows)] == [
        "softmax", "Gaussian",
    ]  # fmt: skip
    assert findings(rows) == [*findings(table()), *findings(other)]
    assert "exact operator 20.0 ms" in findings(rows)[1]
    assert "exact operator 9.00 ms" in findings(rows)[0]
    *errors, costs = tables(rows)
    (first, first_costs), (second, second_costs) = tables(table()), tables(other)
    assert errors == [first, second]
    by = {name: [row for i, row in enumerate(costs["rows"]) if i // 4 % 2 == k]
          for k, name in enumerate(("Gaussian", "softmax"))}  # fmt: skip
    assert by == {"Gaussian": second_costs["rows"], "softmax": first_costs["rows"]}
    assert scope(rows).startswith(
        "Methods: Low against softmax attention; Low against Gaussian attention. Inputs: "
        "h5 (n = 300), h1 (n = 100), h2 (n = 200), h3 (n = 200),"
    )
    assert scope(rows.drop(columns="n")) == ""
    assert scope(rows.drop(columns="op.rank")) == ""
    assert len(list(headlines(rows))) == 2
    bare = rows.drop(columns="op.rank")
    assert list(headlines(bare)) == []
    assert not [one for one in tables(bare) if "by rank" in one["caption"]]


def test_a_method_without_a_rank_has_a_paragraph_and_a_table_of_its_own():
    rows = table()
    own = rows[low(rows) & (rows["op.rank"] == 16)].assign(method="Own", **{"op.rank": None})
    own.loc[own.index[:2], "skill"] = [0.0, np.nan]  # neither is skill
    (_, said) = findings(pd.concat([rows, own], ignore_index=True))
    at = sorted(SOURCES[source][1] for source in REAL)
    bad = 2 + int((own["skill"] <= 0).sum()) - 1
    assert said == (
        f"Own has no rank. Against softmax attention its relative output error is {middle(16)}, in "
        f"the median over 7 recorded inputs, each the median over its samples (95 % {three(at[0])} "
        f"to {three(at[-1])}; 21 cases); that of the uniform average is "
        f"{three(median(UNIFORM[s] for s in REAL))}. It is no better than a trivial answer (skill "
        f"at most 0) in {bad} of 24 cases."
    )
    (alone,) = findings(own[own["source"] == "h5"])
    assert "over its samples (3 cases); that of" in alone
    both = pd.concat([rows, own, own.assign(target="Gaussian")], ignore_index=True)
    made = below("Methods without a rank", tables(both))
    assert made["left"] == 2
    expected = []
    for target in ("softmax", "Gaussian"):
        for i, (source, errors) in enumerate(SOURCES.items()):
            q1, q3 = np.quantile([errors[1] * f for f in SEEDS], [0.25, 0.75])
            spread = [short(x, 2).removeprefix("0") for x in (q1, q3)]
            expected.append([
                ["Own", target] if i == 0 else "", source, three(UNIFORM[source]),
                [short(errors[1]), "\u2013".join(spread)],
            ])  # fmt: skip
    assert made["rows"] == expected


def test_a_method_with_a_knob_of_another_name_has_a_row_each_setting():
    rows = table()
    own = rows[low(rows)].assign(method="Own", **{"op.rank": None, "op.seed": range(72)})
    own["op.features"] = rows["op.rank"].astype(float)
    plain = own[own["op.features"] == 16].assign(method="Plain", **{"op.features": np.nan})
    made = below("without a rank", tables(pd.concat([rows, own, plain], ignore_index=True)))
    assert (made["header"], made["left"]) == (["method", "input", "knob", "uniform", "error"], 3)
    assert [row[:3] for row in made["rows"][:3]] == [
        [["Own", "softmax"] if i == 0 else "", "h5", f"features {rank}"]
        for i, rank in enumerate(RANKS)
    ]  # fmt: skip
    assert [row[4][0] for row in made["rows"][:3]] == [short(x) for x in SOURCES["h5"]]
    assert made["rows"][24][:3] == [["Plain", "softmax"], "h5", ""]
    assert len(made["rows"]) == 32


def test_the_table_of_errors_has_medians_over_quartiles():
    made = below("against softmax attention by rank", tables(table()))
    assert made["header"] == ["input", "uniform", "method", "16", "64", "128"]
    assert made["left"] == 3
    expected = []
    for source, errors in SOURCES.items():
        for i, (method, factor) in enumerate((("Low", 1), ("TruncatedSVD", 0.01))):
            row = [source, three(UNIFORM[source])] if i == 0 else ["", ""]
            cells = []
            for error in (errors[1], errors[0], errors[2]):
                q1, q3 = np.quantile([factor * error * f for f in SEEDS], [0.25, 0.75])
                spread = [short(x, 2).removeprefix("0") for x in (q1, q3)]
                cells.append([short(factor * error), f"{spread[0]}\u2013{spread[1]}"])
            expected.append([*row, method, *cells])
    assert made["rows"] == expected
    late = below("attention by rank", tables(table().replace({"method": {"Low": "Zoo"}})))
    assert [row[2] for row in late["rows"]] == ["Zoo", "TruncatedSVD"] * 8  # controls stand last


def short(x, digits=3):
    return f"{x:#.{digits}g}".replace("e-0", "e-")


def test_the_table_of_costs_has_medians_and_the_noise_of_times():
    rows = table()
    slow = low(rows) & (rows["n"] == 100) & (rows["op.rank"] == 64)
    rows.loc[slow, "seconds_q3"] = 1.26 * rows["seconds"] + rows["seconds_q1"] - rows["seconds"]
    made = below("one forward call costs", tables(rows))
    assert made["header"] == ["n", "method", "", "exact", "16", "64", "128"]
    assert made["left"] == 3
    assert [row[:3] for row in made["rows"][:5]] == [
        ["100", ["Low", "softmax"], "MFLOPs"], ["", "", "10\u00b3 entries"], ["", "", "ms"],
        ["", "", "peak MB"], ["200", ["Low", "softmax"], "MFLOPs"],
    ]  # fmt: skip
    assert len(made["rows"]) == 12
    shares = [1, *(rank / 1000 for rank in sorted(RANKS))]
    assert made["rows"][0][3:] == [three(800 * x) for x in shares]
    assert made["rows"][1][3:] == [three(700 * x) for x in shares]
    assert made["rows"][3][3:] == [three(2 * x) for x in shares]

    def times(n):
        ends = [[f"{y * n * x:#.2g}".removeprefix("0") for y in (0.029, 0.032)] for x in shares]
        return [
            [three(0.03 * n * x), "\u2013".join(end)] for x, end in zip(shares, ends, strict=True)
        ]

    assert made["rows"][2][3:] == [*times(100)[:2], "noisy", times(100)[3]]
    assert made["rows"][6][3:] == times(200)
    assert made["rows"][11][3:] == [three(6 * x) for x in shares]
    bare = rows[rows["method"] != "exact"]
    assert {row[3] for row in below("one forward call costs", tables(bare))["rows"]} == {""}
    for column in ("op.rank", "n", "seconds_q1", "seconds", "flops"):
        assert not [x for x in tables(rows.drop(columns=column)) if "costs" in x["caption"]]
