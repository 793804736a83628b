"""A device in use holds a switch off, for a while."""

import threading
from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette

from fieldlm.api.chat_request import ApiError
from fieldlm.network.http_server import listening
from fieldlm.network.json_api import error_response
from fieldlm.updates.hold import UpdateHold, busy_routes


@pytest.fixture
def busy() -> UpdateHold:
    return UpdateHold()


@pytest.fixture
def client(busy: UpdateHold) -> Iterator[httpx.Client]:
    app = Starlette(routes=busy_routes(busy), exception_handlers={ApiError: error_response})
    with listening(app) as server, httpx.Client(base_url=server.url) as client:
        yield client


def test_what_a_kiosk_says_wears_off_by_itself() -> None:
    now_s = [0.0]
    busy = UpdateHold(lambda: now_s[0])
    busy.extend(60)
    assert busy.left_s == 60
    now_s[0] = 61
    assert busy.left_s == 0


def test_a_kiosk_says_that_it_is_in_use_and_that_it_is_not(client: httpx.Client, busy: UpdateHold) -> None:
    assert client.put("/v1/fieldlm/busy", json={"for_s": 60}).json()["busy_for_s"] > 59
    assert busy.left_s > 59
    assert client.delete("/v1/fieldlm/busy").json() == {"busy_for_s": 0}
    assert busy.left_s == 0


@pytest.mark.parametrize("body", [{"for_s": 0}, {"for_s": 1e9}, {"for_s": "long"}, {}, {"for_s": 1, "x": 1}])
def test_what_makes_no_sense_is_refused(client: httpx.Client, busy: UpdateHold, body: dict[str, object]) -> None:
    assert client.put("/v1/fieldlm/busy", json=body).status_code == 400
    assert busy.left_s == 0


def test_a_switch_waits_until_the_device_is_free_or_its_deadline_comes(busy: UpdateHold) -> None:
    never = threading.Event()
    busy.extend(600)
    free = threading.Timer(0.3, busy.extend, args=(0,))
    free.start()
    assert busy.wait(600, never)
    assert busy.left_s == 0
    busy.extend(600)
    assert busy.wait(0.3, never)
    assert busy.left_s > 500, "the deadline came first"


def test_a_device_that_is_stopped_waits_no_longer(busy: UpdateHold) -> None:
    stop = threading.Event()
    stop.set()
    busy.extend(600)
    assert not busy.wait(600, stop)
