"""A Llama with Janus-Pro's heads and loss on packed samples, forward and backward, in either arithmetic.

As the Ascend bodies compute it: products on bfloat16 copies of the weights, activations and the residual
stream in bfloat16, the loss in float32; a weight's gradient leaves its product in bfloat16, those of tables
and norms in float32. Nothing here is trained: the weights are drawn.

Shapes: P flat tokens, M of them of pictures, D width, F inner width, H heads, K head width, E width of a
code, N states that predict.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.ascend.emulation import forms
from bench.ascend.emulation.rounding import BFLOAT16, EXACT, Arithmetic, cosine, relative_error

EPS = 1e-6
Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """width: a multiple of the head width 128. codes: of the picture head, each `CODE` wide on its way in."""

    width: int
    inner: int
    layers: int
    vocabulary: int
    codes: int


HEAD, CODE = 128, 8


@dataclass(frozen=True)
class Batch:
    """One packed micro-batch: a span of tokens of pictures, embedded from codes, among tokens of text.

    text_rows_N, image_rows_N: tokens whose states predict text_labels_N and image_labels_N.
    """

    ends: np.ndarray
    ids_P: np.ndarray
    codes_M: np.ndarray
    picture: slice
    text_rows_N: np.ndarray
    text_labels_N: np.ndarray
    image_rows_N: np.ndarray
    image_labels_N: np.ndarray


def draw(sizes: Sizes, lengths: list[int], seed: int = 0) -> tuple[Weights, Batch]:
    """Weights in float32, as masters are, and a batch of samples of these lengths, half of it a picture."""
    rng = np.random.default_rng(seed)
    tokens, ends = sum(lengths), np.cumsum(lengths)
    d, f = sizes.width, sizes.inner
    shapes = {"embed": (sizes.vocabulary, d), "code": (sizes.codes, CODE), "norm": (d,)}
    for i in range(sizes.layers):
        own = {"in": (d,), "qkv": (3 * d, d), "o": (d, d), "post": (d,), "up": (2 * f, d), "down": (d, f)}
        shapes |= {f"{i}.{name}": shape for name, shape in own.items()}
    shapes |= {"head": (sizes.vocabulary, d)} | _mlp_shapes("aligner", CODE, d, d)
    shapes |= _mlp_shapes("image", d, d, sizes.codes)
    weights = {name: _drawn(rng, shape) for name, shape in shapes.items()}
    half = tokens // 2
    picture = slice(tokens - half, tokens)
    text_rows_N = np.arange(0, tokens - half, 3)
    return weights, Batch(
        ends,
        rng.integers(0, sizes.vocabulary, tokens),
        rng.integers(0, sizes.codes, half),
        picture,
        text_rows_N,
        rng.integers(0, sizes.vocabulary, len(text_rows_N)),
        np.arange(picture.start, tokens) - 1,
        rng.integers(0, sizes.codes, half),
    )


def _mlp_shapes(name: str, inputs: int, inner: int, outputs: int) -> dict[str, tuple[int, ...]]:
    first, second = (inner, inputs), (outputs, inner)
    return {f"{name}.0": first, f"{name}.0b": (inner,), f"{name}.1": second, f"{name}.1b": (outputs,)}


def _drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Around 1 for a norm's weight or a bias; else so that a product keeps the size of what it is given."""
    values = rng.standard_normal(shape)
    scaled = 1 + values / 10 if len(shape) == 1 else values * shape[-1] ** -0.5
    return scaled.astype(np.float32)


