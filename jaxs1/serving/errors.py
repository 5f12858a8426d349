"""Errors in the shape of OpenAI's API."""

from __future__ import annotations

import re
from typing import Any

from jaxs1.config import UserError
from jaxs1.decoding.controls import PromptTooLong

#: Status -> type of the error, as OpenAI's clients know it.
TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
    504: "timeout",
}


class ApiError(Exception):
    """An error that a client is told.

    Args:
        status: HTTP status
        message: one line: field, value, constraint, remedy
        code: short name of the error, for programs
        param: field of the request
        retry_after: seconds after which a retry makes sense
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "invalid_request_error",
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.param, self.retry_after = param, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON object of a reply or of an event."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message, "type": kind, "param": self.param, "code": self.code,
            }
        }  # fmt: skip

    def headers(self) -> dict[str, str]:
        """Headers of a reply."""
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}


def bad_request(message: str, param: str | None = None) -> ApiError:
    """Status 400."""
    return ApiError(400, message, param=param)


def from_user_error(error: UserError, context: int, prompt_tokens: int) -> ApiError:
    """A `UserError` of the engine as status 400.

    Args:
        error: its message begins with the field
        context: maximum length of a sequence [tokens]
        prompt_tokens: length of the prompt
    """
    if isinstance(error, PromptTooLong):
        # clients recognise this text: litellm maps it to ContextWindowExceededError
        message = (
            f"This model's maximum context length is {context} tokens, but the prompt has "
            f"{prompt_tokens}: {error}"
        )
        return ApiError(400, message, "context_length_exceeded", param="messages")
    field = re.match(r"[\w.]+(?=[=: ])", str(error))
    return bad_request(str(error), field[0] if field else None)


def internal_error() -> ApiError:
    """Status 500; the reason is in the server's log only."""
    return ApiError(500, "internal error; the reason is in the server's log", "internal_error")
