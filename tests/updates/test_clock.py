"""A device whose clock is wrong: it serves, falls back and updates, and takes nothing old for that."""

import datetime
import ssl
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fieldlm.blobs.web_source import WebSource
from fieldlm.core.errors import UnavailableError
from fieldlm.hardware.clock import is_credible
from fieldlm.updates.slots import Slots
from fieldlm_compiler.repository.metadata import Keyring, RepositoryMetadata
from tests.support.repository_attacks import Prey, frozen
from tests.support.update_simulators import Site, make_site, small_bundle

CLOCKS = {"1970": 0.0, "2100": 4_102_444_800.0}


@pytest.fixture(params=CLOCKS)
def wrong(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock; time goes on."""
    monkeypatch.setattr(time, "time", partial(_since, CLOCKS[request.param], time.monotonic()))


def _since(wall_s: float, mono_s: float) -> float:
    return wall_s + time.monotonic() - mono_s


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = make_site(tmp_path, small_bundle(tmp_path / "base", base_bytes=5_000))
    yield site
    site.slots.close()


def offer(site: Site, name: str) -> str:
    bundle = small_bundle(site.folder / name, base_bytes=5_000, adapter=name)
    site.publish(bundle)
    return bundle.id


@pytest.mark.usefixtures("wrong")
def test_a_device_with_a_wrong_clock_boots_updates_falls_back_and_boots_again(site: Site) -> None:
    tuned = offer(site, "tuned")
    assert site.update().outcome == "updated"
    assert site.slots.boot().id == tuned
    assert site.slots.rollback("asked: by the owner").id == site.base.id
    site.slots.close()
    site.slots = Slots(site.folder / "state", boot_id="another")
    assert site.slots.boot().id == site.base.id
    assert site.update().reason == "failed-before"


@pytest.mark.usefixtures("wrong")
def test_it_says_that_no_release_counts_as_expired(site: Site, logged: pytest.LogCaptureFixture) -> None:
    offer(site, "tuned")
    site.update()
    assert "which cannot be: no release counts as expired" in logged.text


@pytest.mark.usefixtures("wrong")
def test_a_wrong_clock_lets_nobody_bring_back_an_older_release(site: Site) -> None:
    offer(site, "first")
    old = (site.repository / "tuf" / "timestamp.json").read_bytes()
    second = offer(site, "second")
    assert site.update().outcome == "updated"
    (site.repository / "tuf" / "timestamp.json").write_bytes(old)
    result = site.update()
    assert (result.outcome, result.reason) == ("failed", "trust")
    assert site.slots.current().id == second


def test_what_a_wrong_clock_took_is_no_obstacle_once_the_clock_is_right(site: Site) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: CLOCKS["2100"])
        offer(site, "first")
        assert site.update().outcome == "updated"
    second = offer(site, "second")
    assert site.update().outcome == "updated"
    assert site.slots.current().id == second


def test_metadata_whose_time_is_over_is_refused_with_the_date_and_taken_once_it_is_published_again(site: Site) -> None:
    offer(site, "first")
    release = site.publish(small_bundle(site.folder / "first-again", base_bytes=5_000, adapter="first"))
    frozen(Prey(site.repository, site.keys, site.base, release))
    result = site.update()
    assert (result.outcome, result.reason) == ("failed", "trust")
    assert f"this device's clock says {time.strftime('%Y-%m-%d', time.gmtime())}" in result.detail
    RepositoryMetadata(site.repository, Keyring(site.keys)).write()
    assert site.update().outcome == "updated"


@pytest.mark.parametrize(
    ("date", "is_one"), [("1970-01-01", False), ("2024-12-31", False), ("2026-11-25", True), ("2044-12-31", True),
                         ("2045-01-02", False), ("2100-01-01", False)],
)  # fmt: skip
def test_a_clock_is_believed_between_the_year_of_this_program_and_twenty_years_on(date: str, is_one: bool) -> None:
    moment = datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC)
    assert is_credible(moment.timestamp()) is is_one


@pytest.fixture
def expired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server whose certificate, which this device trusts, ended yesterday."""
    (tmp_path / "hello").write_text("hello")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path / "server.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


def certificate(path: Path) -> Path:
    """Write a key and a certificate for localhost that vouches for itself, until yesterday."""
    key, day = ec.generate_private_key(ec.SECP256R1()), datetime.timedelta(days=1)
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shop")]), datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - 9 * day, now - day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_a_certificate_that_has_ended_is_refused_by_a_clock_that_may_be_right(expired: str) -> None:
    with pytest.raises(UnavailableError, match="certificate has expired"), WebSource(expired).open("hello"):
        pass


@pytest.mark.usefixtures("wrong")
def test_a_clock_that_cannot_be_right_is_no_reason_to_refuse_a_certificate(expired: str) -> None:
    with WebSource(expired).open("hello") as reader:
        assert reader.read(10) == b"hello"


@pytest.mark.usefixtures("wrong")
def test_whom_a_certificate_is_for_counts_whatever_the_clock_says(expired: str) -> None:
    with (
        pytest.raises(UnavailableError, match="certificate is not valid for"),
        WebSource(expired.replace("localhost", "127.0.0.1")).open("hello"),
    ):
        pass


@pytest.mark.usefixtures("wrong")
def test_who_vouches_for_a_certificate_counts_whatever_the_clock_says(
    expired: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(tmp_path / "another.pem")))
    with pytest.raises(UnavailableError, match="self-signed certificate"), WebSource(expired).open("hello"):
        pass
