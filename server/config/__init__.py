"""The server's one configuration: what is frozen, what guides it, what people may prefer, how it is served.

Read from YAML, refused with the line and the key of what is wrong. Relative model paths are relative to the file.
"""

from __future__ import annotations

from trimtab.server.config.reading import load, locate
from trimtab.server.config.sections import (
    HASHED,
    SECTIONS,
    SINGLE_SECTIONS,
    ConeConfig,
    Config,
    ConfigError,
    GuideConfig,
    LimitsConfig,
    ObjectiveConfig,
    PromptConfig,
    RewardConfig,
    Section,
    TimeoutsConfig,
    TrustedHeader,
)

__all__ = [
    "HASHED",
    "SECTIONS",
    "SINGLE_SECTIONS",
    "ConeConfig",
    "Config",
    "ConfigError",
    "GuideConfig",
    "LimitsConfig",
    "ObjectiveConfig",
    "PromptConfig",
    "RewardConfig",
    "Section",
    "TimeoutsConfig",
    "TrustedHeader",
    "load",
    "locate",
]
