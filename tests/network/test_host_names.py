"""Which names a server answers to where no key is asked: a page that had its own name resolve to it is none of ours."""

import socket
from pathlib import Path

import httpx
import pytest

from fieldlm.api.app import make_app
from fieldlm.core.config import Config, load_config
from fieldlm.core.errors import ConfigError
from fieldlm.device.listeners import ListenSettings
from fieldlm.inference.generations import Generations
from fieldlm.network.discovery import Announcer
from fieldlm.network.http_server import listening


def settings_of(tmp_path: Path, **flags: object) -> Config:
    return load_config({"state": str(tmp_path / "state"), **flags}, {"HOME": str(tmp_path)})


# A hostile network can have any name resolve to a device, and names that look local are the cheapest of all.
REBOUND = (
    "a.lan", "evil.internal", "x.home.arpa", "x.localhost", "evil", "ai.", "ai", "127.0.0.1:25001, evil.com",
    "127.0.0.1, evil.com", "evil.com:127.0.0.1", "127.0.0.1@evil.com", "localhost evil", "[::1]evil:80", "foo.local",
)  # fmt: skip
OWN = (
    socket.gethostname(),
    f"{socket.gethostname().partition('.')[0]}.local:8080",
    "LOCALHOST",
    "localhost.",
    "127.0.0.1.",
)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        *(({"host": name}, 403) for name in REBOUND),
        *(({"host": name}, 200) for name in OWN),
        ({"host": "localhost:80"}, 200),
        ({"host": "[::1]:80", "origin": "http://[::1]:80"}, 200),
        ({"host": "10.0.0.7"}, 200),
    ],
)
def test_a_foreign_page_cannot_use_a_server_without_keys(url: str, headers: dict[str, str], status: int) -> None:
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == status


def test_names_that_are_listed_or_announced_are_answered_and_the_refusal_says_how_to_list_one(
    live: Generations, tmp_path: Path
) -> None:
    flags = {"device": "Till_3.east", "host_names": "LM.example, till", "host": "kiosk.shop"}
    (tmp_path / "keys").write_text("a-key-of-fair-length\n")
    (tmp_path / "keys").chmod(0o600)
    names = ListenSettings.of(settings_of(tmp_path, **flags, api_keys=str(tmp_path / "keys"))).names
    assert ListenSettings.of(settings_of(tmp_path, open=True)).names is None
    announcer = Announcer("Till_3.east", host="127.0.0.1", port=1, generation="g", model="m", profile="p")
    announced = str(announcer._describe(1).server).rstrip(".")  # pyright: ignore[reportPrivateUsage]
    with listening(make_app(live, lambda _: None, ready=lambda: None, names=names)) as server:
        for name in ("lm.example", "till:80", "kiosk.shop", announced, announced.lower()):
            assert httpx.get(f"{server.url}/v1/models", headers={"host": name}).status_code == 200, name
        refusal = httpx.get(f"{server.url}/v1/models", headers={"host": "other.example"}).json()["error"]["message"]
        assert "'other.example'" in refusal
        assert "the setting host_names" in refusal
        assert "\n" not in refusal


@pytest.mark.parametrize("names", ["http://till", "till:80", "a/b", "*", "[::1]", ["a b"]])
def test_a_host_name_that_is_none_is_refused_with_what_is_wanted(tmp_path: Path, names: object) -> None:
    with pytest.raises(ConfigError, match=r"host_names is .*; want names alone"):
        settings_of(tmp_path, host_names=names)


def test_who_says_so_answers_every_name(live: Generations) -> None:
    with listening(make_app(live, lambda _: None, ready=lambda: None, names=None)) as server:
        assert httpx.get(f"{server.url}/v1/models", headers={"host": "lm.example"}).status_code == 200
