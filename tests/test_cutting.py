"""Where pipelines are cut, against trying all ways; by hand; and how replicas share hosts and rows."""

from __future__ import annotations

import math
import time
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miai_graph.errors import ArgumentError
from miai_graph.passes.cutting import HANDLED_BYTES_PER_SECOND, SLACK, Links, cut, stage_seconds
from miai_graph.passes.named_stages import cut_by_names
from miai_graph.passes.reasons import items_in_words, why_parts
from miai_graph.passes.replicas import cut_grid, grid, rows, shares
from miai_graph.plan.schedule import choose_parts

MEGABIT = 125_000.0


def equal_links(hosts: int, bandwidth: float = 1000 * MEGABIT, latency: float = 0.0) -> Links:
    return Links(np.full((hosts, hosts), bandwidth), np.full((hosts, hosts), latency))


def crossing_of(size_bytes: float, items: int) -> np.ndarray:
    crossing = np.full(items + 1, float(size_bytes))
    crossing[[0, -1]] = 0
    return crossing


def model_seconds(bounds, order, seconds, crossing, speeds, links) -> list[float]:
    """What `cutting` says a stage takes, item by item."""
    result = []
    for stage, (start, stop) in enumerate(pairwise(bounds)):
        host = order[stage]
        handled = (crossing[start] + crossing[stop]) / HANDLED_BYTES_PER_SECOND
        taken = [(sum(seconds[start:stop]) + handled) / speeds[host]]
        for place, other in ((start, order[stage - 1]), (stop, order[(stage + 1) % len(order)])):
            if links is not None and crossing[place]:
                taken.append(crossing[place] / links.bandwidth[host, other] + links.latency[host, other])
        result.append(max(taken))
    return result


def best_of_all(seconds, crossing, stages, speeds, links, allowed) -> float:
    places = [place for place in range(1, len(seconds)) if allowed is None or allowed[place]]
    count = min(stages, len(places) + 1)
    return min(
        max(model_seconds([0, *inner, len(seconds)], order, seconds, crossing, speeds, links))
        for inner in combinations(places, count - 1)
        for order in permutations(range(len(speeds)), count)
    )


@st.composite
def tasks(draw):
    items, stages = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    hosts = stages + draw(st.integers(0, 1))
    seconds = draw(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.5]), min_size=items, max_size=items))
    sizes = st.sampled_from([0.0, 1e3, 1e6, 3e7])
    crossing = [0.0, *draw(st.lists(sizes, min_size=items - 1, max_size=items - 1)), 0.0]
    speeds = draw(st.lists(st.sampled_from([0.1, 0.5, 1.0, 1.1, 4.0]), min_size=hosts, max_size=hosts))
    links = None
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 9)))
        bandwidth = rng.choice([1 * MEGABIT, 100 * MEGABIT, 1000 * MEGABIT], (hosts, hosts))
        links = Links(np.minimum(bandwidth, bandwidth.T), np.full((hosts, hosts), draw(st.sampled_from([0.0, 0.01]))))
    allowed = draw(st.none() | st.lists(st.booleans(), min_size=items + 1, max_size=items + 1))
    return seconds, crossing, stages, speeds, links, allowed


@given(tasks())
def test_no_other_cut_is_faster(task) -> None:
    seconds, crossing, stages, speeds, links, allowed = task
    found = cut(seconds, crossing, stages, speeds=speeds, links=links, allowed=allowed)
    places = [place for place in range(1, len(seconds)) if allowed is None or allowed[place]]
    assert found.stages == min(stages, len(places) + 1)
    assert (found.bounds[0], found.bounds[-1]) == (0, len(seconds))
    assert set(found.bounds[1:-1]) <= set(places)
    assert all(start < stop for start, stop in pairwise(found.bounds))
    assert len(set(found.order)) == len(found.order)
    expected = model_seconds(found.bounds, found.order, seconds, crossing, speeds, links)
    assert found.stage_seconds == pytest.approx(expected)
    given_bounds = stage_seconds(found.bounds, found.order, seconds, crossing, speeds, links)
    assert given_bounds.tolist() == list(found.stage_seconds)
    assert found.slowest_seconds <= best_of_all(*task) * (1 + SLACK) * (1 + 1e-6)
    assert 1 <= found.reason.count(". ") + 1 <= 3


