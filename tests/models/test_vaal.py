"""VAAL: each loss by hand, the networks' shapes, who is trained by what, and a biased split that is told apart."""

import copy
import math

import numpy as np
import pytest
import torch
from effects import digits
from sklearn.metrics import roc_auc_score

from alkernels.models import vaal
from alkernels.models._training import Batches
from alkernels.models.posterior import derived_seed
from alkernels.models.vaal import VAAL, ConvVAE, Discriminator, Encoded, MlpVAE

X = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
RECONSTRUCTION = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
MEAN = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
LOG_VARIANCE = torch.tensor([[0.0, math.log(2)], [0.0, 0.0]])
# squares: 4 in the first row, 1 + 1 in the second
# divergences: (1 + (2 - 1 - log 2)) / 2 in the first, 4 / 2 in the second
FIRST_KL = (2 - math.log(2)) / 2


def cross_entropy(logit, label):
    p = 1 / (1 + math.exp(-logit))
    return -math.log(p if label else 1 - p)


def rows(count, seed=0, shape=(3,)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def small(**options):
    return VAAL.for_data(X, **({"latent": 2, "hidden": 8, "generator": 0} | options))


class TestLosses:
    def test_reconstruction_by_hand(self):
        assert vaal.reconstruction_loss(RECONSTRUCTION, X).item() == pytest.approx((4 + 2) / 2)
        assert vaal.reconstruction_loss(RECONSTRUCTION, X, reduction="official").item() == pytest.approx((4 + 2) / 6)
        images = (RECONSTRUCTION.view(2, 3, 1, 1), X.view(2, 3, 1, 1))
        assert vaal.reconstruction_loss(*images).item() == pytest.approx(3)

    def test_divergence_by_hand(self):
        assert vaal.latent_kl(MEAN, LOG_VARIANCE).item() == pytest.approx((FIRST_KL + 2) / 2)
        official = vaal.latent_kl(MEAN, LOG_VARIANCE, reduction="official")
        assert official.item() == pytest.approx(FIRST_KL + 2)

    def test_divergence_is_that_of_two_normals(self):
        normal = torch.distributions.Normal(MEAN, (0.5 * LOG_VARIANCE).exp())
        wanted = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
        assert vaal.latent_kl(MEAN, LOG_VARIANCE).item() == pytest.approx(wanted.item())

    def test_adversary_and_discriminator_by_hand(self):
        labeled, unlabeled = torch.tensor([0.0, 2.0]), torch.tensor([1.0])
        assert vaal.adversary_loss(labeled).item() == pytest.approx((math.log(2) + cross_entropy(2, 1)) / 2)
        wanted = (math.log(2) + cross_entropy(2, 1)) / 2 + cross_entropy(1, 0)
        assert vaal.discriminator_loss(labeled, unlabeled).item() == pytest.approx(wanted)

    def test_the_whole_by_hand(self):
        logits = torch.tensor([0.0, 0.0])
        labeled = Encoded(X, RECONSTRUCTION, MEAN, LOG_VARIANCE, logits)
        unlabeled = Encoded(X[:1], X[:1], 0 * MEAN[:1], 0 * LOG_VARIANCE[:1], torch.tensor([-1.0]))
        loss = vaal.vae_loss(labeled, unlabeled, beta=0.5, adversary_weight=3)
        # unlabelled rows are to look labelled, too
        wanted = 3 + 0.5 * (FIRST_KL + 2) / 2 + 3 * math.log(2) + 3 * cross_entropy(-1, 1)
        assert loss.item() == pytest.approx(wanted)
        loss = vaal.vae_loss(labeled, unlabeled, reduction="official")
        assert loss.item() == pytest.approx(1 + FIRST_KL + 2 + math.log(2) + cross_entropy(-1, 1))

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"reconstruction and x must be of the same shape .* got \(2, 3\) and \(1"):
            vaal.reconstruction_loss(RECONSTRUCTION, X[:1])
        with pytest.raises(ValueError, match="mean and log_variance must be of the same shape"):
            vaal.latent_kl(MEAN, LOG_VARIANCE[:, :1])
        for function in (vaal.reconstruction_loss, vaal.latent_kl):
            with pytest.raises(ValueError, match=r"reduction must be .* got 'sum'"):
                function(X, X, reduction="sum")


