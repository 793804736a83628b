"""HTTP client with bounds, for whoever may be at the other end: nobody there makes this device wait for ever.

The timeout of a socket begins anew with each byte, so that a server that sends one every few seconds would hold a
device for weeks. Here the whole head of an answer has to be there within the timeout, and its body has to come at a
speed. How long to wait before the next try is ours to say, and not a Retry-After's.
"""

import socket
import ssl
import threading
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import SystemTimeWarning
from urllib3.util import Retry

from fieldlm.core.timing import within
from fieldlm.hardware.clock import is_credible

TRIES = 3  # after the first, of connections that break and of redirects
NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which Python has no name


class _PromptHTTP(HTTPConnection):
    def getresponse(self) -> HTTPResponse:
        with _ends_in_time(self):
            return super().getresponse()


class _PromptHTTPS(HTTPSConnection):
    def getresponse(self) -> HTTPResponse:
        with _ends_in_time(self):
            return super().getresponse()


class _HTTPPool(HTTPConnectionPool):
    # urllib3's own classes do not fit its protocol either.
    ConnectionCls = _PromptHTTP  # pyright: ignore[reportAssignmentType]


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _PromptHTTPS  # pyright: ignore[reportAssignmentType]


def connections(*, tls: bool, **how: Any) -> PoolManager:
    """Return a pool, made as urllib3's own is, whose read timeout is that of the whole head of an answer too.

    Who needs no `tls` saves the time to read all authorities of this machine.
    """
    how = {"retries": Retry(TRIES, respect_retry_after_header=False)} | how
    pool = PoolManager(ssl_context=_context() if tls else None, **how)
    pool.pool_classes_by_scheme = dict[str, Any](http=_HTTPPool, https=_HTTPSPool)
    return pool


@contextmanager
def _ends_in_time(connection: HTTPConnection) -> Generator[None]:
    """Shut the connection's socket, which ends any waiting for it, unless the block ends within its timeout."""
    sock, is_late = connection.sock, threading.Event()

    def shut() -> None:
        is_late.set()
        with suppress(OSError):
            # TLS's own would take the connection apart under the thread that reads from it.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    with within(float(connection.timeout or 0), shut):
        yield
    if is_late.is_set():
        raise TimeoutError("the head of the answer did not come to its end")  # half of it reads as a whole one


def _context() -> ssl.SSLContext:
    """Return TLS as usual; with a clock that cannot be right, certificates have no date.

    Who they are for, and who vouches for them, counts all the same; and what is fetched is checked by its own digests.
    """
    context = ssl.create_default_context()
    if not is_credible(time.time()):
        warnings.simplefilter("ignore", SystemTimeWarning)  # the device says it itself, in one line
        context.verify_flags |= NO_CHECK_TIME
    return context