def test_equal_layers_give_equal_cuts() -> None:
    seconds = np.full(8, 0.01)
    found = cut(seconds, crossing_of(1e5, 8), 2, links=equal_links(2))
    assert (found.bounds, found.order) == ((0, 4, 8), (0, 1))
    assert cut(seconds, np.zeros(9), 4).bounds == (0, 2, 4, 6, 8)
    assert cut(np.zeros(8), np.zeros(9), 2).bounds == (0, 4, 8)
    assert cut(np.full(1000, 0.01), crossing_of(1e4, 1000), 2).bounds == (0, 500, 1000)


def test_one_item_is_one_stage() -> None:
    found = cut([0.02], [0, 0], 3, speeds=[1, 4, 2])
    assert (found.bounds, found.order, found.stage_seconds) == ((0, 1), (1,), (0.005,))
    assert found.reason == (
        "1 stage instead of 3, for there are no more places to cut, on host 1: 5 ms of computing a step."
    )


def test_a_slow_host_gets_little() -> None:
    found = cut(np.full(11, 0.01), np.zeros(12), 2, speeds=[0.1, 1.0])
    sizes = dict(zip(found.order, np.diff(found.bounds), strict=True))
    assert sizes == {0: 1, 1: 10}


def test_a_slow_link_is_kept_out() -> None:
    """The two hosts with the slow link between them are not neighbours, and the cut is where little crosses."""
    links = equal_links(3)
    links.bandwidth[0, 1] = links.bandwidth[1, 0] = MEGABIT
    found = cut(np.full(6, 0.01), crossing_of(1e5, 6), 3, links=links)
    assert found.order in ((0, 2, 1), (1, 2, 0))
    crossing = crossing_of(1e6, 6)
    crossing[2] = 1e3
    found = cut(np.full(6, 0.01), crossing, 2, links=equal_links(2, MEGABIT))
    assert found.bounds == (0, 2, 6)


def test_fast_links_are_used_where_slow_ones_would_do() -> None:
    links = equal_links(3, 100 * MEGABIT)
    for a, b in ((0, 2), (2, 1)):
        links.bandwidth[a, b] = links.bandwidth[b, a] = 1000 * MEGABIT
    assert cut(np.full(6, 1.0), crossing_of(1e5, 6), 3, links=links).order == (0, 2, 1)


def test_cuts_within_slack_are_where_little_is_sent() -> None:
    crossing = crossing_of(4e5, 1000)
    crossing[497] = 1e3
    assert cut(np.full(1000, 1e-4), crossing, 2, links=equal_links(2)).bounds == (0, 497, 1000)


def test_stages_beside_the_slowest_are_even() -> None:
    assert cut([1.0, *[0.01] * 10], np.zeros(12), 3).bounds == (0, 1, 6, 11)


