"""Each fast kernel against its plain form, in value and gradient; the plain body in the whole network."""

from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
import polars as pl
import pytest
from mindspore import Tensor, nn, ops
from rounding import rounding_bound
from runs import make_work, train_well
from scipy.special import erf
from trainer_shards import CONFIG, token_slots

from janus.checkpoint.folder import open_model
from janus.model import kernels
from janus.model.kernels import ascend, cpu, cpu_gradients, plain
from janus.model.loss import TaskLoss
from janus.prompts import SIGNATURES

OPERATIONS = 12
"""One behind the other: a norm (difference, square, mean, ε, root, quotient, weight, bias), and back."""


def _assert_close(ours: Tensor, exact: Tensor, rows: int) -> None:
    """rows: of the arguments, the terms of a weight's gradient; sums in a row have fewer than 64."""
    ours, exact = ours.asnumpy(), exact.asnumpy()
    bound = rounding_bound(exact, max(64, rows), OPERATIONS)
    np.testing.assert_allclose(ours, exact, rtol=0, atol=bound)


def _random(*shapes: int | tuple[int, ...]) -> tuple[Tensor, ...]:
    rng = np.random.default_rng(0)
    return tuple(Tensor(rng.standard_normal(shape, np.float32)) for shape in shapes)


def _integers(*values: int) -> Tensor:
    return Tensor(np.array(values, np.int32))


class _Turned(nn.Cell):
    """Rotary with angles made by the body itself: their form is its own."""

    def __init__(self, body: object) -> None:
        super().__init__(auto_prefix=False)
        self.rotary = body.Rotary(heads=2, head_size=8, theta=100.0)

    def construct(self, x_PD: Tensor) -> Tensor:
        return self.rotary(x_PD, *self.rotary.angles(_integers(*range(9)), 0.5))


class _Segments(nn.Cell):
    """Attention of samples of 4, 3 and 5 tokens, the first two in one attention row, behind them padding."""

    def __init__(self, body: object) -> None:
        super().__init__(auto_prefix=False)
        slots = tuple(map(Tensor, token_slots([4, 3, 5], rows=2, length=8, tokens=13)[1:]))
        self.arrays = slots if body is cpu else (Tensor(np.array([4, 7, 12, 13])),)
        self.attention = body.SegmentAttention(heads=2, head_size=4)

    def construct(self, q_PD: Tensor, k_PD: Tensor, v_PD: Tensor) -> Tensor:
        return self.attention(q_PD, k_PD, v_PD, self.attention.places(13, *self.arrays))[:12]


class _Pictures(nn.Cell):
    """Attention in two pictures of six patches."""

    def __init__(self, body: object) -> None:
        super().__init__(auto_prefix=False)
        self.attention = body.PictureAttention(heads=2, head_size=4)

    def construct(self, q_MD: Tensor, k_MD: Tensor, v_MD: Tensor) -> Tensor:
        return self.attention(q_MD, k_MD, v_MD, 2)


def _made(name: str, *settings: object) -> Callable[[object], nn.Cell]:
    return lambda body: getattr(body, name)(*settings)


ROWS = {"": 10, ", blocks": 1100}
IMAGES = (2, 6)  # pictures, side
CASES = {
    **{f"bias{kind}": (_made("AddBias"), _random((n, 8), 8), 2) for kind, n in ROWS.items()},
    **{
        f"layer norm{kind}": (_made("LayerNorm", 1e-6), _random((n, 16), 16, 16), 3)
        for kind, n in ROWS.items()
    },
    **{f"rms norm{kind}": (_made("RMSNorm", 1e-6), _random((n, 16), 16), 2) for kind, n in ROWS.items()},
    "take rows": (_made("TakeRows"), (*_random((6, 4)), _integers(5, 0, 2)), 1),
    "embed": (_made("Embed"), (*_random((6, 4)), _integers(1, 1, 5, 0)), 1),
    "embed, repeats": (_made("Embed", True), (*_random((6, 4)), _integers(*np.arange(1100) % 6)), 1),
    "swiglu": (_made("SwiGLU"), _random((5, 8), (5, 8)), 2),
    "gelu": (_made("Gelu"), _random((5, 8)), 1),
    # The first row's label is far below its top, the last is unused.
    "cross-entropy": (_made("CrossEntropy"), (_random((4, 9))[0] * 40, _integers(8, 3, 0, -100)), 1),
    "sum of squares": (_made("SumOfSquares"), _random((7, 11)), 1),
    "rotary": (_Turned, _random((9, 16)), 1),
    "attention": (_made("Attention", 8, True), _random(*[(2, 3, 6, 8)] * 3, (2, 3, 6, 6)), 3),
    "attention over pictures": (_Pictures, _random(*[(12, 8)] * 3), 3),
    "attention over segments": (_Segments, _random(*[(13, 8)] * 3), 3),
    "group norm": (_made("GroupNorm", *IMAGES, 64, 32, 1e-6), _random((72, 64), 64, 64), 0),
    **{
        f"convolution {settings}": (
            _made("Conv3x3", *IMAGES, *settings),
            _random((72, 4), (5, 4, 3, 3), 5),
            0,
        )
        for settings in ((), (2,), (1, True))
    },
}
"""Kernel, arguments, and how many of them have a gradient; the VQ is never trained."""


