"""Rows about the training step: padding, mixing, PyTorch, the published recipe, floating-point rate."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from bench.measures.link import THREADS, Side, interleave
from bench.measures.results import Figure, at_least, at_most, median, ratio
from bench.measures.workload import OWN_RATIO, PUBLISHED_RATIO, Session
from janus.inspect.costs import transformer_operations

if TYPE_CHECKING:
    from janus.model.config import TextConfig
    from trainer.stream.shapes import Batch

PLANNED_STEPS = 100
TEXTS = 32
"""Samples of the text step: about 3,700 tokens, over which the update is spread; 8 are only 920."""


def padding(session: Session) -> list[Figure]:
    """Shares of token slots and of logits rows that are used, from the batches of a run's first steps."""
    feed = session.workload.feed(session.workload.config("mixed", OWN_RATIO, steps=PLANNED_STEPS))
    tokens = slots = heads = supervised = 0
    for step in range(1, PLANNED_STEPS + 1):
        data = feed.step(step)
        tokens, slots = tokens + data.tokens, slots + data.slots
        heads += sum(head_rows(batch) for _, batch in data.batches)
        supervised += data.supervised
    where = f"{PLANNED_STEPS} mixed steps of 5:1:4 (vqa:text:t2i) on {session.workload.data}"
    return [
        Figure(
            "padding",
            "share of token slots that hold real tokens, mixed",
            at_least(0.95),
            tokens / slots,
            f"Real tokens over token slots computed in {where}. The published recipe's share follows from "
            "its own table.",
            others={"published recipe": 0.45},
        ),
        Figure(
            "logits",
            "logits rows computed / rows supervised",
            at_most(1.25),
            heads / supervised,
            f"Rows that reach a head over rows that carry a label, in {where}.",
            others={"published recipe, vqa": 100.0},
        ),
    ]


def steps(session: Session, wanted: set[str]) -> list[Figure]:
    """Our step beside its parts, PyTorch's and the published recipe's, all sides in turns."""
    folder, counts = str(session.workload.folder), json.dumps(PUBLISHED_RATIO)
    skipped_before = len(session.skipped)
    with ExitStack() as stack:
        ours = stack.enter_context(session.ours("ours", folder, "mixed", counts))
        jobs: dict[str, Callable[[], Any]] = {"ours": _stepper(ours, "mixed")}
        if "mixed" in wanted:
            jobs["parts"] = _stepper(ours, "parts")
        if "torch" in wanted and (torch := _torch(session)):
            stack.enter_context(torch)
            jobs["PyTorch"] = _torch_stepper(session, ours, torch)
        if "published" in wanted:
            published = stack.enter_context(session.ours("published", folder, counts))
            jobs["published recipe"] = _stepper(published, "mixed")
        for job in jobs.values():  # the first call of each is not counted
            job()
        seconds = interleave(jobs, session.rounds)
        waiting = [ours.do("train", first=100, last=103) for _ in range(session.rounds)]
    samples = sum(PUBLISHED_RATIO.values())
    rates = {name: median(samples / s for s in times) for name, times in seconds.items()}
    detail = {"seconds": seconds, "samples_per_second": rates}
    skipped = tuple(session.skipped[skipped_before:])
    figures = [_mixed(seconds, detail), *_beside(rates, seconds, detail, skipped), _wait(waiting)]
    return [figure for figure in figures if figure.row in wanted]


def _mixed(seconds: dict[str, list[float]], detail: dict[str, Any]) -> Figure:
    value = ratio(seconds["ours"], seconds["parts"]) if "parts" in seconds else None
    return Figure(
        "mixed",
        "time of a mixed step / sum of its single-task micro-steps",
        at_most(1.05),
        value,
        "One optimizer step of 2 + 2 + 2 samples, over the sum of: each task's forward and backward of the "
        "same samples run and waited for alone, and one update.",
        others={"published recipe, graph": 3.3, "published recipe, pynative": 4.3},
        detail=detail,
    )


def _beside(
    rates: dict[str, float], seconds: dict[str, list[float]], detail: dict[str, Any], skipped: tuple[str, ...]
) -> list[Figure]:
    ours = {"ours, samples/s": rates["ours"]}
    known = {name: ratio(times, seconds["ours"]) for name, times in seconds.items()}
    torch, published = known.get("PyTorch"), known.get("published recipe")
    return [
        Figure(
            "torch",
            "samples/s of a mixed step, ours / PyTorch",
            at_least(2.0),
            torch,
            "transformers' JanusForConditionalGeneration in PyTorch, float32, the same samples (2 + 2 + 2), "
            "each task's padded to 1024 and run with the model's own loss, codes given, gradient clipping, "
            f"AdamW, {THREADS} threads; the sides in turns, medians of the rounds' ratios.",
            "×",
            ours | ({"PyTorch, samples/s": rates["PyTorch"]} if torch else {}),
            skipped,
            detail,
        ),
        Figure(
            "published",
            "samples/s of a mixed step, ours / the published recipe's shape",
            at_least(6.0),
            published,
            "Our own network in pynative mode, rows padded to 1024, logits of every position, codes encoded "
            "in the step; the same samples and optimizer.",
            "×",
            ours | ({"published recipe, samples/s": rates["published recipe"]} if published else {}),
            detail=detail,
        ),
    ]


