"""A user's own tensors are inputs, known by their numbers, and refused where they cannot be."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call
from safetensors.torch import save_file

from softlab.cli.overrides import given
from softlab.engine.identity import identity
from softlab.inputs import Input, Normal, Recorded, Saved, Tied, named
from softlab.matrices import Core, Geometric
from softlab.operators import Nystromformer, Soft
from softlab.study import Study


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tensors(*lead, n=12, d=4, e=None, seed=0, l=None):
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(*lead, n, d, generator=draw)
    k = torch.randn(*lead, l or n, d, generator=draw)
    return {"q": q, "k": k, "v": torch.randn(*lead, l or n, e or d, generator=draw)}


def write(file, held):
    if file.endswith(".npz"):
        np.savez(file, **{name: x.numpy() for name, x in held.items()})
    elif file.endswith(".npy"):
        np.save(file, torch.stack([*held.values()]).numpy())
    elif file.endswith(".safetensors"):
        save_file({name: x.contiguous() for name, x in held.items()}, file)
    else:
        torch.save(held, file)


@pytest.mark.parametrize("file", ["x.pt", "x.pth", "x.npy", "x.npz", "x.safetensors"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_every_format_and_shape_gives_its_cases(file, lead):
    held = tensors(*lead)
    write(file, held)
    saved = Saved(file)
    assert isinstance(saved, Input)
    assert (saved.n, saved.samples, saved.heads) == (12, max(1, int(np.prod(lead))), (1, *lead)[-1])
    for seed in range(saved.samples):
        for x, y in zip(saved(seed), held.values(), strict=True):
            assert torch.equal(x, y.reshape(-1, 12, 4)[seed])
    assert saved(0, dtype=torch.float64).q.dtype == torch.float64
    parts = saved.parts()
    assert len(parts) == saved.heads
    assert torch.equal(parts[-1](0).q, saved(saved.heads - 1).q)
    assert parts[-1].samples == (2 if len(lead) == 2 else 1)
    with pytest.raises(ValueError, match=f"holds {saved.samples} cases, so its seeds are 0 to"):
        saved(saved.samples)


def test_grouped_keys_another_length_and_width_and_a_mask():
    held = tensors(2, 4, n=5, l=7, e=3)
    held |= {name: held[name][:, :2] for name in "kv"}
    held["key_mask"] = torch.arange(7) < torch.tensor([[7], [4]])
    held["v"][1, :, 4:] = torch.nan  # padding holds anything
    torch.save(held, "x.pt")
    saved = Saved("x.pt")
    q, k, v = saved(7)  # the second sample, head 3, served by key head 1
    assert torch.equal(q, held["q"][1, 3])
    assert torch.equal(k, held["k"][1, 1, :4])
    assert v.shape == (4, 3)
    q, k, _ = saved.parts()[3](1)
    assert torch.equal(k, held["k"][1, 1, :4])


def test_what_would_change_the_attention_and_is_not_read_is_said():
    write("x.pt", tensors(2) | {"labels": torch.ones(2)})
    assert Saved("x.pt").samples == 2
    write("x.pt", tensors(2) | {"attn_mask": torch.ones(12, 12), "scale": torch.tensor(0.3)})
    with pytest.warns(
        UserWarning, match=r"x.pt holds attn_mask and scale, which is not read.*key_"
    ):
        Saved("x.pt")


def test_a_name_evaluates_and_changes_with_the_numbers_alone():
    held = tensors(2)
    write("x.pt", held)
    first = Saved("x.pt")
    assert eval(repr(first)) == first
    assert first.content in repr(first)
    write("y.npz", held)
    assert Saved("y.npz") == first
    assert identity(Saved("y.npz")).digits == identity(first).digits
    assert (named(first), named(Tied(first))) == (("x", True), ("x", True))
    assert named(Normal(3, 2)) == ("Normal", False)
    for name in "qkv":
        changed = held | {name: held[name].clone()}
        changed[name][1, 2, 3] += 1e-6
        write("x.pt", changed)  # the same size, at the same second
        assert Saved("x.pt") != first
        assert identity(Saved("x.pt")).digits != identity(first).digits
        with pytest.raises(ValueError, match=rf"x has changed: its content is .*{first.content}"):
            first(0)
        with pytest.raises(ValueError, match="has changed"):
            eval(repr(first))
        # The head that did not change is the same case.
        assert Saved("x.pt", head=0) == Saved("y.npz", head=0)
    write("x.pt", {name: x.half() for name, x in held.items()})
    assert Saved("x.pt") != first


def test_a_folder_of_layers_and_heads():
    for i in (10, 2):
        Path(f"f/layer{i}").mkdir(parents=True)
        write(f"f/layer{i}/head0.npz", tensors(n=i + 2, seed=i))
        write(f"f/layer{i}/head1.pt", tensors(2, n=i + 2, seed=i + 1))
    Path("f/last").mkdir()
    for name, x in tensors(n=9).items():
        np.save(f"f/last/{name}.npy", x.numpy())
    Path("f/README").write_text("mine")
    saved = Saved("f")
    assert saved.layers == (
        "last",
        "layer2.head0",
        "layer2.head1",
        "layer10.head0",
        "layer10.head1",
    )
    assert (saved.samples, saved.heads, saved.n) == (7, 7, 4)
    assert torch.equal(saved(1).q, tensors(n=4, seed=2)["q"])
    assert torch.equal(saved(6).q, tensors(2, n=12, seed=11)["q"][1])
    parts = saved.parts()
    assert [part.name for part in parts][:2] == ["f.last.head0", "f.layer2.head0.head0"]
    assert all(eval(repr(part)) == part for part in parts)
    assert Saved("f", layer="last").n == 9
    with pytest.raises(ValueError, match=r"no layer 'layr10.head1'; it has .* Did you mean"):
        Saved("f", layer="layr10.head1")
    with pytest.raises(ValueError, match="has 1 heads, 0 to 0; got head 2"):
        Saved("f", layer="last", head=2)


def spoilt(**changed):
    return tensors() | changed


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"q": torch.ones(3, 2)}, "has no k and no v; it holds q"),
        ({}, "has no q and no k and no v; it holds nothing"),
        ([torch.ones(3, 2)] * 2, "a list of 2; give q, k and v"),
        (torch.ones(3, 4), "one tensor of shape"),
        (torch.ones(2, 4, 3), "one tensor of shape"),
        (3, "holds int; save tensors"),
        (spoilt(v=torch.ones(11, 4)), "12 keys and 11 values"),
        (spoilt(k=torch.ones(12, 3)), "queries of width 4 and keys of width 3"),
        (spoilt(q=torch.ones(12)), "too few axes"),
        (spoilt(q=torch.ones(0, 4)), "is empty"),
        (spoilt(q=torch.ones(1, 12, 4)), "give each as"),
        (tensors(1, 1, 1), "give each as"),
        (tensors(3) | {"q": torch.ones(4, 12, 4)}, "4, 3 and 3 heads"),
        (tensors(3, 1) | {"q": torch.ones(4, 1, 12, 4)}, "4, 3 and 3 samples"),
        (spoilt(q=torch.ones(12, 4, dtype=torch.int64)), "q in x.pt holds int64"),
        (spoilt(k=torch.ones(12, 4, dtype=torch.complex64)), "k in x.pt holds complex64"),
        (spoilt(k=torch.full((12, 4), torch.nan)), "k in x.pt has 48 entries that are NaN or inf"),
        (spoilt(v=torch.full((12, 4), torch.inf)), "v in x.pt has 48 entries"),
        (spoilt(q=[1.0]), "q in x.pt is a list"),
        (spoilt(q=torch.eye(12).to_sparse()), "ragged or sparse"),
        (spoilt(query=torch.ones(12, 4)), "holds q twice"),
        (spoilt(key_mask=torch.ones(12)), "key_mask must be boolean"),
        (spoilt(key_mask=torch.zeros(12, dtype=torch.bool)), "leaves no key"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_no_attention_is_refused_in_a_sentence(held, said):
    torch.save(held, "x.pt")
    with pytest.raises(ValueError, match=said):
        Saved("x.pt")


class Bomb:
    def __reduce__(self):
        return Path.mkdir, (Path("ran"),)


def test_nothing_of_a_file_runs_and_what_is_damaged_is_said():
    torch.save({"q": Bomb()}, "x.pt")
    for name in ("x.pkl", "y.pt"):
        Path(name).write_bytes(pickle.dumps({"q": Bomb()}, protocol=2))
    np.save("x.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.savez("x.npz", q=np.array([Bomb()], dtype=object))
    for file in ("x.pt", "x.pkl", "y.pt", "x.npy", "x.npz"):
        with pytest.raises(ValueError, match=r"a pickle can run any code|holds an object of"):
            Saved(file)
    assert not Path("ran").exists()
    for end in ("pt", "npy", "npz", "safetensors"):
        for content in (b"", b"no such thing"):
            Path(f"z.{end}").write_bytes(content)
            with pytest.raises(ValueError, match=rf"z\.{end} (cannot be read|holds pickled)"):
                Saved(f"z.{end}")
    np.save("w.npy", np.array(["a", "b", "c"]))
    with pytest.raises(ValueError, match=r"w\.npy cannot be read"):
        Saved("w.npy")
    Path("empty").mkdir()
    for file, said in (("empty", "holds no tensors"), ("none.pt", "no file or folder none.pt")):
        with pytest.raises(ValueError, match=said):
            Saved(file)
    with pytest.raises(TypeError, match=r"Saved\.file is 3"):
        Saved(3)


# In the place of a study's inputs ----------------------------------------------------------------


def measure(x, seed):
    q, *_ = x(seed) if not isinstance(x, Core) else (x(seed),)
    return {"size": float(q.norm())}


def study(values, **more):
    return Study("own", "What?", {"x": values, "seed": [0, 1, 2]}, measure, **more)


def test_files_stand_where_inputs_stood():
    write("a.pt", tensors(2, 2))
    write("b.pt", tensors(n=9, seed=1))
    head, cross = Normal(8, 4), Recorded("minilm.layer0.head0")
    values = [Geometric(8, 10.0), head, Tied(cross), Core(Soft(4), Tied(head))]
    (found,), said = given([study(values, keep=lambda seed: seed != 1)], ["a.pt", "b.pt"])
    one = Saved("a.pt", head=0)
    assert found.axes["x"][:3] == [one, Tied(one), Core(Soft(4), Tied(one))]
    assert len(found.axes["x"]) == 9
    seeds = [(x["x"], x["seed"]) for x in found.cases() if isinstance(x["x"], Saved)]
    assert [seed for _, seed in seeds] == [0, 0, 0]
    assert said == ["own: axis x is 3 heads, 2 of 2 samples of each"]


def test_what_cannot_be_tied_is_not():
    write("a.pt", tensors(n=5, l=7))
    (found,), _ = given([study([Normal(8, 4), Tied(Normal(8, 4))])], ["a.pt"])
    assert found.axes["x"] == [Saved("a.pt", head=0)]
    with pytest.raises(ValueError, match="own takes inputs with tied queries and keys"):
        given([study([Core(Nystromformer(4), Tied(Normal(8, 4)))])], ["a.pt"])


STUDY = """
    from softlab.inputs import Normal
    from softlab.study import Study

    def measure(x, seed):
        return {"size": float(x(seed).q.norm())}

    STUDY = Study("own", "What?", {"x": [Normal(8, 4)], "seed": [0, 1]}, measure)
