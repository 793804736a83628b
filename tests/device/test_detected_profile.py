"""A device stays what it is when a later fieldlm knows a profile that fits it better."""

from pathlib import Path

import pytest

from fieldlm.core.config import Config, load_config
from fieldlm.device.startup import check_profile, detected_profile
from fieldlm.formats.bundle import Bundle
from fieldlm.updates.slots import Slots
from tests.support import material
from tests.support.machines import sysroot

PI = "pi-4-2gb"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config({"state": str(tmp_path / "state")}, env={})


@pytest.fixture
def bundle(base_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle of the time when there was no profile of a Raspberry Pi 4 with 2 GB."""
    return material.compiled_for(base_bundle, "generic-aarch64", tmp_path / "bundle")


def test_without_a_bundle_it_is_the_profile_that_fits_best(config: Config) -> None:
    assert detected_profile(config, None, sysroot(PI)).id == "rpi4-2gb"


def test_a_bundle_that_was_made_for_a_profile_that_fits_as_well_is_served(config: Config, bundle: Path) -> None:
    profile = detected_profile(config, bundle, sysroot(PI))
    assert profile.id == "generic-aarch64"
    assert profile.cpu.decode_threads == 4
    check_profile(bundle, profile)


def test_a_device_that_holds_such_a_bundle_stays_what_it_is(config: Config, bundle: Path) -> None:
    slots = Slots(config.state)
    slots.factory(bundle)
    slots.close()
    assert detected_profile(config, None, sysroot(PI)).id == "generic-aarch64"


def test_a_bundle_for_what_this_is_not_changes_nothing(config: Config, base_bundle: Bundle, tmp_path: Path) -> None:
    foreign = material.compiled_for(base_bundle, "rk3588", tmp_path / "foreign")
    assert detected_profile(config, foreign, sysroot(PI)).id == "rpi4-2gb"
