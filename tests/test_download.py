"""Downloads, against a server on the loopback interface."""

import gzip
import hashlib
import io
import multiprocessing
import re
import struct
import tarfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tombola.errors import DataError, InputError
from tombola.tasks.data import download as module
from tombola.tasks.data import sources
from tombola.tasks.data.cifar import load_cifar10
from tombola.tasks.data.download import RemoteFile, fetch
from tombola.tasks.data.idx import load_mnist

CONTENT = bytes(np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8))
OTHER = CONTENT[::-1]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No settings of the user, no proxy, and no public hosts."""
    for name in ("TOMBOLA_DATA", "TOMBOLA_CONFIG", "TOMBOLA_MIRRORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: tmp_path / "config" / name)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)


@dataclass
class Web:
    """A server's files by path, how it behaves, and what it was asked for: (path, Range header)."""

    files: dict[str, bytes]
    ranges: bool = True
    drop_after: list[int] = field(default_factory=list)  # for each request in turn: close after so many bytes
    lengths: bool = True
    content_range: str = ""  # what to state in place of the right one
    redirect: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""
    delay: float = 0.0  # seconds before an answer

    def answer(self, request):
        self.asked.append((request.path, request.headers.get("Range")))
        content = self.files.get(request.path.lstrip("/"))
        time.sleep(self.delay)
        if self.redirect:
            request.send_response(302)
            request.send_header("Location", self.redirect)
            return request.end_headers()
        if content is None:
            return request.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", request.headers["Range"])[1]) if "Range" in request.headers else 0
        if start and self.ranges:
            if start >= len(content):
                return request.send_error(416)
            request.send_response(206)
            right = f"bytes {start}-{len(content) - 1}/{len(content)}"
            request.send_header("Content-Range", self.content_range or right)
        else:
            request.send_response(200)
            start = 0
        if self.lengths:
            request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start:][: self.drop_after.pop(0) if self.drop_after else None])


@contextmanager
def serving(web):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            web.answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def remote(content=CONTENT, *, name="a.bin", size=True, algorithm="md5"):
    checksum = hashlib.new(algorithm, content).hexdigest()
    return RemoteFile(name, f"{algorithm}:{checksum}", len(content) if size else None)


