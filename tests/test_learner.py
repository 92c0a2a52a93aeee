"""The loop: what it trains on, whom it asks, and that a killed run goes on with the same picks."""

import logging
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import alkernels as alk

N = 60


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(N, 4, generator=g)
    return x, (x[:, 0] + 0.3 * torch.randn(N, generator=g) > 0).long() + 2 * (x[:, 1] > 1).long()


def make():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


def train(net, data):
    """Draws from all three global generators, as training code does."""
    x, y = data
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(15):
        keep = torch.randperm(len(x))[: max(4, len(x) - random.randrange(3))]
        noise = torch.from_numpy(np.random.randn(len(keep), 4)).float()  # noqa: NPY002
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[keep] + 0.01 * noise), y[keep]).backward()
        optimizer.step()


def learner(data, strategy="margin", **more):
    x, y = data
    options = {
        "make": make, "fit": train, "strategy": strategy, "batch_size": 5, "labeled": torch.arange(0, N, 6),
        "oracle": lambda rows: y[rows], "evaluate": lambda net: accuracy(net, data), "generator": 7,
    } | more  # fmt: skip
    return alk.ActiveLearner(x, **options)


def accuracy(net, data):
    return (net(data[0]).argmax(1) == data[1]).float().mean()


def test_rounds(data):
    asked, seen = [], []
    run = learner(data, oracle=lambda rows: asked.append(rows) or data[1][rows], on_round=seen.append)
    history = run.run(4)
    assert [r["labeled"] for r in history] == [10, 15, 20, 25, 30] and [r["round"] for r in history] == list(range(5))
    assert all(0 <= r["score"] <= 1 and r["seconds"] > 0 for r in history) and seen == history
    assert [len(rows) for rows in asked] == [10, 5, 5, 5, 5]
    assert torch.equal(torch.cat(asked), run.labeled) and len(run.labeled.unique()) == 30
    assert torch.equal(run.labels, data[1][run.labeled])
    assert torch.equal(torch.cat([run.labeled, run.unlabeled]).sort().values, torch.arange(N))
    assert run.run(4) == history  # nothing more to do
    assert len(run.run(5)) == 6


def test_picks_are_the_strategys(data):
    """Round by round the same as doing it by hand: what the network of the labelled rows says of the others."""
    run = learner(data)
    run.run(1)
    again = learner(data)
    rows = again.query()
    probs = alk.collect(again.model, data[0], "probs")["probs"]
    expected = alk.select("margin", 5, probs=probs, candidates=again.unlabeled).indices
    assert torch.equal(rows, expected) and torch.equal(run.labeled[10:15], expected)


def test_global_generators_decide_nothing_and_stay(data):
    first = learner(data)
    first.run(2)
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    second = learner(data)
    second.run(2)
    assert torch.equal(first.labeled, second.labeled)
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()  # noqa: NPY002
    third = learner(data, generator=8)
    third.run(2)
    assert len(third.labeled) == len(first.labeled) and not torch.equal(first.labeled, third.labeled)


STAGES = ["make", "fit", "evaluate", "oracle", "save"]


class Killed(BaseException):
    """As a signal would: nothing may catch it."""


def dying_at(stage, nth):
    """Wraps functions: the nth call of that stage's raises."""
    calls = 0

    def mortal(function, name):
        def wrapped(*args):
            nonlocal calls
            if name == stage:
                calls += 1
                if calls == nth:
                    raise Killed
            return function(*args)

        return wrapped

    return mortal


