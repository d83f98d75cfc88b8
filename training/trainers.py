"""The trainings: Hugging Face's and TRL's trainers, on rows that are tokenised already.

GenARM's loss (arXiv 2410.08193, §4.1) is DPO's with a reference whose log-probability is 0 of every answer:

    L = -log sigma(beta (log pi(y+ | x) - log pi(y- | x)))                                                           (1)

A reward model's is Bradley-Terry's, -log sigma(r(x, y+) - r(x, y-)); with several labels, its mean over all labels that
tell a pair apart. A value head, FUDGE's (arXiv 2104.05218) for any
reward, regresses the score of a whole answer on beginnings of it,

    L = |v(x, y_<=t) - r(x, y)|^2 / K,    t uniform on 1 .. |y|                                                      (2)

whose minimiser is the expected score of what the beginning becomes, over the answers in the data. A model that reads
directions minimises -log pi(y_t | x, s(u), y_<t) over the tokens of the answers that `directions` chooses.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ProgressCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from trimtab.training.lower import LowerStates, UnfitLayers, keep_lower_states
from trimtab.training.progress import ProgressLines
from trimtab.training.rendering import Renderer
from trimtab.training.rows import count_tokens, order_rows
from trimtab.training.settings import Settings

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

Row = dict[str, Any]


class StepSampler(Sampler[int]):
    """Rows in the order of `rows.order_rows`, another in each epoch, and the same where training goes on."""

    def __init__(self, lengths: Sequence[int], step: int, seed: int) -> None:
        self.lengths, self.step, self.seed = lengths, step, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(order_rows(self.lengths, step=self.step, seed=self.seed, epoch=self.epoch))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class PlainTrainer(Trainer):  # type: ignore[misc]
    """Hugging Face's, with `StepSampler`."""

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return StepSampler([count_tokens(row) for row in rows], step, self.args.seed)


class ScoreTrainer(PlainTrainer, RewardTrainer):  # type: ignore[misc]
    """TRL's, by Bradley and Terry, on rows of `chosen_ids` and `rejected_ids`."""


class AnswerTrainer(PlainTrainer, SFTTrainer):  # type: ignore[misc]
    """TRL's, by likelihood, on rows of `input_ids` and `labels`."""


class PairTrainer(PlainTrainer, DPOTrainer):  # type: ignore[misc]
    """DPO on rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset


class GenARMTrainer(PairTrainer):
    """(1): the reference's log-probabilities are 0, and no reference is run."""

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        zeros = [0.0] * len(dataset)
        return dataset.add_column("ref_chosen_logps", zeros).add_column("ref_rejected_logps", zeros)


def arguments(settings: Settings, kind: type[TrainingArguments], rows: int, **more: Any) -> TrainingArguments:
    """Of all trainings alike: AdamW, and a cosine after a short warm-up."""
    cuda = torch.cuda.is_available()
    steps = max(1, math.ceil(rows / (settings.batch * settings.accumulate)) * max(1, math.ceil(settings.epochs)))
    every = math.ceil(steps / 5)
    return kind(
        output_dir=str(settings.checkpoints),
        learning_rate=settings.rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        max_grad_norm=1.0,
        logging_steps=every,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=settings.patience > 0,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        bf16=settings.dtype == "bfloat16" or (settings.dtype == "auto" and cuda),
        gradient_checkpointing=cuda,
        use_cpu=not cuda,
        report_to=[],
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_num_workers=0,
        disable_tqdm=False,
        **more,
    )


