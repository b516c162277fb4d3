"""SST-2's files: read as they stand, fetched where they are missing, refused where they are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_download import Web, remote, serving

from tombola.errors import DataError
from tombola.tasks.data import sources
from tombola.tasks.data.sst2 import Labelled, load_sst2

pytestmark = pytest.mark.usefixtures("no_configuration")

CONTENT = 'a moving film\t1\nit \'s " dull "\t0\n'


def write(root: Path, **changes: str | bytes) -> None:
    (root / "sst2").mkdir(exist_ok=True)
    for part in ("train", "dev", "test"):
        given = changes.get(part, CONTENT)
        (root / "sst2" / f"{part}.tsv").write_bytes(given if isinstance(given, bytes) else given.encode())


def test_lines_are_sentences_and_classes(tmp_path: Path) -> None:
    write(tmp_path, dev="sentence\tlabel\r\nthe café\t1\r\n", test="one\ttab more\t0")
    train, dev, test = load_sst2(tmp_path, download=False)
    assert train == Labelled(("a moving film", 'it \'s " dull "'), (1, 0))
    assert dev == Labelled(("the café",), (1,))
    assert test == Labelled(("one\ttab more",), (0,))


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("no class\n", "line 1 is 'no class'"),
        ("good\t1\nthree\t3\n", "its class, 0 or 1, but line 2 is"),
        ("good\t1\n\nbad\t0\n", "line 2 is ''"),
        ("  \t1\n", "must be a sentence"),
        ("sentence\tlabel\n", "must hold sentences, but holds none"),
        ("", "line 1 is ''"),
        (b"\xff\t1\n", "must be text in UTF-8"),
        ("index\tsentence\n0\tuneasy\n", "GLUE hides the classes"),
        ("x" * (2**24 + 1), "must not exceed 16,777,216 bytes"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: str | bytes, rule: str) -> None:
    write(tmp_path, dev=content)
    with pytest.raises(DataError, match=rule) as caught:
        load_sst2(tmp_path, download=False)
    assert str(tmp_path / "sst2" / "dev.tsv") in str(caught.value)


def test_missing_files_come_from_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{part}.tsv": CONTENT.encode() for part in ("train", "dev", "test")}
    listed = tuple(remote(content, name=name) for name, content in files.items())  # type: ignore[no-untyped-call]
    with serving(Web(files)) as web:
        made = sources.Source("sst2", "SST-2", "sst2", listed, (web.url,))
        monkeypatch.setattr("tombola.tasks.data.sst2.SST2", made)
        monkeypatch.setitem(sources.SOURCES, "sst2", made)
        for _ in range(2):
            parts = load_sst2(tmp_path / "root")
    assert [part.labels for part in parts] == [(1, 0)] * 3
    assert [path for path, _ in web.asked] == [f"/{name}" for name in files]


def test_without_a_network_the_error_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="SST-2") as caught:
        load_sst2(tmp_path, download=False)
    for part in ("train", "dev", "test"):
        assert f"{tmp_path / 'sst2' / part}.tsv  from  https://raw.githubusercontent.com/" in str(caught.value)


@pytest.mark.data
def test_the_real_files_have_as_many_sentences_as_the_paper_says(data_root: Path) -> None:
    parts = load_sst2(data_root, download=False)
    assert [len(part.labels) for part in parts] == [6920, 872, 1821]
    assert [sum(part.labels) for part in parts] == [3610, 444, 909]
