"""Bayes by backprop: layers against their formulas, the KL term against closed forms, and draws for a pool."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.distributions import kl_divergence as divergence
from torch.nn import functional as F

import alkernels as alk
from alkernels.models import bayes
from alkernels.models.bayes import (
    BayesByBackprop,
    BayesConv2d,
    BayesLinear,
    GaussianPrior,
    ScaleMixturePrior,
    kl_divergence,
    minibatch_weights,
    to_bayesian,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def draws(posterior, x, batch_size):
    """Logits [N, K, C] of a pool, batch by batch."""
    for network in posterior.networks:
        network.eval()
    with torch.no_grad(), posterior.drawing() as outputs:
        parts = [torch.stack(list(outputs(lambda m, some=some: m(some))), 1) for some in x.split(batch_size)]
    return torch.cat(parts)


def scattered(layer, generator):
    """Means and deviations that differ from weight to weight."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            low, high = (-3.0, 0.0) if name.endswith("rho") else (-1.0, 1.0)
            parameter.uniform_(low, high, generator=generator)
    return layer


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 8), nn.ReLU(), nn.Linear(8, 3)
    )


class TestLayers:
    def test_weights_are_the_mean_and_scaled_noise(self, rng):
        layer = scattered(BayesLinear(4, 3, sampling="weight").double(), rng)
        x = torch.randn(5, 4, dtype=torch.float64, generator=rng)
        torch.manual_seed(1)
        out = layer(x)
        torch.manual_seed(1)
        eps, bias_eps = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
        weight = layer.weight + (1 + layer.weight_rho.exp()).log() * eps
        bias = layer.bias + (1 + layer.bias_rho.exp()).log() * bias_eps
        assert torch.allclose(out, x @ weight.T + bias, rtol=1e-12)
        assert torch.equal(layer.weight_noise, eps) and torch.equal(layer.bias_noise, bias_eps)
        assert torch.allclose(layer.eval()(x), x @ layer.weight.T + layer.bias, rtol=1e-12)

    def test_a_convolution_by_hand(self, rng):
        layer = scattered(BayesConv2d(2, 3, 2, stride=2, sampling="weight").double(), rng)
        x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=rng)
        out = layer(x)
        weight = layer.weight + F.softplus(layer.weight_rho) * layer.weight_noise
        bias = layer.bias + F.softplus(layer.bias_rho) * layer.bias_noise
        for channel in range(3):
            for i in range(2):
                for j in range(2):
                    window = x[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                    wanted = (window * weight[channel]).sum() + bias[channel]
                    assert out[0, channel, i, j].item() == pytest.approx(wanted.item(), rel=1e-12)

    @pytest.mark.parametrize(
        "options",
        [
            {"stride": (2, 1), "padding": (1, 2)},
            {"padding": "same", "dilation": 2, "bias": False},
            {"padding": "valid", "groups": 2},
            {"padding": 2, "padding_mode": "circular"},
            {"padding": "same", "padding_mode": "reflect"},
        ],
    )
    def test_convolutions_have_all_options(self, rng, options):
        layer = scattered(BayesConv2d(2, 4, 3, **options).double(), rng)
        plain = nn.Conv2d(2, 4, 3, **options).double()
        x = torch.randn(2, 2, 7, 6, dtype=torch.float64, generator=rng)

        def run(x, weights):
            plain.load_state_dict(weights)
            return plain(x)

        mean = run(x, {name: m for name, m, _ in layer.gaussians()})
        assert torch.allclose(layer.eval()(x), mean, rtol=1e-12)
        layer.train().sampling = "weight"
        out = layer(x)
        drawn = {name: m + d * getattr(layer, f"{name}_noise") for name, m, d in layer.gaussians()}
        assert torch.allclose(out, run(x, drawn), rtol=1e-12) and not torch.allclose(out, mean)
        layer.sampling = "local"
        torch.manual_seed(5)
        out = layer(x)
        torch.manual_seed(5)
        variance = run(x**2, {name: d**2 for name, _, d in layer.gaussians()})
        assert torch.allclose(out, mean + variance.sqrt() * torch.randn_like(mean), rtol=1e-12)

    @pytest.mark.parametrize("sampling", ["weight", "local"])
    def test_activations_have_the_same_mean_and_variance(self, rng, sampling):
        layer = scattered(BayesLinear(5, 3, sampling=sampling).double(), rng)
        x = torch.randn(5, dtype=torch.float64, generator=rng)
        count = 4000
        with torch.no_grad():
            out = layer(x.expand(count, 5)) if sampling == "local" else torch.stack([layer(x) for _ in range(count)])
            (_, mean, deviation), (_, bias, bias_deviation) = layer.gaussians()
            mean, variance = mean @ x + bias, deviation**2 @ x**2 + bias_deviation**2
        # five standard errors each
        assert ((out.mean(0) - mean).abs() < 5 * (variance / count).sqrt()).all()
        assert ((out.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all()

    def test_local_sampling_of_zeros_has_finite_gradients(self):
        layer = BayesConv2d(1, 2, 3, padding=1, bias=False)
        x = torch.zeros(1, 1, 4, 4)
        out = layer(x)
        out.sum().backward()
        assert out.abs().max() < 1e-15
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters())

    def test_layers_can_be_copied_saved_and_reset(self, rng):
        layer = BayesLinear(4, 3, sampling="weight", rho=-2.0)
        layer(torch.ones(2, 4)).sum().backward()
        assert set(layer.state_dict()) == {"weight", "bias", "weight_rho", "bias_rho"}  # the noise is nothing to save
        again = copy.deepcopy(layer)
        assert torch.equal(again.weight_noise, layer.weight_noise)
        assert layer.double().weight_noise.dtype == torch.float64
        scattered(again, rng).reset_parameters()
        assert (again.weight_rho == -2).all() and (again.bias_rho == -2).all() and again.weight.abs().max() <= 0.5

    def test_bad_input(self):
        with pytest.raises(ValueError, match="sampling must be 'weight' or 'local', got 'flipout'"):
            BayesLinear(2, 2, sampling="flipout")
        with pytest.raises(TypeError, match="prior must be a GaussianPrior or a ScaleMixturePrior, got float"):
            BayesConv2d(2, 2, 1, prior=1.0)
        with pytest.raises(ValueError, match="rho must be finite, got inf"):
            BayesLinear(2, 2, rho=math.inf)
        with pytest.raises(ValueError, match="sigma must be above 0 and finite, got 0"):
            GaussianPrior(0)
        with pytest.raises(ValueError, match=r"pi must be between 0 and 1, without both, got 1\.0"):
            ScaleMixturePrior(1.0)
        with pytest.raises(ValueError, match="sigma2 must be above 0 and finite, got -1"):
            ScaleMixturePrior(sigma2=-1)


class TestDivergence:
    def test_closed_form_by_hand(self):
        layer = BayesLinear(1, 1, prior=GaussianPrior(2.0)).double()
        with torch.no_grad():
            layer.weight.fill_(3.0)
            layer.bias.fill_(0.0)
            layer.weight_rho.fill_(math.log(math.e - 1))  # a deviation of 1
            layer.bias_rho.fill_(math.log(math.e**2 - 1))  # of 2, as the prior
        # log(2 / 1) + (1 + 9) / 8 - 1/2, and nothing for the bias
        assert kl_divergence(layer).item() == pytest.approx(math.log(2) + 1.25 - 0.5, rel=1e-12)

    def test_closed_form_of_a_network(self, rng):
        network = scattered(to_bayesian(convolutional(), prior=GaussianPrior(0.3)).double(), rng)
        wanted = sum(
            divergence(Normal(mean, deviation), Normal(*torch.tensor([0, 0.3], dtype=torch.float64))).sum()
            for layer in (network[0], network[3], network[5])
            for _, mean, deviation in layer.gaussians()
        )
        assert kl_divergence(network).item() == pytest.approx(wanted.item(), rel=1e-12)
        twice = nn.Sequential(network, nn.ReLU(), network)
        assert torch.equal(kl_divergence(twice), kl_divergence(network))

    def test_densities(self, rng):
        weights = torch.randn(20, dtype=torch.float64, generator=rng)
        weights[0] = 30.0  # where both densities are 0 in float64
        gaussian = Normal(*torch.tensor([0, 0.7], dtype=torch.float64))
        assert torch.allclose(GaussianPrior(0.7).log_prob(weights), gaussian.log_prob(weights), rtol=1e-12)
        scales = torch.tensor([0.5, 0.01], dtype=torch.float64)
        mixture = MixtureSameFamily(
            Categorical(torch.tensor([0.25, 0.75], dtype=torch.float64)), Normal(torch.zeros_like(scales), scales)
        )
        assert torch.allclose(ScaleMixturePrior(0.25, 0.5, 0.01).log_prob(weights), mixture.log_prob(weights))

    def test_one_draw_is_that_of_the_last_forward(self, rng):
        prior = ScaleMixturePrior(0.25, 1.0, 0.05)
        layer = scattered(BayesLinear(4, 3, prior=prior, sampling="weight").double(), rng)
        layer(torch.ones(1, 4, dtype=torch.float64))
        wanted = 0
        for name, mean, deviation in layer.gaussians():
            drawn = mean + deviation * getattr(layer, f"{name}_noise")
            wanted = wanted + (Normal(mean, deviation).log_prob(drawn) - prior.log_prob(drawn)).sum()
        assert torch.allclose(kl_divergence(layer), wanted, rtol=1e-12)
        layer.sampling = "local"
        assert kl_divergence(layer).item() != kl_divergence(layer).item()

    @pytest.mark.parametrize("closed_form", [None, False])
    def test_after_a_forward_in_inference_mode(self, closed_form):
        layer = BayesLinear(4, 3, prior=ScaleMixturePrior(), sampling="weight")
        with torch.inference_mode():
            layer(torch.ones(1, 4))
            assert kl_divergence(layer, closed_form=closed_form) == kl_divergence(layer, closed_form=closed_form)
        kl_divergence(layer, closed_form=closed_form).backward()
        assert layer.weight_rho.grad.abs().sum() > 0

    def test_estimates_converge_to_the_closed_form(self, rng):
        layer = scattered(BayesLinear(4, 3, prior=GaussianPrior(0.8)).double(), rng)
        with torch.no_grad():
            estimates = torch.stack([kl_divergence(layer, closed_form=False) for _ in range(4000)])
            exact = kl_divergence(layer, closed_form=True)
        error = estimates.std() / math.sqrt(4000)
        assert error < 0.01 * exact and abs(estimates.mean() - exact) < 5 * error

    def test_estimates_converge_to_the_integral_for_a_mixture(self):
        prior = ScaleMixturePrior(0.5, 1.0, 0.1)
        layer = BayesLinear(1, 1, bias=False, prior=prior, rho=-1.0).double()
        nn.init.constant_(layer.weight, 0.3)
        q = Normal(0.3, math.log1p(math.exp(-1)))
        w = torch.linspace(-4, 5, 20001, dtype=torch.float64)
        exact = torch.trapezoid(q.log_prob(w).exp() * (q.log_prob(w) - prior.log_prob(w)), w)
        with torch.no_grad():
            estimates = torch.stack([kl_divergence(layer) for _ in range(4000)])
        error = estimates.std() / math.sqrt(4000)
        assert error < 0.1 * exact and abs(estimates.mean() - exact) < 5 * error

    @pytest.mark.parametrize("prior", [GaussianPrior(0.5), ScaleMixturePrior(0.25, 1.0, 0.1)])
    def test_gradients_are_the_papers(self, rng, prior):
        layer = scattered(BayesLinear(4, 3, prior=prior, sampling="weight").double(), rng)
        x = torch.randn(6, 4, dtype=torch.float64, generator=rng)
        y = torch.tensor([0, 1, 2, 0, 1, 2])
        share = float(minibatch_weights(5, "blundell")[1])
        loss = F.cross_entropy(layer(x), y, reduction="sum") + share * kl_divergence(layer, closed_form=False)
        loss.backward()

        names = ("weight", "bias")
        mu = [getattr(layer, name).detach().clone().requires_grad_() for name in names]
        rho = [getattr(layer, f"{name}_rho").detach().clone().requires_grad_() for name in names]
        eps = [getattr(layer, f"{name}_noise") for name in names]
        w = [(m + (1 + r.exp()).log() * e).detach().requires_grad_() for m, r, e in zip(mu, rho, eps, strict=True)]
        f = -F.log_softmax(x @ w[0].T + w[1], 1)[range(6), y].sum()
        for m, r, v in zip(mu, rho, w, strict=True):
            f = f + share * (Normal(m, (1 + r.exp()).log()).log_prob(v) - prior.log_prob(v)).sum()
        assert loss.item() == pytest.approx(f.item(), rel=1e-12)
        by = torch.autograd.grad(f, (*w, *mu, *rho))
        for name, r, e, by_w, by_mu, by_rho in zip(names, rho, eps, by[:2], by[2:4], by[4:], strict=True):
            assert torch.allclose(getattr(layer, name).grad, by_w + by_mu, rtol=1e-10)
            wanted = by_w * e / (1 + (-r).exp()) + by_rho
            assert torch.allclose(getattr(layer, f"{name}_rho").grad, wanted, rtol=1e-10)

    def test_bad_input(self):
        layer = nn.Sequential(BayesLinear(2, 2, prior=ScaleMixturePrior()))
        with pytest.raises(ValueError, match="closed_form must not be True for a ScaleMixturePrior, which layer '0'"):
            kl_divergence(layer, closed_form=True)
        with pytest.raises(ValueError, match="model must have a BayesLinear or BayesConv2d, got none"):
            kl_divergence(nn.Linear(2, 2))
        with pytest.raises(TypeError, match="model must be a network"):
            kl_divergence([layer])
        with pytest.raises(TypeError, match="closed_form must be True or False, got int 1"):
            kl_divergence(layer, closed_form=1)


class TestMinibatchWeights:
    def test_formulas(self):
        assert minibatch_weights(4).tolist() == [0.25] * 4
        assert minibatch_weights(1, "blundell").tolist() == [1.0]
        wanted = [2.0 ** (4 - i) / (2**4 - 1) for i in range(1, 5)]
        assert minibatch_weights(4, "blundell").tolist() == pytest.approx(wanted, rel=1e-15)

    def test_thousands(self):
        weights = minibatch_weights(5000, "blundell")
        assert weights.sum().item() == pytest.approx(1, abs=1e-15) and weights[:3].tolist() == [0.5, 0.25, 0.125]
        assert torch.isfinite(weights).all()
        # 2**(M - i) / (2**M - 1) in whole numbers, where float64 is coarse
        assert minibatch_weights(60, "blundell")[20].item() == pytest.approx(2**39 / (2**60 - 1), rel=1e-15)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="count must be at least 1, got 0"):
            minibatch_weights(0)
        with pytest.raises(ValueError, match="kind must be 'uniform' or 'blundell', got 'linear'"):
            minibatch_weights(2, "linear")


class TestToBayesian:
    def test_defaults(self):
        for layer in (BayesLinear(2, 2), BayesConv2d(1, 1, 2), to_bayesian(nn.Linear(2, 2))):
            assert (layer.sampling, layer.rho, layer.prior) == ("local", -5.0, GaussianPrior(1.0))
            assert (layer.weight_rho == -5).all() and (layer.bias_rho == -5).all()

    def test_trains_with_fit(self):
        x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        network = to_bayesian(nn.Linear(4, 2), prior=GaussianPrior(0.5))

        def batch_loss(network, x, y):
            return F.cross_entropy(network(x), y) + kl_divergence(network) / 40

        before = kl_divergence(network).item()
        history = alk.models.fit(network, (x, (x[:, 0] > 0).long()), epochs=30, batch_loss=batch_loss, generator=0)
        assert history.losses["loss"][-1] < history.losses["loss"][0] and kl_divergence(network).item() < before

    def test_a_copy_that_starts_at_the_network(self):
        network = convolutional()
        before = copy.deepcopy(network.state_dict())
        network[0].weight.requires_grad_(False)
        prior = ScaleMixturePrior()
        torch.manual_seed(7)
        state = torch.get_rng_state()
        made = to_bayesian(network, prior=prior, sampling="weight", rho=-4.0)
        assert torch.equal(torch.get_rng_state(), state)
        assert [type(made[i]) for i in (0, 3, 5)] == [BayesConv2d, BayesLinear, BayesLinear]
        assert (made[3].prior, made[3].sampling, made[3].rho) == (prior, "weight", -4.0)
        assert (made[0].weight_rho == -4).all() and not made[0].weight_rho.requires_grad
        assert not made[0].weight.requires_grad and made[0].bias_rho.requires_grad
        x = torch.randn(2, 1, 4, 4)
        assert torch.equal(made.eval()(x), network(x))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(1)
        assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
        assert type(network[0]) is nn.Conv2d and network.training

    def test_convolutions_keep_their_options(self):
        for options in (
            {"stride": (2, 1), "padding": (1, 2), "dilation": 2, "groups": 2},
            {"padding": "same", "padding_mode": "circular", "bias": False},
        ):
            layer = nn.Conv2d(2, 4, (3, 2), **options)
            x = torch.randn(2, 2, 7, 6)
            assert torch.equal(to_bayesian(layer).eval()(x), layer(x))

    def test_a_single_layer_and_derived_classes(self):
        class Other(nn.Linear):
            pass

        assert type(to_bayesian(nn.Linear(2, 2, bias=False))) is BayesLinear
        made = to_bayesian(nn.Sequential(Other(2, 2), nn.Linear(2, 2)).eval())
        assert type(made[0]) is Other and type(made[1]) is BayesLinear and not made[1].training
        with pytest.raises(ValueError, match=r"model must have a torch\.nn\.Linear or torch\.nn\.Conv2d, got none"):
            to_bayesian(nn.Sequential(Other(2, 2)))

    def test_a_shared_layer_stays_one(self):
        layer = nn.Linear(3, 3)
        made = to_bayesian(nn.Sequential(layer, nn.Tanh(), nn.Sequential(layer)))
        assert made[0] is made[2][0] and len(list(made.parameters())) == 4

    def test_what_would_be_lost(self):
        tied = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
        tied[1].weight = tied[0].weight
        with pytest.raises(ValueError, match="model must not have layers that share parameters, got '0' and '1'"):
            to_bayesian(tied)
        hooked = nn.Sequential(nn.Linear(3, 3))
        hooked[0].register_forward_hook(lambda module, args, out: out)
        with pytest.raises(ValueError, match="model must not have hooks on layers to be replaced, got '0' with hooks"):
            to_bayesian(hooked)
        with pytest.raises(TypeError, match="model must be a network"):
            to_bayesian(None)


class TestBayesByBackprop:
    def test_draws_are_one_set_of_weights_each(self, rng):
        network = scattered(to_bayesian(convolutional()), rng)
        x = torch.randn(9, 1, 4, 4, generator=rng)
        before = {name: p for name, p in network.named_parameters()}
        values = copy.deepcopy(network.state_dict())
        posterior = BayesByBackprop(network, 4, generator=8)
        state = torch.get_rng_state()
        logits = draws(posterior, x, 9)
        assert torch.equal(torch.get_rng_state(), state)
        assert logits.shape == (9, 4, 3)
        assert torch.allclose(draws(posterior, x, 2), logits, atol=1e-5)
        assert torch.allclose(draws(posterior, x.flip(0), 4).flip(0), logits, atol=1e-5)
        # the same parameters as before, in the same order, with the same values
        after = dict(network.named_parameters())
        assert list(after) == list(before) and all(after[name] is before[name] for name in after)
        assert all(torch.equal(network.state_dict()[name], value) for name, value in values.items())
        again = draws(BayesByBackprop(network, 2, generator=8), x, 9)
        assert torch.equal(again, logits[:, :2])
        assert not torch.allclose(logits[:, 0], logits[:, 1], atol=0.01)
        assert not torch.allclose(draws(BayesByBackprop(network, 2, generator=9), x, 9), again, atol=0.01)
        assert (posterior.count, posterior.averaged, posterior.network) == (4, False, network)

    def test_collect_takes_the_means_as_the_network(self, rng):
        network = scattered(to_bayesian(convolutional()), rng)
        x = torch.randn(9, 1, 4, 4, generator=rng)
        posterior = BayesByBackprop(network, 4, generator=8)
        arrays = alk.collect(posterior, x, ["probs", "features", "head_weight", "mc_probs"], batch_size=4)
        assert network.training and network[3].training
        assert torch.allclose(arrays["mc_probs"], draws(posterior, x, 9).softmax(2), atol=1e-5)
        assert torch.allclose(arrays["probs"], network(x).softmax(1), atol=1e-6)
        assert torch.allclose(arrays["features"], network[:5](x), atol=1e-6)
        assert torch.equal(arrays["head_weight"], network[5].weight)

    def test_draws_that_are_not_kept_are_the_same(self, rng, monkeypatch):
        network = scattered(to_bayesian(nn.Linear(4, 3)), rng)
        x = torch.randn(7, 4, generator=rng)
        posterior = BayesByBackprop(network, 5, generator=0)
        kept = draws(posterior, x, 3)
        monkeypatch.setattr(bayes, "_BYTES_KEPT", 2 * 15 * 4)
        made = []
        draw = BayesByBackprop._draw
        monkeypatch.setattr(BayesByBackprop, "_draw", lambda self, layers, k: made.append(k) or draw(self, layers, k))
        assert torch.equal(draws(posterior, x, 3), kept)
        assert made == [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4]

    def test_draws_have_the_distribution_of_the_weights(self, rng):
        layer = scattered(BayesLinear(3, 2).double(), rng)
        out = draws(BayesByBackprop(layer, 3000, generator=0), torch.eye(3, dtype=torch.float64), 3)
        (_, mean, deviation), (_, bias, bias_deviation) = layer.requires_grad_(False).gaussians()
        wanted = (mean + bias[:, None]).T
        variance = (deviation**2 + bias_deviation[:, None] ** 2).T
        assert ((out.mean(1) - wanted).abs() < 5 * (variance / 3000).sqrt()).all()
        assert ((out.var(1) / variance - 1).abs() < 5 * math.sqrt(2 / 3000)).all()
        # one bias for all rows of a draw: rows of different inputs go together
        both = torch.cov(out[:2, :, 0])[0, 1].item()
        assert both == pytest.approx(float(bias_deviation[0] ** 2), abs=5 * float(variance.max()) / math.sqrt(3000))
        assert both > 0

    def test_code_that_reads_weights_sees_the_draw(self):
        # in evaluation mode this one hands its weights to one fused operation
        network = to_bayesian(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), rho=-1.0)
        logits = draws(BayesByBackprop(network, 2, generator=0), torch.randn(3, 5, 4), 3)
        assert not torch.allclose(logits[:, 0], logits[:, 1], atol=0.01)

    def test_layers_have_noise_of_their_own(self):
        network = to_bayesian(nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)))
        with torch.no_grad():
            for layer in network:
                layer.weight.zero_()
        noise = []
        with BayesByBackprop(network, 3).drawing() as outputs:
            for _ in outputs(lambda m: noise.append([layer.weight.clone() for layer in m])):
                pass
        flat = [n for some in noise for n in some]
        assert not any(torch.equal(a, b) for i, a in enumerate(flat) for b in flat[:i]) and len(flat) == 6

    def test_means_are_back_after_an_error(self):
        network = to_bayesian(nn.Linear(4, 3))
        mean = network.weight
        with BayesByBackprop(network, 2).drawing() as outputs, pytest.raises(RuntimeError, match="shapes"):
            next(outputs(lambda m: m(torch.ones(1, 5))))
        assert network.weight is mean

    def test_inference_mode(self):
        network = to_bayesian(nn.Linear(4, 3)).eval()
        posterior, x = BayesByBackprop(network, 2, generator=0), torch.ones(1, 4)
        with torch.inference_mode(), posterior.drawing() as outputs:
            got = torch.stack(list(outputs(lambda m: m(x))), 1)
        assert torch.equal(got, draws(posterior, x, 1))
        network(x).sum().backward()
        assert network.weight.grad is not None

    def test_bad_input(self):
        with pytest.raises(ValueError, match="model must have a BayesLinear or BayesConv2d, got none"):
            BayesByBackprop(nn.Linear(2, 2))
        with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
            BayesByBackprop(BayesLinear(2, 2), 0)

    @pytest.mark.parametrize(
        ("sampling", "prior"), [("local", GaussianPrior(0.3)), ("weight", ScaleMixturePrior(0.5, 1.0, math.exp(-1)))]
    )
    def test_learns_digits(self, sampling, prior):
        from sklearn.datasets import load_digits

        digits = load_digits()
        x = torch.from_numpy(digits.images).float()[:, None] / 16
        y = torch.from_numpy(digits.target)
        train, test = torch.arange(600), torch.arange(600, 1797)
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
        )
        network = to_bayesian(network, prior=prior, sampling=sampling, rho=-4.0)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(15):
            batches = train[torch.randperm(600)].split(50)
            for share, batch in zip(minibatch_weights(len(batches)).tolist(), batches, strict=True):
                optimizer.zero_grad()
                fit = F.cross_entropy(network(x[batch]), y[batch], reduction="sum")
                (fit + share * kl_divergence(network)).backward()
                optimizer.step()
        noise = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        posterior = BayesByBackprop(network, 20, generator=0)
        probs = draws(posterior, x[test], 400).softmax(2)
        assert (probs.mean(1).argmax(1) == y[test]).float().mean() > 0.8
        scores, of_noise = alk.bald(probs), alk.bald(draws(posterior, noise, 300).softmax(2))
        assert scores.min() > 0 and of_noise.mean() > 1.5 * scores.mean()
