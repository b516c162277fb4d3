"""Who is answered: hosts, origins, methods and paths that are refused, whatever they look like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up_store import add_draw, an_id
from served import ADDRESS, PORT, Answer, Client, ask
from store_tools import folder_of

import tombola as tb
from tombola.serving.guard import HEADERS, LONGEST_PATH, Hosts, is_loopback

Fields = list[tuple[bytes, bytes]]
HOST: Fields = [(b"host", ADDRESS.encode())]
OWN = {f"{name}:{PORT}" for name in ("127.0.0.1", "localhost", "[::1]")}
METHODS = ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tb.Store]:
    with tb.Store(tmp_path_factory.mktemp("runs")) as opened:
        add_draw(opened, rounds=1)
        yield opened


@pytest.fixture(scope="module")
def client(store: tb.Store) -> Client:
    return Client(store)


def refused(answer: Answer, status: int) -> bool:
    """Whether an answer is a page of that status, closed as every other, that the server need not log."""
    closed = all(answer.headers.get(name.lower()) == value for name, value in HEADERS.items())
    return answer.status == status and closed and answer.raised is None and b"<h1>" in answer.content


# ---- headers


@pytest.mark.parametrize("path", ["/", "/draws/{}", "/assets/live.js", "/nothing", "/compare", "/draws/{}/page.html"])
@pytest.mark.parametrize("head", [{}, {"Host": "else.where"}, {"Origin": "http://else.where"}])
def test_every_answer_is_closed(client: Client, store: tb.Store, path: str, head: dict[str, str]) -> None:
    answer = client.get(path.format(store.draws()[0].id), head)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert "set-cookie" not in answer.headers


# ---- methods


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_reading_is_allowed(client: Client, store: tb.Store, method: str) -> None:
    before = (store.draws(), store.runs())
    for path in ("/", f"/draws/{store.draws()[0].id}", "/assets/page.js", "/nothing"):
        answer = client.get(path, method=method)
        assert refused(answer, 405)
        assert answer.headers["allow"] == "GET, HEAD"
    assert (store.draws(), store.runs()) == before


def test_a_head_is_answered_as_a_get(client: Client) -> None:
    head, whole = (client.get("/", method=method) for method in ("HEAD", "GET"))
    assert (head.status, head.headers["etag"]) == (200, whole.headers["etag"])
    assert head.headers["content-length"] == whole.headers["content-length"]


# ---- hosts


@pytest.mark.parametrize("host", sorted(OWN | {f"LOCALHOST:{PORT}", f"[0:0::1]:{PORT}"}))
def test_the_served_address_is_answered(client: Client, host: str) -> None:
    assert client.get("/assets/live.js", {"Host": host, "Origin": f"http://{host}"}).status == 200


@given(
    st.one_of(
        st.text(st.characters(max_codepoint=255), max_size=60), st.sampled_from(sorted(OWN)).map(lambda h: h + ".")
    )
)
@example("")
@example("127.0.0.1")
@example("127.0.0.1:8422")
@example("localhost:08421.evil.example")
@example("evil.example:8421")
@example("127.0.0.1:8421@evil.example:8421")
@example("127.0.0.1.evil.example:8421")
@example("localhost.:8421")
@example("2130706433:8421")
@example("0177.0.0.1:8421")
@example("[::ffff:127.0.0.1]:8421")
@example("[::1%lo]:8421")
@example("0.0.0.0:8421")
@settings(max_examples=150)
def test_every_other_host_is_refused(client: Client, host: str) -> None:
    if host.lower() not in OWN:
        assert refused(ask(client.app, b"/", headers=[(b"host", host.encode("latin-1"))]), 421)


def test_a_request_names_one_host(client: Client) -> None:
    assert refused(ask(client.app, b"/"), 421)
    assert refused(ask(client.app, b"/", headers=HOST * 2), 421)
    assert ask(client.app, b"/", headers=HOST).status == 200


def test_what_a_server_for_others_answers() -> None:
    everywhere = Hosts.of("0.0.0.0", 80)
    for host in ("192.0.2.7", "192.0.2.7:80", "[2001:db8::1]", "localhost", "127.0.0.1:80"):
        assert everywhere.has(host)
    for host in ("evil.example", "192.0.2.7:81", "[evil.example]", "192.0.2.7.evil.example"):
        assert not everywhere.has(host)
    named = Hosts.of("Lab.example", 8421)
    assert named.has("lab.example:8421")
    assert not named.has("localhost:8421")
    address = Hosts.of("192.0.2.7", 8421)
    assert address.has("192.0.2.7:8421")
    assert not address.has("192.0.2.8:8421")
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "LocalHost", "0.0.0.0", "::", "192.0.2.7", "lab")] == [
        *(True, True, True, False, False, False, False)
    ]


# ---- other pages


@given(st.text(st.characters(max_codepoint=255), max_size=40))
@example("null")
@example(f"https://{ADDRESS}")
@example("http://127.0.0.1:8000")
@example(f"http://localhost:{PORT}")
@example(f"http://{ADDRESS}.evil.example")
@settings(max_examples=60)
def test_another_origin_is_refused(client: Client, origin: str) -> None:
    if origin != f"http://{ADDRESS}":
        assert refused(ask(client.app, b"/", headers=[*HOST, (b"origin", origin.encode("latin-1"))]), 403)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "same-origin", "none", "what"])
@pytest.mark.parametrize("mode", ["navigate", "cors", "no-cors", "same-origin", None])
@pytest.mark.parametrize("dest", ["document", "iframe", "script", "image", "empty", None])
def test_only_links_lead_here_from_elsewhere(client: Client, site: str, mode: str | None, dest: str | None) -> None:
    said = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
    answer = client.get("/assets/live.js", {name: value for name, value in said.items() if value is not None})
    welcome = site in ("same-origin", "none") or (mode, dest) == ("navigate", "document")
    assert answer.status == 200 if welcome else refused(answer, 403)


# ---- paths

PIECES = [
    b"..",
    b".",
    b"/",
    b"//",
    b"%2e",
    b"%2E%2e",
    b"%2f",
    b"%5c",
    b"\\",
    b"%00",
    b"\0",
    b"~",
    b"etc",
    b"passwd",
    b";",
]
PIECES += [
    b"draws",
    b"runs",
    b"assets",
    b"compare",
    b"page.html",
    b"live.js",
    b"catalogue.sqlite",
    b"?",
    b"#",
    b":",
    b"@",
]
PIECES += ["é".encode(), b"\xff", b" ", b"%", b"%zz", b"%c0%af", b"*", b"a" * LONGEST_PATH, an_id("none").encode()]
PAGES = re.compile(rb"/|/assets/[a-z.]+|/compare(/page\.html)?")


def hostile_path() -> st.SearchStrategy[bytes]:
    start = st.sampled_from([b"/", b"/assets/", b"/draws/", b"/runs/", b"/compare/", b""])
    rest = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=6)), max_size=8)
    return st.builds(lambda a, b: a + b"".join(b), start, rest)


@given(hostile_path())
@example(b"/assets/../live.js")
@example(b"/assets/..%2flive.js")
@example(b"/assets/%6cive.js")
@example(b"/assets//live.js")
@example(b"/assets/")
@example(b"/assets/__init__.py")
@example(b"//evil.example/")
@example(b"http://evil.example/")
@example(b"/draws/../../etc/passwd")
@example(b"/draws/" + b"A" * 64)
@example(b"/draws/" + b"a" * 65)
@example(b"/runs/" + b"a" * 63)
@example(b"/runs/" + b"a" * 64 + b"\n")
@example(b"/blobs/00/" + b"0" * 64)
@settings(max_examples=400)
def test_a_strange_path_leads_nowhere(client: Client, path: bytes) -> None:
    answer = ask(client.app, path, headers=HOST)
    if PAGES.fullmatch(path) and answer.status != 404:
        assert answer.status in (200, 400)
    else:
        assert refused(answer, 404)


@given(st.one_of(st.text(max_size=80), st.text("0123456789abcdef", max_size=80), st.just("a" * 9000)))
@settings(max_examples=100)
def test_a_strange_id_is_of_nothing(client: Client, word: str) -> None:
    assert refused(ask(client.app, b"/compare", query=f"draw={quote(word)}".encode(), headers=HOST), 404)


def test_no_file_of_the_store_or_the_package_is_given_out(client: Client, store: tb.Store) -> None:
    names = [path.name for path in folder_of(store).rglob("*") if path.is_file()]
    names += ["whole.html.j2", "app.py", "live.js.map", "LIVE.JS", "live.js/"]
    for name in names:
        for path in (f"/{name}", f"/assets/{name}", f"/runs/{name}/page.html"):
            assert refused(ask(client.app, path.encode(), headers=HOST), 404)
