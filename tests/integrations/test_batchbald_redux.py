"""batchbald_redux's functions: equal where both enumerate, right where it is not."""

import math

import pytest
import torch

import alkernels as alk
from alkernels.integrations import batchbald_redux as ours

A, B = [0.9, 0.1], [0.2, 0.8]


def log_probs(count=40, draws=8, classes=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, draws, classes, generator=generator, dtype=dtype).mul(2).log_softmax(-1)


@pytest.fixture
def theirs():
    return pytest.importorskip("batchbald_redux.batchbald")


def test_scores_add_up_to_the_joint_information_by_hand():
    rows = torch.tensor([[A, A, B, B], [A, A, B, B], [A, B, A, B]], dtype=torch.float64).log()
    batch = ours.get_batchbald_batch(rows, 2, 1000)
    assert batch.indices == [0, 2]
    entropy = lambda ps: -sum(p * math.log(p) for p in ps)  # noqa: E731
    conditional = (entropy(A) + entropy(B)) / 2
    alone = entropy([0.55, 0.45]) - conditional
    # the two rows know different halves of the draws: their joint distribution is a product
    assert batch.scores == pytest.approx([alone, 2 * alone], abs=1e-12)
    assert all(type(score) is float for score in batch.scores) and all(type(row) is int for row in batch.indices)


@pytest.mark.parametrize(("classes", "batch_size", "samples"), [(2, 6, 64), (3, 4, 100), (10, 3, 100)])
def test_equal_to_redux_while_configurations_are_enumerated(theirs, classes, batch_size, samples):
    rows = log_probs(classes=classes)
    wanted = theirs.get_batchbald_batch(rows, batch_size, samples, dtype=torch.float64)
    batch = ours.get_batchbald_batch(rows, batch_size, samples)
    assert batch.indices == wanted.indices
    assert batch.scores == pytest.approx(wanted.scores, abs=1e-9)
    assert isinstance(batch, theirs.CandidateBatch)


def test_close_to_redux_where_configurations_are_drawn(theirs):
    rows = log_probs(60, 10, 4, dtype=torch.float32)
    torch.manual_seed(0)
    wanted = theirs.get_batchbald_batch(rows, 5, 20_000, dtype=torch.float64)
    torch.manual_seed(0)
    batch = ours.get_batchbald_batch(rows, 5, 20_000)
    assert batch.indices[:4] == wanted.indices[:4]
    assert batch.scores == pytest.approx(wanted.scores, abs=0.03)


def test_drawn_configurations_follow_torch_s_global_generator():
    rows = log_probs(60, 10, 4)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(ours.get_batchbald_batch(rows, 4, 20).scores)
    assert runs[0] == runs[1] != runs[2]


def test_a_class_that_is_ruled_out_is_no_nan(theirs):
    probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.4], [0.5, 0.5]]], dtype=torch.float64)
    assert math.isnan(theirs.get_batchbald_batch(probs.log(), 1, 100, dtype=torch.float64).scores[0])
    batch = ours.get_batchbald_batch(probs.log(), 1, 100)
    assert batch.indices == [0] and batch.scores == pytest.approx([math.log(2)])


@pytest.mark.filterwarnings("ignore:after")
def test_no_row_twice_where_nothing_is_left_to_know():
    rows = torch.tensor([A, B]).log().expand(12, 2, 2)  # all rows are copies
    assert sorted(ours.get_batchbald_batch(rows, 12, 50).indices) == list(range(12))


def test_a_batch_larger_than_the_pool_is_the_pool():
    rows = log_probs(5, 40)
    assert sorted(ours.get_batchbald_batch(rows, 9, 1000).indices) == list(range(5))
    assert sorted(ours.get_bald_batch(rows, 9).indices) == list(range(5))
    assert ours.get_batchbald_batch(rows, 0, 1000).indices == []


def test_bald_is_redux_s(theirs):
    rows = log_probs()
    wanted = theirs.get_bald_batch(rows, 7)
    batch = ours.get_bald_batch(rows, 7)
    assert batch.indices == wanted.indices == alk.bald(rows, log_input=True).topk(7).indices.tolist()
    assert batch.scores == pytest.approx(wanted.scores, abs=1e-9)


@pytest.mark.parametrize("function", [lambda *a, **k: ours.get_batchbald_batch(*a, 10, **k), ours.get_bald_batch])
def test_dtype_and_device_are_taken(function):
    rows = log_probs()
    assert function(rows, 3, dtype=torch.float32, device="cpu") == function(rows, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ours.get_batchbald_batch(log_probs().numpy(), 2, 9),
            TypeError,
            "log_probs_N_K_C must be a torch.Tensor",
        ),
        (lambda: ours.get_batchbald_batch(log_probs().exp(), 2, 9), ValueError, "logarithms of probabilities"),
        (lambda: ours.get_batchbald_batch(log_probs(), -1, 9), ValueError, "batch_size must be between 0 and 40"),
        (lambda: ours.get_batchbald_batch(log_probs(), 2.5, 9), TypeError, "batch_size must be"),
        (lambda: ours.get_batchbald_batch(log_probs(), 2, 0), ValueError, "must be at least 1"),
        (lambda: ours.get_batchbald_batch(log_probs(), 2, 9, dtype="double"), TypeError, "dtype must be a torch.dtype"),
        (lambda: ours.get_bald_batch(log_probs(), "2"), TypeError, "batch_size must be"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
