"""The pytest plugin of softlab: ``pytest --laws package.module:object`` asks every law.

It stands beside the package and imports it late, so that a run without ``--laws`` waits for no
torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--laws`` and ``--law-examples``."""
    group = parser.getgroup("softlab", "laws of attention operators and pseudo-inverses")
    group.addoption(
        "--laws",
        action="append",
        default=[],
        metavar="SPEC",
        help="an operator, solver or callable to put under softlab's laws, each law a test: "
        "package.module:object or path/file.py:object; again for more",
    )
    group.addoption(
        "--law-examples", type=int, default=5, metavar="N", help="seeds of each law (5)"
    )


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for each law of each subject."""
    for spec in config.getoption("--laws"):
        items.extend(_tests(session, spec, config.getoption("--law-examples")))


def _tests(session: pytest.Session, spec: str, examples: int) -> Iterator[pytest.Item]:
    from softlab import laws

    try:
        subject = laws.load(spec)
    except ValueError as error:
        msg = f"--laws {spec}: {error}"
        raise pytest.UsageError(msg) from None
    for law in laws.suite(subject):
        yield LawItem.from_parent(
            session, name=f"{spec}[{law.name}]", subject=subject, law=law, examples=examples
        )


class LawItem(pytest.Item):
    """One law of one subject."""

    def __init__(self, *, subject: Any, law: Any, examples: int, **rest: Any) -> None:
        super().__init__(**rest)
        self.subject, self.law, self.examples = subject, law, examples

    def runtest(self) -> None:
        """Examine the law; a law that does not apply is skipped."""
        from softlab import laws

        spec = self.name.partition("[")[0]
        (found,) = laws.examine(
            self.subject, only=self.law.name, examples=self.examples, name=f"laws.load({spec!r})"
        )
        if found.verdict is laws.Verdict.SKIPPED:
            pytest.skip(found.detail)
        if found.verdict is laws.Verdict.FAILS:
            lines = (found.statement, found.detail, found.counterexample, found.reproduce)
            pytest.fail("\n".join(filter(None, lines)), pytrace=False)

    def reportinfo(self) -> tuple[str, None, str]:
        """Where a report files it: under its own name."""
        return self.name.partition("[")[0], None, self.name
