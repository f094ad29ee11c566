"""Each fast kernel against its plain form, in value and gradient; the plain body in the whole network.

Bounds: a value or gradient is a sum of at most a few dozen products here, so float32's unit (6e-8), times the
root of their number, times a dozen operations one behind the other, times the largest entry.
"""

from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from mindspore import Tensor, nn, ops
from scipy.special import erf
from trainer_shards import make_model, make_trainable

from janus.checkpoint.folder import open_model
from janus.model import kernels
from janus.model.kernels import cpu, cpu_gradients, plain
from janus.model.loss import TaskLoss
from trainer.cli import main
from trainer.stream.shapes import pack

BOUND = 12 * 2**-24 * 64**0.5


def _random(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32))


def _integers(*values: int) -> Tensor:
    return Tensor(np.array(values, np.int32))


class _Turned(nn.Cell):
    """Rotary with angles made by the body itself: their form is its own."""

    def __init__(self, body: object) -> None:
        super().__init__(auto_prefix=False)
        self.rotary = body.Rotary(heads=2, head_size=8, theta=100.0)

    def construct(self, x_PD: Tensor) -> Tensor:
        cos, sin = self.rotary.angles(_integers(*range(9)), 0.5)
        return self.rotary(x_PD, cos, sin)


class _Segments(nn.Cell):
    """Attention of samples of 4, 3 and 5 tokens, the first two in one attention row, behind them padding."""

    def __init__(self, body: object) -> None:
        super().__init__(auto_prefix=False)
        lengths, self.tokens = [4, 3, 5], 13
        token_of, segments = np.full((2, 8), 12, np.int32), np.zeros((2, 8), np.int32)
        slot_of, start = np.full(13, 15, np.int32), 0
        places = zip(*(place[0] for place in pack(np.array([lengths]), 2)), strict=True)
        for number, (length, (row, first)) in enumerate(zip(lengths, places, strict=True), 1):
            at = np.arange(length)
            token_of[row, first + at], segments[row, first + at] = start + at, number
            slot_of[start + at] = row * 8 + first + at
            start += length
        self.arrays = tuple(map(Tensor, (token_of, slot_of, segments)))
        self.attention = body.SegmentAttention(heads=2, head_size=4)

    def construct(self, q_PD: Tensor, k_PD: Tensor, v_PD: Tensor) -> Tensor:
        return self.attention(q_PD, k_PD, v_PD, self.attention.places(*self.arrays))[:12]


def _made(name: str, *settings: object) -> Callable[[object], nn.Cell]:
    return lambda body: getattr(body, name)(*settings)


CASES = {
    "bias": (_made("AddBias"), (_random(5, 8), _random(8)), 2),
    "bias, blocks": (_made("AddBias"), (_random(1100, 8), _random(8)), 2),
    "embed": (_made("Embed"), (_random(6, 4), _integers(1, 1, 5, 0)), 1),
    "embed, repeats": (_made("Embed", True), (_random(6, 4), Tensor(np.arange(1100, dtype=np.int32) % 6)), 1),
    "layer norm": (_made("LayerNorm", 1e-6), (_random(10, 16), _random(16), _random(16)), 3),
    "layer norm, blocks": (_made("LayerNorm", 1e-6), (_random(1100, 16), _random(16), _random(16)), 3),
    "rms norm": (_made("RMSNorm", 1e-6), (_random(10, 16), _random(16)), 2),
    "rms norm, blocks": (_made("RMSNorm", 1e-6), (_random(1100, 16), _random(16)), 2),
    "swiglu": (_made("SwiGLU"), (_random(5, 8), _random(8, 5).reshape(5, 8)), 2),
    "gelu": (_made("Gelu"), (_random(5, 8) * 2,), 1),
    "cross-entropy": (
        _made("CrossEntropy"),
        # The first row's label is far below its top, the last is unused.
        (_random(4, 9) * 40, _integers(8, 3, 0, -100)),
        1,
    ),
    "sum of squares": (_made("SumOfSquares"), (_random(7, 11),), 1),
    "rotary": (_Turned, (_random(9, 16),), 1),
    "attention": (
        _made("Attention", 8, True),
        (_random(2, 3, 6, 8), _random(2, 3, 6, 8) * 0.5, _random(2, 3, 6, 8) * 2, _random(2, 3, 6, 6)),
        3,
    ),
    "attention over segments": (
        _Segments,
        (_random(13, 8), _random(8, 13).reshape(13, 8), _random(13, 8)),
        3,
    ),
    "group norm": (_made("GroupNorm", 2, 6, 64, 32, 1e-6), (_random(72, 64), _random(64), _random(64)), 0),
    "convolution": (_made("Conv3x3", 2, 6), (_random(72, 4), _random(5, 4, 3, 3), _random(5)), 0),
    "convolution, halved": (_made("Conv3x3", 2, 6, 2), (_random(72, 4), _random(5, 4, 3, 3), _random(5)), 0),
    "convolution, doubled": (
        _made("Conv3x3", 2, 6, 1, True),
        (_random(72, 4), _random(5, 4, 3, 3), _random(5)),
        0,
    ),
}
"""Kernel, arguments, and how many of them have a gradient; the VQ is never trained."""