"""


def test_rows_are_those_of_the_numbers(tmp_path):
    (tmp_path / "own.py").write_text("\n".join(x[4:] for x in STUDY.splitlines()))
    write("a.pt", tensors(2, 2))
    command = ("run", "own.py", "--input", "a.pt", "--out", "out")
    result = call(*command)
    assert result.exit_code == 0, result.output
    assert "own: 4 rows" in result.stdout
    assert "(0 reused" in result.stdout
    assert "(4 reused" in call(*command).stdout
    write("b.npz", tensors(2, 2))
    assert "(4 reused" in call("run", "own.py", "--input", "b.npz", "--out", "out").stdout
    changed = tensors(2, 2)
    changed["q"][1, 0] *= 3
    write("a.pt", changed)
    assert "(2 reused" in call(*command).stdout  # those of the other head


def test_a_study_without_inputs_and_a_bad_file_are_refused(tmp_path):
    (tmp_path / "own.py").write_text("\n".join(x[4:] for x in STUDY.splitlines()))
    write("a.pt", tensors())
    result = call("run", "length", "--input", "a.pt")
    assert result.exit_code == 2
    assert "length has no axis of inputs" in result.stderr
    result = call("run", "own.py", "--input", "none.pt")
    assert result.exit_code == 2
    assert "there is no file or folder none.pt" in result.stderr


def test_every_study_of_heads_takes_files():
    write("a.pt", tensors(n=64, d=8))
    from softlab.study import defined_in

    for name in ("rank", "bandwidth", "budget", "frontier", "landmarks", "normalization"):
        (found, *_) = defined_in(name)
        (made,), _ = given([found], ["a.pt"])
        assert next(iter(made.cases(quick=True)))
    for name in ("convergence", "precision", "gradients"):
        (found, *_) = defined_in(name)
        (made,), _ = given([found], ["a.pt"])
        assert next(iter(made.cases()))
