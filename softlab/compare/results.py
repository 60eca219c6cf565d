"""Result files: one JSON a method and setting, checked before it may stand on a board."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlab import measures, operators
from softlab.compare.heads import heads, tied
from softlab.compare.subjects import TARGETS, Subject, called, evaluated, offered
from softlab.engine.journal import replace
from softlab.inputs import recorded_names
from softlab.laws import OPERATOR_LAWS
from softlab.validation import is_number

if TYPE_CHECKING:
    from softlab.compare import Comparison

FORMAT = 1
SUFFIX = ".json"
AGREES, ROUNDED = 1e-2, 1e-4
"""How far an error may be from what is measured here, relative and absolute: float32 sums, and
methods that choose by near ties, differ among machines."""
SAMPLE = ("sample", "operator", "input", "share", "output_error", "uniform_error", "skill")
TOP: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "method": (str,),
    "target": (str,),
    "budget": (float, int, type(None)),
    "heads": (list,),
    "time": (dict, type(None)),
    "memory": (float, int, type(None)),
    "laws": (dict,),
    "versions": (dict,),
    "device": (str,),
    "quick": (bool,),
    "code": (str,),
    "finished": (str,),
    "digest": (str,),
}


def code_of(one: Subject) -> str:
    """SHA-256 of the files that define a subject; empty where there is none."""
    state = hashlib.sha256()
    for name in one.files:
        state.update(Path(name).read_bytes())
    return state.hexdigest() if one.files else ""


def entries(found: Comparison) -> Iterator[dict[str, Any]]:
    """What a comparison says of each method that answered, as a result file holds it."""
    rows = [row for row in found.rows if row["kind"] == "method" and row["asked"]]
    rows = [row for row in rows if row["status"] == "ok" and row["fits"]]
    for method, target in dict.fromkeys((row["method"], row["target"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["target"]) == (method, target)]
        of: dict[str, dict[str, Any]] = {}
        for row in mine:
            name = row["source"]
            head = of.setdefault(name, {"head": name, "real": row["real"], "n": row["n"],
                                        "l": row["l"], "samples": []})  # fmt: skip
            digest = found.hashes[name][row["sample"]]
            values = {x: _said(row.get(x)) for x in SAMPLE}
            head["samples"].append(values | {"operator": row["op"], "input": digest})
        last, verdicts = max(mine, key=lambda row: row["n"]), found.laws[method]
        entry: dict[str, Any] = {
            "format": FORMAT,
            "method": method,
            "target": target,
            "budget": None if last["budget"] == 1.0 else last["budget"],
            "heads": list(of.values()),
            "time": {x: last[x] for x in ("time", "time_q1", "time_q3", "case_cpu_share")}
            if "time" in last
            else None,
            "memory": last.get("memory"),
            "laws": {
                "asked": verdicts.asked,
                "held": list(verdicts.held),
                "broken": dict(verdicts.broken),
                "late": list(verdicts.late),
            },
            "versions": found.meta["versions"],
            "device": found.meta["device_name"],
            "quick": found.meta["quick"],
            "code": found.code.get(method, ""),
            "finished": found.meta["finished"],
        }
        yield entry | {"digest": digest_of(entry)}


def write(found: Comparison, folder: Path) -> list[Path]:
    """One file a method into the folder; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for entry in entries(found):
        words = f"{entry['method']} {entry['target']} {entry['budget'] or ''}"
        name = re.sub(r"[^\w.-]+", "-", words).strip("-")[:120]
        paths.append(folder / f"{name}-{entry['digest'][:8]}{SUFFIX}")
        replace(paths[-1], json.dumps(entry, indent=1, allow_nan=False) + "\n")
    return paths


