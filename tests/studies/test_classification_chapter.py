"""Every number of the chapter on classification, against Student's t from a table."""

import pandas as pd
from students import cell, points, share

from studies.classification.chapter import agreement, findings, headlines, scope, tables

SOFTMAX = (0.800, 0.812, 0.830)
SOFT = (0.820, 0.835, 0.848)  # 2.0, 2.3 and 1.8 points more: told apart
PERFORMER = (0.700, 0.730, 0.690)
UNIFORM = (0.500, 0.512, 0.531)
FOUR = {"Softmax": SOFTMAX, "Uniform": UNIFORM, "Soft": SOFT, "Performer": PERFORMER}


def made(by_method, m=9, sampling="pool"):
    """Accuracy of each seed after epoch 3; what it was after epoch 2 is another."""
    rows = [
        {"status": "ok", "method": method, "m": m, "sampling": sampling, "seed": seed,
         "epoch": epoch, "accuracy": x if epoch == 3 else 0.123}
        for method, found in by_method.items()
        for seed, x in enumerate(found)
        for epoch in (2, 3)
    ]  # fmt: skip
    rows.append({**rows[0], "status": "failed", "accuracy": 0.0, "seed": 9})
    return pd.DataFrame(rows)


TOGETHER = "with intervals that hold together in 95 % of studies"


def test_accuracies_and_differences_hold_together():
    """Four accuracies, three differences from softmax, three rivals of the control, 3 pairs."""
    first = findings(made(FOUR))[:4]
    assert first == [
        f"Accuracy on test images after the last epoch, means of 3 seeds, {TOGETHER}: "
        f"Soft {share(SOFT, 4)}, Softmax {share(SOFTMAX, 4)}, "
        f"Performer {share(PERFORMER, 4)} and Uniform {share(UNIFORM, 4)}.",
        f"With the same seeds these differ from softmax attention, {TOGETHER}: "
        f"Soft by {points(SOFT, SOFTMAX, 3)} and Uniform by "
        f"{points(UNIFORM, SOFTMAX, 3)}. Not told apart from it: Performer.",
        "The null control, in which every token receives the mean of all, reaches "
        f"{share(UNIFORM, 4)}; the best attention, Soft, is "
        f"{points(SOFT, UNIFORM, 3)} away. So much, of which convolutions and perceptrons "
        "know nothing, attention can add here.",
        "Of the paper's 3 orders of two methods on ImageNet this miniature confirms 2 (Soft over "
        "Softmax and Soft over Performer) and reverses 0; the other 1 lie within the intervals of "
        "so few seeds.",
    ]


def test_a_difference_that_one_interval_would_see_and_six_do_not_is_not_told():
    """Gaps of 1, 2 and 2.1 points: t is 4.9; one comparison asks for 4.3, two for 6.2."""
    near = tuple(x + gap for x, gap in zip(SOFTMAX, (0.01, 0.02, 0.021), strict=True))
    alone = findings(made({"Softmax": SOFTMAX, "Soft": near}))
    assert "these differ from softmax attention" in alone[1]
    two = findings(made({"Softmax": SOFTMAX, "Soft": near, "Linformer": SOFTMAX}))
    assert two[1] == "None differs from softmax attention beyond the interval."
    assert agreement(made({"Softmax": SOFTMAX, "Soft": near}).query("epoch == 3")) == (
        ["Soft over Softmax"], [], 1,
    )  # fmt: skip
    held, turned, pairs = agreement(
        made({"Softmax": near, "Soft": SOFTMAX, "Unknown": UNIFORM}).query("epoch == 3")
    )
    assert (held, turned, pairs) == ([], ["Soft over Softmax"], 1)
    bad = {"Linformer": SOFT, "Nystromformer": SOFTMAX, "Performer": SOFTMAX}
    said = findings(made({"Softmax": PERFORMER, **bad}))[-1]
    assert "confirms 1 (Linformer over Performer) and reverses 1 (Nystromformer over Linf" in said
    assert "; the other 4 lie within" in said
    control = findings(made({"Uniform": SOFT, "Softmax": SOFTMAX}))
    assert f"the best attention, Softmax, is {points(SOFTMAX, SOFT, 1)} away" in control[2]


def test_one_seed_has_no_interval():
    one = made({"Softmax": SOFTMAX[:1], "Soft": SOFT[:1]})
    said = findings(one)
    assert said[0] == (
        "Accuracy on test images after the last epoch, one seed: Soft 82.0 % and Softmax 80.0 %."
    )
    assert said[1] == "None differs from softmax attention beyond the interval."
    (line,) = headlines(one)
    assert (line["value"], line["interval"]) == ("+2.0", "seeds: 1")
    alone = findings(made({"Soft": SOFT}))
    assert len(alone) == 1
    assert len(findings(made({"Uniform": UNIFORM}))) == 1