@pytest.mark.parametrize("strategy", ["margin", "ceal", "batchbald", "random"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_goes_on_with_the_same_picks(data, tmp_path, stage, strategy, monkeypatch):
    """Killed at the n-th call of each of the user's functions, and at each write of the file; every n."""
    options = {"batchbald": {"num_samples": 500}, "ceal": {"delta": 0.9}}.get(strategy, {})
    whole = learner(data, strategy, options=options)
    expected = whole.run(3)
    deaths, save = 0, torch.save
    for nth in range(1, 12):
        file = tmp_path / f"{nth}.pt"
        mortal = dying_at(stage, nth)
        functions = {
            "make": mortal(make, "make"), "fit": mortal(train, "fit"),
            "evaluate": mortal(lambda net: accuracy(net, data), "evaluate"),
            "oracle": mortal(lambda rows: data[1][rows], "oracle"),
        }  # fmt: skip
        monkeypatch.setattr(torch, "save", mortal(save, "save"))
        died = False
        try:
            learner(data, strategy, options=options, checkpoint=file, **functions).run(3)
        except Killed:
            died = True
        monkeypatch.setattr(torch, "save", save)
        run = learner(data, strategy, options=options, checkpoint=file)
        history = run.run(3)
        assert torch.equal(run.labeled, whole.labeled) and torch.equal(run.labels, whole.labels)
        assert [{k: v for k, v in r.items() if k != "seconds"} for r in history] == [
            {k: v for k, v in r.items() if k != "seconds"} for r in expected
        ]
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
        deaths += died
        if not died:
            break
    assert deaths >= 4


def test_picks_that_wait_are_asked_for_again(data, tmp_path):
    """Even where another network would pick others by then: people may be labelling them."""
    file = tmp_path / "run.pt"
    first = learner(data, checkpoint=file)
    rows = first.query()

    def other(net, data):
        raise AssertionError("no network is needed for what waits")

    asked = []
    second = learner(data, checkpoint=file, fit=other, oracle=lambda r: asked.append(r) or data[1][r])
    assert torch.equal(second.query(), rows)
    second.step()
    assert torch.equal(asked[0], rows) and second.round == 1


def test_without_an_oracle(data):
    y = data[1]
    run = learner(data, oracle=None, labels=y[::6])
    rows = run.query()
    assert torch.equal(run.query(), rows)
    run.tell(y[rows].tolist())
    assert run.round == 1 and torch.equal(run.labeled[-5:], rows)
    with pytest.raises(ValueError, match="there are no rows that wait for labels: call query first"):
        run.tell(y[rows])
    with pytest.raises(ValueError, match="oracle must be given for step and run; without it there are query and tell"):
        run.step()
    run.query()
    with pytest.raises(ValueError, match=r"labels must be 5 labels, one a row, got shape \(4,\)"):
        run.tell([0, 0, 0, 0])


def test_labels_belong_to_rows_in_the_order_given(data):
    x, y = data
    rows = torch.tensor([30, 2, 17, 44, 5, 9])
    run = learner(data, labeled=rows, labels=y[rows], oracle=None)
    assert torch.equal(run.labeled, rows) and torch.equal(run.data[0], x[rows]) and torch.equal(run.data[1], y[rows])


def test_ceal_trains_on_pseudo_labels_for_one_round(data):
    seen = []
    run = learner(
        data, "ceal", options={"delta": 1.0, "decay_rate": 0.3}, fit=lambda net, d: seen.append(d) or train(net, d)
    )
    history = run.run(5)
    counts = [r.get("pseudo_labeled", 0) for r in history]
    assert counts[0] == 0 and counts[1] > 0 and counts[5] == 0  # the threshold is 1 - 0.3 t, and 0 from round 4 on
    for r, (x, y) in zip(history, seen, strict=True):
        assert len(x) == len(y) == r["labeled"] + r.get("pseudo_labeled", 0)
    x, _ = seen[1]
    assert len(x.unique(dim=0)) == len(x)  # none twice
    assert torch.equal(run.labels, data[1][run.labeled])  # what people said, not what the network thought


class Rows(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], -1  # not the label: the oracle knows it


def test_a_dataset_as_pool(data):
    x, y = data

    def fit(net, labeled):
        assert isinstance(labeled, Dataset)
        pairs = [labeled[i] for i in range(len(labeled))]  # a DataLoader would draw a seed
        train(net, tuple(torch.stack(part) for part in zip(*pairs, strict=True)))

    from_dataset = alk.ActiveLearner(
        Rows(x, y),
        make=make,
        fit=fit,
        strategy="cal",
        batch_size=5,
        labeled=range(10),
        oracle=lambda r: y[r],
        generator=7,
    )
    from_tensors = learner(data, "cal", labeled=range(10), evaluate=None)
    from_dataset.run(2)
    from_tensors.run(2)
    assert torch.equal(from_dataset.labeled, from_tensors.labeled)


def test_numpy_pools_and_ensembles(data):
    x, y = data

    def fit(net, labeled):
        return alk.models.naive_ensemble(make, train, labeled, members=3, generator=0)

    run = alk.ActiveLearner(
        x.numpy(),
        make=make,
        fit=fit,
        strategy="bald",
        batch_size=4,
        labeled=[1, 5, 9, 20],
        oracle=lambda r: y[r].numpy(),
    )
    run.run(2)
    assert isinstance(run.model, alk.models.Ensemble) and len(run.labeled) == 12


def test_arrays_of_ones_own(data):
    x = data[0]
    seen = []

    def arrays(net, run):
        seen.append(run.round)
        return {"features": x, "labeled_features": x[run.labeled]}

    run = learner(data, "k_center_greedy", arrays=arrays)
    run.run(2)
    free = sorted(set(range(N)) - set(range(0, N, 6)))
    expected = alk.select("k_center_greedy", 5, features=x, labeled_features=x[::6], candidates=free).indices
    assert seen == [0, 1] and torch.equal(run.labeled[10:15], expected)
    none = learner(data, "k_center_greedy", arrays=lambda net, run: {"features": x}, labeled=[], evaluate=None)
    assert len(none.query()) == 5


def test_the_pool_ends(data):
    run = learner(data, batch_size=20)
    history = run.run(10)
    assert [r["labeled"] for r in history] == [10, 30, 50, 60] and len(run.unlabeled) == 0
    with pytest.raises(ValueError, match="the pool must have a row without a label, got none of 60"):
        run.query()


def test_another_runs_checkpoint_is_refused(data, tmp_path):
    file = tmp_path / "run.pt"
    learner(data, checkpoint=file).run(1)
    x, y = data
    for more, said in (
        ({"strategy": "entropy"}, "strategy is 'margin' there and 'entropy' here"),
        ({"batch_size": 6}, "batch_size is 5 there and 6 here"),
        ({"generator": 8}, "generator is 7 there and 8 here"),
        ({"labeled": [1, 2]}, "labeled at the start is"),
        ({"options": {"log_input": True}}, r"options is \{\} there and \{'log_input': True\} here"),
        ({"collect_options": {"draws": 9}}, r"collect_options is \{\} there and \{'draws': 9\} here"),
        ({"labels": 1 - y[::6]}, "labels is .* there and .* here"),
    ):
        with pytest.raises(ValueError, match=f"must be of this run, but {said}.*: delete it or give another file"):
            learner(data, **{"checkpoint": file, **more})
    with pytest.raises(ValueError, match=r"pool is '\(60, 4\) float32 .* there and .* here"):
        learner((x + 1, y), checkpoint=file)
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="must be one of ActiveLearner's: it cannot be read as such"):
        learner(data, checkpoint=file)


def test_what_is_refused(data):
    y = data[1]
    for more, error, said in (
        ({"make": None}, TypeError, "make must be callable, got NoneType"),
        ({"strategy": "margins"}, ValueError, "strategy must be a name in the catalogue, got 'margins'; did you mean"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"labeled": [N]}, ValueError, f"labeled must be rows of the pool, between 0 and {N - 1}, got {N}"),
        (
            {"oracle": None},
            ValueError,
            "labels must be given for the rows that are labelled at the start, or an oracle",
        ),
        ({"labels": [1]}, ValueError, r"labels must be 10 labels, one a row, got shape \(1,\)"),
    ):
        with pytest.raises(error, match=said):
            learner(data, **more)
    with pytest.raises(TypeError, match="pool must be a tensor, an array or a map-style Dataset, got int"):
        learner((3, y))
    with pytest.raises(ValueError, match="labeled must have at least one row for a network to be fitted, got none"):
        learner(data, labeled=[]).run(1)
    with pytest.raises(TypeError, match="fit must return None, a network, a posterior or a History, got int"):
        learner(data, fit=lambda net, d: 3).run(1)
    with pytest.raises(ValueError, match="must have a dropout module"):
        learner(data, "bald", make=lambda: nn.Linear(4, 4)).run(1)


