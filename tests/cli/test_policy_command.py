import json
from pathlib import Path

import pytest

from fieldlm.cli.policy import main
from fieldlm.core.errors import InputError
from fieldlm.telemetry.effective_policy import EffectivePolicy


def test_a_policy_is_signed_and_a_device_that_trusts_the_key_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.toml").write_text('fleet = "shop"\nversion = 4\ntelemetry = "redacted"\nsample = 0.5\n')
    key, out = tmp_path / "key.pem", tmp_path / "policy.json"
    assert main([str(tmp_path / "policy.toml"), "--key", str(key), "--out", str(out), "--json"]) == 0
    signer = json.loads(capsys.readouterr().out)["signer"]
    terms = EffectivePolicy("full", fleet="shop", signer=signer)
    assert terms.take(out.read_bytes())
    assert (terms.mode, terms.version, terms.policy.sample) == ("redacted", 4, 0.5)


@pytest.mark.parametrize(
    "text", ["", 'fleet = "shop"\nversion = 0', 'fleet = "shop"\nversion = 1\ntelemetry = "all"', "x ="]
)
def test_what_no_device_would_take_is_not_signed(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(InputError, match=r"policy\.toml"):
        main([str(tmp_path / "policy.toml"), "--key", str(tmp_path / "key.pem")])
