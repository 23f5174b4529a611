"""
Pictures fetched from a small server on this machine that behaves as badly as the web does.

Unusual: a host that cannot be reached is a port of this machine where nobody listens; another host is this machine by another name.
"""

import asyncio
import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from datasets_scripts import link_download
from datasets_scripts.link_download import Limits, Offline, download
from datasets_scripts.open_picture import open_picture
from datasets_scripts.picture_links import Completeness, Links, name_of
from tests.conftest import ROOT


def picture(seed: int = 0, kind: str = "PNG", size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


class Server:
    """
    `pages` maps a path to what answers: bytes, a status, (status, headers, bytes), a function that returns one of these, or a list
    of them for requests in turn, the last of which stays. "hang" sends nothing, "mute" hangs up, "drip" sends a byte now and then.
    `log` holds (path, time, headers) of every request.
    """

    def __init__(self):
        self.pages: dict[str, object] = {}
        self.log: list[tuple[str, float, object]] = []
        self.slow = 0.0  # seconds before each answer
        self.now = self.most = 0  # requests at the same time
        self.closing, self.lock = Event(), Lock()

    def __enter__(self):
        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_): ...

        self.server = Quiet(("127.0.0.1", 0), type("Handler", (_Handler,), {"world": self}))
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def asked(self, path: str | None = None) -> int:
        return sum(path in (None, one) for one, _, _ in self.log)


class _Handler(BaseHTTPRequestHandler):
    world: Server

    def log_message(self, *_): ...

    def do_GET(self):
        world = self.world
        with world.lock:
            world.log.append((self.path, time.monotonic(), self.headers))
            world.now += 1
            world.most = max(world.most, world.now)
            page = world.pages.get(self.path, 404)
            if isinstance(page, list):
                page = page.pop(0) if len(page) > 1 else page[0]
        world.closing.wait(20 if page == "hang" else world.slow)
        page = page() if callable(page) else page
        with world.lock:  # before the answer, which may bring the next request
            world.now -= 1
        with suppress(OSError):  # it has hung up
            self.answer(page)

    def answer(self, page):
        if page in ("hang", "mute"):
            return
        status, headers, body = page if isinstance(page, tuple) else (200, {}, page)
        if isinstance(body, int):
            status, body = body, b"no"
        self.send_response(status)
        if body == "drip":
            self.send_header("Content-Length", "1000")
            self.end_headers()
            while not self.world.closing.wait(0.05):
                self.wfile.write(b"x")
            return
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server():
    with Server() as one:
        yield one


def limits(**changes) -> Limits:
    return Limits(**{"allow_private": True, "backoff": 0.01, "timeout": 10.0} | changes)


def fetch(folder: Path, urls, **changes) -> Completeness:
    retry_dead = changes.pop("retry_dead", False)
    wanted = urls if isinstance(urls, dict) else dict.fromkeys(urls)
    return download(wanted, folder, limits(**changes), retry_dead)


def journal(folder: Path) -> dict[str, dict]:
    lines = (folder / "links.jsonl").read_text().splitlines()
    return {told["url"]: told for told in map(json.loads, filter(None, lines))}


