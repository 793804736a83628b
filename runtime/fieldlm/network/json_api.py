"""JSON over HTTP: bodies of bounded size in; documents, events and errors in OpenAI's shape out."""

from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fieldlm.core.errors import FieldlmError, InputError

WRITE = "fieldlm.write"
STOPPING = "fieldlm.stopping"
"""In a request's state: a function that sends a piece of the body whose head is out, without a task that waits for it.

For answers of bounded length alone: a piece that the client does not read stays in memory. Its connection is cut off.
"""
SIGN_OF_LIFE = "fieldlm.sign-of-life"
"""In a request's state: a function that takes what may be written between two pieces of the body and means nothing.

With it is seen whether a client that has closed its half of the connection still reads the other one.
"""
BODY_LIMIT = 4 << 20  # bytes; far more text than any context holds
MOST_MESSAGE_CHARS = 2000
"""Of what is said of an error: a request's own words may be in it, and are not sent back whole."""


class ApiError(Exception):
    """A refusal in OpenAI's shape: status, what is wrong, with which parameter."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        own: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message if len(message) <= MOST_MESSAGE_CHARS else f"{message[:MOST_MESSAGE_CHARS]}…")
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.own = own

    def document(self) -> dict[str, Any]:
        """Return the body; `fieldlm` in it says what happened to an answer that had begun."""
        kinds = {429: "rate_limit_error", 404: "not_found_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error} if self.own is None else {"error": error, "fieldlm": self.own}


async def read_body(request: Request) -> bytes:
    """Read the body, at most BODY_LIMIT of it."""
    coding = request.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise ApiError(415, f"a body in {coding} is not read; send it as it is", code="unsupported_encoding")
    pieces: list[bytes] = []
    size = 0
    if int(request.headers.get("content-length", 0)) > BODY_LIMIT:
        raise _too_large()  # who asked whether to send it need not
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > BODY_LIMIT:
                raise _too_large()
            pieces.append(piece)
    except ClientDisconnect as error:
        raise ApiError(400, "the client left before its request was complete") from error
    # RFC 8259 §8.1: what some editors and shells put before a text is no part of it.
    return b"".join(pieces).removeprefix(BOM_UTF8)


def _too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {BODY_LIMIT} bytes", code="body_too_large")


def api_error(error: Exception) -> ApiError:
    """Return any error as a refusal: one of ours in its words, an unexpected one without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, error.detail, code="http_error")
    if isinstance(error, InputError):
        return ApiError(400, str(error), code="invalid_value")
    return ApiError(500, str(error) if isinstance(error, FieldlmError) else "internal error", code="internal")


async def error_response(request: Request, error: Exception) -> Response:
    """Answer every error in OpenAI's shape."""
    named = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    is_elsewhere = isinstance(error, HTTPException) and error.status_code == 404
    error = api_error(error) if not is_elsewhere else ApiError(404, _not_here(request), code="http_error")
    response = as_json(error.document(), status=error.status)
    response.headers.update(named)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    return response


def _not_here(request: Request) -> str:
    """Say that nothing is at the path of `request`, and where it is that was meant, with `/v1` or without."""
    path = request.url.path
    known = {getattr(route, "path", "") for route in getattr(request.scope.get("app"), "routes", ())}
    meant = next((other for other in (f"/v1{path}", path.removeprefix("/v1")) if other in known), None)
    return f"nothing is at {path[:100]}" + (f"; it is at {meant}" if meant else "")


def worded(
    call: Callable[[Request], Awaitable[Any]], refusal: Callable[[ApiError], dict[str, Any]]
) -> Callable[[Request], Awaitable[Any]]:
    """Return the endpoint `call` with its refusals as `refusal` spells them, for another API than OpenAI's."""

    async def answer(request: Request) -> Any:
        try:
            return await call(request)
        except (ApiError, FieldlmError) as error:
            known = api_error(error)
            response = as_json(refusal(known), status=known.status)
            if known.retry_after_s is not None:
                response.headers["retry-after"] = str(known.retry_after_s)
            return response

    return answer


def as_json(document: Any, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status_code=status, media_type="application/json")


def as_event(document: Any) -> bytes:
    """Return `document` as one server-sent event without a name."""
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
