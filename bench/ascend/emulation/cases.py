"""Errors of each form in emulated bfloat16, beside those of float64 rounded once.

Inputs hold bfloat16 values, so all error is the form's own. An error is ‖found − exact‖ / ‖exact‖, its ratio
that to the error of the exact result rounded once to bfloat16.

Shapes: P flat tokens, D width, F inner width, H heads, S tokens of a segment, K head width, N states that
predict, V classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.ascend.emulation import before, forms
from bench.ascend.emulation.rounding import (
    BFLOAT16,
    EXACT,
    mean_relative_error,
    relative_error,
    to_bfloat16,
)

BOUND = 1.5
"""Largest ratio that a form of the Ascend body may have."""
EPS = 1e-6
HEAD = 128
GRADIENTS = "dq", "dk", "dv"


@dataclass(frozen=True)
class Row:
    """One result of one form. kind: `ascend`, held to BOUND; `before`, a form that it replaces; `through`,
    an Ascend form behind another that has rounded already, held to nothing.

    ideal, error: relative. ideal_mean, mean: of the relative errors of single elements.
    """

    form: str
    size: str
    result: str
    kind: str
    ideal: float
    error: float
    ideal_mean: float
    mean: float

    @property
    def ratio(self) -> float:
        """How many times the error of the exact result rounded once."""
        return self.error / self.ideal


class _Cases:
    """Draws inputs, and notes errors."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.rows: list[Row] = []

    def draw(self, *shape: int, spread: float = 1.0, around: float = 0.0) -> np.ndarray:
        """Normal values that bfloat16 holds."""
        return to_bfloat16(around + spread * self.rng.standard_normal(shape))

    def note(
        self, form: str, size: str, result: str, found: np.ndarray, exact: np.ndarray, kind: str = "ascend"
    ) -> None:
        """Add a row: how far `found` is from `exact`, and how far rounding alone would be."""
        errors = [
            measure(own, exact)
            for measure in (relative_error, mean_relative_error)
            for own in (to_bfloat16(exact), found)
        ]
        self.rows.append(Row(form, size, result, kind, *errors))


def _products(c: _Cases, tokens: int, width: int, inner: int) -> None:
    x_PD, w_FD, dy_PF = c.draw(tokens, width), c.draw(inner, width), c.draw(tokens, inner)
    size = f"{tokens} × {width} × {inner}"
    for result, left, right in (("value", x_PD, w_FD.T), ("dx", dy_PF, w_FD), ("dw", dy_PF.T, x_PD)):
        found, exact = (forms.product(a, left, right) for a in (BFLOAT16, EXACT))
        c.note("product", size, result, found, exact)


def _norms(c: _Cases, tokens: int, width: int) -> None:
    x_PD, dy_PD, weight_D = c.draw(tokens, width), c.draw(tokens, width), c.draw(width, spread=0.1, around=1)
    size = f"{tokens} × {width}"
    results = []
    for a in (BFLOAT16, EXACT):
        y_PD, root_P1 = forms.rms_norm(a, x_PD, weight_D, EPS)
        results.append((y_PD, *forms.rms_norm_gradient(a, dy_PD, x_PD, root_P1, weight_D)))
    for result, found, exact in zip(("value", "dx", "dw"), *results, strict=True):
        c.note("RMSNorm", size, result, found, exact)
    branch_PD = c.draw(tokens, width, spread=0.5)
    added = [forms.add_rms_norm(a, x_PD, branch_PD, weight_D, EPS) for a in (BFLOAT16, EXACT)]
    for result, found, exact in zip(("sum", "value"), *(own[:2] for own in added), strict=True):
        c.note("sum and RMSNorm", size, result, found, exact)


def _layer_norms(c: _Cases, tokens: int, width: int) -> None:
    x_PD, dy_PD, weight_D = c.draw(tokens, width), c.draw(tokens, width), c.draw(width, spread=0.1, around=1)
    bias_D = c.draw(width, spread=0.1)
    results = [
        (
            forms.layer_norm(a, x_PD, weight_D, bias_D, EPS),
            *forms.layer_norm_gradient(a, dy_PD, x_PD, weight_D, EPS),
        )
        for a in (BFLOAT16, EXACT)
    ]
    for result, found, exact in zip(("value", "dx", "dw", "db"), *results, strict=True):
        c.note("LayerNorm", f"{tokens} × {width}", result, found, exact)