def test_more_hosts_than_can_be_permuted() -> None:
    speeds = [1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    links = equal_links(8, 10 * MEGABIT)
    chain = [0, 5, 3, 1, 7, 4, 6]
    for pair in pairwise(chain):
        links.bandwidth[pair] = links.bandwidth[pair[::-1]] = 1000 * MEGABIT
    found = cut(np.full(14, 0.01), crossing_of(5e5, 14), 7, speeds=speeds, links=links)
    assert found.order in (tuple(chain), tuple(reversed(chain)))
    assert np.diff(found.bounds).tolist() == [2] * 7
    assert len(cut(np.full(14, 0.01), np.zeros(15), 7, speeds=speeds).order) == 7


def test_two_thousand_items_are_cut_at_once() -> None:
    rng = np.random.default_rng(0)
    crossing = rng.uniform(1e4, 1e6, 2001)
    crossing[[0, -1]] = 0
    arguments = {"speeds": rng.uniform(0.5, 2, 4), "links": Links(rng.uniform(1e7, 1e9, (4, 4)), np.full((4, 4), 1e-4))}
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        cut(rng.uniform(0, 1e-3, 2000), crossing, 4, **arguments)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.5


def test_the_reason() -> None:
    seconds, crossing = [0.04, 0.0405, 0.03, 0.01], [0, 1.125e6, 1e6, 2e6, 0]
    names = {"labels": ["conv", "dense_2", "dense_3", "dense_4"], "hosts": ["ann", "bob", "eve"]}
    found = cut(seconds, crossing, 3, links=equal_links(3), **names)
    assert found.reason == (
        "3 stages: conv on ann (41 ms of computing a step); dense_2 on bob (43 ms); dense_3 to dense_4 on eve (41 ms). "
        "Stage 1 sets the pace; with a cut one layer earlier or later it would be 74 ms at best."
    )
    found = cut(seconds, crossing, 3, links=equal_links(3, 50 * MEGABIT), **names)
    assert found.reason.endswith(
        "Sending 1.1 MB from stage 0 to stage 1 and back takes 180 ms and sets the pace; with a cut one layer earlier "
        "or later it would be 320 ms at best. One host alone would take 120 ms, so cutting does not pay here."
    )
    assert cut([2.5, 3], [0, 0, 0], 2).reason == (
        "2 stages: item 0 on host 0 (2.5 s of computing a step); item 1 on host 1 (3 s). "
        "Stage 1 sets the pace; no faster cut was found."
    )
    assert cut([2e-6], [0, 0], 1).reason == "1 stage, on host 0: 2 µs of computing a step."


def test_a_layer_may_be_cut() -> None:
    assert items_in_words((0, 2, 3, 4, 6), ["conv", "pool", "pool", "pool", "pool", "dense"]) == [
        "conv to part of pool",
        "the rest of pool",
        "the rest of pool",
        "the rest of pool to dense",
    ]
    assert items_in_words((0, 1, 2), ["conv", "conv"]) == ["part of conv", "the rest of conv"]


def test_the_next_best_cut_is_at_another_layer() -> None:
    """Within a layer, a cut could be moved with little to tell."""
    seconds, labels = [0.01, 0.01, 0.01, 0.01, 0.03], ["a", "b", "b", "b", "c"]
    reason = cut(seconds, np.zeros(6), 2, labels=labels).reason
    assert reason.startswith("2 stages: a to b on host 0 (40 ms of computing a step); c on host 1 (30 ms).")
    assert reason.endswith("with a cut one layer earlier or later it would be 60 ms at best.")


@pytest.mark.parametrize(
    ("batch_size", "stage_seconds", "expected"),
    [
        (256, 0.111, "so a step should take 143 ms, with 1 instead 226 ms (the slowest stage takes 111 ms, and each "),
        (256, 0.0005, "so a step should take 5 ms, with 2 instead 6.8 ms (the slowest stage takes 500 µs, and each "),
        (1, 1.0, "there are no more rows"),
    ],
)
def test_why_there_are_so_many_micro_batches(batch_size, stage_seconds, expected) -> None:
    parts = choose_parts(2, batch_size, stage_seconds, 0.002)
    found = why_parts(2, parts, stage_seconds, 0.002)
    assert found.startswith(expected)
    assert found in (expected, expected + "micro-batch 2 ms besides)")


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        (([], [0], 1), {}),
        (([1.0], [0, 0, 0], 1), {}),
        (([1.0, -1.0], [0, 0, 0], 1), {}),
        (([1.0, math.nan], [0, 0, 0], 1), {}),
        (([1.0, 1.0], [0, 0, 5], 1), {}),
        (([1.0, 1.0], [0, 0, 0], 0), {}),
        (([1.0, 1.0], [0, 0, 0], 2), {"speeds": [1.0]}),
        (([1.0, 1.0], [0, 0, 0], 2), {"speeds": [1.0, 0.0]}),
        (([1.0, 1.0], [0, 0, 0], 2), {"allowed": [True]}),
        (([1.0, 1.0], [0, 0, 0], 2), {"links": equal_links(3)}),
        (([1.0, 1.0], [0, 0, 0], 2), {"links": equal_links(2, 0.0)}),
    ],
)
def test_figures_are_checked(arguments, keywords) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        cut(*arguments, **keywords)


def test_layers_may_be_put_on_stages_by_name() -> None:
    names = ["", "conv", "conv", "", "pool", "block/a", "block/b", "", "dense", ""]
    assert cut_by_names(names, [["conv", "pool"], ["block"], ["dense"]]) == (0, 5, 8, 10)
    assert cut_by_names(names, [["conv", "pool", "a"], ["block/b", "dense"]]) == (0, 6, 10)
    assert cut_by_names(names, [["conv", "pool", "block", "flatten"], ["dense"]], known=["", "in/flatten"]) == (
        0,
        8,
        10,
    )
    assert cut_by_names(["conv"], [["conv"]]) == (0, 1)
    # What is not named goes with what comes before.
    assert cut_by_names([*names, "loss"], [["conv"], ["dense"]]) == (0, 8, 11)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([["conv", "poool"], ["dense"]], "of conv, pool, dense; found 'poool'"),
        ([["conv", "dense"], ["pool"]], "found that 'dense' of stage 0 is computed after 'pool' of stage 1"),
        ([["conv", "pool"], ["dense", "conv"]], "'conv' on stage 0 and stage 1"),
        ([["conv", "pool"], [], ["dense"]], "found none on stage 1"),
        ([], r"names for each stage.*found \[\]"),
        (["conv", "pool"], "names for each stage"),
    ],
)
def test_stages_by_name_are_checked(stages, message) -> None:
    with pytest.raises(ArgumentError, match=message):
        cut_by_names(["conv", "", "pool", "dense"], stages)


