"""Refuse bad input at the edge, before any work: what was got, what is required, what to do."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import math
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from softlab.hints import first_line

F = TypeVar("F", bound=Callable[..., Any])


@typing.runtime_checkable
class Array(typing.Protocol):
    """What NumPy can read: its own arrays, a DataFrame of pandas."""

    def __array__(self) -> Any:
        """The numbers."""


Matrix: typing.TypeAlias = Tensor | Array
"""Numbers (..., n, m) that an analysis takes; operators and solvers take tensors alone."""
UNIONS = (typing.Union, types.UnionType)
FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


WORDS = {
    bool: "True or False",
    int: "an integer",
    float: "a finite number",
    str: "a string",
    types.NoneType: "None",
    torch.dtype: "a dtype such as torch.float64",
    torch.device: "a torch.device",
    collections.abc.Callable: "a function",
}
"""What is asked for, by the annotation that says so."""


def is_integer(x: object) -> typing.TypeGuard[int]:
    """Whether it is an integer, which True is not."""
    return isinstance(x, int) and not isinstance(x, bool)


def is_number(x: object) -> typing.TypeGuard[float]:
    """Whether it is an integer or a float, and no bool."""
    return isinstance(x, int | float) and not isinstance(x, bool)


def unseen(x: Tensor) -> bool:
    """Whether values are not looked at: inside ``trusted``, and on meta, which has none."""
    return _Trust.blocks > 0 or x.is_meta


def typed(call: F) -> F:
    """Refuse arguments that are not what the signature says, before the call does anything.

    A bool is no number, a number is finite, a flag is True or False and nothing like it, a string
    is no sequence, a protocol is met by an object and not by its class, and a tensor is dense.
    Which numbers fit is left to the call.

    Raises ``TypeError``, and ``ValueError`` for NaN and inf where a number belongs.
    """
    names = tuple(inspect.signature(call).parameters)

    @functools.wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        kinds = _kinds(call)
        for name, got in (*zip(names, args, strict=False), *kwargs.items()):
            if name in kinds:
                _of_kind(name, got, kinds[name])
        return call(*args, **kwargs)

    return cast("F", checked)


def arrays(call: F) -> F:
    """As ``typed``, for an analysis of numbers: arrays of NumPy and DataFrames in, arrays out.

    Where an argument is no tensor but numbers all the same, tensors that the call returns, alone or
    in a named tuple, are arrays. Other results stay what they are.
    """
    inner, names = typed(call), tuple(inspect.signature(call).parameters)

    @functools.wraps(call)
    def either(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        foreign = {
            name: x
            for name, x in given.items()
            if isinstance(x, Array) and not isinstance(x, Tensor)
        }
        if not foreign:
            return inner(*args, **kwargs)
        return _as_arrays(inner(**(given | {name: tensor(name, x) for name, x in foreign.items()})))

    return cast("F", either)


def _as_arrays(found: Any) -> Any:
    if isinstance(found, Tensor):
        return found.detach().cpu().numpy()
    if isinstance(found, tuple):
        parts = [_as_arrays(x) for x in found]
        return type(found)(*parts) if hasattr(found, "_fields") else tuple(parts)
    return found


def fields(owner: Any) -> None:
    """Raise as ``typed`` unless each field of a dataclass is what its annotation says."""
    if torch.compiler.is_compiling():  # what a call makes of checked parts; dynamo reads no hints
        return
    for name, wanted in _fields(owner.__class__):
        got = getattr(owner, name)
        if type(got) not in wanted or type(got) is float:  # most fields are plain, and many
            _of_kind(f"{type(owner).__name__}.{name}", got, wanted)


@functools.cache
def _fields(kind: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    return tuple((field.name, _kinds(kind)[field.name]) for field in dataclasses.fields(kind))


@functools.cache
def _kinds(owner: Any) -> dict[str, tuple[Any, ...]]:
    """What each argument or field may be, by the annotations."""
    found = typing.get_type_hints(owner)
    return {
        name: typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)
        for name, hint in found.items()
    }


def _of_kind(name: str, got: Any, kinds: tuple[Any, ...]) -> None:
    if not any(_is_a(got, kind) for kind in kinds):
        if Tensor in kinds:
            _floating_matrix(name, got)  # which says how to make one
        wanted = [_word(kind) for kind in kinds]
        msg = f"{name} is {_shown(got)}; give {' or '.join(wanted)}."
        raise TypeError(msg)
    if isinstance(got, Tensor):
        _strided(name, got)
    if float in kinds and got is not None and not abs(got) <= sys.float_info.max:
        msg = f"{name} is {_shown(got)}; give a finite number."
        raise ValueError(msg)


def _is_a(got: Any, kind: Any) -> bool:
    """Whether it is of this kind, as far as that can be seen without calling it."""
    if kind is Any:
        return True
    if kind in (int, float):
        return is_integer(got) if kind is int else is_number(got)
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is collections.abc.Callable:
        return callable(got)
    if not isinstance(origin, type):  # Any, or a variable
        return True
    if origin is tuple and parts and Ellipsis not in parts:
        whole = isinstance(got, tuple) and len(got) == len(parts)
        return whole and all(map(_is_a, got, parts))
    if getattr(origin, "_is_protocol", False) and not isinstance(got, (type, Tensor)):
        # A part is enough, for who asks may need no more; but all have traits and costs.
        own = {name for name in vars(origin) if not name.startswith("_")} - {"traits", "cost"}
        return isinstance(got, origin) or any(hasattr(got, name) for name in own)
    letters = isinstance(got, (str, bytes)) and origin is not str
    return isinstance(got, origin) and not isinstance(got, type) and not letters


def _word(kind: Any) -> str:
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is tuple and parts:
        return f"a tuple ({', '.join(map(_word, parts))})"
    named = f"an object of {getattr(origin, '__name__', origin)}"
    return WORDS.get(origin) or str(getattr(origin, "_wanted", named))


def _shown(got: Any) -> str:
    """It in a few words, on one line."""
    if hasattr(got, "shape") and hasattr(got, "dtype") and getattr(got, "ndim", None):
        return f"a {type(got).__name__} {tuple(got.shape)}"
    return reprlib.repr(got).replace("\n", " ")


class _Trust:
    """In how many blocks of ``trusted`` the process is; an integer, which a compiler can read."""

    blocks = 0


@contextlib.contextmanager
def trusted() -> Iterator[None]:
    """Take inputs at their word: no entry is looked at before an operator computes.

    Kinds, shapes, dtypes and devices are checked as ever. NaN, infinities, numbers that overflow
    and samples without keys are the caller's to keep out: they give NaN or nonsense, without a
    word. So ``torch.compile(op, fullgraph=True)`` and ``torch.export.export`` have nothing that
    hangs on values, but where the method itself does (choices, draws, iterations that stop). For
    the whole process while the block lasts. Blocks may be nested.
    """
    _Trust.blocks += 1
    try:
        yield
    finally:
        _Trust.blocks -= 1


def admit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    *,
    zeroed: bool = True,
    nothing: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Check the tensors of one operator call and broadcast their leading dimensions.

    Arguments: q (..., n, d), k (..., l, d), v (..., l, e), floating, one dtype and device, leading
    dimensions broadcastable, every entry that takes part finite; ``key_mask`` None or boolean,
    broadcastable to (..., l), True where a key takes part, at least one True per matrix.

    Returns q, k, v and the mask (or None) with equal leading dimensions. Masked keys and values
    come back as zeros, so whatever padding held, NaN included, cannot reach the output. An operator
    in which masked keys weigh nothing, whatever number they hold, spares the copies by
    ``zeroed=False``: they are zeros only where what they held would not be admitted. One that
    answers where there is ``nothing`` to attend to takes no queries, no keys, no matrices, and a
    mask that leaves no key. ``scale``: of the scores, where it is not 1 / sqrt(d).

    Raises ``TypeError`` for what is not a floating tensor, a mask that is not boolean, and mixed
    dtypes; ``ValueError`` for shapes, devices, empty axes, NaN or inf, and a fully masked row.
    """
    tensors = {"q": q, "k": k, "v": v}
    for name, x in tensors.items():
        _floating_matrix(name, x, nothing=nothing)
    if not q.dtype == k.dtype == v.dtype:
        got = ", ".join(f"{name}: {x.dtype}" for name, x in tensors.items())
        msg = f"q, k and v must share one dtype, got {got}. Convert them with .to(dtype)."
        raise TypeError(msg)
    if not q.device == k.device == v.device:
        got = ", ".join(f"{name}: {x.device}" for name, x in tensors.items())
        msg = f"q, k and v must be on one device, got {got}. Move them with .to(device)."
        raise ValueError(msg)
    if q.shape[-1] != k.shape[-1]:
        msg = (
            f"q and k must have the same head width, got {q.shape[-1]} (q {tuple(q.shape)}) and "
            f"{k.shape[-1]} (k {tuple(k.shape)}). Project both to one width."
        )
        raise ValueError(msg)
    if k.shape[-2] != v.shape[-2]:
        msg = (
            f"k and v must have one row a key, got {k.shape[-2]} rows (k {tuple(k.shape)}) and "
            f"{v.shape[-2]} (v {tuple(v.shape)}). Pass the value of every key."
        )
        raise ValueError(msg)
    tied = k is q
    q, k, v = aligned(q=q, k=k, v=v)
    if key_mask is not None:
        key_mask = admit_mask(key_mask, k, nothing=nothing)
        if not zeroed and not _Trust.blocks:
            try:
                return *admit(q, k, v, nothing=nothing, scale=scale)[:3], key_mask
            except ValueError:
                pass  # perhaps for what is masked
        k, v = (torch.where(key_mask.unsqueeze(-1), x, 0) for x in (k, v))
    # Tied keys are looked at once: masking changes no finite entry to another.
    seen = {"q": q, "v": v} if tied else {"q": q, "k": k, "v": v}
    for name, largest in magnitudes(seen).items():
        if name == "v":
            _sums_fit(v, largest)
        else:
            _products_fit(name, q, largest, scale or 1.0)
    return q, k, v, key_mask