def _values(forward: nn.Cell, arguments: tuple[Tensor, ...], wanted: int) -> list[Tensor]:
    """The value, and the gradients of a scalar that weighs every output differently."""

    def weighed(*arguments: Tensor) -> Tensor:
        out = forward(*arguments).reshape(-1)
        return (out * ops.cos(ops.arange(out.size).astype(ms.float32))).sum()

    gradients = ms.grad(weighed, tuple(range(wanted)))(*arguments) if wanted else ()
    return [forward(*arguments), *(gradients if isinstance(gradients, tuple) else [gradients])]


@pytest.mark.parametrize("name", [name for name in CASES if "blocks" in name])
def test_long_sums_of_a_backward_compile(name: str) -> None:
    """Op by op and in a graph MindSpore parses a backward differently."""
    made, arguments, wanted = CASES[name]
    cell = made(cpu)

    class Whole(nn.Cell):
        def construct(self, *arguments: Tensor) -> Tensor:
            return cell(*arguments).sum()

    backward = ms.grad(Whole(), tuple(range(wanted)))
    for inside, outside in zip(ms.jit(backward)(*arguments), backward(*arguments), strict=True):
        _assert_close(inside, outside, ROWS[", blocks"])


@pytest.mark.parametrize("name", CASES)
def test_fast_form_has_value_and_gradients_of_the_plain_one(name: str) -> None:
    made, arguments, wanted = CASES[name]
    fast, exact = (_values(made(body), arguments, wanted) for body in (cpu, plain))
    for ours, theirs in zip(fast, exact, strict=True):
        _assert_close(ours, theirs, max(len(argument) for argument in arguments))


def test_all_bodies_have_the_same_kernels() -> None:
    fast, ours, theirs = (
        {n for n, kind in vars(body).items() if isinstance(kind, type) and issubclass(kind, nn.Cell)}
        for body in (cpu, ascend, plain)
    )
    assert fast == ours == theirs > {"RMSNorm", "Conv3x3"}


@pytest.mark.parametrize("body", [plain, cpu])
def test_gelu_is_the_error_function_form(body: object) -> None:
    x = np.linspace(-4, 4, 101).astype(np.float32)
    bound = rounding_bound(x, terms=1, operations=5)  # the five below
    exact = x * 0.5 * (1 + erf(x / 2**0.5))
    np.testing.assert_allclose(body.Gelu()(Tensor(x)).asnumpy(), exact, rtol=0, atol=bound)


def test_the_whole_network_computes_the_same_with_plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(0).integers(0, 1000, 12).astype(np.int32)
    at = np.arange(12, dtype=np.int32)
    slots, ends = [at[None], at, np.ones((1, 12), np.int32)], [np.array([12])]
    logits = []
    for name, segments in {"cpu": slots, "plain": ends}.items():
        monkeypatch.setitem(kernels.BODIES, "CPU", name)
        loss = TaskLoss(open_model("tiny").build(), SIGNATURES["text"])
        logits.append(loss.logits(*map(Tensor, [at, ids, at, *segments])).asnumpy())
    # The widest product has 256 terms; twelve are one behind the other in two layers.
    np.testing.assert_allclose(*logits, rtol=0, atol=rounding_bound(logits[1], 256, 12))


@pytest.mark.slow
def test_a_run_whose_sums_are_all_in_levels_compiles_and_has_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every run of more than CHAIN tokens a step is: backwards of many layers, in one graph a task."""
    make_work(tmp_path)
    monkeypatch.setenv("JANUS_CACHE", "")
    losses = []
    for chain in (cpu.CHAIN, 64):
        for module in (cpu, cpu_gradients):
            monkeypatch.setattr(module, "CHAIN", chain)
        train_well(tmp_path, "--model", "model", "--shards", "shards", "--steps", 2, "--out", f"run-{chain}")
        metrics = pl.read_ndjson(tmp_path / f"run-{chain}" / "metrics.jsonl")
        losses.append(metrics.filter(pl.col("kind") == "step")["loss"].to_numpy())
    # Seven products one behind the other: q, scores, values, output, gate, down, head.
    bound = rounding_bound(losses[0], CONFIG.text.intermediate_size, operations=7)
    np.testing.assert_allclose(*losses, rtol=0, atol=bound)
