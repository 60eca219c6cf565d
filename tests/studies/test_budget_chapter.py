"""Every number of the chapter of error budgets, against lists that it is made of.

Seeds have 0.3, 1 and 4.1 times the listed sizes: their medians are the listed ones.
"""

from statistics import median

import numpy as np
import pandas as pd
import pytest
from tables import below, three

from studies.budget.chapter import against_steps, facts, findings, headlines, scope, tables

SEEDS = (0.3, 1.0, 4.1)
SOURCES = ("q", "z", "b", "k", "c", "y")
PARTS = ("landmarks", "normaliser", "solve", "precision")
RANKS = (64, 16)
UNIFORM = (0.7, 0.9, 0.7, 1.1, 0.31, 0.6)
SOFT = ("Soft (none)", "Soft (symmetric)", "Soft (published)")
# Of Nystromformer at rank 64 by input: as published, converged, with a ridge.
PUBLISHED = (0.40, 0.50, 0.52, 0.20, 0.30, 0.100)
CONVERGED = (0.90, 0.504, 0.61, 0.198, 0.29, 0.20)
RIDGE = (0.41, 0.499, 0.40, 0.203, 0.28, 0.102)
FLOAT32 = (0.42, 0.505, 0.60, 0.197, 0.12, 0.25)
"""Of the exact inverse in float32, apart from that in float64 by its precision part."""
APART = (0.5, 0.001, 0.1, 0.01, 0.11, 0.2)
STEPS = {  # more than published, which is 6
    2: (0.95, 0.6, 0.51, 0.15, 0.5, 0.3),
    9: (0.38, 0.45, 0.55, 0.21, 0.25, 0.101),
    18: (0.60, 0.4545, 0.66, 0.22, 0.2523, 0.11),
}
SHARES = {  # the share of each part, by method; inputs differ by which part is greatest
    "Nystromformer": ((0.9, 0.3, 0.1, 0.2, 0.6, 0.4), (0.3, 0.5, 0.2, -0.02, 0.2, 0.5),
                      (-0.3, -0.009, 0.6, 0.7, 0.1, -0.0101), (0.1, 0.21, 0.1, 0.12, 0.1, 0.11)),
    "Soft (none)": ((0.8,) * 6, (0.0,) * 6, (0.1, 0.1, 0.1, 0.1, 0.1, -0.5), (0.05,) * 6),
    "Soft (symmetric)": ((0.3,) * 6, (0.5, 0.5, 0.1, 0.5, -0.0099, 0.5), (0.1,) * 6, (0.05,) * 6),
    "Soft (published)": ((0.1,) * 6, (0.7,) * 6, (0.1,) * 6, (0.9, 0.05, 0.05, 0.05, 0.05, 0.05)),
}  # fmt: skip
SIZES = {"landmarks": 0.5, "normaliser": 0.3, "solve": 0.2, "precision": 1e-3, "interaction": 0.15}


def size(part, method, i, rank):
    """Of a part: grows with the input in steps that are not even, less at the greater rank."""
    scale = 1 + 0.13 * i**2 + (0.7 if rank == 16 else 0)
    return SIZES[part] * scale * (1 + 0.4 * [*SHARES].index(method))


