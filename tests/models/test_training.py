"""The loop that all trainers share, by way of the classifier's: data, callbacks, early stop, checkpoints, resume."""

import collections
import pathlib

import numpy as np
import pytest
import torch
from torch.nn import functional

import alkernels as alk
from alkernels.models._state import evaluating
from alkernels.models._training import Batches, Rows, outputs_of
from alkernels.models.fitting import fit
from alkernels.models.loss_prediction import LossPrediction
from alkernels.models.mal import MAL
from alkernels.models.vaal import VAAL


class Pairs(torch.utils.data.Dataset):
    def __init__(self, x, y=None):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] if self.y is None else (self.x[i], self.y[i])


def problem(rows=50, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=g)
    return x, (x[:, 0] > 0).long()


def network(seed=0, hidden=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(3, hidden),
            torch.nn.BatchNorm1d(hidden),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(hidden, 2),
        )


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.03)


def same(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class TestBatches:
    def test_each_walk_has_each_row_once_in_batches_of_nearly_one_size(self):
        batches = Batches(13, 4, seed=0)
        walks = [[batches.next() for _ in range(batches.an_epoch)] for _ in range(2)]
        for walk in walks:
            assert [len(rows) for rows in walk] == [4, 3, 3, 3]
            assert sorted(torch.cat(walk).tolist()) == list(range(13))
        assert torch.cat(walks[0]).tolist() != torch.cat(walks[1]).tolist()

    def test_no_batch_of_one_where_two_share_the_rows(self):
        batches = Batches(129, 128, seed=0)
        assert [len(batches.next()) for _ in range(2)] == [65, 64]

    def test_goes_on_from_its_state_in_the_middle_of_a_walk(self):
        first, second = Batches(13, 4, seed=0), Batches(13, 4, seed=1)
        first.next()
        second.load_state_dict(first.state_dict())
        assert all(torch.equal(first.next(), second.next()) for _ in range(9))


class TestRows:
    @pytest.mark.parametrize("kind", ["tensor", "array", "mapped", "dataset"])
    def test_all_kinds_give_the_same_rows(self, kind, tmp_path):
        x, y = problem(9)
        if kind == "mapped":
            np.save(tmp_path / "x.npy", x.numpy())
            data = np.load(tmp_path / "x.npy", mmap_mode="r"), y.int().numpy()
        else:
            data = {"tensor": (x, y), "array": (x.numpy(), y.tolist()), "dataset": Pairs(x, y)}[kind]
        rows = Rows(data, "labeled", labeled=True)
        some, labels = rows.gather(torch.tensor([7, 0, 7]))
        assert torch.equal(some, x[[7, 0, 7]]) and torch.equal(labels, y[[7, 0, 7]]) and labels.dtype == torch.int64
        assert rows.count == 9 and rows.row_shape == (3,)
        assert torch.equal(torch.cat([part for part, _ in rows.tiles(4)]), x)

    def test_inputs_alone(self):
        x, y = problem(9)

        class Duck:
            def __len__(self):
                return 9

            def __getitem__(self, i):
                return x[i], y[i]

        _, labels = Rows(Duck(), "x", labeled=True).gather(torch.tensor([3]))
        assert labels.tolist() == [int(y[3])]
        for data in (x, x.numpy(), Pairs(x), Pairs(x, y), Duck()):
            some, labels = Rows(data, "x", labeled=False).gather(torch.tensor([3]))
            assert torch.equal(some, x[3:4]) and labels is None

    def test_bad_data(self):
        x, y = problem(9)
        with pytest.raises(TypeError, match=r"labeled must be a pair \(x, y\) or a Dataset of pairs, got a Tensor"):
            Rows(x, "labeled", labeled=True)
        with pytest.raises(TypeError, match="x must be a tensor, an array or a map-style Dataset, got a tuple of 2"):
            Rows((x, y), "x", labeled=False)
        with pytest.raises(ValueError, match=r"a label for each of its 9 rows, got labels of shape \(8,\)"):
            Rows((x, y[:8]), "labeled", labeled=True)
        with pytest.raises(TypeError, match=r"labeled must give pairs \(x, y\), got a Tensor"):
            Rows(Pairs(x), "labeled", labeled=True).gather(torch.tensor([0]))

        class Endless(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(x)

        with pytest.raises(TypeError, match="x must be a map-style Dataset with a length, got Endless"):
            Rows(Endless(), "x", labeled=False)


class TestOutputs:
    def test_arrays_are_as_the_callers(self):
        x, y = problem(9)
        module = torch.nn.Linear(3, 2)
        wanted = module(x).detach()

        def run(data):
            return outputs_of(lambda batch: (module(batch),), data, [module], 4)[0]

        loader = torch.utils.data.DataLoader(Pairs(x, y), batch_size=5)
        for data in (x, Pairs(x), Pairs(x, y), loader, x.double()):
            assert isinstance(run(data), torch.Tensor) and torch.allclose(run(data), wanted)
        assert isinstance(run(x.numpy()), np.ndarray) and np.allclose(run(x.numpy()), wanted)
        assert torch.allclose(run([x[:4], x[4:]]), wanted)
        for empty in (x[:0], []):
            with pytest.raises(ValueError, match="there is nothing to predict"):
                run(empty)
        for other in (3, (x, x), {"x": x}):
            with pytest.raises(TypeError, match="x must be a tensor, an array, a Dataset or batches of a DataLoader"):
                run(other)
        for options, message in (
            ({"shuffle": True}, "in order, got one with a RandomSampler"),
            ({"drop_last": True}, "every row"),
        ):
            with pytest.raises(ValueError, match=f"x must give .*{message}"):
                run(torch.utils.data.DataLoader(Pairs(x), batch_size=5, **options))

    def test_random_numbers_are_as_they_were(self):
        x, _ = problem(9)
        before = torch.get_rng_state()
        modules = [
            (LossPrediction(network(), ["2"], channels=[6], generator=0), lambda m, d: m.predict(d)),
            (VAAL.for_data(x, hidden=4, latent=2, generator=0), lambda m, d: m.predict(d)),
            (MAL(torch.nn.Linear(3, 4), 4, 2, generator=0), lambda m, d: m.predict(d)[0]),
        ]
        torch.set_rng_state(before)

        class Noisy(Pairs):
            def __getitem__(self, i):
                return self.x[i] + torch.randn(3)

        for module, predict in modules:
            for data in (torch.utils.data.DataLoader(Pairs(x), batch_size=5), Noisy(x)):
                assert len(predict(module, data)) == 9
                assert torch.equal(torch.get_rng_state(), before)

    def test_each_part_gets_its_own_mode_back(self):
        module = network()
        module[1].eval()
        with pytest.raises(KeyError), evaluating(module):
            assert not module.training and not module[3].training and not torch.is_grad_enabled()
            raise KeyError
        assert module.training and module[3].training and not module[1].training and torch.is_grad_enabled()


class TestFit:
    def test_losses_and_the_first_update_by_hand(self):
        # logits 0: loss log 2; gradient of the logits (p - onehot) / 2 rows
        model = torch.nn.Linear(1, 2, bias=False)
        torch.nn.init.zeros_(model.weight)
        data = torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1])
        history = fit(model, data, epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=1.0), generator=0)
        assert history.losses == {"loss": [pytest.approx(np.log(2))]} and history.best_epoch == 0
        # d/dW0 = (-0.5 * 1 + 0.5 * 3) / 2 = 0.5, d/dW1 = -0.5
        assert model.weight.flatten().tolist() == pytest.approx([-0.5, 0.5])

    def test_validation_is_the_mean_over_rows(self):
        model = network()
        x, y = problem(1500)
        seen = []
        history = fit(
            model,
            problem(20),
            epochs=2,
            validation=(x, y),
            generator=0,
            on_epoch=lambda m: seen.append(float(functional.cross_entropy(m(x), y))),
        )
        assert history.losses["validation"] == pytest.approx(seen, rel=1e-5)

    def test_learns_from_all_kinds_of_data(self):
        x, y = problem(60)
        ends = []
        for data in ((x, y), (x.numpy().astype(np.float64), y.numpy()), Pairs(x, y)):
            model = network()
            history = fit(model, data, epochs=30, batch_size=20, optimizer=adam, generator=3)
            assert history.losses["loss"][-1] < 0.8 * history.losses["loss"][0]
            ends.append(model)
        assert same(ends[0], ends[1]) and same(ends[0], ends[2])

    def test_trackers_hear_of_each_row_before_the_update(self):
        x, y = problem(30)
        tracker = alk.strategies.ForgettingTracker(30)
        model = torch.nn.Linear(3, 2)
        heard = []

        def on_batch(rows, logits, labels):
            assert torch.equal(logits, model(x[rows])) and not logits.requires_grad and torch.equal(labels, y[rows])
            heard.append(rows)
            tracker.update(rows, logits, labels)

        fit(model, (x, y), epochs=4, batch_size=8, generator=0, on_batch=on_batch)
        assert tracker.presentations.tolist() == [4] * 30 and len(heard) == 16

    def test_on_epoch_is_called_in_evaluation_mode(self):
        seen = []
        model = network()
        fit(
            model,
            problem(),
            epochs=3,
            generator=0,
            on_epoch=lambda m: seen.append((m is model, m.training, m[3].training, torch.is_grad_enabled())),
        )
        assert seen == [(True, False, False, False)] * 3

    def test_seeds_decide_all_and_the_callers_numbers_stay(self):
        ends = []
        for outside in (1, 2):
            torch.manual_seed(outside)
            before = torch.get_rng_state()
            ends.append(network())
            fit(ends[-1], problem(), epochs=2, batch_size=16, generator=5)
            assert torch.equal(torch.get_rng_state(), before)
        assert same(*ends)
        other = network()
        fit(other, problem(), epochs=2, batch_size=16, generator=6)
        assert not same(other, ends[0])
        of_generator = network()
        fit(of_generator, problem(), epochs=2, batch_size=16, generator=torch.Generator().manual_seed(1))
        assert not same(of_generator, ends[0])

    def test_items_that_draw_do_not_disturb_the_caller_either(self):
        x, y = problem(20)

        class Noisy(Pairs):
            def __getitem__(self, i):
                return x[i] + torch.randn(3), y[i]

        before = torch.get_rng_state()
        ends = [network(), network()]
        for model in ends:
            fit(model, Noisy(x, y), epochs=2, generator=0)
        assert torch.equal(torch.get_rng_state(), before) and same(*ends)

    def test_modes_come_back(self):
        model = network()
        model.eval()
        model[3].train()
        fit(model, problem(), epochs=1, generator=0)
        assert [m.training for m in model.modules()] == [False, False, False, False, True, False]

    def test_frozen_parts_stay_in_evaluation_mode(self):
        def statistics(frozen, whole):
            model = network()
            model.train(not whole)
            if frozen:
                model[1].eval()
            modes = []
            fit(model, problem(), epochs=2, generator=0, on_batch=lambda *_: modes.append([m.training for m in model]))
            return int(model[1].num_batches_tracked), modes[-1]

        assert statistics(frozen=True, whole=False) == (0, [True, False, True, True, True])
        assert statistics(frozen=False, whole=False) == (2, [True] * 5)
        assert statistics(frozen=True, whole=True) == (2, [True] * 5)

    def test_modes_that_a_function_changes_come_back_each_epoch(self):
        model, modes = network(), []
        fit(
            model,
            problem(),
            epochs=2,
            generator=0,
            on_batch=lambda *_: modes.append(model.training),
            on_step=lambda: model.eval(),
        )
        assert modes == [True, True]

    def test_validation_comes_in_batches_of_the_same_size(self):
        sizes, model = [], torch.nn.Linear(3, 2)
        model.register_forward_hook(lambda m, inputs, out: None if m.training else sizes.append(len(inputs[0])))
        fit(model, problem(8), epochs=1, batch_size=4, validation=problem(10), generator=0)
        assert sizes == [4, 4, 2]

    def test_a_loss_of_the_whole_batch(self):
        # (w - 0)^2 + w x y summed: gradients 2 w + x y
        model, steps = Weight(), []
        torch.nn.init.constant_(model.w, 3.0)
        seen = []

        def batch_loss(given, x, y):
            seen.append((given is model, given.training, x.shape, y.dtype))
            return given.w**2 + given.w * (x[:, 0] * y).sum()

        history = fit(
            model,
            (torch.full((2, 1), 2.0), torch.tensor([1, 2])),
            epochs=1,
            batch_loss=batch_loss,
            validation=(torch.full((1, 1), 2.0), torch.tensor([1])),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
            on_step=lambda: steps.append(model.w.item()),
        )
        # 9 + 3 * 6; w = 3 - 0.5 * (6 + 6) = -3; validation 9 - 6
        assert history.losses == {"loss": [27.0], "validation": [3.0]} and steps == [-3.0]
        assert seen == [(True, True, (2, 1), torch.int64), (True, False, (1, 1), torch.int64)]

    def test_progress_shows_the_losses(self, capsys):
        fit(network(), problem(), epochs=1, generator=0, progress=True)
        shown = capsys.readouterr().err
        assert "Training" in shown and "loss=" in shown
        fit(network(), problem(), epochs=1, generator=0)
        assert capsys.readouterr().err == ""

    def test_schedulers_step_after_each_epoch(self):
        made = []

        def optimizer(parameters):
            made.append(torch.optim.SGD(parameters, lr=1.0))
            return made[-1]

        def step_lr(o):
            return torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5)

        fit(network(), problem(), epochs=3, generator=0, optimizer=optimizer, scheduler=step_lr)
        assert made[-1].param_groups[0]["lr"] == 0.125
        # a loss that stays as it is: three epochs without a lower one
        fit(
            torch.nn.Linear(3, 2),
            problem(),
            epochs=4,
            loss=lambda logits, labels: 0 * logits.sum() + 1,
            optimizer=optimizer,
            scheduler=lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
        )
        assert made[-1].param_groups[0]["lr"] == pytest.approx(1e-3)

    @pytest.mark.parametrize(
        "options, error, message",
        [
            ({"labeled": (torch.zeros(0, 3), [])}, ValueError, "labeled must have at least one row, got none"),
            ({"labeled": (torch.zeros(2, 3), [0, 2])}, ValueError, "labels between 0 and 1, got 2"),
            ({"labeled": (torch.zeros(2, 3), [0, -100])}, ValueError, "labels between 0 and 1, got -100"),
            ({"labeled": (torch.zeros(2, 3), [0.0, 1.0])}, TypeError, "labeled must have integer labels"),
            ({"validation": (torch.zeros(0, 3), [])}, ValueError, "validation must have at least one row"),
            ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
            ({"epochs": 1.5}, TypeError, "epochs must be an integer"),
            ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
            ({"patience": 0}, ValueError, "patience must be at least 1, got 0"),
            ({"progress": 1}, TypeError, "progress must be True or False"),
            ({"optimizer": 0.1}, TypeError, "optimizer must be a function of parameters, .* got a float"),
            ({"optimizer": list}, TypeError, "optimizer must give a torch.optim.Optimizer, got a list"),
            ({"optimizer": torch.optim.LBFGS}, TypeError, "optimizer must take steps without a closure, got a LBFGS"),
            ({"scheduler": lambda o: None}, TypeError, "scheduler must give a learning rate scheduler, got NoneType"),
            *[
                ({name: 3}, TypeError, f"{name} must be a function, got int")
                for name in ("scheduler", "loss", "batch_loss", "on_batch", "on_step", "on_epoch")
            ],
            ({"batch_loss": len, "loss": len}, ValueError, "batch_loss must be given without loss, got both"),
            ({"batch_loss": len, "on_batch": len}, ValueError, "batch_loss must be given without on_batch, got both"),
            (
                {"batch_loss": lambda m, x, y: m(x)},
                ValueError,
                r"batch_loss must give a tensor of one number, got shape",
            ),
            ({"loss": lambda o, y: 1.0}, ValueError, "loss must give a tensor of one number, got a float"),
            ({"trackers": [1]}, TypeError, "trackers must be a dict of trackers by name, got list"),
            ({"trackers": {1: 1}}, TypeError, "trackers must have names that are strings, got 1"),
            ({"generator": "a"}, TypeError, "generator must be a torch.Generator"),
            ({"checkpoint": 3}, TypeError, "checkpoint must be a path, got a int"),
            ({"checkpoint": "/no/such/folder/a.pt"}, FileNotFoundError, "checkpoint must be in an existing folder"),
            ({"checkpoint": "/"}, IsADirectoryError, "checkpoint must be a file"),
        ],
    )
    def test_bad_input(self, options, error, message):
        options = {"labeled": problem(), "epochs": 1, "generator": 0} | options
        with pytest.raises(error, match=message):
            fit(network(), options.pop("labeled"), **options)

    def test_a_model_that_cannot_be_trained(self):
        with pytest.raises(ValueError, match="Sequential must have parameters that want a gradient, got none"):
            fit(network().requires_grad_(False), problem(), epochs=1)
        with pytest.raises(ValueError, match=r"model must give logits \[B, C\]"):
            fit(torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)), problem(), epochs=1)
        with pytest.raises(TypeError, match="model must give a tensor of logits, or `loss` must be given; got a tuple"):
            fit(torch.nn.LSTM(3, 2), problem(), epochs=1)

    def test_another_loss_takes_labels_of_any_kind(self):
        x, _ = problem()
        model = torch.nn.Linear(3, 1)
        history = fit(model, (x, x[:, :1]), epochs=50, loss=functional.mse_loss, generator=0)
        assert history.losses["loss"][-1] < history.losses["loss"][0]

    def test_a_loss_that_is_not_finite(self, tmp_path):
        x, y = problem()
        x[3, 1] = torch.nan
        path = tmp_path / "c.pt"
        with pytest.raises(RuntimeError, match="training went astray: loss is nan in epoch 0; look for values"):
            fit(network(), (x, y), epochs=1, checkpoint=path)
        assert not path.exists()


