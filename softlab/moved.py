"""Modules by their names of softlab 0.1, which still import, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "softlab.budget": "softlab.error_budget",
    "softlab.capture.answer": "softlab.capture.dispatch",
    "softlab.capture.implementations": "softlab.capture.huggingface",
    "softlab.capture.watch": "softlab.capture.interception",
    "softlab.chapters.headlines": "softlab.report.headlines",
    "softlab.chapters.intervals": "softlab.report.intervals",
    "softlab.chapters.numbers": "softlab.report.numbers",
    "softlab.chapters.profiles": "softlab.report.profiles",
    "softlab.chapters.quartiles": "softlab.report.quartiles",
    "softlab.chapters.rows": "softlab.report.rows",
    "softlab.chapters.runs": "softlab.report.overview",
    "softlab.chapters.timings": "softlab.report.timings",
    "softlab.chapters.words": "softlab.report.words",
    "softlab.checks": "softlab.validation",
    "softlab.cli.axes": "softlab.cli.overrides",
    "softlab.cli.catalogue": "softlab.cli.list",
    "softlab.cli.speech": "softlab.cli.console",
    "softlab.executors": "softlab.engine.workers",
    "softlab.exponential_sums": "softlab.kernels.fused",
    "softlab.gaussian_sums": "softlab.kernels.tiled",
    "softlab.identity": "softlab.engine.identity",
    "softlab.inputs.catalogue": "softlab.datasets.wheels",
    "softlab.inputs.fashion": "softlab.datasets.fashion",
    "softlab.inputs.wheels": "softlab.datasets.download",
    "softlab.instruments": "softlab.profiling",
    "softlab.journal": "softlab.engine.journal",
    "softlab.laws.budget": "softlab.laws.error_parts",
    "softlab.laws.confined": "softlab.laws.sandbox",
    "softlab.laws.examination": "softlab.laws.runner",
    "softlab.laws.geometry": "softlab.laws.dependence",
    "softlab.laws.honesty": "softlab.laws.purity",
    "softlab.laws.subjects": "softlab.laws.adapters",
    "softlab.locks": "softlab.engine.locks",
    "softlab.looks": "softlab.report.style",
    "softlab.models.activations": "softlab.pretrained.activations",
    "softlab.models.canvases": "softlab.datasets.scenes",
    "softlab.models.dense": "softlab.models.segmentation",
    "softlab.models.gains": "softlab.models.output_gain",
    "softlab.models.images": "softlab.datasets.images",
    "softlab.models.minilm": "softlab.pretrained.minilm",
    "softlab.models.smollm2": "softlab.pretrained.smollm2",
    "softlab.models.under_test": "softlab.pretrained.tasks",
    "softlab.models.vit": "softlab.pretrained.vit",
    "softlab.models.whisper": "softlab.pretrained.whisper",
    "softlab.operators.bands": "softlab.primitives.banded",
    "softlab.operators.causal": "softlab.primitives.causal",
    "softlab.operators.degrees": "softlab.primitives.normalization",
    "softlab.operators.feature_maps": "softlab.primitives.feature_maps",
    "softlab.operators.prefixes": "softlab.primitives.prefix_sums",
    "softlab.operators.sort_lsh": "softlab.primitives.sort_lsh",
    "softlab.operators.sums": "softlab.primitives.weighted_sums",
    "softlab.perturbation": "softlab.capture.effect",
    "softlab.pinv.backward": "softlab.pinv.gradient_rule",
    "softlab.pinv.intervals": "softlab.pinv.golub_kahan",
    "softlab.pinv.judge": "softlab.pinv.stopping",
    "softlab.provenance": "softlab.engine.provenance",
    "softlab.report.page": "softlab.report.html",
    "softlab.sources": "softlab.engine.sources",
    "softlab.study_file": "softlab.engine.loading",
    "softlab.chapters": "softlab.report",
    "softlab.chapters.operators": "softlab.report.operators.chapter",
}
"""Old name: new name."""


class Finder(MetaPathFinder, Loader):
    """Finds a module under its old name, and says the new one."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  of the protocol
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """A specification for the old names alone."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in the place of the empty one."""
        new = MOVED[module.__name__]
        old = module.__name__
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(new)


def install() -> None:
    """Let old names be found, before an old parent finds a second copy of what moved."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
