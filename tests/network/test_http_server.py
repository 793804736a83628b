"""The server at its end."""

import gc
import socket
import sys
import time
from pathlib import Path

from fieldlm.network.http_server import listening


async def nobody(scope: object, receive: object, send: object) -> None:
    """An application that is asked nothing."""
    del scope, receive, send


def test_who_comes_in_the_moment_of_the_end_leaves_no_connection_open(tmp_path: Path) -> None:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(0.05)  # both happen before the server's thread has looked again
    try:
        for number in range(20):
            path = tmp_path / f"{number}.sock"
            with listening(nobody, unix_socket=path), socket.socket(socket.AF_UNIX) as late:
                time.sleep(0.01)
                late.connect(str(path))
    finally:
        sys.setswitchinterval(before_s)
    gc.collect()  # pytest fails for what is collected while it is open
