"""Ensembles: what each member is trained on and with, and the draws they give."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import alkernels as alk
from alkernels.models.ensembles import (
    Ensemble,
    SnapshotEnsemble,
    SplitHead,
    _bootstrap,
    bootstrapped_ensemble,
    diversity_encouraging_ensemble,
    naive_ensemble,
    trained,
)


def draws(posterior, x, batch_size):
    """Logits [N, K, C] of a pool, batch by batch."""
    for network in posterior.networks:
        network.eval()
    with torch.no_grad(), posterior.drawing() as outputs:
        parts = [torch.stack(list(outputs(lambda m, some=some: m(some))), 1) for some in x.split(batch_size)]
    return torch.cat(parts)


def linear():
    return nn.Linear(4, 3)


def nothing(network, data):
    return None


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def train(network, data, steps=5):
    x, y = data
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(steps):
        some = torch.randint(len(x), (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[some]), y[some]).backward()
        optimizer.step()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def data(rng):
    return torch.randn(30, 4, generator=rng), torch.randint(3, (30,), generator=rng)


class TestEnsemble:
    def test_draws_are_the_members_for_any_batch_size(self, data):
        ensemble = Ensemble([linear() for _ in range(3)])
        wanted = torch.stack([member(data[0]) for member in ensemble.members], 1)
        for batch_size in (30, 7):
            assert torch.allclose(draws(ensemble, data[0], batch_size), wanted, atol=1e-6)
        assert (ensemble.count, ensemble.averaged) == (3, True)
        assert ensemble.networks == list(ensemble.members) and ensemble.network is ensemble.members[0]

    def test_logits_of_the_mean(self):
        # two members that say 0.9 and 0.5 of class 0: the mean is 0.7
        members = [nn.Linear(1, 2, bias=False) for _ in range(2)]
        with torch.no_grad():
            for member, p in zip(members, (0.9, 0.5), strict=True):
                member.weight.copy_(torch.tensor([[math.log(p)], [math.log(1 - p)]]) + 3)
        out = Ensemble(members)(torch.ones(1, 1))
        assert torch.allclose(out, torch.tensor([[math.log(0.7), math.log(0.3)]]), atol=1e-6)
        assert torch.allclose(out.softmax(1), torch.tensor([[0.7, 0.3]]), atol=1e-6)

    def test_a_stochastic_ensemble_is_members_by_dropout_draws(self, data):
        members = [nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 3)) for _ in range(2)]
        with torch.no_grad():
            for number, member in enumerate(members):
                member[3].bias.copy_(9 * nn.functional.one_hot(torch.tensor(number), 3))
        posterior = alk.models.MCDropout(Ensemble(members), draws=4, generator=0)
        arrays = alk.collect(posterior, data[0], ["mc_probs", "probs", "votes"], batch_size=7)
        assert posterior.count == 8 and arrays["votes"].tolist() == [[0] * 4 + [1] * 4] * 30
        for few in arrays["mc_probs"].split(4, 1):
            assert len(few[0].unique(dim=0)) == 4  # masks of their own
        assert torch.allclose(arrays["probs"], arrays["mc_probs"].mean(1))
        again = alk.collect(posterior, data[0], "mc_probs", batch_size=30)["mc_probs"]
        assert torch.allclose(again, arrays["mc_probs"], atol=1e-6)

    def test_logits_of_positions(self):
        ensemble = Ensemble([nn.Conv2d(1, 3, 1) for _ in range(2)])
        x = torch.randn(2, 1, 4, 5)
        wanted = torch.stack([member(x).softmax(1) for member in ensemble.members]).mean(0)
        assert torch.allclose(ensemble(x).exp(), wanted, atol=1e-6)

    def test_moves_and_saves_as_one_module(self):
        ensemble = Ensemble([linear(), linear()]).double()
        assert [member.weight.dtype for member in ensemble.members] == [torch.float64] * 2
        again = Ensemble([linear(), linear()]).double()
        again.load_state_dict(ensemble.state_dict())
        assert same(again, ensemble) and same(copy.deepcopy(ensemble), ensemble)

    def test_bad_members(self):
        with pytest.raises(ValueError, match="members must be at least one network, got none"):
            Ensemble([])
        with pytest.raises(TypeError, match=r"members\[1\] must be a network \(torch.nn.Module\), got int"):
            Ensemble([linear(), 1])
        member = linear()
        with pytest.raises(ValueError, match="members must be distinct networks, got number 0 again as 2"):
            Ensemble([member, linear(), member])


class TestNaiveEnsemble:
    def test_members_are_reproducible_and_differ(self, data):
        first = naive_ensemble(linear, train, data, members=3, generator=5)
        again = naive_ensemble(linear, train, data, members=2, generator=5)
        assert all(same(a, b) for a, b in zip(first.members, again.members, strict=False))
        assert not same(first.members[0], first.members[1]) and not same(first.members[1], first.members[2])
        assert not same(first, naive_ensemble(linear, train, data, members=3, generator=6))
        assert not first.training and not first.members[0].training

    def test_initial_weights_and_the_loop_have_the_members_seed(self):
        seen = []
        naive_ensemble(linear, lambda m, d: seen.append((m.weight.sum().item(), torch.rand(()).item())), None)
        assert len(seen) == 5
        for column in zip(*seen, strict=True):
            assert len(set(column)) == 5

    @pytest.mark.parametrize("broken", [False, True])
    def test_global_randomness_goes_on_as_before(self, data, broken):
        def fit(network, data):
            torch.manual_seed(99)
            if broken:
                raise RuntimeError("diverged")

        torch.manual_seed(7)
        before = torch.get_rng_state()
        try:
            naive_ensemble(linear, fit, data, members=2, generator=0)
        except RuntimeError:
            assert broken
        assert torch.equal(torch.get_rng_state(), before)

    def test_cuda_starts_as_if_nothing_had_been_seeded(self, monkeypatch):
        seeds = []
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
        torch.manual_seed(7)
        naive_ensemble(linear, nothing, None, members=2, generator=0)
        # each member's own, and back
        assert len(seeds) == 5 and seeds[0] == seeds[2] == seeds[4] == 7 and len({*seeds}) == 3

    def test_a_generator_moves_on(self):
        generator = torch.Generator().manual_seed(3)
        first, second = (naive_ensemble(linear, nothing, None, members=1, generator=generator) for _ in range(2))
        assert not same(first, second)

    def test_fit_may_return_the_network(self):
        other = [nn.Linear(4, 3), nn.Linear(4, 3)]
        given = iter(other)
        assert list(naive_ensemble(linear, lambda m, d: next(given), None, members=2).members) == other

    def test_fit_may_be_this_packages(self, data):
        made = []

        def make():
            made.append(linear())
            return made[-1]

        def fit(network, data):
            return alk.models.fit(network, data, epochs=2)

        ensembles = [
            naive_ensemble(make, fit, data, members=2, generator=0),
            bootstrapped_ensemble(make, fit, data, members=2, generator=0),
        ]
        assert [m for e in ensembles for m in e.members] == made
        assert diversity_encouraging_ensemble(make, fit, fit, data, members=2, generator=0).count == 2

    def test_what_was_trained(self):
        one, other = linear(), linear()
        posterior = alk.models.MCDropout(nn.Sequential(linear(), nn.Dropout(0.5)))
        assert trained(one, None, "fit") is one and trained(one, alk.models.History({}, 0), "fit") is one
        assert trained(one, other, "fit") is other and trained(one, posterior, "fit") is posterior
        with pytest.raises(TypeError, match="learn must return None, a network, a posterior or a History, got dict"):
            trained(one, {}, "learn")

    def test_bad_input(self):
        one = linear()
        with pytest.raises(
            ValueError, match=r"make\(\) and fit\(\) must be distinct networks, got number 0 again as 1"
        ):
            naive_ensemble(lambda: one, nothing, None, members=2)
        with pytest.raises(TypeError, match=r"what make\(\) gives must be a network \(torch.nn.Module\), got NoneType"):
            naive_ensemble(lambda: None, nothing, None)
        with pytest.raises(TypeError, match="fit must return None, a network, a posterior or a History, got float"):
            naive_ensemble(linear, lambda m, d: 0.5, None)
        with pytest.raises(TypeError, match=r"what fit\(\) gives must be a network \(torch.nn.Module\), got MCDropout"):
            naive_ensemble(linear, lambda m, d: alk.models.MCDropout(nn.Sequential(m, nn.Dropout(0.5))), None)
        for progress in (1, None):
            with pytest.raises(TypeError, match="progress must be True or False"):
                naive_ensemble(linear, nothing, None, progress=progress)
        with pytest.raises(ValueError, match="members must be at least 1, got 0"):
            naive_ensemble(linear, nothing, None, members=0)
        with pytest.raises(TypeError, match="fit must be a function, got int"):
            naive_ensemble(linear, 1, None)
        with pytest.raises(TypeError, match="make must be a function, got NoneType"):
            naive_ensemble(None, nothing, None)


class TestBootstrappedEnsemble:
    def drawn(self, data, members=4, **options):
        seen = []
        bootstrapped_ensemble(linear, lambda m, d: seen.append(d), data, members=members, **options)
        return seen

    def test_pairs_stay_together_and_are_drawn_with_replacement(self):
        x, y = torch.arange(200.0)[:, None], torch.arange(200) % 3
        seen = self.drawn((x, y), generator=0)
        for rows, labels in seen:
            assert rows.shape == (200, 1) and torch.equal(labels, rows[:, 0].long() % 3)
            # 200 (1 - 1/e) = 126.4 distinct rows are expected, with a deviation of 4.4
            assert 100 < len(rows.unique()) < 150
        assert not torch.equal(seen[0][0], seen[1][0])
        for (rows, _), (again, _) in zip(seen, self.drawn((x, y), generator=0), strict=True):
            assert torch.equal(rows, again)

    def test_every_class_keeps_an_example(self):
        x = torch.arange(12.0)[:, None]
        y = torch.tensor([0] * 4 + [-1] * 5 + [3, 9, 7])  # any integers
        members = self.drawn((x, y), members=40, generator=0)
        for rows, labels in members:
            assert set(labels.tolist()) == {-1, 0, 3, 7, 9} and torch.equal(y[rows[:, 0].long()], labels)
        plain = self.drawn((x, y.double()), members=40, generator=0)
        complete = [len(set(labels.tolist())) == 5 for _, labels in plain]
        assert any(complete) and not all(complete)
        for has_all, (rows, _), (before, _) in zip(complete, members, plain, strict=True):
            # complete draws stay as they are, others change in as many places as classes were missing
            missing = 5 - len(set(y[before[:, 0].long()].tolist()))
            assert int((rows != before).sum()) == (0 if has_all else missing)

    def test_the_rule_picks_place_and_row_evenly(self):
        # draws of four rows whose one or two rows of class 1 are in none: each place and row takes the other's turn
        classes, seen = torch.tensor([0, 0, 1, 1]), torch.zeros(4, 2)
        for seed in range(4000):
            plain = _bootstrap(4, None, torch.Generator().manual_seed(seed))
            if (plain < 2).all():
                index = _bootstrap(4, classes, torch.Generator().manual_seed(seed))
                (place,) = (index != plain).nonzero().flatten().tolist()
                seen[place, index[place] - 2] += 1
        expected = seen.sum() / 8
        # 7 degrees of freedom: above 24.3 once in a thousand
        assert expected > 25 and ((seen - expected) ** 2 / expected).sum() < 24.3

    def test_defaults(self):
        seen = []
        bootstrapped_ensemble(linear, lambda m, d: seen.append(d), (torch.zeros(3, 1), torch.zeros(3)))
        assert len(seen) == 4
        seen.clear()
        diversity_encouraging_ensemble(linear, nothing, lambda m, d: seen.append(d), None)
        assert len(seen) == 5 and SplitHead(nn.Identity(), linear).count == 5

    def test_as_many_classes_as_examples_is_a_permutation(self):
        for _, labels in self.drawn((torch.zeros(20, 1), np.arange(20)), generator=1):
            assert sorted(labels.tolist()) == list(range(20))

    def test_arrays_and_datasets(self):
        x, y = np.arange(6.0)[:, None], np.array([0, 0, 0, 0, 0, 1])
        for rows, labels in self.drawn((x, y), members=10, generator=0):
            assert isinstance(rows, np.ndarray) and isinstance(labels, np.ndarray) and set(labels) == {0, 1}
        dataset = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        for subset in self.drawn(dataset, members=10, labels=y, generator=0):
            assert len(subset) == 6 and {int(subset[i][1]) for i in range(6)} == {0, 1}
        # without labels, draws of a dataset may miss the rare class
        missed = [{int(s[i][1]) for i in range(6)} == {0} for s in self.drawn(dataset, members=10, generator=0)]
        assert any(missed)

    def test_labels_of_more_than_the_targets(self):
        x, y = torch.arange(6.0)[:, None], torch.zeros(6)
        for rows, _ in self.drawn((x, y), members=10, labels=[0, 1, 2, 2, 2, 2], generator=0):
            assert {0.0, 1.0} <= set(rows[:, 0].tolist())

    def test_bad_data(self):
        x, y = torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64)
        with pytest.raises(ValueError, match="data must be a pair of arrays with as many rows, got 5 and 4"):
            self.drawn((x, y[:4]))
        with pytest.raises(ValueError, match="data must have at least one example, got none"):
            self.drawn((x[:0], y[:0]))
        for data in (x, (x, y, y), {"x": x}, iter([1])):
            with pytest.raises(TypeError, match=r"data must be a pair \(x, y\) of arrays or a map-style dataset"):
                self.drawn(data)
        with pytest.raises(ValueError, match=r"labels must have one class an example, shape \(5,\), got \(4,\)"):
            self.drawn((x, y), labels=[0, 1, 0, 1])
        with pytest.raises(TypeError, match=r"labels must be a vector of integers, got torch.float64 of shape \(5,\)"):
            self.drawn((x, y), labels=[0.0] * 5)


class TestDiversityEncouragingEnsemble:
    def test_copies_of_one_base_go_their_own_ways(self, data):
        bases, starts = [], []

        def warm_up(network, data):
            train(network, data)
            bases.append(network)

        def fit(network, data):
            assert all(p.grad is None for p in network.parameters())
            starts.append(copy.deepcopy(network))
            train(network, data)

        ensemble = diversity_encouraging_ensemble(linear, warm_up, fit, data, members=3, generator=2)
        assert len(bases) == 1 and len(starts) == 3 and all(same(start, bases[0]) for start in starts)
        a, b, c = ensemble.members
        assert not (same(a, b) or same(b, c) or same(a, c)) and bases[0] not in list(ensemble.members)
        again = diversity_encouraging_ensemble(linear, train, train, data, members=2, generator=2)
        assert same(again.members[0], a) and same(again.members[1], b)

    def test_dropout_is_off_at_inference(self, data):
        ensemble = diversity_encouraging_ensemble(
            lambda: nn.Sequential(nn.Dropout(0.5), linear()), train, train, data, members=2, generator=0
        )
        assert torch.equal(ensemble(data[0]), ensemble(data[0]))

    def test_bad_input(self):
        with pytest.raises(TypeError, match="warm_up must be a function, got NoneType"):
            diversity_encouraging_ensemble(linear, None, nothing, None)
        with pytest.raises(TypeError, match="progress must be True or False"):
            diversity_encouraging_ensemble(linear, nothing, nothing, None, progress=1)
        with pytest.raises(TypeError, match="warm_up must return None, a network, a posterior or a History, got int"):
            diversity_encouraging_ensemble(linear, lambda m, d: 1, nothing, None)
        with pytest.raises(ValueError, match="members must be at least 1, got 0"):
            diversity_encouraging_ensemble(linear, nothing, nothing, None, members=0)


class TestSnapshotEnsemble:
    def test_the_schedule_is_the_formula(self):
        network = linear()
        optimizer = torch.optim.SGD(
            [{"params": [network.weight], "lr": 0.2}, {"params": [network.bias], "lr": 0.1}], lr=0.2
        )
        # 23 steps in 3 cycles
        length = math.ceil(23 / 3)
        snapshots = SnapshotEnsemble(network, optimizer, cycle_length=length)
        for t in range(1, 24):
            for group, rate in zip(optimizer.param_groups, (0.2, 0.1), strict=True):
                wanted = rate / 2 * (math.cos(math.pi * ((t - 1) % length) / length) + 1)
                assert group["lr"] == pytest.approx(wanted, abs=1e-12)
            optimizer.step()
            snapshots.step()
            assert len(snapshots.snapshots) == t // length

    def test_copies_are_of_the_ends_of_cycles(self, data):
        network = nn.Sequential(nn.Dropout(0.5), linear())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        snapshots = SnapshotEnsemble(network, optimizer, cycle_length=3)
        ends = []
        for t in range(1, 11):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(data[0]), data[1]).backward()
            optimizer.step()
            snapshots.step()
            assert network.training and network[1].weight.grad is not None
            if t % 3 == 0:
                ends.append(copy.deepcopy(network))
        assert not any(snapshot.training for snapshot in snapshots.snapshots)
        ensemble = snapshots.ensemble()
        assert ensemble.count == 3 and all(same(a, b) for a, b in zip(ensemble.members, ends, strict=True))
        last = snapshots.ensemble(last=2)
        assert list(last.members) == list(ensemble.members)[1:]
        assert not any(module.training for module in ensemble.modules())
        assert all(p.grad is None for p in ensemble.parameters())

    def test_bad_input(self):
        network = linear()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        with pytest.raises(ValueError, match="cycle_length must be at least 1, got 0"):
            SnapshotEnsemble(network, optimizer, cycle_length=0)
        with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim.Optimizer, got float"):
            SnapshotEnsemble(network, 0.5, cycle_length=2)
        snapshots = SnapshotEnsemble(network, optimizer, cycle_length=2)
        optimizer.step()
        snapshots.step()
        with pytest.raises(ValueError, match="a cycle of 2 steps must be finished, got 1 steps"):
            snapshots.ensemble()
        optimizer.step()
        snapshots.step()
        with pytest.raises(ValueError, match="last must be at most 1, the finished cycles, got 2"):
            snapshots.ensemble(last=2)
        other = SnapshotEnsemble(network, torch.optim.SGD(network.parameters(), lr=0.5), cycle_length=3)
        with pytest.raises(ValueError, match="cycle_length must be 2, as in the state, got 3"):
            other.load_state_dict(snapshots.state_dict())

    @pytest.mark.parametrize("stop", [1, 5, 9])
    def test_an_interrupted_run_has_the_copies_of_a_whole_one(self, data, stop, tmp_path):
        def run(checkpoint, stop=None):
            torch.manual_seed(0)
            network = linear()
            optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
            snapshots = SnapshotEnsemble(network, optimizer, cycle_length=3)
            rates = []

            def on_step():
                if len(rates) == stop:
                    raise KeyboardInterrupt
                rates.append(optimizer.param_groups[0]["lr"])
                snapshots.step()

            def fit():
                alk.models.fit(
                    network,
                    data,
                    epochs=6,
                    batch_size=15,
                    optimizer=lambda parameters: optimizer,
                    on_step=on_step,
                    trackers={"snapshots": snapshots},
                    checkpoint=checkpoint,
                    generator=0,
                )

            if stop is None:
                fit()
            else:
                with pytest.raises(KeyboardInterrupt):
                    fit()
            return snapshots, rates

        whole, rates = run(None)
        assert len(whole.snapshots) == 4
        run(tmp_path / "c.pt", stop)
        resumed, later = run(tmp_path / "c.pt")
        assert later == rates[stop // 2 * 2 :] and resumed.steps == 12
        assert all(same(a, b) for a, b in zip(resumed.snapshots, whole.snapshots, strict=True))
        assert not any(snapshot.training for snapshot in resumed.snapshots)


class Counted(nn.Module):
    """Counts how often it runs."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


