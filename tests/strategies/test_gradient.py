"""EGL, BADGE and BAIT against autograd, explicit embeddings and dense matrices."""

import math

import numpy as np
import pytest
import torch
from test_ops import MEASURE, run_python

import alkernels as alk
from alkernels.strategies import gradient


def model(n, c, d, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(n, d, generator=g, dtype=dtype)
    weight = torch.randn(c, d, generator=g, dtype=dtype)
    return (h @ weight.T).softmax(1), h


def embeddings(probs, features, bias=False):
    """BADGE's gradients, [N, C, D], as they are defined."""
    h = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1) if bias else features
    likeliest = torch.nn.functional.one_hot(probs.argmax(1), probs.shape[1])
    return (probs - likeliest)[:, :, None] * h[:, None, :]


class TestEgl:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("squared", [True, False])
    def test_the_closed_form_is_autograd_on_a_linear_model(self, bias, squared):
        layer = torch.nn.Linear(5, 4, bias=bias, dtype=torch.float64)
        x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        probs = layer(x).softmax(1).detach()
        expected = torch.zeros(7, dtype=torch.float64)
        for i in range(7):
            for y in range(4):
                layer.zero_grad()
                torch.nn.functional.cross_entropy(layer(x[i : i + 1]), torch.tensor([y])).backward()
                length = sum(p.grad.square().sum() for p in layer.parameters())
                expected[i] += probs[i, y] * (length if squared else length.sqrt())
        closed = gradient.egl(probs, x, bias=bias, squared=squared)
        assert torch.allclose(closed, expected, rtol=1e-10)
        full = gradient.egl_full_gradient(layer, x, squared=squared)
        assert torch.allclose(full, expected, rtol=1e-6)

    def test_certain_predictions_have_nothing_to_learn(self):
        probs = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
        assert gradient.egl(probs, torch.ones(2, 4))[0] == 0
        assert gradient.egl(torch.ones(3, 1), torch.ones(3, 4)).tolist() == [0, 0, 0]

    def test_full_gradient_of_a_network_with_dropout_and_batch_norm(self):
        net = torch.nn.Sequential(
            torch.nn.Linear(6, 8),
            torch.nn.BatchNorm1d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(8, 3),
        )
        net[0].weight.requires_grad_(False)
        net.train()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
        scores = gradient.egl_full_gradient(net, x, chunk_size=2)
        assert all(m.training for m in net.modules())
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        net.eval()
        expected = []
        for i in range(5):
            p = net(x[i : i + 1]).softmax(1)[0].detach().double()
            total = 0.0
            for y in range(3):
                net.zero_grad()
                torch.nn.functional.cross_entropy(net(x[i : i + 1]), torch.tensor([y])).backward()
                total += p[y] * math.sqrt(
                    sum(float(q.grad.square().sum()) for q in net.parameters() if q.grad is not None)
                )
            expected.append(float(total))
        assert np.allclose(scores, expected, rtol=1e-5)
        top = gradient.egl_full_gradient(net, x, top_classes=2)
        assert top.shape == (5,) and not torch.allclose(top, scores)
        assert torch.allclose(gradient.egl_full_gradient(net, x, top_classes=3), scores)

    def test_bad_input(self):
        net = torch.nn.Linear(2, 2)
        with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
            gradient.egl_full_gradient(net, torch.zeros(2, 2), chunk_size=0)
        with pytest.raises(ValueError, match="finite logits, got NaN or infinity for row 1"):
            gradient.egl_full_gradient(net, torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]))
        with pytest.raises(ValueError, match="parameters that require gradients"):
            gradient.egl_full_gradient(net.requires_grad_(False), torch.zeros(2, 2))
        assert net.training
        with pytest.raises(ValueError, match="features must have as many rows as probs, got 3 and 2"):
            gradient.egl(torch.ones(2, 1), torch.zeros(3, 2))
        with pytest.raises(ValueError, match="features must be finite"):
            gradient.egl(torch.ones(2, 1), torch.tensor([[0.0], [torch.inf]]))


