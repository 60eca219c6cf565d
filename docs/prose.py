"""How the site reads what softlab writes: docstrings, names in double backticks, formulas.

A docstring is prose for ``help``. Of reStructuredText it uses double backticks, lists, indented
blocks and sections such as ``Args:``; every other character means itself, so that |A|_1 is a norm
and no substitution.
"""

from __future__ import annotations

import ast
import functools
import re
import typing
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from furo.navigation import get_navigation_tree
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment.adapters.toctree import global_toctree_for_doc
from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.osutil import relative_uri

from softlab import validation

logger = logging.getLogger(__name__)

SECTIONS = Config(napoleon_google_docstring=True, napoleon_use_ivar=True)
SECTION = {"Args:", "Returns:", "Raises:", "Yields:"}
UNKNOWN = ((r"\\ldots", r"\\dots\b"), ("", r"\\[bB]igg?[lr]?(?![a-zA-Z])"))
"""What docutils calls otherwise, and sizes of brackets, which it does not know: they stay as large
as the line."""
ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")


def escaped(line: str) -> str:
    """The line with every character that reStructuredText would read as markup escaped.

    What stands between double backticks is kept, and a number of arXiv becomes a link.
    """
    parts = re.split(r"(``.+?``)", line)
    return "".join(x if x.startswith("``") else _plain(x) for x in parts)


def _plain(words: str) -> str:
    # A backslash that ends a literal block's "::", or a bullet's "* ", would change its meaning.
    words = re.sub(r"[\\|`]", r"\\\g<0>", words)
    words = re.sub(r"(?<!^)\*|\*(?! )", r"\\*", words)
    words = re.sub(r"_(?!\w)", r"\\_", words)
    return ARXIV.sub(r"`arXiv \1 <https://arxiv.org/abs/\1>`__", words)


def as_rest(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText, its indented blocks set as they are."""
    made: list[str] = []
    literal = False  # within a block that is set as it is
    for i, line in enumerate(lines):
        indented = line.startswith("    ")
        if line and not indented:
            literal = False
        if indented and not literal and i and not lines[i - 1].strip():
            before = next((x for x in reversed(made) if x.strip()), "")
            if not before.startswith((" ", "-", "*")) and not _titled(lines, i):
                if not before.endswith("::"):
                    made += ["::", ""]
                literal = True
        literal = literal or (indented and bool(made) and made[-1].endswith("::"))
        made.append(line if literal else escaped(line))
    return made


def _titled(lines: list[str], i: int) -> bool:
    """Whether line ``i`` belongs to a section such as ``Args:``."""
    above = [x for x in lines[:i] if x.strip() and not x.startswith(" ")]
    return bool(above) and above[-1].rstrip() in SECTION


def docstring(_: Sphinx, what: str, name: str, held: Any, options: Any, lines: list[str]) -> None:
    """Rewrite the lines of a docstring in place, as autodoc asks."""
    lines[:] = as_rest(lines)
    if SECTION & {line.strip() for line in lines}:
        lines[:] = GoogleDocstring(lines, SECTIONS, None, what, name, held, options).lines()


BASES = {
    name: typing.get_args(x)[0].__name__
    for name, x in vars(validation).items()
    if typing.get_origin(x) is typing.Annotated
}
"""The types of fields that are named for their range."""


class Unranged(ast.NodeTransformer):
    """An annotation without the range of its field."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """The type of ``Annotated[type, range]``."""
        if ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """The type that a name such as ``Size`` stands for."""
        return ast.Name(BASES.get(node.id, node.id))


def unranged(_: Sphinx, held: Any, *__: Any) -> None:
    """Leave the ranges of fields out of a signature; the catalogue's table of fields has them."""
    notes = getattr(held, "__annotations__", {})
    for name, note in notes.items():
        if isinstance(note, str):
            notes[name] = ast.unparse(Unranged().visit(ast.parse(note, mode="eval")))


class Linked(SphinxPostTransform):
    """A name in double backticks, or in Markdown's single ones, links to where it is described."""

    default_priority = 5

    def run(self, **_: Any) -> None:
        """Link the literals of one page."""
        known = names(self.env)
        for literal in list(self.document.findall(nodes.literal)):
            if any(isinstance(x, (nodes.reference, addnodes.pending_xref)) for x in up(literal)):
                continue
            if literal.get("classes") and "code" in literal["classes"]:
                continue
            found = known.get(re.sub(r"\(.*\)$", "", literal.astext(), flags=re.DOTALL))
            if found is None:
                continue
            page, anchor, title = found
            if any(anchor in x.get("ids", ()) for x in up(literal)):
                continue  # where it stands already
            link = nodes.reference("", "", internal=True, reftitle=title)
            link["refuri"] = self.app.builder.get_relative_uri(self.env.docname, page)
            link["refuri"] += f"#{anchor}"
            literal.replace_self(link)
            link += literal


def up(node: nodes.Node) -> Iterator[nodes.Element]:
    """The nodes that hold this one, the nearest first, and what they are described by."""
    while (node := node.parent) is not None:
        yield node
        if isinstance(node, addnodes.desc):
            yield from (x for x in node.children if isinstance(x, nodes.Element))


@functools.cache
def names(env: Any) -> dict[str, tuple[str, str, str]]:
    """Where each public name is described, by its full name and by its own where one has it."""
    objects = env.get_domain("py").objects
    found = {name: (x.docname, x.node_id, name) for name, x in objects.items() if not x.aliased}
    short: dict[str, list[str]] = {}
    for name, x in objects.items():
        if not x.aliased and x.objtype in {"class", "exception", "function"}:
            short.setdefault(name.rpartition(".")[2], []).append(name)
    for word, full in short.items():
        # An operator and an input share two names; a call such as Clustered(clusters=8) is rare.
        if len(full) == 1 and len(word) > 2 and not word.islower():
            found.setdefault(word, found[full[0]])
    return found


def inline_formula(writer: Any, node: nodes.math) -> None:
    """A formula in a line."""
    writer.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def block_formula(writer: Any, node: nodes.math_block) -> None:
    """A formula on a line of its own, with its number where it has one."""
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    anchor = f' id="{node["ids"][0]}"' if node.get("ids") else ""
    made = _mathml(node, as_block=True)
    writer.body.append(f'<div class="math"{anchor}>{number}{made}</div>\n')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, *, as_block: bool) -> str:
    tex = node.astext().strip()
    for known, word in UNKNOWN:
        tex = re.sub(word, known, tex)
    try:
        return tex2mathml(tex, as_block=as_block)
    except (MathError, RecursionError) as error:
        logger.warning("no formula: %s in %r", error, tex, location=node)
        return f"<code>{tex}</code>"


