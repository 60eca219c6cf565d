"""``make matrix``: the versions that softlab says it supports, each installed and tried.

One environment at a time is made, a part of the suite run in it, and it is deleted. What came of it
goes into the table of ``docs/supported.md``; rows that were not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "supported.md"
BEGIN, END = "<!-- make matrix -->", "<!-- end -->"
SHOWN = ("torch", "numpy", "scipy", "pandas", "matplotlib", "typer")
TESTS = (
    *("test_twins", "test_capture", "test_substitute", "test_figures", "test_report", "test_cli"),
    *("test_habits", "test_notebook", "test_study"),
)
"""The part of the suite that every environment runs: operators and their gradients against twins,
what reaches into torch, what draws and sets, what reads the command line, and studies."""


QUIET = ("-W", "default::DeprecationWarning", "-W", "default::FutureWarning")
"""Old libraries announce what became of them long ago; all other warnings are errors."""


class Environment(NamedTuple):
    """A Python, and what is asked of its libraries: nothing, where the newest are taken.

    ``pinned``: they are those of ``constraints.txt``, which the whole suite runs with.
    """

    python: str
    libraries: tuple[str, ...] = ()
    pinned: bool = False

    @property
    def name(self) -> str:
        """The first two cells of its row."""
        said = "`constraints.txt`" if self.pinned else ", ".join(self.libraries) or "newest"
        return f"| {self.python} | {said} |"


def environments(project: Mapping[str, object]) -> dict[str, Environment]:
    """What is tried, by the word that asks for it; the lowest bounds are those of the project."""
    bounds = {}
    for line in project["dependencies"]:  # type: ignore[attr-defined]
        name, low = re.match(r"([\w-]+)>=([\d.]+)", line).groups()  # type: ignore[union-attr]
        bounds[name] = f"{name}=={low}"
    return {
        "lowest": Environment("3.11", tuple(bounds.values())),
        "pinned": Environment("3.11", pinned=True),
        # The first pandas that knows numpy 2.
        "3.12": Environment("3.12", (bounds["torch"], "pandas==2.2.2", "numpy>=2")),
        "3.13": Environment("3.13"),
        "3.14": Environment("3.14"),
    }


def main() -> None:
    """Try each environment that is asked for, and write the table."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = environments(project)
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all")
    words.add_argument("--keep", type=Path, help="where environments stay, and are used again")
    words.add_argument("--workers", default="2", help="processes that run the tests")
    given = words.parse_args()
    failed = False
    for name in given.names or known:
        if name not in known:
            sys.exit(f"there is no environment {name!r}; there are {', '.join(known)}")
        row, works = tried(name, known[name], project, given.workers, given.keep)
        failed |= not works
        print(row, flush=True)
        write(row)
    sys.exit(failed)


def tried(
    name: str, one: Environment, project: Mapping[str, object], workers: str, keep: Path | None
) -> tuple[str, bool]:
    """The row of an environment, and whether nothing failed in it."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    empty = " | ".join("" for _ in SHOWN)
    interpreter = found(one.python)
    if interpreter is None:
        return f"{one.name} {empty} | not tried: no Python {one.python} was there | {today} |", True
    with tempfile.TemporaryDirectory(prefix="softlab-matrix-") as scratch:
        home = (keep or Path(scratch)).absolute() / name
        python = str(home / ("Scripts" if os.name == "nt" else "bin") / "python")
        if not Path(python).exists():
            called([interpreter, "-m", "venv", str(home)])
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            pip += ["-c", "constraints.txt"] if one.pinned else []
            torch = next((x for x in one.libraries if x.startswith("torch")), "torch>=2.8")
            called([*pip, torch])
            called([*pip, *one.libraries, f"{ROOT}[report,laws]", *tools(project)])
        listed = json.loads(called([python, "-m", "pip", "list", "--format", "json"]))
        versions = {x["name"].lower(): x["version"].partition("+")[0] for x in listed}
        came, works = ran(python, Path(scratch), workers)
    cells = " | ".join(versions[x] for x in SHOWN)
    return f"{one.name} {cells} | {came} | {today} |", works


def tools(project: Mapping[str, object]) -> Iterator[str]:
    """What the tests need beside softlab: the extra dev without what only looks at the code.

    Nor Triton, which no test of these needs: an older torch has one of its own, and no other.
    """
    extras: Mapping[str, Sequence[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    left = "coverage", "mypy", "ruff", "triton"
    yield from (x for x in extras["dev"] if not x.startswith(left))


def ran(python: str, scratch: Path, workers: str) -> tuple[str, bool]:
    """What the chosen tests came to, in words."""
    files = [f"tests/{name}.py" for name in TESTS]
    start = time.monotonic()
    ended = subprocess.run(
        [python, "-m", "pytest", "-n", workers, "-p", "no:cacheprovider", "--tb=short", *QUIET,
         *files],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "SOFTLAB_CACHE": str(scratch)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    taken = time.monotonic() - start
    counts = re.findall(r"(\d+) (passed|failed|errors?)", ended.stdout.strip().splitlines()[-1])
    if ended.returncode:
        print(ended.stdout, flush=True)
    came = ", ".join(f"{number} {word}" for number, word in counts) or "no test ran"
    return f"{came} in {taken:.0f} s", ended.returncode == 0


def found(version: str) -> str | None:
    """An interpreter of that version: on the path, or among those of pyenv."""
    homes = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in (shutil.which(f"python{version}"), *map(str, homes), sys.executable):
        if candidate is None:
            continue
        asked = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        ended = subprocess.run(
            [candidate, "-c", asked], capture_output=True, text=True, check=False
        )
        if ended.stdout.strip() == version:
            return candidate
    return None


def write(row: str) -> None:
    """Put a row into the table, in the place of the one that it renews."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    head, rows = table.strip().splitlines()[:2], table.strip().splitlines()[2:]
    first = [" | ".join(x.split(" | ")[:2]) for x in (row, *rows)]
    rows = [x for x, name in zip(rows, first[1:], strict=True) if name != first[0]]
    rows = sorted([*rows, row], key=lambda x: x.split(" | ")[:2])
    said = re.sub(
        r"Tried on .*\.", f"Tried on {platform.system()} {platform.machine()}.", before, count=1
    )
    text = "\n".join([BEGIN, *head, *rows, END])
    PAGE.write_text(f"{said}{text}{after}", encoding="utf-8")


def called(command: Sequence[str]) -> str:
    """What a command prints; it ends this one where it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if ended.returncode:
        sys.exit(f"$ {' '.join(command)}\n{ended.stdout}\n{ended.stderr}")
    return ended.stdout


if __name__ == "__main__":
    main()
