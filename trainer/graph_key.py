"""What decides a training step's graphs: the key under which the next start finds them."""

from __future__ import annotations

from dataclasses import asdict

from janus.model.config import JanusConfig
from trainer.config import TrainConfig

NOT_IN_A_GRAPH = {
    *("model", "shards", "sources", "ratio", "samples", "max_length", "null_prompt_prob"),
    *("steps", "batch_size", "micro_batch", "learning_rate", "schedule", "warmup_steps", "eps"),
    *("weight_decay", "clip_norm", "out", "seed", "save_every", "keep", "log_every", "eval_every"),
    *("eval_samples", "tensorboard", "skip_nonfinite"),
}
"""Options that reach a graph only as arguments and their shapes; every other one is part of its key."""


def graph_facts(config: TrainConfig, network: JanusConfig) -> dict[str, object]:
    """What decides the graphs beside sources and shapes of arguments."""
    options = {name: value for name, value in config.asdict().items() if name not in NOT_IN_A_GRAPH}
    return {"options": options, "network": asdict(network)}
