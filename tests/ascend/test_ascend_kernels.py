"""Each Ascend kernel against its plain form, in value and gradient, and whole tasks; CANN's part in NumPy.

float64 makes an Ascend body take the way of bfloat16, flash attention included, and shows more digits.
"""

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from paths import GOLDEN, needs_shared
from rounding import gradient_bound, rounding_bound
from trainer_shards import CONFIG, SIDE, TOKENS, word_tokenizer

from janus.checkpoint.folder import ModelFolder, open_model
from janus.generate.decode import Decoder
from janus.inspect.bounds import LOSS, RELATIVE
from janus.inspect.verify import gradient_norms, open_cases, task_values
from janus.model import kernels
from janus.model.kernels import ascend, plain
from janus.model.layers import working_weights
from janus.model.loss import TaskLoss
from janus.model.weights import parted
from janus.prompts import SIGNATURES
from trainer.stream.shapes import Batch

LENGTHS = [4, 1, 3, 1, 5]
"""Segments: samples of 4 and 3 tokens, one of a single token, an absent one, padding behind them."""


def _random(*shapes: int | tuple[int, ...], dtype: type = np.float64) -> tuple[Tensor, ...]:
    rng = np.random.default_rng(0)
    return tuple(Tensor(rng.standard_normal(shape).astype(dtype)) for shape in shapes)


class _GateUp(nn.Cell):
    """SwiGLU of gate and up side by side, which the plain form takes apart."""

    def __init__(self, body: object) -> None:
        super().__init__(auto_prefix=False)
        self.joined, self.swiglu = body.JOINED, body.SwiGLU()

    def construct(self, gate_PF: Tensor, up_PF: Tensor) -> Tensor:
        return self.swiglu(ops.concat((gate_PF, up_PF), -1)) if self.joined else self.swiglu(gate_PF, up_PF)


class _Turned(nn.Cell):
    """Rotary with angles made by the body itself, in the dtype of x as the Llama casts them."""

    def __init__(self, body: object) -> None:
        super().__init__(auto_prefix=False)
        self.rotary = body.Rotary(heads=2, head_size=16, theta=100.0)

    def construct(self, x_PD: Tensor) -> Tensor:
        angles = self.rotary.angles(Tensor(np.arange(9, dtype=np.int32)), 0.5)
        return self.rotary(x_PD, *(angle.astype(x_PD.dtype) for angle in angles))


class _Segments(nn.Cell):
    """Attention over segments, padding and all."""

    def __init__(self, body: object) -> None:
        super().__init__(auto_prefix=False)
        self.attention = body.SegmentAttention(heads=2, head_size=16)

    def construct(self, q_PD: Tensor, k_PD: Tensor, v_PD: Tensor) -> Tensor:
        places = self.attention.places(sum(LENGTHS), Tensor(np.cumsum(LENGTHS)))
        return self.attention(q_PD, k_PD, v_PD, places)


class _Pictures(nn.Cell):
    """Attention in two pictures of six patches."""

    def __init__(self, body: object) -> None:
        super().__init__(auto_prefix=False)
        self.attention = body.PictureAttention(heads=2, head_size=16)

    def construct(self, q_MD: Tensor, k_MD: Tensor, v_MD: Tensor) -> Tensor:
        return self.attention(q_MD, k_MD, v_MD, 2)


def _made(name: str, *settings: object) -> Callable[[object], nn.Cell]:
    return lambda body: getattr(body, name)(*settings)


CASES = {
    "layer norm": (_made("LayerNorm", 1e-6), _random((10, 16), 16, 16), 3),
    "rms norm": (_made("RMSNorm", 1e-6), _random((10, 16), 16), 2),
    "take rows": (_made("TakeRows"), (*_random((6, 4)), Tensor([5, 0, 2, 0], ms.int32)), 1),
    "swiglu": (_GateUp, _random((5, 8), (5, 8)), 2),
    "gelu": (_made("Gelu"), (_random((5, 8))[0] * 3,), 1),
    "rotary": (_Turned, _random((9, 32)), 1),
    "attention over segments": (_Segments, _random(*[(sum(LENGTHS), 32)] * 3), 3),
    "attention over pictures": (_Pictures, _random(*[(12, 32)] * 3), 3),
    # The first row's label is far below its top, the last is unused.
    "cross-entropy": (
        _made("CrossEntropy"),
        (_random((4, 9), dtype=np.float32)[0] * 40, Tensor([8, 3, 0, -100], ms.int32)),
        1,
    ),
}
"""Kernel, arguments, and how many of them have a gradient; without `Empty` and what is plain's own."""


def _values(forward: nn.Cell, arguments: tuple[Tensor, ...], wanted: int) -> list[np.ndarray]:
    """The value, and the gradients of a scalar that weighs every output differently."""

    def weighed(*arguments: Tensor) -> Tensor:
        out = forward(*arguments).reshape(-1)
        return (out * ops.cos(ops.arange(out.size).astype(ms.float32))).sum()

    gradients = ms.grad(weighed, tuple(range(wanted)))(*arguments)
    found = [forward(*arguments), *(gradients if isinstance(gradients, tuple) else [gradients])]
    return [tensor.asnumpy() for tensor in found]


OPERATIONS = 12
"""One behind the other in float32, of at most 64 terms: as tests/model/test_kernels.py counts them."""


