"""The site describes all that is public, its code runs, its links lead somewhere, it searches.

``make docs`` builds it; what asks the built site is skipped where it is not built.
"""

import functools
import html
import http.server
import importlib
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import urllib.parse
from pathlib import Path

import blocks
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILT = DOCS / "_build" / "html"
MADE = {"api", "catalogue", "_build"}
WRITTEN = [
    *(x for x in sorted(DOCS.rglob("*.md")) if not MADE & set(x.relative_to(DOCS).parts)),
    ROOT / "CONTRIBUTING.md",
]

PROMISED = """
softlab: as_matrix Dims Cost Operator Traits
softlab.kernels: Gaussian Exponential
softlab.operators: Softmax GaussianAttention Soft Nystromformer Skyformer RPCholesky Performer
    RandomFourier Linformer LinearAttention Taylor CosFormer Local BigBird TopK Reformer Clustered
    HyperAttention KDEFormer Scatterbrain BandLowRank Uniform TruncatedSVD ColumnSample
softlab.pinv: SVD Cholesky NewtonRaphson Hyperpower NystromformerCubic Chebyshev Ridge Purified
    ImplicitGradient PinvResult
softlab.landmarks: SegmentMeans Strided UniformRandom KMeans FarthestPoint RPCholeskyPivots
    LeverageScores GridPool GridConv
softlab.inputs: Recorded Tied recorded_names
softlab.measures: output_error Reference
softlab.convergence: predicted_steps trace
softlab.gradients: bias
softlab.spectra: spectrum effective_rank
softlab.estimators: spectral_norm hutchinson
softlab.laws: check examine parametrize BrokenLawError
softlab.capture: record substitute
softlab.study: Study run
softlab.figures: Lines
softlab.report: report read
softlab.models: Pyramid soft_tiny
"""
"""What users import, by module."""


@pytest.fixture(scope="module")
def generated():
    """The module that makes pages of the code."""
    pytest.importorskip("sphinx")
    return importlib.import_module("generated")


def promised():
    pairs = re.findall(r"^([\w.]+): ((?:.+\n(?: +.+\n)*))", PROMISED, flags=re.MULTILINE)
    return [(module, name) for module, names in pairs for name in names.split()]


def test_every_public_name_has_an_entry(generated):
    described = set()
    for modules in generated.API.values():
        for package, inner in modules.items():
            for module in (package, *(f"{package}.{x}" for x in inner.split())):
                offered = generated.public(importlib.import_module(module))
                described |= {id(held) for _, held in offered}
    assert len(promised()) > 60
    for module, name in promised():
        assert id(getattr(importlib.import_module(module), name)) in described, f"{module}.{name}"


def test_every_operator_and_solver_has_a_page(generated):
    from zoo import SOLVERS

    from softlab import operators

    pages = {name for name, _ in generated.pages()}
    for name in operators.__all__:
        assert f"catalogue/operators/{name}" in pages
    for name in {type(solver).__name__ for solver in SOLVERS}:
        assert f"catalogue/solvers/{name}" in pages


@pytest.mark.parametrize("kind", ["operators", "solvers"])
def test_every_claim_is_explained_and_names_the_laws_that_hold_it(generated, kind):
    links = re.compile(r"\(/catalogue/laws.md#([a-z-]+)\)")
    known = set(re.findall(r"^\(([a-z-]+)\)=$", "\n".join(generated.law_page()), re.MULTILINE))
    seen = set()
    for name, part in generated.parts(kind).items():
        made = generated.example(name, part)
        rows = generated.claims(made, kind).splitlines()[2:]
        for row in rows:
            claim, meaning, held = (x.strip() for x in row[2:-2].split(" | "))
            assert meaning, f"{made!r}: {claim}"
            assert set(links.findall(held)) <= known
            name = claim.split("`")[1]
            assert links.findall(held) or name in {"implicit", "growth", "products"}, (
                f"{made!r}: {claim}"
            )
            seen.add(name)
    assert len(seen) > (20 if kind == "operators" else 5)


def test_a_law_is_asked_because_of_a_claim(generated):
    from softlab.operators import Local, Uniform
    from softlab.pinv import NewtonRaphson

    held = generated.held_by(Local(window=8), "row_stochastic", "operators")
    assert "[row-stochastic]" in held
    assert "[causal]" not in held
    assert "excuses from [answers]" in generated.held_by(Uniform(), "blind", "operators")
    assert "[growth]" in generated.held_by(NewtonRaphson(20), "growth", "solvers")


def test_the_list_of_claims_has_every_operator(generated):
    from softlab import operators

    text = "\n".join(generated.contents("operators"))
    for name in operators.__all__:
        assert f"| `{name}(" in text