class TestNetworks:
    @pytest.mark.parametrize(
        "vae",
        [
            MlpVAE(5, latent=3, hidden=4, generator=0),
            ConvVAE((1, 8, 8), latent=3, channels=(4, 6), generator=0),
            ConvVAE((3, 12, 20), latent=3, channels=(4,), generator=0),
            ConvVAE((2, 24, 16), latent=3, channels=(4, 5, 6), generator=0),
        ],
        ids=["vectors", "8x8", "12x20", "24x16"],
    )
    def test_shapes(self, vae):
        x = rows(4, shape=vae.shape)
        reconstruction, mean, log_variance = vae(x)
        assert reconstruction.shape == x.shape and mean.shape == log_variance.shape == (4, 3)
        other = ConvVAE((2, 2, 2), channels=[3], generator=0)
        with pytest.raises(ValueError, match=r"x must be of shape \(B, 2, 2, 2\), got \(4, "):
            other.encode(x)
        with pytest.raises(TypeError, match=r"x must be of floating numbers, got torch.uint8; images of bytes as"):
            vae(x.to(torch.uint8))

    def test_latents_are_drawn_around_the_mean(self):
        vae = MlpVAE(2, latent=2, hidden=4, generator=0)
        seen = []
        vae.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            _, mean, log_variance = vae(torch.ones(1, 2).expand(20_000, 2))
        assert torch.allclose(seen[0].mean(0), mean[0], atol=0.05)
        assert torch.allclose(seen[0].var(0), log_variance[0].exp(), rtol=0.05)

    @pytest.mark.parametrize(
        "shape, halvings",
        [((1, 28, 28), 2), ((3, 32, 32), 4), ((1, 8, 8), 2), ((3, 64, 48), 4), ((1, 6, 6), 1), ((1, 2, 2), 1)],
    )
    def test_default_convolutions_leave_at_least_2_x_2_of_what_can_be_halved(self, shape, halvings):
        with torch.device("meta"):
            vae = ConvVAE(shape, generator=0)
        convolutions = [m.out_channels for m in vae.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
        assert convolutions == [128, 256, 512, 1024][:halvings]

    def test_images_that_cannot_be_halved(self):
        with pytest.raises(ValueError, match=r"divisible by 4, for 2 convolutions .* got 10 x 8; pad the images, or"):
            ConvVAE((1, 10, 8), channels=(4, 4))
        with pytest.raises(ValueError, match=r"divisible by 2, .* got 7 x 8"):
            ConvVAE((1, 7, 8))
        with pytest.raises(ValueError, match=r"shape must be \(C, H, W\), got \(8, 8\)"):
            ConvVAE((8, 8))
        with pytest.raises(ValueError, match="channels must have at least one number"):
            ConvVAE((1, 8, 8), channels=())

    def test_the_discriminator(self):
        discriminator = Discriminator(3, generator=0)
        kinds = [type(m).__name__ for m in discriminator.layers]
        assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
        assert [tuple(p.shape) for p in discriminator.parameters() if p.dim() == 2] == [(512, 3), (512, 512), (1, 512)]
        assert discriminator(rows(4)).shape == (4,)

    def test_seeds_decide_the_first_weights(self):
        before = torch.get_rng_state()
        a, b, c = small(), small(), small(generator=1)
        # one seed for networks of two kinds: other numbers in layers of one shape
        of_vae = MlpVAE(2, latent=2, hidden=512, generator=0).encoder[0].weight
        assert not torch.allclose(of_vae, Discriminator(2, generator=0).layers[0].weight)
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        assert not any(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))
        assert torch.equal(torch.get_rng_state(), before)

    def test_for_data(self):
        assert isinstance(small().vae, MlpVAE)
        images = VAAL.for_data(np.zeros((5, 1, 8, 8), np.float32), channels=(4,), latent=7, generator=0)
        assert isinstance(images.vae, ConvVAE) and images.discriminator.width == 7
        of_items = VAAL.for_data(torch.utils.data.TensorDataset(X), hidden=4)
        assert of_items.vae.shape == (3,)
        for x, options in (
            (rows(2, shape=(3, 4)), {}),
            (X, {"channels": (4,)}),
            (rows(2, shape=(1, 4, 4)), {"hidden": 3}),
        ):
            with pytest.raises(ValueError, match=r"x must be of shape \[N, D\], with hidden, or \[N, C, H, W\]"):
                VAAL.for_data(x, **options)
        for options, message in (
            ({"beta": -1}, "beta must be finite and not negative"),
            ({"adversary_weight": -1}, "adversary_weight must be finite and not negative"),
            ({"reduction": "sum"}, "reduction must be"),
            ({"latent": 0}, "latent must be at least 1"),
        ):
            with pytest.raises(ValueError, match=message):
                small(**options)