def test_replicas_are_about_equally_fast() -> None:
    speeds = [1.0, 2.0, 1.1, 1.9, 0.2]
    chains = grid(speeds, None, 2, 2)
    assert sorted(host for chain in chains for host in chain) == [0, 1, 2, 3]
    totals = [sum(speeds[host] for host in chain) for chain in chains]
    assert totals == pytest.approx([3.0, 3.0])
    assert grid([1.0] * 3, None, 1, 3) == ((0,), (1,), (2,))
    assert sorted(sum(grid([1.0, *[0.5] * 11], equal_links(12), 2, 6), ())) == list(range(12))


def test_hosts_with_fast_links_are_in_one_replica() -> None:
    links = equal_links(4, 10 * MEGABIT)
    for a, b in ((0, 3), (1, 2)):
        links.bandwidth[a, b] = links.bandwidth[b, a] = 1000 * MEGABIT
    assert grid([1.01, 1.0, 0.99, 1.0], links, 2, 2) in (((0, 3), (1, 2)), ((0, 2), (1, 3)))
    assert grid([1.0] * 4, links, 2, 2) == ((0, 3), (1, 2))


def test_too_few_hosts_for_a_grid() -> None:
    with pytest.raises(ArgumentError, match="2 × 2 on 3 hosts"):
        grid([1.0] * 3, None, 2, 2)
    with pytest.raises(ArgumentError, match=r"shape \(4, 4\)"):
        grid([1.0] * 4, equal_links(3), 2, 2)


def test_a_grid_is_cut_at_the_same_places() -> None:
    speeds, links = [1.0, 0.5, 1.0, 0.5], equal_links(4)
    found = cut_grid(
        np.full(6, 0.01), crossing_of(1e5, 6), 2, 2, speeds=speeds, links=links, hosts=["a", "b", "c", "d"]
    )
    assert [[speeds[host] for host in chain] for chain in found.hosts] in ([[1.0, 0.5]] * 2, [[0.5, 1.0]] * 2)
    assert found.shares == pytest.approx((0.5, 0.5))
    assert found.bounds in ((0, 4, 6), (0, 2, 6))
    assert found.reason.endswith("The replicas take 50 and 50 % of the rows.")
    assert "on a and c (" in found.reason
    assert "on b and d (" in found.reason


def test_a_slow_replica_gets_fewer_rows() -> None:
    found = cut_grid(np.full(4, 0.01), np.zeros(5), 1, 3, speeds=[1.0, 2.0, 1.0])
    assert dict(zip(found.hosts, found.shares, strict=True)) == pytest.approx({(0,): 0.25, (1,): 0.5, (2,): 0.25})
    assert cut_grid([0.0], [0, 0], 1, 2, speeds=[1.0, 2.0]).shares == (0.5, 0.5)
    alone = cut_grid(np.full(4, 0.01), np.zeros(5), 2, 1, speeds=[1.0, 1.0])
    assert (alone.bounds, alone.hosts, alone.shares) == ((0, 2, 4), ((0, 1),), (1.0,))
    assert "replicas" not in alone.reason


@given(st.integers(0, 300), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_rows_are_shared_out_whole(batch_size, speeds) -> None:
    parts = shares(speeds)
    assert sum(parts) == pytest.approx(1)
    found = rows(batch_size, parts)
    assert sum(found) == batch_size
    if batch_size >= len(speeds):
        assert min(found) >= 1
        spread = len(speeds)
        assert all(abs(have - batch_size * part) < spread for have, part in zip(found, parts, strict=True))
    else:
        assert max(found) <= 1


def test_rows_of_known_shares() -> None:
    assert rows(64, (0.5, 0.5)) == (32, 32)
    assert rows(7, (0.5, 0.25, 0.25)) == (3, 2, 2)
    assert rows(4, (0.97, 0.01, 0.01, 0.01)) == (1, 1, 1, 1)
    assert rows(0, (0.5, 0.5)) == (0, 0)


@pytest.mark.parametrize("speeds", [[], [1.0, 0.0], [math.inf, 1.0], [math.nan]])
def test_speeds_of_replicas_are_checked(speeds) -> None:
    with pytest.raises(ArgumentError, match="expected finite speeds above 0"):
        shares(speeds)