def test_a_page_of_the_catalogue_has_all_its_parts(generated, tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "SIZES", (8, 16))
    assert len(generated.compared("Nystromformer")) == 2
    monkeypatch.setattr(generated, "DOCS", tmp_path)
    monkeypatch.setattr(generated, "compared", lambda _: [["`it`", "equal"]])
    text = "\n".join(generated.own_page("KDEFormer", generated.operators.KDEFormer, "operators"))
    for heading in ("Fields", "Claims", "Cost", "Error against work", "Source", "Methods"):
        assert f"\n## {heading}\n" in text
    assert "[row-stochastic](/catalogue/laws.md#operator-row-stochastic)" in text
    assert "| `block` | an integer of at least 1 | `64` |" in text
    assert "That code draws from" in text.partition("## Beside published code")[2]
    assert "arXiv 2302.02451](https://arxiv.org/abs/2302.02451)" in text.partition("## Source")[2]
    drawn = (tmp_path / "catalogue" / "operators" / "KDEFormer.svg").read_bytes()
    list(generated.own_page("KDEFormer", generated.operators.KDEFormer, "operators"))
    assert (tmp_path / "catalogue" / "operators" / "KDEFormer.svg").read_bytes() == drawn


def test_docstrings_become_markup_without_losing_a_letter(generated):
    prose = sys.modules["prose"]
    assert prose.escaped("|A|_1 <= 2 * x_ with ``a | b*`` of arXiv 2110.11945") == (
        r"\|A\|_1 <= 2 \* x\_ with ``a | b*`` of "
        "`arXiv 2110.11945 <https://arxiv.org/abs/2110.11945>`__"
    )
    made = prose.as_rest(["It is", "", "    a * b", "", "and |c|.", "", "Args:", "    x: Of *it*."])
    assert made == [
        *("It is", "", "::", "", "    a * b", "", r"and \|c\|.", "", "Args:"),
        r"    x: Of \*it\*.",
    ]


def test_a_signature_says_types_and_the_table_of_fields_says_ranges(generated):
    from softlab.operators import Soft

    def call(rank, width, by): ...

    by = "Annotated[str, OneOf(*('a', 'b'))]"
    call.__annotations__ = {"rank": "Size", "width": "Bandwidth | None", "by": by}
    sys.modules["prose"].unranged(None, call, True)
    assert call.__annotations__ == {"rank": "int", "width": "float | None", "by": "str"}
    assert "| `rank` | an integer of at least 1 | needed |" in generated.fields_of(Soft)


@functools.cache
def fresh():
    """Whether the site was built whole, and after the last change of all that it is made of."""
    done = BUILT / "searchindex.js"  # which a build writes last
    if not done.exists():
        return False
    sources = [x for folder in (DOCS, ROOT / "softlab") for x in folder.rglob("*") if x.is_file()]
    sources += [ROOT / "constraints.txt", *ROOT.glob("C*.md"), ROOT / "SECURITY.md"]
    apart = {"_build", "__pycache__"}
    newest = max(x.stat().st_mtime for x in sources if not apart & {*x.parts})
    return newest < done.stat().st_mtime


def blocks_of(page, text):
    """The blocks of a page after they ran: just now for the site, or here."""
    name = page.relative_to(DOCS) if DOCS in page.parents else Path(page.name)
    kept = DOCS / "_build" / "ran" / name.with_suffix(".json")
    if fresh() and kept.exists() and kept.stat().st_mtime > page.stat().st_mtime:
        return blocks.recorded(kept)
    return blocks.run(text, page.name)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda x: x.relative_to(ROOT).as_posix())
