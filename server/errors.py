"""Every refusal, in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from dis import opmap
from typing import Any

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
        self.close = False
        """Whether the connection ends with the answer, for the rest of the request is not read."""

    def body(self, request_id: str = "") -> bytes:
        """OpenAI's shape; with the keys `type` and `request_id` beside the error it is Anthropic's too."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        whole: dict[str, Any] = {"error": error, "type": "error"}
        return encode_json(whole | ({"request_id": request_id} if request_id else {}))

    @property
    def headers(self) -> dict[str, str]:
        headers = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        if self.close:
            headers["connection"] = "close"
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
        status = 400 if status == 501 else status  # what vLLM cannot do is wrong with the request
        code = code_of(param, status)
        message = hide_internals(str(message))
    message = name_keys(str(message))
    return ApiError(message, param=(param or "").removeprefix("body.") or None, code=code, status=status)


def code_of(param: str | None, status: int) -> str | None:
    """The code of an error of vLLM's, whose own codes are statuses."""
    return "context_length_exceeded" if param in ("input_tokens", "input_text") else CODES.get(status)


def to_api_error(error: BaseException) -> ApiError:
    """What a client gets of an exception that ended its request: words that were written for it, or none."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LimitReached):
        at = {"budget": "max_sampled_tokens", "deadline": "deadline_ms"}[str(error)]
        message = f"alignment.budget.{at} was spent before there was anything to answer with: raise it"
        status = 504 if at == "deadline_ms" else 400  # so few tokens would never do
        return ApiError(message, param=f"alignment.budget.{at}", code=f"{error}_exceeded", status=status, retry=False)
    if isinstance(error, RewardError):
        return ApiError(str(error), param="alignment", code="reward_error", status=500, retry=False)
    if isinstance(error, asyncio.CancelledError):
        message = "the server shut down before this request was answered"
        return ApiError(message, code="shutting_down", status=503, retry_after=1)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "VLLMClientError" in kinds:  # its text has the parameter and the value behind it
        param, status = getattr(error, "parameter", None), 404 if "VLLMNotFoundError" in kinds else 400
        return ApiError(hide_internals(str(error.args[0])), param=param, code=code_of(param, status), status=status)
    if "TemplateError" in kinds:  # jinja's; the templates' own refusals are of the class itself
        refusal = str(error) if type(error).__name__ == "TemplateError" else "it does not fit them"
        return ApiError(f"the model's chat template refuses these messages: {hide_internals(refusal)}", code=None)
    if isinstance(error, ValueError) and is_worded(error):
        return ApiError(name_keys(str(error)), code=None)
    return opaque_error()


def opaque_error(status: int = 500) -> ApiError:
    """What a client gets of a fault that is not its own."""
    return ApiError("internal server error", code="internal_error", status=status)


def is_worded(error: ValueError) -> bool:
    """Whether its message was written for whoever sent the value: by a `raise` of ours or of vLLM's, not by Python
    itself or another library."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return not PYTHON.search(str(error))
    code, module = last.tb_frame.f_code, str(last.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    library = module in sys.stdlib_module_names or "site-packages" in code.co_filename
    raised = code.co_code[last.tb_lasti] == opmap["RAISE_VARARGS"]
    return raised and (module in ("trimtab", "vllm") or not library) and not PYTHON.search(str(error))


PYTHON = re.compile(
    r"<class |<function |<[\w.]+ object|object at 0x|Traceback \(|File \"|errors\.pydantic\.dev|\[type=\w+, "
    r"|\{'type': '|\w+\(\) (argument|takes|got|missing)|index out of range|has no attribute|unsupported operand"
    r"|NoneType|unhashable|not (subscriptable|iterable|callable)|positional argument|keyword argument|could not convert"
    r"|invalid literal|not supported between|object cannot be interpreted|values to unpack|maximum recursion"
    r"|math domain|codec can't|surrogates not allowed|indices must be|JSON compliant|broadcast"
    r"|Expecting (value|property name|',')"
)
"""What only messages of Python, of pydantic and of numpy have in them."""
UNREADABLE = "the request cannot be carried out as it is written"


def hide_internals(message: str) -> str:
    """vLLM's message without what it repeats of Python: classes, tracebacks, paths, pydantic's addresses."""
    if complaint := re.search(r"validation errors? for [^\n]+\n(\S+)\n\s+(?:Value error, )?(.+?) \[type=", message):
        where = [part for part in complaint[1].split(".") if re.fullmatch("[a-z0-9_]+", part)]  # the rest are classes
        at = ".".join(where) + ": " if not "".join(where).isdigit() and where else ""
        message = at + plain_words(complaint[2])
    message = re.sub(r" \((?:parameter=[^()]*|value=.*)\)$", "", message, flags=re.DOTALL)
    message = re.sub(r"(?<![\w:/.<])/(?!v1/)(?:[\w.@-]+/)+[\w.@-]+", "<path>", message)
    return UNREADABLE if PYTHON.search(message) else message


def plain_words(message: str) -> str:
    """Pydantic's complaint in JSON's words."""
    message = message.removeprefix("Value error, ")
    objects = r"(a valid |a )?dictionary( or (an )?(instance of \w+|object to extract fields from))?"
    message = re.sub(objects, "an object", message)
    return message[:1].lower() + message[1:]


def encode_json(value: Any) -> bytes:
    """The value as JSON; raises ApiError (500) for NaN and infinities, which JSON lacks."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise opaque_error() from error
    return text.encode(errors="backslashreplace")  # half a surrogate pair, which an error may repeat, as its escape
