"""What `trimtab train` trains, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["guide", "reward", "value", "twin", "directional"]

BETA = {"genarm": 0.05, "dpo": 0.1}
"""Of the losses: GenARM's HH setting (arXiv 2410.08193), DPO's usual one (arXiv 2305.18290)."""
LEARNING_RATE = {True: 5e-4, False: 1e-5}
"""With LoRA (GenARM's HH setting), and of whole models."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run. Defaults are GenARM's for LoRA; see `BETA` and `LEARNING_RATE`."""

    kind: Kind
    base: str
    data: tuple[str, ...]
    test: tuple[str, ...] = ()
    """Measured on at the end alone; without it, what is held out of `data`, which also ends training early, is."""
    out: Path
    name: str | None = None
    start: str | None = None
    """Another model to train, with the base's tokenizer; the base where none is named."""
    reward: str | None = None
    """Of a value head: the reward model whose scores it foretells."""
    loss: Literal["genarm", "dpo"] = "genarm"
    beta: float | None = None
    likelihood: float = 0.0
    """Weight of the chosen answers' mean negative log-likelihood beside the loss, as in RPO."""
    score: tuple[str, ...] = ()
    """Of rated answers; with several, a reward model gets a label for each."""
    preference_prompts: Path | None = None
    """A configuration whose preference prompts say directions to the model."""
    directions: int = 4
    """Drawn for a prompt and a preference prompt."""
    radius: float | None = None
    """Spreads of the scores from their mean to the point that the chosen answer is nearest to; None is without end."""
    full: bool = False
    rank: int = 8
    layers: int | None = None
    """Only the last so many are trained."""
    keep: float = 2.0
    """GiB of memory for the states of the layers below those, which are computed once; 0 computes them every time."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of what is computed while training; weights that learn are float32. `auto` is bfloat16 on CUDA alone."""
    learning_rate: float | None = None
    epochs: float = 1.0
    batch: int = 2
    """Pairs a forward pass. On a CPU few: all are padded to the longest."""
    accumulate: int = 16
    """Passes a step."""
    max_length: int = 512
    """Tokens of a prompt and an answer."""
    heldout: float = 0.1
    """Share of the prompts that are measured on and not trained on."""
    patience: int = 3
    """Measurements without an improvement after which training ends; 0 trains to the end."""
    seed: int = 0
    resume: bool = False
    template: Path | None = None
    bare: bool = False
    skip_wrong: bool = False
    limit: int | None = None
    steer: str | None = None
    """Of a guide: the reward model that scores answers drawn with it, for the card."""
    steer_prompts: int = 32

    @property
    def member(self) -> str:
        """What a configuration calls it."""
        return self.name or self.out.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Of a head that scores several things: their names."""
        return self.score if self.kind == "reward" and len(self.score) > 1 else ()

    @property
    def unit(self) -> str:
        """What a row is."""
        return "answers" if self.kind == "directional" else "pairs"

    @property
    def checkpoints(self) -> Path:
        """A folder that is there while training is, and where it was interrupted."""
        return self.out / "checkpoints"

    @property
    def has_checkpoints(self) -> bool:
        return any(self.checkpoints.glob("checkpoint-*"))

    @property
    def trains_adapter(self) -> bool:
        return not self.full

    @property
    def origin(self) -> str:
        """The model that training begins with."""
        return self.start or self.base

    @property
    def rate(self) -> float:
        return LEARNING_RATE[self.trains_adapter] if self.learning_rate is None else self.learning_rate

    @property
    def scale(self) -> float:
        """β of the loss."""
        loss = self.loss if self.kind == "guide" else "dpo"
        return BETA[loss] if self.beta is None else self.beta
