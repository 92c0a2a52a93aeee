"""MAL: signs of the gradients in the game, each loss by hand, and a biased split that is told apart."""

import copy
import math

import numpy as np
import pytest
import torch
from effects import digits
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from alkernels.models import mal
from alkernels.models._training import Batches
from alkernels.models.mal import MAL, CosineClassifier, GradientReversal
from alkernels.models.posterior import derived_seed
from alkernels.models.vaal import adversary_loss, discriminator_loss


def rows(count, seed=0):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def features(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))


def small(seed=0, **options):
    return MAL(features(seed), 4, 2, generator=0, **options)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


class TestReversal:
    def test_forward_and_backward(self):
        x = torch.tensor([1.0, -2.0], requires_grad=True)
        out = GradientReversal(0.5)(x)
        assert torch.equal(out, x)
        (out * torch.tensor([3.0, 4.0])).sum().backward()
        assert x.grad.tolist() == [-1.5, -2.0]
        x.grad = None
        mal.reverse_gradient(x).sum().backward()
        assert x.grad.tolist() == [-1.0, -1.0]
        with pytest.raises(ValueError, match="weight must be finite and not negative"):
            GradientReversal(-1.0)


class TestClassifier:
    def test_by_hand(self):
        classifier = CosineClassifier(2, 2, temperature=0.5, generator=0)
        classifier.weights.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        # (3, 4) becomes (0.6, 0.8): 0.6 / 0.5 and 2 * 0.8 / 0.5
        logits = classifier(torch.tensor([[3.0, 4.0], [30.0, 40.0]]))
        assert logits.flatten().tolist() == pytest.approx([1.2, 3.2, 1.2, 3.2])
        assert CosineClassifier(2, 2).temperature == 0.05
        with pytest.raises(ValueError, match="temperature must be above 0"):
            CosineClassifier(2, 2, temperature=0)


class TestEntropy:
    def test_by_hand(self):
        logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
        wanted = (math.log(2) + 0.25 * math.log(4) + 0.75 * math.log(4 / 3)) / 2
        assert mal.mean_entropy(logits).item() == pytest.approx(wanted)
        sure = torch.tensor([[1000.0, 0.0]], requires_grad=True)
        mal.mean_entropy(sure).backward()
        assert mal.mean_entropy(sure).item() == 0 and torch.isfinite(sure.grad).all()

    def test_features_descend_it_and_the_classifier_ascends_it(self):
        model, x = small(), rows(20)
        mal.minimax_entropy_loss(model.features(x), model.classifier, weight=0.3).backward()
        of_loss = [p.grad.clone() for p in model.features.parameters()], model.classifier.weights.weight.grad.clone()
        entropy = 0.3 * mal.mean_entropy(model.classifier(model.features(x)))
        of_features = torch.autograd.grad(entropy, list(model.features.parameters()), retain_graph=True)
        of_classifier = torch.autograd.grad(entropy, model.classifier.weights.weight)[0]
        # what a step descends is +entropy for the features, and -entropy for the classifier
        for got, wanted in zip(of_loss[0], of_features, strict=True):
            assert wanted.abs().max() > 1e-4 and torch.allclose(got, wanted, atol=1e-7)
        assert torch.allclose(of_loss[1], -of_classifier, atol=1e-7)

        def entropy_after(name):
            twin = copy.deepcopy(model)
            with torch.no_grad():
                parts = getattr(twin, name).parameters(), getattr(model, name).parameters()
                for p, old in zip(*parts, strict=True):
                    p -= 1e-3 * old.grad
                return mal.mean_entropy(twin.classifier(twin.features(x))).item()

        now = entropy.item() / 0.3
        assert entropy_after("features") < now < entropy_after("classifier")


