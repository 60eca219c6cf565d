"""The report as one page of HTML that needs nothing else: no network, no other file.

Method and glossary are the PDF's own Typst, as HTML with MathML. Figures are the SVG files beside
the tables, compressed with their points, and drawn once they come into view. Words from tables are
escaped, never read as markup.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Compile = Callable[..., bytes]
NUMBERED = b'#set math.equation(numbering: "(1)")\n'
"""What a Typst fragment needs before it, to be set alone."""


def html(data: Mapping[str, Any], files: Mapping[str, bytes], compiled: Compile) -> str:
    """The page of the report ``data``; ``files`` hold the Typst fragments and the figures.

    ``compiled`` is ``typst.compile``.
    """
    style, glossary = _set(files["glossary.typ"], compiled)
    parts = [
        *("<!DOCTYPE html>", '<html lang="en-GB">', "<head>", '<meta charset="utf-8">'),
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(data['title'])}</title>",
        f"<style>{style}{(HERE / 'page.css').read_text(encoding='utf-8')}</style>",
        *("</head>", "<body>", "<header>"),
        f"<h1>{escape(data['title'])}</h1>",
        f'<p class="soft">Measured by softlab: {escape(data["origin"])}</p>',
        *("</header>", _contents(data), "<main>"),
        *('<section id="findings">', "<h2>Findings</h2>"),
        *(f"<p><b>Not in this report:</b> {escape(said)}</p>" for said in data["refused"]),
        *(f'<p class="caveat">{escape(said)}</p>' for said in data["marks"]),
        *([f"<p><i>{escape(data['question'])}</i></p>"] if data["studies"][1:] else []),
        *([] if data["lead"] is None else _figure(data["lead"], files)),
        *(_headline(item) for item in data["findings"]),
        f'<p class="box">{escape(data["how"])}</p>',
        *("</section>", '<section id="asked">', "<h2>What was asked</h2>"),
        *(
            f"<p><b>{escape(study['title'])}.</b> <i>{escape(study['question'])}</i> "
            f"{escape(study['scope'])}</p>"
            for study in data["studies"]
        ),
        "<p>Bands in figures and small numbers in tables are the quartiles over the cases that "
        "share a point. Point at a mark for its case, or go from one to the next by the arrow "
        "keys; press a column's name to sort by it.</p>",
        "</section>",
        *(line for study in data["studies"] for line in _study(study, files, compiled)),
        *('<section id="glossary">', "<h2>Glossary</h2>", glossary, "</section>"),
        *('<section id="references">', "<h2>References</h2>"),
        "<p>The same as BibTeX is in references.bib beside this page.</p>",
        *(f"<p>{_reference(one)}</p>" for one in data["references"]),
        "</section>",
        *('<section id="environment">', "<h2>Environment</h2>"),
        *_environment(data["environment"]),
        *("</section>", "</main>", '<div id="tip" role="status" hidden></div>'),
        f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        *("</body>", "</html>", ""),
    ]
    return "\n".join(parts)


def _set(fragment: bytes, compiled: Compile) -> tuple[str, str]:
    """A Typst fragment as HTML: the style of its mathematics, and its body."""
    whole = compiled({"main.typ": NUMBERED + fragment}, format="html").decode()
    style = "".join(re.findall(r"<style>(.*?)</style>", whole, re.DOTALL))
    (body,) = re.findall(r"<body>(.*)</body>", whole, re.DOTALL)
    return style, body


def _contents(data: Mapping[str, Any]) -> str:
    studies = ((f"study-{study['name']}", study["title"]) for study in data["studies"])
    places = [
        *(("findings", "Findings"), ("asked", "What was asked"), *studies),
        *(("glossary", "Glossary"), ("references", "References"), ("environment", "Environment")),
    ]
    links = "".join(f'<li><a href="#{escape(at)}">{escape(to)}</a></li>' for at, to in places)
    return (
        '<nav aria-label="Contents"><button id="theme" type="button">light or dark</button>'
        '<label>Search <input id="search" type="search"></label>'
        '<span id="count" class="soft" role="status"></span>'
        f"{_choice('method', _of_marks(data, 'group'))}{_choice('input', _of_marks(data, 'panel'))}"
        f"<ol>{links}</ol></nav>"
    )


def _of_marks(data: Mapping[str, Any], what: str) -> list[str]:
    """The groups or the panels of all figures, each once."""
    figures = [item for study in data["studies"] for item in study["figures"]]
    figures += [] if data["lead"] is None else [data["lead"]]
    return sorted({mark[what] for item in figures for mark in item["marks"] if mark[what]})


def _reference(one: Mapping[str, str]) -> str:
    of = f' <span class="soft">{escape(one["of"])}</span>' if one["of"] else ""
    return f"{escape(one['text'])}{of}"


def _choice(name: str, words: list[str]) -> str:
    """What the reader follows through all figures."""
    if len(words) < 2:
        return ""
    options = "".join(f"<option>{escape(word)}</option>" for word in words)
    every = f'<option value="">every {name}</option>'
    return f'<label>Follow <select id="{name}">{every}{options}</select></label>'


def _headline(item: Mapping[str, Any]) -> str:
    text = escape(item["text"]).replace("{}", f"<b>{escape(item['value'])}</b>", 1)
    study = escape(item["study"])
    links = [f'<a href="#study-{study}">{study}</a>']
    links += [f'<a href="#{escape(item["rows"])}">rows</a>'] if item["rows"] else []
    said = [x for x in (item["interval"], item["mark"]) if x]
    rest = " · ".join([*map(escape, said), *links])
    return f'<p class="headline">{text} <span class="soft">{rest}</span></p>'


def _study(
    study: Mapping[str, Any], files: Mapping[str, bytes], compiled: Compile
) -> Iterator[str]:
    chapter = escape(study["chapter"])
    yield f'<section id="study-{escape(study["name"])}"><h2>{escape(study["title"])}</h2>'
    yield f"<p><i>{escape(study['question'])}</i></p>"
    if study["answer"]:
        yield f"<p><b>Answer.</b> {escape(study['answer'])} {escape(study['shown'])}</p>"
    figures, tables = (
        {
            opens: [x for x in study[kind] if x.get("opens", False) == opens]
            for opens in (True, False)
        }
        for kind in ("figures", "tables")
    )
    for item in figures[True]:
        yield from _figure(item, files)
    for item in tables[True]:
        yield from _table(item)
    if study["method"] is not None:
        yield f'<h3 id="method-{chapter}">How it was measured</h3>'
        yield f'<div class="method">{_set(files[study["method"]], compiled)[1]}</div>'
    else:
        yield f'<p>Measured as <a href="#method-{chapter}">above</a>.</p>'
    yield "<h3>Findings</h3>"
    if study["shown"] and not study["answer"]:
        yield f'<p class="soft">{escape(study["shown"])}</p>'
    yield from (f"<p>{escape(text)}</p>" for text in study["findings"])
    if study["notes"]:
        yield f'<p class="caveat"><b>Caveats.</b> {escape(" ".join(study["notes"]))}</p>'
    if figures[False]:
        yield "<h3>Figures</h3>"
    for item in figures[False]:
        yield from _figure(item, files)
    if tables[False]:
        yield "<h3>Tables</h3>"
    for item in tables[False]:
        yield from _table(item)
    yield "</section>"


def _figure(item: Mapping[str, Any], files: Mapping[str, bytes]) -> Iterator[str]:
    if item["file"] is None:
        yield f"<p><i>Not drawn: {escape(item['caption'])}</i></p>"
        return
    marks = [
        {
            "left": round(100 * mark["left"], 3),
            "top": round(100 * mark["top"], 3),
            "group": mark["group"],
            "panel": mark["panel"],
            "said": _said(mark, item),
        }
        for mark in item["marks"]
    ]
    held = json.dumps({"svg": files[item["file"]].decode(), "marks": marks}, ensure_ascii=False)
    # No time stands in the archive: equal figures make equal pages.
    packed = base64.b64encode(gzip.compress(held.encode(), 9, mtime=0)).decode()
    yield (
        f'<figure class="plot" id="{escape(item["id"])}"><div class="drawing">'
        "<noscript>Figures need a browser that runs scripts; each is a file beside its table, "
        'in the folder "figures" of its study.</noscript></div>'
        f'<script type="application/gzip">{packed}</script>'
        f"<figcaption><b>Figure {item['number']}.</b> {escape(item['caption'])}</figcaption>"
        f'<div class="tools">{_get("svg")}</div></figure>'
    )


def _get(kind: str) -> str:
    return f'<button type="button" data-get="{kind}">{kind.upper()}</button>'


def _said(mark: Mapping[str, Any], item: Mapping[str, Any]) -> list[str]:
    """What a point tells: its group and panel, where it is, and what its cases have in common."""
    lines = [" · ".join(filter(None, (mark["group"], mark["panel"])))]
    lines.append(f"{_plain(item['x'])}: {mark['x']:.4g}")
    spread = f" ({mark['q1']:.3g} to {mark['q3']:.3g})" if mark["q1"] != mark["q3"] else ""
    lines.append(f"{_plain(item['y'])}: {mark['y']:.4g}{spread}")
    lines.append(f"{mark['cases']} case{'s' if mark['cases'] != 1 else ''}")
    lines += [f"{axis} = {value}" for axis, value in mark["case"].items()]
    return lines


def _plain(label: str) -> str:
    r"""A label without the marks of mathematics: "condition number $\kappa$"."""
    return re.sub(r"[$\\{}]", "", label)


def _table(item: Mapping[str, Any]) -> Iterator[str]:
    yield f'<figure class="table" id="{escape(item["id"])}"><figcaption><b>Table '
    yield f"{item['number']}.</b> {escape(item['caption'])}</figcaption>"
    yield f'<div class="tools">{_get("csv")} {_get("tex")}</div>'
    label = escape(item["caption"][:80])
    yield f'<div class="wide" tabindex="0" role="region" aria-label="{label}">'
    yield '<table class="sortable">'
    if item["header"]:
        heads = "".join(
            f'<th scope="col"{_LEFT if i < item["left"] else ""}>'
            f'<button type="button">{escape(name)}</button></th>'
            for i, name in enumerate(item["header"])
        )
        yield f"<thead><tr>{heads}</tr></thead>"
    yield "<tbody>"
    first = ""
    for row in item["rows"]:
        # A table that is sorted tears its groups apart: each row keeps the group's name.
        first = row[0] if isinstance(row[0], str) and row[0] else first
        cells = "".join(_cell(cell, i < item["left"]) for i, cell in enumerate(row))
        yield f'<tr data-group="{escape(str(first))}">{cells}</tr>'
    yield "</tbody></table></div></figure>"


_LEFT = ' class="left"'


def _cell(cell: str | list[str], left: bool) -> str:
    kind = ' class="left"' if left else ""
    if isinstance(cell, str):
        return f"<td{kind}>{escape(cell)}</td>"
    return f"<td{kind}>{escape(cell[0])}<small>{escape(cell[1])}</small></td>"


def _environment(environment: Mapping[str, Any]) -> Iterator[str]:
    shared = {"header": [], "rows": environment["shared"], "left": 2}
    own = {name: environment[name] for name in ("header", "rows")} | {"left": 1}
    yield from _table(environment["captions"][0] | shared)
    yield from _table(environment["captions"][1] | own)
