"""A reward model on a vLLM engine of its own, in the same process as the composite and beside it.

`PoolingEngine` is a `rewards.protocols.Pooler`. Shapes: N inputs, T tokens, K labels.

Each input is a request of its own, so vLLM batches it with whatever else is in flight. Where a sequence is scored at
its last token (all causal models), vLLM caches prefixes: a prefix that grows costs its new tokens alone, in whole
blocks. Scores of every token read no cache, since a cached token has no hidden state to score.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from vllm.config import ModelConfig, PoolerConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.inputs.engine import tokens_input
from vllm.platforms import current_platform
from vllm.pooling_params import PoolingParams
from vllm.v1.engine.async_llm import AsyncLLM

from trimtab.decoders.protocols import Tokens
from trimtab.decoders.shared.gather import gather_or_cancel
from trimtab.engine import lora
from trimtab.engine.activity import Activity
from trimtab.engine.errors import MemberError
from trimtab.engine.launch import EngineSpec, running_engines
from trimtab.engine.members import check_files, check_merged_format, load_tokenizer, model_config, read_tokenizer

TOKEN_SCORERS = {"InternLM2ForRewardModel": 1, "Qwen2ForRewardModel": 1}
"""vLLM's own reward models that score every token, and how many scores they give, which their configs do not say."""

VALID = "a sequence-classification checkpoint (…ForSequenceClassification), or a reward model that vLLM knows"


@dataclass(frozen=True, kw_only=True)
class PoolingEngine:
    """A view of a running pooling engine.

    Its calls raise vLLM's VLLMValidationError for an input that is empty, longer than `max_tokens` or out of the
    vocabulary, and EngineDeadError, every waiting one at once, when the engine has died. A call that fails or is
    cancelled ends all its requests.
    """

    client: EngineClient
    tokenizer: Any
    """The model's own, of `transformers`."""
    name: str = "reward"
    """What the ids of its requests begin with."""
    padding: int | None = None
    """The token that `transformers` takes for padding wherever an input ends with it, though it be the end of a turn:
    the head reads the last token before it."""
    tokens_only: bool = False
    """Whether the model scores single tokens alone: a whole input's score is that of its last one."""

    @cached_property
    def active_at(self) -> Activity:
        """When the engine last did something for anybody."""
        return Activity(client=self.client)

    @property
    def alive(self) -> bool:
        return bool(self.client.is_running and not self.client.errored)

    async def ping(self) -> None:
        """Returns between two steps of the engine; raises EngineDeadError."""
        await self.client.is_sleeping()

    @property
    def labels(self) -> tuple[str, ...]:
        return labels_of(self.client.model_config)

    @property
    def max_tokens(self) -> int:
        return int(self.client.model_config.max_model_len)

    async def score(self, inputs: Sequence[Tokens]) -> list[list[float]]:
        """[N, K] raw outputs of the head at each input's last token that is no padding: no sigmoid, no softmax."""
        inputs = [self._cut_padding(tokens) for tokens in inputs]
        if self.tokens_only:
            return [scores[-1] for scores in await self.score_tokens(inputs)]
        return await self._pool(inputs, "classify")

    async def score_tokens(self, inputs: Sequence[Tokens]) -> list[list[list[float]]]:
        """[N, T, K] raw outputs of the head at every token."""
        return await self._pool(inputs, "token_classify")

    def _cut_padding(self, tokens: Tokens) -> Tokens:
        """At least the first token stays, at which `transformers` reads what is nothing but padding."""
        end = len(tokens)
        while end > 1 and tokens[end - 1] == self.padding:
            end -= 1
        return tokens[:end]

    async def _pool(self, inputs: Sequence[Tokens], task: str) -> list[Any]:
        return await gather_or_cancel(self._pool_one(tokens, task) for tokens in inputs)

    async def _pool_one(self, tokens: Tokens, task: str) -> Any:
        request = f"{self.name}-{uuid4().hex[:16]}"
        params = PoolingParams(task=task, use_activation=False)
        outputs = self.client.encode(tokens_input(list(tokens)), params, request)
        finished = False
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    finished = output.finished
            return output.outputs.data.tolist()
        finally:
            if (
                not finished
            ):  # a task cancelled between registering the request and sending it would leave it registered
                await self.client.abort(request)


@dataclass(frozen=True, kw_only=True)
class PoolingSpec(EngineSpec):
    tokenizer: Any
    adapter: bool = False
    """Whether an adapter is merged into the model."""

    @property
    def labels(self) -> tuple[str, ...]:
        return labels_of(self.config.model_config)


def labels_of(config: ModelConfig) -> tuple[str, ...]:
    names = config.hf_config.id2label
    return tuple(names[i] for i in sorted(names))


@asynccontextmanager
async def running_pooler(name: str, model: str, **options: Any) -> AsyncIterator[PoolingEngine]:
    """A reward model up, and shut down whatever happens; see `pooling_spec`."""
    spec = pooling_spec(name, model, **options)
    async with running_engines([spec]) as [client]:
        yield await pooling_engine(spec, client)