def _rotary(c: _Cases, tokens: int, width: int) -> None:
    """Against exact angles: what rounding cos and sin costs is in it."""
    x_PHK, dy_PHK = (c.draw(tokens, width // HEAD, HEAD) for _ in range(2))
    cos, sin = forms.angles(np.arange(tokens), HEAD)
    found, exact = (
        (forms.rotary(a, x_PHK, cos, sin), forms.rotary_gradient(a, dy_PHK, cos, sin))
        for a in (BFLOAT16, EXACT)
    )
    c.note("rotary", f"{tokens} × {width}", "value", found[0], exact[0])
    c.note("rotary", f"{tokens} × {width}", "dx", found[1], exact[1])


def _swiglu(c: _Cases, tokens: int, inner: int) -> None:
    both_P2F, dy_PF = c.draw(tokens, 2 * inner), c.draw(tokens, inner)
    found, exact = (
        (forms.swiglu(a, both_P2F), forms.swiglu_gradient(a, dy_PF, both_P2F)) for a in (BFLOAT16, EXACT)
    )
    c.note("SwiGLU", f"{tokens} × {inner}", "value", found[0], exact[0])
    c.note("SwiGLU", f"{tokens} × {inner}", "dx", found[1], exact[1])


def _gelu(c: _Cases, x: np.ndarray, size: str) -> None:
    dy = np.ones_like(x)
    exact = forms.gelu(EXACT, x), forms.gelu_gradient(EXACT, dy, x)
    own, below = before.gelu(x)
    c.note("GELU", size, "value", forms.gelu(BFLOAT16, x), exact[0])
    c.note("GELU", size, "dx", forms.gelu_gradient(BFLOAT16, dy, x), exact[1])
    c.note("GELU, own", size, "value", own, exact[0], "before")
    c.note("GELU, own", size, "dx", before.gelu_gradient(dy, x, below), exact[1], "before")


def _attention(
    c: _Cases, length: int, heads: int, head_size: int, spread: float, causal: bool = True
) -> None:
    """spread: of the scores; q is already scaled. Backward against what it is given, then from q, k, v on."""
    shape = length, heads, head_size
    q, k = (c.draw(*shape, spread=(spread * scale) ** 0.5) for scale in (1 / head_size, 1))
    v, dout = (c.draw(*shape) for _ in range(2))
    qkv = q, k, v
    rest = np.array([length]), 1.0, causal
    exact_qkv = q.astype(np.float64), k.astype(np.float64), v.astype(np.float64)
    kept, exact = forms.attention(BFLOAT16, qkv, *rest), forms.attention(EXACT, exact_qkv, *rest)
    found = forms.attention_gradient(BFLOAT16, dout, qkv, kept, *rest)
    given = forms.attention_gradient(EXACT, dout, exact_qkv, (kept[0], *exact[1:]), *rest)
    whole = forms.attention_gradient(EXACT, dout, exact_qkv, exact, *rest)
    size = f"{length} × {heads} × {head_size}, scores ±{spread:g}" + ("" if causal else ", no mask")
    c.note("attention", size, "value", kept[0], exact[0])
    for name, own, own_given in zip(GRADIENTS, found, given, strict=True):
        c.note("attention", size, name, own, own_given)
    for name, own, own_whole in zip(GRADIENTS, found, whole, strict=True):
        c.note("attention, both ways", size, name, own, own_whole, "through")
    if causal:
        by_head = [np.ascontiguousarray(x.transpose(1, 0, 2)) for x in (q, k, v, dout, kept[0], exact[0])]
        _columns(c, size, by_head, [x.transpose(1, 0, 2) for x in given])


def _columns(c: _Cases, size: str, arrays: list[np.ndarray], given: list[np.ndarray]) -> None:
    """The CPU's forms: forward by products; backward with a column K + 1, from what flash's forward gave."""
    q, k, v, dout, out, exact = arrays
    c.note("attention by products", size, "value", before.attention(q, k, v), exact, "before")
    probs = before.probabilities(np.matmul(q, forms.transposed(k)))
    found = before.attention_gradient(dout, q, k, v, (out, probs))
    for name, own, own_given in zip(GRADIENTS, found, given, strict=True):
        c.note(f"{HEAD + 1} columns", size, name, own, own_given, "before")


def _cross_entropy(c: _Cases, states: int, classes: int) -> None:
    logits_NV, labels_N = c.draw(states, classes), c.rng.integers(0, classes, states)
    results = []
    for a in (BFLOAT16, EXACT):
        loss, log_p_NV = forms.cross_entropy(a, logits_NV, labels_N)
        results.append((np.array(loss), forms.cross_entropy_gradient(a, 1 / states, log_p_NV, labels_N)))
    for result, found, exact in zip(("value", "dx"), *results, strict=True):
        c.note("cross-entropy", f"{states} × {classes}", result, found, exact)


def _tables(c: _Cases, tokens: int, width: int) -> None:
    """Half of the tokens are one code, as a white area's are."""
    dy_PD = c.draw(tokens, width)
    ids_P = np.where(np.arange(tokens) % 2, 0, np.arange(tokens))
    exact = forms.embed_gradient(EXACT, dy_PD, ids_P, tokens)
    found = forms.embed_gradient(BFLOAT16, dy_PD, ids_P, tokens)
    c.note("embedding", f"{tokens} × {width}", "dw", found, exact)
    summed = before.embed_gradient(dy_PD, ids_P, tokens)
    c.note("embedding, bfloat16 sums", f"{tokens} × {width}", "dw", summed, exact, "before")


def rows(quick: bool) -> Iterator[Row]:
    """All figures. quick: narrow and short, for the tests."""
    c = _Cases()
    tokens, length, heads = (64, 128, 2) if quick else (256, 1024, 4)
    for width, inner in [(256, 704)] if quick else [(2048, 5632), (4096, 11008)]:
        _products(c, tokens, width, inner)
        _norms(c, tokens, width)
        _rotary(c, length, width)
        _swiglu(c, tokens, inner)
        _tables(c, 576, width)
    _layer_norms(c, tokens, 1024)
    _gelu(c, np.unique(to_bfloat16(np.linspace(-4, -2, 10_000))), "−4 … −2")
    _gelu(c, c.draw(tokens, 1024), f"{tokens} × 1024")
    for spread in (1.0, 4.0):
        _attention(c, length, heads, HEAD, spread)
    _attention(c, 16, 64, HEAD, 1.0)
    _attention(c, 64 if quick else 576, 16, 64, 1.0, causal=False)
    _cross_entropy(c, 16, 1024 if quick else 102_400)
    yield from c.rows
