"""Each kernel's plain PyTorch twin: the definition in a few lines, one pass over the pool a pick.

The tests compare the kernels with these, and the benchmarks time them in the same process. They compute in the dtype of
the features: pass float64 for a specification, float32 for the rival that people use today.
"""

from __future__ import annotations

import torch

from alkernels._inputs import Neighbors, Selection, TopK

Rows = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class _Metric:
    """Squared distances from all rows to one row: ``n_i + n_c - 2 prod_f <x_i^f, c^f>``; or symmetric KL."""

    def __init__(self, features: Rows, labeled: Rows | None, metric: str) -> None:
        self.symmetric_kl = metric == "symmetric_kl"
        self.pool = self._prepare(features, metric)
        self.labeled = None if labeled is None else self._prepare(labeled, metric)
        self.norms = self._norms(self.pool, metric)
        self.labeled_norms = None if self.labeled is None else self._norms(self.labeled, metric)

    @staticmethod
    def _prepare(rows: Rows, metric: str) -> tuple[torch.Tensor, ...]:
        if isinstance(rows, tuple):
            return rows
        if metric == "symmetric_kl":
            return rows, rows.log()
        if metric == "cosine":
            length = rows.norm(dim=1, keepdim=True)
            return (torch.where(length > 0, rows / length, torch.zeros_like(rows)),)
        return (rows,)

    @staticmethod
    def _norms(factors: tuple[torch.Tensor, ...], metric: str) -> torch.Tensor:
        if metric == "cosine":
            return factors[0].new_ones(len(factors[0]))
        return torch.stack([(f * f).sum(1) for f in factors]).prod(0)

    def to_pick(self, i: int) -> torch.Tensor:
        return self._to([f[i] for f in self.pool], self.norms[i])

    def to_labeled(self, j: int) -> torch.Tensor:
        assert self.labeled is not None and self.labeled_norms is not None
        return self._to([f[j] for f in self.labeled], self.labeled_norms[j])

    def _to(self, center: list[torch.Tensor], norm: torch.Tensor) -> torch.Tensor:
        if self.symmetric_kl:
            (p, log_p), (q, log_q) = self.pool, center
            return torch.where(p == q, 0.0, (p - q) * (log_p - log_q)).sum(1) / 2
        product = self.pool[0] @ center[0]
        for factor, c in zip(self.pool[1:], center[1:], strict=True):
            product = product * (factor @ c)
        return (self.norms + norm - 2 * product).clamp_(min=0)


def _lowered_by_labeled(metric: _Metric) -> torch.Tensor:
    d2 = metric.norms.new_full((len(metric.norms),), torch.inf)
    for j in range(0 if metric.labeled is None else len(metric.labeled[0])):
        torch.minimum(d2, metric.to_labeled(j), out=d2)
    return d2


def k_center_greedy(
    features: Rows, k: int, *, labeled: Rows | None = None, start: int | None = None, metric: str = "euclidean"
) -> Selection:
    """Farthest-first traversal, one pick a pass; ties to the lowest index. See :func:`alkernels.k_center_greedy`.

    Without labelled rows `start` must be given.
    """
    distance = _Metric(features, labeled, metric)
    d2 = _lowered_by_labeled(distance)
    picks: list[int] = []
    squared = []
    for _ in range(k):
        # d2 is -1 for picked rows; torch.argmax promises no order among ties on every device, the CPU's takes the first
        pick = start if not picks and start is not None else int(d2.argmax())
        picks.append(pick)
        squared.append(d2[pick].clone())
        torch.minimum(d2, distance.to_pick(pick), out=d2)
        d2[pick] = -1
    scores = torch.stack(squared) if squared else d2.new_empty(0)
    scores = {"cosine": lambda: scores / 2, "euclidean": scores.sqrt, "symmetric_kl": lambda: scores}[metric]()
    return Selection(torch.tensor(picks, dtype=torch.int64, device=d2.device), scores)