def admit_mask(
    mask: object, x: Tensor, name: str = "key_mask", token: str = "key", *, nothing: bool = False
) -> Tensor:
    """Check a boolean mask over the rows of ``x`` (..., l, d) and expand it to (..., l).

    Raises ``TypeError`` unless it is a boolean tensor, ``ValueError`` for its shape or device and,
    unless ``nothing`` is admitted, where it leaves no row of a matrix.
    """
    if isinstance(mask, Tensor):
        _strided(name, mask)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        msg = f"{name} must be boolean (a tensor, True keeps the {token}), got {got}. Use .bool()."
        raise TypeError(msg)
    if mask.device != x.device:
        msg = f"{name} is on {mask.device}, not {x.device}. Use .to('{x.device}')."
        raise ValueError(msg)
    shape = x.shape[:-1]
    try:
        mask = mask.expand(shape)
    except RuntimeError:
        msg = (
            f"{name} must broadcast to {tuple(shape)} (leading dimensions, {token}s), got "
            f"{tuple(mask.shape)}. For a (batch, {token}s) mask over heads use mask[:, None, :]."
        )
        raise ValueError(msg) from None
    if nothing or unseen(x):
        return mask
    some = values_of(mask.any(-1))
    if not bool(some.all()):
        empty = (~some).nonzero().tolist()
        at = f" (the first at index {tuple(empty[0])})" if empty[0] else ""
        msg = (
            f"{name} leaves no {token} in {len(empty)} of {some.numel()} matrices"
            f"{at}; attention over nothing is undefined. Drop those samples or keep one {token}: "
            "of the operators Softmax and GaussianAttention alone answer them, by zeros."
        )
        raise ValueError(msg)
    return mask


