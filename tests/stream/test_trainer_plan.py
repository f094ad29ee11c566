"""Which rows make step k, how many of each task, at which learning rate."""

from collections import defaultdict
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_shards import realistic_lengths

from janus.common.errors import UserError
from janus.prompts import TASK_ORDER
from trainer.config import counts_per_step, resolve, step_ratio
from trainer.stream.plan import ALIKE, Plan, by_hash, cut, deal, level, null_prompt, random_words

RATIOS = st.tuples(*[st.integers(0, 6)] * len(TASK_ORDER)).filter(any)


@given(ratio=RATIOS, times=st.integers(1, 20), micro_batch=st.integers(1, 40))
def test_counts_hold_the_ratio_exactly(ratio: tuple, times: int, micro_batch: int) -> None:
    asked = dict(zip(TASK_ORDER, ratio, strict=True))
    parts = step_ratio("mixed", asked, {})
    counts = counts_per_step(parts, times * sum(parts.values()))
    assert list(counts) == [task for task in TASK_ORDER if asked[task]]
    for left, right in pairwise(counts):
        assert counts[left] * asked[right] == counts[right] * asked[left]
    for count in counts.values():
        calls, rows = cut(count, micro_batch)
        assert rows <= micro_batch
        assert calls == -(-count // micro_batch)
        assert 0 <= calls * rows - count < calls


def test_fixed_samples_give_the_ratio_and_a_batch_that_cannot_hold_it_says_which_could() -> None:
    ratio = {"vqa": 5, "text": 1, "t2i": 4}
    with pytest.raises(UserError, match=r"12 samples cannot be vqa=5,text=1,t2i=4 exactly; use 10 or 20"):
        counts_per_step(ratio, 12)
    with pytest.raises(UserError, match=r"10 samples cannot be vqa=5,text=1,t2i=4,edit=2 exactly; use 12"):
        counts_per_step({**ratio, "edit": 2}, 10)
    assert [resolve({"stage": stage}).batch_size for stage in (1, 3)] == [8, 10]
    assert step_ratio("mixed", ratio, {"vqa": 30, "t2i": 20}) == {"vqa": 3, "t2i": 2}
    assert step_ratio("text", ratio, {}) == {"text": 1}


def _words(size: int, *key: object) -> np.ndarray:
    return random_words(size, "test", *key)


WEIGHTS = st.lists(st.floats(0.01, 50), min_size=1, max_size=60).map(np.array)


@settings(max_examples=200, deadline=None)
@given(weights=WEIGHTS, count=st.integers(1, 9), head=st.integers(0, 9), key=st.integers(0, 999))
def test_dealt_groups_weigh_nearly_the_same(weights: np.ndarray, count: int, head: int, key: int) -> None:
    head %= count
    words = _words(len(weights), key)
    order = deal(weights, words, count, head)
    assert sorted(order.tolist()) == list(range(len(weights)))
    np.testing.assert_array_equal(order, deal(weights, words, count, head))
    groups = max(len(weights) - head, 0) // count
    whole, loose = np.split(order[min(head, len(order)) :], [groups * count])
    assert len(loose) < count
    if groups:
        sums = weights[whole].reshape(groups, count).sum(1)
        # A round adds to a spread at most what its own weights differ by; alike ones come in any order.
        assert np.ptp(sums) <= np.ptp(weights[whole]) + count * weights.std() / ALIKE + 1e-9
        around = np.abs(weights - weights.mean())
        middling = np.delete(around, whole)
        assert not len(middling) or middling.max() <= around[whole].min()


def test_deals_differ_with_the_words_and_epochs_dealt_together_are_those_dealt_one_by_one() -> None:
    for size, count, head in ((9, 4, 0), (9, 4, 3), (3, 8, 2), (50, 3, 1)):
        weights, words = _words(size, 9) / 2.0**64, np.stack([_words(size, key) for key in range(5)])
        one_by_one = [deal(weights, of_epoch, count, head) for of_epoch in words]
        np.testing.assert_array_equal(deal(weights, words, count, head), one_by_one)
    weights = realistic_lengths("text")[0]
    one, other = (deal(weights, _words(len(weights), key), 4, 0) for key in range(2))
    assert (one == other).mean() < 0.02
    firsts = weights[one.reshape(-1, 4)[:, 0]]  # groups are not sorted
    assert abs(np.corrcoef(firsts, np.arange(len(firsts)))[0, 1]) < 0.2


def _realistic(task: str) -> tuple[np.ndarray, np.ndarray]:
    tokens, supervised = realistic_lengths(task)
    return tokens, tokens / tokens.mean() + supervised / supervised.mean()


@pytest.mark.parametrize("task", ["vqa", "t2i", "text"])
def test_samples_meet_others_in_the_next_epoch(task: str) -> None:
    """The evenness of groups leaves them nearly as random as a plain shuffle, twice as likely at most."""
    (_, weights), count, met = _realistic(task), 8, []
    for key in range(2):
        order = deal(weights, _words(len(weights), key), count, 0)
        groups = np.sort(order[: len(order) // count * count].reshape(-1, count))
        met.append({pair for group in groups.tolist() for pair in combinations(group, 2)})
    again = len(met[0] & met[1]) / len(met[0])
    assert again < 2 * (count - 1) / (len(weights) - 1) + 0.003


@pytest.mark.parametrize(
    ("task", "count"), [("vqa", 4), ("vqa", 5), ("vqa", 8), ("t2i", 4), ("t2i", 8), ("text", 64)]
)
def test_the_fullest_group_is_within_2_percent_of_the_mean(task: str, count: int) -> None:
    """Texts differ so much that it takes a larger group."""
    tokens, weights = _realistic(task)
    for key in range(3):
        order = deal(weights, _words(len(weights), key), count, key)
        groups = (len(order) - key) // count
        sums = tokens[order[key : key + groups * count]].reshape(groups, count).sum(1)
        assert sums.max() <= 1.02 * tokens.mean() * count


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=4), rows=st.integers(1, 9))
def test_calls_of_a_step_hold_its_samples_and_weigh_nearly_the_same(weights: list, rows: int) -> None:
    count = min(map(len, weights))
    steps = np.stack([some[:count] for some in weights])
    orders = level(steps, rows)
    for weight, order in zip(steps, orders, strict=True):
        assert sorted(order.tolist()) == list(range(count))
        np.testing.assert_array_equal(level(weight[None], rows)[0], order)
        whole = weight[order[: count // rows * rows]]
        if len(whole):
            assert np.ptp(whole.reshape(-1, rows).sum(1)) <= np.ptp(whole) + 1e-9


def _plan(seed: int, sizes: dict[str, int], counts: dict[str, int], rows: dict[str, int]) -> Plan:
    """A plan over rows whose weights are drawn from task and size alone."""
    weights = {task: _words(size, task) / 2.0**64 + 0.1 for task, size in sizes.items()}
    return Plan(seed, weights, counts, rows)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), count=st.integers(1, 9), rows=st.integers(1, 9), seed=st.integers(0, 2**40))
def test_each_row_once_before_any_comes_twice(size: int, count: int, rows: int, seed: int) -> None:
    plan, steps = _plan(seed, {"vqa": size}, {"vqa": count}, {"vqa": rows}), 25
    draws = [plan.draw("vqa", step) for step in range(1, steps + 1)]
    assert all(len(draw.indices) == len(draw.epochs) == count for draw in draws)
    # Within a step calls decide the order, so that epochs tell which comes before which.
    epochs, sequence = (np.concatenate([getattr(draw, k) for draw in draws]) for k in ("epochs", "indices"))
    assert sorted(epochs.tolist()) == (np.arange(steps * count) // size).tolist()
    assert all(draw.epochs.max() <= after.epochs.min() for draw, after in pairwise(draws))
    for epoch in range(epochs.max() + 1):
        seen = sequence[epochs == epoch].tolist()
        assert len(set(seen)) == len(seen)
        assert len(seen) == size or epoch == epochs.max()
    times = np.bincount(sequence, minlength=size)
    assert np.ptp(times) <= 1
    assert plan.epochs("vqa", steps) == len(sequence) / size


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 50), count=st.integers(1, 9), rows=st.integers(1, 9), steps=st.integers(1, 40))
def test_the_fullest_call_is_that_of_all_steps(size: int, count: int, rows: int, steps: int) -> None:
    rows = min(rows, count)
    plan = _plan(1, {"text": size}, {"text": count}, {"text": rows})
    sizes = (_words(size, "sizes") % np.uint64(900)).astype(np.int64)
    drawn = [plan.draw("text", step).indices for step in range(1, steps + 1)]
    fullest = max(sizes[of[at : at + rows]].sum() for of in drawn for at in range(0, count, rows))
    assert plan.sizes("text", steps, sizes).sum(1).max() == fullest


