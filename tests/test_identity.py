"""Equal values have one identity in every process, all others have others; names in tables too."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from softlab.core import value
from softlab.engine.identity import UnstableError, flat, identity, scalar, shown

ROOT = Path(__file__).parents[1]


class Thing:
    def __init__(self, size):
        self.size = size


class Silent(Thing):
    def __repr__(self):
        return "Silent()"


class Slotted:
    __slots__ = ("size",)

    def __init__(self, size):
        self.size = size


class Lazy(Thing):
    @functools.cached_property
    def double(self):
        return 2 * self.size


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Hidden:
    shown: int
    kept: object = field(default=None, repr=False)


@value
class Op:
    rank: int
    weight: object = 1


def twice(x):
    return 2 * x


def made(factor):
    def times(x):
        return factor * x

    return times


def kind(factor):
    class Local:
        def size(self):
            return factor

    return Local


def spiked(at):
    x = torch.zeros(5000)
    x[at] = 1
    return x


DISTINCT = [
    *(0, 1, 2, True, False, 1.5, float("inf"), float("nan"), 1j, None, "None", "1", b"1", "\udc80"),
    *((), (1,), [1], {1}, frozenset({1}), {1: 2}, {1: 3}, {"a": 1, "b": 2}, range(3), range(4)),
    *(spiked(1), spiked(2500), torch.tensor([1.0]), torch.tensor([1.00001]), torch.tensor(1.0)),
    *(spiked(1).double(), spiked(1).bfloat16(), spiked(1).reshape(50, 100), torch.tensor([True])),
    *(spiked(1).numpy(), spiked(2500).numpy(), np.array([1, "a"], object), np.zeros(2, "M8[D]")),
    *(np.float32(0.1), np.array([1, "b"], object), np.datetime64("2020-01-01"), np.arange(3)),
    *(Thing(1), Thing(2), Silent(1), Silent(2), Slotted(1), Slotted(2), Thing(spiked(3))),
    *(Hidden(1), Hidden(2), Hidden(1, 3), Op(1), Op(2), Op(1, spiked(1)), Op(1, spiked(2))),
    *(Colour.RED, Colour.BLUE, Path("a"), Path("b"), torch.float32, torch.float64),
    *(twice, made(1), made(2), made(spiked(1)), made(spiked(2)), lambda x: x, lambda x: x + 1),
    *(lambda x, y=1: x, lambda x, y=2: x, functools.partial(twice, 1), functools.partial(twice, 2)),
    *(functools.cache(made(3)), functools.cache(made(4)), Thing(1).__init__, Thing(2).__init__),
    *(kind(1), kind(2), kind(1)(), kind(2)(), Thing, Silent, torch.relu, torch.abs, np.add),
    *(decimal.Decimal("1.1"), fractions.Fraction(1, 3), datetime.date(2020, 1, 1), re.compile("a")),
    *(np.random.default_rng(1), np.random.default_rng(2), torch.Generator().manual_seed(1)),
    *(
        collections.Counter("ab"),
        nn.Linear(2, 2),
        nn.Linear(2, 2),
        torch.Tensor.sum,
        int,
        list[int],
    ),
]


def test_values_that_differ_have_other_digits():
    digits = [identity(x).digits for x in DISTINCT]
    same = [(a, b) for i, a in enumerate(DISTINCT) for j, b in enumerate(DISTINCT[:i])
            if digits[i] == digits[j]]  # fmt: skip
    assert same == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: spiked(7), lambda: spiked(7).numpy(), lambda: Thing(1), lambda: Silent([1, 2]),
        lambda: Slotted("a"), lambda: Hidden(1, spiked(1)), lambda: made(spiked(1)),
        lambda: functools.partial(made(2), x=3), lambda: kind(3)(), lambda: {"b": 1, "a": {2, 3}},
        lambda: functools.cache(made(2)), lambda: float("nan"), lambda: np.random.default_rng(3),
        lambda: Thing(made(Thing(3))),
    ],
)  # fmt: skip
def test_values_that_are_equal_have_the_same_digits(make):
    assert identity(make()).digits == identity(make()).digits


def test_layout_in_memory_and_what_is_kept_of_it_do_not_count():
    x = torch.arange(12.0).reshape(3, 4)
    assert identity(x.T.contiguous().T).digits == identity(x).digits
    assert identity(np.asfortranarray(x.numpy())).digits == identity(x.numpy()).digits
    assert identity({"a": 1, "b": 2}).digits == identity({"b": 2, "a": 1}).digits
    assert identity(np.int64(3)).digits == identity(3).digits
    assert identity(np.float32(0.5)).digits == identity(0.5).digits
    lazy = Lazy(3)
    before = identity(lazy).digits
    assert lazy.double == 6
    assert identity(lazy).digits == before


def test_a_cycle_ends():
    ring = [1]
    ring.append(ring)
    other = [2]
    other.append(other)
    assert identity(ring).digits != identity(other).digits


SCRIPT = """
import functools, torch, numpy
from softlab.engine.identity import identity
from softlab.operators import Soft
class Thing:
    def __init__(self, x): self.x = x
