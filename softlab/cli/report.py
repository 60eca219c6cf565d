"""``softlab report``: the tables as a document."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softlab.cli.speech import fail, say

EXAMPLES = "Example:  softlab report reports"


def report(
    folder: Annotated[Path, typer.Argument(help="Where the studies' folders are.")] = Path(
        "reports"
    ),
) -> None:
    """Set FOLDER/report.pdf from the tables under FOLDER."""
    from softlab.report import report as set_report

    try:
        path = set_report(folder)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        fail(str(error))
    except OSError as error:
        fail(str(error), code=1)
    say(str(path))
