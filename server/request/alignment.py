"""The request field `alignment`, as a client writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trimtab.runtime.contexts import Context, make_context
from trimtab.server.errors import ApiError
from trimtab.server.wording import explain_validation, quote

AT = "alignment"


class Budget(BaseModel):
    """What a request may spend at the most; what is in hand when it is spent is the answer."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_sampled_tokens: int = Field(default=0, ge=1, le=10**8)
    deadline_ms: int = Field(default=0, ge=1, le=3_600_000)


class Comparands(BaseModel):
    """What answers are compared with, for rewards that compare."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    references: list[str] = Field(default=[], min_length=1, max_length=64)
    answer: str = Field(default="", min_length=1)


MAX_PROMPTS = 4
MAX_PROMPT_CHARS = 4096
"""Of a client's own prompts: how many, and how long each of their texts."""


OWN_PROMPT = "prompts[{}]"
"""The name, as a guide, of a prompt that a client brings."""


class ClientPrompt(BaseModel):
    """A guide that the client brings: the base under a prompt."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    text: str | None = Field(default=None, max_length=MAX_PROMPT_CHARS)
    """What the answer is moved towards; by default the conversation as it is."""
    against: str | None = Field(default=None, max_length=MAX_PROMPT_CHARS)
    """What it is moved away from; by default the conversation as it is."""
    role: Literal["system", "user"] = "system"
    """Whose message they join."""
    replace_system: bool = False
    """Whether they stand in place of the request's own system message."""
    weight: float = Field(default=1.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _says_something(self) -> ClientPrompt:
        if self.text is None and self.against is None:
            raise ValueError("needs text or against")
        return self

    @property
    def context(self) -> Context:
        return make_context(self.text, self.against, self.role, self.replace_system)


class AlignmentRequest(BaseModel):
    """As a client sends it; names and numbers are checked against the server afterwards. No key may be null."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    strategy: str = ""
    weights: dict[str, Any] | Literal["auto"] = {}
    guides: dict[str, Any] = {}
    prompts: list[ClientPrompt] = Field(default=[], min_length=1, max_length=MAX_PROMPTS)
    params: dict[str, Any] = {}
    reward: Any = None
    given: Comparands = Comparands()
    budget: Budget = Budget()
    include: list[str] = Field(default=[], alias="return")
    on_error: Literal["fail", "degrade"] = "fail"

    @classmethod
    def parse(cls, raw: object) -> AlignmentRequest:
        """Raises ApiError naming the key."""
        fields = [field.alias or name for name, field in cls.model_fields.items()]
        if not isinstance(raw, Mapping):
            raise ApiError(f"{AT} must be an object with keys among {', '.join(fields)}; got {quote(raw)}", param=AT)
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            inside: dict[str, type[BaseModel]] = {"budget": Budget, "given": Comparands, "prompts": ClientPrompt}
            within = inside.get(str(error.errors()[0]["loc"][0]))
            raise explain_validation(error, at=AT, fields=within.model_fields if within else fields) from None