def table():
    rows = []

    def add(method, solver, i, rank, precision, steps, total, exact, part=None):
        for seed, factor in enumerate(SEEDS):
            row = {
                "status": "ok", "method": method, "solver": solver, "source": SOURCES[i],
                "precision": precision, "op.rank": rank, "steps": steps, "seed": seed,
                "uniform_error": UNIFORM[i], "budget_error": total * factor,
                "converged_error": exact * factor,
            }  # fmt: skip
            for j, name in enumerate(PARTS):
                row[f"{name}_share"] = SHARES[method][j][i] if rank == 64 else (0.9, 0, 0, 0)[j]
            for name in SIZES:
                half = 3.0 if precision == "bfloat16" and name == "precision" else 1.0
                own = (
                    size(name, method, i, rank) * half
                    if part is None or name != "precision"
                    else part
                )
                row[f"{name}_error"] = own * factor
            rows.append(row)

    for i in range(6):
        for rank in RANKS:
            for precision in ("float32", "bfloat16"):
                off = 0.0 if rank == 64 else 0.5
                wide = (rank, precision)
                add(
                    "Nystromformer",
                    "as published",
                    i,
                    *wide,
                    6,
                    PUBLISHED[i] + off,
                    CONVERGED[i] + off,
                )
                add("Nystromformer", "converged", i, *wide, None, FLOAT32[i] + off,
                    CONVERGED[i] + off, APART[i])  # fmt: skip
                add(
                    "Nystromformer",
                    "ridge 0.01",
                    i,
                    *wide,
                    None,
                    RIDGE[i] + off,
                    CONVERGED[i] + off,
                )
                for method in SOFT:
                    add(
                        method,
                        "as published",
                        i,
                        *wide,
                        20,
                        0.2 + 0.1 * i + off,
                        0.21 + 0.1 * i**2 + off,
                    )
        for steps, errors in STEPS.items():
            add("Nystromformer", f"{steps} steps", i, 64, "float32", steps, errors[i], CONVERGED[i])
    made = pd.DataFrame(rows)
    failed = made.assign(status="failed", budget_error=77.0, solve_share=-9.0)
    return pd.concat([made, failed], ignore_index=True)


def listed(words):
    words = list(words)
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def counted(names):
    found = {name: names.count(name) for name in dict.fromkeys(names)}
    return sorted(found.items(), key=lambda item: -item[1])


def test_what_convergence_steps_and_ridges_do():
    said = findings(table())[0]
    change = [a / b for a, b in zip(CONVERGED, PUBLISHED, strict=True)]
    worse = [i for i, x in enumerate(change) if x > 1.01]
    better = [i for i, x in enumerate(change) if x < 0.99]
    assert (len(worse), len(better)) == (3, 1)  # 0.504 / 0.5 and 0.198 / 0.2 are called none
    lost = [i for i in worse if PUBLISHED[i] < UNIFORM[i] < CONVERGED[i]]
    top = max(worse, key=lambda i: change[i])
    assert lost == [0]
    assert top == 0
    along = {6: PUBLISHED, **STEPS}
    turned = []
    for i in range(6):
        least = min(along, key=lambda s: along[s][i])
        if least > 2 and along[18][i] > 1.01 * along[least][i]:
            turned.append(least)
    assert 0 < len(turned) < 6
    ridge = [a / b for a, b in zip(RIDGE, PUBLISHED, strict=True)]
    apart = [i for i in range(6) if APART[i] > 0.1]
    most = max(apart, key=lambda i: CONVERGED[i] / FLOAT32[i])
    found = facts(table())
    assert found["inverted"] == pytest.approx({
        "rank": 64, "inputs": 6, "worse": 3, "lost": 1, "better": 1, "worst": "q",
        "worst_before": PUBLISHED[0], "worst_after": CONVERGED[0], "worst_of_several": True,
        "best": "c", "best_before": 0.3, "best_after": 0.29, "best_of_several": False,
    })  # fmt: skip
    assert found["steps"]["turned"] == len(turned)
    assert found["cut-off"]["float64"] == pytest.approx(CONVERGED[most])
    assert found["ridge"]["worse"] == sum(x > 1.01 for x in ridge)
    assert said == (
        "Inverting Nystromformer's core exactly instead of by its published steps, with 64 "
        "landmarks, makes the error larger by more than 1 % on 3 of 6 inputs, most on q from 0.400 "
        "to 0.900; on 1 of them it turns an answer that beats the mean of v into one that does "
        "not. It makes it smaller on 1, c from 0.300 to 0.290. "
        "Along the steps, from 2 to 18, the error falls and rises again by more than 1 % on "
        f"{len(turned)} of 6 inputs, with its least at {min(turned)} to {max(turned)} steps: the "
        "number of steps is a regulariser. "
        f"On {len(apart)} inputs the exact inverse in float32 is another than in float64, by more "
        "than 0.1 of the target: the cut-off of small singular values lies higher and regularises "
        f"too, most on {SOURCES[most]}, where the error is {three(CONVERGED[most])} in float64 and "
        f"{three(FLOAT32[most])} in float32. "
        "With a ridge of 0.01 and an exact inverse of that the error is larger by more than 1 % "
        f"than with the published steps on {sum(x > 1.01 for x in ridge)} of 6 inputs and smaller "
        f"on {sum(x < 0.99 for x in ridge)}."
    )


