"""One seed, one purpose, one stream: nothing that a study draws shares its numbers with another."""

import ast
import functools
import hashlib
import itertools
import math

import pytest
import small_studies
import torch
from scipy import stats
from small_studies import DRAWN, ROOT, STUDIES, cases

from softlab.core import Stream
from softlab.engine.workers import called
from softlab.features import Orthogonal
from softlab.inputs import Decaying
from softlab.study import Study

CPU = torch.device("cpu")


# --- the stream ----------------------------------------------------------------------------------


def drawn(rng):
    return (
        rng.normal(20),
        rng.uniform(3, 2),
        rng.integers(9, 20),
        rng.signs(20),
        rng.permutation(9),
    )


def test_the_state_is_the_documented_hash_of_purpose_and_seed():
    for seed, purpose in ((0, "a"), (7, "features.Orthogonal"), (2**80, "b")):
        digest = hashlib.sha256(f"{purpose} {seed}".encode()).hexdigest()
        rng = Stream(seed, purpose)
        assert rng.number == int(digest[:16], 16)
        plain = torch.Generator().manual_seed(rng.number)
        assert torch.equal(rng.normal(9), torch.randn(9, generator=plain, dtype=torch.float64))
        assert torch.equal(rng.uniform(9), torch.rand(9, generator=plain, dtype=torch.float64))
        assert torch.equal(rng.permutation(9), torch.randperm(9, generator=plain))


def test_numbers_depend_on_seed_and_purpose_and_on_no_default_of_torch():
    usual = drawn(Stream(3, "a"))
    with torch.device("meta"):
        elsewhere = drawn(Stream(3, "a"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        coarse = drawn(Stream(3, "a"))
    finally:
        torch.set_default_dtype(before)
    for one, *others in zip(usual, elsewhere, coarse, strict=True):
        assert all(torch.equal(one, x) and x.device == CPU for x in others)
    # 2^32 and 0 are one seed to torch's generator.
    for seed, purpose in ((2**32 + 3, "a"), (4, "a"), (3, "b")):
        assert not torch.equal(Stream(seed, purpose).normal(20), usual[0])


def test_draws_are_what_they_are_named():
    rng = Stream(0, "tests")
    assert stats.kstest(rng.normal(5000).numpy(), "norm").pvalue > 1e-4
    assert stats.kstest(rng.uniform(5000).numpy(), "uniform").pvalue > 1e-4
    assert rng.integers(6, 6000).bincount().tolist() == pytest.approx([1000] * 6, abs=150)
    signs = rng.signs(4000)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.sum())) < 5 * math.sqrt(4000)
    assert sorted(rng.permutation(50).tolist()) == list(range(50))
    assert rng.integers(4).shape == ()


@pytest.mark.parametrize("seed", [-1, True, 1.0, "0", None])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(ValueError, match="give an integer of at least 0"):
        Stream(seed, "tests")


def test_features_are_no_axes_of_an_input_of_the_same_seed():
    """The draws of 2026: the features of a seed were the axes of ``Decaying`` of that seed."""
    d = 32
    # Of 32 x 32 cosines of random unit vectors the largest is some 0.6, and 0.85 once in 10^9.
    for seed in range(5):
        axes = torch.linalg.svd(Decaying(256, d, 0.3)(seed, dtype=torch.float64).q).Vh
        directions = torch.nn.functional.normalize(Orthogonal(seed)(d, d), dim=-1)
        assert float((directions @ axes.mT).abs().max()) < 0.85


DRAWS = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli"}
LOOKS = {"get_state", "getstate", "Random"}
"""What draws nothing; the last orders a design, with a generator of its own."""
OWN = {
    "softlab/core.py",
    "softlab/laws/faults.py",
    "softlab/models/pyramid.py",
    "studies/mutations/study.py",
}
"""The streams themselves, dropped paths, which a training seeds, and faults that are planted."""


