"""vLLM's command line in the configuration's words: what vLLM advises is a flag, and here it is a key."""

from __future__ import annotations

import re

OUTSIDE_ENGINE = {
    "model": "base",
    "served-model-name": "name",
    "api-key": "api_keys",
    "allowed-origins": "allowed_origins",
    "host": "host",
    "port": "port",
}
"""Flags for which the configuration has a key outside `engine`."""

NOT_TAKEN = frozenset(
    {"allow-credentials", "allowed-headers", "allowed-methods"}
    | {"api-server-count", "config", "disable-access-log-for-endpoints", "disable-uvicorn-access-log", "help"}
    | {
        "data-parallel-supervisor-port",
        "enable-offline-docs",
        "enable-request-id-headers",
        "enable-server-load-tracking",
    }
    | {"enable-ssl-refresh", "enable-tokenizer-info-endpoint", "fingerprint-mode", "grpc", "h11-max-header-count"}
    | {"h11-max-incomplete-event-size", "headless", "log-config-file", "lora-modules", "middleware", "root-path"}
    | {"ssl-ca-certs", "ssl-cert-reqs", "ssl-certfile", "ssl-ciphers", "ssl-keyfile", "uds", "uvicorn-log-level"}
    | {"anthropic-disabled-thinking-effort", "cohere-format", "cohere-is-reasoning-model", "device-memory-utilization"}
    | {"dp-supervisor-probe-failure-threshold", "dp-supervisor-probe-interval-s", "dp-supervisor-probe-timeout-s"}
    | {"enable-flash-late-interaction", "enable-scale-out", "fingerprint-value", "grpc-port", "trust-request-mm-kwargs"}
)
"""Flags of vLLM's server that no key stands for."""


NO_TEMPLATE = "default chat template is no longer allowed"
"""Part of what vLLM says of a chat with a model that has no template, which names no flag."""


def name_keys(message: str) -> str:
    """The message with the key of the configuration in the place of each of vLLM's flags."""
    if NO_TEMPLATE in message:
        return (
            "the model has no chat template, so it takes bare prompts alone (/v1/completions); whoever runs the server "
            "can set one in engine.chat_template: a file, or the template itself"
        )
    return re.sub(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)", _key, message)


def _key(flag: re.Match[str]) -> str:
    name = flag[1]
    if name in OUTSIDE_ENGINE:
        return OUTSIDE_ENGINE[name]
    if name.removeprefix("no-") in NOT_TAKEN:
        return flag[0]
    if name.startswith("no-"):
        return f"engine.{name[3:].replace('-', '_')}: false"
    return f"engine.{name.replace('-', '_')}"
