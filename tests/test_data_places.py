"""Places365's lists, archives and folders, from a mirror or as they stand."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_download import Web, remote, serving

from tombola.errors import DataError
from tombola.tasks.data import places, sources
from tombola.tasks.data.places import load_places365

pytestmark = pytest.mark.usefixtures("no_configuration")

LISTS = {
    "places365_train_standard.txt": "/a/airfield/00000001.jpg 0\n/a/airfield/00000002.jpg 0\n/z/zen/00000001.jpg 364\n",
    "places365_val.txt": "Places365_val_00000001.jpg 364\nPlaces365_val_00000002.jpg 7\n",
}
INSIDE = {"places365_train_standard.txt": "data_256", "places365_val.txt": "val_256"}


def jpeg(number: int) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (256, 256), (40 * number, 10, 200)).save(made, "JPEG")
    return made.getvalue()


def images(listed: str) -> dict[str, bytes]:
    names = [line.split()[0].lstrip("/") for line in LISTS[listed].splitlines()]
    return {f"{INSIDE[listed]}/{name}": jpeg(number) for number, name in enumerate(names)}


def tar(files: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:") as out:
        for one in extra:
            out.addfile(one)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def archives() -> dict[str, bytes]:
    lists, train, test = (file.name for file in sources.PLACES365.files)
    texts = {name: text.encode() for name, text in LISTS.items()}
    parts = [images(name) for name in LISTS]
    return {lists: tar({**texts, "places365_test.txt": b"x"}), train: tar(parts[0]), test: tar(parts[1])}


def check(root: Path) -> None:
    train, test = load_places365(root, download=False)
    assert train.labels == (0, 0, 364)
    assert train.files[2] == "z/zen/00000001.jpg"
    assert test.labels == (364, 7)
    (x, y) = train.take(torch.tensor([2, 0]))
    assert (x.shape, y.tolist()) == ((2, 3, 224, 224), [364, 0])
    assert bool((x[0] != x[1]).any())


def test_torchvisions_facts() -> None:
    assert {file.name: file.checksum for file in sources.PLACES365.files} == {
        "filelist_places365-standard.tar": "md5:35a0585fee1fa656440f3ab298f8479c",
        "train_256_places365standard.tar": "md5:53ca1c756c3d1e7809517cc47c5561c5",
        "val_256.tar": "md5:e27b17d8d44f4af9a78502beb927f808",
    }


def test_archives_in_place_are_unpacked_to_torchvisions_folders(tmp_path: Path) -> None:
    for name, content in archives().items():
        (tmp_path / name).write_bytes(content)
    check(tmp_path)
    found = sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".tar")
    assert found == ["data_256_standard", "places365_train_standard.txt", "places365_val.txt", "val_256"]
    for name in archives():
        (tmp_path / name).unlink()
    check(tmp_path)


def test_what_is_missing_comes_from_a_mirror_and_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = archives()
    files = tuple(remote(content, name=name) for name, content in offered.items())  # type: ignore[no-untyped-call]
    with serving(Web(offered)) as web:
        made = sources.Source("places365", "Places365", "", files, (web.url,))
        monkeypatch.setattr(places, "PLACES365", made)
        monkeypatch.setattr(places, "_LISTS", files[0])
        parts = [(listed, file, *rest) for (listed, _, *rest), file in zip(places._PARTS, files[1:], strict=True)]
        monkeypatch.setattr(places, "_PARTS", tuple(parts))
        monkeypatch.setitem(sources.SOURCES, "places365", made)
        for name, content in images("places365_val.txt").items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        for _ in range(2):
            load_places365(tmp_path)
    assert [path for path, _ in web.asked] == ["/filelist_places365-standard.tar", "/train_256_places365standard.tar"]
    check(tmp_path)


def test_missing_files_are_named_with_their_addresses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Places365-Standard \(256x256\) is not in the data root") as caught:
        load_places365(tmp_path, download=False)
    for file in sources.PLACES365.files:
        assert f"http://data.csail.mit.edu/places/places365/{file.name}" in str(caught.value)


@pytest.mark.parametrize(
    ("listed", "rule"),
    [
        ("", "1 to 2,000,000 images, but names 0"),
        ("/a/../../../etc/x.jpg 0", "must be an image and a class below 365"),
        ("//etc/x.jpg 0", "must be an image and a class below 365"),
        ("/a/x.jpg 365", "must be an image and a class below 365"),
        ("/a/x.png 3", "must be an image and a class below 365"),
        ("/a/x.jpg", "must be an image and a class below 365"),
        ("/a/\xfc.jpg 1", "can't be read"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, listed: str, rule: str) -> None:
    for folder in ("data_256_standard", "val_256"):
        (tmp_path / folder).mkdir()
    for name in LISTS:
        (tmp_path / name).write_text(listed, encoding="utf-8")
    with pytest.raises(DataError, match=rule):
        load_places365(tmp_path, download=False)


def test_hostile_and_damaged_archives_leave_nothing(tmp_path: Path) -> None:
    lists, train, _ = archives()
    for name, content in archives().items():
        (tmp_path / name).write_bytes(content)
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)
    link = tarfile.TarInfo("data_256/a/airfield/00000001.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    outside = tarfile.TarInfo("../outside.jpg")
    some = dict(list(images("places365_train_standard.txt").items())[1:])
    for content, rule in [
        (tar(some, link, outside), "must hold data_256/a/airfield/00000001.jpg as a regular file, but doesn't"),
        (archives()[train][:700], "can't be unpacked|must hold"),
        (b"no archive at all" * 100, "can't be unpacked"),
    ]:
        (tmp_path / train).write_bytes(content)
        with pytest.raises(DataError, match=rule):
            load_places365(tmp_path, download=False)
        assert not (tmp_path / "data_256_standard").exists()
    assert not (tmp_path.parent / "outside.jpg").exists()
    assert {path.name for path in tmp_path.iterdir()} == {*archives(), *LISTS}
    assert lists


def test_an_image_that_is_too_large_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_MOST_BYTES", 100)
    for name, content in archives().items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="must not exceed 100 bytes"):
        load_places365(tmp_path, download=False)
