"""Hypothesis strategies of what laws are about: tokens, masks, matrices, dtypes, batch shapes.

Everything is drawn by construction: no draw is refused, and a tensor has the geometry, the
spectrum, the rank and the condition that its name says. What is drawn is a short frozen value that
makes the tensors, so a failing example reads ``Tokens(n=1, l=2)`` and shrinks towards few small
whole numbers. Needs hypothesis, the extra ``laws``::

    from hypothesis import given
    from softlab.laws.strategies import tokens

    @given(tokens())
    def test_rows_sum_to_one(case):
        assert torch.allclose(mine(case.q, case.k, torch.ones_like(case.v)), ...)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from softlab.core import Stream, value
from softlab.extras import needed
from softlab.matrices import Clusters, Geometric, LowRank, Matrix, Polynomial, Step
from softlab.validation import OneOf, Positive, Seed, Size, ranges

with needed("laws"):
    from hypothesis import reject
    from hypothesis import strategies as st

F64 = torch.float64
T = TypeVar("T")
GEOMETRIES = ("lattice", "normal", "spectral", "clustered", "identical", "apart")
"""Of tokens, the simplest first: examples shrink in this order."""

DTYPES = ("float64", "float32", "bfloat16", "float16")


@value
class Tokens:
    """Queries, keys and values by construction.

    ``n``, ``l``, ``d``, ``e``: queries, keys, head and value width, at least 1; ``batch``: leading
    dimensions. ``scale``: of q and k. ``tied``: the keys are the queries, and l is n. ``seed``: of
    everything random. ``dtype``: one of ``DTYPES``. ``geometry``:

    - ``"lattice"``: whole numbers from -2 to 2, and nothing random;
    - ``"normal"``: independent normal entries;
    - ``"spectral"``: q and k with ``rank`` log-spaced singular values from 1 to 1/``condition``,
      times the root of the number of rows, along shared axes; ``rank`` at most n, l and d;
    - ``"clustered"``: near-duplicates, 1e-3 about a few centres;
    - ``"identical"``: one token, again and again;
    - ``"apart"``: tokens so far from each other that each attends to its own, up to d of them.
    """

    n: Size
    l: Size
    d: Size = 1
    e: Size = 1
    batch: tuple[int, ...] = ()
    geometry: Annotated[str, OneOf(*GEOMETRIES)] = "lattice"
    scale: Positive = 1.0
    rank: Size = 1
    condition: Positive = 1.0
    tied: bool = False
    seed: Seed = 0
    dtype: Annotated[str, OneOf(*DTYPES)] = "float64"

    def __post_init__(self) -> None:
        if self.tied and self.n != self.l:
            msg = f"Tokens is tied with n = {self.n} and l = {self.l}; give as many of each."
            raise ValueError(msg)
        if self.rank > min(self.n, self.l, self.d):
            msg = f"Tokens.rank is {self.rank}; give at most n, l and d."
            raise ValueError(msg)

    @property
    def q(self) -> Tensor:
        """Queries (..., n, d)."""
        return self._points(self.n, 1)

    @property
    def k(self) -> Tensor:
        """Keys (..., l, d)."""
        return self.q if self.tied else self._points(self.l, 2)

    @property
    def v(self) -> Tensor:
        """Values (..., l, e)."""
        if self.geometry == "lattice":
            return self._made(_lattice(self.batch, self.l, self.e, 3))
        return self._made(self._normal(3, self.l, self.e))

    def _points(self, rows: int, which: int) -> Tensor:
        make: Callable[[], Tensor] = {
            "lattice": lambda: _lattice(self.batch, rows, self.d, which),
            "normal": lambda: self._normal(which, rows, self.d),
            "spectral": lambda: self._spectral(which, rows),
            "clustered": lambda: self._clustered(which, rows),
            "identical": lambda: self._normal(0, 1, self.d).expand(*self.batch, rows, self.d),
            "apart": lambda: self._apart(rows),
        }[self.geometry]
        return self._made(self.scale * make())

    def _made(self, x: Tensor) -> Tensor:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return x.to(dtype)

    def _normal(self, which: int, *shape: int) -> Tensor:
        """Normal entries of a stream for each of q, k, v and what they share."""
        rng = Stream(self.seed, f"laws, tensor {which}")
        return rng.normal(*self.batch, *shape)

    def _spectral(self, which: int, rows: int) -> Tensor:
        axes = torch.linalg.qr(self._normal(0, self.d, self.rank)).Q
        left = torch.linalg.qr(self._normal(which, rows, self.rank)).Q
        s = self.condition ** -torch.linspace(0, 1, self.rank, dtype=F64)
        made: Tensor = math.sqrt(rows) * (left * s) @ axes.mT
        return made

    def _clustered(self, which: int, rows: int) -> Tensor:
        centres = self._normal(0, self.rank, self.d)
        own = centres[..., torch.arange(rows) % self.rank, :]
        return own + 1e-3 * self._normal(which, rows, self.d)

    def _apart(self, rows: int) -> Tensor:
        """Multiples of an orthonormal basis; more than d of them come back with the other sign."""
        basis = 12 * torch.linalg.qr(self._normal(0, self.d, self.d)).Q
        at = torch.arange(rows)
        sign = 1.0 - 2.0 * (at // self.d % 2)
        points: Tensor = basis[..., at % self.d, :] * sign[:, None].to(basis)
        return points


def _lattice(batch: tuple[int, ...], rows: int, width: int, which: int) -> Tensor:
    """Whole numbers from -2 to 2 in turn, by another step and start in each of q, k and v."""
    step, start = {1: (3, 3), 2: (2, 0), 3: (1, 3)}[which]
    held = (torch.arange(math.prod(batch) * rows * width) * step + start) % 5 - 2
    return held.to(F64).reshape(*batch, rows, width)


@value
class Drawn:
    """A square matrix with a known spectrum: ``matrix(seed)`` times ``scale``.

    ``matrix``: one of ``softlab.matrices``, whose ``singular_values`` are known.
    """

    matrix: Matrix
    seed: int = 0
    scale: float = 1.0
    dtype: str = "float64"

    @property
    def a(self) -> Tensor:
        """The matrix, (m, m)."""
        return self.scale * self.matrix(self.seed, dtype=getattr(torch, self.dtype))

    @property
    def singular_values(self) -> Tensor:
        """Its singular values, (m,), float64, descending."""
        known: Any = self.matrix
        found: Tensor = self.scale * known.singular_values
        return found


def dtypes(names: Sequence[str] = DTYPES) -> st.SearchStrategy[str]:
    """Names of floating dtypes, the widest first."""
    return st.sampled_from(list(names))


@st.composite
def parts(draw: st.DrawFn, /, kind: Callable[..., T], **given: Any) -> T:
    """Operators, solvers or the like of a class, of what its fields declare that they may be.

    ``given``: fields that are not drawn. A field keeps its default where no values can be named, as
    for one that holds a solver. What does not fit together is refused, and drawn again.
    """
    for name, (held, optional) in ranges(kind).items():
        if (values := held.inside()) and name not in given:
            given[name] = draw(st.sampled_from([*values, *([None] * optional)]))
    try:
        return kind(**given)
    except ValueError:
        reject()


def batch_shapes(dims: int = 2, side: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    """Leading dimensions: at most ``dims`` of them, each from 1 to ``side``."""
    return st.lists(st.integers(1, side), max_size=dims).map(tuple)


def masks(l: int, batch: tuple[int, ...] = ()) -> st.SearchStrategy[Tensor]:
    """Boolean masks (..., l) that keep at least one key of each matrix; shrinks to all kept."""
    rows = math.prod(batch)
    row = st.tuples(st.lists(st.booleans(), min_size=l, max_size=l), st.integers(0, l - 1))
    return st.lists(row, min_size=rows, max_size=rows).map(
        lambda drawn: torch.tensor(
            [[not hide or i == kept for i, hide in enumerate(hidden)] for hidden, kept in drawn]
        ).reshape(*batch, l)
    )


@st.composite
def tokens(
    draw: st.DrawFn,
    *,
    most: int = 9,
    width: int = 5,
    geometries: Sequence[str] = GEOMETRIES,
    batch: st.SearchStrategy[tuple[int, ...]] | None = None,
    dtype: st.SearchStrategy[str] | None = None,
    tied: bool | None = None,
) -> Tokens:
    """Cases of up to ``most`` queries and keys and widths of up to ``width``.

    ``geometries``: which of ``GEOMETRIES``; ``batch``, ``dtype``: strategies, none and float64
    unless given; ``tied``: keys equal to queries, always, never, or None for both.
    """
    geometry = draw(st.sampled_from(list(geometries)))
    same = draw(st.booleans()) if tied is None else tied
    n, d, e = draw(st.integers(1, most)), draw(st.integers(1, width)), draw(st.integers(1, width))
    l = n if same else draw(st.integers(1, most))
    random = geometry != "lattice"
    ranked = geometry in {"spectral", "clustered"}
    return Tokens(
        n, l, d, e,
        batch=draw(batch) if batch is not None else (),
        geometry=geometry,
        scale=draw(st.sampled_from([1.0, 0.1, 3.0, 1e-3, 10.0])),
        rank=draw(st.integers(1, min(n, l, d))) if ranked else 1,
        condition=draw(st.sampled_from([1.0, 10.0, 1e3, 1e6])) if geometry == "spectral" else 1.0,
        tied=same,
        seed=draw(st.integers(0, 99)) if random else 0,
        dtype=draw(dtype) if dtype is not None else "float64",
    )  # fmt: skip


@st.composite
def matrices(
    draw: st.DrawFn,
    *,
    most: int = 9,
    condition: float = 1e3,
    singular: bool | None = False,
    symmetric: bool | None = None,
    scales: Sequence[float] = (1.0,),
    dtype: st.SearchStrategy[str] | None = None,
) -> Drawn:
    """Matrices of up to ``most`` rows with a prescribed spectrum, rank and condition.

    ``condition``: the most that is drawn, of the values that are not zero. ``singular``: exact rank
    deficiency, always, never, or None for both. ``symmetric``: positive semidefinite ones, always,
    never, or None for both. ``scales``: factors, from which one is drawn.
    """
    even = draw(st.booleans()) if symmetric is None else symmetric
    deficient = draw(st.booleans()) if singular is None else singular
    m = draw(st.integers(2 if deficient else 1, most))
    kappa = draw(st.sampled_from([x for x in (1.0, 4.0, 100.0, 1e3, 1e6, 1e9) if x <= condition]))
    rank = draw(st.integers(1, m - 1)) if deficient else m
    made: Matrix
    if deficient:
        made = LowRank(m, rank, kappa if rank > 1 else 1.0, symmetric=even)
    elif m == 1:
        made = Geometric(1, 1.0, symmetric=even)
    else:
        kinds = [Geometric, Polynomial, Step, *([Clusters] if kappa > 2 and m >= 3 else [])]
        made = draw(st.sampled_from(kinds))(m, kappa, symmetric=even)
    return Drawn(
        made,
        seed=draw(st.integers(0, 99)),
        scale=draw(st.sampled_from(list(scales))),
        dtype=draw(dtype) if dtype is not None else "float64",
    )