def pooling_spec(name: str, model: str, base: str | None = None, **options: Any) -> PoolingSpec:
    """A reward model's engine; `options` are vLLM's engine arguments and pass through.

    `model` may be a LoRA adapter with a head; `base` then says where its base is, if not where its own config does.

    Several engines share a machine, so give each its share: `kv_cache_memory_bytes`; for cores on CPU see
    `SharedCoresExecutor`. Prefix caching and chunked prefill are on where vLLM knows them to be right for the model.
    Statistics are off: a second engine that keeps them takes the first one's metrics away. Raises MemberError for what
    cannot score.
    """
    adapter = model if lora.is_adapter(model, options.get("revision")) else None
    if adapter:
        options = merge_options(name, model, base, options)
    elif base is not None:
        raise MemberError(name, f"{model} is no adapter, so it has no base", option="base")
    options = {"model": model, **options, "runner": "pooling", "disable_log_stats": True}
    model = options["model"]
    if current_platform.is_cpu() and options.get("tensor_parallel_size", 1) == 1:
        options.setdefault("distributed_executor_backend", "trimtab.engine.cpu_executor.SharedCoresExecutor")
    check_files(name, model, config_elsewhere=bool(options.get("hf_config_path")))
    config = model_config(name, lambda: AsyncEngineArgs(**options).create_model_config(), model)
    if adapter and config.is_quantized:
        raise MemberError(name, "a LoRA adapter cannot be merged into a quantised base; valid: a full checkpoint")
    if config.convert_type == "embed":  # vLLM would serve it as an embedding model: it has no head that scores
        brings = f"{adapter} brings no head, and " if adapter else ""
        raise MemberError(name, f"{brings}{model} is {config.architecture}, which has no scoring head; valid: {VALID}")
    if config.architecture in TOKEN_SCORERS:
        labels = TOKEN_SCORERS[config.architecture]
        options["hf_overrides"] = {"num_labels": labels, **(options.get("hf_overrides") or {})}
    if config.pooler_config.tok_pooling_type == "STEP" and not options.get("pooler_config"):
        options["pooler_config"] = PoolerConfig(tok_pooling_type="ALL")  # the reward itself looks for the steps
    try:
        tokenizer = read_tokenizer(config.tokenizer, config.tokenizer_revision, config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        place = f"no tokenizer in {config.tokenizer}; say where it is in `tokenizer`"
        raise MemberError(name, place, option="engine.tokenizer") from error
    return PoolingSpec(name=name, args=AsyncEngineArgs(**options), tokenizer=tokenizer, adapter=adapter is not None)


def merge_options(name: str, model: str, base: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The engine arguments of the base into which an adapter is merged as it is loaded: its own tokenizer, if it
    brings one, and labels, padding and vocabulary as it was trained with. Raises MemberError."""
    options = dict(options)
    revision = options.pop("revision", None)
    form = options.pop("load_format", "auto")
    check_merged_format(name, form, option="engine.load_format")
    try:
        adapter = lora.Adapter.read(model, revision, replaces=True)
        if base is None:
            base = adapter.config.get("base_model_name_or_path")
            options["revision"] = adapter.config.get("revision")
        if not base:
            raise MemberError(name, f"{model} does not say what it is an adapter of: say it in `base`", option="base")
        if not Path(base).is_dir() and (base.startswith((".", "/", "~")) or base.count("/") > 1):  # no hub id
            problem = f"{model} is an adapter of {base}, which is not here: say in `base` where it is"
            raise MemberError(name, problem, option="base")
        check_files(name, base)
        shapes = lora.read_shapes(base)
        adapter.check(shapes)
    except lora.AdapterError as error:
        raise MemberError(name, str(error)) from error
    overrides: dict[str, Any] = {}
    if adapter.labels is not None:
        options.setdefault("convert", "classify")
        overrides["num_labels"] = adapter.labels
    for weight, (rows, *_) in adapter.whole.items():
        if shapes and weight in shapes and shapes[weight][0] != rows:  # an embedding, with tokens added
            overrides["vocab_size"] = rows
    if lora.find_file(model, "tokenizer_config.json", revision) is not None:
        options.setdefault("tokenizer", model)
        options.setdefault("tokenizer_revision", revision)
        tokenizer = load_tokenizer(name, model, revision, options.get("trust_remote_code", False))
        if tokenizer.pad_token_id is not None:  # a trainer puts it into the model's config, which no adapter has
            overrides["pad_token_id"] = tokenizer.pad_token_id
    return {
        **options,
        "model": base,
        "hf_overrides": {**overrides, **(options.get("hf_overrides") or {})},
        **lora.Adapter.load_options(model, revision, form, options.get("model_loader_extra_config") or {}),
        "worker_extension_cls": "trimtab.engine.adapter_loader.LoadsAdapters",
    }


async def pooling_engine(spec: PoolingSpec, client: AsyncLLM) -> PoolingEngine:
    """The view of its running engine; raises MemberError for what cannot score after all."""
    tasks = await client.get_supported_tasks()
    if not {"classify", "token_classify"} & set(tasks):
        raise MemberError(spec.name, f"{spec.args.model} cannot score, only {', '.join(tasks)}; valid: {VALID}")
    config = client.model_config
    last = config.pooler_config.get_seq_pooling_type() == "LAST"
    padding = getattr(config.hf_text_config, "pad_token_id", None) if last else None
    tokens_only = "classify" not in tasks
    return PoolingEngine(
        client=client, tokenizer=spec.tokenizer, name=spec.name, padding=padding, tokens_only=tokens_only
    )
