"""OTLP export: answers as OpenTelemetry spans under the names of the GenAI conventions, over HTTP.

The names are made here and nowhere else, because the conventions still change. Ids come from the record's key, so what
is sent twice is the same span. What people said stays in the store: the conventions let it out only where somebody
opts in, and nobody can here. OpenTelemetry's own exporter sends, so that its variables count: a receiver's key in
OTEL_EXPORTER_OTLP_HEADERS, its authority in OTEL_EXPORTER_OTLP_CERTIFICATE, seconds in OTEL_EXPORTER_OTLP_TIMEOUT.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from fieldlm.core.errors import InputError, MissingDependencyError, UnavailableError
from fieldlm.core.extras import install_advice
from fieldlm.core.urls import shown
from fieldlm_compiler.collect.sink import Sink
from fieldlm_compiler.fleet.view import FINE

try:
    import requests
    from google.protobuf.message import DecodeError
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode
except ImportError as error:
    raise MissingDependencyError(f"OTLP is not installed; {install_advice('fieldlm-compiler', 'otlp')}") from error

BATCH = 512
PROVIDER = "fieldlm"
_ROWS = """
SELECT device, epoch, stream, seq, wall_ms, generation, model, response, session, route, outcome, prompt_tokens,
    completion_tokens, cached_tokens, queue_ms, ttft_ms, duration_ms
FROM records WHERE kind = 'generation' AND wall_ms >= ? ORDER BY device, epoch, stream, seq
"""


def export(sink: Sink, url: str, *, since_ms: int) -> tuple[int, int]:
    """Send every answer since `since_ms` to the receiver at `url`; returns spans sent and spans it rejected.

    Raises InputError for a URL that is none, UnavailableError when the receiver is away or refuses.
    """
    target = _target(url)
    spans = list(_spans(sink.query(_ROWS, (since_ms,))))
    # It logs what it returns, too; one line is enough.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    answers: list[requests.Response] = []

    def keep(answer: requests.Response, *_: object, **_options: object) -> None:
        answers.append(answer)

    with requests.Session() as session:
        session.hooks["response"].append(keep)
        exporter = OTLPSpanExporter(target, session=session, compression=Compression.Gzip)
        rejected = 0
        for start in range(0, len(spans), BATCH):
            answers.clear()
            result = exporter.export(spans[start : start + BATCH])
            rejected += _rejected(target, result, answers[-1] if answers else None)
    return len(spans), rejected


def _rejected(target: str, result: SpanExportResult, answer: requests.Response | None) -> int:
    """Return how many spans the receiver took and did not want, which the exporter does not say."""
    if answer is None:
        raise UnavailableError(f"the OTLP receiver {shown(target)} is away")
    if result is not SpanExportResult.SUCCESS:
        raise UnavailableError(f"the OTLP receiver {shown(target)} answered {answer.status_code} {answer.reason}")
    try:
        return ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans
    except DecodeError as error:
        raise UnavailableError(f"what answers at {shown(target)} is no OTLP receiver: {error}") from error


def _spans(rows: Iterable[dict[str, Any]]) -> Iterator[ReadableSpan]:
    """Yield each row as a span; a resource is one generation on one device."""
    resources: dict[tuple[str, str], Resource] = {}
    for row in rows:
        device, generation = row["device"], row["generation"]
        named = {"service.name": PROVIDER, "service.instance.id": device, "service.version": generation}
        yield span(row, resources.setdefault((device, generation), Resource(_known(named))))


def span(row: dict[str, Any], resource: Resource) -> ReadableSpan:
    """Return one answer as a span. Its kind is INTERNAL: the model runs in the process that answers.

    Made by hand, where the SDK would have it come from a tracer: that one knows only what happens now.
    """
    key = f"{row['device']}/{row['epoch']}/{row['stream']}/{row['seq']}".encode()
    digest = hashlib.sha256(key).digest()
    is_fine = row["outcome"] in FINE
    start_ns = row["wall_ms"] * 1_000_000
    return ReadableSpan(
        f"chat {row['model']}".rstrip(),
        SpanContext(int.from_bytes(digest[:16]), int.from_bytes(digest[16:24]), is_remote=False),
        resource=resource,
        instrumentation_scope=InstrumentationScope(PROVIDER),
        kind=SpanKind.INTERNAL,
        start_time=max(0, start_ns),
        end_time=max(0, start_ns + round(row["duration_ms"] * 1e6)),
        status=Status(StatusCode.UNSET if is_fine else StatusCode.ERROR),
        attributes=_known(
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
        ),
    )


def _known(values: dict[str, Any]) -> dict[str, Any]:
    """Return what is known: an empty text is not."""
    return {name: value for name, value in values.items() if value is not None and value != ""}


def _target(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise InputError(f"{shown(url)!r} is no OTLP receiver; write http://HOST:4318") from error
    if not is_one:
        raise InputError(f"{shown(url)!r} is no OTLP receiver; write http://HOST:4318")
    return url if parts.path not in ("", "/") else f"{url.rstrip('/')}/v1/traces"