def test_the_headline_is_a_difference_by_seed_on_one_data_set():
    whole = made(FOUR)
    (line,) = headlines(whole[~((whole["method"] == "Soft") & (whole["seed"] == 2))])
    assert line == {
        "text": "In a small pyramid on one data set SOFT's accuracy differs from softmax "
        "attention's by {} percentage points.",
        "value": "+2.1",  # of 2.0 and 2.3; t of one degree of freedom is 12.706
        "interval": f"95 % {2.15 - 12.7062 * 0.15:+.1f} to {2.15 + 12.7062 * 0.15:+.1f}; seeds: 2",
    }
    assert list(headlines(made({"Soft": SOFT}))) == []


def test_the_table_of_accuracies_stands_beside_the_papers():
    (table,) = tables(made(FOUR))
    gaps = [[a - b for a, b in zip(FOUR[m], SOFTMAX, strict=True)] for m in FOUR]
    cells = [cell(found, 4) for found in FOUR.values()]
    off = [cell(gap, 3, "{:+.1f}") for gap in gaps[1:]]
    assert table["rows"] == [
        ["Softmax", cells[0], "", "79.1"], ["Uniform", cells[1], off[0], ""],
        ["Soft", cells[2], off[1], "79.3"], ["Performer", cells[3], off[2], "76.1"],
    ]  # fmt: skip
    assert table["header"] == ["attention", "accuracy", "less softmax", "paper, ImageNet"]
    assert table["left"] == 1
    published = {"Softmax": 79.1, "Soft": 79.3, "Nystromformer": 78.6, "Linformer": 78.2,
                 "Performer": 76.1}  # fmt: skip
    (table,) = tables(made({**dict.fromkeys(published, SOFT), "Other": SOFT}))
    assert [(row[0], row[-1]) for row in table["rows"]] == [
        *((name, f"{x}") for name, x in published.items()), ("Other", "")
    ]  # fmt: skip


# --- ablations ---------------------------------------------------------------------------------

SIX, TWELVE = (0.790, 0.806, 0.817), (0.830, 0.822, 0.860)
CONV = (0.850, 0.866, 0.878)


def ablated():
    return pd.concat([
        made({"Softmax": SOFTMAX, "Soft": SOFT}), made({"Soft": TWELVE}, m=12),
        made({"Soft": SIX}, m=6), made({"Soft": CONV}, sampling="conv"),
        made({"Soft": (0.5, 0.6, 0.7)}, m=15, sampling="conv"),  # no pooled one to compare with
    ], ignore_index=True)  # fmt: skip


def test_ablations_compare_all_pairs_at_once():
    """Five variants, three pairs of pooled ones, one of convolved and pooled."""
    first, *_, pooled, conv = findings(ablated())
    assert first == (  # of the setting that all methods share, and of no other
        f"Accuracy on test images after the last epoch, means of 3 seeds, {TOGETHER}: "
        f"Soft {share(SOFT, 2)} and Softmax {share(SOFTMAX, 2)}."
    )
    assert pooled == (
        f"SOFT by its number of landmarks: {share(SIX, 5)} with m = 6, {share(SOFT, 5)} with "
        f"m = 9 and {share(TWELVE, 5)} with m = 12; of 3 pairs told apart are 6 and 9."
    )
    assert conv == (
        f"Landmarks by the released convolution, as many, reach {share(CONV, 5)}: "
        f"{points(CONV, SOFT, 1)} from pooled ones."
    )
    two = pd.concat([made({"Softmax": SOFTMAX, "Soft": SOFT}), made({"Soft": TWELVE}, m=12)])
    assert findings(two)[-1].endswith("; of 1 pairs no two are told apart.")
    part = ablated()
    part = part[~((part["sampling"] == "conv") & (part["m"] == 9) & (part["seed"] == 2))]
    # Seeds that both have: 3.0 and 3.1 points; t of one degree of freedom is 12.706.
    low, high = (3.05 + sign * 12.7062 * 0.05 for sign in (-1, 1))
    assert f": +3.1 points ({low:+.1f} to {high:+.1f}) from pooled" in findings(part)[-1]
    blind = ablated()
    blind.loc[(blind["m"] == 6) | (blind["sampling"] == "conv"), "accuracy"] += 0.05 * blind["seed"]
    *_, pooled, conv = findings(blind)
    assert pooled.endswith("of 3 pairs no two are told apart.")
    assert conv.endswith("from pooled ones, which is no difference that these seeds can see.")


def test_the_table_of_ablations_begins_with_the_usual_variant():
    _, table = tables(ablated())
    assert [row[:2] for row in table["rows"]] == [
        ["pool", "9"], ["pool", "6"], ["pool", "12"], ["conv", "9"], ["conv", "15"],
    ]  # fmt: skip
    assert table["rows"][0][3] == ""
    gap = [a - b for a, b in zip(SIX, SOFT, strict=True)]
    assert table["rows"][1][2:] == [cell(SIX, 5), cell(gap, 4, "{:+.1f}")]
    assert table["left"] == 2


