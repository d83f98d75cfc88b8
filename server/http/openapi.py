"""GET /openapi.json: vLLM's description of its app, with `alignment`, our endpoints and OpenAI's errors in it.

Names (strategies, objectives, guides) are those of the configuration as it is when the document is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from typing import (
    Any,
    Literal,
    NotRequired,  # typing's has no schema before Python 3.12
    get_type_hints,
)

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import ConfigDict, TypeAdapter, create_model, with_config
from typing_extensions import TypedDict

from trimtab.decoders import STRATEGIES
from trimtab.decoders.protocols import BASE
from trimtab.decoders.report import Report, Stage
from trimtab.server.config import Config
from trimtab.server.http.infer import InferRequest
from trimtab.server.http.score import ScoreRequest
from trimtab.server.http.vllm_app import RESPONSE_MODELS, ModelCard, ModelList
from trimtab.server.request.alignment import AlignmentRequest
from trimtab.server.request.preference_prompts import ANGLE

Schema = dict[str, Any]

REF = "#/components/schemas/{model}"
ERRORS = ("4XX", "5XX")
JSON = "application/json"
SCORE, INFER, CATALOGUE = "/v1/alignment/score", "/v1/alignment/infer", "/v1/alignment"


documented = with_config(ConfigDict(use_attribute_docstrings=True))


@documented
class ErrorDetail(TypedDict):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    """The key of the request that is wrong."""
    code: str | None


@documented
class Error(TypedDict):
    """OpenAI's shape of a refusal; with `type` it is Anthropic's too."""

    error: ErrorDetail
    type: Literal["error"]


@documented
class Explanation(TypedDict, total=False):
    """What an answer's value came from."""

    value: float | None
    rewards: dict[str, float]
    """Scores by reward or objective."""
    transformed: dict[str, float]


REPORTED: dict[str, Any] = {"index": int, **get_type_hints(Report), **get_type_hints(Explanation)}
AlignedChoice: Any = create_model(  # type: ignore[call-overload]
    "AlignedChoice", **{key: (kind, ...) for key, kind in REPORTED.items()}
)
AlignedChoice.__doc__ = "What a strategy reports of one answer. It tells what it has, so no key is required."


@documented
class AlignmentResponse(TypedDict):
    """What ran, and what it took."""

    strategy: str
    """The strategy that answered: "plain" where a reward failed and the request says "degrade"."""
    params: NotRequired[dict[str, Any]]
    """The strategy's parameters as they ran, defaults included."""
    weights: NotRequired[dict[str, float]]
    auto_weights: NotRequired[bool]
    """Whether the server chose the weights."""
    reward: NotRequired[Any]
    """As the request wrote it."""
    guides: NotRequired[dict[str, float]]
    """Exponent per member that answers were drawn with."""
    streaming: NotRequired[Literal["native", "buffered"]]
    sampled_tokens: NotRequired[int]
    scored_tokens: NotRequired[int]
    outcome: NotRequired[Literal["budget", "deadline", "degraded"]]
    """What ended the request before its time; absent where nothing did."""
    choices: NotRequired[list[AlignedChoice]]
    warnings: NotRequired[list[str]]


@documented
class BestSoFar(TypedDict):
    value: float | None
    text: NotRequired[str]
    """Where `return` names "best"."""


@documented
class AlignmentProgress(TypedDict):
    """How far a search is: `alignment.progress` of a stream's events before its answer, where `return` names it."""

    stage: Stage
    done: int
    of: int
    sampled_tokens: int
    scored_tokens: int
    elapsed_ms: int
    best: NotRequired[BestSoFar]
    """Absent where nothing has a reward yet, and of several prompts."""


@documented
class ScoreRow(Explanation, total=False):
    index: int


@documented
class ScoreResponse(TypedDict):
    object: Literal["alignment.scores"]
    model: str
    scores: list[ScoreRow]
    scored_tokens: int
    sampled_tokens: int


@documented
class Coefficient(TypedDict):
    mean: float
    std: float


@documented
class NextQuestion(TypedDict):
    """The pair of one conversation's answers whose comparison would tell most of the person."""

    candidate: int
    responses: tuple[int, int]
    information_nats: float
    first_preferred: float
    """Probability that the person would choose the first."""


@documented
class InferResponse(TypedDict):
    object: Literal["alignment.weights"]
    model: str
    weights: dict[str, float]
    """Of length 1."""
    interval: dict[str, tuple[float, float]]
    """The middle 95 % of what each may be."""
    expected_cosine: float
    coefficients: dict[str, Coefficient]
    ask: NextQuestion | None
    warnings: list[str]
    choices: int
    scored_tokens: int


@documented
class Catalogue(TypedDict):
    """What a client needs to build its controls."""

    model: str
    default_strategy: str
    max_weight: float
    strategies: dict[str, dict[str, Any]]
    objectives: dict[str, dict[str, Any]]
    rewards: dict[str, dict[str, Any]]
    combinations: dict[str, dict[str, Any]]
    transforms: dict[str, dict[str, Any]]
    guides: list[str]
    preference_prompts: dict[str, dict[str, Any]]
    auto_weights: bool
    presets: dict[str, dict[str, Any]]
    limits: dict[str, float | None]
    memory: Memory | None
    """None where there is no engine."""


@documented
class Memory(TypedDict):
    """Room for tokens on one device: every request holds the keys and values of all members."""

    kv_bytes_per_token: dict[str, int]
    """By member."""
    tokens: int
    """What the cache holds."""
    tokens_without_guides: int
    copies_of_base: list[str]
    """Guides that are LoRA adapters, each a copy of the base's weights."""