class Network:
    """The network in one arithmetic; `backward` uses what the last `forward` kept, and fills `gradients`."""

    def __init__(self, a: Arithmetic, sizes: Sizes, masters: Weights) -> None:
        """Tables are read in float32, the rest from working copies."""
        self.a, self.sizes, self.gradients = a, sizes, Weights()
        tables = ("embed", "code")
        self.weights = {n: w if n in tables else a.store(a.load(w)[0]) for n, w in masters.items()}
        self._kept: dict[str, Any] = {}  # arrays, or tuples of them

    def forward(self, batch: Batch) -> float:
        """The mean loss over all targets."""
        a, w = self.a, self.weights
        self.batch = batch
        places = [np.arange(own.stop - own.start) for own in forms.segments(batch.ends)]
        cos, sin = forms.angles(np.concatenate(places), HEAD)
        self.turns = (cos, sin), (cos * HEAD**-0.5, sin * HEAD**-0.5)  # of keys; of queries
        x_PD = a.store(w["embed"][batch.ids_P].astype(a.inner))
        codes_ME = a.store(w["code"][batch.codes_M].astype(a.inner))
        x_PD[batch.picture] = self._mlp("aligner", codes_ME)
        branch_PD = None
        for i in range(self.sizes.layers):
            x_PD, branch_PD = self._layer(f"{i}.", x_PD, branch_PD)
        _, hidden_PD = self._norm("norm", x_PD, branch_PD)
        self.targets = len(batch.text_labels_N) + len(batch.image_labels_N)
        logits_NV = self._linear("head", hidden_PD[batch.text_rows_N])
        text, self._kept["text"] = forms.cross_entropy(a, logits_NV, batch.text_labels_N)
        logits_NV = self._mlp("image", hidden_PD[batch.image_rows_N])
        image, self._kept["images"] = forms.cross_entropy(a, logits_NV, batch.image_labels_N)
        return (text + image) / self.targets

    def backward(self) -> None:
        """Fill `gradients` with those of the loss that `forward` gave."""
        a, batch, kept = self.a, self.batch, self._kept
        scale = 1 / self.targets
        dtext_NV = forms.cross_entropy_gradient(a, scale, kept["text"], batch.text_labels_N)
        dimage_NV = forms.cross_entropy_gradient(a, scale, kept["images"], batch.image_labels_N)
        tokens = len(batch.ids_P)
        dx_PD = forms.embed_gradient(a, self._back_linear("head", dtext_NV), batch.text_rows_N, tokens)
        dx_PD += forms.embed_gradient(a, self._back_mlp("image", dimage_NV), batch.image_rows_N, tokens)
        dx_PD = self._back_norm("norm", a.store(dx_PD))
        for i in reversed(range(self.sizes.layers)):
            dx_PD = self._back_layer(f"{i}.", dx_PD)
        dcodes_ME = self._back_mlp("aligner", dx_PD[batch.picture])
        dx_PD[batch.picture] = 0
        self.gradients["embed"] = forms.embed_gradient(a, dx_PD, batch.ids_P, self.sizes.vocabulary)
        self.gradients["code"] = forms.embed_gradient(a, dcodes_ME, batch.codes_M, self.sizes.codes)

    def _layer(self, name: str, x_PD: np.ndarray, branch_PD: np.ndarray | None) -> forms.Arrays:
        """The residual stream, and what is to be added to it."""
        a, kept, (turns, query_turns) = self.a, self._kept, self.turns
        x_PD, normed_PD = self._norm(name + "in", x_PD, branch_PD)
        parts = np.split(self._linear(name + "qkv", normed_PD), 3, -1)
        q, k, v = (part.reshape(len(x_PD), -1, HEAD) for part in parts)
        qkv = forms.rotary(a, q, *query_turns), forms.rotary(a, k, *turns), v
        attended = forms.attention(a, qkv, self.batch.ends, 1.0, True)
        kept[name + "attended"] = qkv, attended
        attended_PD = self._linear(name + "o", attended[0].reshape(x_PD.shape))
        x_PD, normed_PD = self._norm(name + "post", x_PD, attended_PD)
        kept[name + "both"] = self._linear(name + "up", normed_PD)
        return x_PD, self._linear(name + "down", forms.swiglu(a, kept[name + "both"]))

    def _back_layer(self, name: str, dx_PD: np.ndarray) -> np.ndarray:
        a, kept, (turns, query_turns) = self.a, self._kept, self.turns
        dboth_P2F = forms.swiglu_gradient(a, self._back_linear(name + "down", dx_PD), kept[name + "both"])
        dnormed_PD = self._back_linear(name + "up", dboth_P2F)
        dx_PD = a.store(dx_PD + self._back_norm(name + "post", dnormed_PD))
        dout = self._back_linear(name + "o", dx_PD).reshape(len(dx_PD), -1, HEAD)
        qkv, attended = kept[name + "attended"]
        dq, dk, dv = forms.attention_gradient(a, dout, qkv, attended, self.batch.ends, 1.0, True)
        dq, dk = forms.rotary_gradient(a, dq, *query_turns), forms.rotary_gradient(a, dk, *turns)
        dqkv = np.concatenate([part.reshape(dx_PD.shape) for part in (dq, dk, dv)], -1)
        return a.store(dx_PD + self._back_norm(name + "in", self._back_linear(name + "qkv", dqkv)))

    def _linear(self, name: str, x_PD: np.ndarray) -> np.ndarray:
        self._kept[name] = x_PD
        return forms.product(self.a, x_PD, self.weights[name].T)

    def _back_linear(self, name: str, dy_PF: np.ndarray) -> np.ndarray:
        self.gradients[name] = forms.product(self.a, dy_PF.T, self._kept[name])
        return forms.product(self.a, dy_PF, self.weights[name])

    def _mlp(self, name: str, x_PD: np.ndarray) -> np.ndarray:
        a, w = self.a, self.weights
        self._kept[name] = a.store(self._linear(name + ".0", x_PD) + w[name + ".0b"])
        return a.store(self._linear(name + ".1", forms.gelu(a, self._kept[name])) + w[name + ".1b"])

    def _back_mlp(self, name: str, dy_PF: np.ndarray) -> np.ndarray:
        self.gradients[name + ".1b"] = self.a.store(dy_PF.sum(0))
        dinner = forms.gelu_gradient(self.a, self._back_linear(name + ".1", dy_PF), self._kept[name])
        self.gradients[name + ".0b"] = self.a.store(dinner.sum(0))
        return self._back_linear(name + ".0", dinner)

    def _norm(self, name: str, x_PD: np.ndarray, branch_PD: np.ndarray | None) -> forms.Arrays:
        """x with the branch added, and its norm."""
        if branch_PD is None:
            y_PD, root_P1 = forms.rms_norm(self.a, x_PD, self.weights[name], EPS)
        else:
            x_PD, y_PD, root_P1 = forms.add_rms_norm(self.a, x_PD, branch_PD, self.weights[name], EPS)
        self._kept[name] = x_PD, root_P1
        return x_PD, y_PD

    def _back_norm(self, name: str, dy_PD: np.ndarray) -> np.ndarray:
        x_PD, root_P1 = self._kept[name]
        dx_PD, self.gradients[name] = forms.rms_norm_gradient(
            self.a, dy_PD, x_PD, root_P1, self.weights[name]
        )
        return dx_PD


