"""The precision study: floors are of the rounded matrix, and the words follow from the numbers."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from softlab.engine.loading import load
from softlab.matrices import Geometric
from softlab.pinv import Chebyshev, NewtonRaphson
from studies.precision import chapter as chapter

STUDY = load(Path(__file__).parents[2] / "studies" / "precision")
CPU = torch.device("cpu")


def row(kappa, precision, solver, seed=0):
    matrix = Geometric(24, kappa, symmetric=False)
    problem = STUDY.problem(matrix, seed, precision, CPU)
    measured = STUDY.measure(problem, matrix, precision, solver, CPU)
    return {"status": "ok", "precision": precision, "matrix.condition": kappa, "matrix": "",
            **measured}  # fmt: skip


@pytest.fixture(scope="module")
def table():
    solvers = NewtonRaphson(40), Chebyshev(16)
    precisions = "float64", "float32", "bfloat16"
    return pd.DataFrame(
        [row(k, p, s) for k in (3.0, 100.0, 1e4) for p in precisions for s in solvers]
    )


def test_the_rule_holds_where_products_are_summed_in_the_precision_itself(table):
    own = table[table.precision == table.accumulates_in]
    assert len(own) == 12
    assert own.c.between(0.01, 1).all()
    assert (own.failure == "none").all()


def test_bfloat16_summed_in_itself_is_worse_and_grows(table):
    mine = table[(table.precision == "bfloat16") & (table.method == "NewtonRaphson")]
    narrow = mine.set_index("matrix.condition").narrow_floor
    assert narrow[100.0] > 3 * narrow[3.0]
    assert (mine[mine.kappa < 200].floor < mine[mine.kappa < 200].narrow_floor).all()
    assert mine[mine.kappa > 5e3].narrow_floor.min() > 0.3


def test_it_is_the_rounded_matrix_that_is_inverted():
    a, inverse, kappa, _ = STUDY.problem(Geometric(24, 1e4), 0, "bfloat16", CPU)
    assert a.dtype == torch.bfloat16
    assert float((a.double() @ inverse - torch.eye(24)).abs().max()) < 1e-9
    assert kappa != pytest.approx(1e4, rel=0.01)


def test_tfloat32_asks_for_a_cuda_device():
    with pytest.raises(ValueError, match="tfloat32 products exist on CUDA devices alone"):
        row(3.0, "tfloat32", NewtonRaphson(3))


def test_findings_follow_planted_failures(table):
    sound = " ".join(chapter.findings(table))
    assert "In float32 no method fails" in sound
    planted = table.copy()
    bad = (planted.precision == "float32") & (planted.method == "Chebyshev")
    planted.loc[bad & (planted["matrix.condition"] >= 100), "failure"] = "overflow"
    said = " ".join(chapter.findings(planted))
    assert "In float32 the condition numbers at which methods begin to fail are: Chebyshev" in said
    (first,) = [made for made in chapter.tables(planted) if "least condition" in made["caption"]]
    (cells,) = [cells for cells in first["rows"] if cells[0] == "float32"]
    assert cells[2:] == ["none", ["100", "overflow"]]