def load_model(settings: Settings, tokens: int, padding: int, *, labels: Sequence[str] | None = None) -> nn.Module:
    """What is trained: a language model, or with `labels` a head on one; frozen but for what is to learn."""
    set_seed(settings.seed)  # of a new head, and of LoRA's
    name = settings.origin
    options: dict[str, Any] = {"dtype": torch.float32}
    if labels is None:
        model = AutoModelForCausalLM.from_pretrained(name, **options)
    else:
        options |= {"id2label": dict(enumerate(labels)), "label2id": {label: k for k, label in enumerate(labels)}}
        model = AutoModelForSequenceClassification.from_pretrained(name, **options)
    model.config.pad_token_id = padding
    if model.get_input_embeddings().num_embeddings < tokens:
        raise ValueError(
            f"{name} embeds {model.get_input_embeddings().num_embeddings} tokens, the base's tokenizer has {tokens}: "
            "--from needs a model with the base's tokenizer"
        )
    if settings.layers is not None:
        decoder, lower = find_lower_layers(model, settings.layers)
        embeddings = [module for module in decoder.modules() if isinstance(module, nn.Embedding)]
        for module in [*embeddings, *lower] if settings.full else ():
            module.requires_grad_(False)
    return model  # type: ignore[no-any-return]


def load_scores(settings: Settings, tokens: int, padding: int, labels: Sequence[str]) -> nn.Module:
    """A head of raw scores, with LoRA where that is what learns, for trainers that are not TRL's."""
    from peft import get_peft_model

    model: Any = load_model(settings, tokens, padding, labels=labels)
    model.config.problem_type = "regression"  # also where a server would put a sigmoid on a classifier
    lora = adapter(settings, model, task="SEQ_CLS")
    return model if lora is None else get_peft_model(model, lora)  # type: ignore[no-any-return]


def find_lower_layers(model: Any, layers: int) -> tuple[nn.Module, list[nn.Module]]:
    """(decoder, its layers below the last so many); raises ValueError for a model that has not so many."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    count = model.config.get_text_config().num_hidden_layers
    stack = next((m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    if stack is None or not 0 < layers <= count:
        raise ValueError(f"--layers {layers}: the model has {count} layers, of which the last 1 to {count} can learn")
    return decoder, list(stack[: count - layers])


def keep_states(settings: Settings, model: Any) -> LowerStates | None:
    """Of the layers that do not learn, where there are any and theirs can be kept; else says why not."""
    if settings.layers is None or not settings.keep:
        return None
    decoder, lower = find_lower_layers(model, settings.layers)
    if not lower:
        return None
    try:
        return keep_lower_states(
            decoder,
            lower,
            limit=int(settings.keep * 2**30),
            vocabulary=model.get_input_embeddings().num_embeddings,
            adapted=settings.trains_adapter,
        )
    except UnfitLayers as error:
        tqdm.write(f"the layers below the last {settings.layers} are computed every time: {error}")
        return None


def adapter(settings: Settings, model: Any, *, task: str) -> Any:
    """LoRA on all linear layers of the blocks, of the last ones where `layers` says so; None where all is trained."""
    from peft import LoraConfig

    if settings.full:
        return None
    count = model.config.get_text_config().num_hidden_layers
    places = None if settings.layers is None else list(range(count - settings.layers, count))
    return LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        lora_dropout=0.0,
        target_modules="all-linear" if places is None else name_linear_layers(model),
        layers_to_transform=places,
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )


def name_linear_layers(model: Any) -> list[str]:
    """Those of the blocks; the head is none of them."""
    head = model.get_output_embeddings()
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head)
    return sorted({name.rpartition(".")[2] for name in linear} - {"score"})


def is_reference_free(settings: Settings) -> bool:
    return settings.kind == "guide" and settings.loss == "genarm"


def load_frozen(name: str) -> Any:
    """A language model that is only read."""
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()


def count_labels(folder: str) -> int:
    """Of a reward model's head; raises ValueError for an adapter without one."""
    from peft.utils import load_peft_weights

    if not os.path.exists(os.path.join(folder, "adapter_config.json")):
        return int(AutoConfig.from_pretrained(folder).num_labels)
    heads = [weight for name, weight in load_peft_weights(folder, "cpu").items() if name.endswith("score.weight")]
    if not heads:
        raise ValueError(f"{folder} is an adapter without a head `score`: it scores nothing")
    return len(heads[0])


