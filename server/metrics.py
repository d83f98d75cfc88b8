"""What the user asked for, counted once per HTTP request. vLLM's own `vllm:*` metrics count the requests inside."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

REQUESTS = Counter(
    "trimtab_requests",
    "Requests by the strategy that ran and how they ended: ok, degraded, deadline, budget, client_abort, invalid, "
    "reward_error or engine_error.",
    ["strategy", "outcome"],
)
DURATION = Histogram(
    "trimtab_request_duration_seconds",
    "From the request's first byte to the answer's last.",
    ["strategy"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
UNKNOWN_FIELDS = Counter("trimtab_unknown_request_fields", "Top-level request fields that nobody reads.")
REWARD_SECONDS = Histogram(
    "trimtab_reward_seconds",
    "From a reward's being asked to its scores.",
    ["reward"],
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
REWARD_ERRORS = Counter("trimtab_reward_errors", "Times that a reward gave no usable score.", ["reward"])
