"""``make transforms``: every operator under every transform of torch; docs/guide/transforms.md.

A cell is right, against the plain call and its gradients, or the operator refuses in words that
name the way out. A number that is wrong, or an error of another kind, is printed, and ends with 1;
its cell stays "?". The page is written after each row: after an interrupt ``--missing`` goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import multiprocessing
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, func, nn

from softlab import operators
from softlab.core import Operator
from softlab.validation import trusted

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guide" / "transforms.md"
BEGIN, END = "<!-- make transforms -->", "<!-- end -->"
RIGHT, MISSING = "yes", "?"
TORCH = torch.__version__.partition("+")[0]
REFUSALS = {
    "a": r"looks at values, and a tensor on 'meta' has none\. Give it real tensors",
    "b": r"looks at values, which torch\.export and FakeTensorMode do not have\. Call it as it is",
    "c": r"does not work under this transform.*leading dimensions.*torch\.autograd\.grad",
    "d": r"torch\.export cannot follow this operator.*trusted\(\)",
    "e": r"(?i)data.dependent|graph break",
}
"""What an operator may say, by its letter in the table."""


def draw(*shape: int, seed: int) -> Tensor:
    """Normal numbers of a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


Q, K, V, W = (draw(2, 9, 4, seed=seed) for seed in range(4))


def cases() -> dict[str, Operator]:
    """One operator of each class, and causal forms, at a setting that nine tokens allow."""
    found: dict[str, Operator] = {}
    for name in operators.__all__:
        found[name] = op = made(getattr(operators, name))
        if "causal" in type(op).__dataclass_fields__:
            found[f"{name}, causal"] = dataclasses.replace(op, causal=True)
    return found


def made(kind: Any) -> Any:
    """An operator of that class at the greatest setting up to 4 with which it answers."""
    knob = getattr(kind, "knob", None)
    if knob is None:
        first = dataclasses.fields(kind)[:1]
        try:
            return kind()
        except (TypeError, ValueError):
            return kind(**{field.name: 3 for field in first})
    for m in (4, 3, 2):
        op = knob.at(kind, m)
        with contextlib.suppress(ValueError):
            op(Q, K, V)
            return op
    return knob.at(kind, 1)


def loss(op: Operator, q: Tensor, k: Tensor = K, v: Tensor = V) -> Tensor:
    """A number of an operator's output."""
    return (op(q, k, v) * W[: len(q)]).sum() if q.ndim > 2 else (op(q, k, v) * W[0]).sum()


def gradient(op: Operator, q: Tensor, *, graph: bool = False) -> Tensor:
    """The gradient with respect to the queries, zero where there is none."""
    leaf = q.detach().requires_grad_()
    out = loss(op, leaf)
    if not out.requires_grad:
        return torch.zeros_like(q)
    (found,) = torch.autograd.grad(out, leaf, create_graph=graph, materialize_grads=True)
    return found


