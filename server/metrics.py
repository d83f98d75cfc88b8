"""What users asked for, counted once per HTTP request. vLLM's own `vllm:*` metrics count the requests inside.

Labels are names of the configuration and of the tables of strategies: never a prompt, a user or a weight.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

REQUESTS = Counter(
    "trimtab_requests",
    "Requests by the strategy that ran and how they ended: ok, degraded, deadline, budget, client_abort, invalid, "
    "rejected (429 or 503 before any work), reward_error or engine_error.",
    ["strategy", "outcome"],
)
DURATION = Histogram(
    "trimtab_request_duration_seconds",
    "From the request's first byte to the answer's last, of requests let in.",
    ["strategy"],
    buckets=SECONDS,
)
FIRST_TOKEN = Histogram(
    "trimtab_time_to_first_visible_token_seconds",
    "From the request's first byte to the first token that its client was sent, or was to be sent in an answer that "
    "goes out whole.",
    ["strategy"],
    buckets=SECONDS,
)
TOKENS = Counter(
    "trimtab_tokens",
    "Tokens by kind: prompt (as the usage tells it), visible (of the answers), sampled (drawn, visible or not), scored "
    "(whose log-prob or reward was asked for, and prompts under an instruction).",
    ["kind"],
)
POOL = Histogram(
    "trimtab_candidates_per_request",
    "Answers in the making side by side, of requests let in.",
    ["strategy"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
REWARD = Histogram(
    "trimtab_reward_score",
    "Of the answers given, by objective, in standard deviations of the base's own answers from their mean.",
    ["objective"],
    buckets=(-4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4),
)
REWARD_SECONDS = Histogram(
    "trimtab_reward_seconds",
    "From a reward's being asked to its scores.",
    ["reward"],
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
REWARD_ERRORS = Counter("trimtab_reward_errors", "Times that a reward gave no usable score.", ["reward"])
GUIDANCE_KL = Histogram(
    "trimtab_guidance_kl",
    "KL of an answer's next tokens from the base's, in nats, summed over the answer, where the report has `kl_exact`.",
    ["strategy"],
    buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128),
)
ACCEPTANCE = Histogram(
    "trimtab_mcmc_accept_ratio",
    "Share of a request's Markov steps that were accepted.",
    buckets=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
REFUSED = Counter(
    "trimtab_admission_rejected",
    "Requests refused before any work: capacity and share (429), closing (503), too_large (400).",
    ["reason"],
)
CAPACITY = Gauge("trimtab_admission_capacity_tokens", "What requests let in may cost together.")
ADMITTED_TOKENS = Gauge("trimtab_admitted_tokens", "What requests let in and not yet answered can cost together.")
IN_FLIGHT = Gauge("trimtab_inflight_requests", "Requests let in and not yet answered.")
CANDIDATES = Gauge("trimtab_inflight_candidates", "Answers that those may have in the making side by side.")
CANCELLED = Counter(
    "trimtab_cancelled",
    "Generations inside that were ended before their answers were: the client left, or a budget or deadline came.",
)
UNKNOWN_FIELDS = Counter("trimtab_unknown_request_fields", "Top-level request fields that nobody reads.")
READY = Gauge(
    "trimtab_ready", "1 while the base, its guides and every reward model are warm and the server takes work."
)
RELOADS = Counter("trimtab_reloads", "Reloads of the configuration, by whether it was taken.", ["outcome"])

for reason in ("capacity", "share", "closing", "too_large"):
    REFUSED.labels(reason)  # told as 0 until there is one
