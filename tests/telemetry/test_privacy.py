import json
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from fieldlm.core.config import load_config
from fieldlm.core.errors import ConfigError
from fieldlm.device.device import policy_of
from fieldlm.network.json_api import ApiError, error_response
from fieldlm.telemetry.forget import privacy_routes
from fieldlm.telemetry.recorder import Recorder
from fieldlm.telemetry.spool import Spool
from tests.telemetry.test_recorder import TERMS, Exchange


def test_a_customer_is_forgotten_over_http(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.db") as spool:
        recorder = Recorder(spool, device="k", mode="full", salt=b"salt", consents=TERMS)
        app = Starlette(routes=privacy_routes(recorder), exception_handlers={ApiError: error_response})
        with TestClient(app) as client:
            recorder.exchange(Exchange())
            assert spool.flush()
            assert client.post("/v1/fieldlm/forget", json={"session": "customer-42"}).json()["object"] == "forget"
            assert spool.flush()
            assert spool.pending("gen", 0, 9) == []
            assert [r.kind for r in spool.pending("fb", 0, 9)] == ["forget"]
            for wrong in ({}, {"session": ""}, {"session": 7}):
                assert client.post("/v1/fieldlm/forget", content=json.dumps(wrong)).status_code == 400
            for wrong in ("[" * 100_000, '{"a":' * 100_000):
                assert client.post("/v1/fieldlm/forget", content=wrong).status_code == 400


def test_settings_become_a_policy_and_certificates(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "FIELDLM_STATE": str(tmp_path), "FIELDLM_TELEMETRY": "redacted"}
    config = load_config(env=env | {"FIELDLM_BROKER_CA": "/etc/ca.pem", "FIELDLM_DAILY_MB": "5"})
    assert (policy_of(config).mode, config.daily_mb) == ("redacted", 5)
    assert (config.broker_ca, config.broker_cert) == ("/etc/ca.pem", "")
    with pytest.raises(ConfigError, match="policy_signer"):
        load_config(env=env | {"FIELDLM_POLICY_SIGNER": "somebody"})