def strays(source):
    """Lines that draw from, or seed, something else than a stream."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, of = node.func.attr, ast.unparse(node.func.value)
        if name == "manual_seed" and not ast.unparse(node.args[0]).endswith(".number"):
            yield node.lineno
        of_stream = name == "default_rng" and ast.unparse(node.args[0]).endswith(".number")
        strange = of in ("np.random", "random") and name not in LOOKS and not of_stream
        if name == "Generator" or strange:
            yield node.lineno
        given = {key.arg for key in node.keywords}
        if of == "torch" and name in DRAWS and not {"generator", "device"} <= given:
            yield node.lineno


def test_everything_is_drawn_from_a_stream():
    for part in ("softlab", "studies"):
        for file in (ROOT / part).rglob("*.py"):
            where = str(file.relative_to(ROOT))
            # Chapters know no torch: they draw from NumPy, and from nothing that a study drew.
            # What is planted stands for strangers' code, which draws as strangers do.
            if (
                where not in OWN
                and file.name != "chapter.py"
                and not where.startswith(("softlab/report/", "studies/mutations/planted/"))
            ):
                assert list(strays(file.read_text())) == [], where
    for line in ("torch.manual_seed(0)", "torch.Generator().manual_seed(s)", "torch.randn(3)",
                 "torch.randperm(3, generator=g)", "np.random.default_rng(0)"):  # fmt: skip
        assert list(strays(line)), line


# --- the studies ---------------------------------------------------------------------------------


small_study = small_studies.small_study


def recorded(draw):
    def drawn(self, *shape):
        x = draw(self, *shape)
        self.drawn.extend(x.double().flatten()[:500].tolist())
        return x

    return drawn


@pytest.fixture
def record(monkeypatch):
    """What each stream has drawn, by seed and purpose, and the state that it began with."""
    found = {}
    begin = Stream.__init__

    def begun(self, seed, purpose):
        begin(self, seed, purpose)
        self.key = seed, purpose
        found.setdefault(self.key, (self.number % 2**32, []))
        # A stream of the same name begins again: its numbers are the same ones.
        self.drawn = [] if found[self.key][1] else found[self.key][1]

    monkeypatch.setattr(Stream, "__init__", begun)
    for name in ("normal", "uniform", "integers", "permutation"):
        monkeypatch.setattr(Stream, name, recorded(getattr(Stream, name)))
    return found


def measured(module):
    """Measure the tiny cases of a study's file."""
    for study in vars(module).values():
        if isinstance(study, Study):
            for case in cases(study):
                given = {**case, "dtype": torch.float32, "device": CPU}
                if study.setup is not None:
                    given["setup"] = called(study.setup, given)
                list(called(study.measure, given))  # of a generator too


def related(found):
    """Pairs of streams that began alike, share a number, or are correlated beyond chance."""
    wrong = []
    pairs = list(itertools.combinations(found.items(), 2))

    @functools.cache
    def ranks(name, m):
        of = stats.rankdata(found[name][1][:m])
        return (of - of.mean()) / (of.std() * math.sqrt(m))

    limit = float(stats.norm.isf(1e-6 / max(1, len(pairs))))
    for (one, (state, x)), (other, (begun, y)) in pairs:
        if state == begun:
            wrong.append((one, other, "one state"))
        whole = {number for number in x if number == int(number)}
        if set(x).intersection(y) - whole:
            wrong.append((one, other, "a number in common"))
        m = min(len(x), len(y))
        if m >= 8 and len(set(x[:m])) > 1 < len(set(y[:m])):
            # Of ranks: normal, uniform and whole numbers alike have the null 1 / sqrt(m - 1).
            r = float(ranks(one, m) @ ranks(other, m)) * math.sqrt(m - 1)
            if abs(r) > limit:
                wrong.append((one, other, f"correlation {r:.1f} standard errors"))
    return wrong


@pytest.mark.sampled(1 / 2)
@pytest.mark.parametrize("name", STUDIES)
def test_no_two_streams_of_a_study_are_related(name, small_study, record):
    measured(small_study(name))
    assert record or name in ("precision_in_model",), "draws nothing"
    assert related(record) == []


def test_one_stream_for_two_purposes_would_be_seen(small_study, record, monkeypatch):
    """As it was: every draw from torch's generator with the plain seed."""
    begun = Stream.__init__

    def plain(self, seed, purpose):
        begun(self, seed, purpose)
        self.number = seed
        self.generator = torch.Generator().manual_seed(seed)

    monkeypatch.setattr(Stream, "__init__", plain)
    module = small_study("frontier")
    one = {**DRAWN["frontier"], "input": lambda x: isinstance(x, Decaying)}
    monkeypatch.setitem(DRAWN, "frontier", one)
    measured(module)
    pairs = {(one[1], other[1], why.split()[0]) for one, other, why in related(record)}
    assert ("inputs.Decaying", "features.Orthogonal", "a") in pairs
    assert ("inputs.Decaying", "features.Orthogonal", "correlation") in pairs