values = [Thing({"a", "b", "c"}), Soft(8), {"x": 1, "y": {1.5, "z"}}, torch.ones(3), Thing,
          functools.partial(lambda x, p: x ** p, p=2), numpy.arange(3), object()]
print([identity(x).digits for x in values])
"""


def test_digits_are_those_of_every_process(tmp_path):
    said = set()
    for seed in ("1", "2"):
        (tmp_path / "s.py").write_text(SCRIPT)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        command = [sys.executable, "s.py"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        said.add(done.stdout)
    assert len(said) == 1


def deep():
    x = None
    for _ in range(100_000):
        x = [x]
    return x


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (threading.Lock, "lock"),
        (lambda: (x for x in [1]), "generator"),
        (lambda: Thing(threading.Lock()), "lock"),
        (lambda: made(threading.Lock()), "lock"),
        (lambda: torch.zeros(3, device="meta"), "tensor whose entries cannot be read"),
        (deep, "nested too deeply"),
    ],
)
def test_what_cannot_be_known_again_is_refused(make, said):
    with pytest.raises(UnstableError, match=said):
        identity(make())


def test_a_dead_file_is_refused(tmp_path):
    with (tmp_path / "x").open("w") as file, pytest.raises(UnstableError, match="TextIOWrapper"):
        identity(file)


def test_modules_are_those_of_classes_and_functions_within():
    assert identity(functools.partial(twice, nn.ReLU())).modules >= {__name__, ReLU_MODULE}
    assert __name__ in identity({"a": [Op(1)]}).modules
    assert __name__ in identity(functools.cache(made(1))).modules
    assert identity([1, "a"]).modules <= {"builtins"}


ReLU_MODULE = nn.ReLU.__module__


@pytest.mark.parametrize(
    ("x", "name"),
    [
        (np.int64(16), 16), (np.float32(0.5), 0.5), (np.bool_(True), True), (True, True),
        (twice, "twice"), (torch.relu, "relu"), (Op(4), "Op(rank=4)"),
        (Path("a"), "PosixPath('a')"),
        (torch.float32, "torch.float32"), ((1, 2), "(1, 2)"), (None, None), ("a", "a"),
    ],
)  # fmt: skip
def test_the_name_of_a_value_in_a_table(x, name):
    assert shown(x) == name
    assert type(shown(x)) is type(name)


def test_a_name_that_does_not_tell_has_digits_behind_it():
    assert re.fullmatch(r"Tensor\(5000; float32\) #[0-9a-f]{8}", str(shown(spiked(1))))
    assert shown(spiked(1)) != shown(spiked(2))
    assert re.fullmatch(r"Thing #[0-9a-f]{8}", str(shown(Thing(1))))
    assert shown(Thing(1)) == shown(Thing(1)) != shown(Thing(2))
    assert "0x" not in str(shown(functools.partial(twice, 1)))
    assert "\n" not in str(shown(Op(1, np.eye(3))))
    assert len(str(shown(tuple(range(1000))))) < 250


def test_fields_are_columns():
    row = flat({"op": Op(np.int64(4), spiked(1))})
    assert row["op.rank"] == 4
    assert type(row["op.rank"]) is int
    assert str(row["op.weight"]).startswith("Tensor(5000; float32) #")
    assert flat({"op": Op})["op"] == f"<class '{__name__}.Op'>"


class Word(enum.StrEnum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


def test_scalars_become_plain():
    found = [
        scalar(x) for x in (np.float64(0.1), Word.A, Number.ONE, np.str_("a"), np.bool_(False))
    ]
    assert found == [0.1, "a", 1, "a", False]
    assert [type(x) for x in found] == [float, str, int, str, bool]
    with pytest.raises(TypeError, match="a Tensor; give a number"):
        scalar(torch.ones(()))
    for huge in (10**400, -(10**5000)):
        with pytest.raises(ValueError, match=r"an integer of \d+ bits"):
            scalar(huge)
    assert scalar(2**70) == 2**70


def test_what_a_dataclass_keeps_beside_its_fields_counts():
    @dataclass
    class Scaled:
        a: int
        factor: dataclasses.InitVar[int] = 1

        def __post_init__(self, factor):
            self.scale = factor

    assert identity(Scaled(1, 2)).digits != identity(Scaled(1, 3)).digits
