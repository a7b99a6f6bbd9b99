"""Reading from a web server that may reset, ask for a pause, ignore ranges or change the file meanwhile."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import requests
import urllib3

from marigold.data.errors import DataError

T = TypeVar("T")

_CHUNK = 1 << 18  # bytes that a reset in the middle can lose
_LONGEST_WAIT, _LONGEST_RETRY_AFTER = 60.0, 600.0  # seconds: the back-off, and a wait that a server asks for
# Answers after which another try may succeed: RFC 9110, 8470 (425) and 6585 (429).
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Network:
    """How often to try again, and how many connections to open at once.

    retries: tries after the first that bring nothing new; any progress resets the count. wait: seconds before the
    first of them, doubled for each further one, up to a minute. timeout: seconds without a byte.
    """

    retries: int
    wait: float
    timeout: float
    connections: int

    def __post_init__(self) -> None:
        if self.retries < 0 or self.wait < 0 or self.timeout <= 0 or self.connections < 1:
            raise ValueError(f"network: expected retries, wait >= 0, timeout > 0, connections >= 1, got {self}")


class Version(NamedTuple):
    """Identifies the version of a file on a server; None where the server does not state it.

    size: bytes. tag: the ETag or, if there is none, the date of the last change.
    """

    size: int | None
    tag: str | None

    def matches(self, other: "Version") -> bool:
        return all(None in pair or pair[0] == pair[1] for pair in zip(self, other, strict=True))


class Answer(NamedTuple):
    """The requested bytes if `partial`, else the whole file, in `version`."""

    partial: bool
    version: Version
    chunks: Iterator[bytes]


class TransientError(Exception):
    """A failure after which another try may succeed. after: the seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after or 0.0


class Client:
    """A session shared by threads, each with a connection of its own. sleep: how to wait, in seconds."""

    def __init__(self, network: Network, sleep: Callable[[float], None] = time.sleep) -> None:
        self.network, self._sleep = network, sleep
        self._session = requests.Session()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def retry(self, url: str, action: Callable[[], T], position: Callable[[], int] = lambda: 0) -> T:
        """Repeat `action` while it raises TransientError, with increasing waits.

        position: the number of bytes received. Only a byte that no try had reached before resets the count, or a
        server that always breaks off would be asked forever. Raises DataError, naming `url`, when it gives up.
        """
        network, tries, furthest = self.network, 0, 0
        while True:
            try:
                return action()
            except TransientError as error:
                if (reached := position()) > furthest:
                    tries, furthest = 0, reached
                if tries >= network.retries:
                    raise DataError(f"{url}: {error}; gave up after {tries + 1} tries, run again to resume") from error
                if error.after > _LONGEST_RETRY_AFTER:
                    raise DataError(f"{url}: {error}; run again after {error.after:.0f} s, as it asks") from error
                self._sleep(max(error.after, min(network.wait * 2**tries, _LONGEST_WAIT)))
                tries += 1

    @contextmanager
    def get(self, url: str, start: int = 0, stop: int | None = None, known: Version | None = None) -> Iterator[Answer]:
        """Request the bytes [start, stop) of `url` once, if it is still the `known` version, else all of it.

        Raises TransientError, also while the chunks are read, if another try may succeed, and DataError otherwise.
        """
        # A compressed answer would have no ranges and another size.
        headers = {"Accept-Encoding": "identity"}
        if start > 0 or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
            if known is not None and known.tag and not known.tag.startswith("W/"):  # RFC 9110, 13.1.5: no weak one
                headers["If-Range"] = known.tag
        try:
            with self._session.get(url, headers=headers, stream=True, timeout=self.network.timeout) as response:
                yield _answer(url, response, start)
        except requests.exceptions.SSLError as error:  # a ConnectionError too, but permanent
            raise DataError(f"{url}: {error}") from error
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            raise TransientError(str(error)) from error
        except requests.RequestException as error:
            raise DataError(f"{url}: {error}") from error

    def version(self, url: str) -> tuple[Version, bool]:
        """The file's version, and whether the server supports ranges; requests one byte, with retries."""

        def ask() -> tuple[Version, bool]:
            with self.get(url, 0, 1) as answer:
                return answer.version, answer.partial

        return self.retry(url, ask)

    def read(self, url: str, start: int, stop: int, known: Version) -> bytes:
        """Bytes [start, stop) of the `known` version, with retries. Raises DataError if it has changed."""
        return self.retry(url, partial(self._read, url, start, stop, known))

    def _read(self, url: str, start: int, stop: int, known: Version) -> bytes:
        with self.get(url, start, stop, known) as answer:
            if not answer.partial or not answer.version.matches(known):
                raise DataError(f"{url}: changed on the server while it was read. Run again")
            data = b"".join(answer.chunks)
        if len(data) != stop - start:
            raise TransientError(f"received {len(data):,} of {stop - start:,} bytes")
        return data


def _answer(url: str, response: requests.Response, start: int) -> Answer:
    headers, status = response.headers, response.status_code
    said = f"the server answers {status} {response.reason or ''}".rstrip()
    tag = headers.get("ETag") or headers.get("Last-Modified")
    if status == 416:  # the file ends before `start`
        size = headers.get("Content-Range", "").rpartition("/")[2]
        return Answer(True, Version(int(size) if size.isdigit() else 0, tag), iter(()))
    if status in _TRY_AGAIN:
        raise TransientError(said, urllib3.Retry().get_retry_after(response.raw))
    if status not in (200, 206):
        raise DataError(f"{url}: {said}")
    size = headers.get("Content-Length", "")
    if status == 206:
        match = re.fullmatch(rf"bytes {start}-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if match is None:
            raise TransientError(f"requested byte {start}, received {headers.get('Content-Range')!r}")
        size = match[1]
    version = Version(int(size) if size.isdigit() else None, tag)
    # Not iter_content, which would unpack a .tar.gz that the server labels Content-Encoding: gzip.
    return Answer(status == 206, version, response.raw.stream(_CHUNK, decode_content=False))
