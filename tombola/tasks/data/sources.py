"""The data sets that can be downloaded: their files, where these belong under the data root, and who offers them."""

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
    """A data set's files, the folder under the data root they belong in, and the addresses of its public hosts."""

    name: str
    title: str
    folder: str
    files: tuple[RemoteFile, ...]
    hosts: tuple[str, ...]


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
    title="CIFAR-10 (binary version)",
    folder="",
    files=(RemoteFile("cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530", 170_052_171),),
    hosts=("https://www.cs.toronto.edu/~kriz",),
)
CIFAR100 = Source(
    name="cifar100",
    title="CIFAR-100 (binary version)",
    folder="",
    files=(RemoteFile("cifar-100-binary.tar.gz", "md5:03b5dce01913d631647c71ecec9e9cb8", 168_513_733),),
    hosts=("https://www.cs.toronto.edu/~kriz",),
)
SVHN = Source(
    name="svhn",
    title="SVHN (cropped digits)",
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
    files=(RemoteFile("tiny-imagenet-200.zip", "md5:90528d7ca1a48142e341f4ef8d21d0de", 248_100_043),),
    hosts=("http://cs231n.stanford.edu",),
)
SOURCES = {source.name: source for source in (MNIST, FASHION_MNIST, CIFAR10, CIFAR100, SVHN, TINY_IMAGENET)}


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
        raise DataError(_missing(source, root, files, f"{source.title} is not in the data root {root}.", note))
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