def test_the_first_paragraph_without_its_cases():
    rows = table()
    own = rows["method"] == "Nystromformer"
    same = rows.assign(converged_error=rows["budget_error"])
    assert findings(same)[0].startswith(
        "Inverting Nystromformer's core exactly instead of by its published steps, with 64 "
        "landmarks, makes the error larger by more than 1 % on 0 of 6 inputs. It makes it smaller "
        "on 0. Along"
    )
    swept = rows["solver"].str.endswith("steps")
    assert "Along the steps" not in findings(rows[~swept])[0]
    both = rows[~swept | (rows["solver"] == "18 steps")]
    assert "Along the steps, from 6 to 18," in findings(both)[0]
    falling = rows.copy()
    falling.loc[own & swept, "budget_error"] = 1 / falling["steps"]
    falling.loc[own & (rows["steps"] == 6), "budget_error"] = 1 / 6
    assert "falls and rises again by more than 1 % on 0 of 6 inputs." in findings(falling)[0]
    rising = rows.copy()
    rising.loc[own & (rows["steps"].notna()), "budget_error"] = rising["steps"]
    assert "falls and rises again by more than 1 % on 0 of 6 inputs." in findings(rising)[0]
    bare = rows[(rows["solver"] != "ridge 0.01") & (rows["solver"] != "converged")]
    assert "With a ridge" not in findings(bare)[0]
    assert "the exact inverse in float32" not in findings(bare)[0]
    few = rows[~((rows["solver"] == "ridge 0.01") & (rows["source"] == "q"))]
    assert " of 5 inputs and smaller" in findings(few)[0]
    soft = rows[~own]
    assert findings(soft)[0].startswith("What raises")
    two = rows[~own | (rows["source"].isin(["c", "y"]))]
    said = findings(two)[0]
    assert "on 1 of 2 inputs, y from 0.100 to 0.200. It makes it smaller on 1, c from" in said


def test_causes():
    said = findings(table())[1]
    words, less, helped, parts = [], [], [], []
    for method in SHARES:
        largest = ["landmarks"] * 6  # at rank 16
        for i in range(6):
            each = [SHARES[method][j][i] for j in range(4)]
            largest.append(PARTS[int(np.argmax(each))])
            less += [method] if each[2] < -0.01 else []
            helped += [method] if each[1] < -0.01 else []
        words.append(f"{method} " + listed(f"the {x} on {n}" for x, n in counted(largest)))
        if method in SOFT:
            parts += [
                (size("solve", method, i, rank) / (0.2 + 0.1 * i + (rank == 16) * 0.5), SOURCES[i])
                for i in range(6) for rank in RANKS
            ]  # fmt: skip
    assert len(less) == 3
    normal = {m: median(size("normaliser", m, i, 64) for i in range(6)) for m in SHARES}
    each = [x for x, _ in parts]
    assert said == (
        "What raises the squared error most, on 12 pairs of an input and a rank, each method as "
        f"published: for {'; for '.join(words)}. "
        "The unfinished solve makes the squared error smaller by more than 1 % on 3 of all 48: "
        f"{listed(f'{n} of {m}' for m, n in counted(less))}. "
        "Soft's published normaliser, the degrees of the core, contributes a part of "
        f"{three(normal['Soft (published)'])} in the median, "
        f"the symmetric form's own degrees one of {three(normal['Soft (symmetric)'])}. "
        "The error of a method's own row sums cancels part of the error of its landmarks: with "
        "exact row sums the error would be larger for "
        f"{listed(f'{m} on {n} of the inputs' for m, n in counted(helped))}. "
        f"SOFT's twenty Newton steps leave a part of median {three(median(each))} of its error, at "
        f"most {three(max(each))} ({max(parts)[1]})."
    )
    calm = table().assign(solve_share=-0.01, normaliser_share=-0.01)
    said = findings(calm)[1]
    assert "The unfinished solve" not in said
    assert "A method's own degrees" not in said
    one = table()
    one = one[one["method"] != "Soft (symmetric)"]
    assert "published normaliser" not in findings(one)[1]
    none = table()
    none = none[none["method"] == "Nystromformer"]
    assert "Newton steps" not in findings(none)[1]
    swept = none[none["solver"] != "as published"]
    assert not any("What raises" in text for text in findings(swept))


