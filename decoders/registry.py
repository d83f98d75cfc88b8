"""A row of a table: where the builder of a strategy or a reward is, and its parameters as a strict model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model


def summarise(build: Any) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join((build.__doc__ or "").split("\n\n")[0].split())


@dataclass(frozen=True)
class NamesReward:
    """In a parameter's annotation: its value names one more reward, written as the request's `reward` is. Its scores
    stand in a column of their own, behind the first."""


@dataclass(frozen=True)
class NamesModel:
    """In a parameter's annotation: its value names a guide that is a model, with a distribution of its own."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row. Nothing is imported before it is used."""

    target: str
    """"module:name" of the builder: a callable with keyword parameters."""
    paper: str = ""
    """arXiv id; empty for none."""

    uses: frozenset[str] = frozenset()
    """The builder's parameters that the server supplies, so that nobody else can set them."""

    def load(self) -> Any:
        """The builder."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)

    @property
    def summary(self) -> str:
        return summarise(self.load())

    @cached_property
    def parameters(self) -> type[BaseModel]:
        """The builder's other parameters, from its signature: strict, unknown keys and NaN refused."""
        build = self.load()
        described = build if inspect.isfunction(build) or is_dataclass(build) else build.__init__
        hints = get_type_hints(described, include_extras=True)
        factories = {
            f.name: Field(default_factory=f.default_factory)
            for f in (fields(build) if is_dataclass(build) else ())
            if f.default_factory is not MISSING
        }
        accepted: dict[str, Any] = {
            p.name: (hints[p.name], factories.get(p.name, ... if p.default is p.empty else p.default))
            for p in inspect.signature(build).parameters.values()
            if p.name not in self.uses
        }
        config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
        return create_model(build.__name__, __config__=config, **accepted)

    @property
    def reward_parameters(self) -> list[str]:
        """The parameters that name one more reward each."""
        return self._parameters_with(NamesReward)

    @property
    def model_parameters(self) -> list[str]:
        """The parameters that name a guide that is a model."""
        return self._parameters_with(NamesModel)

    def _parameters_with(self, mark: type) -> list[str]:
        items = self.parameters.model_fields.items()
        return [name for name, field in items if any(isinstance(one, mark) for one in field.metadata)]

    def build(self, params: Mapping[str, Any], **supplied: Any) -> Any:
        """What the parameters, under their public names, ask for; raises pydantic's ValidationError, and ValueError."""
        return self.build_from(self.parameters.model_validate(dict(params)), **supplied)

    def build_from(self, params: BaseModel, **supplied: Any) -> Any:
        """What parameters that are validated already ask for; raises ValueError."""
        return self.load()(**{name: getattr(params, name) for name in self.parameters.model_fields}, **supplied)
