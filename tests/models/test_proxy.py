"""Selection via proxy."""

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import alkernels as alk


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def proxy_of(data, strategy, **more):
    fitted = []

    def fit_proxy(labeled):
        torch.manual_seed(len(fitted))
        net = nn.Linear(4, 3)
        fitted.append(labeled)
        return net

    chosen = alk.models.SelectionViaProxy(
        strategy, fit_proxy=fit_proxy, embed_proxy=lambda net: alk.collect(net, data[0], [strategy, "probs"]), **more
    )
    return chosen, fitted


def test_the_picks_are_the_strategys_on_the_proxy(data):
    chosen, fitted = proxy_of(data, "margin")
    picked = chosen.select(6, (data[0][:10], data[1][:10]), candidates=range(10, 80))
    probs = alk.collect(picked.proxy, data[0])["probs"]
    expected = alk.select("margin", 6, probs=probs, candidates=range(10, 80))
    assert torch.equal(picked.indices, expected.indices) and torch.equal(picked.scores, expected.scores)
    assert len(fitted) == 1 and picked.rank_correlation is None
    assert chosen.select(6, None).proxy is not picked.proxy  # a new one each time


@pytest.mark.parametrize("strategy, measure", [("margin", "margin"), ("badge", "entropy")])
@pytest.mark.parametrize("candidates", [None, list(range(3, 50))])
def test_rank_correlation(data, strategy, measure, candidates):
    chosen, _ = proxy_of(data, strategy)
    torch.manual_seed(5)
    target = alk.collect(nn.Linear(4, 3), data[0])
    picked = chosen.select(4, None, candidates=candidates, target=target, generator=0)
    score = getattr(alk.strategies.uncertainty, measure)
    rows = slice(None) if candidates is None else candidates
    own = score(alk.collect(picked.proxy, data[0])["probs"])[rows]
    expected = spearmanr(own, score(target["probs"])[rows]).statistic
    assert picked.rank_correlation == pytest.approx(float(expected))
    same = chosen.select(
        4, None, candidates=candidates, target=alk.collect(chosen.fit_proxy(None), data[0]), generator=0
    )
    assert same.rank_correlation != picked.rank_correlation


def test_a_target_that_is_the_proxy_ranks_alike(data):
    net = nn.Linear(4, 3)
    probs = alk.collect(net, data[0])
    chosen = alk.models.SelectionViaProxy("entropy", fit_proxy=lambda _: net, embed_proxy=lambda _: probs)
    assert chosen.select(3, None, target=probs).rank_correlation == pytest.approx(1)


def test_what_is_refused(data):
    for more, error, said in (
        ({"strategy": "margins"}, ValueError, "did you mean 'margin'"),
        ({"measure": "badge"}, ValueError, "measure must be a strategy that scores each row, got 'badge'"),
        ({"fit_proxy": 3}, TypeError, "fit_proxy must be callable, got int"),
    ):
        given = {"strategy": "badge", "fit_proxy": print, "embed_proxy": print} | more
        with pytest.raises(error, match=said):
            alk.models.SelectionViaProxy(given.pop("strategy"), **given)
    chosen, _ = proxy_of(data, "margin")
    with pytest.raises(ValueError, match="target must hold arrays of the same pool, got 79 rows for 80"):
        chosen.select(3, None, target={"probs": torch.full((79, 3), 1 / 3)})
