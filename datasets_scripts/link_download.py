"""
Pictures of data sets that are published as links, downloaded once and verified.

    {url: sha256 or None} -> download -> FOLDER/images/…, FOLDER/links.jsonl   (picture_links.py)

Unusual: a picture has its final name only once it is whole, opens and has the right sha256; the journal is only added to, and a
line cut off by a kill is passed over: that link is asked for again. Silence is taken for death only while somebody else can be
heard, so that an hour without a network does not bury ten thousand links (`Offline` is raised instead, and they count as not asked
for). A host that asks for patience (429, 503) gets it from all workers. Of what answers with a picture that is none ("photo
unavailable"), only what is known by its address is found: links.jsonl has every sha256.
"""

import asyncio
import json
import os
import shutil
import socket
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit
from urllib.request import getproxies

import filelock
import httpx2
from tqdm.auto import tqdm

from datasets_scripts.open_picture import UnreadablePicture, open_picture
from datasets_scripts.picture_links import JOURNAL, PICTURES_IN, Completeness, Links


PASSING = (408, 425, 429)  # and 500 and above: may be gone when asked again
PATIENCE = ("429", "503")
LONGEST_WAIT = 60.0  # seconds; a host that asks for more is asked again then
REDIRECTS = 5
OPENED_AT_ONCE = 4  # pictures; each may take a gigabyte while it is decoded
GIVE_UP_HOST = 5  # of its links in a row without an answer: the rest are not waited for
HELD = 20  # links without an answer before it is asked whether anybody can be heard
PLACEHOLDERS = ("/photo_unavailable", "imgur.com/removed.png")  # Flickr's and Imgur's, for what is gone
OPT_OUT = {"noai", "noimageai"}  # of X-Robots-Tag: not for machine learning


@dataclass(frozen=True)
class Limits:
    """How a download goes about it. Raises ValueError for bounds that let nothing through."""

    workers: int = 32  # requests at a time
    per_host: int = 4  # of them, to one host (a redirect counts for the host that sends it)
    timeout: float = 15.0  # seconds of silence
    deadline: float = 120.0  # seconds for one picture, however slowly it trickles
    max_bytes: int = 50_000_000  # of one picture
    retries: int = 3  # of what may pass: 429, 5xx, timeouts, no connection
    backoff: float = 1.0  # seconds before the first retry; doubles
    check_sha256: bool = True  # False: pictures that their hosts have recoded since are taken too
    allow_private: bool = False  # follow links into this machine's own network
    user_agent: str = "sightline-picture-links/0.1 (downloads the pictures of published research data sets)"

    def __post_init__(self):
        for name in ("workers", "per_host", "timeout", "deadline", "max_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")
        if self.retries < 0 or self.backoff < 0:
            raise ValueError(f"retries={self.retries} and backoff={self.backoff} must not be below 0")


class Offline(ConnectionError):
    """Nobody can be heard: it says nothing about the links."""


class Dead(Exception):
    """
    Why a link gave no picture. passing: it may be asked again; after `wait` seconds, if its host says so. silence: nobody answered,
    though somebody was asked.
    """

    def __init__(self, reason: str, detail: str = "", passing: bool = False, silence: bool = False, wait: float = 0.0):
        super().__init__(reason)
        self.reason, self.detail, self.passing, self.silence, self.wait = reason, detail, passing, silence, wait


