"""Keys that change, and devices that follow: what a publisher signs, read by the client that devices use."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from fieldlm.blobs.fetch import FolderSource
from fieldlm.core.errors import InputError, TrustError
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.release import Offer, place
from fieldlm.updates.trust import Trust
from fieldlm_compiler.repository import keys, offers
from fieldlm_compiler.repository.metadata import Keyring, RepositoryMetadata, create_root
from fieldlm_compiler.repository.publish import in_shadow, publish
from tests.support.update_simulators import Site, make_site, small_bundle

ROLES = ("root", "targets", "snapshot", "timestamp", "profile-test")
SIZE = 5_000


@dataclass
class Shop:
    """A publisher with a release, and a device that has seen it."""

    folder: Path
    trust: Trust

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def ring(self, *others: Path) -> Keyring:
        return Keyring(self.keys, others)

    def bundle(self, name: str) -> Bundle:
        return small_bundle(self.folder / name, base=name, base_bytes=SIZE)

    def publish(self, name: str, offer: Offer | None = None) -> int:
        return publish(self.bundle(name).folder, self.repository, keys=self.keys, offer=offer).seq

    def seen(self, device: str = "") -> int:
        latest = self.trust.latest(FolderSource(self.repository), profile="test", device=device)
        return latest.seq if latest else 0

    def newcomer(self) -> Trust:
        """Return a device that is handed the publisher's root of today."""
        trust = Trust(self.folder / "newcomer")
        trust.adopt(self.keys / "root.json")
        return trust


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path, Trust(tmp_path / "trust"))
    shop.publish("first")
    shop.trust.adopt(shop.keys / "root.json")
    assert shop.seen() == 1
    return shop


@pytest.mark.parametrize("role", ROLES)
def test_a_device_follows_a_rotated_key_and_refuses_the_old_one(shop: Shop, role: str) -> None:
    old = shutil.copytree(shop.keys, shop.folder / "stolen")
    change = keys.rotate(shop.repository, shop.ring(), role)
    assert change.published
    assert shop.publish("second") == 2
    assert shop.seen() == 2
    newcomer = shop.newcomer().latest(FolderSource(shop.repository), profile="test")
    assert newcomer is not None
    assert newcomer.seq == 2
    if role == "root":
        assert not keys.rotate(shop.repository, Keyring(old), "timestamp").published
        return
    profile = "new" if role == "targets" else "test"  # what that key is needed for
    third = small_bundle(shop.folder / "third", base="third", base_bytes=SIZE, profile=profile)
    with pytest.raises(InputError, match="signed with another"):
        publish(third.folder, shop.repository, keys=old)


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp", "profile-test"])
def test_metadata_that_a_thief_signs_with_a_revoked_key_is_refused(shop: Shop, role: str) -> None:
    thief = shutil.copytree(shop.repository, shop.folder / "thief")
    stolen = shutil.copytree(shop.keys, shop.folder / "stolen")
    book = RepositoryMetadata(shop.repository, shop.ring())
    keyid = book.keys(role).keyids[0]
    changes = keys.revoke(shop.repository, shop.ring(), keyid[:12])
    assert [change.role for change in changes] == [role]
    assert shop.seen() == 1
    # The thief signs with all the old keys, again and again, and hands the new root on.
    for version in range(3):
        publish(shop.bundle(f"forged {version}").folder, thief, keys=stolen)
    for root in (shop.repository / "tuf").glob("*.root.json"):
        shutil.copy(root, thief / "tuf")
    with pytest.raises(TrustError):
        shop.trust.latest(FolderSource(thief), profile="test")
    # The thief's numbers were higher; new keys for the online roles make the device forget them.
    for online in ("snapshot", "timestamp"):
        keys.rotate(shop.repository, shop.ring(), online)
    assert shop.seen() == 1


def test_root_keys_lie_offline_and_a_threshold_of_them_signs(tmp_path: Path) -> None:
    sticks = [tmp_path / f"stick-{number}" for number in range(3)]
    shop = Shop(tmp_path, Trust(tmp_path / "trust"))
    create_root(shop.ring(), root_keys=3, threshold=2, offline=sticks)
    assert not list(shop.keys.glob("root*.pem"))
    assert shop.publish("first") == 1
    shop.trust.adopt(shop.keys / "root.json")
    assert shop.seen() == 1

    change = keys.rotate(shop.repository, shop.ring(sticks[0]), "timestamp")
    assert (change.published, change.signatures, change.needed) == (False, 1, 2)
    assert shop.seen() == 1
    assert shop.publish("second") == 2
    assert shop.seen() == 2
    with pytest.raises(InputError, match="waits for signatures"):
        keys.rotate(shop.repository, shop.ring(sticks[0]), "snapshot")
    assert keys.add_signatures(shop.repository, shop.ring(sticks[2])).published
    assert shop.seen() == 2
    assert shop.publish("third") == 3
    assert shop.seen() == 3

    book = RepositoryMetadata(shop.repository, shop.ring())
    lost = book.keys("root").keyids[1]
    assert keys.rotate(shop.repository, shop.ring(sticks[0], sticks[2]), "root", old=lost).published
    assert lost not in RepositoryMetadata(shop.repository, shop.ring()).keys("root").keyids
    assert shop.seen() == 3
    with pytest.raises(InputError, match="no change of keys waits"):
        keys.add_signatures(shop.repository, shop.ring())