def left_over(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"}


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
@pytest.mark.parametrize("size", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_arrives_whole_and_is_fetched_once(tmp_path, algorithm, size, lengths):
    seen = []
    with serving(Web({"a.bin": CONTENT}, lengths=lengths)) as web:
        for _ in range(2):
            path = fetch(
                remote(size=size, algorithm=algorithm),
                tmp_path / "new" / "folder",
                mirrors=[web.url + "/"],
                progress=lambda *report: seen.append(report),
            )
    assert path == tmp_path / "new" / "folder" / "a.bin"
    assert left_over(path.parent) == {"a.bin": CONTENT}
    assert web.asked == [("/a.bin", None)]
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert seen[-1] == ("a.bin", len(CONTENT), len(CONTENT) if size or lengths else None)


@pytest.mark.parametrize("size", [True, False])
def test_a_broken_connection_is_resumed_with_a_request_for_the_rest_only(tmp_path, size):
    with serving(Web({"a.bin": CONTENT}, drop_after=[100_000, 150_000])) as web:
        path = fetch(remote(size=size), tmp_path, mirrors=[web.url])
    assert path.read_bytes() == CONTENT
    assert web.asked == [("/a.bin", None), ("/a.bin", "bytes=100000-"), ("/a.bin", "bytes=250000-")]


def test_a_later_call_goes_on_from_the_part(tmp_path):
    with serving(Web({"a.bin": CONTENT}, drop_after=[100_000, 0])) as web, pytest.raises(DataError, match="broke"):
        fetch(remote(), tmp_path, mirrors=[web.url])
    assert left_over(tmp_path) == {"a.bin.part": CONTENT[:100_000]}
    with serving(Web({"a.bin": CONTENT})) as web:
        fetch(remote(), tmp_path, mirrors=[web.url])
    assert web.asked == [("/a.bin", "bytes=100000-")]
    assert left_over(tmp_path) == {"a.bin": CONTENT}


def test_another_mirror_goes_on_where_the_first_broke(tmp_path):
    with serving(Web({"a.bin": CONTENT}, drop_after=[100_000, 0])) as bad, serving(Web({"a.bin": CONTENT})) as good:
        fetch(remote(), tmp_path, mirrors=[bad.url, good.url])
    assert good.asked == [("/a.bin", "bytes=100000-")]
    assert left_over(tmp_path) == {"a.bin": CONTENT}


def test_a_server_without_ranges_sends_everything_again(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    with serving(Web({"a.bin": CONTENT}, ranges=False)) as web:
        fetch(remote(), tmp_path, mirrors=[web.url])
    assert web.asked == [("/a.bin", "bytes=1000-")]
    assert left_over(tmp_path) == {"a.bin": CONTENT}


def test_a_server_without_ranges_that_always_breaks_is_given_up(tmp_path):
    with (
        serving(Web({"a.bin": CONTENT}, ranges=False, drop_after=[1000] * 50)) as web,
        pytest.raises(DataError, match="the connection broke after 1,000 of 300,000 bytes"),
    ):
        fetch(remote(), tmp_path, mirrors=[web.url])
    assert len(web.asked) == 2


@pytest.mark.parametrize(
    "content_range", ["bytes 0-299999/300000", "bytes 1001-299999/300000", "bytes 1000-299999/300001", "nonsense"]
)
def test_a_wrong_content_range_makes_it_start_again(tmp_path, content_range):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    with serving(Web({"a.bin": CONTENT}, content_range=content_range)) as web:
        fetch(remote(), tmp_path, mirrors=[web.url])
    assert web.asked == [("/a.bin", "bytes=1000-"), ("/a.bin", None)]
    assert left_over(tmp_path) == {"a.bin": CONTENT}


@pytest.mark.parametrize(
    ("part", "size", "asked"),
    [
        (CONTENT, True, []),  # whole, only not yet checked when the process ended
        (CONTENT, False, ["bytes=300000-", None]),  # whole, but that can't be known: 416
        (CONTENT + b"x", True, [None]),
        (CONTENT + b"x", False, ["bytes=300001-", None]),
        (OTHER[:1000], True, ["bytes=1000-", None]),  # the beginning of something else: found by the checksum
        (OTHER, True, [None]),
    ],
)
def test_whatever_a_part_holds_the_file_comes_out_right(tmp_path, part, size, asked):
    (tmp_path / "a.bin.part").write_bytes(part)
    with serving(Web({"a.bin": CONTENT})) as web:
        fetch(remote(size=size), tmp_path, mirrors=[web.url])
    assert [ranges for _, ranges in web.asked] == asked
    assert left_over(tmp_path) == {"a.bin": CONTENT}


@pytest.mark.parametrize("size", [True, False])
def test_a_wrong_checksum_is_thrown_away_and_the_next_mirror_tried(tmp_path, size):
    with serving(Web({"a.bin": OTHER})) as bad, serving(Web({"a.bin": CONTENT})) as good:
        fetch(remote(size=size), tmp_path, mirrors=[bad.url, good.url])
        assert good.asked == [("/a.bin", None)]
        assert left_over(tmp_path) == {"a.bin": CONTENT}
        (tmp_path / "a.bin").unlink()
        with pytest.raises(DataError, match=r"doesn't have the checksum md5:[0-9a-f]{32}"):
            fetch(remote(size=size), tmp_path, mirrors=[bad.url])
    assert left_over(tmp_path) == {}


@pytest.mark.parametrize("lengths", [True, False])
def test_more_than_the_files_size_is_not_accepted(tmp_path, lengths):
    with (
        serving(Web({"a.bin": CONTENT + b"x" * 500_000}, lengths=lengths)) as web,
        pytest.raises(DataError, match=r"offers 800,000 bytes|more than the 300,000 bytes"),
    ):
        fetch(remote(), tmp_path, mirrors=[web.url])
    assert sum(len(content) for content in left_over(tmp_path).values()) == 0


def test_a_missing_file_and_a_dead_server_lead_to_the_next_mirror(tmp_path):
    with serving(Web({})) as dead:
        pass
    with serving(Web({})) as empty, serving(Web({"a.bin": CONTENT})) as good:
        fetch(remote(), tmp_path, mirrors=[dead.url, empty.url, good.url])
        (tmp_path / "a.bin").unlink()
        with pytest.raises(DataError) as caught:
            fetch(remote(), tmp_path, mirrors=[dead.url, empty.url])
    message = str(caught.value)
    assert str(tmp_path / "a.bin") in message
    assert re.search(rf"{dead.url}/a\.bin: .*refused", message)
    assert f"{empty.url}/a.bin: HTTP 404" in message


def test_a_silent_server_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT", 0.1)
    with serving(Web({"a.bin": CONTENT}, delay=0.3)) as web, pytest.raises(DataError, match="timed out"):
        fetch(remote(), tmp_path, mirrors=[web.url])


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/a.bin"])
def test_a_redirect_away_from_http_is_not_followed(tmp_path, target):
    with serving(Web({}, redirect=target)) as web, pytest.raises(DataError, match="could not be downloaded"):
        fetch(remote(), tmp_path, mirrors=[web.url])
    assert left_over(tmp_path) == {}


def test_a_redirect_keeps_the_range(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    with serving(Web({"a.bin": CONTENT})) as good, serving(Web({}, redirect=f"{good.url}/a.bin")) as web:
        fetch(remote(), tmp_path, mirrors=[web.url])
    assert good.asked == [("/a.bin", "bytes=1000-")]


@pytest.mark.parametrize("base", ["file:///tmp", "ftp://127.0.0.1", "nowhere"])
def test_only_http_addresses_are_accepted(tmp_path, base):
    with pytest.raises(InputError, match="https://host/folder"):
        fetch(remote(), tmp_path, mirrors=[base])


@pytest.mark.parametrize(
    ("name", "checksum"),
    [
        ("../a", "md5:" + "0" * 32),
        (".a", "md5:" + "0" * 32),
        ("a", "0" * 32),
        ("a", "md5:0"),
        ("a", "sha256:" + "0" * 32),
    ],
)
def test_a_remote_file_needs_a_plain_name_and_a_checksum(name, checksum):
    with pytest.raises(InputError):
        RemoteFile(name, checksum)


def test_a_file_of_the_users_is_taken_as_it_is(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    assert fetch(remote(), tmp_path, mirrors=[]).read_bytes() == b"mine"


def test_a_folder_that_cannot_be_made_is_a_data_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="can't be written"):
        fetch(remote(), tmp_path / "file", mirrors=["http://127.0.0.1:1"])


def _fetch_with_others(barrier, folder, url):
    barrier.wait(60)
    fetch(remote(), folder, mirrors=[url])


def test_two_processes_download_once_and_nothing_is_corrupted(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    with serving(Web({"a.bin": CONTENT}, delay=0.5)) as web:
        processes = [context.Process(target=_fetch_with_others, args=(barrier, tmp_path, web.url)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert web.asked == [("/a.bin", None)]
    assert left_over(tmp_path) == {"a.bin": CONTENT}


# Data sets


def idx_gz(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def tiny_mnist(monkeypatch):
    """A source like MNIST's with four small files, and these by name."""
    files = {
        f.name: idx_gz(np.full((2, 28, 28) if "images" in f.name else (2,), i))
        for i, f in enumerate(sources.MNIST.files)
    }
    listed = tuple(remote(content, name=name) for name, content in files.items())
    made = sources.Source("mnist", "MNIST", "MNIST/raw", listed, ("http://127.0.0.1:1/public",))
    monkeypatch.setattr("tombola.tasks.data.idx.MNIST", made)
    monkeypatch.setitem(sources.SOURCES, "mnist", made)
    return files


def test_missing_files_of_mnist_come_from_a_mirror_laid_out_as_a_data_root(tmp_path, monkeypatch, tiny_mnist):
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    first, *others = tiny_mnist
    (tmp_path / "MNIST" / "raw" / first.removesuffix(".gz")).write_bytes(gzip.decompress(tiny_mnist[first]))
    with serving(Web({f"data/MNIST/raw/{name}": content for name, content in tiny_mnist.items()})) as web:
        monkeypatch.setenv("TOMBOLA_MIRRORS", f"{web.url}/data")
        for _ in range(2):
            train, test = load_mnist(tmp_path)
    assert [path for path, _ in web.asked] == [f"/data/MNIST/raw/{name}" for name in others]
    assert (len(train), len(test)) == (2, 2)
    assert (int(train.y[0]), int(test.x[0, 0, 0, 0])) == (1, 2)


@pytest.mark.parametrize("download", [True, False])
def test_without_a_network_the_error_says_what_to_put_where(tmp_path, tiny_mnist, download):
    with pytest.raises(DataError) as caught:
        load_mnist(tmp_path, download=download)
    message = str(caught.value)
    for name in tiny_mnist:
        assert f"{tmp_path / 'MNIST' / 'raw' / name}  from  http://127.0.0.1:1/public/{name}" in message
    for setting in ("--data-root", "TOMBOLA_DATA", "data_root", "TOMBOLA_MIRRORS"):
        assert setting in message
    assert ("refused" in message) == download


def test_an_error_lists_only_what_is_still_missing(tmp_path, monkeypatch, tiny_mnist):
    first, *others = tiny_mnist
    with serving(Web({f"MNIST/raw/{first}": tiny_mnist[first]})) as web:
        monkeypatch.setenv("TOMBOLA_MIRRORS", web.url)
        with pytest.raises(DataError) as caught:
            load_mnist(tmp_path)
    assert first not in str(caught.value)
    assert all(name in str(caught.value) for name in others)


def test_cifar_is_downloaded_and_unpacked(tmp_path, monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin", "batches.meta.txt"]:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = 2 * 3073
            tar.addfile(member, io.BytesIO(bytes([7]) * member.size))
    archive = remote(packed.getvalue(), name="cifar-10-binary.tar.gz")
    with serving(Web({archive.name: packed.getvalue()})) as web:
        made = sources.Source("cifar10", "CIFAR-10", "", (archive,), (web.url,))
        monkeypatch.setattr("tombola.tasks.data.cifar.CIFAR10", made)
        monkeypatch.setitem(sources.SOURCES, "cifar10", made)
        for _ in range(2):
            train, test = load_cifar10(tmp_path / "root")
    assert (len(train), len(test)) == (10, 2)
    assert set(train.y.tolist()) == {7}
    assert web.asked == [("/cifar-10-binary.tar.gz", None)]
