"""``python -m softlab``: the command line, under the interpreter that is asked."""

from softlab.cli import app

if __name__ == "__main__":  # a worker process imports this module, too
    app(prog_name="softlab")