class TestSplitHead:
    def network(self, heads=3, trunk=None):
        trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh()) if trunk is None else trunk
        return SplitHead(trunk, lambda: nn.Linear(6, 3), heads, generator=4).double()

    def gradients(self, network, loss):
        network.zero_grad()
        loss.backward()
        return [None if p.grad is None else p.grad.clone() for p in network.parameters()]

    @pytest.mark.parametrize("masked", [False, True])
    def test_the_trunk_has_the_mean_of_the_heads_gradients(self, data, rng, masked):
        x, y = data[0].double(), data[1]
        network = self.network()
        mask = torch.rand(3, 30, generator=rng) < 0.5 if masked else torch.ones(3, 30, dtype=torch.bool)
        loss = network.loss(x, y, nn.functional.cross_entropy, mask=mask if masked else None)
        got = self.gradients(network, loss)
        trunk, heads, losses = [], [], []
        for number, head in enumerate(network.heads):
            alone = nn.functional.cross_entropy(head(network.trunk(x[mask[number]])), y[mask[number]])
            self.gradients(network, alone)
            losses.append(alone.item())
            trunk.append([p.grad.clone() for p in network.trunk.parameters()])
            heads += [p.grad.clone() for p in head.parameters()]
        wanted = [torch.stack(parts).mean(0) for parts in zip(*trunk, strict=True)] + heads
        assert loss.item() == pytest.approx(sum(losses), rel=1e-12)
        for a, b in zip(got, wanted, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-15)

    def test_a_head_without_examples_has_no_loss(self, data):
        x, y = data[0].double(), data[1]
        network = self.network(heads=2)
        mask = torch.stack([torch.ones(30, dtype=torch.bool), torch.zeros(30, dtype=torch.bool)])
        loss = network.loss(x, y, nn.functional.cross_entropy, mask=mask)
        assert torch.allclose(loss, nn.functional.cross_entropy(network.heads[0](network.trunk(x)), y))
        loss.backward()
        assert network.heads[1].weight.grad is None
        none = network.loss(x, y, nn.functional.cross_entropy, mask=~mask & mask)
        none.backward()
        assert none.item() == 0

    def test_inputs_are_left_alone(self):
        x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
        network = self.network(trunk=nn.Identity())
        network.loss(x, torch.zeros(5, dtype=torch.int64), nn.functional.cross_entropy).backward()
        x.grad = None
        (x * 2).sum().backward()
        assert torch.equal(x.grad, torch.full_like(x, 2))  # no hook stays on it

    def test_draws_are_the_heads_and_the_trunk_runs_once(self, data):
        x = data[0].double()
        network = self.network(trunk=Counted(nn.Linear(4, 6)))
        wanted = torch.stack([head(network.trunk.inner(x)) for head in network.heads], 1)
        assert torch.allclose(draws(network, x, 30), wanted, atol=1e-12)
        assert network.trunk.calls == 1
        assert torch.allclose(draws(network, x, 8), wanted, atol=1e-12)
        assert network.trunk.calls == 5
        assert torch.allclose(network(x).exp(), wanted.softmax(2).mean(1), atol=1e-12)
        assert (network.count, network.averaged, network.networks) == (3, True, [network])
        first = network.network  # trunk and first head, each time anew, under the names they have in the whole
        assert torch.allclose(first(x[:9]), wanted[:9, 0]) and torch.allclose(first(x), wanted[:, 0])
        assert {name for name, _ in first.named_modules()} <= {name for name, _ in network.named_modules()}

    def test_collect_takes_the_first_head_as_the_network(self, data):
        network = self.network().float()
        network.trunk[0].eval()
        arrays = alk.collect(network, data[0], ["probs", "features", "head_weight", "mc_probs"], batch_size=7)
        assert torch.allclose(arrays["features"], network.trunk(data[0]), atol=1e-6)
        assert torch.equal(arrays["head_weight"], network.heads[0].weight)
        assert torch.allclose(arrays["probs"], network(data[0]).exp(), atol=1e-6)
        assert network.training and network.trunk.training and not network.trunk[0].training
        with_layer = alk.collect(network, data[0], "features", layer="trunk.0")["features"]
        assert torch.allclose(with_layer, network.trunk[0](data[0]), atol=1e-6)

    def test_a_forward_of_the_callers_is_around_trunk_and_heads(self, data):
        def forward(network, batch):
            with torch.autocast("cpu", torch.bfloat16):
                return network(batch)

        network = self.network().float()
        got = alk.collect(network, data[0], "mc_probs", forward=forward)["mc_probs"]
        wanted = alk.collect(network, data[0], "mc_probs")["mc_probs"]
        assert torch.allclose(got, wanted, atol=0.02) and not torch.equal(got, wanted)

    def test_a_forward_may_call_the_network_more_than_once(self, data):
        network = self.network(trunk=Counted(nn.Sequential(nn.Linear(4, 6), nn.Tanh()))).float()
        x = data[0]

        def forward(network, batch):
            return (network(batch) + network(-batch)) / 2

        got = alk.collect(network, x, "mc_probs", forward=forward)["mc_probs"]
        wanted = [(head(network.trunk.inner(x)) + head(network.trunk.inner(-x))) / 2 for head in network.heads]
        assert torch.allclose(got, torch.stack(wanted, 1).softmax(2), atol=1e-6)
        assert network.trunk.calls == 2

    @pytest.mark.parametrize("later", [1, 3])
    def test_heads_that_are_called_another_number_of_times(self, data, later):
        network, passes = self.network().float(), []

        def forward(network, batch):
            passes.append(1)
            return sum(network(batch) for _ in range(2 if len(passes) == 1 else later))

        message = f"forward must call the network as often for each head, got 2 for the first and {later} for another"
        with pytest.raises(ValueError, match=message):
            alk.collect(network, data[0], "mc_probs", forward=forward)

    def test_trains_with_fit(self, data):
        network = self.network().float()
        heads = [copy.deepcopy(head) for head in network.heads]
        history = alk.models.fit(
            network,
            data,
            epochs=20,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            batch_loss=lambda network, x, y: network.loss(x, y, nn.functional.cross_entropy),
            generator=0,
        )
        assert history.losses["loss"][-1] < history.losses["loss"][0]
        assert not any(same(a, b) for a, b in zip(network.heads, heads, strict=True))

    def test_heads_have_seeds_of_their_own(self):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        trunk = nn.Identity()
        first = SplitHead(trunk, linear, 3, generator=1)
        again = SplitHead(trunk, linear, 2, generator=1)
        assert torch.equal(torch.get_rng_state(), before)
        assert same(first.heads[0], again.heads[0]) and same(first.heads[1], again.heads[1])
        assert not same(first.heads[0], first.heads[1])
        assert not same(first.heads[0], SplitHead(trunk, linear, 1, generator=2).heads[0])

    def test_bad_input(self, data):
        network = self.network()
        x, y = data[0].double(), data[1]
        with pytest.raises(TypeError, match=r"mask must be a bool tensor, got torch\.float32"):
            network.loss(x, y, nn.functional.cross_entropy, mask=torch.ones(3, 30))
        with pytest.raises(ValueError, match=r"mask must be of shape \(3, 30\), heads by examples, got \(30, 3\)"):
            network.loss(x, y, nn.functional.cross_entropy, mask=torch.ones(30, 3, dtype=torch.bool))
        with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
            SplitHead(nn.Identity(), linear, 0)
        head = linear()
        with pytest.raises(ValueError, match=r"make_head\(\) must be distinct networks, got number 0 again as 1"):
            SplitHead(nn.Identity(), lambda: head, 2)
        with pytest.raises(TypeError, match="trunk must be a network"):
            SplitHead(None, linear)
