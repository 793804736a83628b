"""What a failed request is said to have failed of."""

import re

import pytest
from urllib3 import Timeout
from urllib3.exceptions import HTTPError

from fieldlm.network.bounded_http import connections
from fieldlm.network.patience import cause_of


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "http://nobody.invalid/"])
def test_what_failed_is_told_in_the_systems_words(url: str) -> None:
    with pytest.raises(HTTPError) as failed:
        connections(tls=False, timeout=Timeout(connect=5)).request("GET", url)
    assert re.fullmatch(r"[A-Z][a-z ]+", cause_of(failed.value))