def pictures_in(folder: Path) -> dict[str, bytes]:
    root = folder / "images"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def nobody() -> str:
    """A host where nobody listens: a connection is refused at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://localhost:{free.getsockname()[1]}"


def test_a_picture_lies_as_published_under_a_name_that_follows_from_its_link(tmp_path, server):
    server.pages |= {"/a.JPG?w=3": picture(1, "JPEG"), "/b": picture(2)}
    urls = [f"{server.url}/a.JPG?w=3", f"{server.url}/b"]
    fetch(tmp_path, urls)
    hashes = [sha256(url.encode()).hexdigest() for url in urls]
    names = [f"{h[:2]}/{h[2:34]}.jpg" for h in hashes]
    assert [name_of(url) for url in urls] == names
    assert pictures_in(tmp_path) == {names[0]: picture(1, "JPEG"), names[1]: picture(2)}
    assert open_picture(Links(tmp_path).path(urls[1])).size == (16, 16), "a PNG by the name of .jpg opens all the same"
    told = journal(tmp_path)[urls[1]]
    assert (told["bytes"], told["sha256"]) == (len(picture(2)), sha256(picture(2)).hexdigest())
    assert name_of("http://h/x.PNG?of=y.gif").endswith(".png") and name_of("http://h/x.html").endswith(".jpg")
    assert not (tmp_path / "images.partial").exists()


def test_completeness_counts_what_is_there_and_why_the_rest_is_not(tmp_path, server):
    server.pages |= {"/0": picture(), "/1": picture(1), "/2": 404, "/3": 404, "/4": 410}
    urls = [f"{server.url}/{i}" for i in range(5)]
    told = fetch(tmp_path, urls)
    assert told == Completeness(5, 2, {"404": 2, "410": 1})
    assert str(told) == "2 of 5 pictures there (40.0 %); 3 dead links: 2 404, 1 410"
    more = Links(tmp_path).completeness([*urls, "http://h/new"])
    assert str(more) == "2 of 6 pictures there (33.3 %); 3 dead links: 2 404, 1 410; 1 not asked for yet"
    assert str(Completeness(20_000, 14_211, {"404": 3_100, "timeout": 2_689})) == (
        "14,211 of 20,000 pictures there (71.1 %); 5,789 dead links: 3,100 404, 2,689 timeout"
    )
    assert str(Completeness(0, 0, {})) == "0 of 0 pictures there (0.0 %)"


CHUNKED = {"Content-Length": "", "Transfer-Encoding": ""}


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (404, "404"),
        (410, "410"),
        (403, "403"),
        (b"<html>gone</html>", "not a picture"),
        (b"", "not a picture"),
        (picture(3, "JPEG", 64)[:-200], "not a picture"),
        ((200, {}, b"x" * 20_000), "too large"),
        ((200, CHUNKED, b"x" * 20_000), "too large"),
        ((200, {"Content-Length": "20000"}, b""), "too large"),
        ((200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(1_000_000))), "too large"),
        ((200, {"X-Robots-Tag": "noindex, NoAI"}, picture()), "opted out"),
        ((301, {"Location": "/photo_unavailable.png"}, b""), "placeholder"),
        ((301, {"Location": "/it"}, b""), "redirects"),
        ((302, {"Location": "ftp://127.0.0.1/x"}, b""), "not a web address"),
    ],
)
def test_what_gives_no_picture_is_dead_for_a_reason_and_asked_once(tmp_path, server, page, reason):
    server.pages |= {"/it": page, "/photo_unavailable.png": picture()}
    told = fetch(tmp_path, [f"{server.url}/it"], max_bytes=10_000)
    assert told == Completeness(1, 0, {reason: 1})
    assert server.asked("/it") == (6 if reason == "redirects" else 1)
    assert pictures_in(tmp_path) == {}


def test_what_was_refused_takes_no_disk(tmp_path, server):
    seen = []

    def look():
        seen.append(list((tmp_path / "images.partial").iterdir()))
        return 404

    server.pages |= {"/0": b"no picture", "/1": (200, CHUNKED, b"x" * 20_000), "/2": look}
    told = fetch(tmp_path, [f"{server.url}/{i}" for i in range(3)], per_host=1, max_bytes=10_000)
    assert told.dead == {"not a picture": 1, "too large": 1, "404": 1} and seen == [[]]


@pytest.mark.parametrize("url", ["ftp://h/x.jpg", "file:///etc/hostname", "", "x.jpg", "http://", "http://[1/x", "http://h:x/",
                                 "data:image/png;base64,xx", "http://a\x00b/"])  # fmt: skip
def test_what_is_no_web_address_is_dead_and_stops_nothing(tmp_path, server, url):
    server.pages["/0"] = picture()
    told = fetch(tmp_path, [url, f"{server.url}/0"])
    assert told == Completeness(2, 1, {"not a web address": 1})


def test_a_name_that_no_host_can_have_is_no_web_address(tmp_path, server):
    server.pages["/0"] = picture()
    told = fetch(tmp_path, [f"http://{'a' * 70}.com/x"], allow_private=False)
    assert told.dead == {"not a web address": 1}


def test_links_are_quoted_as_browsers_do(tmp_path, server):
    server.pages["/%C3%A4%20b.png"] = picture()
    assert fetch(tmp_path, [f"{server.url}/ä b.png"]).there == 1


@pytest.mark.parametrize("page", [500, 503, 429, 408, "mute", "hang", (200, {"Content-Length": "9999"}, picture())])
def test_what_may_pass_is_asked_again(tmp_path, server, page):
    timeout = 0.5 if page == "hang" else 10
    server.pages |= {"/0": picture(), "/it": [page, page, picture()], "/new": [page, page, picture()]}
    assert fetch(tmp_path, [f"{server.url}/0", f"{server.url}/it"], retries=2, timeout=timeout).there == 2
    assert server.asked("/it") == 3
    told = fetch(tmp_path, [f"{server.url}/new"], retries=1, timeout=timeout)
    reason = (
        {"hang": "timeout", "mute": "no connection"}.get(page, str(page))
        if type(page) is not tuple
        else "no connection"
    )
    assert told == Completeness(1, 0, {reason: 1}) and server.asked("/new") == 2


def test_a_trickle_is_cut_off(tmp_path, server):
    server.pages |= {"/it": "drip", "/0": picture()}
    start = time.monotonic()
    told = fetch(tmp_path, [f"{server.url}/{page}" for page in ("0", "it")], retries=0, deadline=0.7)
    assert told == Completeness(2, 1, {"timeout": 1}) and time.monotonic() - start < 8


def test_a_host_that_asks_for_patience_gets_it_for_all_its_links(tmp_path, server):
    server.pages |= {"/it": (429, {"Retry-After": "1"}, b""), "/0": picture()}
    told = fetch(tmp_path, [f"{server.url}/it", f"{server.url}/0"], per_host=1, retries=0)
    assert told == Completeness(2, 1, {"429": 1})
    (first, at, _), (second, later, _) = server.log
    assert (first, second) == ("/it", "/0") and 0.95 < later - at < 5


def test_a_dead_link_is_not_asked_again_unless_one_wants_it(tmp_path, server):
    server.pages |= {"/0": picture(), "/1": [404, picture(1)]}
    urls = [f"{server.url}/0", f"{server.url}/1"]
    assert fetch(tmp_path, urls).there == 1
    assert fetch(tmp_path, urls).dead == {"404": 1} and server.asked() == 2
    assert fetch(tmp_path, urls, retry_dead=True).there == 2 and server.asked() == 3
    assert fetch(tmp_path, urls, retry_dead=True) == Completeness(2, 2, {}) and server.asked() == 3


def test_the_sha256_decides_unless_one_does_not_want_it(tmp_path, server):
    server.pages |= {"/0": picture(), "/1": picture(1)}
    digest = sha256(picture()).hexdigest()
    wanted = {f"{server.url}/0": digest.upper(), f"{server.url}/1": digest}
    assert fetch(tmp_path, wanted) == Completeness(2, 1, {"sha256 mismatch": 1})
    assert len(pictures_in(tmp_path)) == 1
    assert fetch(tmp_path, wanted, retry_dead=True, check_sha256=False).there == 2


@pytest.mark.parametrize(
    "tail", [b'{"url": "http://h/7", "by', b'{"url"', b"\x00\x00", b'{"url": "http://h/7"}', b"[]", b'"']
)
def test_a_journal_that_was_cut_off_loses_no_more_than_that_line(tmp_path, server, tail):
    server.pages |= {"/0": 404, "/1": 404, "/2": 404}
    fetch(tmp_path, [f"{server.url}/0", f"{server.url}/1"])
    with (tmp_path / "links.jsonl").open("ab") as file:
        file.write(tail)
    assert fetch(tmp_path, [f"{server.url}/{i}" for i in range(3)]).dead == {"404": 3}
    assert server.asked("/0") == server.asked("/1") == server.asked("/2") == 1
    assert Links(tmp_path).came == {f"{server.url}/{i}": "404" for i in range(3)}


def test_a_picture_that_was_deleted_or_damaged_is_fetched_again(tmp_path, server):
    server.pages |= {f"/{i}": picture(i) for i in range(3)}
    urls = [f"{server.url}/{i}" for i in range(3)]
    fetch(tmp_path, urls)
    paths = [Links(tmp_path).path(url) for url in urls]
    paths[0].unlink()
    paths[1].write_bytes(b"")
    assert Links(tmp_path).completeness(urls) == Completeness(3, 1, {})
    assert fetch(tmp_path, urls).there == 3 and server.asked() == 5
    (tmp_path / "links.jsonl").unlink()
    assert fetch(tmp_path, urls).there == 3 and server.asked() == 5, "what is there is whole, whoever remembers it"


def test_no_more_requests_at_a_time_than_asked_for(tmp_path, server):
    server.slow = 0.05
    server.pages |= {f"/{i}": picture(i) for i in range(12)}
    urls = [f"{server.url}/{i}" for i in range(12)]
    assert fetch(tmp_path / "a", urls, per_host=3, workers=8).there == 12
    assert server.most == 3
    server.most = 0
    here = [url.replace("127.0.0.1", "localhost") if i % 2 else url for i, url in enumerate(urls)]
    assert fetch(tmp_path / "b", here, per_host=3, workers=4).there == 12
    assert server.most == 4


def test_a_slow_host_does_not_hold_up_the_others(tmp_path, server):
    def once_the_others_are_served():
        end = time.monotonic() + 3
        while server.asked() < 6 and time.monotonic() < end:
            time.sleep(0.01)
        return 404

    server.pages |= {f"/slow{i}": once_the_others_are_served for i in range(3)} | {
        f"/{i}": picture(i) for i in range(4)
    }
    slow = [f"http://localhost:{server.port}/slow{i}" for i in range(3)]
    fetch(tmp_path, slow + [f"{server.url}/{i}" for i in range(4)], workers=3, per_host=2)
    order = [path for path, _, _ in server.log]
    assert order.index("/slow2") == 6, "who waits for the slow host's turn keeps no worker from the others"


def test_links_are_taken_in_hand_a_few_at_a_time(tmp_path, monkeypatch):
    now, most = 0, 0

    async def one(self, url, digest):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    monkeypatch.setattr(link_download._Run, "one", one)
    fetch(tmp_path, [f"http://h/{i}" for i in range(1000)], workers=2)
    assert most == 32


def test_hosts_hear_who_asks(tmp_path, server):
    fetch(tmp_path, [f"{server.url}/0"], user_agent="me (me@example.org)")
    assert server.log[0][2]["User-Agent"] == "me (me@example.org)"
    assert "research" in Limits().user_agent


def test_silence_is_death_only_while_others_can_be_heard(tmp_path, server):
    server.pages["/0"] = picture()
    silent = [f"{nobody()}/{i}" for i in range(30)]
    with pytest.raises(Offline, match="no answer for 2. links .no connection: .*is this machine online"):
        fetch(tmp_path, silent, retries=0, timeout=1)
    assert Links(tmp_path).completeness(silent) == Completeness(30, 0, {}), "they count as not asked for"
    server.slow = 0.5  # so that all the others have failed by then
    told = fetch(tmp_path, [*silent[:15], f"{server.url}/0", *silent[15:]], retries=0)
    assert told.there == 1 and told.dead == {"no connection": 30}
    assert fetch(tmp_path, [f"{nobody()}/new"], retries=0).dead == {"no connection": 1}, (
        "who answered last run is asked"
    )


def test_links_outlive_a_network_that_fails_on_the_way(tmp_path):
    with Server() as server:
        server.pages |= {f"/{i}": picture(i) for i in range(60)}
        urls = [f"{server.url}/{i}" for i in range(60)]
        fetch(tmp_path, urls[:3])
    with pytest.raises(Offline):
        fetch(tmp_path, [*urls, "file:///x"], retries=0, timeout=1)
    assert Links(tmp_path).completeness(urls) == Completeness(60, 3, {})


def test_a_host_that_never_answers_is_given_up(tmp_path, server):
    server.pages |= {f"/mute{i}": "mute" for i in range(40)} | {"/0": picture()}
    mute = [f"http://localhost:{server.port}/mute{i}" for i in range(40)]
    told = fetch(tmp_path, [*mute, f"{server.url}/0"], per_host=1, retries=0)
    assert told == Completeness(41, 1, {"no connection": 40})
    assert sum("mute" in path for path, _, _ in server.log) == 5
    assert "not asked for: 5 links of this host" in journal(tmp_path)[mute[-1]]["detail"]


def test_what_was_given_up_of_a_host_that_comes_back_is_still_to_be_asked_for(tmp_path, server):
    server.pages |= {f"/{i}": "mute" for i in range(1, 19)} | {"/0": picture()}
    urls = [f"{server.url}/{i}" for i in range(19)]
    told = fetch(tmp_path, urls, per_host=1, retries=0)
    assert server.asked() == 1 + 5 + 1, "the last is to ask whether it is the network that is silent"
    assert told == Completeness(19, 1, {"no connection": 5}) and told.unasked == 13


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]",
                                  "2130706433", "0.0.0.0"])  # fmt: skip
def test_links_into_this_machines_own_network_are_refused(tmp_path, server, host):
    server.pages["/0"] = picture()
    told = fetch(tmp_path, [f"http://{host}:{server.port}/0"], allow_private=False)
    assert told.dead == {"private address": 1} and server.asked() == 0


def test_so_are_those_that_a_redirect_leads_to(tmp_path, server, monkeypatch):
    server.pages |= {"/0": picture(), "/it": (302, {"Location": "http://169.254.169.254/secret"}, b"")}
    real = link_download.ip_address
    public = SimpleNamespace(is_global=True, is_multicast=False)
    monkeypatch.setattr(link_download, "ip_address", lambda text: public if text == "127.0.0.1" else real(text))
    told = fetch(tmp_path, [f"{server.url}/0", f"{server.url}/it"], allow_private=False)
    assert told == Completeness(2, 1, {"private address": 1})


def test_through_a_proxy_names_are_its_affair_but_addresses_are_not(tmp_path, server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    server.pages["http://no.such.host.example/0"] = picture()
    told = fetch(tmp_path, ["http://no.such.host.example/0", "http://10.0.0.1/0"], allow_private=False)
    assert told == Completeness(2, 1, {"private address": 1})


def test_two_downloads_into_one_folder_do_not_meet(tmp_path, server):
    server.pages |= {"/0": "hang", "/1": picture()}

    def first():
        with suppress(Offline):
            fetch(tmp_path, [f"{server.url}/0"], retries=0)

    thread = Thread(target=first, daemon=True)
    thread.start()
    while not server.log:
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match="another download is at work there"):
        fetch(tmp_path, [f"{server.url}/1"])
    assert fetch(tmp_path / "another", [f"{server.url}/1"]).there == 1
    server.closing.set()
    thread.join(5)


def test_a_disk_that_takes_nothing_stops_the_run_and_buries_no_link(tmp_path, server):
    server.pages["/0"] = picture()
    (tmp_path / "images").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        fetch(tmp_path, [f"{server.url}/0"])
    assert Links(tmp_path).came == {}


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"timeout": 0}, {"max_bytes": 0}, {"retries": -1}])
def test_limits_that_let_nothing_through_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


SCRIPT = """
import sys
from datasets_scripts.link_download import Limits, download
urls = [f"{sys.argv[1]}/{i}" for i in range(int(sys.argv[3]))]
download(dict.fromkeys(urls), sys.argv[2], Limits(allow_private=True, workers=4, timeout=60))
"""


def begun(server: Server, folder: Path, count: int, requests: int) -> subprocess.Popen:
    """A download in a process of its own that has sent so many requests."""
    command = [sys.executable, "-c", SCRIPT, server.url, str(folder), str(count)]
    run = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while server.asked() < requests and time.monotonic() < end:
        time.sleep(0.005)
    assert server.asked() >= requests
    return run


def test_a_killed_download_leaves_nothing_half_and_goes_on_from_there(tmp_path, server):
    server.pages |= {f"/{i}": (picture(i, size=200) if i % 3 else 404) for i in range(60)}
    server.slow = 0.03
    run = begun(server, tmp_path, 60, 30)
    run.kill()
    run.wait()
    whole = {name_of(f"{server.url}/{i}"): picture(i, size=200) for i in range(60) if i % 3}
    before = pictures_in(tmp_path)
    assert 10 < len(before) < 40 and before.items() <= whole.items()
    kept = {path for path in (f"/{i}" for i in range(60)) if name_of(server.url + path) in before}
    dead = {url.removeprefix(server.url) for url, told in journal(tmp_path).items() if "dead" in told}
    assert len(dead) > 4
    kept |= dead
    server.log.clear()
    (tmp_path / "images.partial").mkdir(exist_ok=True)
    (tmp_path / "images.partial" / "half").write_bytes(b"of a picture")
    assert fetch(tmp_path, [f"{server.url}/{i}" for i in range(60)]) == Completeness(60, 40, {"404": 20})
    assert pictures_in(tmp_path) == whole
    assert {path for path, _, _ in server.log} == {f"/{i}" for i in range(60)} - kept, "nothing is asked for twice"
    assert not (tmp_path / "images.partial").exists()


def test_ctrl_c_ends_at_once_and_keeps_what_is_there(tmp_path, server):
    server.pages |= {f"/{i}": picture(i) for i in range(10)} | {f"/{i}": "hang" for i in range(10, 40)}
    run = begun(server, tmp_path, 40, 14)
    start = time.monotonic()
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=30)
    assert time.monotonic() - start < 5 and b"KeyboardInterrupt" in told
    assert len(pictures_in(tmp_path)) == 10 and list((tmp_path / "images.partial").iterdir()) == []
    assert Links(tmp_path).completeness(f"{server.url}/{i}" for i in range(40)) == Completeness(40, 10, {})