def _values(forward: nn.Cell, arguments: tuple[Tensor, ...], wanted: int) -> list[np.ndarray]:
    """The value, and the gradients of a scalar that weighs every output differently."""

    def weighed(*arguments: Tensor) -> Tensor:
        out = forward(*arguments).reshape(-1)
        return (out * ops.cos(ops.arange(out.size).astype(ms.float32))).sum()

    found = [forward(*arguments)]
    if wanted:
        gradients = ms.grad(weighed, tuple(range(wanted)))(*arguments)
        found += gradients if isinstance(gradients, tuple) else [gradients]
    return [tensor.asnumpy() for tensor in found]


@pytest.mark.parametrize("name", [name for name in CASES if "blocks" in name])
def test_long_sums_of_a_backward_compile(name: str) -> None:
    """Op by op and in a graph MindSpore parses a backward differently."""
    made, arguments, wanted = CASES[name]
    cell = made(cpu)

    class Whole(nn.Cell):
        def construct(self, *arguments: Tensor) -> Tensor:
            return cell(*arguments).sum()

    whole = Whole()
    compiled = ms.jit(ms.grad(whole, tuple(range(wanted))))
    for inside, outside in zip(
        compiled(*arguments), ms.grad(whole, tuple(range(wanted)))(*arguments), strict=True
    ):
        np.testing.assert_allclose(inside.asnumpy(), outside.asnumpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_fast_form_has_value_and_gradients_of_the_plain_one(name: str) -> None:
    made, arguments, wanted = CASES[name]
    pairs = zip(_values(made(cpu), arguments, wanted), _values(made(plain), arguments, wanted), strict=True)
    for fast, exact in pairs:
        terms = max(1.0, arguments[0].shape[0] / 64)  # weights' gradients are sums over rows
        bound = BOUND * terms**0.5 * np.abs(exact).max()
        np.testing.assert_allclose(fast, exact, rtol=0, atol=bound)


def test_both_bodies_have_the_same_kernels() -> None:
    def names(module: object) -> set[str]:
        return {name for name, value in vars(module).items() if isinstance(value, type)}

    assert names(plain) == names(cpu) > {"RMSNorm", "Conv3x3"}


def test_gelu_is_the_error_function_form() -> None:
    x = np.linspace(-4, 4, 101).astype(np.float32)
    for body in (plain, cpu):
        np.testing.assert_allclose(
            body.Gelu()(Tensor(x)).asnumpy(), x * 0.5 * (1 + erf(x / 2**0.5)), atol=1e-6
        )


def test_the_whole_network_computes_the_same_with_plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(0).integers(0, 1000, 12).astype(np.int32)
    at = np.arange(12, dtype=np.int32)
    inputs = [at, ids, at, at[None], at, np.ones((1, 12), np.int32)]
    logits = []
    for name in ("cpu", "plain"):
        monkeypatch.setitem(kernels.BODIES, "CPU", name)
        logits.append(TaskLoss(open_model("tiny").build(), "text").logits(*map(Tensor, inputs)).asnumpy())
    bound = 12 * 2**-24 * 256**0.5 * np.abs(logits[1]).max()  # the widest product has 256 terms
    np.testing.assert_allclose(*logits, rtol=0, atol=bound)


@pytest.mark.slow
def test_a_run_whose_sums_are_all_in_levels_compiles_and_has_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every run of more than CHAIN tokens a step is: backwards of many layers, in one graph a task."""
    make_model(tmp_path / "model")
    make_trainable(tmp_path / "shards", {"vqa": 7, "text": 4, "t2i": 6})
    monkeypatch.setenv("JANUS_CACHE", "")
    losses = []
    for chain in (cpu.CHAIN, 64):
        for module in (cpu, cpu_gradients):
            monkeypatch.setattr(module, "CHAIN", chain)
        command = ["train", "--model", tmp_path / "model", "--shards", tmp_path / "shards", "--steps", 2]
        result = CliRunner().invoke(main, list(map(str, [*command, "--out", tmp_path / f"run-{chain}"])))
        assert result.exit_code == 0, result.output
        metrics = pl.read_ndjson(tmp_path / f"run-{chain}" / "metrics.jsonl")
        losses.append(metrics.filter(pl.col("kind") == "step")["loss"].to_list())
    assert losses[0] == pytest.approx(losses[1], rel=2e-6)
