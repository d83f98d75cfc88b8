"""Rewards: what scores an answer, what shapes a score, what makes one of many."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of a table."""

    target: str
    """"module:name" of what builds it from its parameters."""
    paper: str = ""
    """arXiv id; empty for none."""
    uses: frozenset[str] = frozenset()
    """Which of "name", "host" and "pooler" it is built with, beside its parameters."""

    def load(self) -> Any:
        """The builder: a callable with keyword parameters."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)

    @cached_property
    def parameters(self) -> type[BaseModel]:
        """What a config may say, from the builder's signature."""
        build = self.load()
        hints = get_type_hints(build if inspect.isfunction(build) else build.__init__, include_extras=True)
        fields: dict[str, Any] = {
            p.name: (hints[p.name], ... if p.default is p.empty else p.default)
            for p in inspect.signature(build).parameters.values()
            if p.name not in self.uses
        }
        config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
        return create_model(build.__name__, __config__=config, **fields)

    def build(self, params: Mapping[str, Any], **uses: Any) -> Any:
        """What the parameters ask for. Raises ValueError naming the parameter, the value and what is valid."""
        model = self.parameters
        try:
            said = model.model_validate(dict(params))
        except ValidationError as error:
            raise ValueError(_explained(error, model)) from None
        return self.load()(**{name: getattr(said, name) for name in model.model_fields}, **uses)


def _explained(error: ValidationError, model: type[BaseModel]) -> str:
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

KINDS: dict[str, Entry] = {
    "avoids": Entry(target="trimtab.rewards.rules:Avoids"),
    "bleu": Entry(target="trimtab.rewards.bleu:Bleu", paper="2505.11080"),
    "classifier": Entry(target="trimtab.rewards.classifier:Classifier", uses=_pooler),
    "contains": Entry(target="trimtab.rewards.rules:Contains"),
    "json_schema": Entry(target="trimtab.rewards.rules:JsonSchema"),
    "judge": Entry(target="trimtab.rewards.judge:Judge", paper="2310.05910", uses=_host),
    "length": Entry(target="trimtab.rewards.rules:Length"),
    "log_ratio": Entry(target="trimtab.rewards.log_ratio:LogRatio", paper="2411.02481", uses=_host),
    "process": Entry(target="trimtab.rewards.process:Process", uses=_pooler),
    "readability": Entry(target="trimtab.rewards.rules:Readability"),
    "regex": Entry(target="trimtab.rewards.rules:Regex"),
    "repetition": Entry(target="trimtab.rewards.rules:Repetition", paper="2402.03469"),
    "verifier": Entry(target="trimtab.rewards.verifier:Verifier"),
}
"""Each builds a `protocols.Scorer`."""

TRANSFORMS: dict[str, Entry] = {
    "centre": Entry(target="trimtab.rewards.transforms:Centre"),
    "clip": Entry(target="trimtab.rewards.transforms:Clip"),
    "identity": Entry(target="trimtab.rewards.transforms:Identity"),
    "lsc": Entry(target="trimtab.rewards.transforms:Lsc", paper="2402.00742"),
    "par": Entry(target="trimtab.rewards.transforms:Par", paper="2502.18770"),
    "standardise": Entry(target="trimtab.rewards.transforms:Standardise"),
}
"""Each builds a `transforms.Transform`."""

COMBINES: dict[str, Entry] = {
    "heron": Entry(target="trimtab.rewards.combine:Heron", paper="2309.02632"),
    "lsc": Entry(target="trimtab.rewards.combine:LscSum", paper="2402.00742"),
    "mean": Entry(target="trimtab.rewards.combine:Mean", paper="2312.09244"),
    "mean_minus_std": Entry(target="trimtab.rewards.combine:MeanMinusStd", paper="2312.09244"),
    "median": Entry(target="trimtab.rewards.combine:Median", paper="2312.09244"),
    "min": Entry(target="trimtab.rewards.combine:Min", paper="2310.02743"),
    "sum": Entry(target="trimtab.rewards.combine:Weighted"),
    "uwo": Entry(target="trimtab.rewards.combine:Uwo", paper="2310.02743"),
}
"""Each builds a `combine.Combine`."""
