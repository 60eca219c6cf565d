"""Made-up tables: one in the shape that studies/rank.py writes, errors falling as powers of the
rank; and one of another kind, a prediction and a bound beside what was observed.
"""

import pandas as pd

INPUTS = ("minilm.layer0.head0", "minilm.layer5.head2", "vit.layer8.head3", "Clustered")
RANKS = (4, 8, 16, 32, 64, 128, 256)
METHODS = {
    "softmax": {"Nystromformer": 1.5},
    "Gaussian": {"Soft": 1.2},
    "row-normalised Gaussian": {"Soft": 1.4},
}


def rank_table(seeds=3) -> pd.DataFrame:
    rows = []
    for i, source in enumerate(INPUTS):
        for seed in range(seeds):
            for target, methods in METHODS.items():
                wobble = (1 + 0.15 * seed) / (1 + 0.2 * i)
                base = {
                    "input": f"Recorded(name={source!r})", "seed": seed, "status": "ok",
                    "error": None, "target": target, "source": source, "real": i < 3, "n": 512,
                    "row_mass": 1.0, "finite": True,
                }  # fmt: skip
                uniform = 0.8 * wobble

                def row(method, error, rank=None, cost=1.0, base=base, uniform=uniform):
                    return base | {
                        "op": f"{method}(rank={rank})", "op.rank": rank, "method": method,
                        "output_error": error, "matrix_error": error, "spectral_error": error,
                        "uniform_error": uniform, "skill": 1 - error / min(1, uniform),
                        "flops": 1e5 * cost, "seconds": 1e-4 * cost, "peak_bytes": 3e4 * cost,
                        "kernel_entries": 1e3 * cost, "seconds_q1": 9e-5 * cost,
                        "seconds_q3": 1.2e-4 * cost,
                    }  # fmt: skip

                rows.append(row("Uniform", uniform))
                rows.append(row("exact", 2e-7, cost=600))
                for rank in RANKS:
                    best = 0.9 * wobble * rank**-0.8
                    rows.append(row("TruncatedSVD", best, rank))
                    for method, factor in methods.items():
                        error = factor * best + 0.05 + (0.9 if rank == 4 else 0)
                        done = row(method, error, rank, cost=rank)
                        rows.append(done | {"svd_bound": best, "ratio_to_bound": error / best})
    rows[-1] |= {"status": "failed", "error": "LinAlgError: no (svd.py:3)", "output_error": None}
    return pd.DataFrame(rows)


def three(x: float) -> str:
    """Three significant digits of a number from 0.0001 to 999, without the chapters' own words."""
    return f"{x:#.3g}".rstrip(".")


def below(pattern: str, made) -> dict:
    """The one of these tables whose caption has the words."""
    (found,) = (one for one in made if pattern in one["caption"])
    return found


SOLVERS = ("Newton", "Cubic", "Chebyshev")
CONDITIONS = (1.0, 10.0, 100.0, 1000.0)


def steps_table() -> pd.DataFrame:
    """Steps by condition number, in the manner of a study of solvers: no input, target or rank."""
    rows = [
        {
            "seed": seed, "status": "ok", "error": None, "solver": solver, "condition": condition,
            "spectrum": spectrum, "symmetric": spectrum == "flat", "bits": bits,
            "steps": (i + 1) * (2 + 3 * j) + seed, "predicted": (i + 1) * (2 + 3 * j) + 1,
            "most": 40.0 + j, "converged": True,
        }
        for i, solver in enumerate(SOLVERS)
        for j, condition in enumerate(CONDITIONS)
        for spectrum in ("flat", "step")
        for bits in (32, 64)
        for seed in (0, 1, 2)
    ]  # fmt: skip
    return pd.DataFrame(rows)
