"""``make dist``: wheel and sdist, equal to the last bit when built again, and tried as users would.

The wheel is installed into a bare environment outside the repository, where a list, laws, studies
and a report are asked for. The environment is deleted in the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUDY = '''
"""A study of a user's own."""

from softlab import measures
from softlab.inputs import Smooth
from softlab.operators import Nystromformer
from softlab.study import Study


def measure(rank, seed, *, dtype, device):
    q, k, v = Smooth(64, 8, length=4.0)(seed=seed, dtype=dtype, device=device)
    return measures.output_error(Nystromformer(rank=rank), q, k, v)


STUDY = Study("mine", "Does the error fall?", {"rank": [2, 8, 32], "seed": [0, 1]}, measure)
'''


def main() -> None:
    """Build, build again, check, and try the wheel."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--out", type=Path, default=ROOT / "dist", help="where the files go")
    words.add_argument("--constraints", default=str(ROOT / "constraints.txt"))
    words.add_argument("--build-alone", action="store_true", help="try nothing in an environment")
    given = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="softlab-dist-") as scratch:
        wheel = built(given.out, Path(scratch))
        files = sorted(map(str, given.out.iterdir()))
        called("-m", "twine", "check", "--strict", *files)
        called("-m", "check_wheel_contents", str(wheel))
        if not given.build_alone:
            tried(wheel, Path(scratch), given.constraints)


def built(out: Path, scratch: Path) -> Path:
    """The wheel, after wheel and sdist were built twice with equal bytes."""
    epoch = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    for old in out.glob("softlab_attention-*"):
        old.unlink()
    environment = os.environ | {"SOURCE_DATE_EPOCH": epoch}
    build = ("-m", "build", "--no-isolation", str(ROOT), "--outdir")
    called(*build, str(out), environment=environment)  # the wheel out of the sdist
    again = environment | {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    before = os.umask(0o077)
    try:
        called(*build, str(scratch / "again"), "--wheel", "--sdist", environment=again)
    finally:
        os.umask(before)
    both = [{path.name: digits(path) for path in folder.iterdir() if path.is_file()}
            for folder in (out, scratch / "again")]  # fmt: skip
    if both[0] != both[1]:
        sys.exit(f"a second build has other bytes: {both[0]} and {both[1]}")
    say(f"equal when built again: {json.dumps(both[0], indent=2)}")
    (wheel,) = out.glob("*.whl")
    return wheel


def tried(wheel: Path, scratch: Path, constraints: str) -> None:
    """Install the wheel where nothing else is, and use it from an empty folder."""
    home, here = scratch / "environment", scratch / "elsewhere"
    here.mkdir()
    venv.create(home, with_pip=True)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    environment = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
    environment["SOFTLAB_CACHE"] = str(scratch / "cache")

    def run(*words: str, program: Path = python) -> str:
        return called(*words, program=program, environment=environment, folder=here)

    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints)
    run(*pip, "torch>=2.8")  # alone and first, since a resolver would take a CUDA build
    run(*pip, f"{wheel}[report]")
    softlab = python.with_name("softlab")
    where = run("-c", "import softlab; print(softlab.__file__)").strip()
    if not Path(where).is_relative_to(home):
        sys.exit(f"softlab was imported from {where}, and not from the wheel")
    (here / "mine.py").write_text(STUDY)
    version = run("--version", program=softlab).split()[1]
    if f"-{version}-" not in wheel.name:
        sys.exit(f"softlab --version says {version}, and the wheel is {wheel.name}")
    run("-m", "softlab", "info", program=python)
    listed = json.loads(run("list", "--json", program=softlab))
    if "rank" not in {study["name"] for study in listed["studies"]}:
        sys.exit("the wheel brings no studies")
    run("check", "softlab.operators:TopK(k=4)", "--only", "row-stochastic", program=softlab)
    run("run", "mine.py", "--out", "results", program=softlab)
    run(
        *("run", "rank", "--quick", "--set", "seed=0", "--set", "op=Softmax", "--threads", "1"),
        *("--out", "results"), program=softlab,
    )  # fmt: skip
    run("report", "results", program=softlab)
    for name in ("report.pdf", "report.html", "mine/table.csv", "rank/table.csv"):
        if not (here / "results" / name).is_file():
            sys.exit(f"there is no {name}")
    say(f"works from {home}, in {here}")


def called(
    *words: str,
    program: Path | str = sys.executable,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """What a command prints; it ends this one where it fails."""
    say(f"$ {Path(program).name} {' '.join(words)}")
    ended = subprocess.run(
        [str(program), *words], env=environment, cwd=folder, stdout=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    if ended.returncode:
        sys.exit(f"{ended.stdout}\nended with {ended.returncode}")
    return ended.stdout


def digits(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def say(message: str) -> None:
    """Print at once, for a log."""
    print(message, flush=True)


if __name__ == "__main__":
    main()