def test_the_fullest_call_of_a_long_run_is_not_missed_where_it_is_looked_for_in_parts() -> None:
    """Epochs of 7001 rows, 4 a step: the 5000 steps reach over 4096, where `fullest` begins anew."""
    # Equal weights: samples of one call are not together again in another epoch.
    plan = Plan(1, {"vqa": np.ones(7001)}, {"vqa": 4}, {"vqa": 2})
    drawn = plan.draw("vqa", 1, 5000).indices.reshape(5000, 4)
    for chosen in (drawn[4095][:2], drawn[4096][:2], drawn[4999][2:]):
        sizes = np.zeros(7001, np.int64)
        sizes[chosen] = 10
        assert plan.sizes("vqa", 5000, sizes).sum(1).max() == 20


@pytest.mark.parametrize(("size", "count"), [(23, 2), (27, 4), (30, 4), (43, 8)])
def test_steps_stay_whole_groups_over_the_end_of_an_epoch(size: int, count: int) -> None:
    """Every step within an epoch is one of its dealt groups; only those across two are made of the rest.

    Of evenly spaced weights an even number can be dealt nearly exactly; a shifted group would be far off.
    """
    weights = np.arange(1.0, size + 1)
    plan = Plan(5, {"t2i": weights}, {"t2i": count}, {"t2i": count})
    sums: dict[tuple[int, ...], list[float]] = defaultdict(list)
    across = set()
    for step in range(1, 4 * size + 1):
        draw = plan.draw("t2i", step)
        epochs = tuple(sorted({*draw.epochs.tolist()}))
        sums[epochs].append(weights[draw.indices].sum())
        across |= {step} if len(epochs) > 1 else set()
    assert across == {-(-epoch * size // count) for epoch in range(1, 4 * count + 1) if epoch * size % count}
    assert max(np.ptp(some) for epochs, some in sums.items() if len(epochs) == 1) < weights.std() / 2


def test_a_step_is_a_function_of_seed_and_number_alone() -> None:
    sizes, counts, rows = {"text": 50, "t2i": 30}, {"text": 3, "t2i": 2}, {"text": 2, "t2i": 2}
    forward, backward = _plan(7, sizes, counts, rows), _plan(7, sizes, counts, rows)
    for task in sizes:
        ahead = [forward.draw(task, step) for step in range(1, 40)]
        back = [backward.draw(task, step) for step in reversed(range(1, 40))][::-1]
        for name in ("indices", "epochs"):
            whole = getattr(forward.draw(task, 1, 39), name)
            for draws in (ahead, back):
                np.testing.assert_array_equal(np.concatenate([getattr(one, name) for one in draws]), whole)
    # One task's order does not depend on the others being there; another seed's, epoch's, task's is another.
    alone = _plan(7, {"text": 50}, {"text": 3}, {"text": 2})
    np.testing.assert_array_equal(alone.draw("text", 5).indices, forward.draw("text", 5).indices)
    orders, other_seed = (_plan(seed, sizes, counts, rows).orders for seed in (7, 8))
    assert not np.array_equal(orders("text", 0)[0], other_seed("text", 0)[0])
    assert not np.array_equal(orders("text", 0)[0], orders("text", 0)[1])
    same, count = (dict.fromkeys(("text", "t2i"), value) for value in (np.ones(50), 1))
    assert not np.array_equal(*(Plan(7, same, count, count).orders(task, 0)[0] for task in same))


def test_about_as_many_prompts_are_nulled_as_asked_and_other_ones_each_epoch() -> None:
    ids = [f"roco/{i}" for i in range(2000)]
    nulled = np.array([[null_prompt(1, name, epoch, 0.1) for name in ids] for epoch in range(3)])
    assert nulled.mean() == pytest.approx(0.1, abs=0.01)
    assert (nulled[0] & nulled[1]).mean() == pytest.approx(0.01, abs=0.01)
    assert [sum(null_prompt(1, name, 0, share) for name in ids) for share in (0.0, 1.0)] == [0, len(ids)]
    # Draws stay what they were in older versions.
    assert by_hash(["a", "b", "c", "d"]).tolist() == [3, 1, 2, 0]
    assert random_words(2, 0, "vqa", "order", 0).tolist() == [16291792567289745522, 4925234843638997292]
