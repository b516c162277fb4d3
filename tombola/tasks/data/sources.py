"""The data sets: their files, where these belong under the data root, how to see that they are there, their hosts."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tombola.errors import DataError, InputError, suggestion
from tombola.tasks.data.download import Progress, RemoteFile, check_url, fetch
from tombola.tasks.data.root import HOW_TO_SET, configuration, configuration_path


@dataclass(frozen=True, slots=True)
class Source:
    """A data set: the files of its download, the folder under the data root that they belong in, its public hosts."""

    name: str
    title: str
    folder: str
    files: tuple[RemoteFile, ...]
    """None of a data set that must be put in place by hand."""
    hosts: tuple[str, ...]
    version: str = ""
    """Which of several it is."""
    parts: tuple[tuple[str, ...], ...] = ()
    """Paths under the data root, of which the data set is there: of each tuple one, a folder where it ends in ``/``.
    By default the files of the download, those that are gzipped unpacked or not."""
    some_bytes: int | None = None
    """Roughly the size of the download, where that of a file isn't known."""

    @property
    def size(self) -> int | None:
        """Bytes of the download: exactly, or else ``some_bytes``."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if sizes and len(sizes) == len(self.files) else self.some_bytes

    @property
    def size_in_words(self) -> str:
        """``12 MB``, ``some 25 GB``; empty where nothing is downloaded."""
        if self.size is None:
            return ""
        unit, name = (1e9, "GB") if self.size >= 1e9 else (1e6, "MB")
        rough = any(file.size is None for file in self.files)
        return f"{'some ' if rough else ''}{self.size / unit:.{0 if self.size >= 3 * unit else 1}f} {name}"

    def found(self, root: Path) -> list[Path | None]:
        """For each part the path of it that is there, under the data root, or None. The data set can be loaded without
        a download where none is None."""
        parts = self.parts or tuple(
            tuple(f"{self.folder}/{name}".lstrip("/") for name in dict.fromkeys((f.name.removesuffix(".gz"), f.name)))
            for f in self.files
        )
        return [next((found for path in part if (found := _there(root, path))), None) for part in parts]


def _there(root: Path, path: str) -> Path | None:
    """The first file of a path under the root, which may hold ``*``, or folder where it ends in ``/``."""
    found = (p for p in root.glob(path) if (p.is_dir() if path.endswith("/") else p.is_file()))
    return next(found, None)


MNIST = Source(
    name="mnist",
    title="MNIST",
    folder="MNIST/raw",
    files=(
        RemoteFile("train-images-idx3-ubyte.gz", "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
        RemoteFile("train-labels-idx1-ubyte.gz", "md5:d53e105ee54ea40749a09fcbcd1e9432", 28_881),
        RemoteFile("t10k-images-idx3-ubyte.gz", "md5:9fb629c4189551a2d022fa330f9573f3", 1_648_877),
        RemoteFile("t10k-labels-idx1-ubyte.gz", "md5:ec29112dd5afa0611ce80d1b7f02629c", 4_542),
    ),
    hosts=("https://ossci-datasets.s3.amazonaws.com/mnist",),
)
FASHION_MNIST = Source(
    name="fashion-mnist",
    title="Fashion-MNIST",
    folder="FashionMNIST/raw",
    files=(
        RemoteFile("train-images-idx3-ubyte.gz", "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
        RemoteFile("train-labels-idx1-ubyte.gz", "md5:25c81989df183df01b3e8a0aad5dffbe", 29_515),
        RemoteFile("t10k-images-idx3-ubyte.gz", "md5:bef4ecab320f06d8554ea6380940ec79", 4_422_102),
        RemoteFile("t10k-labels-idx1-ubyte.gz", "md5:bb300cfdad3c16e7a12a480ee83cd310", 5_148),
    ),
    hosts=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
)
CIFAR10 = Source(
    name="cifar10",
    title="CIFAR-10",
    version="binary version",
    folder="",
    parts=tuple(
        (f"cifar-10-batches-bin/{name}.bin", "cifar-10-binary.tar.gz")
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    ),
    files=(RemoteFile("cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530", 170_052_171),),
    hosts=("https://www.cs.toronto.edu/~kriz",),
)
CIFAR100 = Source(
    name="cifar100",
    title="CIFAR-100",
    version="binary version",
    folder="",
    parts=tuple((f"cifar-100-binary/{name}.bin", "cifar-100-binary.tar.gz") for name in ("train", "test")),
    files=(RemoteFile("cifar-100-binary.tar.gz", "md5:03b5dce01913d631647c71ecec9e9cb8", 168_513_733),),
    hosts=("https://www.cs.toronto.edu/~kriz",),
)
SVHN = Source(
    name="svhn",
    title="SVHN",
    version="cropped digits",
    folder="",
    files=(
        RemoteFile("train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373", 182_040_794),
        RemoteFile("test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3", 64_275_384),
    ),
    hosts=("http://ufldl.stanford.edu/housenumbers",),
)
TINY_IMAGENET = Source(
    name="tiny-imagenet",
    title="Tiny-ImageNet-200",
    folder="",
    parts=(("tiny-imagenet-200.safetensors", "tiny-imagenet-200/wnids.txt", "tiny-imagenet-200.zip"),),
    files=(RemoteFile("tiny-imagenet-200.zip", "md5:90528d7ca1a48142e341f4ef8d21d0de", 248_100_043),),
    hosts=("http://cs231n.stanford.edu",),
)
WIKITEXT2 = Source(
    name="wikitext2",
    title="WikiText-2",
    version="word level",
    folder="",
    parts=tuple(
        (f"wikitext-2/wiki.{name}.tokens", f"wikitext-2/{name}.txt", "wikitext-2-v1.zip")
        for name in ("train", "valid", "test")
    ),
    files=(RemoteFile("wikitext-2-v1.zip", "md5:542ccefacc6c27f945fb54453812b3cd"),),
    some_bytes=4_000_000,
    hosts=("https://wikitext.smerity.com", "https://s3.amazonaws.com/research.metamind.io/wikitext"),
)
MULTI30K = Source(
    name="multi30k",
    title="Multi30k",
    version="task 1, English and German",
    folder="multi30k",
    files=(
        RemoteFile("train.en.gz", "sha256:d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f", 568_929),
        RemoteFile("train.de.gz", "sha256:726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6", 637_044),
        RemoteFile("val.en.gz", "sha256:14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28", 21_650),
        RemoteFile("val.de.gz", "sha256:f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a", 24_681),
        RemoteFile(
            "test_2016_flickr.en.gz", "sha256:611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9", 21_077
        ),
        RemoteFile(
            "test_2016_flickr.de.gz", "sha256:9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8", 22_890
        ),
    ),
    hosts=("https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw",),
)
SST2 = Source(
    name="sst2",
    title="SST-2",
    version="whole sentences",
    folder="sst2",
    files=(
        RemoteFile("train.tsv", "sha256:ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920", 720_259),
        RemoteFile("dev.tsv", "sha256:eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359", 92_057),
        RemoteFile("test.tsv", "sha256:831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7", 188_749),
    ),
    hosts=("https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/master/data/SST2",),
)
PLACES365 = Source(
    name="places365",
    title="Places365-Standard",
    version="256x256",
    folder="",
    parts=(
        ("places365_train_standard.txt", "filelist_places365-standard.tar"),
        ("places365_val.txt", "filelist_places365-standard.tar"),
        ("data_256_standard/", "train_256_places365standard.tar"),
        ("val_256/", "val_256.tar"),
    ),
    some_bytes=25_000_000_000,
    files=(
        RemoteFile("filelist_places365-standard.tar", "md5:35a0585fee1fa656440f3ab298f8479c"),
        RemoteFile("train_256_places365standard.tar", "md5:53ca1c756c3d1e7809517cc47c5561c5"),
        RemoteFile("val_256.tar", "md5:e27b17d8d44f4af9a78502beb927f808"),
    ),
    hosts=("http://data.csail.mit.edu/places/places365",),
)
IMAGENET = Source(
    name="imagenet",
    title="ImageNet",
    folder="imagenet",
    files=(),
    hosts=(),
    parts=(("imagenet/train/*/",), ("imagenet/val/*/",)),
)
_IMAGES = (MNIST, FASHION_MNIST, CIFAR10, CIFAR100, SVHN, TINY_IMAGENET, IMAGENET, PLACES365)
_TEXTS = (WIKITEXT2, MULTI30K, SST2)
SOURCES = {source.name: source for source in (*_IMAGES, *_TEXTS)}
"""By their names; ``data_sets`` of a task are of these."""


def mirrors(name: str) -> list[str]:
    """The addresses of the folders that offer a data set's files, in the order they are tried.

    First your own mirrors, from ``TOMBOLA_MIRRORS`` (separated by commas or spaces) or else ``mirrors = [...]`` in the
    configuration file, then the public hosts. A mirror of your own is a data root served over HTTP: below its address
    are the same folders as below a data root.
    """
    if name not in SOURCES:
        raise InputError(f"unknown data set {name!r}.{suggestion(name, SOURCES)}")
    source = SOURCES[name]
    return [f"{base.rstrip('/')}/{source.folder}".rstrip("/") for base in _own_mirrors()] + list(source.hosts)


def obtain(
    source: Source,
    root: Path,
    files: Sequence[RemoteFile],
    *,
    download: bool,
    progress: Progress | None,
    note: str = "",
) -> None:
    """Download these files of ``source``, which are missing, to their place under ``root``.

    Raises ``DataError`` where ``download`` is off or fails: it names every missing file, its full path and its
    addresses. ``note`` is a sentence to add to it.
    """
    folder, addresses = root / source.folder, mirrors(source.name)
    if not download:
        title = f"{source.title} ({source.version})" if source.version else source.title
        raise DataError(_missing(source, root, files, f"{title} is not in the data root {root}.", note))
    for position, file in enumerate(files):
        try:
            fetch(file, folder, mirrors=addresses, progress=progress)
        except DataError as error:
            raise DataError(_missing(source, root, files[position:], str(error), note)) from error


def _missing(source: Source, root: Path, files: Sequence[RemoteFile], reason: str, note: str) -> str:
    lines = [reason, *([note] if note else []), "To put the files in place by hand:"]
    for file in files:
        addresses = " or ".join(f"{base}/{file.name}" for base in mirrors(source.name))
        lines.append(f"  {root / source.folder / file.name}  from  {addresses}")
    lines.append(
        f"The data root is set by {HOW_TO_SET}; addresses to try first, by TOMBOLA_MIRRORS or mirrors in that file."
    )
    return "\n".join(lines)


def _own_mirrors() -> list[str]:
    if given := os.environ.get("TOMBOLA_MIRRORS"):
        return [check_url(url, "TOMBOLA_MIRRORS") for url in re.split(r"[,\s]+", given) if url]
    value, origin = configuration().get("mirrors", []), f"mirrors in {configuration_path()}"
    if not isinstance(value, list) or not all(isinstance(url, str) for url in value):
        raise InputError(f'{origin} must be a list of addresses, like ["https://host/folder"], but got {value!r}')
    return [check_url(url, origin) for url in value]
