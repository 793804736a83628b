"""A request that is not answered, in OpenAI's shape."""

from typing import Any


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
        super().__init__(message)
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
