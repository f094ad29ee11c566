"""bfloat16 of the Ascend forms, emulated: each form, and a network of two layers with heads and loss."""

from collections.abc import Iterable

import numpy as np
import pytest

from bench.ascend.emulation.__main__ import NARROW, WIDE
from bench.ascend.emulation.cases import BOUND, Row, rows
from bench.ascend.emulation.network import Comparison, Network, compare, draw
from bench.ascend.emulation.rounding import EXACT, to_bfloat16, to_bfloat16_away


def test_roundings_keep_eight_bits_and_differ_in_ties() -> None:
    unit = 2.0**-7  # of values from 1 to 2
    x = np.array([1, 1 + 0.5 * unit, 1 + 1.5 * unit, 1 + 0.51 * unit, -1 - 0.5 * unit, 0, 3e38], np.float32)
    even = [1, 1, 1 + 2 * unit, 1 + unit, -1, 0]
    away = [1, 1 + unit, 1 + 2 * unit, 1 + unit, -1 - unit, 0]
    assert to_bfloat16(x)[:6].tolist() == even
    assert to_bfloat16_away(x)[:6].tolist() == away
    assert to_bfloat16(x)[6] == pytest.approx(3e38, rel=2.0**-8)


def _check_rows(found: Iterable[Row]) -> None:
    """The Ascend forms are near one rounding; what they replace is not."""
    ratios = {(row.kind, row.form, row.size, row.result): row.ratio for row in found}
    for row in found:
        if row.kind == "ascend":
            assert row.ratio <= BOUND, row
        if row.form in ("attention by products", "embedding, bfloat16 sums"):
            assert row.ratio > BOUND, row
        if row.form == "129 columns" and row.result in ("dq", "dk"):
            assert row.ratio > max(BOUND, ratios["ascend", "attention", row.size, row.result]), row
    means = {row.form: row for row in found if row.size == "−4 … −2" and row.result == "value"}
    assert means["GELU, own"].mean > 0.5
    assert means["GELU, own"].ratio > BOUND
    assert means["GELU"].mean <= BOUND * means["GELU"].ideal_mean


def test_every_form_is_within_the_bound() -> None:
    _check_rows(list(rows(quick=True)))


@pytest.mark.slow
def test_every_form_is_within_the_bound_at_real_widths() -> None:
    _check_rows(list(rows(quick=False)))


def _check_network(found: Comparison) -> None:
    assert found.loss_error <= 2e-3
    assert found.whole >= 0.999
    assert {name: found.cosines[name] for name in found.large if found.cosines[name] < 0.999} == {}
    assert found.error > 1e-3  # bfloat16 rounds


def test_a_network_in_bfloat16_has_nearly_the_loss_and_gradients_of_float64() -> None:
    _check_network(compare(*NARROW))


@pytest.mark.slow
def test_a_wide_network_in_bfloat16_has_nearly_the_loss_and_gradients_of_float64() -> None:
    _check_network(compare(*WIDE))


def test_the_gradients_of_float64_are_those_of_its_loss() -> None:
    """Central difference in a direction that moves every weight; its error grows with the step squared."""
    sizes, lengths = NARROW
    masters, batch = draw(sizes, lengths)
    network = Network(EXACT, sizes, masters)
    network.forward(batch)
    network.backward()
    assert network.gradients.keys() == masters.keys()
    rng, step = np.random.default_rng(1), 1e-5
    direction = {name: rng.standard_normal(weight.shape) for name, weight in masters.items()}
    slope = sum((network.gradients[name] * own).sum() for name, own in direction.items())
    losses = [
        Network(EXACT, sizes, {n: masters[n] + sign * step * own for n, own in direction.items()}).forward(
            batch
        )
        for sign in (1, -1)
    ]
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-6)
