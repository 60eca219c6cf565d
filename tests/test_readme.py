"""What the README shows, is there."""

import re
from pathlib import Path

import blocks

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_its_code_prints_what_it_says():
    ran = list(blocks.run(README, "README.md"))
    assert len(ran) == 1
    for one in ran:
        assert blocks.same(one.printed, one.said), one.printed


def test_it_is_a_page():
    assert len(README.splitlines()) <= 100


def test_its_links_lead_to_files():
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    assert len(links) > 15
    for link in links:
        assert link.startswith("https://") or (ROOT / link.partition("#")[0]).is_file(), link


def test_commands_exist():
    from softlab.cli import app

    names = "run|report|check|compare|board|list|fetch|substitute"
    shown = set(re.findall(rf"softlab ({names})\b", README))
    known = {c.name or c.callback.__name__ for c in app.registered_commands}
    assert shown
    assert shown <= known


def test_make_targets_exist_and_help_lists_them():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):(?!=)", makefile, flags=re.MULTILINE))
    listed = set(re.findall(r"^([a-z-]+):.*## \S", makefile, flags=re.MULTILINE))
    assert targets == listed
    phony = re.findall(r"^\.PHONY: (.*)", makefile, flags=re.MULTILINE)
    assert targets == {*" ".join(phony).split()}
    pages = [README, *(path.read_text() for path in (ROOT / "docs").glob("[!_]*/*.md"))]
    named = {x for page in pages for x in re.findall(r"^make ([a-z-]+)", page, flags=re.MULTILINE)}
    named |= {x for page in pages for x in re.findall(r"`make ([a-z-]+)", page)}
    assert {"install", "report", "help", "fidelity"} <= named <= targets
