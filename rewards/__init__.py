"""Rewards: what scores an answer, what shapes a score, what makes one of many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from trimtab.decoders.registry import Entry


class RewardEntry(Entry):
    """A row of one of the tables. `uses` are among "name", "host" and "pooler"."""

    def build(self, params: Mapping[str, Any], **supplied: Any) -> Any:
        """What the parameters ask for. Raises ValueError naming the parameter, the value and what is valid."""
        try:
            return super().build(params, **supplied)
        except ValidationError as error:
            raise ValueError(explain_invalid(error, self.parameters)) from None


def explain_invalid(error: ValidationError, model: type[BaseModel]) -> str:
    """The complaint about a configuration's or a request's parameters, in one line."""
    first = max(error.errors(include_url=False), key=lambda e: len(e["loc"]))  # of a union the branch that got furthest
    at = ".".join(str(part) for part in first["loc"] if part != "str" and not str(part).startswith("dict["))
    if first["type"] == "extra_forbidden":
        valid = sorted(field.alias or name for name, field in model.model_fields.items())
        return f"unknown parameter {at!r}; valid: {', '.join(valid) or 'none'}"
    if first["type"] == "missing":
        return f"{at} is required"
    return f"{at}: {first['msg'][0].lower()}{first['msg'][1:]}; got {str(first['input'])[:80]!r}"


_host = frozenset({"host"})
_pooler = frozenset({"name", "pooler"})

KINDS: dict[str, RewardEntry] = {
    "avoids": RewardEntry(target="trimtab.rewards.rules:Avoids"),
    "bleu": RewardEntry(target="trimtab.rewards.bleu:Bleu", paper="2505.11080"),
    "classifier": RewardEntry(target="trimtab.rewards.classifier:Classifier", uses=_pooler),
    "contains": RewardEntry(target="trimtab.rewards.rules:Contains"),
    "json_schema": RewardEntry(target="trimtab.rewards.rules:JsonSchema"),
    "judge": RewardEntry(target="trimtab.rewards.judge:Judge", paper="2310.05910", uses=_host),
    "length": RewardEntry(target="trimtab.rewards.rules:Length"),
    "log_ratio": RewardEntry(target="trimtab.rewards.log_ratio:LogRatio", paper="2411.02481", uses=_host),
    "process": RewardEntry(target="trimtab.rewards.process:Process", uses=_pooler),
    "readability": RewardEntry(target="trimtab.rewards.rules:Readability"),
    "regex": RewardEntry(target="trimtab.rewards.rules:Regex"),
    "repetition": RewardEntry(target="trimtab.rewards.rules:Repetition", paper="2402.03469"),
    "verifier": RewardEntry(target="trimtab.rewards.verifier:Verifier"),
}
"""Each builds a `protocols.Scorer`."""

TRANSFORMS: dict[str, RewardEntry] = {
    "centre": RewardEntry(target="trimtab.rewards.transforms:Centre"),
    "clip": RewardEntry(target="trimtab.rewards.transforms:Clip"),
    "identity": RewardEntry(target="trimtab.rewards.transforms:Identity"),
    "lsc": RewardEntry(target="trimtab.rewards.transforms:Lsc", paper="2402.00742"),
    "par": RewardEntry(target="trimtab.rewards.transforms:Par", paper="2502.18770"),
    "standardise": RewardEntry(target="trimtab.rewards.transforms:Standardise"),
}
"""Each builds a `transforms.Transform`."""

COMBINES: dict[str, RewardEntry] = {
    "heron": RewardEntry(target="trimtab.rewards.combine:Heron", paper="2309.02632"),
    "lsc": RewardEntry(target="trimtab.rewards.combine:LscSum", paper="2402.00742"),
    "mean": RewardEntry(target="trimtab.rewards.combine:Mean", paper="2312.09244"),
    "mean_minus_std": RewardEntry(target="trimtab.rewards.combine:MeanMinusStd", paper="2312.09244"),
    "median": RewardEntry(target="trimtab.rewards.combine:Median", paper="2312.09244"),
    "min": RewardEntry(target="trimtab.rewards.combine:Min", paper="2310.02743"),
    "sum": RewardEntry(target="trimtab.rewards.combine:Weighted"),
    "uwo": RewardEntry(target="trimtab.rewards.combine:Uwo", paper="2310.02743"),
}
"""Each builds a `combine.Combine`."""
