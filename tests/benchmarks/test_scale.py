"""docs/scale.md says what benchmarks/scale.py computes."""

from benchmarks import scale


def test_the_page_says_what_the_script_computes() -> None:
    page = scale.PAGE.read_text()
    assert f"{scale.BEGIN}\n{scale.tables()}{scale.END}" in page


def test_ten_times_the_devices_are_ten_times_the_load() -> None:
    small, large = (scale.load(tier, 16) for tier in scale.TIERS[:2])
    assert large.records_per_s == 10 * small.records_per_s
    assert large.wire_gb_day == 10 * small.wire_gb_day
    assert scale.load(scale.TIERS[0], 1).wire_gb_day > small.wire_gb_day