def test_precision_and_interaction():
    said = findings(table())[2]
    sentences = []
    for name, half in (("float32", 1.0), ("bfloat16", 3.0)):
        sizes, shares = [], []
        for method in SHARES:
            for rank in RANKS:
                off = 0.0 if rank == 64 else 0.5
                for i in range(6):
                    part = half * size("precision", method, i, rank)
                    totals = (
                        [PUBLISHED[i] + off, RIDGE[i] + off]
                        if method == "Nystromformer"
                        else [0.2 + 0.1 * i + off]
                    )
                    sizes += [part] * len(totals)
                    shares += [part / total for total in totals]
        end = ", the rounding of the output: half precision is computed in float32."
        sentences.append(
            f"In {name} rounding contributes {three(median(sizes))} (median) of the size of the "
            f"output, and at most {three(max(shares))} of the error" + (end if half == 3.0 else ".")
        )
    words = []
    for method in SHARES:
        each = []
        for rank in RANKS:
            for i in range(6):
                base = PUBLISHED[i] if method == "Nystromformer" else 0.2 + 0.1 * i
                each.append(size("interaction", method, i, rank) / (base + (rank == 16) * 0.5))
        words.append(f"{three(median(each))} for {method}")
    assert said == (
        f"{' '.join(sentences)} Causes do not act alone: what solve and precision do by "
        "themselves, on exact degrees, leaves unexplained, as a share of the error (medians), "
        f"{listed(words)}."
    )


def test_the_headlines_are_over_inputs_with_ranks_nested():
    first, second = headlines(table())
    for line, name in ((first, "Nystromformer"), (second, "Soft (none)")):
        each = []
        for i in range(6):
            own = (CONVERGED[i], PUBLISHED[i]) if name == "Nystromformer" else (
                0.21 + 0.1 * i**2, 0.2 + 0.1 * i)  # fmt: skip
            each.append(np.sqrt((own[0] / own[1]) * ((own[0] + 0.5) / (own[1] + 0.5))))
        assert line == {
            "text": f"With its core, the kernel of the landmarks, inverted exactly {name} errs "
            "{} times as much as with its published number of steps, in the median over 6 inputs "
            "(each the geometric mean over its ranks).",
            "value": three(median(each)),
            "interval": f"95 % {three(min(each))} to {three(max(each))}",
        }
    rows = table()
    rows.loc[rows["precision"] == "bfloat16", "converged_error"] *= 3  # of float32 alone
    assert list(headlines(rows)) == [first, second]
    assert list(headlines(table().assign(status="failed"))) == []


def short(x):
    return f"{x:#.2g}".rstrip(".").replace("e-0", "e-")


