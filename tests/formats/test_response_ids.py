import threading
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fieldlm.formats.response_ids import DIGITS, ResponseIds, digits, numbers

KEY = b"0123456789abcdef"
INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(INT64, min_size=1, max_size=50), st.binary(min_size=16, max_size=16))
def test_digits_are_a_permutation_of_numbers(values: list[int], key: bytes) -> None:
    made = digits(values, key)
    assert all(len(text) == DIGITS and int(text, 16) >= 0 for text in made)
    assert numbers(made, key) == values
    assert len(set(made)) == len(set(values))


def test_the_permutation_never_changes() -> None:
    assert digits([0, 1, -1, 2**62], KEY) == FROZEN


def test_neighbours_look_like_strangers() -> None:
    made = [int(text, 16) for text in digits(range(4096), KEY)]
    flips = [(a ^ b).bit_count() for a, b in pairwise(made)]
    assert 31 < sum(flips) / len(flips) < 33
    assert min(flips) > 8


def test_every_id_is_new_whoever_asks_and_numbers_of_one_run_count_up() -> None:
    ids = ResponseIds(KEY)
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.extend([ids.next("a-") for _ in range(500)])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sorted(numbers([text.removeprefix("a-") for text in made], KEY))
    assert found == list(range(found[0], found[0] + 2000))
    others = ResponseIds(KEY), ResponseIds()
    assert not {other.next("a-") for other in others} & set(made)


FROZEN = ["e6ee44de53bdd99b", "a3b61b780ee5b2b7", "a71e78e94520ee99", "6d16d6bad1812223"]
