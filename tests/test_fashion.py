"""Fetching Fashion-MNIST by a stand-in for apt: nothing is trusted without its checksum."""

import hashlib
import os

import pytest
from typer.testing import CliRunner

from softlab.cli import app
from softlab.datasets import fashion
from softlab.datasets.download import FetchError

UNPACK = """#!/bin/sh
mkdir -p "$3/usr/share/datasets/fashion-mnist"
for name in $NAMES; do printf '%s' "$CONTENT" > "$3/usr/share/datasets/fashion-mnist/$name"; done
"""


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Programs of the names of apt-get and dpkg-deb; every file of the package says the same."""
    home = tmp_path / "bin"
    home.mkdir()
    for name, text in (("apt-get", '#!/bin/sh\n: > "$2_1.deb"\n'), ("dpkg-deb", UNPACK)):
        (home / name).write_text(text)
        (home / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    monkeypatch.setenv("SOFTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(fashion.VARIABLE, raising=False)
    monkeypatch.setenv("NAMES", " ".join(fashion.SUMS))
    monkeypatch.setenv("CONTENT", "garments")
    sums = dict.fromkeys(fashion.SUMS, hashlib.sha256(b"garments").hexdigest())
    monkeypatch.setattr(fashion, "SUMS", sums)
    return home


def test_the_four_files_are_brought_once_and_mended(apt, tmp_path):
    assert fashion.folder() == fashion.INSTALLED
    result = CliRunner().invoke(app, ["fetch", "fashion-mnist"])
    assert result.exit_code == 0
    place = tmp_path / "cache" / "fashion-mnist"
    assert str(place) in result.output.replace("\n", "")
    assert fashion.folder() == place
    assert sorted(path.name for path in place.iterdir()) == sorted(fashion.SUMS)
    (place / "t10k-labels-idx1-ubyte.gz").write_bytes(b"garment")
    assert not fashion.intact(place)
    assert fashion.intact(fashion.fetch())
    (apt / "apt-get").write_text("#!/bin/sh\nexit 1\n")
    assert fashion.fetch() == place  # there and intact: nothing is called
    assert [path.name for path in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "apt-get",
            "#!/bin/sh\necho no network >&2; exit 100\n",
            "apt-get could not .* no network",
        ),
        (
            "dpkg-deb",
            "#!/bin/sh\nexit 2\n",
            "dpkg-deb could not bring .*: it said nothing. Put t10k",
        ),
        ("dpkg-deb", "#!/bin/sh\nexit 0\n", "does not hold the files"),
        ("dpkg-deb", UNPACK.replace("$CONTENT", "cut"), "does not hold the files"),
    ],
)
def test_what_goes_wrong_is_said_and_leaves_nothing(apt, tmp_path, name, text, message):
    (apt / name).write_text(text)
    with pytest.raises(FetchError, match=message):
        fashion.fetch()
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_apt(apt, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"it is not installed.*SOFTLAB_FASHION_MNIST"):
        fashion.fetch()


def test_a_folder_of_ones_own_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv(fashion.VARIABLE, str(tmp_path))
    assert fashion.folder() == tmp_path
