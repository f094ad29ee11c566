"""Janus-Pro's three training stages as the technical report has them (table 2).

What a stage trains is fixed; the rest are defaults, which a recipe or the command line may override.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_ADAPTERS = ("aligner", "gen_aligner", "gen_head")
_LANGUAGE = ("llama", "lm_head")


@dataclass(frozen=True)
class Stage:
    """parts: what it trains, as `janus.model.janus.PARTS` names them; all else is frozen, VQ always.

    ratio: samples per task in a mixed step.
    """

    parts: tuple[str, ...]
    learning_rate: float
    warmup_steps: int
    ratio: Mapping[str, int]


STAGES = {
    1: Stage(_ADAPTERS, 1e-3, 600, {"vqa": 1, "text": 0, "t2i": 3}),
    2: Stage((*_ADAPTERS, *_LANGUAGE), 1e-4, 5_000, {"vqa": 2, "text": 3, "t2i": 5}),
    3: Stage((*_ADAPTERS, *_LANGUAGE, "siglip"), 4e-5, 0, {"vqa": 5, "text": 1, "t2i": 4}),
}


def trained_parts(stage: int, train_gen_embed: bool) -> frozenset[str]:
    """The parts of the network that a stage trains.

    train_gen_embed: whether the table of generated-image embeddings is among them; the report does not say.
    """
    return frozenset((*STAGES[stage].parts, *(("gen_embed",) if train_gen_embed else ())))
