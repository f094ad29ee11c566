"""What each of Janus-Pro's three stages trains (technical report, table 2). All else is frozen, VQ always."""

from __future__ import annotations

_ADAPTERS = ("aligner", "gen_aligner", "gen_head")
_LANGUAGE = ("llama", "lm_head")

TRAINED = {
    1: _ADAPTERS,
    2: (*_ADAPTERS, *_LANGUAGE),
    3: (*_ADAPTERS, *_LANGUAGE, "siglip"),
}
"""Parts of the network by stage, as `janus.model.janus.PARTS` names them."""


def trained_parts(stage: int, train_gen_embed: bool) -> frozenset[str]:
    """The parts of the network that a stage trains.

    train_gen_embed: whether the table of generated-image embeddings is among them; the report does not say.
    """
    return frozenset((*TRAINED[stage], *(("gen_embed",) if train_gen_embed else ())))