def finite(name: str, x: Tensor) -> float:
    """Return the largest magnitude in ``x``; raise ``ValueError`` where an entry is not finite."""
    return magnitudes({name: x})[name]


def magnitudes(tensors: dict[str, Tensor]) -> dict[str, float]:
    """The largest magnitude in each tensor, all read at once; 0 of an empty one and if ``unseen``.

    Raises ``ValueError`` that names the first of them with an entry that is not finite.
    """
    if any(map(unseen, tensors.values())):
        return dict.fromkeys(tensors, 0.0)
    largest = {name: 0.0 for name, x in tensors.items() if not x.numel()}
    tensors = {name: x for name, x in tensors.items() if x.numel()}
    ends = _ends(*tensors.values()) if tensors else []
    for (name, x), low, high in zip(tensors.items(), ends[::2], ends[1::2], strict=True):
        if not (math.isfinite(low) and math.isfinite(high)):
            x = values_of(x)
            bad = x.numel() - int(torch.isfinite(x).sum())
            msg = (
                f"{name} has {bad} entries that are NaN or inf (of {x.numel()}); all must be "
                "finite. Mask padding with key_mask, or find where they arise."
            )
            raise ValueError(msg)
        largest[name] = max(-low, high)
    return largest


def all_finite(x: Tensor) -> bool:
    """Whether no entry is NaN or inf; so if ``unseen``."""
    return unseen(x) or all(map(math.isfinite, _ends(x)))


