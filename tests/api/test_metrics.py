"""What a monitor is told, as Prometheus reads it."""

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from docs import reference
from fieldlm.api.app import make_app
from fieldlm.api.chat_request import Exchange
from fieldlm.api.metrics import Metrics, process_readings
from fieldlm.engines import Timings
from fieldlm.inference.generations import Generations
from fieldlm.network.http_server import listening

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
PATIENCE_S = 60


def samples(url: str) -> dict[tuple[str, str], float]:
    """Return Prometheus's own reading of /metrics: (name, first label) → value."""
    text = httpx.get(f"{url}/metrics").text
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, next(iter(sample.labels.values()), "")): sample.value for sample in found}


def test_metrics_count_what_was_answered(live: Generations) -> None:
    app = make_app(live, lambda _: None, ready=lambda: None)
    with listening(app) as server:
        body = {"messages": HELLO, "max_tokens": 5}
        answer = httpx.post(server.url + CHAT, json=body, timeout=PATIENCE_S).json()
        assert httpx.post(server.url + CHAT, json={}).status_code == 400
        read = samples(server.url)
        status = httpx.get(f"{server.url}/status").json()
    generation = live.current.bundle.generation
    assert read["fieldlm_requests_total", generation] == 1
    assert read["fieldlm_tokens_total", "completion"] == answer["usage"]["completion_tokens"]
    assert read["fieldlm_tokens_total", "prompt"] == answer["usage"]["prompt_tokens"]
    assert read["fieldlm_tokens_total", "drafted"] == read["fieldlm_tokens_total", "accepted"] == 0
    assert read["fieldlm_ttft_seconds_count", ""] == read["fieldlm_queue_seconds_count", ""] == 1
    assert read["fieldlm_inter_token_seconds_count", ""] == 1
    assert (read["fieldlm_http_responses_total", "200"], read["fieldlm_http_responses_total", "400"]) == (1, 1)
    assert read["fieldlm_ready", ""] == 1
    assert read["fieldlm_process_resident_bytes", ""] > read["fieldlm_engine_memory_bytes", "weights"] > 5e7
    assert (status["generation"], status["running"], status["waiting"]) == (generation, 0, 0)
    assert [point["tokens"] for point in status["recent"]] == [5]


def test_tokens_that_a_form_forced_are_counted_and_are_no_speed() -> None:
    metrics = Metrics(lambda: ())
    timings = Timings(completion_tokens=61, forced_tokens=50, decode_s=2.0)
    metrics.exchange(Exchange(id="a", generation="g", model="m", messages=[], started_wall_s=0.0, timings=timings))
    (point,) = metrics.recent()
    assert (point["tokens"], point["tokens_per_s"]) == (61, 5.0)
    assert b"fieldlm_inter_token_seconds_sum 0.2\n" in metrics.text()


NAMES = {
    "fieldlm_ttft_seconds": "histogram",
    "fieldlm_inter_token_seconds": "histogram",
    "fieldlm_queue_seconds": "histogram",
    "fieldlm_confidence": "histogram",
    "fieldlm_tokens": "counter",
    "fieldlm_requests": "counter",
    "fieldlm_answers": "counter",
    "fieldlm_http_responses": "counter",
    "fieldlm_requests_running": "gauge",
    "fieldlm_requests_waiting": "gauge",
    "fieldlm_process_resident_bytes": "gauge",
    "fieldlm_process_peak_resident_bytes": "gauge",
    "fieldlm_engine_memory_bytes": "gauge",
    "fieldlm_generation_info": "gauge",
    "fieldlm_ready": "gauge",
}


def test_what_a_dashboard_is_built_on_is_there_from_the_start(live: Generations) -> None:
    app = make_app(live, lambda _: None, ready=lambda: None)
    with listening(app) as server:
        body = {"messages": HELLO, "max_tokens": 3}
        late = {**body, "deadline_ms": 0}
        for asked, status in ((body, 200), (late, 504)):
            assert httpx.post(server.url + CHAT, json=asked, timeout=PATIENCE_S).status_code == status
        families = list(text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text))
    assert {family.name: family.type for family in families}.items() >= NAMES.items()
    for family in families:
        if not family.name.endswith("_created"):
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            kind, known, says = reference.all_metrics()[name]
            assert (kind, says) == (family.type, family.documentation), name
            if family.samples:  # what nothing was counted of shows no labels
                assert set(known) == labels, name
    outcomes = [s.labels["outcome"] for f in families for s in f.samples if s.name == "fieldlm_requests_total"]
    assert sorted(outcomes) == ["deadline_exceeded", "length"]


def test_the_hottest_sensor_is_told_where_there_is_one(tmp_path: Path) -> None:
    for zone, millidegrees in (("0", "48312"), ("1", "61500")):
        folder = tmp_path / "sys/class/thermal" / f"thermal_zone{zone}"
        folder.mkdir(parents=True)
        (folder / "temp").write_text(millidegrees)
        (folder / "type").write_text("cpu-thermal")
    read = {name: value for name, _, _, value in process_readings(tmp_path)}
    assert read["fieldlm_temperature_celsius"] == pytest.approx(61.5)
    assert "fieldlm_temperature_celsius" not in {name for name, *_ in process_readings(tmp_path / "none")}