class TestFit:
    @pytest.mark.parametrize("adversary_weight", [0.0, 2.0])
    def test_one_step_by_hand(self, adversary_weight):
        x, y, unlabeled = rows(6), torch.tensor([0, 1, 0, 1, 1, 1]), rows(9, seed=1)
        model = small(entropy_weight=0.3, adversary_weight=adversary_weight)
        twin = copy.deepcopy(model)
        history = model.fit((x, y), unlabeled, epochs=1, steps_per_epoch=1, batch_size=4, optimizer=sgd, generator=3)
        some = Batches(6, 4, derived_seed(3, "labeled")).next()
        others = unlabeled[Batches(9, 4, derived_seed(3, "unlabeled")).next()]
        f, g = twin.features(x[some]), twin.features(others)
        cross_entropy = functional.cross_entropy(twin.classifier(f), y[some])
        entropy = mal.mean_entropy(twin.classifier(g))
        of_discriminator = [twin.discriminator(functional.normalize(h)) for h in (f, g)]
        fooled = adversary_loss(of_discriminator[0]) + adversary_loss(of_discriminator[1])
        told = discriminator_loss(*(twin.discriminator(functional.normalize(h.detach())) for h in (f, g)))
        for part, loss in (
            (twin.features, cross_entropy + 0.3 * entropy + adversary_weight * fooled),
            (twin.classifier, cross_entropy - 0.3 * entropy),
            (twin.discriminator, told),
        ):
            gradients = torch.autograd.grad(loss, list(part.parameters()), retain_graph=True)
            for p, gradient in zip(part.parameters(), gradients, strict=True):
                p.grad = gradient
        for new, old in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(new, old - 0.01 * old.grad, atol=1e-6)
        wanted = {"loss": cross_entropy, "entropy": entropy, "discriminator": told}
        if adversary_weight:
            wanted["adversary"] = fooled
        assert {k: v[0] for k, v in history.losses.items()} == pytest.approx(
            {k: v.item() for k, v in wanted.items()}, rel=1e-5
        )

    @pytest.mark.parametrize("epochs", [1, 3])
    def test_a_continued_run_ends_as_a_whole_one(self, epochs, tmp_path):
        data = (rows(6), [0, 1, 0, 1, 1, 1]), rows(11, seed=1)
        whole, model = small(), small(seed=1)
        wanted = whole.fit(*data, epochs=4, batch_size=4, generator=0)
        before = torch.get_rng_state()
        small().fit(*data, epochs=epochs, batch_size=4, generator=0, checkpoint=tmp_path / "c.pt")
        again = model.fit(*data, epochs=4, batch_size=4, generator=0, checkpoint=tmp_path / "c.pt")
        assert again == wanted and torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in whole.state_dict().items())
        with pytest.raises(ValueError, match=r"entropy_weight was 0.1 and is 0.2 now; delete the file"):
            small(entropy_weight=0.2).fit(*data, epochs=4, batch_size=4, generator=0, checkpoint=tmp_path / "c.pt")

    def test_early_stop_gives_the_best_weights_back(self):
        data = (rows(6), [0, 1, 0, 1, 1, 1]), rows(11, seed=1)

        def far(parameters):
            return torch.optim.SGD(parameters, lr=5.0)

        model, short = small(), small()
        history = model.fit(*data, epochs=50, batch_size=4, optimizer=far, patience=2, generator=0)
        losses = history.losses["loss"]
        assert len(losses) < 50 and history.best_epoch == len(losses) - 3 == losses.index(min(losses))
        short.fit(*data, epochs=history.best_epoch + 1, batch_size=4, optimizer=far, generator=0)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in short.state_dict().items())

    @pytest.mark.parametrize(
        "labeled, unlabeled, error, message",
        [
            (
                (rows(0), []),
                rows(3),
                ValueError,
                "labeled must have at least one row, got none: there is nothing to tr",
            ),
            ((rows(2), [0, 1]), rows(0), ValueError, "unlabeled must have at least one row"),
            ((rows(2), [0, 2]), rows(3), ValueError, "labeled must have labels between 0 and 1, got 2"),
            ((rows(2), [0.0, 1.0]), rows(3), TypeError, "labeled must have integer labels"),
            (rows(2), rows(3), TypeError, r"labeled must be a pair \(x, y\) or a Dataset of pairs, got a Tensor"),
            ((rows(2), [0, 1]), rows(3)[:, :1], ValueError, "must have rows of one shape"),
        ],
    )
    def test_bad_data(self, labeled, unlabeled, error, message):
        with pytest.raises(error, match=message):
            small().fit(labeled, unlabeled, epochs=1)

    def test_bad_options(self):
        for options, message in (
            ({"entropy_weight": -1}, "entropy_weight must be finite and not negative"),
            ({"adversary_weight": -1}, "adversary_weight must be finite and not negative"),
            ({"temperature": 0}, "temperature must be above 0"),
        ):
            with pytest.raises(ValueError, match=message):
                small(**options)
        with pytest.raises(ValueError, match=r"features must give a tensor \[B, 5\] \(width\), got \(2, 4\)"):
            MAL(features(), 5, 2)(rows(2))