@pytest.mark.parametrize("name", CASES)
def test_an_ascend_kernel_has_value_and_gradients_of_the_plain_one(name: str, on_cann: None) -> None:
    made, arguments, wanted = CASES[name]
    found, exact = (_values(made(body), arguments, wanted) for body in (ascend, plain))
    for ours, theirs in zip(found, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=rounding_bound(theirs, 64, OPERATIONS))


def test_buffers_are_empty_whatever_they_held() -> None:
    buffers = [Parameter(Tensor([np.nan, 1.0], ms.float32), name=name) for name in ("one", "other")]
    empty = ms.jit(ascend.Empty().construct)
    for buffer in buffers:
        empty(buffer, Tensor(np.float32(0)))
        assert buffer.asnumpy().tolist() == [0, 0]


def test_every_kernel_is_plains_own_or_compared_with_it() -> None:
    own = {name for name, value in vars(ascend).items() if isinstance(value, type)}
    compared = {name for name in own if getattr(ascend, name) is not getattr(plain, name)}
    assert compared == {
        "CrossEntropy",
        "Empty",
        "Gelu",
        "LayerNorm",
        "PictureAttention",
        "RMSNorm",
        "Rotary",
        "SegmentAttention",
        "SwiGLU",
        "TakeRows",
    }
    assert len(CASES) == len(compared - {"Empty"})


@pytest.mark.parametrize(
    ("ends", "asks"),
    [([4, 4, 12], "growing"), ([4, 11], "the last T"), (np.array([4, 12], np.int32), "int64")],
    ids=["a sample without tokens", "tokens without a segment", "int32"],
)
def test_what_flash_attention_does_not_take_is_refused(ends: object, asks: str, on_cann: None) -> None:
    """So a batch that runs here keeps the limits of the TND layout."""
    attention = ascend.SegmentAttention(heads=2, head_size=16)
    q, k, v = _random(*[(12, 32)] * 3)
    with pytest.raises(ValueError, match=asks):
        attention(q, k, v, (None, Tensor(np.array(ends))))


def _in_float64(model: nn.Cell) -> nn.Cell:
    for weight in working_weights(model):
        weight.set_dtype(ms.float64)
    return model


def _loss_and_gradients(model: nn.Cell, task: str, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
    """The loss, and its gradients by the names that a checkpoint has."""
    loss = TaskLoss(model, SIGNATURES[task])
    weights = ms.ParameterTuple(loss.get_parameters())
    value, gradients = ms.value_and_grad(loss, None, weights)(*batch.tensors)
    named = {w.name: gradient.asnumpy() for w, gradient in zip(weights, gradients, strict=True)}
    return float(value.asnumpy()), parted(named)


WIDEST = 3 * 16 * 16
"""Terms of the longest sum: a patch of a picture."""
PRODUCTS = 2 * (4 + 6 + 6)
"""One behind the other: aligner and head, a vision layer, a Llama layer; forward and backward."""


@pytest.mark.parametrize("task", ["text", "vqa", "t2i", "edit"])
def test_a_task_has_the_loss_and_gradients_of_plain_kernels(
    task: str, batch_of: Callable[[str], Batch], on_cann: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(task)
    assert len(np.unique(batch.segment_ends_N)) == 4  # two samples, an absent one, padding
    source = ModelFolder("random", CONFIG)
    ours, found = _loss_and_gradients(_in_float64(source.build()), task, batch)
    monkeypatch.setitem(kernels.BODIES, "CPU", "plain")
    theirs, exact = _loss_and_gradients(source.build(), task, batch)
    assert ours == pytest.approx(theirs, abs=rounding_bound(theirs, WIDEST, PRODUCTS // 2))
    assert found.keys() == exact.keys()
    for name, gradient in exact.items():
        bound = gradient_bound(exact, name, WIDEST, PRODUCTS)
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=bound, err_msg=name)


@needs_shared
@pytest.mark.parametrize("task", ["text", "vqa", "t2i"])
def test_a_task_has_the_loss_and_gradients_of_the_reference(task: str, on_cann: None) -> None:
    cases = open_cases(GOLDEN / "tiny")
    opened = open_model(str(GOLDEN / "tiny" / "hf-format"))
    states = cases.batch(task)[1]
    _, loss, gradients = task_values(_in_float64(opened.build()), task, cases, states, lambda cell: cell)
    assert loss == pytest.approx(cases.facts["losses"][task], abs=LOSS)
    expected = cases.facts["grad_norms"][task]
    assert gradient_norms(gradients) == pytest.approx(expected, rel=RELATIVE)


def _decoded(model: nn.Cell, draws: bool) -> np.ndarray:
    """Logits (calls, B, V) of a prompt with a picture and a shorter one without, and of two tokens behind."""
    special = word_tokenizer().special
    words, picture = np.arange(1, 8), np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    shown = np.concatenate([words, np.full(TOKENS, special.image_placeholder), words])
    decoder = Decoder(model, special, draws, 2, length=32, slots=36, images=1, jit=lambda cell, name: cell)
    prompt = decoder.prefill([shown, words], [picture])
    return np.stack([prompt, *(decoder.step(np.array([3, 5 + i], np.int32)) for i in range(2))])


@pytest.mark.parametrize("draws", [False, True], ids=["text", "pictures"])
def test_a_decoder_has_the_logits_of_plain_kernels(
    draws: bool, on_cann: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ModelFolder("random", CONFIG)
    found = _decoded(source.build(), draws)
    monkeypatch.setitem(kernels.BODIES, "CPU", "plain")
    exact = _decoded(source.build(), draws)
    np.testing.assert_allclose(found, exact, rtol=0, atol=rounding_bound(exact, WIDEST, PRODUCTS // 2))