def kmeans_plusplus(
    features: Rows,
    k: int,
    *,
    labeled: Rows | None = None,
    start: int | None = None,
    generator: torch.Generator | None = None,
) -> Selection:
    """D² seeding, one draw a pass. The same law as :func:`alkernels.kmeans_plusplus`, not the same draws."""
    distance = _Metric(features, labeled, "euclidean")
    d2 = _lowered_by_labeled(distance)
    picks: list[int] = []
    squared = []
    for _ in range(k):
        if not picks and start is not None:
            pick = start
        elif not picks and labeled is None:
            pick = int(torch.randint(len(d2), (), generator=generator))
        else:
            sums = d2.clamp(min=0).cumsum(0, dtype=torch.float64)
            if sums[-1] > 0:
                u = torch.rand((), dtype=torch.float64, generator=generator).to(sums.device)
                pick = min(int(torch.searchsorted(sums, u * sums[-1], right=True)), len(d2) - 1)
            else:
                pick = int((d2 >= 0).nonzero()[0])
        picks.append(pick)
        squared.append(d2[pick].clone())
        torch.minimum(d2, distance.to_pick(pick), out=d2)
        d2[pick] = -1
    scores = torch.stack(squared) if squared else d2.new_empty(0)
    return Selection(torch.tensor(picks, dtype=torch.int64, device=d2.device), scores)