def test_the_table_of_methods_and_that_of_inputs():
    made = list(tables(table()))
    assert [one["left"] for one in made] == [2, 1]
    first = below("Relative sizes of the parts with 64 landmarks", made)
    assert first["header"] == ["method", "inverse", "land- marks", "norma- liser", "solve",
                               "float32", "bfloat16", "inter- action", "con- verged",
                               "error"]  # fmt: skip
    expected = []
    solvers = {"Nystromformer": {"as published": PUBLISHED, "converged": FLOAT32,
                                 "ridge 0.01": RIDGE}}  # fmt: skip
    for method in SHARES:
        own = solvers.get(method, {"as published": [0.2 + 0.1 * i for i in range(6)]})
        for j, (solver, totals) in enumerate(own.items()):
            cells = [median(size(p, method, i, 64) for i in range(6)) for p in PARTS[:3]]
            exact = (
                CONVERGED if method == "Nystromformer" else [0.21 + 0.1 * i**2 for i in range(6)]
            )
            precision = [size("precision", method, i, 64) for i in range(6)]
            precision = APART if solver == "converged" else precision
            half = precision if solver == "converged" else [3 * x for x in precision]
            cells += [median(precision), median(half)]
            cells += [median(size("interaction", method, i, 64) for i in range(6))]
            cells += [median(exact), median(totals)]
            expected.append([method if j == 0 else "", solver, *map(short, cells)])
    assert first["rows"] == expected
    second = below("Nystromformer with 64 landmarks, medians of the seeds", made)
    assert second["header"] == ["input", "land- marks", "norma- liser", "solve", "published",
                                "exact, float64", "exact, float32", "ridge 0.01",
                                "mean of v"]  # fmt: skip
    assert sorted(second["rows"]) == sorted(
        [SOURCES[i], *(short(size(p, "Nystromformer", i, 64)) for p in PARTS[:3]),
         *map(short, (PUBLISHED[i], CONVERGED[i], FLOAT32[i], RIDGE[i], UNIFORM[i]))]
        for i in range(6)
    )  # fmt: skip
    assert [row[0] for row in second["rows"]] == list(SOURCES)
    rows = table()
    few = rows[~(rows["solver"].isin(["ridge 0.01", "converged"]))]
    assert {row[6:8] == ["n/a", "n/a"] for row in list(tables(few))[1]["rows"]} == {True}
    assert len(list(tables(rows[rows["method"] != "Nystromformer"]))) == 1


def test_the_rows_of_the_figure():
    rows = against_steps(table())
    rows = rows[rows["seed"] == 1]
    assert set(rows["part"]) == {"error", "landmarks", "normaliser", "solve", "mean of v"}
    for i, source in enumerate(SOURCES):
        mine = rows[rows["source"] == source]
        errors = mine[mine["part"] == "error"].sort_values("steps")
        expected = {6: PUBLISHED[i], **{s: x[i] for s, x in STEPS.items()}}
        assert dict(zip(errors["steps"], errors["size"], strict=True)) == pytest.approx(expected)
        for part in ("landmarks", "normaliser", "solve"):
            sizes = mine.loc[mine["part"] == part, "size"]
            assert sizes.tolist() == pytest.approx([size(part, "Nystromformer", i, 64)] * 4)
        mean = mine[mine["part"] == "mean of v"]
        assert mean["steps"].isna().all()
        assert set(mean["size"]) == {UNIFORM[i]}
    tiny = table()
    tiny.loc[tiny["source"] == "q", "solve_error"] = 0.0099
    tiny.loc[tiny["source"] == "z", "solve_error"] = 0.01
    kept = against_steps(tiny)
    assert set(kept.loc[kept["part"] == "solve", "source"]) == set(SOURCES[1:])
    assert set(kept["precision"]) == {"float32"}
    assert set(kept["op.rank"]) == {64}


def test_the_scope_and_what_is_missing():
    assert scope(table()) == (
        "Methods: Nystromformer, Soft (none), Soft (symmetric) and Soft (published), with 16 and "
        "64 landmarks. Inputs: q, z, b, k, c and y. Precisions: float32 and bfloat16."
    )
    gone = table().assign(status="failed")
    assert (scope(gone), findings(gone), list(headlines(gone)), list(tables(gone))) == (
        "", [], [], [],
    )  # fmt: skip