def digest_of(entry: Mapping[str, Any]) -> str:
    """SHA-256 of all but the digest itself."""
    rest = {name: x for name, x in entry.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read(path: Path) -> dict[str, Any]:
    """The entry of a result file.

    Raises:
        ValueError: it is no result file, is damaged, or says what cannot be or is not so here.
    """
    try:
        text = path.read_text(encoding="utf-8")
        entry = json.loads(text, parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        msg = f"it cannot be read: {error}"
        raise ValueError(msg) from None
    for check in (_schema, _whole, _inputs, _numbers, _laws, _again):
        check(entry)
    return dict(entry)


def _no_constant(word: str) -> None:
    """NaN and Infinity, which JSON has not."""
    raise ValueError(word)


def _refused(why: str) -> None:
    raise ValueError(why)


def _schema(entry: Any) -> None:
    if not isinstance(entry, dict):
        _refused("it is no result file of softlab compare --results: no JSON object")
    for name, kinds in TOP.items():
        if name not in entry:
            _refused(f"it has no {name!r}")
        held = entry[name]
        if not isinstance(held, kinds) or (isinstance(held, bool) and bool not in kinds):
            _refused(f"{name!r} is {held!r}, of the wrong kind")
    if entry["format"] != FORMAT:
        _refused(f"its format is {entry['format']}, and this softlab reads {FORMAT}")
    if not entry["heads"]:
        _refused("it has no heads")
    names = [head.get("head") if isinstance(head, dict) else None for head in entry["heads"]]
    if None in names or len({*map(str, names)}) < len(names):
        _refused("a head has no name, or two have the same")
    for head in entry["heads"]:
        samples = head.get("samples")
        if not isinstance(samples, list) or not samples:
            _refused(f"{head['head']} has no samples")
        for sample in samples:
            if not isinstance(sample, dict) or not {*SAMPLE} <= set(sample):
                _refused(f"a sample of {head['head']} lacks one of {', '.join(SAMPLE)}")
        if len({sample["sample"] for sample in samples}) < len(samples):
            _refused(f"{head['head']} has a sample twice")


def _whole(entry: Mapping[str, Any]) -> None:
    if digest_of(entry) != entry["digest"]:
        _refused("its digest is not that of its content: it was changed after it was written")


def _inputs(entry: Mapping[str, Any]) -> None:
    for head in entry["heads"]:
        if head["head"] not in recorded_names():
            continue
        known = _digests(head["head"])
        for sample in head["samples"]:
            i = sample["sample"]
            if not isinstance(i, int) or not 0 <= i < len(known) or sample["input"] != known[i]:
                _refused(f"sample {i!r} of {head['head']} is not the input that softlab has")


def _numbers(entry: Mapping[str, Any]) -> None:
    for head in entry["heads"]:
        for sample in head["samples"]:
            where = f"sample {sample['sample']} of {head['head']}"
            error, uniform, skill = (
                _number(sample[x]) for x in ("output_error", "uniform_error", "skill")
            )
            if math.isnan(error) or error < 0 or math.isnan(uniform) or uniform < 0:
                _refused(
                    f"{where}: an error is {sample['output_error']!r}, no number of at least 0"
                )
            wanted = 1 - error / max(min(1.0, uniform), 2.3e-16)
            if not (skill == wanted or abs(skill - wanted) <= 1e-9 * max(1.0, abs(wanted))):
                _refused(
                    f"{where}: the skill is {skill:.6g}, and errors of {error:.6g} and "
                    f"{uniform:.6g} give {wanted:.6g}"
                )
            share = sample["share"]
            if share is not None and not _number(share) > 0 and entry["method"] != "Uniform":
                _refused(f"{where}: the work is {share!r}; a method does some")


def _laws(entry: Mapping[str, Any]) -> None:
    found, known = entry["laws"], {law.name for law in OPERATOR_LAWS}
    if not {"asked", "held", "broken", "late"} <= set(found):
        _refused("its laws lack one of asked, held, broken, late")
    named = [*found["held"], *found["broken"], *found["late"]]
    if strange := [name for name in named if name not in known and name != "subject"]:
        _refused(f"there is no law {strange[0]!r}")
    if len({*named}) < len(named):
        _refused("a law has two verdicts")
    own = all(_made(x["operator"]) is not None for y in entry["heads"] for x in y["samples"])
    if not found["asked"] and not own:
        _refused("its laws were not asked; leave out --laws none")


def _again(entry: Mapping[str, Any]) -> None:
    """What softlab can measure itself must be so here."""
    aim = TARGETS.get(entry["target"])
    for head in entry["heads"]:
        if head["head"] not in recorded_names() or aim is None:
            continue
        for sample in head["samples"]:
            reference = _reference(entry["target"], head["head"], sample["sample"])
            where = f"sample {sample['sample']} of {head['head']}"
            _same(f"{where}: the uniform error", sample["uniform_error"], reference.uniform_error)
            op = _made(sample["operator"])
            if op is None or op.target != aim:
                continue
            try:
                qkv = (reference.q.float(), reference.k.float(), reference.v.float())
                out = called(op, *qkv)
            except Exception as error:
                _refused(f"{where}: {sample['operator']} raises here: {error}")
            error_ = measures.relative(out.double() - reference.output, reference.output)
            _same(f"{where}: the error of {sample['operator']}", sample["output_error"], error_)


def _same(what: str, said: Any, here: float) -> None:
    if not math.isclose(_number(said), here, rel_tol=AGREES, abs_tol=ROUNDED):
        _refused(f"{what} is {here:.4g} here, and the file says {said}")


def _number(x: Any) -> float:
    """A number of a result file, where infinity is a word."""
    if x == "inf":
        return math.inf
    return float(x) if is_number(x) else math.nan


def _said(x: Any) -> Any:
    if isinstance(x, float) and math.isinf(x):
        return "inf" if x > 0 else "-inf"
    return x


@cache
def _made(name: str) -> Any:
    """The operator of softlab's own that a name evaluates to; None where it is no such."""
    try:
        op = evaluated(name, offered())
    except Exception:  # a stranger's word
        return None
    return op if type(op).__module__.startswith(operators.__name__) else None


@cache
def _digests(name: str) -> tuple[str, ...]:
    (head,) = heads([name])
    return tuple(head.digest(i) for i in range(head.samples))


@cache
def _reference(target: str, name: str, sample: int) -> measures.Reference:
    (head,) = heads([name])
    aim = TARGETS[target]
    head = tied(head) if target == "Gaussian" else head
    return measures.Reference(aim, *head.draw(sample))


def merged(paths: list[Path], tell: Callable[[str], None]) -> tuple[list[dict[str, Any]], int]:
    """The entries of files that hold, and how many do not; ``tell`` is given a sentence for each.

    Of two of one method, target, setting and heads the one that was measured last stays.
    """
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    refused = 0
    for path in paths:
        try:
            entry = read(path)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            refused += 1
            tell(f"{path} is refused: {error}.")
            continue
        key = (entry["method"], entry["target"], entry["budget"], entry["code"],
               tuple(head["head"] for head in entry["heads"]))  # fmt: skip
        if key not in kept or kept[key]["finished"] < entry["finished"]:
            kept[key] = entry | {"file": path.name}
    return list(kept.values()), refused
