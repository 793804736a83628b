"""Bad releases of every kind, against a running device: caught, undone, remembered, and told at home."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from fieldlm.formats.bundle import open_bundle
from fieldlm.updates.slots import MAX_ATTEMPTS
from tests.support.bad_releases import KINDS, Workshop
from tests.support.device_process import DEVICE, FLEET, DeviceProcess, Home


@dataclass
class Kiosk:
    shop: Workshop
    device: DeviceProcess
    home: Home


@pytest.fixture(scope="module")
def kiosk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kiosk]:
    """A device that serves the good generation and is connected."""
    folder = tmp_path_factory.mktemp("kiosk")
    shop = Workshop.open(folder / "shop")
    shop.publish(shop.base)
    with Home(folder) as home:
        arguments = [
            str(shop.base.folder), "--state", str(folder / "state"), "--profile", str(shop.profile), "--no-discovery",
            "--device", DEVICE, "--fleet", FLEET, "--broker", home.broker.url, "--repository", str(shop.repository),
            "--trust", str(shop.root), "--context", "512",
        ]  # fmt: skip
        device = DeviceProcess(arguments, folder)
        try:
            device.wait_ready()
            yield Kiosk(shop, device, home)
        finally:
            device.stop()


@pytest.mark.parametrize("name", KINDS)
def test_a_bad_release_is_caught_and_undone_and_its_reason_comes_home(kiosk: Kiosk, name: str) -> None:
    kind, device, good = KINDS[name], kiosk.device, kiosk.shop.base.generation
    kind.make(kiosk.shop)
    bad = open_bundle(kiosk.shop.folder / "bad").generation
    for _ in range(MAX_ATTEMPTS if kind.said else 1):  # one crash may be a request's doing
        _take_and_undo(kiosk, name, bad, good)
    device.wait_until("the reason comes home", lambda: any("reason" in told for told in kiosk.home.told(bad)))
    told = next(told for told in kiosk.home.told(bad) if "reason" in told)
    assert told["event"] == f"update.{kind.outcome}"
    assert told["reason"] in kind.reasons
    again = device.update()
    assert again
    assert (again["outcome"], again["reason"]) == ("refused", "failed-before"), "it is remembered, and not tried again"


def _take_and_undo(kiosk: Kiosk, name: str, bad: str, good: str) -> None:
    """Have the device take the bad release, and see that it answers with the good one afterwards."""
    kind, device = KINDS[name], kiosk.device
    ends, runs = len(device.ends), device.ask("GET", "/v1/fieldlm/update")[1]["runs"]
    assert device.ask("POST", "/v1/fieldlm/update", {})[0] == 202
    if kind.said:
        device.wait_until("people get the new one", lambda: device.generation() == bad)
        for text in kind.said:
            device.chat(text)
    result = device.updated(runs, ends)
    if result is not None:
        assert (result["outcome"], result["reason"] in kind.reasons) == (kind.outcome, True), result
    device.wait_ready()
    status, answer = device.chat("Hello.")
    assert (status, answer["fieldlm"]["generation"]) == (200, good)
    assert len(device.ends) - ends == bool(kind.said), (
        "only what passes every trial and crashes on people costs a start"
    )