def test_python_blocks_run_in_order_and_print_what_the_page_says(page, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    if not blocks.BLOCK.search(text):
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    ran = list(blocks_of(page, text))
    assert len(ran) == len(blocks.BLOCK.findall(text))
    for one in ran:
        assert one.said is not None or not one.printed, f"not on the page: {one.printed}"
        assert blocks.same(one.printed, one.said or ""), one.printed
        assert (one.figure is not None) == bool(one.name), one.code


def test_numbers_on_a_page_are_right_to_their_last_digit():
    assert blocks.same("error 0.37, 3 of 6", "error  0.37, 3 of 6\n")
    assert blocks.same("error 0.37, residual 3e-14", "error 0.38, residual 2e-15")
    assert not blocks.same("error 0.37", "error 0.39")
    assert not blocks.same("3 of 6", "4 of 6")
    assert not blocks.same("error 0.37", "skill 0.37")
    assert not blocks.same("8.1e-03", "1.2e-02")


def test_the_packages_compared_are_those_of_the_extra_at_the_versions_tested():
    text = (DOCS / "guide" / "published_packages.md").read_text().partition("## What was found")[2]
    shown = set(re.findall(r"^\| `([\w-]+)` ([\d.]+)[,| ]", text, flags=re.MULTILINE))
    pins = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["fidelity"]
    named = {re.match(r"[\w-]+", line)[0] for line in extra if "python_version" not in line}
    assert {(name, pins[name]) for name in named} == shown
    code = "".join(path.read_text() for path in (ROOT / "tests" / "fidelity").glob("test_*.py"))
    for name in named:
        assert f'published("{name.replace("-", "_")}' in code


def test_links_between_written_pages_lead_somewhere(generated):
    made = {name for name, _ in generated.pages()}
    for page in WRITTEN:
        for link in re.findall(r"\]\(([\w./-]+\.md)(?:#[\w-]+)?\)", page.read_text("utf-8")):
            there = (page.parent / link).resolve()
            known = there.is_file() or there.relative_to(DOCS).with_suffix("").as_posix() in made
            assert known, f"{page.name}: {link}"


def test_every_written_page_is_in_the_menu():
    menu = set((DOCS / "index.md").read_text("utf-8").split())
    names = {x.relative_to(DOCS).with_suffix("").as_posix() for x in WRITTEN if DOCS in x.parents}
    assert names - {"index"} <= menu


# The built site ---------------------------------------------------------------------------------

built = pytest.mark.skipif(not (BUILT / "index.html").exists(), reason="run make docs first")


@functools.cache
def anchors(path):
    return set(re.findall(r'\sid="([^"]+)"', path.read_text(encoding="utf-8")))


@built
def test_no_internal_link_is_dead():
    dead = []
    for path in BUILT.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for link in set(re.findall(r'(?:href|src)="([^"]+)"', text)):
            parts = urllib.parse.urlsplit(html.unescape(link))
            if parts.scheme or parts.netloc:
                continue
            to = (path.parent / urllib.parse.unquote(parts.path)) if parts.path else path
            there = to.is_file() and (not parts.fragment or parts.fragment in anchors(to.resolve()))
            if not there and path.name not in {"search.html", "genindex.html"}:
                dead.append(f"{path.relative_to(BUILT)}: {link}")
    assert not dead


@built
def test_nothing_is_loaded_from_elsewhere():
    for path in BUILT.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', text), path


HARNESS = """<!doctype html><title>no</title><body><script>
const pages = PAGES, answers = {wide: [], errors: [], found: ""};
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const open = (at) => new Promise((done) => {
  const frame = document.createElement("iframe");
  frame.style = "width: 390px; height: 844px; border: 0";
  frame.onload = () => done(frame);
  frame.src = at;
  document.body.replaceChildren(frame);
});
(async () => {
  for (const page of pages) {
    const frame = await open("/" + page);
    const root = frame.contentDocument.documentElement;
    if (root.clientWidth !== 390 || root.scrollWidth > 390)
      answers.wide.push([page, root.clientWidth, root.scrollWidth]);
  }
  const frame = await open("/search.html?q=Soft");
  for (let i = 0; i < 100; i++) {
    await wait(100);
    const links = [...frame.contentDocument.querySelectorAll("#search-results a")];
    answers.found = links.map((x) => x.getAttribute("href")).join(" ");
    if (answers.found.includes("operators/Soft.html")) break;
  }
  document.body.textContent = JSON.stringify(answers);
  document.title = "yes";
})();
</script></body>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the built site, and the page that looks at it."""

    def __init__(self, *args, harness, folder, **kwargs):
        self.harness = harness
        super().__init__(*args, directory=str(folder), **kwargs)

    def do_GET(self):
        if self.path != "/harness":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.harness.encode())
        return None

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def site(tmp_path):
    """The site if it is as new as its sources, else a page or more of every kind, built of a copy.

    ``make test`` builds the whole site meanwhile: it is there long before these tests are reached.
    """
    pytest.importorskip("furo")
    if fresh():
        return BUILT
    clone, made = tmp_path / "clone", tmp_path / "site"
    hidden = shutil.ignore_patterns("_build", "api", "catalogue", "figures", "__pycache__")
    shutil.copytree(DOCS, clone / "docs", ignore=hidden)
    for name in ("softlab", "constraints.txt", *(x.name for x in ROOT.glob("C*")), "SECURITY.md"):
        (clone / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "sphinx", "-q", "-t", "small", clone / "docs", made]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return made


def test_pages_fit_a_phone_run_without_an_error_and_the_search_finds_soft(tmp_path, site):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium here")
    chosen = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    assert {"catalogue/operators/Soft.html", "start.html"} <= {*chosen}
    harness = HARNESS.replace("PAGES", json.dumps(chosen))
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, harness=harness, folder=site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1000",
        "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=120000",
        "--dump-dom", f"http://127.0.0.1:{server.server_address[1]}/harness",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    finally:
        server.shutdown()
        server.server_close()
    answers = json.loads(html.unescape(re.search(r"<body>(.*)</body>", done.stdout, re.S)[1]))
    assert answers["wide"] == []
    assert "catalogue/operators/Soft.html" in answers["found"]
    said = [x for x in done.stderr.splitlines() if "CONSOLE" in x]
    assert not [x for x in said if "rror" in x], said
