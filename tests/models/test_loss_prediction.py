"""Learning loss: the ranking loss by hand, taps, what is detached when, and ranks of held-out losses."""

import copy
import inspect

import numpy as np
import pytest
import torch
from effects import Mlp, mnist
from torch.nn import functional

from alkernels.models._training import Batches
from alkernels.models.loss_prediction import LossPrediction, loss_prediction_loss
from alkernels.models.posterior import derived_seed


def seeded_network(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def convolutional():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(inplace=True),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 36, 5),
        torch.nn.ReLU(inplace=True),
        torch.nn.Linear(5, 3),
    )


def small(seed=0, **options):
    return LossPrediction(
        seeded_network(lambda: Mlp(2, 3, hidden=8), seed), ["first", "second"], channels=[8, 8], generator=0, **options
    )


def problem(rows=40):
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(3))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def sgd(rate):
    return lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9, weight_decay=5e-4)


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class TestLoss:
    def test_by_hand(self):
        # pairs (0, 3): 3 > 0, gap 0.5, max(0, 1 - 0.5) = 0.5; (1, 2): a tie counts as -1, gap 0: 1
        loss = loss_prediction_loss(torch.tensor([2.0, 0.0, 0.0, 1.5]), torch.tensor([3.0, 1.0, 1.0, 0.0]))
        assert loss.item() == pytest.approx((0.5 + 1) / 2)
        # (0, 3): 1 < 4, gap 2, max(0, 2 + 0.5); (1, 2): 2 > 1, gap 3, max(0, -3 + 0.5)
        loss = loss_prediction_loss(torch.tensor([2.0, 3.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 1.0, 4.0]), margin=0.5)
        assert loss.item() == pytest.approx((2.5 + 0) / 2)

    def test_ties_push_the_first_below_the_second(self):
        predicted = torch.tensor([0.25, -0.25], requires_grad=True)
        loss_prediction_loss(predicted, torch.tensor([1.0, 1.0])).backward()
        assert predicted.grad.tolist() == [1.0, -1.0]

    def test_the_middle_of_an_odd_number_is_left_out(self):
        predicted, losses = torch.tensor([2.0, 0.0, 9.0, 0.0, 1.5]), torch.tensor([3.0, 1.0, -7.0, 1.0, 0.0])
        assert loss_prediction_loss(predicted, losses).item() == pytest.approx(0.75)

    def test_no_gradient_goes_into_the_losses(self):
        predicted, losses = (torch.tensor(v, requires_grad=True) for v in ([0.0, 1.0], [2.0, 1.0]))
        loss_prediction_loss(predicted, losses).backward()
        assert predicted.grad.tolist() == [-1.0, 1.0] and losses.grad is None

    def test_bad_input(self):
        for predicted, losses in (([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([[1.0, 2.0]], [[1.0, 2.0]])):
            with pytest.raises(ValueError, match="predicted and losses must be two vectors of the same length"):
                loss_prediction_loss(torch.tensor(predicted), torch.tensor(losses))
        with pytest.raises(ValueError, match="margin must be above 0 and finite, got 0"):
            loss_prediction_loss(torch.zeros(2), torch.zeros(2), margin=0)


class TestTaps:
    def test_what_is_predicted_by_hand(self):
        model = seeded_network(convolutional).eval()
        module = LossPrediction(model, ["1", "4"], example=torch.zeros(2, 1, 6, 6), width=7, generator=0)
        assert module.channels == (4, 5)
        x = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        outputs, predicted = module(x)
        # both taps are of layers that a ReLU overwrites in place
        normalised = model[1](model[0](x))
        hidden = model[4](normalised.relu().flatten(1))
        parts = [module.narrowing[0](normalised.mean((2, 3))).relu(), module.narrowing[1](hidden).relu()]
        assert torch.allclose(predicted, module.joining(torch.cat(parts, 1))[:, 0], atol=1e-6)
        assert torch.allclose(outputs, model[6](hidden.relu()), atol=1e-6) and predicted.shape == (3,)

    def test_gradients_pass_layers_that_work_in_place(self):
        model = seeded_network(convolutional)
        module = LossPrediction(model, ["1", "4"], channels=[4, 5], generator=0)
        module(torch.randn(3, 1, 6, 6))[1].sum().backward()
        assert model[0].weight.grad.abs().sum() > 0

    def test_detached_features_let_no_gradient_into_the_model(self):
        module = small()
        x, _ = problem()
        module(x, detach=True)[1].sum().backward()
        assert all(p.grad is None for p in module.model.parameters())
        assert all(p.grad is not None for p in module.narrowing.parameters())
        module(x)[1].sum().backward()
        assert module.model.first.weight.grad.abs().sum() > 0

    def test_hooks_are_there_during_a_forward_pass_only(self):
        module = small()
        x, y = problem()
        assert hooks(module) == 0
        module(x)
        module.fit((x, y), epochs=1, generator=0)
        module.predict(x)
        assert hooks(module) == 0
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            module(torch.zeros(2, 5))
        assert hooks(module) == 0
        other = copy.deepcopy(module)
        assert torch.equal(other.predict(x), module.predict(x))

    def test_a_network_gives_what_it_gave(self):
        module = small()
        x, _ = problem()
        assert torch.equal(module(x)[0], module.model(x))

    def test_the_dry_run_changes_nothing(self):
        model = seeded_network(convolutional)
        before = copy.deepcopy(model.state_dict())
        state = torch.get_rng_state()
        LossPrediction(model, ["1"], example=np.ones((4, 1, 6, 6)), generator=0)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert model.training and model[1].training and torch.equal(torch.get_rng_state(), state)

    def test_the_seed_decides_the_first_weights(self):
        a, b, c = small(), small(), LossPrediction(Mlp(2, 3), ["first"], channels=[128], generator=1)
        assert torch.equal(a.joining.weight, b.joining.weight)
        assert not torch.equal(a.joining.weight[:, :128], c.joining.weight)

    def test_in_float64(self):
        module = LossPrediction(Mlp(2, 3).double(), ["first"], channels=[128], generator=0)
        assert module(torch.zeros(1, 2, dtype=torch.float64))[1].dtype == torch.float64

    @pytest.mark.parametrize(
        "layers, options, message",
        [
            (["third"], {"channels": [3]}, "layers must be of first, second, head, got 'third'"),
            ("first", {"channels": [3]}, "layers must be one or more names of layers in a list, got 'first'"),
            ([], {"channels": []}, "layers must be one or more names"),
            (["first", "first"], {"channels": [3, 3]}, "layers must name each layer once"),
            (["first"], {}, "either example or channels must be given, got none"),
            (["first"], {"channels": [8], "example": torch.zeros(1, 2)}, "either example or channels .* got both"),
            (["first"], {"channels": [8, 8]}, "channels must have a width for each of 1 layers, got 2"),
            (["first"], {"channels": [0]}, "channels must be at least 1, got 0"),
            (["first"], {"channels": [8], "width": 0}, "width must be at least 1, got 0"),
            (["first"], {"example": torch.zeros(0, 2)}, "example must have at least one row"),
        ],
    )
    def test_bad_input(self, layers, options, message):
        with pytest.raises(ValueError, match=message):
            LossPrediction(Mlp(2, 3, hidden=8), layers, **options)

    def test_layers_that_cannot_be_tapped(self):
        class Odd(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.twice, self.never = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
                self.pair, self.flat = torch.nn.LSTM(2, 2), torch.nn.Flatten(0)
                self.sequence = torch.nn.Unflatten(1, (2, 1))

            def forward(self, x):
                self.pair(x)
                self.flat(x)
                self.sequence(x)
                return self.twice(self.twice(x))

        x = torch.zeros(2, 2)
        for layer, message in {
            "twice": "'twice' runs more than once",
            "never": "layers must run in a forward pass, and 'never' does not",
            "pair": r"layers must give a tensor .* and 'pair' gives a tuple",
            "flat": r"and 'flat' gives shape \(4,\)$",
            "sequence": r"'sequence' gives shape \(2, 2, 1\), where channels cannot be told .*: name a layer",
        }.items():
            model = Odd()
            with pytest.raises(ValueError, match=message):
                LossPrediction(model, [layer], example=x)
            assert hooks(model) == 0
        with pytest.raises(ValueError, match="channels must be 8 for layer 'first', got 5"):
            LossPrediction(Mlp(2, 3, hidden=8), ["first"], channels=[5])(x)


class TestFit:
    def test_a_step_descends_both_losses_together(self):
        module = small()
        x, y = problem()
        twin = copy.deepcopy(module)
        history = module.fit(
            (x, y), epochs=1, weight=0.7, margin=0.5, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), generator=0
        )
        rows = Batches(40, 128, derived_seed(0, "labeled")).next()
        logits, predicted = twin(x[rows])
        losses = functional.cross_entropy(logits, y[rows], reduction="none")
        ranking = loss_prediction_loss(predicted, losses, margin=0.5)
        (losses.mean() + 0.7 * ranking).backward()
        for new, old in zip(module.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(new, old - 0.1 * old.grad, atol=1e-6)
        wanted = {"loss": losses.mean() + 0.7 * ranking, "task": losses.mean(), "ranking": ranking}
        assert {k: v[0] for k, v in history.losses.items()} == pytest.approx({k: v.item() for k, v in wanted.items()})

    def test_after_detaching_the_model_trains_as_alone(self):
        x, y = problem()
        options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "milestones": (), "generator": 0}
        detached, alone, joint = small(), small(), small()
        detached.fit((x, y), epochs=3, detach_after=0, **options)
        alone.fit((x, y), epochs=3, weight=0, detach_after=None, **options)
        joint.fit((x, y), epochs=3, detach_after=None, **options)
        assert torch.equal(detached.model.first.weight, alone.model.first.weight)
        assert not torch.equal(detached.model.first.weight, joint.model.first.weight)
        assert not torch.equal(detached.joining.weight, alone.joining.weight)
        # detached from the third epoch on: unlike either
        later, before = small(), small()
        later.fit((x, y), epochs=3, detach_after=2, **options)
        before.fit((x, y), epochs=2, detach_after=2, **options)
        whole = small()
        whole.fit((x, y), epochs=2, detach_after=None, **options)
        assert torch.equal(before.model.first.weight, whole.model.first.weight)
        assert not torch.equal(later.model.first.weight, joint.model.first.weight)

    def test_defaults_are_those_of_the_paper(self):
        made = []

        def spy(parameters):
            made.append(torch.optim.SGD(parameters, lr=1.0))
            return made[0]

        small().fit(problem(), epochs=3, milestones=(1, 3), optimizer=spy, generator=0)
        assert made[0].param_groups[0]["lr"] == pytest.approx(0.01)
        assert len(made[0].param_groups[0]["params"]) == 6 + 4 + 2
        content = {}
        original = torch.optim.SGD.__init__

        def init(self, params, **options):
            content.update(options)
            original(self, params, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.SGD, "__init__", init)
            small().fit(problem(), epochs=1, generator=0)
        assert content == {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
        defaults = {name: p.default for name, p in inspect.signature(LossPrediction.fit).parameters.items()}
        wanted = {"epochs": 200, "detach_after": 120, "weight": 1.0, "margin": 1.0, "batch_size": 128}
        assert {name: defaults[name] for name in wanted} == wanted and defaults["milestones"] == (160,)
        assert inspect.signature(loss_prediction_loss).parameters["margin"].default == 1.0
        assert inspect.signature(LossPrediction).parameters["width"].default == 128

    @pytest.mark.parametrize("after", [1, 2, 5])
    def test_an_interrupted_run_ends_as_a_whole_one(self, after, tmp_path):
        options = {"epochs": 4, "batch_size": 20, "detach_after": 2, "milestones": (3,), "generator": 0}
        whole = small()
        wanted = whole.fit(problem(), **options)
        calls = []

        def stop(logits, labels):
            calls.append(1)
            if len(calls) == 2 * after:
                raise KeyboardInterrupt
            return functional.cross_entropy(logits, labels, reduction="none")

        stop.__qualname__ = loss.__qualname__
        path = tmp_path / "c.pt"
        if after < 5:
            with pytest.raises(KeyboardInterrupt):
                small().fit(problem(), loss=stop, checkpoint=path, **options)
        module = small()
        assert module.fit(problem(), loss=loss, checkpoint=path, **options) == wanted
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), whole.parameters(), strict=True))
        with pytest.raises(ValueError, match="detach_after was 2 and is None now"):
            module.fit(problem(), loss=loss, checkpoint=path, **(options | {"detach_after": None}))

    def test_a_model_in_evaluation_mode_is_trained_and_its_frozen_parts_are_not(self):
        def tracked(prepare):
            model = seeded_network(convolutional)
            prepare(model)
            module = LossPrediction(model, ["4"], channels=[5], generator=0)
            module.fit((torch.randn(8, 1, 6, 6), torch.arange(8) % 3), epochs=2, generator=0)
            return int(model[1].num_batches_tracked)

        assert tracked(lambda model: model.eval()) == 2 and tracked(lambda model: model[1].eval()) == 0

    def test_an_odd_row_out(self):
        x, y = problem(3)
        history = small().fit((x, y), epochs=2, batch_size=2, generator=0)
        assert len(history.losses["ranking"]) == 2

    @pytest.mark.parametrize(
        "options, error, message",
        [
            ({"labeled": problem(0)}, ValueError, "labeled must have at least two rows, got 0: there is nothing to"),
            ({"labeled": problem(1)}, ValueError, "labeled must have at least two rows, got 1"),
            ({"labeled": (torch.zeros(2, 2), [0, 3])}, ValueError, "labels between 0 and 2, got 3"),
            ({"batch_size": 1}, ValueError, "batch_size must be at least 2, as rows are compared in pairs"),
            ({"detach_after": -1}, ValueError, "detach_after must not be negative, got -1"),
            ({"weight": -1.0}, ValueError, "weight must be finite and not negative"),
            ({"margin": 0.0}, ValueError, "margin must be above 0"),
            ({"milestones": (0,)}, ValueError, "milestones must be at least 1, got 0"),
            ({"loss": 3}, TypeError, "loss must be a function, got int"),
            ({"loss": lambda o, y: 1.0}, TypeError, "loss must give a tensor, got float"),
            ({"loss": functional.cross_entropy}, ValueError, r"loss must give one number a row, shape \(40,\), got"),
        ],
    )
    def test_bad_input(self, options, error, message):
        options = {"labeled": problem(), "epochs": 1} | options
        with pytest.raises(error, match=message):
            small().fit(options.pop("labeled"), **options)


