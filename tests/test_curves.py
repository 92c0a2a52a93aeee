"""Learning curves: paired starts, and the arithmetic of their table."""

import math

import pytest
import torch

from alkernels._curves import Curves, Problem, curves, first_rows, scaled, table


def test_paired_differences_by_hand():
    found = Curves("toy", [10, 20, 30])
    found.accuracy["random"] = torch.tensor([[0.5, 0.6, 0.7], [0.4, 0.5, 0.8]], dtype=torch.float64)
    found.accuracy["margin"] = torch.tensor([[0.5, 0.8, 0.8], [0.4, 0.5, 0.84]], dtype=torch.float64)
    found.seconds = {"random": 1.0, "margin": 2.0}
    mean, error, last, last_error = found.gain("margin")
    # means over the two later points: (.2 + .1) / 2 = .15 and (0 + .04) / 2 = .02; their mean .085, half their
    # difference .065 is the standard error of two; last points: .1 and .04
    assert mean == pytest.approx(0.085) and error == pytest.approx(0.065)
    assert last == pytest.approx(0.07) and last_error == pytest.approx(0.03)
    lines = table(found)
    assert "+0.085 ± 0.065" in lines[-1] and "+0.070 ± 0.030" in lines[-1] and "0.820" in lines[-1]
    one = Curves("toy", [10, 20], {name: a[:1, :2] for name, a in found.accuracy.items()}, found.seconds)
    assert math.isnan(one.gain("margin")[1])


def test_starts_take_classes_in_turn():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 2)
    for seed in range(5):
        rows = first_rows(labels, 9, seed)
        assert len(rows.unique()) == 9
        assert torch.bincount(labels[rows], minlength=3).tolist() in ([3, 4, 2], [4, 3, 2])
    assert not torch.equal(first_rows(labels, 9, 0), first_rows(labels, 9, 1))
    assert sorted(first_rows(labels, 82, 0).tolist()) == list(range(82))


def test_scaling_keeps_proportions():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1]) + 5
    y = scaled(x)
    assert torch.allclose(y.mean(0), torch.zeros(3), atol=1e-6) and float(y.std(correction=0)) == pytest.approx(
        1, abs=1e-5
    )
    ratio = torch.pdist(y) / torch.pdist(x)
    assert float(ratio.max() / ratio.min()) == pytest.approx(1, abs=1e-4)
    assert torch.equal(scaled(torch.ones(4, 2)), torch.zeros(4, 2))


def test_random_against_itself_is_no_gain():
    """The same start, seeds and networks: a strategy that picks as random does has the same curve."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(120, 5, generator=g)
    problem = Problem("toy", x, (x[:, 0] > 0).long(), torch.arange(90), torch.arange(90, 120))
    again = ("again", "random", {})
    found = curves(problem, [again], rounds=2, batch_size=6, seeds=2, start=6, head="linear", epochs=10, draws=5,
                   seed=0, progress=False)  # fmt: skip
    assert torch.equal(found.accuracy["again"], found.accuracy["random"])
    assert found.gain("again")[0] == 0 and len(found.accuracy["random"].unique()) > 2


def test_repetitions_share_no_random_numbers():
    """Networks of the same data and weights part by their dropout: the noise of one seed is not another's."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=g)
    problem = Problem("toy", x, (x[:, 0] > 0).long(), torch.arange(40), torch.arange(40, 60))
    seen = []
    original = torch.nn.functional.dropout

    def noted(values, p, training, inplace):
        out = original(values, p, training, inplace)
        if training:
            seen.append(tuple((out[0, :24] == 0).tolist()))
        return out

    torch.nn.functional.dropout = noted
    try:
        curves(problem, [], rounds=2, batch_size=4, seeds=3, start=4, head="mlp", epochs=1, draws=5, seed=0,
               progress=False)  # fmt: skip
    finally:
        torch.nn.functional.dropout = original
    assert len(seen) == 9 and len({*seen}) == 9
