"""The configuration's rewards: checked before a model is up, and built."""

from __future__ import annotations

from typing import Any

from trimtab.rewards import KINDS
from trimtab.rewards.protocols import Scorer
from trimtab.server.config import Config, ConfigError, RewardConfig
from trimtab.server.wording import suggest


def check_rewards(config: Config) -> None:
    """Raises ConfigError for a reward that its kind could not be, as far as that shows before a model is up."""
    for name, reward in config.rewards.items():
        at = f"rewards.{name}"
        if reward.kind not in KINDS:
            raise ConfigError(suggest("kind of reward", reward.kind, KINDS), key=f"{at}.kind")
        kind = KINDS[reward.kind]
        if ("pooler" in kind.uses) != (reward.model is not None):
            needs = "is a model: say which" if reward.model is None else "is no model"
            raise ConfigError(f"kind {reward.kind!r} {needs}", key=f"{at}.model")
        if reward.base is not None and reward.model is None:
            raise ConfigError("is what `model` is an adapter of, and there is no `model`", key=f"{at}.base")
        extra = reward.model_extra or {}
        fields = kind.parameters.model_fields
        valid = [f.alias or key for key, f in fields.items()]
        if surplus := next((key for key in extra if key not in valid), None):
            raise ConfigError(suggest("key", surplus, [*RewardConfig.model_fields, *valid]), key=f"{at}.{surplus}")
        if not kind.uses:
            build_reward(name, reward)


def build_reward(name: str, reward: RewardConfig, **services: Any) -> Scorer:
    """The reward itself; raises ConfigError for what it refuses to be."""
    kind = KINDS[reward.kind]
    used = {key: value for key, value in {"name": name, **services}.items() if key in kind.uses}
    try:
        scorer: Scorer = kind.build(reward.model_extra or {}, **used)
    except ValueError as error:
        raise ConfigError(str(error), key=f"rewards.{name}") from None
    return scorer
