"""``tombola serve`` as a command: help, refusals, warnings, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import call
from made_up_store import add_draw
from store_tools import folder_of

import tombola as tb
from tombola.errors import TombolaError
from tombola.serving import server

SERVE = (sys.executable, "-m", "tombola", "serve")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tb.Store]:
    with tb.Store(tmp_path_factory.mktemp("full")) as store:
        add_draw(store, rounds=1)
        yield store


def test_the_verb_is_quick_to_help() -> None:
    check = (
        "import sys, tombola.cli.serve, tombola.cli.main;"
        "assert not {'starlette', 'uvicorn', 'torch', 'jinja2', 'sqlalchemy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
    assert "--port" in call("serve", "--help").out


def test_a_port_in_use_is_told(full: tb.Store) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = call("serve", "--store", folder_of(full), "--port", port)
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        f"Error: port {port} of 127.0.0.1 is in use: give another with --port, or --port 0 for a free one\n"
    )


def test_bad_input_is_refused(full: tb.Store, tmp_path: Path) -> None:
    where = ("--store", folder_of(full))
    for options, words in (
        (("--store", tmp_path / "none"), "there is no store"),
        (("--store", "memory://x"), "must be a folder"),
        ((*where, "--host", "no such host"), "must be an address of this machine"),
        ((*where, "--host", "192.0.2.1"), "must be an address of this machine"),
        ((*where, "--port", "70000"), "70000"),
    ):
        result = call("serve", *options)
        assert (result.status, result.out) == (2, "")
        assert words in result.err


def test_other_machines_are_warned_about(full: tb.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(server, "serve", lambda *_: time.sleep(0.2))
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("socket.socket.bind", lambda self, address: None)
    where = ("serve", "--store", folder_of(full), "--port", "0")
    result = call(*where, "--host", "0.0.0.0")
    assert "there is no password: who reaches 0.0.0.0 can read all of this store" in result.err
    assert opened == []
    result = call(*where, "--open", "--json")
    assert result.err == ""
    assert opened == [result.json["url"]]
    assert result.json["url"] == f"http://127.0.0.1:{result.json['port']}/"


def test_addresses_as_a_browser_takes_them() -> None:
    for host, url in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("localhost", "localhost")):
        with server.listening("127.0.0.1", 0) as opened:
            assert server.url_of(host, opened) == f"http://{url}:{opened.getsockname()[1]}/"
    with server.listening("127.0.0.1", 0) as opened:
        assert server.url_of("::", opened) == f"http://[::1]:{opened.getsockname()[1]}/"
        with pytest.raises(TombolaError, match="in use"):
            server.listening("127.0.0.1", opened.getsockname()[1])


def test_an_interrupt_ends_the_server(full: tb.Store) -> None:
    where = ("--store", str(folder_of(full)), "--port", "0", "--json")
    process = subprocess.Popen([*SERVE, *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()
        url = json.loads(text)["url"]
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200
            assert "server" not in answer.headers
        for path in ("a/../../etc/passwd", "%2e%2e/", "x" * 20_000):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url + path)
            assert refused.value.code in (400, 404)
            refused.value.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (130, "")
        assert err.endswith("Stopped.\n")
        assert "Traceback" not in err
    finally:
        process.kill()
        process.communicate()