def loss(logits, labels):
    return functional.cross_entropy(logits, labels, reduction="none")


class TestPredict:
    def test_as_forward_in_evaluation_mode(self):
        model = seeded_network(convolutional)
        module = LossPrediction(model, ["1", "4"], channels=[4, 5], generator=0)
        x = torch.randn(7, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        scores = module.predict(x, batch_size=3)
        assert module.training and model[1].training
        assert scores.dtype == torch.float64 and scores.shape == (7,) and not scores.requires_grad
        with torch.no_grad():
            assert torch.allclose(scores, module.eval()(x)[1].double(), atol=1e-6)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4)
        assert torch.allclose(module.predict(loader), scores, atol=1e-6)
        assert isinstance(module.predict(x.numpy()), np.ndarray)


class TestEffect:
    """A9: predicted losses rank held-out ones."""

    @pytest.mark.parametrize("seed", [0, 1])
    def test_ranks_of_held_out_losses(self, seed):
        x, y = mnist()
        order = torch.randperm(5000, generator=torch.Generator().manual_seed(seed))
        labeled, pool = order[:1000], order[1000:]
        model = seeded_network(lambda: Mlp(784, 10), seed)
        module = LossPrediction(model, ["first", "second"], channels=[128, 128], generator=seed)
        module.fit(
            (x[labeled], y[labeled]),
            epochs=40,
            detach_after=24,
            milestones=(32,),
            optimizer=sgd(0.02),
            generator=seed,
        )
        predicted = module.predict(x[pool])
        true = functional.cross_entropy(model(x[pool]), y[pool], reduction="none").detach()
        i, j = torch.randint(len(pool), (2, 20_000), generator=torch.Generator().manual_seed(seed))
        i, j = i[true[i] != true[j]], j[true[i] != true[j]]
        assert ((predicted[i] > predicted[j]) == (true[i] > true[j])).double().mean() >= 0.70
        assert true[predicted.topk(200).indices].mean() >= 1.3 * true.mean()