def _wait(runs: list[dict[str, float]]) -> Figure:
    return Figure(
        "wait",
        "share of the step spent waiting for data",
        at_most(0.01),
        median(run["waited"] / run["seconds"] for run in runs),
        "Four mixed steps of a run; the time the loop waits for the next step's batches, without the first.",
    )


def text_step_flops(config: TextConfig, slots: int, head_rows: int, spans: Sequence[int]) -> int:
    """Operations of forward and backward of text batches, everything trained, by `janus/inspect/costs.py`.

    slots: P. head_rows: N. spans: what attention runs over, the samples' lengths or the rows'.
    """
    head = 2 * head_rows * config.hidden_size * config.vocab_size
    return 3 * (transformer_operations(config, slots, spans) + head)


def head_rows(batch: Batch) -> int:
    """Rows of a batch that reach a head, of text or of images, used or not."""
    return sum(len(labels) for labels in (batch.labels_N, batch.image_labels_N) if labels is not None)


def text_rate(session: Session) -> list[Figure]:
    """Operations per second in the compiled text step beside the machine's own product."""
    before = len(session.skipped)
    with ExitStack() as stack:
        ours = stack.enter_context(
            session.ours("ours", str(session.workload.folder), "text", json.dumps({"text": TEXTS}))
        )
        torch = _torch(session)
        jobs: dict[str, Callable[[], Any]] = {
            "text": _stepper(ours, "text"),
            "product": lambda: ours.do("matmul"),
        }
        if torch:
            stack.enter_context(torch)
            jobs["PyTorch"] = lambda: torch.do("matmul")
        for job in jobs.values():
            job()
        results = interleave(jobs, session.rounds)
    rates = {name: median(run[name] for run in results["product"]) for name in results["product"][0]}
    if torch:
        rates["PyTorch"] = median(results["PyTorch"])
    fastest = max(rates, key=lambda name: rates[name])
    ours_rate = median(run["flops"] / run["seconds"] for run in results["text"])
    dense = median(run["dense_flops"] / run["seconds"] for run in results["text"])
    return [
        Figure(
            "flops",
            "floating-point rate of the compiled text step / the machine's matrix product",
            at_least(0.65),
            ours_rate / rates[fastest],
            f"A whole optimizer step of {TEXTS} text samples in one call; operations by the formula in "
            f"bench/measures/step.py (products only, attention block-diagonal; over whole rows, as computed, "
            f"{dense / rates[fastest]:.3f}). "
            f"The denominator is the fastest product of 2048³ in the same run: {fastest}.",
            others={"ours, GF/s": ours_rate / 1e9} | {f"{n}, GF/s": rate / 1e9 for n, rate in rates.items()},
            skipped=tuple(session.skipped[before:]),
            detail={"text": results["text"], "dense": dense / rates[fastest]},
        )
    ]


def _stepper(side: Side, job: str) -> Callable[[], Any]:
    """The job on step 1, 2, 3, …: every side goes through the same steps."""
    done = 0

    def next_step() -> Any:
        nonlocal done
        done += 1
        return side.do(job, step=done)

    return next_step


def _torch(session: Session) -> Side | None:
    from janus.checkpoint.folder import open_model
    from janus.checkpoint.layouts import to_transformers
    from janus.tokens import JanusTokenizer

    tokenizer = JanusTokenizer(session.workload.shards / "tokenizer")
    config = open_model(session.workload.size, tokenizer.folder).config
    path = session.scratch / "transformers-config.json"
    path.write_text(json.dumps(to_transformers(config, vars(tokenizer.special))), encoding="utf-8")
    return session.peer("pytorch", str(path), str(THREADS))


def _torch_stepper(session: Session, ours: Side, torch: Side) -> Callable[[], float]:
    done = 0

    def next_step() -> float:
        nonlocal done
        done += 1
        path = session.scratch / f"step-{done}.npz"
        ours.do("export", step=done, path=str(path))
        return torch.do("mixed", path=str(path))

    return next_step