class TestBadge:
    @pytest.mark.parametrize("bias", [True, False])
    def test_factored_norms_and_distances_are_those_of_the_embeddings(self, bias):
        probs, h = model(60, 4, 6)
        g = embeddings(probs, h, bias).flatten(1)
        norm = (probs.square().sum(1) + 1 - 2 * probs.amax(1)) * (h.square().sum(1) + bias)
        assert torch.allclose(g.square().sum(1), norm, rtol=1e-12)
        picks = gradient.badge(probs, h, 20, bias=bias, generator=0)
        assert int(picks.indices[0]) == int(norm.argmax()) and picks.scores[0] == torch.inf
        for t in range(1, 20):
            d2 = (g[picks.indices[:t]] - g[picks.indices[t]]).square().sum(1).min()
            assert float(picks.scores[t]) == pytest.approx(float(d2), rel=1e-9)

    @pytest.mark.parametrize("bias", [True, False])
    def test_picks_are_those_of_k_means_plusplus_on_the_embeddings(self, bias):
        """The same draws: the factored rows are the explicit ones to the kernel."""
        probs, h = model(80, 3, 5, dtype=torch.float32)
        g = embeddings(probs, h, bias).flatten(1)
        start = int(g.square().sum(1).argmax())
        ours = gradient.badge(probs, h, 30, bias=bias, generator=7).indices
        assert torch.equal(ours, alk.kmeans_plusplus(g, 30, start=start, generator=7).indices)

    def test_the_law_of_the_second_pick(self):
        """Chi-square: a row follows the first with probability proportional to its squared distance."""
        probs, h = model(6, 3, 4, seed=3)
        g = embeddings(probs, h).flatten(1)
        first = int(g.square().sum(1).argmax())
        d2 = (g - g[first]).square().sum(1)
        expected = (d2 / d2.sum()).numpy()
        draws = 4000
        counts = np.bincount(
            [int(gradient.badge(probs, h, 2, generator=s).indices[1]) for s in range(draws)], minlength=6
        )
        assert counts[first] == 0
        others = np.arange(6) != first
        statistic = ((counts - draws * expected)[others] ** 2 / (draws * expected[others])).sum()
        assert statistic < 18.5  # 0.999 of chi-square with 4 degrees of freedom

    def test_uniform_first_pick_and_certain_rows(self):
        probs, h = model(30, 3, 4)
        firsts = {int(gradient.badge(probs, h, 1, first="uniform", generator=s).indices[0]) for s in range(40)}
        assert len(firsts) > 5
        certain = torch.nn.functional.one_hot(torch.arange(5) % 3, 3).double()
        picks = gradient.badge(certain, torch.ones(5, 2, dtype=torch.float64), 5, generator=0)
        assert picks.indices.tolist() == [0, 1, 2, 3, 4] and picks.scores[1:].tolist() == [0.0] * 4
        with pytest.raises(ValueError, match="first must be 'max_norm' or 'uniform', got 'max'"):
            gradient.badge(probs, h, 2, first="max")
        with pytest.raises(ValueError, match=r"batch_size must be between 0 and 30 \(rows of probs\), got 31"):
            gradient.badge(probs, h, 31)

    def test_memory_is_that_of_a_factor(self):
        """Nothing is C * D wide: 20000 gradients of 50 x 64 would take 256 MB; a factor [N, C] takes 4."""
        out = run_python(
            MEASURE
            + "g = torch.Generator().manual_seed(0)\n"
            + "p, h = torch.randn(20000, 50, generator=g).softmax(1), torch.randn(20000, 64, generator=g)\n"
            + "badge = alk.strategies.gradient.badge\n"
            + "badge(p[:100], h[:100], 5, generator=0)\n"
            + "print(extra(lambda: badge(p, h, 200, generator=0)))"
        )
        assert int(out) <= 70e6


@pytest.mark.parametrize("call", ["egl(p, h)", "badge(p, h, 5, generator=0)"])
def test_memory_with_few_classes_and_wide_rows(call):
    """Tiles are as long as both the classes and the features let them be."""
    code = (
        MEASURE
        + "g = torch.Generator().manual_seed(0)\n"
        + "p, h = torch.rand(60000, 2, generator=g).softmax(1), torch.randn(60000, 512, generator=g)\n"
        + "from alkernels.strategies.gradient import badge, egl\n"
        + "f = lambda p, h: "
        + call
        + "\nf(p[:100], h[:100])\n"
        + "print(extra(lambda: f(p, h)))"
    )
    # 10 MB as a rule; a machine short of memory may read pages of libraries anew, which only adds
    assert any(int(run_python(code)) <= 50e6 for _ in range(3))  # the features take 123 MB


def test_magnitudes_whose_squares_overflow():
    probs, h = model(6, 2, 3)
    for call in (gradient.egl, lambda p, x: gradient.badge(p, x, 2), lambda p, x: gradient.bait(p, x, 2)):
        with pytest.raises(ValueError, match="features must have squares that float64 can hold, got a magnitude of"):
            call(probs, h * 1e200)