def aligned(**points: Tensor) -> tuple[Tensor, ...]:
    """The tensors with equal leading dimensions, all but two; ``ValueError`` where there are none.

    In the common case that they agree torch is not asked, which takes as long as a small product.
    """
    leads = [x.shape[:-2] for x in points.values()]
    if all(lead == leads[0] for lead in leads):
        return tuple(points.values())
    try:
        lead = torch.broadcast_shapes(*leads)
    except RuntimeError:
        got = ", ".join(f"{name} {tuple(lead)}" for name, lead in zip(points, leads, strict=True))
        msg = f"leading dimensions must broadcast together, got {got}. Align batch and heads."
        raise ValueError(msg) from None
    return tuple(x.expand(*lead, *x.shape[-2:]) for x in points.values())


def rank_fits(rank: int, available: int, what: str) -> None:
    """Raise ``ValueError`` unless 1 <= rank <= available."""
    if not 1 <= rank <= available:
        msg = (
            f"rank {rank} is asked of {available} {what}; use a rank of 1 to {available}, "
            "or the exact operator."
        )
        raise ValueError(msg)


def tokens(x: Tensor, m: int, key_mask: Tensor | None = None) -> Tensor | None:
    """The mask expanded to (..., n), or None; raise where tokens x (..., n, d) have no landmarks.

    ``TypeError`` for what is no floating tensor, no integer, or no boolean mask; ``ValueError``
    for shapes, and for NaN or inf at a token that takes part.
    """
    _floating_matrix("x", x)
    if not is_integer(m):
        msg = f"m is {_shown(m)}; give the number of landmarks, an integer of at least 1."
        raise TypeError(msg)
    if key_mask is not None:
        key_mask = admit_mask(key_mask, x, token="token")
    finite("x", x if key_mask is None else torch.where(key_mask.unsqueeze(-1), x, 0))
    return key_mask


def query_at_every_key(q: Tensor, k: Tensor) -> None:
    """Raise ``ValueError`` unless there are as many queries as keys, as a causal form needs."""
    if q.shape[-2] != k.shape[-2]:
        msg = (
            f"a causal form needs a query at every key, got {q.shape[-2]} queries and "
            f"{k.shape[-2]} keys. Pass the whole sequence. With causal=False each query sees all "
            "keys, which is right for the last tokens only where positions do not matter."
        )
        raise ValueError(msg)


def placed(what: str, drawn: Iterable[Tensor], dtype: object, device: object) -> tuple[Tensor, ...]:
    """What was drawn, in this dtype and on this device.

    Raises ``TypeError`` for what is no floating dtype or no device, ``ValueError`` for a device
    that is not there.
    """
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATING:
        msg = f"{what} needs a floating dtype, got {_shown(dtype)}. Use torch.float64 or float32."
        raise TypeError(msg)
    if not isinstance(device, (str, torch.device)):
        msg = f"device is {_shown(device)}; give a name such as 'cpu', or a torch.device."
        raise TypeError(msg)
    try:
        return tuple(x.to(device, dtype) for x in drawn)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error).split(". ")[0][:120]
        msg = f"device {str(device)!r} cannot be used here ({reason}). Use 'cpu'."
        raise ValueError(msg) from None


def floating(name: str, dtype: torch.dtype) -> None:
    """Raise ``TypeError`` unless it is a floating dtype of 16 bits or more."""
    if dtype not in FLOATING:
        msg = f"{name} is {dtype}; give torch.float64, float32, bfloat16 or float16."
        raise TypeError(msg)


def survivors(key_mask: Tensor | None, x: Tensor) -> int:
    """The smallest number of tokens that take part in any matrix of a batch; all if ``unseen``."""
    return x.shape[-2] if key_mask is None or unseen(x) else int(values_of(key_mask.sum(-1)).min())


