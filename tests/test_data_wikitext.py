"""WikiText-2: files under both names, the archive, a local server, damage; and the real text where it is."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from test_download import Web, remote, serving

from tombola.errors import DataError
from tombola.tasks.data import sources
from tombola.tasks.data.wikitext import load_wikitext2

TEXTS = {
    "train": " \n = A title = \n\n The cat sat on the <unk> . \n",
    "valid": " The cat . \n",
    "test": " On the mat \N{EN DASH} the cat",
}
TOKENS = (
    ["<eos>", "=", "A", "title", "=", "<eos>", "<eos>", "The", "cat", "sat", "on", "the", "<unk>", ".", "<eos>"],
    ["The", "cat", ".", "<eos>"],
    ["On", "the", "mat", "\N{EN DASH}", "the", "cat", "<eos>"],
)


def write(root: Path, names: str = "{}.txt") -> None:
    (root / "wikitext-2").mkdir(parents=True, exist_ok=True)
    for part, text in TEXTS.items():
        (root / "wikitext-2" / names.format(part)).write_text(text, encoding="utf-8")


def archive(leave_out: str = "") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as opened:
        for part, text in TEXTS.items():
            if part != leave_out:
                opened.writestr(f"wikitext-2/wiki.{part}.tokens", text)
        opened.writestr("../elsewhere.txt", "no member but the three is read")
    return made.getvalue()


@pytest.mark.parametrize("names", ["{}.txt", "wiki.{}.tokens"])
def test_a_line_is_its_words_and_its_end(tmp_path: Path, names: str) -> None:
    write(tmp_path, names)
    assert load_wikitext2(tmp_path, download=False) == TOKENS


def test_the_archive_is_read_and_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "wikitext-2-v1.zip").write_bytes(archive())
    assert load_wikitext2(tmp_path, download=False) == TOKENS
    assert [path.name for path in tmp_path.iterdir()] == ["wikitext-2-v1.zip"]


@pytest.mark.usefixtures("no_configuration")
def test_the_archive_comes_from_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive()
    with serving(Web({"wikitext-2-v1.zip": content})) as web:
        listed = (remote(content, name="wikitext-2-v1.zip"),)  # type: ignore[no-untyped-call]
        made = sources.Source("wikitext2", "WikiText-2", "", listed, (web.url,))
        monkeypatch.setattr("tombola.tasks.data.wikitext.WIKITEXT2", made)
        monkeypatch.setitem(sources.SOURCES, "wikitext2", made)
        for _ in range(2):
            assert load_wikitext2(tmp_path / "root") == TOKENS
    assert [path for path, _ in web.asked] == ["/wikitext-2-v1.zip"]


@pytest.mark.usefixtures("no_configuration")
def test_without_a_network_the_error_says_what_to_put_where(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "wikitext-2" / "valid.txt").unlink()
    with pytest.raises(DataError, match=r"Not in .*wikitext-2: valid.txt\.") as caught:
        load_wikitext2(tmp_path, download=False)
    assert f"{tmp_path / 'wikitext-2-v1.zip'}  from  https://wikitext.smerity.com/wikitext-2-v1.zip" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "can't be read"),
        (archive()[:-30], "can't be read"),
        (archive().replace(b"The", b"TXe", 1)[:100] + archive()[104:], "can't be read"),
        (archive(leave_out="valid"), "must hold wikitext-2/wiki.valid.tokens"),
    ],
)
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes, rule: str) -> None:
    path = tmp_path / "wikitext-2-v1.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rule) as caught:
        load_wikitext2(tmp_path, download=False)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("content", "rule"), [(b" \n\n ", "is empty"), (b"cat \xff", "UTF-8")])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, rule: str) -> None:
    write(tmp_path)
    path = tmp_path / "wikitext-2" / "test.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rule) as caught:
        load_wikitext2(tmp_path, download=False)
    assert str(path) in str(caught.value)


def test_a_small_archive_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tombola.tasks.data.wikitext._MOST_BYTES", 20)
    (tmp_path / "wikitext-2-v1.zip").write_bytes(archive())
    with pytest.raises(DataError, match="must not exceed 20 bytes"):
        load_wikitext2(tmp_path, download=False)
    write(tmp_path)
    with pytest.raises(DataError, match="must not exceed 20 bytes"):
        load_wikitext2(tmp_path, download=False)


@pytest.mark.data
def test_the_real_text_has_its_known_numbers_of_tokens(data_root: Path) -> None:
    train, validation, test = load_wikitext2(data_root, download=False)
    assert (len(train), len(validation), len(test)) == (2_088_628, 217_646, 245_569)
    assert len(set(train)) == 33_278
    assert set(validation) | set(test) <= set(train)
