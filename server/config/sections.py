"""The sections of the configuration file, typed and frozen, and what must agree among them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from trimtab.decoders import STRATEGIES
from trimtab.decoders.protocols import BASE
from trimtab.rewards.protocols import ReadPart
from trimtab.runtime.contexts import Context, make_context
from trimtab.server.wording import suggest

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class ConfigError(Exception):
    """A configuration that cannot be served."""

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key


def _beside(name: str, info: ValidationInfo) -> Path:
    """A path from the file's folder."""
    if not name.isprintable():
        raise ValueError("holds a character that no path has")
    try:
        return (info.context or Path()) / Path(name).expanduser()
    except RuntimeError as error:  # of "~somebody"
        raise ValueError(str(error)) from None


def _resolve_model(name: str, info: ValidationInfo) -> str:
    """A path from the file's folder as an absolute one; what looks like no path is a Hugging Face id."""
    if not name.strip():
        raise ValueError("is empty; valid: a checkpoint's folder, or a Hugging Face id")
    path = _beside(name, info)
    try:
        if path.is_dir():
            return str(path.resolve())
        is_file = path.exists()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if name.endswith(".gguf"):
        raise ValueError(
            f"{path} is a GGUF file, which is not served; valid: a folder with config.json and safetensors"
        )
    if is_file:
        raise ValueError(f"{path} is a file; valid: a checkpoint's folder, or a Hugging Face id")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"there is no {path}")
    return name


Model = Annotated[str, AfterValidator(_resolve_model)]


def _resolve_file(name: str, info: ValidationInfo) -> str:
    path = _beside(name, info)
    try:
        path = path.resolve()
        if not path.exists():
            raise ValueError(f"there is no {path}")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; valid: a file")
    except RuntimeError:
        raise ValueError(f"{path} is a symbolic link that leads to itself") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return str(path)


File = Annotated[str, AfterValidator(lambda name, info: str(_beside(name, info).absolute()))]
"""A path, from the file's folder; whoever reads the file says what is wrong with it."""


def _resolve_template(text: str, info: ValidationInfo) -> str:
    """A chat template's file, or the template itself."""
    return text if set("{}\n") & set(text) else _resolve_file(text, info)


def _resolve_folder(name: str, info: ValidationInfo) -> str:
    """A folder that may yet be made."""
    return str(_beside(name, info).absolute())


ENGINE_PATHS: Mapping[str, Callable[[str, ValidationInfo], str]] = {
    "chat_template": _resolve_template,
    "download_dir": _resolve_folder,
    "generation_config": lambda name, info: name if name in ("auto", "vllm") else _resolve_model(name, info),
    "hf_config_path": _resolve_model,
    "reasoning_parser_plugin": _resolve_file,
    "speculative_config.model": _resolve_model,
    "structured_outputs_config.reasoning_parser_plugin": _resolve_file,
    "tokenizer": _resolve_model,
    "tool_parser_plugin": _resolve_file,
}
"""vLLM's arguments that are paths."""


def _resolve_engine_paths(arguments: Mapping[str, Any], info: ValidationInfo) -> Mapping[str, Any]:
    """vLLM's arguments with their paths from the file's folder; raises ValueError that begins with the key."""
    resolved = dict(arguments)
    for key, resolve in ENGINE_PATHS.items():
        *above, last = key.split(".")
        holder = resolved
        for part in above:
            if isinstance(holder.get(part), Mapping):
                holder[part] = holder = dict(holder[part])
            else:
                holder = {}
        if isinstance(value := holder.get(last), str) and value:
            try:
                holder[last] = resolve(value, info)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
    if "lora_modules" in resolved:
        modules = resolved["lora_modules"]
        listed = modules if isinstance(modules, list | tuple) else [modules]
        resolved["lora_modules"] = [_resolve_adapter(entry, info) for entry in listed]
    return resolved