class Menu:
    """The theme's menu of all pages, with links and marks as one page needs them.

    Sphinx and the theme make it anew for every page, which took a quarter of the build.
    """

    def __init__(self, app: Sphinx) -> None:
        tree = global_toctree_for_doc(
            app.env, app.config.root_doc, app.builder, collapse=False, tags=app.tags,
            titles_only=True, maxdepth=-1, includehidden=True,
        )  # fmt: skip
        html = get_navigation_tree(app.builder.render_partial(tree)["fragment"])
        self.pieces = re.split(r"(<[^>]*>)", html)
        self.links: dict[str, list[int]] = {}
        self.above: dict[str, list[int]] = {}
        """The lists and the entries that hold a link, the outermost first."""
        held: list[int] = []
        for i, tag in enumerate(self.pieces):
            if tag.startswith(("<ul", "<li")):
                held.append(i)
            elif tag in {"</ul>", "</li>"}:
                held.pop()
            elif found := re.search(r'<a [^>]*href="([^"]*)"', tag):
                self.links.setdefault(found[1], []).append(i)
                self.above[found[1]] = held.copy()

    def of(self, uri: str) -> str:
        """The menu on the page at this address."""
        made = self.pieces.copy()
        for to, places in self.links.items():
            for i in places:
                mark = 'class="current ' if to == uri else 'class="'
                made[i] = f'<a {mark}reference internal" href="{relative_uri(uri, to) or "#"}">'
        above = self.above.get(uri, [])
        for i in above:
            marks = "current current-page" if i == above[-1] else "current"
            entry = made[i] != "<ul>"
            made[i] = made[i].replace('">', f' {marks}">') if entry else '<ul class="current">'
            if "has-children" in made[i]:  # unfolded, by the box that is the first in the entry
                box = next(j for j in range(i, len(made)) if made[j].startswith("<input "))
                made[box] = made[box].replace("<input ", '<input checked="" ')
        return "".join(made)


@functools.cache
def _menu(app: Sphinx) -> Menu:
    return Menu(app)


def without_menu(_: Sphinx, _page: str, _template: str, context: Any, _tree: Any) -> None:
    """Leave the theme no tree to make a menu of."""
    context["toctree"] = lambda **_: ""


def with_menu(app: Sphinx, page: str, _template: str, context: Any, _tree: Any) -> None:
    """Give a page its menu, where the theme would have put one."""
    context["furo_navigation_tree"] = _menu(app).of(app.builder.get_target_uri(page))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it."""
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-before-process-signature", unranged)
    app.add_post_transform(Linked)
    # Around the theme's own, at 500.
    app.connect("html-page-context", without_menu, 400)
    app.connect("html-page-context", with_menu, 600)
    app.add_html_math_renderer("mathml", (inline_formula, None), (block_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