def load_scorer(folder: str, padding: int) -> Any:
    """A reward model: a checkpoint, or an adapter with a head."""
    from peft import AutoPeftModelForSequenceClassification

    adapted = os.path.exists(os.path.join(folder, "adapter_config.json"))
    kind = AutoPeftModelForSequenceClassification if adapted else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder, num_labels=count_labels(folder), dtype=torch.float32)
    model.config.pad_token_id = padding
    return model.eval()


def train_pairs(
    settings: Settings, tokenizer: Any, padding: int, train: Sequence[Row], test: Sequence[Row]
) -> DPOTrainer:
    """A guide by (1), or by DPO with the base as its reference; a twin is the latter."""
    free = is_reference_free(settings)
    losses = ["sigmoid"] + (["sft"] if settings.likelihood else [])
    config = arguments(
        settings,
        DPOConfig,
        len(train),
        beta=settings.scale,
        loss_type=losses,
        loss_weights=[1.0, settings.likelihood][: len(losses)],
        max_length=settings.max_length,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=settings.batch,
    )
    model = load_model(settings, len(tokenizer), padding)
    lora = adapter(settings, model, task="CAUSAL_LM")
    kind = GenARMTrainer if free else PairTrainer
    return fit(kind, settings, config, model, train, test, processing_class=tokenizer, peft_config=lora)


def train_reward(
    settings: Settings, tokenizer: Any, padding: int, train: Sequence[Row], test: Sequence[Row]
) -> RewardTrainer:
    model = load_model(settings, len(tokenizer), padding, labels=["LABEL_0"])
    config = arguments(settings, RewardConfig, len(train), max_length=None)  # too long ones are left out already
    lora = adapter(settings, model, task="SEQ_CLS")
    return fit(ScoreTrainer, settings, config, model, train, test, processing_class=tokenizer, peft_config=lora)


