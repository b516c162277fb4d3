"""Multi30k: files gzipped or not, a local server, damage; and the real sentences where they are."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from test_download import Web, remote, serving

from tombola.errors import DataError
from tombola.tasks.data import sources
from tombola.tasks.data.multi30k import load_multi30k

FILES = {
    "train.en": "Two dogs.\n A man, alone. \nA cat\N{LINE SEPARATOR}sat.\n",
    "train.de": "Zwei Hunde.\nEin Mann, allein.\nEine Katze sa\N{LATIN SMALL LETTER SHARP S}.",
    "val.en": "A dog.\n",
    "val.de": "Ein Hund.\n",
    "test_2016_flickr.en": "Dogs.\nMen.\n",
    "test_2016_flickr.de": "Hunde.\nM\N{LATIN SMALL LETTER A WITH DIAERESIS}nner.\n",
}


def write(folder: Path, *, gzipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        content = text.encode()
        path = folder / (f"{name}.gz" if gzipped else name)
        path.write_bytes(gzip.compress(content, mtime=0) if gzipped else content)


@pytest.mark.parametrize("gzipped", [True, False])
def test_lines_are_paired_and_bare(tmp_path: Path, gzipped: bool) -> None:
    write(tmp_path / "multi30k", gzipped=gzipped)
    train, validation, test = load_multi30k(tmp_path, download=False)
    assert train.source == ("Two dogs.", "A man, alone.", "A cat\N{LINE SEPARATOR}sat.")
    assert train.target[2] == "Eine Katze sa\N{LATIN SMALL LETTER SHARP S}."
    assert (validation.source, validation.target) == (("A dog.",), ("Ein Hund.",))
    assert len(test.source) == len(test.target) == 2


@pytest.mark.usefixtures("no_configuration")
def test_missing_files_come_from_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "made").iterdir())}
    assert {file.name for file in sources.MULTI30K.files} == set(files)
    listed = tuple(remote(content, name=name) for name, content in files.items())  # type: ignore[no-untyped-call]
    with serving(Web(files)) as web:
        made = sources.Source("multi30k", "Multi30k", "multi30k", listed, (web.url,))
        monkeypatch.setattr("tombola.tasks.data.multi30k.MULTI30K", made)
        monkeypatch.setitem(sources.SOURCES, "multi30k", made)
        (tmp_path / "root" / "multi30k").mkdir(parents=True)
        (tmp_path / "root" / "multi30k" / "val.de").write_text("Mein Hund.\n")
        for _ in range(2):
            assert load_multi30k(tmp_path / "root")[1].target == ("Mein Hund.",), "a file of one's own stays"
    assert sorted(path for path, _ in web.asked) == sorted(f"/{name}" for name in files if name != "val.de.gz")


@pytest.mark.usefixtures("no_configuration")
def test_without_a_network_the_error_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Multi30k") as caught:
        load_multi30k(tmp_path, download=False)
    assert f"{tmp_path / 'multi30k' / 'val.en.gz'}  from  https://" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("val.en.gz", b"no gzip", "can't be read"),
        ("val.en.gz", gzip.compress(b"A dog.\n" * 50)[:-9], "can't be read"),
        ("val.de.gz", gzip.compress(b"Ein \xff.\n"), "can't be read"),
        ("val.de.gz", gzip.compress(b"Ein Hund.\n\nMehr.\n"), "line 2 is empty"),
        ("val.de.gz", gzip.compress(b"Ein Hund.\nMehr.\n"), "1 lines and .* 2"),
        ("train.de.gz", gzip.compress(bytes(2**24 + 1)), "not hold more than 16,777,216 bytes"),
    ],
    ids=[
        "plain",
        "cut",
        "no-utf8",
        "empty-line",
        "too-few",
        "too-large",
    ],  # one of bytes holds the second it was made in
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, rule: str) -> None:
    write(tmp_path / "multi30k")
    path = tmp_path / "multi30k" / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=rule) as caught:
        load_multi30k(tmp_path, download=False)
    assert str(path) in str(caught.value)


@pytest.mark.data
def test_the_real_sentences_are_as_many_as_is_known(data_root: Path) -> None:
    train, validation, test = load_multi30k(data_root, download=False)
    assert [len(part.source) for part in (train, validation, test)] == [29_000, 1_014, 1_000]
    assert train.source[0] == "Two young, White males are outside near many bushes."