class Module(nn.Module):
    """An operator as a module."""

    def __init__(self, op: Operator) -> None:
        super().__init__()
        self.op = op

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the operator gives."""
        return self.op(q, k, v)


def compiled(op: Operator) -> None:
    """Forward and backward."""
    call = torch.compile(Module(op), backend="aot_eager")
    for q, k in ((Q, K), (K, Q)):
        close(call(q, k, V), op(q, k, V))
    leaf = Q.clone().requires_grad_()
    out = (call(leaf, K, V) * W).sum()
    if out.requires_grad:
        (found,) = torch.autograd.grad(out, leaf, materialize_grads=True)
        close(found, gradient(op, Q))


def whole_graph(op: Operator) -> None:
    """One graph, of an input that is trusted."""
    call = torch.compile(Module(op), backend="aot_eager", fullgraph=True)
    for q, k in ((Q, K), (K, Q)):
        with trusted():
            found = call(q, k, V)
        close(found, op(q, k, V))


def exported(op: Operator) -> None:
    """A program of other numbers of the same sizes, which draws the same each time it runs."""
    with trusted():
        program = torch.export.export(Module(op), (Q, K, V)).module()
    for _ in range(2):
        close(program(K, Q, V), op(K, Q, V))


def mapped(op: Operator) -> None:
    """Vmap over samples."""
    close(func.vmap(op)(Q, K, V), op(Q, K, V))


def functional_gradient(op: Operator) -> None:
    """torch.func.grad."""
    close(func.grad(lambda q: loss(op, q))(Q), gradient(op, Q))


def forward_mode(op: Operator) -> None:
    """torch.func.jvp."""
    slope = func.jvp(lambda q: loss(op, q), (Q,), (K,))[1]
    close(slope, (gradient(op, Q) * K).sum())


def jacobian(op: Operator) -> None:
    """torch.func.jacrev."""
    found = func.jacrev(lambda q: op(q, K, V))(Q)
    close(torch.einsum("anebmd,ane->bmd", found, W), gradient(op, Q))


def second(op: Operator) -> None:
    """A derivative of the gradient, against differences of gradients."""
    leaf = Q.clone().requires_grad_()
    out = loss(op, leaf)
    wanted = (gradient(op, Q + 1e-5 * K) - gradient(op, Q - 1e-5 * K)) / 2e-5
    found = torch.zeros_like(Q)
    if out.requires_grad:
        (first,) = torch.autograd.grad(out, leaf, create_graph=True, materialize_grads=True)
        if first.requires_grad:
            (found,) = torch.autograd.grad((first * V).sum(), leaf, materialize_grads=True)
    close((found * K).sum(), (wanted * V).sum(), 1e-4)


def autocast(op: Operator) -> None:
    """The numbers of float32, since an operator chooses its own precision."""
    q, k, v = (x.float() for x in (Q, K, V))
    with torch.autocast("cpu", torch.bfloat16):
        found = op(q, k, v)
    close(found, op(q, k, v), 1e-5)


def deterministic(op: Operator) -> None:
    """torch.use_deterministic_algorithms, forward and backward."""
    wanted = op(Q, K, V), gradient(op, Q)
    torch.use_deterministic_algorithms(True)
    try:
        close(op(Q, K, V), wanted[0])
        close(gradient(op, Q), wanted[1])
    finally:
        torch.use_deterministic_algorithms(False)


def inference(op: Operator) -> None:
    """torch.inference_mode."""
    with torch.inference_mode():
        found = op(Q, K, V)
    close(found.clone(), op(Q, K, V))


def bare(op: Operator) -> None:
    """Tensors on meta."""
    if op(*(x.to("meta") for x in (Q, K, V))).shape != Q.shape:
        msg = "another shape"
        raise AssertionError(msg)


def pickled(op: Operator) -> None:
    """A copy that is equal and computes the same."""
    copy = pickle.loads(pickle.dumps(op))  # of our own making
    if copy != op:
        msg = "the copy is another operator"
        raise AssertionError(msg)
    close(copy(Q, K, V), op(Q, K, V), 0.0)


def spawned(op: Operator) -> None:
    """Another process, which imports all anew."""
    close(torch.tensor(elsewhere(op), dtype=Q.dtype), op(Q, K, V), 0.0)


def elsewhere(op: Operator) -> Any:
    """Its answer in the other process, which all share."""
    if not _pool:
        _pool.append(multiprocessing.get_context("spawn").Pool(1))
    return _pool[0].apply(answered, (op,))


def answered(op: Operator) -> Any:
    """What that process sends back."""
    torch.set_num_threads(1)
    return op(Q, K, V).tolist()


_pool: list[Any] = []

TRANSFORMS: dict[str, Callable[[Operator], None]] = {
    "compile": compiled, "fullgraph": whole_graph, "export": exported, "vmap": mapped,
    "grad": functional_gradient, "jvp": forward_mode, "jacrev": jacobian, "second": second,
    "autocast": autocast, "deterministic": deterministic, "inference": inference, "meta": bare,
    "pickle": pickled, "spawn": spawned,
}  # fmt: skip


def close(found: Tensor, wanted: Tensor, allowed: float = 1e-7) -> None:
    """Raise ``AssertionError`` where a result is another."""
    torch.testing.assert_close(found.detach(), wanted.detach(), rtol=allowed, atol=allowed)


def cell(op: Operator, transform: str) -> str:
    """``RIGHT``, or the letter of the refusal; anything else is the failure."""
    torch.compiler.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TRANSFORMS[transform](op)
    except Exception as error:  # the table says which
        said = " ".join(str(error).split())
        for letter, words in REFUSALS.items():
            if re.search(words, said):
                return letter
        return f"FAILS: {type(error).__name__}: {said[:300]}"
    return RIGHT


def known() -> dict[str, dict[str, str]]:
    """The cells of the page, by operator and column; none of those of another torch."""
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    if f"\ntorch {TORCH}, " not in table:
        return {}
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    (_, *columns), *rows = lines
    return {name: dict(zip(columns, cells, strict=True)) for name, *cells in rows}


def write(table: dict[str, dict[str, str]]) -> None:
    """The page with these cells; what is missing is not measured yet."""
    lines = [
        "| operator | " + " | ".join(TRANSFORMS) + " |",
        "|---" * (len(TRANSFORMS) + 1) + "|",
        *(
            f"| {name} | " + " | ".join(table.get(name, {}).get(x, MISSING) for x in TRANSFORMS)
            + " |"
            for name in cases()
        ),
    ]  # fmt: skip
    page = PAGE.read_text(encoding="utf-8")
    said = f"\ntorch {TORCH}, {datetime.date.today()}.\n"
    before, _, rest = page.partition(BEGIN)
    text = "\n".join((before + BEGIN, *lines, said + END + rest.partition(END)[2]))
    PAGE.write_text(text, encoding="utf-8")


def main() -> int:
    """Fill the table, all of it or the cells that are asked for, and write it row by row."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--only", nargs="*", default=[], help="columns; the others stay")
    words.add_argument("--rows", nargs="*", default=[], help="operators; the others stay")
    words.add_argument("--missing", action="store_true", help="only what is not measured yet")
    asked = words.parse_args()
    torch.set_num_threads(1)  # as in the other process: the same bits
    columns = asked.only or [*TRANSFORMS]
    rows = {name: op for name, op in cases().items() if not asked.rows or name in asked.rows}
    table, failed = known(), 0
    for name, op in rows.items():
        row = table.setdefault(name, {})
        for column in columns:
            if asked.missing and row.get(column, MISSING) != MISSING:
                continue
            row[column] = said = cell(op, column)
            if said.startswith("FAILS"):
                row[column] = MISSING
                failed += 1
                print(f"{op!r} under {column}: {said}", flush=True)
        print(f"| {name} | " + " | ".join(row[x] for x in columns) + " |", flush=True)
        write(table)
    if _pool:
        _pool[0].terminate()
    return int(failed > 0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