class LabelTrainer(PlainTrainer):
    """Bradley-Terry's loss by label, on batches of the first answers, then the second ones, and `signs`, [B, K]."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        sign_BK = inputs.pop("signs")
        outputs = model(**inputs)
        first_BK, second_BK = outputs.logits.float().chunk(2)
        loss_BK = -nn.functional.logsigmoid(sign_BK * (first_BK - second_BK)) * sign_BK.abs()
        loss = loss_BK.sum() / sign_BK.abs().sum()
        return (loss, {"loss": loss}) if return_outputs else loss


def train_labels(
    settings: Settings, tokenizer: Any, padding: int, train: Sequence[Row], test: Sequence[Row]
) -> Trainer:
    """On rows of `chosen_ids`, `rejected_ids` and `signs`."""

    def collate(rows: Sequence[Row]) -> dict[str, Any]:
        ids = [{"input_ids": row[key]} for key in ("chosen_ids", "rejected_ids") for row in rows]
        batch: dict[str, Any] = dict(tokenizer.pad(ids, return_tensors="pt", padding_side="right"))
        return batch | {"signs": torch.tensor([row["signs"] for row in rows], dtype=torch.float32)}

    model = load_scores(settings, len(tokenizer), padding, settings.labels)
    config = arguments(settings, TrainingArguments, len(train), remove_unused_columns=False, label_names=["signs"])
    return fit(LabelTrainer, settings, config, model, train, test, data_collator=collate)


def train_answers(
    settings: Settings, tokenizer: Any, padding: int, train: Sequence[Row], test: Sequence[Row]
) -> SFTTrainer:
    """On rows of `input_ids` and `labels`, which are -100 where nothing is to be learnt."""
    model = load_model(settings, len(tokenizer), padding)
    config = arguments(settings, SFTConfig, len(train), max_length=settings.max_length)
    lora = adapter(settings, model, task="CAUSAL_LM")
    return fit(AnswerTrainer, settings, config, model, train, test, processing_class=tokenizer, peft_config=lora)


def train_value(
    settings: Settings,
    tokenizer: Any,
    padding: int,
    train: Sequence[Row],
    test: Sequence[Row],
    labels: Sequence[str] = ("LABEL_0",),
) -> Trainer:
    """(2), on rows of `input_ids` and `labels`, a number for each of the K labels."""
    from transformers import DataCollatorWithPadding

    model = load_scores(settings, len(tokenizer), padding, labels)
    config = arguments(settings, TrainingArguments, len(train))
    padding_right = copy(tokenizer)  # as TRL's collators do, whatever the tokenizer pads for an engine
    padding_right.padding_side = "right"
    collator = DataCollatorWithPadding(padding_right)
    return fit(PlainTrainer, settings, config, model, train, test, data_collator=collator)


def fit(
    kind: type[Trainer],
    settings: Settings,
    config: TrainingArguments,
    model: nn.Module,
    train: Sequence[Row],
    test: Sequence[Row],
    **more: Any,
) -> Any:
    """The trainer, once it has trained; raises MemoryError, saying what to lower."""
    begun = settings.resume and settings.has_checkpoints
    if settings.resume and not begun:
        tqdm.write(f"--resume: {settings.checkpoints} is empty or missing, so training starts from the beginning")
    torch.use_deterministic_algorithms(not torch.cuda.is_available(), warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  a tenth of the time on a CPU
    stopping = [EarlyStoppingCallback(early_stopping_patience=settings.patience)] if settings.patience else []
    lower = keep_states(settings, model)
    try:
        trainer = kind(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(list(train)),
            eval_dataset=Dataset.from_list(sorted(test, key=count_tokens)),
            callbacks=stopping,
            **more,
        )
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressLines())
        trainer.train(resume_from_checkpoint=begun)
        # Out of autocast: what follows measures in float32.
        trainer.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"out of memory with --batch {settings.batch} and --max-length {settings.max_length}: lower either (raise "
            "--accumulate by as much as --batch falls), train fewer --layers, or a smaller model with --from"
            + (f", and lower --keep, which is {settings.keep:g} GiB" if lower else "")
        ) from error
    finally:
        if lower is not None:
            lower.release()
    trainer.lower = lower
    return trainer


def is_out_of_memory(error: BaseException) -> bool:
    """On a CPU, torch's allocator raises a RuntimeError."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator: can't allocate memory" in str(error)


def time_steps(settings: Settings, tokenizer: Any, padding: int, rows: Sequence[Row]) -> float:
    """Seconds that training takes on these rows, its start not counted."""
    import time

    trial, run = replace(settings, keep=0.0, resume=False), train_answers
    if settings.kind != "directional":
        trial, run = replace(trial, kind="guide", loss="genarm"), train_pairs
    try:
        run(trial, tokenizer, padding, rows[:1], rows[:1])
        began = time.monotonic()
        run(trial, tokenizer, padding, rows, rows[:1])
        return time.monotonic() - began
    finally:
        shutil.rmtree(settings.out, ignore_errors=True)


def save(trainer: Any, settings: Settings, renderer: Renderer) -> None:
    """A Hugging Face or PEFT folder, with the base's tokenizer, and nothing of the training's own; a whole model in the
    precision of the one that training began with."""
    if settings.full:
        trainer.model.to(AutoConfig.from_pretrained(settings.origin).dtype or torch.float32)
    trainer.model.save_pretrained(settings.out)
    trainer.model.to(torch.float32)  # for what is measured still
    for key in ("is_local", "local_files_only"):  # how it was loaded is none of the tokenizer's
        renderer.tokenizer.init_kwargs.pop(key, None)
    renderer.tokenizer.save_pretrained(settings.out)
    for weights in settings.out.glob("*.safetensors"):
        weights.chmod(0o644)  # it is written for its owner alone, and a server may be somebody else
    shutil.rmtree(settings.checkpoints, ignore_errors=True)
