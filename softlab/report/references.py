"""What a report cites: the papers of the methods in its tables, and those that its text names.

Which papers a method has stands in its docstring; this reads the operators' files as text, so that
a report needs no torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

OPERATORS = Path(__file__).parents[1] / "operators"


class Paper(NamedTuple):
    """One paper: authors and title, the year, and where it is."""

    authors: str
    title: str
    year: int
    where: str

    @property
    def words(self) -> str:
        """As a list of references has it."""
        return f"{self.authors.removesuffix('.')}. {self.title}. {self.where}, {self.year}."


PAPERS = {
    "1201.6530": ("Kar, Karnick", "Random Feature Maps for Dot Product Kernels"),
    "1411.0306": ("Alaoui, Mahoney", "Fast Randomized Kernel Methods with Statistical Guarantees"),
    "1706.03762": ("Vaswani et al.", "Attention Is All You Need"),
    "1904.09751": ("Holtzman et al.", "The Curious Case of Neural Text Degeneration"),
    "2001.04451": ("Kitaev, Kaiser, Levskaya", "Reformer: The Efficient Transformer"),
    "2004.05150": ("Beltagy, Peters, Cohan", "Longformer: The Long-Document Transformer"),
    "2006.04768": ("Wang et al.", "Linformer: Self-Attention with Linear Complexity"),
    "2006.16236": (
        "Katharopoulos et al.",
        "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
    ),
    "2007.04825": ("Vyas et al.", "Fast Transformers with Clustered Attention"),
    "2007.14062": ("Zaheer et al.", "Big Bird: Transformers for Longer Sequences"),
    "2009.14794": ("Choromanski et al.", "Rethinking Attention with Performers"),
    "2102.03902": (
        "Xiong et al.",
        "Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention",
    ),
    "2103.02143": ("Peng et al.", "Random Feature Attention"),
    "2106.06899": ("Gupta et al.", "Memory-efficient Transformers via Top-k Attention"),
    "2108.02347": (
        "Nguyen et al.",
        "FMMformer: Efficient and Flexible Transformer via Decomposed Near-field and Far-field "
        "Attention",
    ),
    "2110.11945": ("Lu et al.", "SOFT: Softmax-free Transformer with Linear Complexity"),
    "2110.15343": (
        "Chen et al.",
        "Scatterbrain: Unifying Sparse and Low-rank Attention Approximation",
    ),
    "2111.00035": (
        "Chen et al.",
        "Skyformer: Remodel Self-Attention with Gaussian Kernel and Nystrom Method",
    ),
    "2202.08791": ("Qin et al.", "cosFormer: Rethinking Softmax in Attention"),
    "2207.03341": ("Lu et al.", "Softmax-free Linear Transformers"),
    "2207.06503": (
        "Chen, Epperly, Tropp, Webber",
        "Randomly pivoted Cholesky: Practical approximation of a kernel matrix with few entry "
        "evaluations",
    ),
    "2207.10284": ("Zeng et al.", "Multi Resolution Analysis (MRA) for Approximate Self-Attention"),
    "2209.05433": ("Micikevicius et al.", "FP8 Formats for Deep Learning"),
    "2302.02451": (
        "Zandieh et al.",
        "KDEformer: Accelerating Transformers via Kernel Density Estimation",
    ),
    "2309.17453": ("Xiao et al.", "Efficient Streaming Language Models with Attention Sinks"),
    "2310.01655": (
        "Kacham, Mirrokni, Zhong",
        "PolySketchFormer: Fast Transformers via Sketching Polynomial Kernels",
    ),
    "2310.05869": ("Han et al.", "HyperAttention: Long-context Attention in Near-Linear Time"),
    "2402.18668": (
        "Arora et al.",
        "Simple linear attention language models balance the recall-throughput tradeoff",
    ),
    "2410.02367": (
        "Zhang et al.",
        "SageAttention: Accurate 8-Bit Attention for Plug-and-play Inference Acceleration",
    ),
    "2502.12063": ("Carrell et al.", "Low-Rank Thinning"),
    "2112.05359": (
        "Chen et al.",
        "Sketching as a Tool for Understanding and Accelerating Self-attention for Long Sequences",
    ),
    "2205.15317": (
        "Likhosherstov et al.",
        "Chefs' Random Tables: Non-Trigonometric Random Features",
    ),
    "2406.10774": (
        "Tang et al.",
        "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference",
    ),
    "2505.18698": (
        "Yaras et al.",
        "MonarchAttention: Zero-Shot Conversion to Fast, Hardware-Aware Structured Attention",
    ),
    "2602.16284": ("Zweiger et al.", "Fast KV Compaction via Attention Matching"),
    "2602.10056": ("Schroeder, Mackey", "WildCat"),
}
"""By their number; one that is not here is cited by its number alone."""
CITED = {
    "Eckart and Young": Paper(
        "Eckart, Young",
        "The approximation of one matrix by another of lower rank",
        1936,
        "Psychometrika 1",
    ),
    "Mirsky": Paper(
        "Mirsky", "Symmetric gauge functions and unitarily invariant norms", 1960,
        "Quarterly Journal of Mathematics 11",
    ),
    "Dolan and Mor": Paper(
        "Dolan, Moré", "Benchmarking optimization software with performance profiles", 2002,
        "Mathematical Programming 91",
    ),
    "Roy and Vetterli": Paper(
        "Roy, Vetterli", "The effective rank: A measure of effective dimensionality", 2007,
        "European Signal Processing Conference",
    ),
    "Golub and Pereyra": Paper(
        "Golub, Pereyra",
        "The differentiation of pseudo-inverses and nonlinear least squares problems whose "
        "variables separate",
        1973,
        "SIAM Journal on Numerical Analysis 10",
    ),
}  # fmt: skip
"""What texts of chapters name, by the words that they name it with."""


@cache
def of_methods() -> dict[str, tuple[str, ...]]:
    """The arXiv numbers in the docstring of each operator, by its class."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(OPERATORS.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and (text := ast.get_docstring(node)):
                numbers = re.findall(r"arXiv\s+(\d{4}\.\d{4,5})", text)
                if numbers:
                    found[node.name] = tuple(dict.fromkeys(numbers))
    return found


