"""The demo family's adapter from a prompt to preference weights: Preference Orchestrator (arXiv 2511.10656), tiny.

    python -m trimtab.recipes.orchestrator

Somebody who wants different things of different questions (WANTS: care with what ought to be declined, few words in
arithmetic …) prefers one of DRAWN answers of the base to each training prompt, by gold and with noise. Of the preferred
answer, reward model `a`'s scores are normalised by those of all the answers to that prompt, z, and
    L = mean over prompts of KL(softmax(z / TEMPERATURE) || softmax(b + A e(x))) + RIDGE |A|²,   e(x) = mean_t e_t  (1)
is minimised over A [K, D] and b [K], e_t being the base's input embeddings of the user's words, centred and in their
spread. Without the ridge the weights fitted their own prompts and were worse than equal ones elsewhere. What is saved
is the table A e of every token [V, K] and b (`preferences.from_prompt`). Gold is read by who prefers and by what
measures. Shapes: K objectives, D the base's width, V vocabulary.
"""

import json
import random
import statistics
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from trimtab.recipes import corpus
from trimtab.recipes.base import DEMO, keep_memory, load_tokenizer
from trimtab.recipes.gold import GOLD, NOISE
from trimtab.recipes.preferences import draw_answers
from trimtab.recipes.rewards import OBJECTIVES, judge, read

SEED = 40
TEACHER = "a"
PROMPTS, STEPS, LEARNING_RATE = 1000, 300, 1e-2
TEMPERATURE, RIDGE = 0.25, 0.3
WANTS: dict[str, dict[str, float]] = {
    "howto": {"helpfulness": 0.7, "caution": 0.3},
    "plants": {"helpfulness": 0.8, "warmth": 0.2},
    "food": {"helpfulness": 0.5, "warmth": 0.5},
    "explain": {"helpfulness": 0.9, "brevity": 0.1},
    "animals": {"helpfulness": 0.5, "caution": 0.5},
    "recommend": {"helpfulness": 0.6, "warmth": 0.4},
    "smalltalk": {"warmth": 0.9, "brevity": 0.1},
    "decline": {"caution": 0.9, "warmth": 0.1},
    "arithmetic": {"helpfulness": 0.3, "brevity": 0.7},
}
"""domain -> what is wanted of an answer there, in standard deviations of the base's gold; shares sum to 1."""
SPREADS = {"helpfulness": 3.10, "brevity": 1.92, "warmth": 3.04, "caution": 2.68}
"""Of gold over the base's answers, as demo/README.md has them."""


DOUBT = NOISE / statistics.fmean(SPREADS.values())
"""Standard deviation of what who prefers is wrong by."""


def asker_worth(domain: str, question: str, answer: str) -> float:
    """How well an answer does for who asks."""
    return sum(share * GOLD[o](question, answer) / SPREADS[o] for o, share in WANTS[domain].items())


def domain_of(question: str) -> str:
    topic = corpus.topic_of(question)
    return "arithmetic" if topic is None else topic.domain


def embed(base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, question: str) -> torch.Tensor:
    """[D]"""
    ids = tokenizer.encode(question, add_special_tokens=False)
    with torch.no_grad():
        mean: torch.Tensor = base.get_input_embeddings()(torch.tensor(ids)).mean(0)
    return mean


def main(base_folder: Path = DEMO / "base", folder: Path = DEMO / "weights") -> None:
    begun = time.monotonic()
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    tokenizer = load_tokenizer(base_folder)
    base = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    teacher = LlamaForSequenceClassification.from_pretrained(DEMO / "rewards" / TEACHER, dtype=torch.float32).eval()
    xs, targets = [], []
    for prompt, answers in draw_answers(base, tokenizer, PROMPTS, SEED):
        if len(answers) < 2:
            continue
        question = prompt[-1]["content"]
        domain = domain_of(question)
        noisy = [asker_worth(domain, question, answer) + rng.gauss(0, DOUBT) for answer in answers]
        with torch.inference_mode():
            rewards_BK = judge(teacher, read(tokenizer, [(prompt, answers)]))
        z_BK = (rewards_BK - rewards_BK.mean(0)) / rewards_BK.std(0).clamp(min=1e-6)
        xs.append(embed(base, tokenizer, question))
        targets.append((z_BK[noisy.index(max(noisy))] / TEMPERATURE).softmax(-1))
    x_ND, target_NK = torch.stack(xs), torch.stack(targets)
    middle_D, scale = x_ND.mean(0), x_ND.std()
    head = torch.nn.Linear(x_ND.shape[1], len(OBJECTIVES))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    n_training = len(xs) * 9 // 10

    def divergence(rows: slice) -> torch.Tensor:
        logprobs = head((x_ND[rows] - middle_D) / scale).log_softmax(-1)
        return torch.nn.functional.kl_div(logprobs, target_NK[rows], reduction="batchmean")

    for _ in range(STEPS):
        loss = divergence(slice(n_training)) + RIDGE * head.weight.square().sum()  # (1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        table_VK = base.get_input_embeddings().weight @ head.weight.T / scale
        bias_K = head.bias - head(middle_D / scale) + head.bias
        tensors = {"table": table_VK.to(torch.float16).contiguous(), "bias": bias_K}
        save_file(tensors, folder / "adapter.safetensors", metadata={"objectives": json.dumps(list(OBJECTIVES))})
        (folder / "adapter.safetensors").chmod(0o644)
        weights: dict[str, dict[str, float]] = {}
        for d in corpus.DOMAINS:
            prompts = corpus.heldout_prompts(20, SEED, domains=(d,))
            mean_embedding = torch.stack([embed(base, tokenizer, p.text) for p in prompts])
            mean = head((mean_embedding - middle_D) / scale).softmax(-1).mean(0)
            weights[d] = dict(zip(OBJECTIVES, mean.tolist(), strict=True))
    record = {
        "teacher": TEACHER, "seed": SEED, "prompts": len(xs), "kl": divergence(slice(n_training)).item(),
        "kl_heldout": divergence(slice(n_training, None)).item(),
        "parameters": sum(p.numel() for p in head.parameters()), "wanted": WANTS, "heldout": weights,
        "seconds": time.monotonic() - begun,
    }  # fmt: skip
    (folder / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2), flush=True)


if __name__ == "__main__":
    keep_memory()
    torch.set_num_threads(2)
    main()