class TestPredict:
    def test_as_forward(self):
        model, x = small(), rows(7)
        discriminator, probs = model.predict(x, batch_size=3)
        f = model.features(x)
        assert torch.allclose(probs, (model.classifier(f)).softmax(1), atol=1e-6) and probs.shape == (7, 2)
        logits = model.discriminator(f / f.norm(dim=1, keepdim=True))
        assert torch.allclose(discriminator, logits.double().sigmoid(), atol=1e-6)
        assert discriminator.dtype == torch.float64 and model.training
        assert all(isinstance(part, np.ndarray) for part in model.predict(x.numpy()))

    def test_in_bfloat16(self):
        model, x = small().bfloat16(), rows(7)
        discriminator, probs = model.predict(x.numpy())
        assert probs.dtype == np.float32 and discriminator.dtype == np.float64
        assert np.allclose(probs.sum(1), 1, atol=1e-6)
        assert torch.equal(torch.from_numpy(probs), model(x.bfloat16())[0].float().softmax(1))
        assert small().double().predict(x)[1].dtype == torch.float64

    def test_a_discriminator_of_another_shape(self):
        model = small()
        model.discriminator = torch.nn.Linear(4, 1)
        with pytest.raises(
            ValueError, match=r"discriminator must give one logit a row, shape \(5,\), got shape \(5, 1\)"
        ):
            model.predict(rows(5))
        with pytest.raises(
            ValueError, match=r"discriminator must give one logit a row, shape \(2,\), got shape \(2, 1\)"
        ):
            model.fit((rows(2), [0, 1]), rows(2), epochs=1)


class TestEffect:
    """A11: the mechanics on labelled rows of the digits 0 to 4 and a pool of all."""

    @pytest.mark.parametrize("adversary_weight", [0.0, 1.0])
    def test_a_biased_split_of_digits(self, adversary_weight):
        x, y = digits()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        labeled = order[y[order] < 5][:200]
        pool = torch.ones(len(x), dtype=torch.bool).index_fill(0, labeled, False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
        model = MAL(network, 64, 10, adversary_weight=adversary_weight, generator=0)
        history = model.fit((x[labeled], y[labeled]), x[pool], epochs=5, generator=0)
        of_labeled, of_pool = model.predict(x[labeled])[0], model.predict(x[pool])[0]
        truth = [1] * len(of_labeled) + [0] * len(of_pool)
        assert roc_auc_score(truth, torch.cat([of_labeled, of_pool])) > 0.6
        selected = of_pool.argsort()[:100]
        assert of_pool[selected].mean() < of_pool.mean()
        assert (y[pool][selected] >= 5).double().mean() > 0.8
        for name in ("loss", "entropy", "discriminator"):
            assert history.losses[name][-1] < history.losses[name][0], name