def paper(number: str) -> Paper:
    """The paper of an arXiv number."""
    authors, title = PAPERS.get(number, ("arXiv", number))
    return Paper(authors, title, 2000 + int(number[:2]), f"arXiv:{number}")


def cited(words: Iterable[str]) -> list[dict[str, str]]:
    """The references of a text in order of their keys: ``key``, ``of`` (the methods), ``text``."""
    text = "\n".join(words)
    methods: dict[str, list[str]] = {}
    for method, numbers in of_methods().items():
        if re.search(rf"\b{method}\b", text):
            for number in numbers:
                methods.setdefault(number, []).append(method)
    found = [
        {"key": f"arXiv:{number}", "of": ", ".join(names), "text": paper(number).words}
        for number, names in methods.items()
    ]
    found += [
        {"key": one.authors.split(",")[0] + str(one.year), "of": "", "text": one.words}
        for name, one in CITED.items()
        if name in text
    ]
    return sorted(found, key=lambda one: one["key"])


def bibtex(references: Iterable[dict[str, str]]) -> str:
    """The references as BibTeX."""
    known = {one.authors.split(",")[0] + str(one.year): one for one in CITED.values()}
    entries = []
    for one in references:
        number = one["key"].removeprefix("arXiv:")
        held = known.get(one["key"]) or paper(number)
        fields = {"author": held.authors.replace(", ", " and ").replace(" et al.", " and others"),
                  "title": f"{{{held.title}}}", "year": str(held.year)}  # fmt: skip
        if one["key"].startswith("arXiv:"):
            fields |= {"eprint": number, "archivePrefix": "arXiv"}
        else:
            fields["howpublished"] = held.where
        body = ",\n".join(f"  {name} = {{{x}}}" for name, x in fields.items())
        entries.append(f"@misc{{{one['key'].replace(':', '-')},\n{body}\n}}\n")
    return "\n".join(entries)
