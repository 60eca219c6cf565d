"""Python blocks of Markdown, run in the order of their page, with what the ones before defined."""

import re


def run_blocks(text: str, name: str) -> dict[str, object]:
    """Run them; what they defined. ``name`` of the page, for tracebacks."""
    space: dict[str, object] = {}
    for block in python_blocks(text):
        exec(compile(block, name, "exec"), space)
    return space


def python_blocks(text: str) -> list[str]:
    """The blocks that begin with ```python."""
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
