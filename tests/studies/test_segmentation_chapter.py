"""Every number of the chapter on segmentation, against Student's t from a table."""

import pandas as pd
from students import cell, points, share

from studies.segmentation.chapter import findings, headlines, scope, tables

MIOU = {  # by seed on canvases of 48 and of 96 pixels
    "Uniform": ((0.30, 0.312, 0.349), (0.20, 0.25, 0.26)),
    "Soft": ((0.50, 0.52, 0.57), (0.40, 0.45, 0.44)),
    "Softmax": ((0.60, 0.61, 0.65), (0.48, 0.50, 0.58)),
}


def made(miou=MIOU):
    rows = [
        {"status": "ok", "method": method, "seed": seed, "side": side, "miou": x,
         "things": x - 0.05, "right": x + 0.2, "blank": (0.05, 0.06, 0.10)[seed] + 0.01 * i,
         "lost": found[0][seed] - x}
        for method, found in miou.items()
        for i, (side, values) in enumerate(zip((48, 96), found, strict=True))
        for seed, x in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame([*rows, {**rows[0], "status": "failed", "miou": 9.0, "side": 192}])


def lost(method):
    first, last = MIOU[method]
    return points(first, last, 3)


def test_each_side_is_compared_and_all_intervals_hold_together():
    """Six means and four differences; 10 points less on each seed of one side are told apart."""
    small, large, fell = findings(made())
    (uniform, low), (soft, far), (exact, away) = MIOU.values()
    assert small == (
        f"Mean intersection over union on canvases of 48 pixels: Softmax {share(exact, 6)}, Soft "
        f"{share(soft, 6)} and Uniform {share(uniform, 6)}. All ground would reach 7.0 %. "
        f"Differences from softmax attention by seed: Uniform {points(uniform, exact, 4)} and Soft "
        f"{points(soft, exact, 4)}; told apart from it: Uniform and Soft."
    )
    assert large == (
        f"Mean intersection over union on canvases of 96 pixels: Softmax {share(away, 6)}, Soft "
        f"{share(far, 6)} and Uniform {share(low, 6)}. All ground would reach 8.0 %. Differences "
        f"from softmax attention by seed: Uniform {points(low, away, 4)} and Soft "
        f"{points(far, away, 4)}; told apart from it: Uniform."
    )
    assert fell == (
        f"From 48 to 96 pixels this much of it is lost: Uniform {lost('Uniform')}, Soft "
        f"{lost('Soft')} and Softmax {lost('Softmax')}."
    )
    assert len(findings(made().query("side == 48"))) == 1
    alone = findings(made({"Softmax": MIOU["Softmax"]}))
    assert "Differences" not in alone[0]
    none = findings(made({"Softmax": MIOU["Softmax"], "Soft": ((0.60, 0.62, 0.63),) * 2}))
    assert none[0].endswith("told apart from it: none.")


def test_the_headline_is_of_the_largest_canvas_and_the_seeds_in_common():
    whole = made()
    (line,) = headlines(whole[~((whole["method"] == "Soft") & (whole["seed"] == 2))])
    half = 12.7062 * 1.5  # differences of -8 and -5 points, one degree of freedom
    assert line == {
        "text": "In a small pyramid on one data set, on canvases of 96 pixels, SOFT's mean "
        "intersection over union differs from softmax attention's by {} percentage points.",
        "value": "-6.5",
        "interval": f"95 % {-6.5 - half:+.1f} to {-6.5 + half:+.1f}; seeds: 2",
    }
    assert list(headlines(whole[whole["method"] != "Soft"])) == []
    (line,) = headlines(whole[whole["method"] != "Uniform"])
    assert line["interval"].endswith("seeds: 3")


def test_the_table_has_a_row_a_method_and_side():
    (table,) = tables(made())
    rows = []
    for method, found in MIOU.items():
        for i, (side, x) in enumerate(zip(("48", "96"), found, strict=True)):
            gap = [a - b for a, b in zip(found[0], x, strict=True)]
            rows.append([
                method if i == 0 else "", side, cell(x, 6), cell([a - 0.05 for a in x], 6),
                cell([a + 0.2 for a in x], 6), cell(gap, 6, "{:+.1f}") if i else "",
            ])  # fmt: skip
    assert table["rows"] == rows
    assert table["header"] == ["attention", "side", "mean IoU", "garments", "pixels right", "lost"]
    assert table["left"] == 2


def test_the_scope_and_what_failed():
    assert scope(made()) == (
        "Attention: Uniform; Soft; Softmax. Canvases of 48 and 96 pixels; seeds: 3."
    )
    failed = made().assign(status="failed")
    assert scope(failed) == ""
    assert findings(failed) == list(headlines(failed)) == list(tables(failed)) == []
