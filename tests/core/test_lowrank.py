"""Laws of the two forms of a matrix of low rank, and of ranks under a budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.lowrank import best_allocation

from eckart.core.budget import allocate
from eckart.core.lowrank import LowRank, Pivoted, factor_numbers, pivoted_numbers

few = settings(max_examples=80, deadline=None)
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


@few
@given(m=sizes, n=sizes, seed=seeds, data=st.data())
def test_the_pivoted_form_is_the_product_in_fewer_numbers(m, n, seed, data):
    k, rng = data.draw(st.integers(0, min(m, n))), np.random.default_rng(seed)
    matrix = LowRank(rng.standard_normal((m, k)), rng.standard_normal((n, k)))
    found = Pivoted.of(matrix)
    np.testing.assert_allclose(found.dense(), matrix.dense(), atol=1e-9)
    assert sorted(found.order) == list(range(m))
    assert found.pivots.size + found.rest.size == pivoted_numbers(m, n, k) <= min(m * n, factor_numbers(m, n, k))
    np.testing.assert_allclose(found.pivots, matrix.dense()[found.order[:k]], atol=1e-12)


def test_the_coefficients_stay_small_where_rows_differ_in_size_by_far():
    rng = np.random.default_rng(0)
    matrix = LowRank(rng.standard_normal((300, 100)) * 10.0 ** rng.uniform(-6, 6, (300, 1)), np.eye(100))
    assert np.abs(Pivoted.of(matrix).rest).max() < 10


def test_columns_that_depend_on_each_other_are_refused():
    with pytest.raises(ValueError, match="2 columns of left depend on each other"):
        Pivoted.of(LowRank(np.ones((4, 2)), np.ones((3, 2))))


def test_numbers_of_full_rank_are_those_of_the_dense_matrix():
    assert pivoted_numbers(7, 5, 5) == 35
    assert factor_numbers(7, 5, 5) == 60


@st.composite
def curves(draw, convex):
    rng, costs, losses = np.random.default_rng(draw(seeds)), [], []
    for _ in range(draw(st.integers(1, 4))):
        choices = draw(st.integers(1, 5))
        costs.append(np.cumsum(rng.integers(1, 6, choices)))
        falls = rng.exponential(size=choices)
        losses.append(10 - np.cumsum(np.sort(falls)[::-1] / 1 if convex else falls))
    return costs, losses


@few
@given(problem=curves(convex=False), share=st.floats(0, 1))
def test_a_plan_stays_in_its_budget_and_near_the_best(problem, share):
    costs, losses = problem
    least, most = (sum(f(c) for c in costs) for f in (min, max))
    budget = least + share * (most - least)
    plan = allocate(costs, losses, budget)
    assert sum(c[i] for c, i in zip(costs, plan, strict=True)) <= budget
    found, best = sum(e[i] for e, i in zip(losses, plan, strict=True)), best_allocation(costs, losses, budget)
    largest = max(e.max() - e.min() for e in losses)
    assert best - 1e-9 <= found <= best + largest + 1e-9


@few
@given(problem=curves(convex=False), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_all_of_the_budget_takes_the_best_of_everything(problem, shares):
    costs, losses = problem
    plan = allocate(costs, losses, sum(c.max() for c in costs))
    assert [e[i] for e, i in zip(losses, plan, strict=True)] == [e.min() for e in losses]


@few
@given(seed=seeds, budget=st.integers(2, 80))
def test_steps_of_one_size_are_taken_exactly_as_an_exhaustive_search_would(seed, budget):
    rng = np.random.default_rng(seed)
    costs = [np.arange(5)] * 3
    losses = [np.concatenate([[0], -np.cumsum(np.sort(rng.exponential(size=4))[::-1])]) for _ in costs]
    plan = allocate(costs, losses, budget)
    found = sum(e[i] for e, i in zip(losses, plan, strict=True))
    assert found == pytest.approx(best_allocation(costs, losses, budget))


def test_a_choice_that_is_dearer_and_worse_is_never_taken():
    assert allocate([np.array([1, 5, 9])], [np.array([2.0, 1.0, 1.5])], 100) == [1]


def test_a_budget_that_cannot_be_met_is_refused():
    with pytest.raises(ValueError, match="cheapest choices cost 3 together, and the budget is 2"):
        allocate([np.array([1]), np.array([2])], [np.zeros(1), np.zeros(1)], 2)
    with pytest.raises(ValueError, match="a loss of layer 0 is not finite"):
        allocate([np.array([1])], [np.array([np.nan])], 2)