def matrix(a: Tensor, name: str = "a") -> None:
    """Raise unless ``a`` is a floating tensor of finite matrices (..., n, m), n and m >= 1."""
    _floating_matrix(name, a)
    finite(name, a)


def square(a: Tensor, name: str = "a") -> None:
    """Raise unless ``a`` is a floating tensor of square matrices (..., m, m), m >= 1."""
    _floating_matrix(name, a)
    if a.shape[-1] != a.shape[-2]:
        msg = (
            f"{name} must be square (..., m, m), got {tuple(a.shape)}. Pass the core matrix alone."
        )
        raise ValueError(msg)


MOST, MOST_STEPS, MOST_NUMBERS, MOST_TOKENS = 2**31 - 1, 10_000, 1 << 20, 1 << 30
"""The largest count; the most repetitions, which take hours; the most numbers a token, or a draw,
that a knob may ask for; the most numbers of a drawn tensor, 8 GiB."""


SMALLEST, LARGEST = 1e-30, 1e18
"""The range of a positive knob: its product with an ordinary number is one in float32, too."""


@dataclass(frozen=True)
class Integers:
    """A range of a field: an integer from ``least`` to ``most``; ``why`` no more.

    ``says``: what to say of any other integer, after its value, where that needs words of its own.
    """

    least: int = 1
    most: float = MOST
    why: str = ""
    says: str = ""

    def __call__(self, name: str, got: Any) -> None:
        """Raise ``TypeError`` or ``ValueError`` unless what is got for a field fits."""
        if not is_integer(got):
            msg = f"{name} is {_shown(got)}; give an integer of at least {self.least}."
            raise TypeError(msg)
        if got < self.least and not self.says:
            msg = f"{name} is {got}; give an integer of at least {self.least}."
            raise ValueError(msg)
        if not self.least <= got <= self.most:
            reason = f": {self.why}" if self.why else ""
            msg = f"{name} is {got}" + (self.says or f"; give {self.least} to {self.most}{reason}.")
            raise ValueError(msg)

    def __str__(self) -> str:
        bounded = self.most < MOST
        return f"{self.least} to {self.most}" if bounded else f"an integer of at least {self.least}"

    def inside(self) -> list[Any]:
        """A few values that fit, small ones."""
        return [x for x in range(self.least, self.least + 9) if x <= self.most]

    def outside(self) -> list[Any]:
        """Values that do not fit."""
        return [self.least - 1, -5, 2.5, True, "4", None, *([2**70] * (self.most < math.inf))]


@dataclass(frozen=True)
class Numbers:
    """A range of a field: a positive number from ``least`` to ``most``, or 0 where ``zero``.

    ``says``: what to say of any other positive number, after its value.
    """

    least: float = SMALLEST
    most: float = LARGEST
    zero: bool = False
    says: str = ""

    def __call__(self, name: str, got: Any) -> None:
        """Raise ``TypeError`` or ``ValueError`` unless what is got for a field fits."""
        _number(name, got, "a number of at least 0" if self.zero else "a positive number")
        if not ((got >= 0 if self.zero else got > 0) and math.isfinite(got)):
            wanted = "finite number of at least 0" if self.zero else "positive finite number"
            msg = f"{name} is {got}; give a {wanted}."
            raise ValueError(msg)
        if got and not self.least <= got <= self.most:
            msg = f"{name} is {got}" + (self.says or f"; give {self.least:g} to {self.most:g}.")
            raise ValueError(msg)

    def __str__(self) -> str:
        return f"{'0 or ' * self.zero}{self.least:g} to {self.most:g}"

    def inside(self) -> list[Any]:
        """A few values that fit."""
        return [x for x in (1.0, 0.5, 2.0, 0.1) if self.least <= x <= self.most] + [0.0] * self.zero

    def outside(self) -> list[Any]:
        """Values that do not fit."""
        wrong = [-1.0, math.nan, math.inf, self.least / 2, 2 * self.most, True, "1", None]
        return wrong + [0] * (not self.zero)