def test_it_logs_and_shows_progress(data, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="alkernels"):
        learner(data, progress=True).run(2)
    assert caplog.records[0].getMessage().startswith("margin: round 0, labeled 10, score ")
    assert len(caplog.records) == 3
    assert "2/2" in capsys.readouterr().err


def test_a_dataset_is_known_again_by_some_of_its_rows(data, tmp_path):
    x, y = data

    def run(x):
        return alk.ActiveLearner(Rows(x, y), make=make, fit=lambda net, d: None, strategy="margin", batch_size=5,
                                 labeled=range(10), oracle=lambda r: y[r], checkpoint=tmp_path / "r.pt")  # fmt: skip

    run(x).run(1)
    assert len(run(x).labeled) == 15
    with pytest.raises(ValueError, match=r"checkpoint .* must be of this run, but pool is .60 rows, .* there"):
        run(x + 1)


class Duck:
    """A map-style dataset of another library: no subclass of torch's."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


@pytest.mark.parametrize("kind", [list, Duck])
def test_whatever_has_items_is_a_pool(data, kind):
    x, y = data

    def fit(net, labeled):
        train(net, tuple(torch.stack(part) for part in zip(*(labeled[i] for i in range(len(labeled))), strict=True)))

    expected = learner(data, "cal")
    expected.run(2)
    pool = list(x) if kind is list else Duck(x)
    run = alk.ActiveLearner(pool, make=make, fit=fit, strategy="cal", batch_size=5, labeled=torch.arange(0, N, 6),
                            oracle=lambda r: y[r], generator=7)  # fmt: skip
    run.run(2)
    assert torch.equal(run.labeled, expected.labeled)


def test_numpy_numbers_can_be_saved(data, tmp_path):
    options = {"delta": np.float64(0.9), "round": np.int64(2)}

    def run():
        return learner(data, "ceal", options=options, checkpoint=tmp_path / "r.pt",
                       evaluate=lambda net: {np.str_("accuracy"): np.float32(0.5)})  # fmt: skip

    run().run(1)
    assert [r["accuracy"] for r in run().history] == [0.5, 0.5]
    first = learner(data, options={"generator": torch.Generator()}, checkpoint=tmp_path / "g.pt")
    first.run(1)
    assert len(learner(data, options={"generator": torch.Generator()}, checkpoint=tmp_path / "g.pt").labeled) == 15


def test_pools_beyond_what_float32_counts(tmp_path):
    pool = torch.zeros(2**24 + 6, 1, dtype=torch.int8)
    run = alk.ActiveLearner(pool, make=make, fit=train, strategy="margin", batch_size=1, labeled=[0], labels=[1],
                            checkpoint=tmp_path / "r.pt")  # fmt: skip
    assert run.checkpoint.exists()


def test_training_again_after_a_restart_is_the_same_training(data, tmp_path):
    """Also while picks wait, whose pseudo-labels are the next round's."""
    file = tmp_path / "r.pt"
    run = learner(data, "ceal", options={"delta": 0.9}, checkpoint=file)
    run.run(1)
    run.query()
    seen = []
    again = learner(data, "ceal", options={"delta": 0.9}, checkpoint=file, on_round=seen.append)
    again.train()
    assert torch.equal(again.pending, run.pending) and seen == []  # it is no new round
    for one, other in zip(run.history, again.history, strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
    for one, other in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_work_is_said_before_anything_is_trained(data, tmp_path):
    def never(*_):
        raise AssertionError("too late")

    early = {"fit": never, "oracle": never, "labels": data[1][::6]}
    for more, error, said in (
        ({"options": {"metrc": 1}}, ValueError, "metrc is not an option of margin"),
        ({"strategy": "forgetting"}, ValueError, "arrays must be given for forgetting, to get correct for it"),
        ({"strategy": "epig"}, ValueError, "arrays must be given for epig, to get target_mc_probs for it"),
        ({"strategy": "power", "options": {"of": "vaal"}}, ValueError, "arrays must be given for vaal"),
        ({"checkpoint": tmp_path / "no" / "r.pt"}, FileNotFoundError, "checkpoint must be in an existing folder"),
    ):
        with pytest.raises(error, match=said):
            learner(data, **{**early, **more})


def test_strategies_around_strategies(data):
    x, _ = data
    for strategy, more in (
        ("random", {"options": {"prefilter": "margin", "keep": 12}}),
        ("power", {"options": {"of": "bald"}, "collect_options": {"draws": 7}}),
        ("epig", {"collect_options": {"targets": x[:9], "draws": 5}}),
        ("facility_location", {"options": {"prefilter": "cal", "keep": 20}}),
    ):
        run = learner(data, strategy, **more)
        run.run(2)
        assert len(run.labeled.unique()) == 20
    run = learner(data, "random", options={"prefilter": "margin", "keep": 12})
    rows = run.query()
    probs = alk.collect(run.model, x)["probs"]
    assert {*rows.tolist()} <= {*alk.select("margin", 12, probs=probs, candidates=run.unlabeled).indices.tolist()}


def test_a_forward_of_ones_own_sees_one_kind_of_batch(data):
    seen = []

    def forward(net, batch):
        seen.append(type(batch))
        return net(batch)

    learner(data, "cal", collect_options={"forward": forward}).run(1)
    assert {*seen} == {torch.Tensor}


def test_labels_stay_what_they_were(data):
    y = data[1]
    run = learner(data, oracle=None, labels=y[::6])
    run.query()
    with pytest.raises(ValueError, match="labels must not be NaN, got NaN for number 1"):
        run.tell([0.0, torch.nan, 1, 1, 1])
    with pytest.raises(TypeError, match=r"labels must be integers or real .* torch.int64 before, got torch.fl"):
        run.tell([0.5, 1, 1, 1, 1])
    for said, error in (
        (None, "a number or a dict of numbers, got None"),
        ({"a": "b"}, "a number or a dict of numbers"),
    ):
        with pytest.raises(TypeError, match=f"evaluate must give {error}"):
            learner(data, evaluate=lambda net, said=said: said).run(1)
    with pytest.raises(ValueError, match="evaluate must not name a number 'round', which the record has"):
        learner(data, evaluate=lambda net: {"round": 1}).run(1)