@dataclass(frozen=True)
class Comparison:
    """loss: of float64. loss_error: relative. cosines: of the gradient of each tensor; whole: of all joined.

    large: tensors of two axes. error: of the whole gradient, relative to its norm.
    """

    loss: float
    loss_error: float
    cosines: dict[str, float]
    large: frozenset[str]
    whole: float
    error: float

    @property
    def lowest(self) -> float:
        """The lowest cosine of a large tensor."""
        return min(self.cosines[name] for name in self.large)


def compare(sizes: Sizes, lengths: list[int]) -> Comparison:
    """Loss and gradients in emulated bfloat16 against float64 with the unrounded masters."""
    masters, batch = draw(sizes, lengths)
    losses, gradients = [], []
    for arithmetic in (EXACT, BFLOAT16):
        network = Network(arithmetic, sizes, masters)
        losses.append(network.forward(batch))
        network.backward()
        gradients.append(network.gradients)
    exact, found = gradients
    joined = [np.concatenate([own[name].ravel() for name in exact]) for own in (found, exact)]
    return Comparison(
        losses[0],
        abs(losses[1] / losses[0] - 1),
        {name: cosine(found[name], exact[name]) for name in exact},
        frozenset(name for name in exact if exact[name].ndim == 2),
        cosine(*joined),
        relative_error(*joined),
    )