@dataclass(frozen=True)
class Shares:
    """A range of a field: a number from 0 to 1, or to ``below`` it."""

    below: bool = False

    def __call__(self, name: str, got: Any) -> None:
        """Raise ``TypeError`` or ``ValueError`` unless what is got for a field fits."""
        _number(name, got, str(self))
        if not (0 <= got <= 1) or (self.below and got == 1):
            msg = f"{name} is {got}; give {self}."
            raise ValueError(msg)

    def __str__(self) -> str:
        return f"a number from 0 to {'below ' * self.below}1"

    def inside(self) -> list[Any]:
        """A few values that fit."""
        return [0.5, 0.0, 0.25, *([] if self.below else [1.0])]

    def outside(self) -> list[Any]:
        """Values that do not fit."""
        return [-0.5, 1.5, math.nan, True, "1", None, *([1.0] * self.below)]


class OneOf:
    """A range of a field: one of these words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __call__(self, name: str, got: Any) -> None:
        """Raise ``ValueError`` unless what is got for a field is one of the words."""
        if not isinstance(got, str) or got not in self.words:
            msg = f"{name} is {_shown(got)}; give one of {', '.join(self.words)}."
            raise ValueError(msg)

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"

    def inside(self) -> list[Any]:
        """All of them."""
        return [*self.words]

    def outside(self) -> list[Any]:
        """Values that do not fit."""
        return ["x", 4, True, None]


@dataclass(frozen=True)
class Kind:
    """A range of a field: an instance of a class or protocol, for a bool True or False."""

    wanted: type

    def __call__(self, name: str, got: Any) -> None:
        """Raise ``TypeError`` unless what is got for a field is one."""
        if self.wanted is bool and not isinstance(got, bool):
            msg = f"{name} is {_shown(got)}; give True or False."
            raise TypeError(msg)
        if isinstance(got, type) or not isinstance(got, self.wanted):
            msg = (
                f"{name} is {_shown(got)}, which is no {self.wanted.__name__}; "
                f"give an instance such as those in the package that defines it."
            )
            raise TypeError(msg)

    def __str__(self) -> str:
        return "True or False" if self.wanted is bool else f"a {self.wanted.__name__}"

    def inside(self) -> list[Any]:
        """Values that fit, where they can be named."""
        return [False, True] if self.wanted is bool else []

    def outside(self) -> list[Any]:
        """Values that do not fit."""
        return [1, "x", None, object]


Range = Integers | Numbers | Shares | OneOf | Kind
"""What a field may be: called with a name and what is got it raises, its text is for lists."""

Size = Annotated[int, Integers()]
Natural = Annotated[int, Integers(0)]
Seed = Annotated[int, Integers(0, math.inf)]
Steps = Annotated[int, Integers(1, MOST_STEPS, "more would run for hours without a word")]
"""How often something is done."""
MEMORY = "memory grows with it, however few the tokens are"
Width = Annotated[int, Integers(1, MOST_NUMBERS, MEMORY)]
Amount = Annotated[int, Integers(0, MOST_NUMBERS, MEMORY)]
"""What memory grows with."""
Positive = Annotated[float, Numbers()]
NotNegative = Annotated[float, Numbers(zero=True)]
Fraction = Annotated[float, Shares(below=True)]
Share = Annotated[float, Shares()]
Bandwidth = Annotated[
    float,
    Numbers(
        1e-15,
        1e15,
        says="; its square must fit float32, so give 1e-15 to 1e15. Rescale the points instead.",
    ),
]
"""Of a Gaussian."""


def within(owner: Any) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless every field of a dataclass is in its range."""
    if torch.compiler.is_compiling():
        return
    for name, label, optional, held in _checks(owner.__class__):
        got = getattr(owner, name)
        if got is not None or not optional:
            held(label, got)


def ranges(kind: Any) -> dict[str, tuple[Range, bool]]:
    """The range of each field that has one, and whether None will do as well.

    A range stands in an annotation, ``rank: Annotated[int, Integers(1)]`` or ``rank: Size``; bools
    and runtime protocols have theirs.
    """
    found: dict[str, tuple[Range, bool]] = {}
    hints = _annotations(kind)
    for field in dataclasses.fields(kind):
        hint = hints.get(field.name)
        parts = typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)
        some = [part for part in parts if part is not types.NoneType]
        if len(some) == 1 and (held := _range(some[0])) is not None:
            found[field.name] = held, len(parts) > 1
    return found


