"""OTLP export: answers as OpenTelemetry spans under the names of the GenAI conventions, over HTTP.

The names are made here and nowhere else, because the conventions still change. Ids come from the record's key, so what
is sent twice is the same span. What people said stays in the store: the conventions let it out only where somebody
opts in, and nobody can here.
"""

import contextlib
import gzip
import hashlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from fieldlm.core.errors import InputError, MissingDependencyError, UnavailableError
from fieldlm_compiler.collect.sink import Sink
from fieldlm_compiler.fleet.view import FINE

try:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    )
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
except ImportError as error:
    raise MissingDependencyError("OTLP is not installed; run: pip install 'fieldlm-compiler[otlp]'") from error

BATCH = 512
TRIES = 4
TIMEOUT_S = 30
PROVIDER = "fieldlm"
_BUSY = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_ROWS = """
SELECT device, epoch, stream, seq, wall_ms, generation, model, response, session, route, outcome, prompt_tokens,
    completion_tokens, cached_tokens, queue_ms, ttft_ms, duration_ms
FROM records WHERE kind = 'generation' AND wall_ms >= ? ORDER BY device, epoch, stream, seq
"""


def export(sink: Sink, url: str, *, since_ms: int) -> tuple[int, int]:
    """Send every answer since `since_ms` to the receiver at `url`; returns spans sent and spans it rejected.

    Raises InputError for a URL that is none, LinkError when the receiver is away or refuses.
    """
    target = _target(url)
    rows = sink.query(_ROWS, (since_ms,))
    rejected = 0
    for start in range(0, len(rows), BATCH):
        rejected += _send(target, request(rows[start : start + BATCH]))
    return len(rows), rejected


def request(rows: Iterable[dict[str, Any]]) -> ExportTraceServiceRequest:
    """Return the rows as an OTLP request, one resource for each device and generation."""
    groups: dict[tuple[str, str], list[Span]] = {}
    for row in rows:
        groups.setdefault((row["device"], row["generation"]), []).append(span(row))
    made = ExportTraceServiceRequest()
    for (device, generation), spans in groups.items():
        resource = ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])
        resource.scope_spans[0].scope.name = PROVIDER
        resource.resource.attributes.extend(
            _attributes({"service.name": PROVIDER, "service.instance.id": device, "service.version": generation})
        )
        made.resource_spans.append(resource)
    return made


def span(row: dict[str, Any]) -> Span:
    """Return one answer as a span. Its kind is INTERNAL: the model runs in the process that answers."""
    key = f"{row['device']}/{row['epoch']}/{row['stream']}/{row['seq']}".encode()
    digest = hashlib.sha256(key).digest()
    start_ns = row["wall_ms"] * 1_000_000
    is_fine = row["outcome"] in FINE
    made = Span(
        trace_id=digest[:16],
        span_id=digest[16:24],
        name=f"chat {row['model']}".rstrip(),
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=max(0, start_ns),
        end_time_unix_nano=max(0, start_ns + round(row["duration_ms"] * 1e6)),
        status=Status(code=Status.STATUS_CODE_UNSET if is_fine else Status.STATUS_CODE_ERROR),
    )
    made.attributes.extend(
        _attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": PROVIDER,
                "gen_ai.request.model": row["model"],
                "gen_ai.response.model": row["model"],
                "gen_ai.response.id": row["response"],
                "gen_ai.response.finish_reasons": [row["outcome"]] if row["outcome"] else None,
                "gen_ai.conversation.id": row["session"],
                "gen_ai.usage.input_tokens": row["prompt_tokens"],
                "gen_ai.usage.output_tokens": row["completion_tokens"],
                "gen_ai.usage.cache_read.input_tokens": row["cached_tokens"],
                "error.type": None if is_fine else row["outcome"] or "unknown",
                # Nobody has names for these yet.
                "fieldlm.queue_ms": row["queue_ms"],
                "fieldlm.ttft_ms": row["ttft_ms"],
                "fieldlm.route": row["route"],
            }
        )
    )
    return made


def _attributes(values: dict[str, Any]) -> Iterator[KeyValue]:
    """Yield what is known: an empty text is not."""
    for name, value in values.items():
        if value is not None and value != "":
            yield KeyValue(key=name, value=_value(value))


def _value(value: str | int | float | Sequence[str]) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(array_value=ArrayValue(values=[_value(item) for item in value]))


def _target(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{url!r} is no OTLP receiver; write http://HOST:4318")
    return url if parts.path not in ("", "/") else f"{url.rstrip('/')}/v1/traces"


def _send(target: str, message: ExportTraceServiceRequest) -> int:
    """Send one request, again while the receiver is busy; returns how many spans it rejected."""
    headers = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
    asked = urllib.request.Request(target, gzip.compress(message.SerializeToString()), headers)
    for failures in range(TRIES):
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:
                return ExportTraceServiceResponse.FromString(answer.read()).partial_success.rejected_spans
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in _BUSY or failures == TRIES - 1:
                    raise UnavailableError(
                        f"the OTLP receiver {target} answered {error.code} {error.reason}"
                    ) from error
                time.sleep(_patience_s(error.headers.get("retry-after"), failures))
        except OSError as error:
            raise UnavailableError(f"the OTLP receiver {target} is away: {error}") from error
    raise AssertionError("the last try returns or raises")


def _patience_s(said: str | None, failures: int) -> float:
    with contextlib.suppress(TypeError, ValueError):
        return min(60.0, max(0.0, float(said or "")))
    return 0.5 * 2.0**failures
