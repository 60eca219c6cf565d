"""The command line, as tests call it."""

from typer.testing import CliRunner

from softlab.cli import app


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