def dense_bait(probs, h, b, labeled=None, lam=1.0):
    """BAIT from its definition, with all matrices built."""
    n, c = probs.shape
    d = h.shape[1]

    def v(p, x):
        return torch.stack([p[y].sqrt() * torch.kron(torch.eye(c, dtype=p.dtype)[y] - p, x) for y in range(c)], 1)

    vs = [v(p, x) for p, x in zip(probs, h, strict=True)]
    theirs = [] if labeled is None else [v(p, x) for p, x in zip(*labeled, strict=True)]
    fisher = sum(m @ m.T for m in vs + theirs) / (n + len(theirs))
    start = lam * torch.eye(c * d, dtype=probs.dtype)
    if theirs:
        start += sum(m @ m.T for m in theirs) / len(theirs) * (len(theirs) / (len(theirs) + b))
    vs = [m * math.sqrt(b / (len(theirs) + b)) for m in vs]

    def trace(rows):
        return float(torch.trace(torch.linalg.inv(start + sum(vs[i] @ vs[i].T for i in rows)) @ fisher))

    picks = []
    for _ in range(min(2 * b, n)):
        picks.append(min((i for i in range(n) if i not in picks), key=lambda i: trace([*picks, i])))
    while len(picks) > b:
        picks.remove(min(picks, key=lambda i: trace([j for j in picks if j != i])))
    return picks


class TestBait:
    @pytest.mark.parametrize("labeled", [False, True])
    def test_is_the_dense_computation(self, labeled):
        probs, h = model(25, 3, 4, seed=5)
        known = model(6, 3, 4, seed=6) if labeled else None
        expected = dense_bait(probs, h, 5, known, lam=0.5)
        more = {} if known is None else {"labeled_probs": known[0], "labeled_features": known[1]}
        picks = gradient.bait(probs, h, 5, regularization=0.5, **more)
        assert picks.indices.tolist() == expected
        assert (picks.scores > 0).all()

    def test_copies_go_by_index(self):
        """Gains of copies differ by rounding: the first copy comes first, and none without it."""
        for seed in range(10):
            probs, h = model(37, 3, 4, seed=seed)
            picks = gradient.bait(probs.repeat(3, 1), h.repeat(3, 1), 10).indices.tolist()
            for i, pick in enumerate(picks):
                assert all(first in picks[:i] for first in range(pick % 37, pick, 37)), picks

    def test_what_float64_cannot_invert(self):
        probs, h = model(25, 3, 4, seed=5)
        for scale, regularization in ((1e8, 1.0), (1.0, 1e-300), (1e20, 1.0)):
            with pytest.raises(
                ValueError, match=r"regularization must be at least .* beside features of this magnitude"
            ):
                gradient.bait(probs, h * scale, 5, regularization=regularization)
        with pytest.raises(ValueError, match=r"regularization must be at least .* beside features of this magnitude"):
            gradient.bait(probs, h, 5, labeled_probs=probs[:3], labeled_features=h[:3] * 1e8)

    @pytest.mark.parametrize("c", [2, 3, 6])
    def test_small_regularizations_keep_their_digits(self, c):
        """As small as it may be: the picks do not hang on the order of the pool, nor on the unit of the features."""
        for seed in range(6):
            probs, h = model(40, c, 4, seed=seed)
            least = 1.1e-8 * 4 * float(h.abs().max()) ** 2
            picks = gradient.bait(probs, h, 6, regularization=least).indices
            order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
            permuted = gradient.bait(probs[order], h[order], 6, regularization=least).indices
            assert torch.equal(order[permuted], picks)
            assert torch.equal(gradient.bait(probs, h * 1024, 6, regularization=least * 2**20).indices, picks)

    def test_is_the_dense_computation_at_a_small_regularization(self):
        for seed in range(4):
            probs, h = model(14, 3, 2, seed=seed)
            assert gradient.bait(probs, h, 4, regularization=1e-5).indices.tolist() == dense_bait(probs, h, 4, lam=1e-5)

    def test_all_rows_and_none(self):
        probs, h = model(6, 2, 3)
        assert sorted(gradient.bait(probs, h, 6).indices.tolist()) == list(range(6))
        assert gradient.bait(probs, h, 0).indices.shape == (0,)

    def test_bad_input(self):
        probs, h = model(6, 2, 3)
        with pytest.raises(ValueError, match=r"C \* D of at most 4096 .* got 2 \* 3000"):
            gradient.bait(probs, torch.zeros(6, 3000), 2)
        with pytest.raises(ValueError, match="labeled_probs and labeled_features must be given together"):
            gradient.bait(probs, h, 2, labeled_probs=probs)
        with pytest.raises(TypeError, match="regularization must be a number, got str '1'"):
            gradient.bait(probs, h, 2, regularization="1")
        with pytest.raises(ValueError, match="regularization must be above 0 and finite, got 0"):
            gradient.bait(probs, h, 2, regularization=0)
        with pytest.raises(ValueError, match="must be 2 and 3 wide, got 2 and 4"):
            gradient.bait(probs, h, 2, labeled_probs=probs, labeled_features=torch.zeros(6, 4))