class Weight(torch.nn.Module):
    """One number, whose loss is (w - 1)^2 whatever the data."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.w.expand(len(x))


def away(model, **options):
    # w - 1 goes -1, 1.5, -2.25, ...: losses 1, 2.25, 5.0625, ...
    return fit(
        model,
        (torch.zeros(4, 1), torch.ones(4)),
        loss=functional.mse_loss,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.25),
        generator=0,
        **options,
    )


class TestEarlyStop:
    def test_on_the_loss_of_training(self):
        model = Weight()
        history = away(model, epochs=10, patience=2)
        assert history.losses == {"loss": [1.0, 2.25, 5.0625]} and history.best_epoch == 0
        assert model.w.item() == 2.5
        without = Weight()
        history = away(without, epochs=3)
        assert history.best_epoch == 2 and without.w.item() == 1 + 1.5**3

    def test_on_the_loss_of_validation(self):
        model = Weight()
        # the loss against -2 is 20.25 at w = 2.5, 0.5625 at -1.25 and 40.6 at 4.375
        history = away(model, epochs=10, patience=2, validation=(torch.zeros(3, 1), -2 * torch.ones(3)))
        assert history.losses["validation"] == pytest.approx([20.25, 0.5625, 40.640625, 4.25390625])
        assert history.best_epoch == 1 and model.w.item() == -1.25

    def test_a_loss_as_low_as_before_is_no_new_lowest(self):
        history = fit(
            Weight(),
            (torch.zeros(4, 1), torch.ones(4)),
            epochs=10,
            patience=3,
            loss=lambda w, labels: 0 * w.sum() + 1,
            generator=0,
        )
        assert history.losses == {"loss": [1.0] * 4} and history.best_epoch == 0

    def test_a_finished_run_is_not_run_again(self, tmp_path):
        path = tmp_path / "c.pt"
        first = away(Weight(), epochs=10, patience=2, checkpoint=path)
        model = Weight()
        assert away(model, epochs=20, patience=2, checkpoint=path) == first and model.w.item() == 2.5


class Interrupt:
    """Stands for Ctrl-C in the middle of an epoch: after so many steps."""

    def __init__(self, after):
        self.left = after

    def __call__(self, *_):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def careful(model, path, *, on_batch=None, epochs=5, **options):
    """With everything that has a state."""
    options = {
        "labeled": problem(),
        "batch_size": 16,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
        "scheduler": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 3]),
        "validation": problem(20, seed=1),
        "patience": 3,
        "generator": 7,
    } | options
    return fit(model, options.pop("labeled"), epochs=epochs, checkpoint=path, on_batch=on_batch, **options)


class TestCheckpoints:
    @pytest.mark.parametrize("after", [0, 3, 4, 6, 9, 14, 19])
    def test_an_interrupted_run_ends_as_a_whole_one(self, after, tmp_path):
        whole = network()
        wanted = careful(whole, None)
        path = tmp_path / "c.pt"
        outside = torch.get_rng_state()
        with pytest.raises(KeyboardInterrupt):
            careful(network(), path, on_batch=Interrupt(after))
        assert torch.equal(torch.get_rng_state(), outside)
        assert path.exists() and not list(tmp_path.glob(".alkernels*"))
        # four steps an epoch; the first weights of what goes on do not matter, even if none was finished
        torch.manual_seed(99)
        model = network(seed=1)
        steps = []
        assert careful(model, path, on_batch=lambda *_: steps.append(1)) == wanted
        assert same(model, whole) and len(steps) == 20 - after // 4 * 4

    def test_more_epochs(self, tmp_path):
        whole, model = network(), network()
        wanted = careful(whole, None, patience=None)
        careful(model, tmp_path / "c.pt", epochs=2, patience=None)
        again = network(seed=4)
        assert careful(again, tmp_path / "c.pt", patience=None) == wanted and same(again, whole)

    @pytest.mark.parametrize("seeded", [False, True])
    def test_without_a_seed_it_goes_on_as_well(self, seeded, tmp_path):
        generator = torch.Generator().manual_seed(5) if seeded else None
        first = careful(network(), tmp_path / "c.pt", epochs=2, generator=generator, patience=None)
        (tmp_path / "d.pt").write_bytes((tmp_path / "c.pt").read_bytes())
        ends = []
        for name in "cd":  # by now the generator has moved on
            ends.append(network(seed=3))
            history = careful(ends[-1], tmp_path / f"{name}.pt", epochs=4, generator=generator, patience=None)
            assert history.losses["loss"][:2] == first.losses["loss"] and len(history.losses["loss"]) == 4
        assert same(*ends)

    def test_trackers_are_kept(self, tmp_path):
        path = tmp_path / "c.pt"
        whole = alk.strategies.ForgettingTracker(50)
        careful(network(), None, on_batch=whole.update, trackers={"forgetting": whole})
        tracker, interrupt = alk.strategies.ForgettingTracker(50), Interrupt(10)

        def on_batch(*batch):
            tracker.update(*batch)
            interrupt()

        with pytest.raises(KeyboardInterrupt):
            careful(network(), path, on_batch=on_batch, trackers={"forgetting": tracker})
        careful(network(), path, on_batch=tracker.update, trackers={"forgetting": tracker})
        assert tracker.presentations.tolist() == [5] * 50 and torch.equal(tracker.events, whole.events)

    def test_trackers_of_epochs_are_kept(self, tmp_path):
        x, _ = problem()

        def run(tracker, path, **options):
            return careful(
                network(),
                path,
                trackers={"dispersion": tracker},
                on_epoch=lambda model: tracker.update(model(x).argmax(1)),
                **options,
            )

        whole, tracker = (alk.strategies.DispersionTracker(50, 2) for _ in range(2))
        run(whole, None)
        with pytest.raises(KeyboardInterrupt):
            run(tracker, tmp_path / "c.pt", on_batch=Interrupt(10))
        again = alk.strategies.DispersionTracker(50, 2)
        run(again, tmp_path / "c.pt")
        assert again.seen.tolist() == [5] * 50 and torch.equal(again.counts, whole.counts)

    @pytest.mark.parametrize(
        "options, message",
        [
            (
                {"batch_size": 25},
                r"batch_size was 16 and is 25 now, steps an epoch was 4 and is 2 now; delete the file",
            ),
            ({"generator": 8}, "generator was 7 and is 8 now"),
            ({"generator": None}, "generator was 7 and is None now"),
            ({"optimizer": None}, r"optimizer was SGD .* and is Adam .* now"),
            ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9)}, r"'lr': 0.3.* and is SGD .*'lr': 0.2"),
            ({"scheduler": None}, "scheduler was MultiStepLR and is None now"),
            (
                {"scheduler": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 4])},
                r"scheduler.milestones was Counter\(\{2: 1, 3: 1\}\) and is Counter\(\{2: 1, 4: 1\}\) now",
            ),
            ({"batch_loss": lambda model, x, y: model(x).sum()}, "batch_loss was None and is .*lambda.* now"),
            ({"patience": None}, "patience was 3 and is None now"),
            ({"validation": None}, "validation was 20 x 3, content .* and is None now"),
            ({"labeled": problem(49)}, "labeled was 50 x 3, content .* and is 49 x 3, content"),
            ({"labeled": problem(50, seed=1)}, "labeled was 50 x 3, content .* and is 50 x 3, content"),
            ({"labeled": (problem()[0] + 1, problem()[1])}, "labeled was 50 x 3, content .* and is 50 x 3, content"),
            ({"labeled": (problem()[0], 1 - problem()[1])}, "labeled was 50 x 3, content .* and is 50 x 3, content"),
            ({"loss": functional.multi_margin_loss}, "loss was cross_entropy and is multi_margin_loss now"),
            ({"trackers": {"a": alk.strategies.ForgettingTracker(50)}}, r"trackers was \[\] and is \['a'\] now"),
            ({"epochs": 1}, "is of 2 epochs, and epochs is 1 now: it cannot go back; delete the file"),
        ],
    )
    def test_another_run_is_refused(self, options, message, tmp_path):
        path = tmp_path / "c.pt"
        careful(network(), path, epochs=2)
        before = path.read_bytes()
        model = network()
        with pytest.raises(ValueError, match=message) as caught:
            careful(model, path, **({"epochs": 2} | options))
        assert str(path) in str(caught.value)
        assert path.read_bytes() == before and same(model, network())

    def test_another_network_is_refused(self, tmp_path):
        path = tmp_path / "c.pt"
        careful(network(), path, epochs=1)
        with pytest.raises(
            ValueError,
            match=r"model.0.weight was torch.float32 of shape \(6, 3\) and is torch.float32 of shape \(5, 3\)",
        ):
            careful(network(hidden=5), path)
        with pytest.raises(ValueError, match=r"model.0.weight was torch.float32 .* and is torch.float64 of"):
            careful(network().double(), path)
        other = network()
        other[1].running_mean = torch.zeros(())
        with pytest.raises(
            ValueError, match=r"model.1.running_mean was torch.float32 of shape \(6,\) and is .*\(\) now"
        ):
            careful(other, path)
        with pytest.raises(ValueError, match="model was Sequential and is Linear now"):
            careful(torch.nn.Linear(3, 2), path)

    def test_files_that_are_no_checkpoints(self, tmp_path):
        path = tmp_path / "c.pt"
        careful(network(), path, epochs=1)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"c.pt cannot be loaded: it is not complete; delete the file, or give"):
            careful(network(), path)
        torch.save({"a": torch.zeros(3)}, path)
        with pytest.raises(ValueError, match=r"c.pt is none of this library; delete the file, or give another path"):
            careful(network(), path)
        torch.save({"configuration": {}, "evil": pathlib.PurePosixPath("/")}, path)
        with pytest.raises(ValueError, match=r"c.pt cannot be loaded: it holds more than tensors") as caught:
            careful(network(), path)
        assert "weights_only" not in str(caught.value) and "\033" not in str(caught.value)

    def test_states_that_could_not_be_loaded_are_found_at_once(self, tmp_path):
        class Tracker:
            def state_dict(self):
                return {"where": pathlib.PurePosixPath("/")}

            def load_state_dict(self, state_dict):
                raise AssertionError

        class Unpickled(Tracker):
            def state_dict(self):
                return {"list": [1, lambda: 1]}

        class Damaged(Tracker):
            def state_dict(self):
                raise OSError(28, "No space left on device")

        steps = []
        for tracker, error, message in (
            (
                Tracker(),
                ValueError,
                r"c.pt cannot hold tracker a.where, which is a PurePosixPath; states must be of tens",
            ),
            (Unpickled(), ValueError, r"c.pt cannot hold tracker a.list\[1\], which is a function; states must be"),
            (Damaged(), OSError, "No space left"),
            ([], TypeError, r"trackers\['a'\] must have state_dict and load_state_dict, got list"),
        ):
            with pytest.raises(error, match=message):
                careful(network(), tmp_path / "c.pt", trackers={"a": tracker}, on_batch=lambda *_: steps.append(1))
        assert not steps and not list(tmp_path.iterdir())

    def test_a_folder_that_cannot_be_written_to(self, tmp_path, monkeypatch):
        monkeypatch.setattr("os.access", lambda *_: False)
        with pytest.raises(PermissionError, match=r"checkpoint must be in a folder that can be written to, got .*c.pt"):
            careful(network(), tmp_path / "c.pt")

    def test_numbers_of_numpy_are_kept(self, tmp_path):
        def options(kind):
            return {
                "optimizer": lambda p: torch.optim.SGD(p, lr=kind(0.25), momentum=0.9),
                "scheduler": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 3], gamma=kind(0.5)),
            }

        whole, model = network(), network(seed=1)
        wanted = careful(whole, None, **options(float))
        careful(network(), tmp_path / "c.pt", epochs=2, **options(np.float64))
        assert careful(model, tmp_path / "c.pt", **options(float)) == wanted and same(model, whole)

    def test_more_epochs_need_the_same_schedule(self, tmp_path):
        def run(epochs):
            def cosine(optimizer):
                return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)

            careful(network(), tmp_path / "c.pt", epochs=epochs, scheduler=cosine)

        run(2)
        with pytest.raises(ValueError, match=r"scheduler.T_max was 2 and is 4 now; delete the file"):
            run(4)

    def test_a_refused_state_leaves_all_as_it_was(self, tmp_path):
        class Tracker:
            def __init__(self, fits=True):
                self.heard, self.fits = 0, fits

            def state_dict(self):
                return {"heard": self.heard}

            def load_state_dict(self, state_dict):
                if not self.fits and state_dict["heard"]:
                    raise KeyError("other")
                self.heard = state_dict["heard"]

        def run(model, good, bad, made, **options):
            def optimizer(parameters):
                made.append(torch.optim.SGD(parameters, lr=0.3, momentum=0.9))
                return made[-1]

            def on_batch(*_):
                good.heard += 1
                bad.heard += 1

            trackers = {"good": good, "bad": bad}
            careful(model, tmp_path / "c.pt", optimizer=optimizer, on_batch=on_batch, trackers=trackers, **options)

        run(network(), Tracker(), Tracker(), [], epochs=2)
        model, good, made = network(seed=1), Tracker(), []
        with pytest.raises(
            ValueError, match=r"c.pt does not fit tracker bad: 'other'; delete the file, or give"
        ) as caught:
            run(model, good, Tracker(fits=False), made)
        assert isinstance(caught.value.__cause__, KeyError)
        assert same(model, network(seed=1)) and good.heard == 0 and not made[0].state_dict()["state"]

    def test_an_error_in_the_first_epoch_leaves_no_file(self, tmp_path):
        path = tmp_path / "c.pt"

        def fail(*_):
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            careful(network(), path, on_batch=fail)
        assert not path.exists()
        careful(network(), path, epochs=1)
        with pytest.raises(RuntimeError, match="out of memory"):
            careful(network(), path, on_batch=fail)
        assert path.exists()

    def test_labels_of_a_dataset_are_compared(self, tmp_path):
        x, y = problem(20)
        options = {"epochs": 1, "generator": 0, "checkpoint": tmp_path / "c.pt"}
        before = torch.get_rng_state()

        class Noisy(Pairs):
            def __getitem__(self, i):
                return self.x[i] + torch.randn(3), self.y[i]

        fit(network(), Noisy(x, y), **options)
        fit(network(), Noisy(x, y), **options)
        assert torch.equal(torch.get_rng_state(), before)
        with pytest.raises(ValueError, match=r"labeled was 20 x 3, labels .* and is 20 x 3, labels .* now"):
            fit(network(), Noisy(x, 1 - y), **options)

    def test_a_checkpoint_that_cannot_be_written_leaves_the_last(self, tmp_path, monkeypatch):
        path = tmp_path / "c.pt"
        careful(network(), path, epochs=1)
        before = path.read_bytes()

        def save(content, file):
            file.write(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", save)
        with pytest.raises(OSError, match=r"checkpoint .*c.pt could not be written: No space left on device"):
            careful(network(), path)
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c.pt"]

    def test_it_is_read_with_weights_only(self, tmp_path):
        careful(network(), tmp_path / "c.pt", epochs=1)
        content = torch.load(tmp_path / "c.pt", weights_only=True)
        assert content["epoch"] == 1 and isinstance(content["states"]["scheduler 0"]["milestones"], collections.Counter)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
class TestCuda:
    """Networks on a GPU, and data in host memory."""

    def test_resumed_runs_and_the_callers_numbers(self, tmp_path):
        before = torch.get_rng_state(), torch.cuda.get_rng_state()
        whole, model = network().cuda(), network(seed=1).cuda()
        wanted = careful(whole, None)
        careful(network().cuda(), tmp_path / "c.pt", epochs=2)
        history = careful(model, tmp_path / "c.pt")
        assert history.losses["loss"] == pytest.approx(wanted.losses["loss"], rel=1e-3)
        assert torch.equal(torch.get_rng_state(), before[0]) and torch.equal(torch.cuda.get_rng_state(), before[1])

    def test_learned_acquisition(self):
        x, y = problem()
        module = LossPrediction(network().cuda(), ["2"], channels=[6], generator=0)
        module.fit((x, y), epochs=2, batch_size=16, optimizer=adam, generator=0)
        vaal = VAAL.for_data(x, hidden=8, latent=2, device="cuda", generator=0)
        vaal.fit(x[:20], x[20:].cuda(), epochs=2, batch_size=16, generator=0)
        mal = MAL(torch.nn.Linear(3, 4).cuda(), 4, 2, generator=0)
        mal.fit((x[:20], y[:20].cuda()), x[20:], epochs=2, batch_size=16, generator=0)
        for scores in (module.predict(x), vaal.predict(x), *mal.predict(x)):
            assert scores.device == x.device and len(scores) == 50 and torch.isfinite(scores).all()
        assert module.predict(x.cuda()).is_cuda and isinstance(vaal.predict(x.numpy()), np.ndarray)
