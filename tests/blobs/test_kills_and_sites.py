"""Fetches that are killed, and a site that fetches the same thing, at a size that is quick."""

from pathlib import Path

from fieldlm.core.files import CHUNK_BYTES
from tests.support import depth
from tests.support.fetching import kill_often, one_site

KILLS = depth.scaled(30, most=1000)


def test_processes_killed_in_a_fetch_read_a_megabyte_too_much_each_at_most(tmp_path: Path) -> None:
    result = kill_often(tmp_path, size=20 * CHUNK_BYTES + 99, kills=KILLS, seed=3)
    assert result.kills == KILLS
    assert result.size_bytes < result.moved_bytes <= result.limit_bytes


def test_a_small_site_takes_one_model_over_its_line(tmp_path: Path) -> None:
    result = one_site(tmp_path, devices=4, size=8 * CHUNK_BYTES, line_bytes_s=6e6)
    assert result.times_the_model <= 1.1
    assert result.from_neighbours_bytes >= 2 * result.size_bytes
