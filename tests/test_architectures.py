"""A dozen of the architectures of ``make coverage``, and that its table would tell a fault."""

import importlib.util
import warnings
from pathlib import Path

import pytest

from softlab.capture import flow
from softlab.capture.interception import Watch

TOOL = Path(__file__).parents[1] / "tools" / "architectures.py"


def loaded():
    spec = importlib.util.spec_from_file_location("architectures", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOLS = loaded()
PLAIN = dict(TOOLS.of_torch())
DOZEN = (
    *("bert eager", "modernbert sdpa", "llama eager", "mistral sdpa", "gpt_oss eager"),
    *(
        "bloom eager",
        "gptj eager",
        "t5 eager",
        "bart sdpa",
        "vit eager",
        "swin sdpa",
        "xlnet eager",
    ),
)


def row(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not seen
        found = TOOLS.row(case)
    wrong = {k: x for k, x in found.items() if any(y in x for y in ("WRONG", "FAILS", "CHANGES"))}
    assert not wrong
    return found


@pytest.mark.parametrize("name", PLAIN)
def test_torchs_modules_and_plain_code(name):
    found = row(PLAIN[name]())
    seen = name.split(", ")[-1] not in {"exp and sum", "tanh of scores"}
    assert found["Softmax()"] == ("right" if seen else "refused: nothing seen")


@pytest.mark.parametrize("name", DOZEN)
def test_models_of_transformers(name):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    transformers.logging.set_verbosity_error()
    found = row(TOOLS.of_transformers(*name.split()))
    assert found["Softmax()"] == "right"
    if name == "gpt_oss eager":
        assert "refused: sinks" in found.values()


def test_a_forgotten_step_is_refused_and_without_the_check_of_layers_a_wrong_cell(monkeypatch):
    monkeypatch.setitem(flow.RULES, "div", lambda of, args, _, __: of.of(args[0]))
    make = PLAIN["plain code, matmul"]
    assert row(make())["Softmax()"] == "refused: nothing seen"
    monkeypatch.setattr(Watch, "differs", lambda *_: False)
    with pytest.raises(AssertionError, match="WRONG"):
        row(make())