def test_a_device_that_slept_through_ten_rotations_follows(shop: Shop) -> None:
    for _ in range(5):
        for role in ("root", "timestamp"):
            keys.rotate(shop.repository, shop.ring(), role)
    assert shop.publish("second") == 2
    assert shop.seen() == 2


def test_a_root_that_the_device_was_led_to_is_no_new_beginning(tmp_path: Path) -> None:
    site: Site = make_site(tmp_path, small_bundle(tmp_path / "base", base_bytes=SIZE))
    site.publish(small_bundle(tmp_path / "one", base="one", base_bytes=SIZE))
    assert site.update().seq == 1
    anchor = Trust(site.slots.state / "trust").id
    keys.rotate(site.repository, Keyring(site.keys), "root")
    site.publish(small_bundle(tmp_path / "two", base="two", base_bytes=SIZE))
    Trust(site.slots.state / "trust").latest(FolderSource(site.repository), profile="test")
    assert site.update().seq == 2
    assert Trust(site.slots.state / "trust").id == anchor
    site.slots.close()


def test_a_profile_key_signs_for_its_profile_alone(shop: Shop) -> None:
    abroad = small_bundle(shop.folder / "abroad", profile="abroad", base_bytes=SIZE)
    publish(abroad.folder, shop.repository, keys=shop.keys)
    for role in ("root", "targets", "profile-test"):
        (shop.keys / f"{role}.pem").unlink()
    with pytest.raises(InputError, match="another profile-test key"):
        shop.publish("second")
    other = small_bundle(shop.folder / "other", base="x", profile="abroad", base_bytes=SIZE)
    assert publish(other.folder, shop.repository, keys=shop.keys).seq == 2
    assert shop.seen() == 1
    # What the key of one profile signs in the name of another is not found.
    book = RepositoryMetadata(shop.repository, shop.ring())
    forged = (shop.repository / "releases" / "test" / "1.json").read_bytes()
    target = shop.repository / "releases" / "test" / "9.json"
    target.write_bytes(forged)
    book.add("abroad", "test/9.json", forged)
    book.write()
    assert shop.seen() == 1


def test_a_rotation_that_is_killed_before_its_last_file_is_mended_by_the_next_publish(shop: Shop) -> None:
    before = (shop.repository / "tuf" / "timestamp.json").read_bytes()
    keys.rotate(shop.repository, shop.ring(), "timestamp")
    (shop.repository / "tuf" / "timestamp.json").write_bytes(before)
    with pytest.raises(TrustError):
        shop.seen()
    assert shop.publish("second") == 2
    assert shop.seen() == 2


def test_a_release_reaches_its_share_of_the_devices_and_then_all(shop: Shop) -> None:
    devices = [f"kiosk-{number}" for number in range(40)]
    shop.publish("second", Offer(share_ppm=250_000, salt="a"))
    first = {device for device in devices if shop.seen(device) == 2}
    assert first == {device for device in devices if place(device, "a") < 0.25}
    assert 0 < len(first) < 20
    assert shop.seen() == 1
    offers.change(shop.repository, shop.ring(), "test", 2, what="promote", percent=50)
    more = {device for device in devices if shop.seen(device) == 2}
    assert first < more
    offers.change(shop.repository, shop.ring(), "test", 0, what="pause")
    assert {shop.seen(device) for device in devices} == {1}
    offers.change(shop.repository, shop.ring(), "test", 2, what="promote")
    assert {shop.seen(device) for device in devices} == {2}
    assert shop.seen() == 2


def test_a_release_keeps_its_shadow_period_when_more_devices_are_offered_it(shop: Shop) -> None:
    shop.publish("second", in_shadow(Offer(), 50, 6.0))
    (one,) = offers.change(shop.repository, shop.ring(), "test", 2, what="promote", percent=50)
    assert (one.offer.share_ppm, one.offer.shadow, one.offer.shadow_s) == (500_000, 50, 21_600)
    (one,) = offers.change(shop.repository, shop.ring(), "test", 2, what="promote", shadow=20)
    assert (one.offer.shadow, one.offer.shadow_s) == (20, 21_600)
    (one,) = offers.change(shop.repository, shop.ring(), "test", 2, what="promote", shadow=0)
    assert one.offer.shadow == 0
    with pytest.raises(InputError, match="belongs to no period"):
        offers.change(shop.repository, shop.ring(), "test", 2, what="promote", shadow_hours=3)


