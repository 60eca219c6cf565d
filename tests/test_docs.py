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
import urllib.parse
from pathlib import Path

import pytest
from blocks import python_blocks, run_blocks

from softlab import laws
from softlab.core import Traits
from softlab.pinv import SolverTraits

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILT = DOCS / "_build" / "html"
WRITTEN = sorted(
    path
    for path in DOCS.rglob("*.md")
    if not {"api", "catalogue", "_build"} & set(path.relative_to(DOCS).parts)
)

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
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("generated")
    finally:
        sys.path.remove(str(DOCS))


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


@pytest.mark.parametrize(
    ("kind", "suite", "traits"),
    [("HELD", laws.OPERATOR_LAWS, Traits), ("SOLVERS_HELD", laws.SOLVER_LAWS, SolverTraits)],
    ids=["operators", "solvers"],
)
def test_every_claim_is_held_by_laws_that_exist_and_is_explained(generated, kind, suite, traits):
    held = getattr(generated, kind)
    assert set(held) == set(traits.__dataclass_fields__) == set(generated.meanings(traits))
    assert {name for names in held.values() for name in names} <= {law.name for law in suite}


def test_the_laws_shown_beside_a_claim_apply_to_who_makes_it(generated):
    known = {law.name: law for law in laws.OPERATOR_LAWS}
    made = [generated.example(*pair) for pair in generated.parts("operators").items()]
    for op in made:
        for claim, names in generated.HELD.items():
            if getattr(op.traits, claim) and claim not in {"blind", "seedless", "exact_at"}:
                assert any(known[name].applies(op) for name in names), f"{op!r}: {claim}"


def test_a_page_of_the_catalogue_has_all_its_parts(generated, tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "DOCS", tmp_path)
    monkeypatch.setattr(generated, "SIZES", (8, 16))
    monkeypatch.setattr(generated, "compared", lambda _: [["`it`", "equal"]])
    text = "\n".join(generated.own_page("KDEFormer", generated.operators.KDEFormer, "operators"))
    for heading in ("Fields", "Claims", "Cost", "Error against work", "Source", "Methods"):
        assert f"\n## {heading}\n" in text
    assert "[row-stochastic](/catalogue/laws.md#operator-row-stochastic)" in text
    assert "| `block` | `int` | `64` |" in text
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


@pytest.mark.parametrize("page", WRITTEN, ids=lambda x: x.relative_to(DOCS).as_posix())
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    if not python_blocks(text):
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    run_blocks(text, page.name)


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

    def __init__(self, *args, harness, **kwargs):
        self.harness = harness
        super().__init__(*args, directory=str(BUILT), **kwargs)

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


@built
def test_pages_fit_a_phone_run_without_an_error_and_the_search_finds_soft(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium here")
    pages = sorted(path.relative_to(BUILT).as_posix() for path in BUILT.rglob("*.html"))
    chosen = [x for x in pages if not x.startswith(("catalogue/operators/", "catalogue/solvers/"))]
    chosen += ["catalogue/operators/Soft.html", "catalogue/solvers/NewtonRaphson.html"]
    harness = HARNESS.replace("PAGES", json.dumps(chosen))
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, harness=harness)
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
