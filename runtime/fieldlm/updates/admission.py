"""Admission: whether a device takes a release, decided before anything large moves."""

import msgspec

from fieldlm.core.errors import BundleError, TrustError
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.release import Release
from fieldlm.updates.journal import Known


class WrongProfileError(BundleError):
    """A bundle was made for another kind of device than the one it is offered to."""

    exit_code = 1
    reason = "profile"


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a release is not taken: a code for programs, a line for people."""

    reason: str
    detail: str


def refusal(release: Release, *, profile: str, current: Known, tried: Known, floor: int) -> Refusal | None:
    """Decide, without looking at anything else, whether a device takes a release."""
    if release.profile != profile:
        return Refusal(reason="profile", detail=f"the release is for {release.profile}, this device is {profile}")
    if release.seq < floor:
        return Refusal(reason="rollback", detail=f"release {release.seq} is below this device's floor {floor}")
    if release.bundle == current.bundle:
        return Refusal(reason="current", detail=f"release {release.seq} is what this device runs")
    if release.seq <= current.seq:
        return Refusal(
            reason="rollback", detail=f"release {release.seq} is not newer than {current.seq}, the current one"
        )
    if tried.failed and tried.seq >= release.seq:
        return Refusal(reason="failed-before", detail=f"release {tried.seq} failed here: {tried.failed}")
    return None


def check_release(release: Release, bundle: Bundle) -> None:
    """Raise TrustError unless release and manifest tell the same story, WrongProfileError for another profile's."""
    manifest = bundle.manifest
    told = {(file.path, file.role, file.size, file.sha256) for file in release.files}
    if told != {(file.path, file.role, file.size, file.sha256) for file in manifest.files}:
        raise TrustError(f"release {release.seq} lists other files than its manifest; publish it again")
    if manifest.profile != release.profile:
        raise WrongProfileError(f"release {release.seq} for {release.profile} holds a bundle for {manifest.profile}")