def test_devices_start_spread_over_the_time_that_the_offer_names() -> None:
    offer = Offer(since=1_800_000_000, spread_s=3600, salt="a")
    waits = [offer.wait_s(f"kiosk-{number}", 1_800_000_000) for number in range(200)]
    assert 0 <= min(waits) < 200
    assert 3400 < max(waits) <= 3600
    assert offer.wait_s("kiosk-1", 1_800_004_000) == 0
    assert offer.wait_s("kiosk-1", 0) == 0  # a clock at 1970 says nothing


def test_a_pulled_release_is_followed_by_the_one_before_under_a_number_of_its_own(shop: Shop) -> None:
    shop.publish("second")
    assert shop.seen() == 2
    pulled, again = offers.change(shop.repository, shop.ring(), "test", 2, what="pull", reason="garbage")
    assert (pulled.seq, pulled.offer.pulled) == (2, "garbage")
    one, two, three = offers.offered(shop.repository)
    assert (again.seq, three.bundle) == (3, one.bundle)
    assert two.offer.pulled == "garbage"
    assert shop.seen() == 3
    with pytest.raises(InputError, match="was pulled"):
        offers.change(shop.repository, shop.ring(), "test", 2, what="promote")
    assert shop.publish("fourth") == 4


def test_the_only_release_can_be_pulled(shop: Shop) -> None:
    assert len(offers.change(shop.repository, shop.ring(), "test", 1, what="pull")) == 1
    assert shop.seen() == 0


def test_what_was_pulled_can_be_published_again_under_a_number_of_its_own(shop: Shop) -> None:
    assert shop.publish("second") == 2
    assert shop.publish("second") == 2, "it is offered already"
    offers.change(shop.repository, shop.ring(), "test", 1, what="pull")
    offers.change(shop.repository, shop.ring(), "test", 2, what="pull")
    assert shop.seen() == 0
    assert shop.publish("second") == 3
    assert shop.seen() == 3


def test_an_offer_that_cannot_be_read_is_no_offer_to_all(shop: Shop) -> None:
    book = RepositoryMetadata(shop.repository, shop.ring())
    book.offer("test", "test/1.json", Offer(paused=True))
    target = book.profile("test").targets["test/1.json"]
    target.unrecognized_fields["custom"] = {"share_ppm": "many"}
    book.write()
    with pytest.raises(TrustError, match="to whom"):
        shop.seen()


def test_the_commands_say_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--keys", str(tmp_path / "keys"), "--to", str(tmp_path / "repository")]
    stick = ["--root-keys", str(tmp_path / "stick")]
    assert keys.main(["create", "--root", "2", "--threshold", "2", *stick, *where[:2]]) == 0
    assert "2 of 2" in capsys.readouterr().out
    with pytest.raises(InputError, match="there already"):
        keys.main(["create", *where[:2]])
    bundle = small_bundle(tmp_path / "one", base_bytes=SIZE)
    publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys")
    assert keys.main(["show", *where]) == 0
    assert "profile-test" in capsys.readouterr().out
    assert keys.main(["rotate", "timestamp", *where]) == 1
    assert "0 of 2 signatures" in capsys.readouterr().out
    assert keys.main(["sign", *where, *stick]) == 0
    assert "devices follow with root 2" in capsys.readouterr().out
    with pytest.raises(InputError, match="names 2 of the keys of root"):
        keys.main(["rotate", "root", *where, *stick])
    with pytest.raises(InputError, match="there is no role 'roof'"):
        keys.main(["rotate", "roof", *where, *stick])
    with pytest.raises(InputError, match="no role is signed by key 'ffffffffffffffff'"):
        keys.main(["revoke", "f" * 16, *where, *stick])
    assert offers.main(["promote", "test", "--share", "5", *where]) == 0
    assert "5 %" in capsys.readouterr().out
    assert offers.main(["promote", "test", "--share", "5", "--shadow", "50", *where]) == 0
    assert "5 %, 50 requests in the shadow first" in capsys.readouterr().out
    assert offers.main(["show", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)[0]["offer"]["share_ppm"] == 50_000
    with pytest.raises(InputError, match="no release 9 for test; releases: 1"):
        offers.main(["pull", "test", "9", *where])
    with pytest.raises(InputError, match="want a number, 0–100"):
        offers.main(["promote", "test", "--share", "150", *where])