def download(
    wanted: Mapping[str, str | None],
    folder: str | os.PathLike,
    limits: Limits = Limits(),  # noqa: B008  it is frozen
    retry_dead: bool = False,
) -> Completeness:
    """
    Brings the pictures of links (url -> its sha256 where known) that `folder` lacks; dead links are asked again only with
    `retry_dead`. It may be killed at any moment, and the same call goes on from there. Raises Offline where nobody answers,
    RuntimeError where another download is at work in `folder` or an event loop runs already, OSError where it cannot write.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            filelock.FileLock(folder / "links.lock", timeout=0),
            open(folder / JOURNAL, "a", encoding="utf-8") as journal,
        ):
            if journal.tell():
                journal.write("\n")  # the last line may have been cut off
            links = Links(folder)
            missing = [url for url in wanted if not links.there(url)]
            todo = [url for url in missing if retry_dead or not isinstance(links.came.get(url), str)]
            counts = Counter(ok=len(wanted) - len(missing), dead=len(missing) - len(todo))
            with tqdm(desc="pictures", total=len(wanted), initial=counts.total(), unit="") as bar:
                try:
                    asyncio.run(_Run(links, journal, limits, bar, counts).all(todo, wanted))
                except BaseExceptionGroup as several:
                    raise several.exceptions[0] from None
    except filelock.Timeout:
        raise RuntimeError(f"{folder}: another download is at work there; wait until it has ended") from None
    return links.completeness(wanted)


@dataclass
class _Host:
    turns: asyncio.Semaphore
    not_before: float = 0.0  # by time.monotonic
    silent: int = 0  # links in a row without an answer
    reason: str = ""  # of that silence


class _Run:
    def __init__(self, links: Links, journal: TextIO, limits: Limits, bar: tqdm, counts: Counter):
        self.links, self.journal, self.limits, self.bar, self.counts = links, journal, limits, bar, counts
        self.partial = links.folder / f"{PICTURES_IN}.partial"
        self.hosts: dict[str, _Host] = defaultdict(lambda: _Host(asyncio.Semaphore(limits.per_host)))
        self.public: set[str] = set()  # hosts whose addresses are
        # through a proxy, names are its affair, and may mean nothing here
        self.proxied = bool({"http", "https", "all"} & getproxies().keys())
        self.answers = 0
        # what the journal would say of links without an answer, and whether they were asked for
        self.held: list[tuple[dict, bool]] = []
        # host -> a link of it that was answered; the latest last
        self.heard = {_host_of(url): url for url, came in links.came.items() if isinstance(came, int)}

    async def all(self, todo: list[str], sha256s: Mapping[str, str | None]) -> None:
        self.partial.mkdir(exist_ok=True)  # there, with what it had begun, after a run that was killed
        # names are looked up in threads; were there fewer than workers, waiting for one would look like a host's silence
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(self.limits.workers))
        self.workers = asyncio.Semaphore(self.limits.workers)
        window = asyncio.Semaphore(16 * self.limits.workers)  # links in hand; most wait for their host's turn
        client = httpx2.AsyncClient(
            timeout=self.limits.timeout,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=self.limits.workers),
            headers={"User-Agent": self.limits.user_agent, "Accept": "image/*,*/*;q=0.5"},
        )
        with ThreadPoolExecutor(OPENED_AT_ONCE) as self.openers:
            async with client as self.client:
                async with asyncio.TaskGroup() as tasks:
                    for url in todo:
                        await window.acquire()
                        digest = sha256s[url] if self.limits.check_sha256 else None
                        tasks.create_task(self.one(url, digest)).add_done_callback(lambda _: window.release())
                await self.settle(0)
        shutil.rmtree(self.partial)

    async def one(self, url: str, digest: str | None) -> None:
        host = self.hosts[_host_of(url)]
        async with host.turns:
            if host.silent >= GIVE_UP_HOST:
                why = f"not asked for: {host.silent} links of this host in a row were without an answer"
                self.held.append(({"url": url, "dead": host.reason, "detail": why}, False))
            else:
                try:
                    size, found = await self.tried(url, digest, host)
                    self.write({"url": url, "bytes": size, "sha256": found})
                except Dead as why:
                    line = {"url": url, "dead": why.reason, "detail": why.detail}
                    if why.silence:
                        host.silent, host.reason = host.silent + 1, why.reason
                        self.held.append((line, True))
                    else:
                        self.write(line)
        if len(self.held) >= HELD:
            await self.settle(self.limits.timeout)

    async def tried(self, url: str, digest: str | None, host: _Host) -> tuple[int, str]:
        """Bytes and sha256 of a picture that is now in its place, after as many requests as it takes. Raises Dead."""
        for retry in range(self.limits.retries + 1):
            while (wait := host.not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            try:
                async with self.workers:
                    return await self.once(url, digest)
            except Dead as why:
                wait = self.limits.backoff * 2**retry
                if why.reason in PATIENCE:
                    host.not_before = max(host.not_before, time.monotonic() + (why.wait or wait))
                if not why.passing or retry == self.limits.retries:
                    raise
                await asyncio.sleep(wait)

    async def once(self, url: str, digest: str | None) -> tuple[int, str]:
        if not _host_of(url):
            raise Dead("not a web address", url)
        path, answered = self.links.path(url), False
        temporary = self.partial / path.name
        try:
            async with asyncio.timeout(self.limits.deadline):
                async with self.answer(url) as response:
                    answered = True
                    size, found = await self.saved(response, temporary)
            if digest and found != digest.lower():
                raise Dead("sha256 mismatch", f"has {found}, not {digest}")
            await asyncio.get_running_loop().run_in_executor(self.openers, open_picture, temporary)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)
            return size, found
        except UnreadablePicture as problem:
            raise Dead("not a picture", str(problem).removeprefix(f"{temporary}: ")) from problem
        except (TimeoutError, httpx2.TimeoutException) as problem:
            raise Dead("timeout", type(problem).__name__, passing=True, silence=not answered) from problem
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.DecodingError, ValueError) as problem:
            raise Dead("not a picture" if answered else "not a web address", str(problem)) from problem
        except (httpx2.TransportError, socket.gaierror) as problem:
            raise Dead("no connection", str(problem), passing=True, silence=not answered) from problem
        finally:
            temporary.unlink(missing_ok=True)

    @asynccontextmanager
    async def answer(self, url: str) -> AsyncIterator[httpx2.Response]:
        """The answer to a GET, its body not read yet, after redirects; where each leads is checked before it is followed."""
        request = self.client.build_request("GET", url)
        for _ in range(REDIRECTS + 1):
            await self.check(request.url)
            response = await self.client.send(request, stream=True)
            self.hear(url)
            try:
                if response.next_request is None:
                    yield response
                    return
                request = response.next_request
            finally:
                await response.aclose()
        raise Dead("redirects", f"more than {REDIRECTS}")

    async def check(self, url: httpx2.URL) -> None:
        if url.scheme not in ("http", "https"):
            raise Dead("not a web address", str(url))
        if self.limits.allow_private or url.host in self.public:
            return
        try:
            addresses = [ip_address(url.host)]
        except ValueError:
            if self.proxied:
                return
            found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
            addresses = [ip_address(place[4][0]) for place in found]
        if inside := [str(address) for address in addresses if not address.is_global or address.is_multicast]:
            raise Dead("private address", f"{url.host} is {', '.join(inside)}")
        self.public.add(url.host)

    async def saved(self, response: httpx2.Response, temporary: Path) -> tuple[int, str]:
        """Bytes and sha256 of a body, written to a file. Raises Dead for what is no picture by its status, size or headers."""
        status, most = response.status_code, self.limits.max_bytes
        if status != 200:
            told = response.headers.get("Retry-After", "")
            wait = min(float(told), LONGEST_WAIT) if told.isdecimal() else 0.0
            raise Dead(str(status), response.reason_phrase, passing=status in PASSING or status >= 500, wait=wait)
        if any(place in str(response.url) for place in PLACEHOLDERS):
            raise Dead("placeholder", str(response.url))
        robots = response.headers.get("X-Robots-Tag", "").lower()
        if said := OPT_OUT & {word.split(":")[-1].strip() for word in robots.split(",")}:
            raise Dead("opted out", f"X-Robots-Tag: {', '.join(sorted(said))}")
        if int(response.headers.get("Content-Length", 0)) > most:
            raise Dead("too large", f"{response.headers['Content-Length']} bytes")
        size, digest = 0, sha256()
        with temporary.open("wb") as file:
            async for chunk in response.aiter_bytes():
                size += len(chunk)
                if size > most:
                    raise Dead("too large", f"over {most} bytes")
                file.write(chunk)
                digest.update(chunk)
        return size, digest.hexdigest()

    def hear(self, url: str) -> None:
        """Somebody answered: so the others' silence is their own."""
        name = _host_of(url)
        self.hosts[name].silent = 0
        self.heard.pop(name, None)
        self.heard[name] = url
        self.answers += 1
        held, self.held = self.held, []
        self.bury(held)

    def bury(self, held: list[tuple[dict, bool]]) -> None:
        for line, asked in held:
            # what was not asked for, of a host that answers after all, stays to be asked for
            if asked or self.hosts[_host_of(line["url"])].silent:
                self.write(line)

    def write(self, line: dict) -> None:
        self.journal.write(json.dumps(line) + "\n")
        self.journal.flush()
        self.links.came[line["url"]] = line.get("dead", line.get("bytes"))
        self.counts["dead" if "dead" in line else "ok"] += 1
        self.bar.set_postfix(self.counts, refresh=False)
        self.bar.update()

    async def settle(self, patience: float) -> None:
        """What is held is dead if one of the last to answer answers now, or anybody within `patience` seconds; else Offline."""
        held, self.held, answers = self.held, [], self.answers
        for url in reversed(list(self.heard.values())[-5:]):
            if held and answers == self.answers:
                with suppress(TimeoutError, OSError, httpx2.HTTPError, Dead):
                    async with asyncio.timeout(self.limits.timeout), self.answer(url):
                        break
        end = time.monotonic() + patience
        while answers == self.answers and time.monotonic() < end:
            await asyncio.sleep(patience / 20)
        if not held or answers < self.answers:
            return self.bury(held)
        raise Offline(
            f"no answer for {len(held)} links ({held[-1][0]['dead']}: {held[-1][0]['detail']}), nor from anybody who answered "
            "before: is this machine online? These links count as not asked for; run the same command again"
        )


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
