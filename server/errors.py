"""Every refusal, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json

from starlette.responses import Response

from trimtab.decoders.protocols import LimitReached
from trimtab.engine.flags import name_keys
from trimtab.rewards.protocols import RewardError


class ApiError(Exception):
    """A request that cannot be carried out as asked."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = "invalid_value",
        status: int = 400,
        retry: bool = True,
        retry_after: int | None = None,
    ) -> None:
        """`retry`: whether a client that retries such a status by itself would do well to; after how many seconds."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status
        self.retry = retry
        self.retry_after = retry_after

    def body(self) -> bytes:
        """OpenAI's shape; with the key `type` beside the error it is Anthropic's too."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error, "type": "error"}).encode()

    @property
    def headers(self) -> dict[str, str]:
        headers = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        return headers if self.retry else headers | {"x-should-retry": "false"}

    def response(self) -> Response:
        return Response(self.body(), status_code=self.status, headers=self.headers, media_type="application/json")


CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 429: "rate_limit_exceeded"}


def parse_error(body: bytes, status: int | None = None) -> ApiError | None:
    """An error in vLLM's words, or in ours, as ours, or None where it is none.

    Its status is in the body where `status` is not given.
    """
    try:
        error = json.loads(body)["error"]
        message, param, code = error["message"], error.get("param"), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    status = status or (code if isinstance(code, int) and code >= 400 else 500)
    if not isinstance(code, str):
        code = "context_length_exceeded" if param in ("input_tokens", "input_text") else CODES.get(status)
    return ApiError(
        name_keys(str(message)), param=(param or "").removeprefix("body.") or None, code=code, status=status
    )


def to_api_error(error: Exception) -> ApiError:
    """What a client gets of an exception that ended its request.

    As vLLM has it, a ValueError says what is wrong with the request; what else went wrong is for the log alone.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):
        return ApiError(name_keys(str(error)))
    if isinstance(error, LimitReached):
        message = f"the {error} passed before there was anything to answer with"
        return ApiError(message, param="alignment.budget", code=f"{error}_exceeded", status=504, retry=False)
    if isinstance(error, RewardError):
        return ApiError(str(error), param="alignment", code="reward_error", status=500, retry=False)
    return ApiError("internal server error", code="internal_error", status=500)