@documented
class Health(TypedDict):
    healthy: bool


@documented
class Ready(TypedDict):
    ready: bool


@documented
class Reloaded(TypedDict):
    changed: list[str]
    """Keys of the configuration."""


MODELS: tuple[Any, ...] = (
    AlignmentRequest, AlignmentResponse, AlignmentProgress, Error, ScoreRequest, ScoreResponse, InferRequest,
    InferResponse, Catalogue, Health, Ready, Reloaded, ModelList, ModelCard,
)  # fmt: skip
ANSWERS = {
    CATALOGUE: Catalogue, SCORE: ScoreResponse, INFER: InferResponse, "/health": Health, "/ready": Ready,
    "/admin/reload": Reloaded, "/v1/models": ModelList, "/v1/models/{name}": ModelCard,
}  # fmt: skip
BODIES = {SCORE: ScoreRequest, INFER: InferRequest}


def describe(app: FastAPI, config: Callable[[], Config]) -> None:
    """Makes the app's own document ours; `config` gives the configuration as it is."""
    made: list[Schema] = []  # it takes a second, and only names change

    def openapi() -> Schema:
        if not made:
            made.append(build_document(app))
        return with_names(made[0], config())

    app.openapi = openapi  # type: ignore[method-assign]


def build_document(app: FastAPI) -> Schema:
    try:
        released = version("trimtab")
    except PackageNotFoundError:  # a bare checkout
        released = "0"
    made: Schema = get_openapi(title="trimtab", version=released, openapi_version="3.1.0", routes=app.routes)
    schemas: Schema = made["components"]["schemas"]
    references = add_models(schemas)
    made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    made["security"] = [{"key": []}, {}]
    for path, operations in made["paths"].items():
        for operation in operations.values():
            responses = {code: response for code, response in operation["responses"].items() if code == "200"}
            if path in ANSWERS:
                responses["200"]["content"] = {JSON: {"schema": references[ANSWERS[path]]}}
            elif path in RESPONSE_MODELS:
                responses["200"]["content"][JSON] = {"schema": with_alignment(references[RESPONSE_MODELS[path]])}
            for code in ERRORS:
                responses[code] = {"description": "Refused", "content": {JSON: {"schema": references[Error]}}}
            if path in ("/health", "/ready"):
                responses["503"] = {**responses["200"], "description": "Not so"}
            operation["responses"] = responses
            if path in BODIES:
                operation["requestBody"] = {"required": True, "content": {JSON: {"schema": references[BODIES[path]]}}}
            if path in RESPONSE_MODELS:
                request = operation["requestBody"]["content"][JSON]["schema"]["$ref"].rpartition("/")[2]
                schemas[request]["properties"]["alignment"] = references[AlignmentRequest]
    for name in ("ScoreRequest", "Comparison", "Edit", "Rating", "Candidates"):
        schemas[name]["oneOf"] = [{"required": ["messages"]}, {"required": ["prompt"]}]
    return made


def add_models(schemas: Schema) -> dict[Any, Schema]:
    """Every model of ours, and each strategy's parameters, among the document's; model -> reference to it.

    Parameters are `Params.NAME`.
    """
    models = (*MODELS, *dict.fromkeys(RESPONSE_MODELS.values()))
    inputs: list[Any] = [(model, "validation", TypeAdapter(model)) for model in models]
    inputs += [(name, "validation", TypeAdapter(entry.parameters)) for name, entry in STRATEGIES.items()]
    references, made = TypeAdapter.json_schemas(inputs, ref_template=REF)
    for name, schema in made["$defs"].items():
        for key in schema.get("properties", {}).values():
            if not key.get("default", True):
                del key["default"]  # it stands for a key that is not there, and could not be sent
        schemas.setdefault(name, schema)
    del schemas["AlignedChoice"]["required"]
    for name in STRATEGIES:
        schemas[f"Params.{name}"] = references[name, "validation"]
    return {model: references[model, "validation"] for model in models}


def with_alignment(reference: Schema) -> Schema:
    """What vLLM answers, with what we put in."""
    return {"allOf": [reference, {"properties": {"alignment": {"$ref": REF.format(model="AlignmentResponse")}}}]}


def with_names(made: Schema, config: Config) -> Schema:
    """The document for a configuration: which strategies, objectives and guides there are."""
    schemas = {**made["components"]["schemas"]}
    request = schemas["AlignmentRequest"] = deepcopy(schemas["AlignmentRequest"])
    keys: Mapping[str, Schema] = request["properties"]
    number: Schema = {"type": "number"}
    weights = {"type": "object", "additionalProperties": number}
    named: Schema = {**weights, "propertyNames": {"enum": [*config.objectives, ANGLE]}}
    keys["weights"].pop("anyOf", None)
    keys["weights"]["anyOf"] = [named, {"const": "auto", "type": "string"}]
    keys["guides"].update(weights | {"propertyNames": {"enum": [BASE, *config.guides]}})
    keys["strategy"]["enum"] = list(STRATEGIES)
    keys["return"]["items"] = {"enum": sorted(set[str]().union(*(entry.returns for entry in STRATEGIES.values())))}
    request["anyOf"] = [{"not": {"required": ["strategy"]}}]
    for name in STRATEGIES:
        params = {"$ref": REF.format(model=f"Params.{name}")}
        request["anyOf"].append(
            {"properties": {"strategy": {"const": name}, "params": params}, "required": ["strategy"]}
        )
    return {**made, "components": {**made["components"], "schemas": schemas}}