class TestFit:
    def test_one_step_by_hand(self):
        def sgd(parameters):
            return torch.optim.SGD(parameters, lr=0.01)

        labeled, unlabeled = rows(6), rows(9, seed=1) + 1
        model = small(beta=0.5, adversary_weight=2)
        twin = copy.deepcopy(model)
        history = model.fit(labeled, unlabeled, epochs=1, steps_per_epoch=1, batch_size=4, optimizer=sgd, generator=3)
        streams = [
            Batches(len(x), 4, derived_seed(3, name)) for x, name in ((labeled, "labeled"), (unlabeled, "unlabeled"))
        ]
        losses = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(3, "training"))
            for _ in range(2):
                batches = [x[stream.next()] for x, stream in zip((labeled, unlabeled), streams, strict=True)]
                loss = vaal.vae_loss(*map(twin.encoded, batches), beta=0.5, adversary_weight=2)
                for p, g in zip(
                    twin.vae.parameters(), torch.autograd.grad(loss, list(twin.vae.parameters())), strict=True
                ):
                    p.data -= 0.01 * g
                losses.append(loss.item())
        # the discriminator's update: means of the VAE as it is now, of the last minibatches
        means = [twin.vae.encode(x)[0].detach() for x in batches]
        loss = vaal.discriminator_loss(*map(twin.discriminator, means))
        parameters = list(twin.discriminator.parameters())
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.data -= 0.01 * g
        for new, wanted in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(new, wanted, atol=1e-6)
        assert history.losses["loss"] == [pytest.approx(sum(losses) / 2, rel=1e-5)]
        assert history.losses["discriminator"] == [pytest.approx(loss.item(), rel=1e-5)]
        parts = {name: values[0] for name, values in history.losses.items()}
        whole = parts["reconstruction"] + 0.5 * parts["kl"] + 2 * parts["adversary"]
        assert parts["loss"] == pytest.approx(whole, rel=1e-5)

    def test_an_epoch_has_as_many_steps_as_minibatches(self):
        calls = []
        model = small()
        model.discriminator.register_forward_hook(lambda *_: calls.append(1))
        # 6 + 9 rows in minibatches of 4: 4 steps, each of 2 times 2 looks for the VAE, and 2
        model.fit(rows(6), rows(9), epochs=1, batch_size=4, generator=0)
        assert len(calls) == 4 * 6
        calls.clear()
        model.fit(rows(6), rows(9), epochs=2, steps_per_epoch=3, vae_steps=1, batch_size=4, generator=0)
        assert len(calls) == 2 * 3 * 4

    @pytest.mark.parametrize("epochs", [1, 3])
    def test_a_continued_run_ends_as_a_whole_one(self, epochs, tmp_path):
        def run(model, epochs, checkpoint=None, **options):
            options = {"batch_size": 4, "generator": 0} | options
            return model.fit(
                rows(5, shape=(1, 4, 4)), rows(11, 1, (1, 4, 4)), epochs=epochs, checkpoint=checkpoint, **options
            )

        def make(seed=0, beta=1.0):
            return VAAL.for_data(torch.zeros(1, 1, 4, 4), channels=(3,), latent=2, beta=beta, generator=seed)

        whole, model = make(), make(seed=1)
        wanted = run(whole, 4)
        before = torch.get_rng_state()
        run(make(), epochs, tmp_path / "c.pt")
        assert run(model, 4, tmp_path / "c.pt") == wanted and torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in whole.state_dict().items())
        with pytest.raises(ValueError, match=r"beta was 1.0 and is 2.0 now; delete the file, or give another path"):
            run(make(beta=2.0), 4, tmp_path / "c.pt")
        with pytest.raises(ValueError, match="vae_steps was 2 and is 1 now"):
            run(make(), 4, tmp_path / "c.pt", vae_steps=1)

    def test_a_dataset_gives_the_same(self):
        ends = []
        for data in ((rows(6), rows(9)), (torch.utils.data.TensorDataset(rows(6), torch.zeros(6)), rows(9).numpy())):
            model = small()
            model.fit(*data, epochs=2, batch_size=4, generator=0)
            ends.append(model.predict(rows(9)))
        assert torch.equal(*ends)

    @pytest.mark.parametrize(
        "data, options, error, message",
        [
            (
                (rows(0), rows(3)),
                {},
                ValueError,
                "labeled must have at least one row, got none: there is nothing to tr",
            ),
            ((rows(3), rows(0)), {}, ValueError, "unlabeled must have at least one row, got none"),
            ((rows(3), rows(3)[:, :2]), {}, ValueError, r"must have rows of one shape, got \(3,\) and \(2,\)"),
            ((rows(3)[:, :2], rows(3)[:, :2]), {}, ValueError, r"x must be of shape \(B, 3\), got \(3, 2\)"),
            (
                ((rows(3), [0, 0, 1]), rows(3)),
                {},
                TypeError,
                "labeled must be a tensor, an array or a map-style Dataset",
            ),
            ((rows(3), rows(3)), {"vae_steps": 0}, ValueError, "vae_steps must be at least 1"),
            ((rows(3), rows(3)), {"steps_per_epoch": 0}, ValueError, "steps_per_epoch must be at least 1"),
            ((rows(3), rows(3)), {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
            ((rows(3), rows(3) * torch.nan), {}, RuntimeError, "training went astray: loss is nan in epoch 0"),
        ],
    )
    def test_bad_input(self, data, options, error, message):
        with pytest.raises(error, match=message):
            small().fit(*data, epochs=1, **options)


class TestPredict:
    def test_a_discriminator_of_another_shape(self):
        def model(*layers):
            return VAAL(MlpVAE(3, latent=2, hidden=4, generator=0), torch.nn.Sequential(*layers), generator=0)

        column = model(torch.nn.Linear(2, 1))
        with pytest.raises(
            ValueError, match=r"discriminator must give one logit a row, shape \(5,\), got shape \(5, 1\)"
        ):
            column.predict(rows(5))
        with pytest.raises(
            ValueError, match=r"discriminator must give one logit a row, shape \(4,\), got shape \(4, 1\)"
        ):
            column.fit(rows(4), rows(4), epochs=1)
        with pytest.raises(ValueError, match=r"discriminator must give one logit a row, .* got a tuple"):
            model(torch.nn.Linear(2, 1), torch.nn.LSTM(1, 1)).predict(rows(5))
        assert model(torch.nn.Linear(2, 1), torch.nn.Flatten(0)).predict(rows(5)).shape == (5,)

    def test_the_discriminator_looks_at_means(self):
        model, x = small(), rows(5)
        encoded = model.encoded(x)
        assert torch.equal(encoded.logits, model.discriminator(encoded.mean)) and encoded.x is x
        assert torch.equal(encoded.mean, model.vae.encode(x)[0])

    def test_is_the_discriminators_view_of_the_mean(self):
        model = small()
        x = rows(7)
        scores = model.predict(x, batch_size=3)
        logits = model.discriminator(model.vae.encode(x)[0])
        assert torch.allclose(scores, logits.double().sigmoid()) and scores.dtype == torch.float64
        assert torch.equal(scores, model.predict(x, batch_size=3)) and model.training
        assert isinstance(model.predict(x.numpy()), np.ndarray)


class TestEffect:
    """A11: the mechanics on labelled rows of the digits 0 to 4 and a pool of all."""

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [0, 1])
    def test_a_biased_split_of_digits(self, seed):
        x, y = digits()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        labeled = order[y[order] < 5][:200]
        pool = torch.ones(len(x), dtype=torch.bool).index_fill(0, labeled, False)
        model = VAAL.for_data(x, hidden=256, generator=seed)
        history = model.fit(x[labeled], x[pool], epochs=20, generator=seed)
        of_labeled, of_pool = model.predict(x[labeled]), model.predict(x[pool])
        truth = [1] * len(of_labeled) + [0] * len(of_pool)
        assert roc_auc_score(truth, torch.cat([of_labeled, of_pool])) > 0.6
        for name in ("loss", "reconstruction", "discriminator"):
            assert history.losses[name][-1] < history.losses[name][0], name
        selected = of_pool.argsort()[:100]
        assert of_pool[selected].mean() < of_pool.mean()
        assert (y[pool][selected] >= 5).double().mean() > 0.6

    def test_images(self):
        x, y = digits()
        x = x.view(-1, 1, 8, 8)
        labeled, pool = x[y < 5][:60], x[y >= 5][:80]
        model = VAAL.for_data(x, channels=(8, 16), latent=4, reduction="official", generator=0)
        history = model.fit(labeled, pool, epochs=15, batch_size=40, generator=0)
        assert history.losses["reconstruction"][-1] < 0.8 * history.losses["reconstruction"][0]