def _resolve_adapter(entry: Any, info: ValidationInfo) -> dict[str, Any]:
    """An adapter that requests may name, as vLLM takes it: NAME=PATH, or a mapping."""
    if isinstance(entry, str) and "=" in entry:
        entry = dict(zip(("name", "path"), entry.split("=", 1), strict=True))
    if not isinstance(entry, Mapping) or not all(entry.get(k) and isinstance(entry[k], str) for k in ("name", "path")):
        raise ValueError(f"lora_modules: {entry!r} is no adapter; valid: NAME=PATH, or {{name: NAME, path: PATH}}")
    try:
        return {**entry, "path": _resolve_model(entry["path"], info)}
    except ValueError as error:
        raise ValueError(f"lora_modules: {entry['name']}: {error}") from None


EngineArguments = Annotated[Mapping[str, Any], AfterValidator(_resolve_engine_paths)]


HASHED = "sha256:"
"""What a key's digest in hexadecimal digits begins with, where it stands in the key's place."""


def _check_key(key: str) -> str:
    if key.startswith(HASHED) and not re.fullmatch(HASHED + "[0-9a-f]{64}", key):
        raise ValueError("a digest is sha256: and 64 hexadecimal digits")
    return key


Key = Annotated[str, Field(min_length=1), AfterValidator(_check_key)]
KEY = TypeAdapter[str](Key)
TrustedHeader = Literal["endpoint-load-metrics-format", "x-data-parallel-rank", "x-session-id", "x-vllm-priority"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GuideConfig(Section):
    """What answers are decoded with beside the base: a model, an adapter of the base, or the base under a prompt."""

    model: Model | None = None
    """A checkpoint directory or Hugging Face id that runs in lock-step with the base; or a PEFT LoRA adapter, which is
    merged into a copy of it."""
    adapter: Model | None = None
    """A PEFT LoRA adapter of the base that takes a row of the batch, and no copy."""
    prompt: str | None = None
    """An instruction: the guide is what it moves the base by, l(x, prompt) - l(x, against) in logits."""
    against: str | None = None
    """Its opposite; by default the conversation as it is. One of the two may be left out."""
    role: Literal["system", "user"] = "system"
    """Whose message `prompt` and `against` join: the system message, or the user's last words."""
    replace_system: bool = False
    """Whether they stand in place of the client's own system message; an empty text then leaves none."""
    quantization: str | None = None
    """As vLLM's argument of the same name."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    tokenizer: Model | None = None
    """Where the tokenizer is that it was trained with, if not with the model: it is compared with the base's."""
    hf_overrides: Mapping[str, Any] = {}
    """What to put over its config.json, as vLLM's argument of the same name."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> GuideConfig:
        kinds = {
            "model": {"model", "quantization", "revision", "tokenizer", "hf_overrides"},
            "adapter": {"adapter"},
            "prompt": {"prompt", "against", "role", "replace_system"},
            "against": {"prompt", "against", "role", "replace_system"},
        }
        written = self.model_fields_set
        kind = next((key for key in kinds if getattr(self, key) is not None), None)
        if kind is None:
            raise ValueError(f"needs one of {', '.join(kinds)}")
        for key in sorted(written - kinds[kind]):
            raise ValueError(f"{key} cannot stand beside {kind}")
        return self

    @property
    def context(self) -> Context:
        """Of a guide that is the base under a prompt."""
        return make_context(self.prompt, self.against, self.role, self.replace_system)


class ObjectiveConfig(Section):
    """A dimension that a person can prefer."""

    about: str = ""
    """Shown to clients."""
    guide: str | None = None
    """The guide that pulls towards it."""
    gain: float = Field(default=1.0, allow_inf_nan=False)
    """The guide's exponent at preference weight 1, so that equal weights pull equally."""
    reward: str | Mapping[str, Any] | None = None
    """What scores it: a reward's name, `name.label` for one of several, or `{of: …, combine: …, transform: …}`."""
    mean: float = Field(default=0.0, allow_inf_nan=False)
    """Mean of its reward over the base's own answers; a preference weight multiplies (reward - mean) / spread."""
    spread: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Standard deviation of its reward over the base's own answers."""


class ConeConfig(Section):
    """The directions that a preference prompt's reader was trained to obey."""

    axis: Mapping[str, float]
    """Weight per objective: the middle of the directions."""
    degrees: float = Field(default=180.0, gt=0, le=180)
    """Farthest angle from the axis."""
    nonnegative: bool = False
    """Whether weights below 0 are refused."""


class PromptConfig(Section):
    """The text that says a direction in reward space to a model trained to obey it."""

    template: Literal["dpa", "rps", "values"] | None = None
    """A published text: DPA's system message, RPS's before the user's words, or `values`, a description in words."""
    text: str | None = None
    """Your own, with each slot in braces, as in "helpfulness*{h}"."""
    role: Literal["system", "user"] | None = None
    """Whose message the text is; "user" puts it before the user's last words. Published texts have theirs."""
    slots: Mapping[str, str] = {}
    """slot -> objective, in the order of a direction's axes; `-brevity` where the slot means the opposite. For `values`
    the slot is what the text calls it."""
    scale: float = Field(default=100.0, gt=0, allow_inf_nan=False)
    """What a slot shows of a share of 1."""
    decimals: int = Field(default=0, ge=0, le=6)
    """Of what a slot shows."""
    cone: ConeConfig | None = None
    """Which directions are valid: by default all, for `dpa` and `rps` within 45 degrees of the first objective."""
    reader: str | None = None
    """The guide that was trained to read it, and answers in the base's place; by default the base reads it."""


class RewardConfig(Section):
    """Something that scores whole answers. The other keys are the kind's own: docs/rewards.md."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    kind: str
    """Which of the kinds of docs/rewards.md."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that it may stand still: without one more answer to a question of a judge's, or, while it waits for an
    engine, without an answer of that engine to anybody."""
    on: ReadPart = "answer"
    """What it reads of a completion of a model that thinks: the answer, the thoughts, or both with the marks between
    them, for a process reward model that judges thoughts. Without `engine.reasoning_parser` all is the answer."""
    model: Model | None = None
    """For kinds that are models: a checkpoint directory or Hugging Face id, or a PEFT LoRA adapter with a head."""
    base: Model | None = None
    """What `model` is an adapter of, where its adapter_config.json does not say it or says another place."""
    engine: EngineArguments = {}
    """For kinds that are models: vLLM's arguments for the engine that it runs on."""

    def served(self) -> tuple[str, str | None, dict[str, Any]]:
        """The model, its base, and the arguments of its engine."""
        assert self.model is not None
        return self.model, self.base, dict(self.engine)


class LimitsConfig(Section):
    """What requests may cost, one by one and together. A token that is only scored counts `scored_weight` of one."""

    max_tokens: int | None = Field(default=None, ge=1)
    """What all requests let in may yet cost together, those that wait included; beyond it they get 429. By default
    `max_wait_s` bounds the wait instead, and 32 * engine.max_num_seqs * engine.max_model_len the cost."""
    max_wait_s: float = Field(default=10.0, gt=0)
    """Longest wait, by what was answered a second of late, with which a request is let in where `max_tokens` is not
    set; beyond it, it gets 429. What fits one batch of the engine's (engine.max_num_seqs) is always let in."""
    scored_weight: float = Field(default=0.1, ge=0, le=1)
    """What a token that is scored counts against one that is drawn: reading is cheaper than writing."""
    max_sampled_tokens: int | None = Field(default=None, ge=1)
    """What one request may draw at the most, by what its strategy says or by its own budget; more is a 400."""
    max_deadline_ms: int | None = Field(default=None, ge=1)
    """Longest deadline that a request may ask for, and that of one that asks for none. An answer under a deadline takes
    a slower way than vLLM's own."""
    drain_s: float = Field(default=30.0, ge=0)
    """What requests in flight have after SIGTERM until they are cut off."""
    max_schema_bytes: int = Field(default=2**17, ge=1)
    """Longest JSON schema, grammar or list of choices that an answer may have to follow; more is a 400."""
    max_schema_values: int = Field(default=5000, ge=1)
    """Values of such a schema in all: objects, lists, texts, numbers."""
    max_schema_entries: int = Field(default=1000, ge=1)
    """Longest enum, properties or other list of such a schema, most rules of a grammar, longest list of choices."""
    max_schema_depth: int = Field(default=32, ge=1)
    """Levels of such a schema."""
    max_regex_chars: int = Field(default=1024, ge=1)
    """Longest regular expression that an answer, or a text in its schema, may have to match."""


class TimeoutsConfig(Section):
    """How long the server waits, in seconds."""

    headers_s: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    """From a connection's, or a request's, first byte to the end of the request's headers."""
    body_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """From the end of a request's headers to that of its body; 408 after it."""
    keep_alive_s: float = Field(default=90.0, gt=0, allow_inf_nan=False)
    """For the next request on a connection; longer than a balancer in front keeps it."""
    engine_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """For an engine to end the step that it is at. One that takes longer is taken to hang: /health and /ready are red
    until it goes on. Set it above the longest step, which is a full batch of prompt tokens."""


def _check_origin(origin: str) -> str:
    if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", origin):
        raise ValueError('an origin is scheme://host, with a port if it has one and no path, or "*" for all')
    return origin


Origin = Annotated[str, AfterValidator(_check_origin)]


class Config(Section):
    base: Model
    """The frozen model: a checkpoint directory or Hugging Face id."""
    name: Name | None = None
    """The model id that clients use; by default the last part of `base`."""
    guides: Mapping[Name, GuideConfig] = {}
    """Models that run in lock-step with the base, by name; a bare path is short for `{model: path}`."""
    rewards: Mapping[Name, RewardConfig] = {}
    """What scores answers, by name."""
    objectives: Mapping[Name, ObjectiveConfig] = {}
    """What a person can prefer, by name."""
    preference_prompts: Mapping[Name, PromptConfig] = {}
    """What says a direction in reward space to a model, by name; the first is the one that requests get."""
    auto_weights: Model | None = None
    """A folder or Hugging Face id with the adapter that answers `"weights": "auto"`."""
    presets: Mapping[Name, Mapping[str, Any]] = {}
    """Model ids of their own, each an `alignment` object."""
    client_prompts: bool = True
    """Whether requests may bring prompts of their own as guides, in `alignment.prompts`."""
    default_strategy: str = "plain"
    """For requests that say nothing."""
    max_weight: float = Field(default=100.0, gt=0, le=1e4)
    """Largest magnitude of a guide's exponent."""
    max_candidates: int = Field(default=256, ge=1, le=4096)
    """Largest `params.n`, or `chains`: answers that one request may have drawn side by side."""
    max_draws: int = Field(default=4096, ge=1, le=10**6)
    """Answers that one request may have drawn in all: `chains` times (`steps` + 1) under `qalign`."""
    max_body_mib: float = Field(default=4.0, gt=0)
    """Longest request body, in MiB."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8000
    """Port to listen on."""
    limits: LimitsConfig = LimitsConfig()
    """What requests may cost, and how long the last ones have."""
    timeouts: TimeoutsConfig = TimeoutsConfig()
    """How long the server waits."""
    max_connections: int = Field(default=4096, ge=1)
    """Open connections; beyond it an idle one is closed for a new one, and the new one gets 503 where all are busy."""
    allowed_origins: tuple[Origin, ...] = ()
    """Origins whose web pages may call this server from a browser, such as https://app.example.org, or `*`."""
    api_keys: tuple[Key, ...] = Field(default=(), repr=False)
    """Keys that open the server, or `sha256:` and the digest of each; none means open to all. TRIMTAB_API_KEY in the
    environment adds one."""
    api_keys_file: File | None = None
    """A file with one such key or digest a line, and a comment behind it; `trimtab key` makes both."""
    admin_keys: tuple[Key, ...] = Field(default=(), repr=False)
    """Keys, or digests, that open /metrics and /admin too; with any, the others do not. TRIMTAB_ADMIN_KEY adds one."""
    caller_header: str | None = None
    """Header by which a gateway in front names the caller whose share a request is; by default it is the key."""
    trusted_headers: tuple[TrustedHeader, ...] = ()
    """Request headers that vLLM may heed, for gateways in front; the others of these are dropped."""
    playground: bool = True
    """Whether browsers get the playground at `/`: a page for trying settings, open without a key, which asks for one
    where the server does."""
    log_format: Literal["text", "json"] = "text"
    """Of the log's lines."""
    otlp_endpoint: str | None = None
    """Where OpenTelemetry traces go, such as http://localhost:4318/v1/traces; none are made without it."""
    engine: EngineArguments = {}
    """vLLM's own arguments by name, with underscores: dtype, max_model_len, tensor_parallel_size … Their paths are
    from the file's folder."""

    @model_validator(mode="before")
    @classmethod
    def _paths_as_guides(cls, data: Any) -> Any:
        """`guides: {warmth: some/path}` is short for `{warmth: {model: some/path}}`."""
        if isinstance(data, dict) and isinstance(data.get("guides"), dict):
            short = {n: {"model": g} if isinstance(g, str) else g for n, g in data["guides"].items()}
            data = {**data, "guides": short}
        return data

    @model_validator(mode="after")
    def _names_agree(self) -> Config:
        if BASE in self.guides:
            raise ValueError(f"guides.{BASE}: {BASE!r} is the frozen model's own name")
        for name, objective in self.objectives.items():
            if objective.guide is not None and objective.guide not in self.guides:
                raise ValueError(f"objectives.{name}.guide: {suggest('guide', objective.guide, self.guides.keys())}")
        if self.default_strategy not in STRATEGIES:
            raise ValueError(f"default_strategy: {suggest('strategy', self.default_strategy, STRATEGIES.keys())}")
        if "x-vllm-priority" in self.trusted_headers and "scheduling_policy" not in self.engine:
            raise ValueError(
                "trusted_headers: x-vllm-priority needs engine.scheduling_policy: without it, fair shares decide"
            )
        if self.model_name in self.presets:
            raise ValueError(f"presets.{self.model_name}: this is the base model's own id")
        names = [self.model_name, *self.presets, *(entry["name"] for entry in self.engine.get("lora_modules", ()))]
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise ValueError(f"engine.lora_modules: {twice[0]} is the id of another model already")
        return self

    @property
    def guide_models(self) -> dict[str, GuideConfig]:
        """Guides that are models in lock-step with the base."""
        return {name: guide for name, guide in self.guides.items() if guide.model is not None}

    @property
    def guide_adapters(self) -> dict[str, str]:
        """Guides that are LoRA adapters, a row of the batch each, with their places."""
        return {name: guide.adapter for name, guide in self.guides.items() if guide.adapter is not None}

    @property
    def contexts(self) -> dict[str, Context]:
        """Guides that are the base under a prompt."""
        return {name: g.context for name, g in self.guides.items() if g.model is None and g.adapter is None}

    @property
    def adapters(self) -> dict[str, str]:
        """LoRA adapters that requests may name as their model, with their places."""
        listed = {entry["name"]: entry["path"] for entry in self.engine.get("lora_modules", ())}
        return {**self.engine.get("default_mm_loras", {}), **listed}

    @property
    def model_name(self) -> str:
        return self.name or Path(self.base).name

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that opens the server, or the digest of one; raises ConfigError for a file that holds none."""
        keys = [*self.api_keys, *self._keys_from_file()]
        return (*keys, *filter(None, [os.environ.get("TRIMTAB_API_KEY")]))

    @property
    def all_admin_keys(self) -> tuple[str, ...]:
        return (*self.admin_keys, *filter(None, [os.environ.get("TRIMTAB_ADMIN_KEY")]))

    def _keys_from_file(self) -> list[str]:
        if self.api_keys_file is None:
            return []
        try:
            lines = [line.split("#")[0].split() for line in Path(self.api_keys_file).read_text("utf-8").splitlines()]
            keys = [KEY.validate_python(words[0]) for words in lines if words]
        except OSError as error:
            raise ConfigError(f"cannot be read: {error.strerror}", key="api_keys_file") from None
        except UnicodeDecodeError:
            raise ConfigError("is not UTF-8", key="api_keys_file") from None
        except ValidationError as error:
            raise ConfigError(error.errors()[0]["msg"], key="api_keys_file") from None
        if not keys:
            raise ConfigError("holds no key, and without any the server would be open to all", key="api_keys_file")
        return keys


SINGLE_SECTIONS: dict[str, type[Section]] = {
    key: type(field.default) for key, field in Config.model_fields.items() if isinstance(field.default, Section)
}
"""Keys that are a section each."""

SECTIONS: dict[str, type[Section]] = {
    "guides": GuideConfig,
    "rewards": RewardConfig,
    "objectives": ObjectiveConfig,
    "preference_prompts": PromptConfig,
}
"""Of the keys whose values are named, what a value is."""