def _range(hint: Any) -> Range | None:
    if typing.get_origin(hint) is Annotated:
        return next((x for x in typing.get_args(hint) if isinstance(x, Range)), None)
    known = hint is bool or getattr(hint, "_is_runtime_protocol", False)
    return Kind(hint) if known else None


def _annotations(kind: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except NameError:  # of a class that is made in a function, with names of that
        return {}


@functools.cache
def _checks(kind: Any) -> tuple[tuple[str, str, bool, Range], ...]:
    return tuple(
        (name, f"{kind.__name__}.{name}", optional, held)
        for name, (held, optional) in ranges(kind).items()
    )


def in_range(owner: object, wanted: Any, **fields: Any) -> None:
    """Raise as ``within`` unless every named field is in a range, or in that of an annotation.

    Of what is no dataclass: ``in_range(self, Size, width=width, heads=heads)``.
    """
    held = wanted if isinstance(wanted, Range) else _range(wanted)
    assert held is not None, wanted
    for name, got in fields.items():
        held(f"{type(owner).__name__}.{name}", got)


def count(name: str, got: Any, least: int = 1, most: float = MOST) -> None:
    """Raise unless an argument is an integer from ``least`` to ``most``."""
    if not is_integer(got):
        msg = f"{name} is {_shown(got)}; give an integer of at least {least}."
        raise TypeError(msg)
    if not least <= got <= most:
        msg = f"{name} is {got}; give an integer from {least} to {most}."
        raise ValueError(msg)


def span(name: str, got: Any, most: float = sys.float_info.max) -> None:
    """Raise unless an argument is a positive finite number, of at most ``most``."""
    if not is_number(got):
        msg = f"{name} is {_shown(got)}; give a positive number."
        raise TypeError(msg)
    if not (got > 0 and math.isfinite(got)):
        msg = f"{name} is {got}; give a positive finite number."
        raise ValueError(msg)
    if got > most:
        msg = f"{name} is {got}; give at most {most:g}."
        raise ValueError(msg)


def tensor_fits(owner: object, *sides: int) -> None:
    """Raise ``ValueError`` unless a tensor of these sides has at most 2^30 numbers."""
    if math.prod(sides) > MOST_TOKENS:
        msg = (
            f"{owner!r} is a tensor of {' x '.join(map(str, sides))} numbers; give sizes whose "
            f"product is at most {MOST_TOKENS}, 8 GiB in float64."
        )
        raise ValueError(msg)


def symmetric(a: Tensor) -> None:
    """Raise ``ValueError`` unless every matrix (..., m, m) is symmetric up to rounding."""
    if unseen(a):
        return
    size = a.detach().abs().amax((-2, -1))
    gap = (a.detach() - a.detach().mT).abs().amax((-2, -1))
    far = gap > 100 * a.shape[-1] * torch.finfo(a.dtype).eps * size
    if bool(values_of(far).any()):
        worst = float((gap / size)[far].max())
        msg = (
            f"a must be symmetric for this solver, and {int(far.sum())} of {far.numel()} matrices "
            f"differ from their transposes by up to {worst:.2g} of their largest entry. Pass "
            "(a + a.mT) / 2 if that is rounding, or use a solver for any matrix: SVD() or "
            "NewtonRaphson()."
        )
        raise ValueError(msg)


def above_one(owner: object, **fields: int) -> None:
    """Raise unless every named field, a positive integer, is at least 2."""
    for name, got in fields.items():
        if got < 2:
            msg = f"{type(owner).__name__}.{name} is {got}, which never moves; give 2 or more."
            raise ValueError(msg)


def _number(name: str, got: Any, wanted: str) -> None:
    if not is_number(got):
        msg = f"{name} is {_shown(got)}; give {wanted}."
        raise TypeError(msg)


def tensor(name: str, a: Matrix) -> Tensor:
    """A tensor as it is; of an array or a DataFrame a copy, integers as float64.

    Raises ``TypeError`` where some of it is no number.
    """
    if isinstance(a, Tensor):
        return a
    read = np.asarray(a)
    if isinstance(a, np.ma.MaskedArray) and (hidden := int(np.sum(a.mask))):
        msg = f"{name} has {hidden} masked entries; give their numbers, as by {name}.filled(0)."
        raise ValueError(msg)
    if read.dtype.kind not in "fiub" or read.dtype.itemsize > 8:
        msg = (
            f"{name}, a {type(a).__name__}, holds {read.dtype}, and numbers of at most 64 bits are "
            "needed. Select the columns of numbers, and convert with .astype('float64')."
        )
        raise TypeError(msg)
    kind = read.dtype.newbyteorder("=") if read.dtype.kind == "f" else np.dtype("float64")
    return torch.tensor(np.array(read, kind, order="C"))  # a scalar stays one, and is refused


def _floating_matrix(name: str, x: Any, *, nothing: bool = False) -> None:
    if not isinstance(x, Tensor):
        of = f"{name}.to_numpy()" if hasattr(x, "to_numpy") else name  # a DataFrame of pandas
        msg = f"{name} must be a torch.Tensor, got {type(x).__name__}. Use torch.as_tensor({of})."
        raise TypeError(msg)
    _strided(name, x)
    if x.dtype not in FLOATING:
        msg = f"{name} must be floating point, 16 bits or more, got {x.dtype}. Convert: .float()."
        raise TypeError(msg)
    if x.ndim < 2:
        msg = (
            f"{name} must have at least two dimensions (..., rows, width), got {tuple(x.shape)}. "
            "Add the missing axis with .unsqueeze(0)."
        )
        raise ValueError(msg)
    if x.numel() == 0 and not (nothing and x.shape[-1]):
        msg = f"{name} is empty, shape {tuple(x.shape)}; every axis must be at least 1 long."
        raise ValueError(msg)


def values_of(x: Tensor) -> Tensor:
    """The tensor itself, and inside a transform of ``torch.func`` the one with all the values.

    What decides anything has to be read from that: a batch of ``vmap`` has no value of its own.
    """
    if torch._C._are_functorch_transforms_active():
        while torch._C._functorch.is_functorch_wrapped_tensor(x):
            x = torch._C._functorch.get_unwrapped(x)
    return x


def _strided(name: str, x: Tensor) -> None:
    """Raise ``TypeError`` for a tensor that is no rectangle of numbers in memory."""
    if x.is_nested:
        msg = (
            f"{name} is a nested (ragged) tensor; all samples must have one length. Pad it with "
            f"torch.nested.to_padded_tensor({name}, 0.0), and leave the padding out by key_mask."
        )
        raise TypeError(msg)
    if x.layout != torch.strided:
        msg = f"{name} must be a dense tensor, got {x.layout}. Use {name}.to_dense()."
        raise TypeError(msg)


def _ends(*tensors: Tensor) -> list[float]:
    """Least and greatest entry of each, NaN where one is NaN, in one transfer from the device."""
    values = (values_of(x).detach() for x in tensors)
    ends = [end for x in values for end in torch.aminmax(_as_it_lies(x))]
    known: list[float] = torch.stack(ends).tolist()
    return known


def _as_it_lies(x: Tensor) -> Tensor:
    """Its entries in the order of memory, where heads of a projection lie in another: no copy."""
    if x.is_contiguous():
        return x
    strides = x.stride()
    return x.permute(sorted(range(x.ndim), key=lambda axis: -strides[axis]))


def _sums_fit(v: Tensor, largest: float) -> None:
    """Raise ``ValueError`` where sums of such values over the keys would overflow.

    With room for the weights of an ill-conditioned inverse, which reach eps^(-1/2) and more.
    """
    working = torch.float32 if v.dtype.itemsize < 4 else v.dtype
    info = torch.finfo(working)
    limit = info.max * math.sqrt(info.eps) / max(1, v.shape[-2])
    if largest > limit:
        msg = (
            f"v reaches {largest:.3g}, and weighted sums of {v.shape[-2]} such values overflow "
            f"{working}; entries must be at most {limit:.3g} in magnitude. Rescale v, or use "
            "float64."
        )
        raise ValueError(msg)


def _products_fit(name: str, x: Tensor, largest: float, scale: float) -> None:
    """Raise ``ValueError`` where scores and squared distances of such points would overflow."""
    working = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    limit = math.sqrt(torch.finfo(working).max / x.shape[-1] / max(1.0, scale)) / 4
    if largest > limit:
        msg = (
            f"{name} reaches {largest:.3g}, and inner products of such points overflow {working}; "
            f"entries must be at most {limit:.3g} in magnitude. Rescale q and k, or use float64."
        )
        raise ValueError(msg)