def _entropies(configurations: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """``-Σ_m Σ_c Q log Q`` with ``Q[m, n, c] = configurations[m] · probs[n, :, c]``: one product a chunk."""
    m, (_, k, c) = len(configurations), probs.shape
    tiny = torch.finfo(probs.dtype).tiny  # 0 log 0 = 0, by a logarithm that vectorises (torch.xlogy's does not)
    chunks = []
    for some in probs.split(max(1, 4_000_000 // (m * c))):
        q = configurations @ some.transpose(0, 1).reshape(k, -1)
        chunks.append(-q.clamp(min=tiny).log_().mul_(q).sum(0, dtype=torch.float64).view(-1, c).sum(1))
    return torch.cat(chunks) if chunks else probs.new_empty(0, dtype=torch.float64)


def joint_entropy(probs: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
    """Entropies of all label configurations, enumerated. See :func:`alkernels.joint_entropy`."""
    configurations = probs.new_full((1, probs.shape[1]), 1 / probs.shape[1])
    for point in () if chosen is None else chosen:
        configurations = (configurations[:, None, :] * point.t()).flatten(0, 1)
    return _entropies(configurations, probs)


def bald(probs: torch.Tensor) -> torch.Tensor:
    """``H((1/K) Σ_k p_k) - (1/K) Σ_k H(p_k)``. See :func:`alkernels.bald`."""
    mean = probs.mean(1)
    return torch.special.entr(mean).sum(1) - torch.special.entr(probs).sum(2).mean(1)


def prediction_scores(probs: torch.Tensor, score: str) -> torch.Tensor:
    """A score of each row of [N, K, C], or [N, C] for one model. See :mod:`alkernels.ops.prediction_scores`."""
    draws = probs if probs.dim() == 3 else probs[:, None]
    mean = probs.mean(1) if probs.dim() == 3 else probs
    if score == "least_confident":
        return 1 - mean.amax(1)
    if score == "margin":
        two = mean.topk(min(2, mean.shape[1])).values
        return 1 - two[:, 0] + (two[:, 1] if two.shape[1] == 2 else 0)
    if score == "entropy":
        return torch.special.entr(mean).sum(1)
    if score == "mean_entropy":
        return torch.special.entr(draws).sum(2).mean(1)
    if score == "bald":
        return bald(draws)
    if score == "mean_std":
        return (draws - mean[:, None]).square().mean(1).sqrt().mean(1)
    if score == "max_disagreement":
        ratio = torch.where(draws > 0, draws / mean[:, None], 1.0)
        return (draws * ratio.log()).sum(2).amax(1)
    votes = torch.nn.functional.one_hot(draws.argmax(2), draws.shape[2]).to(draws.dtype).mean(1)
    return {"vote_entropy": torch.special.entr(votes).sum(1), "variation_ratio": 1 - votes.amax(1)}[score]


def epig(probs: torch.Tensor, target_probs: torch.Tensor) -> torch.Tensor:
    """``H(y) + E[H(y*)] - E[H(y, y*)]``, one target at a time. See :func:`alkernels.epig`."""
    entropy = torch.special.entr(probs.mean(1)).sum(1)
    of_targets = torch.special.entr(target_probs.mean(1)).sum(1).mean()
    joint = torch.stack([_entropies(t.t() / probs.shape[1], probs) for t in target_probs]).mean(0)
    return entropy + of_targets - joint


def batchbald(probs: torch.Tensor, batch_size: int) -> Selection:
    """Every candidate scored at every step, configurations enumerated. See :func:`alkernels.batchbald`."""
    noise = torch.special.entr(probs).sum(2, dtype=torch.float64).mean(1)
    configurations = probs.new_full((1, probs.shape[1]), 1 / probs.shape[1])
    picks: list[int] = []
    totals = [0.0]
    for _ in range(batch_size):
        total = _entropies(configurations, probs) - noise - noise[picks].sum()
        total[picks] = -torch.inf
        picks.append(int(total.argmax()))
        totals.append(float(total[picks[-1]]))
        configurations = (configurations[:, None, :] * probs[picks[-1]].t()).flatten(0, 1)
    return Selection(torch.tensor(picks, dtype=torch.int64), torch.tensor(totals, dtype=torch.float64).diff())


def _similarity(x: torch.Tensor, y: torch.Tensor, kernel: str, bandwidth: float) -> torch.Tensor:
    if kernel == "cosine":
        return x @ y.t()
    d2 = ((x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.t())).clamp_(min=0)
    return (d2 < bandwidth**2).to(x.dtype) if kernel == "tophat" else (d2 / -(bandwidth**2)).exp_()


def greedy_coverage(
    features: torch.Tensor,
    k: int,
    *,
    candidates: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    covered: torch.Tensor | None = None,
    kernel: str = "cosine",
    bandwidth: float = 1.0,
) -> Selection:
    """Every candidate's gain at every pick, similarities a chunk at a time. See :func:`alkernels.greedy_coverage`."""
    (x,) = _Metric._prepare(features, "cosine" if kernel == "cosine" else "euclidean")
    n = len(x)
    rows = torch.arange(n) if candidates is None else candidates
    worth = x.new_ones(n) if weights is None else weights.to(x.dtype)
    level = x.new_zeros(n) if covered is None else covered.to(x.dtype).clone()
    open_ = torch.ones(len(rows), dtype=torch.bool)
    picks: list[int] = []
    gains = []
    for _ in range(k):
        gain = torch.cat(
            [
                _similarity(x[some], x, kernel, bandwidth).sub_(level).clamp_(min=0) @ worth
                for some in rows.split(max(1, 8_000_000 // n))
            ]
        )
        gain[~open_] = -1
        best = int(gain.argmax())
        open_[best] = False
        picks.append(int(rows[best]))
        gains.append(gain[best])
        level = torch.maximum(level, _similarity(x[picks[-1] :][:1], x, kernel, bandwidth)[0])
    return Selection(torch.tensor(picks, dtype=torch.int64), torch.stack(gains) if gains else x.new_empty(0))


def knn(queries: torch.Tensor, points: torch.Tensor, k: int, *, metric: str = "euclidean") -> Neighbors:
    """A product and a topk a chunk of queries. See :func:`alkernels.knn`."""
    (x,), (y,) = _Metric._prepare(queries, metric), _Metric._prepare(points, metric)
    x_norms, y_norms = _Metric._norms((x,), metric), _Metric._norms((y,), metric)
    distances, indices = [], []
    for some, norms in zip(*(t.split(max(1, 8_000_000 // len(y))) for t in (x, x_norms)), strict=True):
        d2 = torch.addmm(y_norms, some, y.t(), alpha=-2).add_(norms[:, None])
        values, where = d2.topk(k, largest=False)
        distances.append(values.clamp_(min=0))
        indices.append(where)
    squared = torch.cat(distances)
    return Neighbors(squared / 2 if metric == "cosine" else squared.sqrt(), torch.cat(indices))


def pairwise_kl(p: torch.Tensor, q: torch.Tensor, *, k: int | None = None) -> torch.Tensor | TopK:
    """``Σ p log p - P log(Q)ᵀ``, and the k smallest a chunk of rows. See :func:`alkernels.pairwise_kl`.

    Probabilities above zero only: a zero in q gives NaN here where p has one too.
    """
    entropies, log_q = -torch.special.entr(p).sum(1), q.log().t()
    if k is None:
        return torch.addmm(entropies[:, None], p, log_q, alpha=-1)
    chunks = [
        torch.addmm(e[:, None], rows, log_q, alpha=-1).topk(k, largest=False)
        for rows, e in zip(*(t.split(max(1, 8_000_000 // len(q))) for t in (p, entropies)), strict=True)
    ]
    return TopK(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))
