"""Two small graphs, compiled by `python planted.py NAME`: one breaks the audit's rules, one keeps them."""

import os
import sys

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, mint, nn, ops

TOKENS, HEADS, SIZE, CLASSES = 32, 2, 24, 8
WIDTH = HEADS * SIZE


def _attend(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, mask: Tensor, next_tokens: int) -> Tensor:
    return ops.flash_attention_score(
        q,
        k,
        v,
        q.shape[1],
        attn_mask=mask,
        actual_seq_qlen=ends,
        actual_seq_kvlen=ends,
        next_tokens=next_tokens,
        input_layout="TND",
        sparse_mode=3,
    )


class Faulty(nn.Cell):
    """Heads of 24 in float32 for flash attention, an operation of CPUs alone, a lone gradient, and more."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = Tensor(np.triu(np.ones((2048, 2048), np.uint8), 1))
        self.table = Tensor(np.arange(2**20, dtype=np.float32))  # 4 MB
        self.gradient = ops.SparseSoftmaxCrossEntropyWithLogits(is_grad=True)
        self.bessel = ops.BesselJ0()
        self.narrow = ops.UnsortedSegmentSum()

    def construct(self, x: Tensor, ends: Tensor, labels: Tensor, long: Tensor) -> tuple[Tensor, ...]:
        q = x.reshape(TOKENS, HEADS, SIZE)
        attended = _attend(q, q, q, ends, self.mask, 1).reshape(TOKENS, WIDTH)
        summed = self.narrow(x.astype(ms.bfloat16), labels, CLASSES)
        large = ops.gather(self.table, labels, 0)
        return self.bessel(attended), self.gradient(x, labels), summed, large, long + long


class Sound(nn.Cell):
    """What `Faulty` does, as Ascend likes it, with a backward."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = Tensor(np.triu(np.ones((2048, 2048), np.uint8), 1))
        self.weight = Parameter(Tensor(np.ones((32, 32)), ms.bfloat16), name="weight")
        self.scale = Parameter(Tensor(np.ones(32), ms.bfloat16), name="scale")
        self.product = ops.MatMul()

    def construct(self, x: Tensor, ends: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        x = ops.rms_norm(self.product(x, self.weight), self.scale, 1e-6)[0].reshape(TOKENS, 2, 16)
        x = _attend(x, x, x, ends, self.mask, 0).reshape(TOKENS, 32)
        logits = ops.gather(x.astype(ms.float32), rows, 0)
        return mint.nn.functional.cross_entropy(logits, labels, reduction="sum")


def main(name: str) -> None:
    """Compile one of the graphs."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.set_device("Ascend")
    ends, labels = Tensor(np.array([10, TOKENS])), Tensor(np.zeros(TOKENS, np.int32))
    if name == "faulty":
        cell = Faulty()
        ms.jit(cell.construct)(Tensor(np.ones((TOKENS, WIDTH), np.float32)), ends, labels, ends)
    else:
        cell = Sound()
        gradients = ms.value_and_grad(cell, None, ParameterTuple(cell.trainable_params()))
        ms.jit(gradients)(Tensor(np.ones((TOKENS, 32)), ms.bfloat16), ends, labels, labels)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        print(error, file=sys.stderr)
    os._exit(0)
