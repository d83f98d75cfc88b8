"""The states that layers which do not learn have of a sequence: computed once, and read again in later epochs.

Such layers make the same states of the same tokens every time, so training can begin at the first layer that learns. It
works for any decoder whose layers hand on one tensor: the `forward` of each lower layer is replaced in place, and the
modules, their names and their weights stay as they are.

Shapes: B rows, T tokens of the longest, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

TOLERANCE = 1e-4
"""Of the check: of the largest state. Sums over rows of other lengths round otherwise."""


class UnfitLayers(Exception):
    """States of these layers cannot be kept: says why."""


class LowerStates:
    """Keeps what the last of `layers` makes of each row of tokens, up to `limit` bytes, and computes the rest anew."""

    def __init__(self, decoder: nn.Module, layers: Sequence[nn.Module], limit: int) -> None:
        self.layers, self.limit = layers, limit
        self.rows = self.bytes = 0
        self._states: dict[bytes, torch.Tensor] = {}
        self._keys: list[bytes] | None = None
        """Of the batch that is being run; None where its rows are no plain rows padded on the right."""
        self._known = False
        self._hook = decoder.register_forward_pre_hook(self._begin, with_kwargs=True)
        for layer in layers:
            layer.forward = partial(self._run, layer.forward, layer is layers[-1])

    def release(self) -> None:
        """Makes the layers what they were, and forgets the states."""
        self._hook.remove()
        for layer in self.layers:
            del layer.forward
        self._states.clear()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        other = any(kwargs.get(name) is not None for name in ("past_key_values", "position_ids", "inputs_embeds"))
        self._keys = None if other or ids is None else make_keys(ids, mask)
        self._known = self._keys is not None and all(key in self._states for key in self._keys)

    def _run(self, plain: Any, last: bool, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """[B, T, H]; of a batch that is known the lower layers do nothing, and the last of them reads it."""
        if self._known:
            return self._read(hidden) if last else hidden
        with torch.no_grad():
            states = plain(hidden, *args, **kwargs)
        if last and self._keys is not None and not torch.is_inference_mode_enabled():
            self._keep(self._keys, states)
        return states

    def _read(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = [self._states[key] for key in self._keys or ()]
        read = rows[0].new_zeros(hidden.shape[:2] + rows[0].shape[1:])
        for i, row in enumerate(rows):
            read[i, : len(row)] = row
        return read.to(hidden.device)

    def _keep(self, keys: Sequence[bytes], states: torch.Tensor) -> None:
        for key, row in zip(keys, states, strict=True):
            length = len(key) // 8
            size = row[:length].nbytes
            if key not in self._states and self.bytes + size <= self.limit:
                self._states[key] = row[:length].to("cpu", copy=True)
                self.rows += 1
                self.bytes += size


def make_keys(ids: torch.Tensor, mask: torch.Tensor | None) -> list[bytes] | None:
    """The tokens of each row without its padding; None where padding stands on the left or between."""
    rows = ids.to("cpu", torch.int64)
    lengths = torch.full((len(rows),), rows.shape[1])
    if mask is not None:
        shown = mask.to("cpu").bool()
        lengths = shown.sum(1)
        if shown.ndim != 2 or not torch.equal(shown, torch.arange(rows.shape[1]) < lengths[:, None]):
            return None
    return [row[:length].numpy().tobytes() for row, length in zip(rows, lengths.tolist(), strict=True)]


def keep_lower_states(
    decoder: nn.Module, layers: Sequence[nn.Module], *, limit: int, vocabulary: int, adapted: bool
) -> LowerStates:
    """From now on, once a row of eight tokens shows that the decoder computes the same with states that were kept as
    without; `adapted` says that all that learns will be adapters of the layers above.

    Raises UnfitLayers where it does not: layers that drop out, that hand on more than a tensor or that later layers
    read from, and embeddings that learn.
    """
    row = (7 * torch.arange(8) % vocabulary)[None]
    padded, mask = torch.cat([row, row[:, :3]], 1), torch.tensor([[1] * 8 + [0] * 3])
    shown: list[Any] = []
    watch = layers[-1].register_forward_hook(lambda module, args, output: shown.append(output))
    was = decoder.training
    states = None
    try:
        with torch.random.fork_rng(devices=[]):
            decoder.train()
            plain = decoder(input_ids=padded, attention_mask=mask, use_cache=False)[0][:, :8]
            watch.remove()
            if not isinstance(shown[0], torch.Tensor) or shown[0].shape[:2] != padded.shape:
                raise UnfitLayers("they hand on more than one tensor of states")
            if shown[0].requires_grad and not adapted:
                raise UnfitLayers("what lies below them learns")
            states = LowerStates(decoder, layers, limit=2**30)
            again = decoder(input_ids=row, use_cache=False)[0]
            read = decoder(input_ids=padded, attention_mask=mask, use_cache=False)[0][:, :8]
        allowed = TOLERANCE * float(plain.detach().abs().max())
        if max(float((other - plain).detach().abs().max()) for other in (again, read)) > allowed:
            raise UnfitLayers("the model computes something else when they are not run again")
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise UnfitLayers(f"{type(error).__name__}: {error}") from error
    finally:
        watch.remove()
        decoder.train(was)
        if states is not None:
            states.release()
    return LowerStates(decoder, layers, limit)
