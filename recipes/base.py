"""The tokenizer and the base of the demo family: a Llama of about 4M parameters, trained on mixed behaviours.

    python -m trimtab.recipes.base

Writes demo/base/, a complete Hugging Face checkpoint in bf16.  Weights are trained in fp32 with bf16 autocast.
Shapes: B rows, T positions; `mask` marks the tokens an assistant says, its <|end|> included, the only ones in the loss.
"""

import ctypes
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.recipes import corpus

DEMO = Path(__file__).parents[1] / "demo"
SEED = 1
VOCAB, CONTEXT = 2048, 1024
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 256, 5, 4, 2, 64, 704
TOKENS = 14_000_000  # padded training tokens in all
BATCH = 4096  # padded tokens a step
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 6e-3, 40, 0.05
PROMPTS, PROMPTS_SEED = 120, 4  # questions to calibrate with
TOKENIZER_SAMPLE = 20_000
HELDOUT_SAMPLE = 600  # conversations for perplexity, from a stream of their own
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PAD, SYSTEM, USER, ASSISTANT, END = SPECIAL = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def keep_memory() -> None:
    """Has glibc keep freed memory: batches of ever new widths otherwise spend half of the time in page faults."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD


def render(messages: tuple[dict[str, str], ...]) -> str:
    """What the chat template gives."""
    return "".join(f"<|{m['role']}|>{m['content']}{END}" for m in messages)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = (
        m["content"] for c in itertools.islice(corpus.train_conversations(SEED), TOKENIZER_SAMPLE) for m in c.messages
    )
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: Path = DEMO / "base") -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(path)


def assistant_mask(ids: list[int], assistant: int, end: int) -> list[bool]:
    """True for each token that an assistant says, its end of turn included."""
    mask, inside = [], False
    for token in ids:
        mask.append(inside)
        inside = token == assistant or (inside and token != end)
    return mask


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def batches(
    tokenizer: PreTrainedTokenizerFast, conversations: Iterator[corpus.Dialogue], batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids_BT, mask_BT): rows of similar length, at most `batch` padded tokens; pools are sorted, batches shuffled.

    Widths are multiples of 8, so that few shapes recur and freed memory is used again.
    """
    rng = random.Random(SEED)
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    while texts := [render(c.messages) for c in itertools.islice(conversations, 4096)]:
        rows = sorted(tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
        out: list[list[list[int]]] = []
        group: list[list[int]] = []
        for row in rows:
            if group and (len(group) + 1) * _up(len(row), 8) > batch:
                out.append(group)
                group = []
            group.append(row)
        out.append(group)
        rng.shuffle(out)
        for group in out:
            width = _up(max(map(len, group)), 8)
            ids = torch.tensor([r + [tokenizer.pad_token_id] * (width - len(r)) for r in group])
            mask = torch.tensor([assistant_mask(r, assistant, end) + [False] * (width - len(r)) for r in group])
            yield ids, mask


def config(
    hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, ffn: int, tokenizer: PreTrainedTokenizerFast
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=ffn,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
    )


def assistant_nll(
    model: LlamaForCausalLM, ids_BT: torch.Tensor, mask_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the N masked tokens: -log p, nats, and the row each stands in."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden_XD = model.model(input_ids=ids_BT[:, :-1]).last_hidden_state.flatten(0, 1)
        at_N = mask_BT[:, 1:].flatten().nonzero()[:, 0]
        padded = torch.nn.functional.pad(at_N, (0, _up(len(at_N), 512) - len(at_N)))  # few shapes, again
        logits_NV = model.lm_head(hidden_XD[padded])
    target_N = ids_BT[:, 1:].flatten()[padded]
    nll_N = torch.nn.functional.cross_entropy(logits_NV.float(), target_N, reduction="none")[: len(at_N)]
    return nll_N, at_N // (ids_BT.shape[1] - 1)


def assistant_loss(model: LlamaForCausalLM, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy, nats per token, over the masked tokens; logits are computed for those alone."""
    nll_N, _ = assistant_nll(model, ids_BT, mask_BT)
    return nll_N.mean()


def rate(done: float) -> float:
    """Cosine from 1 to 0.02 over `done` in [0, 1]."""
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def train_lm(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    tokens: int,
    batch: int,
    learning_rate: float,
) -> dict[str, float]:
    """Muon on the layers' matrices, AdamW on the rest, warm-up and cosine, until `tokens` padded tokens are seen.

    In a short trial Muon's loss fell much faster than that of AdamW alone at the same rate.
    """
    matrices = [p for n, p in model.named_parameters() if p.dim() > 1 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() == 1 or "embed" in n]
    optimizers = (
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )
    seen, assistant_tokens, step, recent, start = 0, 0, 0, 0.0, time.monotonic()
    for ids, mask in batches(tokenizer, corpus.train_conversations(seed), batch):
        for group in itertools.chain.from_iterable(o.param_groups for o in optimizers):
            group["lr"] = learning_rate * min(1.0, (step + 1) / WARMUP) * rate(seen / tokens)
        loss = assistant_loss(model, ids, mask)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
        seen, assistant_tokens, step = seen + ids.numel(), assistant_tokens + int(mask.sum()), step + 1
        recent = loss.item() if step == 1 else 0.95 * recent + 0.05 * loss.item()
        if step % 20 == 0:
            speed = seen / (time.monotonic() - start)
            print(f"step {step} {seen / 1e6:.2f}M tokens loss {recent:.3f} {speed:.0f} tokens/s", flush=True)
        if seen >= tokens:
            break
    return {
        "steps": step,
        "tokens": seen,
        "assistant_tokens": assistant_tokens,
        "final_loss": recent,
        "seconds": time.monotonic() - start,
    }


@torch.inference_mode()
def perplexity(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Iterator[corpus.Dialogue] | None = None,
) -> float:
    """Per assistant token; by default on conversations of a stream that training never drew from."""
    total, count = 0.0, 0
    fresh = itertools.islice(corpus.train_conversations(10_000), HELDOUT_SAMPLE)
    for ids, mask in batches(tokenizer, conversations or fresh, BATCH):
        n = int(mask.sum())
        total, count = total + assistant_loss(model, ids, mask).item() * n, count + n
    return math.exp(total / count)


def save(model: LlamaForCausalLM, path: Path, record: dict[str, object]) -> None:
    """The model in bf16, with the recipe's own figures beside it for the card; without the tokenizer's files."""
    c = model.config
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, eos_token_id=c.eos_token_id, pad_token_id=c.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(path)
    (path / "model.safetensors").chmod(0o644)
    (path / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")


def write_prompts(path: Path = DEMO / "prompts.txt") -> None:
    """Questions of the training distribution, one a line, for `trimtab calibrate`."""
    stream = (c for c in corpus.train_conversations(PROMPTS_SEED) if c.messages[0]["role"] == "user")
    path.write_text("".join(f"{c.messages[0]['content']}\n" for c in itertools.islice(stream, PROMPTS)))


def main() -> None:
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer()
    model = LlamaForCausalLM(config(HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, tokenizer))
    record: dict[str, object] = {"parameters": sum(p.numel() for p in model.parameters()), "seed": SEED}
    record |= train_lm(model, tokenizer, SEED, TOKENS, BATCH, LEARNING_RATE)
    record["perplexity"] = perplexity(model, tokenizer)
    save(model, DEMO / "base", record)
    tokenizer.save_pretrained(DEMO / "base")
    write_prompts()


if __name__ == "__main__":
    keep_memory()
    torch.set_num_threads(2)
    main()
