"""
Chats with an OpenAI-compatible server, many at once, each reply kept on disk as soon as it is there.

    chats {"model", "messages", ...} -> alike ones once -> FOLDER/KEY.json, or POST {base_url}/chat/completions -> replies, in order

Unusual: a chat's key is the hash of the server's address and of all that is sent, so a kept reply is of this very question, and a
run that was stopped asks for what is missing only. Where a reply cannot be read, the server is told so and asked once more; both
replies are kept. The key of the server's owner is read from the environment, sent as a bearer token to that address (no redirect
is followed), and cut out of whatever the server says before that is read, kept or shown.
"""

import json
import os
import random
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm.auto import tqdm


BACKOFF, LONGEST = 1.0, 60.0  # seconds before the second attempt, doubled before each further one; at most
SECRET = 8  # characters; "EMPTY" and the like are no keys, and may stand in a reply
AGAIN = "Your reply could not be read. Reply with the JSON object alone."


class Stopped(Exception):
    """Another chat has failed; nothing is waited for."""


class Endpoint:
    """
    base_url: up to and with "/v1". api_key_env: the environment's variable that holds the key; not set, none is sent. timeout:
    seconds that one attempt may take. retries: further attempts after 429, 5xx and lost connections.

    Raises ValueError for an address or a variable's name that cannot be one, without repeating what may hold a key.
    """

    def __init__(self, base_url: str, api_key_env: str, folder: Path, timeout: float, retries: int):
        parts = urlsplit(base_url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                f"base_url: an address of {parts.hostname} with a name, a password or a query in it, which protocols would repeat. "
                "Give the address alone, and as api_key_env the name of the variable that holds the key"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f'base_url must be like "http://localhost:8000/v1", is {base_url!r}')
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api_key_env):
            raise ValueError("api_key_env must be the name of an environment variable; never give the key itself")
        self.base_url, self.api_key_env, self.folder = base_url.rstrip("/"), api_key_env, Path(folder)
        self.url, self.timeout, self.retries = f"{self.base_url}/chat/completions", timeout, retries
        self._key = os.environ.get(api_key_env, "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):
            raise ValueError(
                f"what {api_key_env} holds is no key: it has spaces, line ends or characters other than ASCII"
            )
        self._stop, self._mine = threading.Event(), threading.local()

    def ask_all(
        self,
        count: int,
        chat: Callable[[int], dict],
        readable: Callable[[str], bool],
        per_record: int,
        concurrency: int,
        time_limit: float | None,
    ) -> list[dict]:
        """
        {"replies": [str], "served": the model that the server says replied} for each of `count` chats, in order: of the replies the
        last is `readable`, or there are two and none is. per_record: so many chats are about one record, which errors name.
        time_limit: seconds for all together.

        Raises ConnectionError where the server fails for good and TimeoutError past the limit, both after what was answered is
        kept; ValueError for a kept file that cannot be read.
        """
        keys = [self._key_of(chat(number)) for number in range(count)]
        first: dict[str, int] = {}
        for number, key in enumerate(keys):
            first.setdefault(key, number)
        kept: dict[str, dict] = {key: found for key in first if (found := self._kept(key)) is not None}
        pool = ThreadPoolExecutor(concurrency)
        waiting = {
            pool.submit(self._talk, key, partial(chat, number), readable, f"record {number // per_record}"): key
            for key, number in first.items()
            if key not in kept
        }
        try:
            ended = as_completed(waiting, timeout=time_limit)
            for future in tqdm(ended, desc="judging", total=len(waiting), disable=not waiting, leave=False):
                if not isinstance(future.exception(), Stopped):  # of it the cause is among the others
                    kept[waiting[future]] = future.result()
        except TimeoutError:
            raise TimeoutError(
                f"{self.url} has answered {len(kept)} of {len(first)} within {time_limit} s; they are kept in {self.folder}. Run "
                "the same again to go on, with more time or concurrency"
            ) from None
        finally:
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return [kept[key] for key in keys]

    def _key_of(self, body: dict) -> str:
        return sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()

    def _kept(self, key: str) -> dict | None:
        path = self.folder / f"{key}.json"
        try:
            return json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{path} is no kept reply ({error}); remove it, and it is asked for again") from None

    def _talk(self, key: str, chat: Callable[[], dict], readable: Callable[[str], bool], record: str) -> dict:
        try:
            said = self._replies(chat(), readable, record)  # only now: pictures of all chats would fill the memory
            self._keep(key, said)
        except BaseException:
            self._stop.set()  # at once: nothing more is to be asked that nobody will read
            raise
        return said

    def _replies(self, body: dict, readable: Callable[[str], bool], record: str) -> dict:
        text, served = self._post(body, record)
        replies = [text]
        if not readable(text):
            turns = [{"role": "assistant", "content": text or "(nothing)"}, {"role": "user", "content": AGAIN}]
            text, served = self._post(body | {"messages": [*body["messages"], *turns]}, record)
            replies.append(text)
        return {"replies": replies, "served": served}

    def _keep(self, key: str, said: dict) -> None:
        """Whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{key}.{os.getpid()}-{threading.get_ident()}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(said, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / f"{key}.json")

    def _post(self, body: dict, record: str) -> tuple[str, str]:
        """One reply's text and the model that gave it."""
        for attempt in range(self.retries + 1):
            if self._stop.is_set():
                raise Stopped
            wait = BACKOFF * 2**attempt * random.uniform(0.75, 1.25)  # not all at once again
            try:
                response = self._session().post(
                    self.url, json=body, auth=self._sign, timeout=self.timeout, allow_redirects=False
                )
                said = self._without_key(response.content.decode("utf-8", "replace"))
                if response.status_code == 200:
                    return self._reply(said, record)
                problem = f"answered {response.status_code}: {said[:300]}"
                if response.status_code not in (408, 429) and response.status_code < 500:
                    raise ConnectionError(f"{record}: {self.url} {problem}{self._hint(response.status_code)}")
                if (asked := response.headers.get("Retry-After", "")).isdigit():
                    wait = float(asked)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                problem = self._without_key(f"cannot be reached: {type(error).__name__}: {error}")
            if attempt < self.retries:
                self._stop.wait(min(wait, LONGEST))
        raise ConnectionError(
            f"{record}: {self.url} {problem} ({self.retries + 1} attempts). What was judged is kept in {self.folder}; once "
            "the server answers, run the same again to go on"
        )

    def _reply(self, said: str, record: str) -> tuple[str, str]:
        try:
            whole = json.loads(said)
            text, served = whole["choices"][0]["message"]["content"], whole.get("model")
            if not isinstance(text, str | None):
                raise TypeError
            return text or "", str(served)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ConnectionError(
                f"{record}: {self.url} answers with no chat completion: {said[:300]!r}. Is base_url right?"
            ) from None

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Given as `auth`, it keeps requests from looking for a password of that host in ~/.netrc."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _session(self) -> requests.Session:
        if not hasattr(self._mine, "session"):  # requests does not promise that threads may share one
            self._mine.session = requests.Session()
        return self._mine.session

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) >= SECRET else text

    def _hint(self, status: int) -> str:
        if status in (401, 403) and self._key:
            return f". The key sent is what the variable {self.api_key_env} holds"
        if status in (401, 403):  # the name is not repeated: if no variable has it, it may be a key given by mistake
            return ". No key was sent: the variable that api_key_env names is not set"
        return ". Is base_url right, up to and with /v1?" if status in (301, 302, 307, 308, 404, 405) else ""