# --- costs -------------------------------------------------------------------------------------


def costs():
    rows = [  # n, method, seconds, q1, q3, megabytes, gain
        (576, "Softmax", 0.2, 0.19, 0.21, 8.0, 1.0), (576, "Soft", 0.1, 0.095, 0.11, 2.0, 500.0),
        (576, "Noisy", 0.3, 0.2, 0.4, 16.0, 3.0), (2304, "Soft", 0.4, 0.39, 0.42, 9.0, 2000.0),
        (2304, "Softmax", 1.0, 0.95, 1.05, 90.0, 1.1), (2304, "New", 3.0, 2.9, 3.1, 45.0, 5.0),
        (9216, "Soft", 2.0, 1.9, 2.1, 30.0, 8000.0),
    ]  # fmt: skip
    names = ["n", "method", "seconds", "seconds_q1", "seconds_q3", "megabytes", "gain"]
    found = pd.DataFrame(rows, columns=names).assign(multiply_adds=2.5e6, parameters=156e3)
    lost = found.iloc[:1].assign(n=9216, seconds=None)
    return pd.concat([found.assign(status="ok"), lost.assign(status="failed")], ignore_index=True)


def test_times_have_their_noise_and_sizes_that_softmax_does_not_reach_none():
    assert findings(costs()) == [
        "With 576 tokens in the first stage a step takes 200 ms (quartiles 190 to 210) and 8.00 MB "
        "with softmax attention; in time and memory over that: Soft 0.500 (quartiles 0.452 to "
        "0.579) and 0.250; Noisy a time that is withheld (1 of 2 timings noisy: quartiles wider "
        "than 25 % of the median) and 2.00.",
        "With 2304 tokens in the first stage a step takes 1000 ms (quartiles 950 to 1050) and 90.0 "
        "MB with softmax attention; in time and memory over that: Soft 0.400 (quartiles 0.371 to "
        "0.442) and 0.100; New 3.00 (quartiles 2.76 to 3.26) and 0.500.",
        "Before training the first attention's output is so many times the size of its values, with"
        " 576 and 9216 tokens: Soft 500 and 8000. The sum of branch and residual is normed, so that"
        " a branch that is far larger hides which token is which.",
    ]
    assert len(findings(costs().query("n == 576"))) == 1
    assert (
        "576 and 2304 tokens: Softmax 1.00 and 1.10 and Soft 500 and 2000."
        in findings(costs().query("n <= 2304"))[-1]
    )
    assert findings(costs().query("method != 'Softmax'")) == []
    first = costs().query("n == 2304 or method == 'Soft'")  # softmax failed at the least size
    assert findings(first)[0].startswith("With 2304 tokens")


def test_the_headline_of_a_step_is_withheld_where_it_is_noisy():
    both = costs().query("n <= 2304")
    assert list(headlines(both)) == [{
        "text": "With 2304 tokens in its first stage a training step of the pyramid with SOFT takes"
        " {} times as long as with softmax attention.",
        "value": "0.400",
        "interval": "ratios of quartiles 0.371 to 0.442",
    }]  # fmt: skip
    assert list(headlines(costs())) == []  # softmax failed at the greatest size
    assert list(headlines(both.assign(seconds_q3=9.0))) == []


def test_the_table_of_costs():
    (table,) = tables(costs())
    assert table["rows"] == [
        ["576", "Softmax", ["200", "190–210"], "8.00", "2.50", "156000", "1.00"],
        ["", "Soft", ["100", "95–110"], "2.00", "2.50", "156000", "500"],
        ["", "Noisy", "noisy", "16.0", "2.50", "156000", "3.00"],
        ["2304", "Soft", ["400", "390–420"], "9.00", "2.50", "156000", "2000"],
        ["", "Softmax", ["1000", "950–1050"], "90.0", "2.50", "156000", "1.10"],
        ["", "New", ["3000", "2900–3100"], "45.0", "2.50", "156000", "5.00"],
        ["9216", "Soft", ["2000", "1900–2100"], "30.0", "2.50", "156000", "8000"],
    ]
    assert table["left"] == 2


def test_the_scope_counts_trainings_or_sizes():
    assert scope(made(FOUR)) == (
        "Attention: Softmax, Uniform, Soft and Performer; 12 trainings of 3 epochs, seeds: 3."
    )
    assert scope(costs()) == (
        "Attention: Softmax, Soft, Noisy and New; 576, 2304 and 9216 tokens in the first stage."
    )
    failed = made(FOUR).assign(status="failed")
    assert (scope(failed), findings(failed), list(tables(failed))) == ("", [], [])
