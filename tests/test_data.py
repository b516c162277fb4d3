"""Labelled sets in memory, the embedded digits, and the real data sets where there are any."""

import gzip
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tombola.errors import DataError, InputError
from tombola.tasks.data.arrays import Arrays, split
from tombola.tasks.data.cifar import load_cifar10, load_cifar100
from tombola.tasks.data.digits import load_digits
from tombola.tasks.data.idx import load_fashion_mnist, load_mnist
from tombola.tasks.data.svhn import load_svhn
from tombola.tasks.data.tiny_imagenet import load_tiny_imagenet


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# Arrays


def small(channels=1, dtype=torch.uint8, n=7):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, channels, 2, 3), generator=generator).to(dtype)
    mean, std = ((0.1, 0.2, 0.3), (0.5, 0.25, 2.0)) if channels == 3 else ((0.25,), (0.5,))
    return Arrays(x, torch.arange(n) % 10, mean, std)


def test_a_uint8_batch_is_normalised_as_x_over_255():
    data = Arrays(torch.tensor([[0, 51, 255]] * 2, dtype=torch.uint8), torch.tensor([3, 4]), (0.2,), (0.5,))
    x, y = data.take(torch.tensor([1]))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor([[-0.4, 0.0, 1.6]]))
    assert y.tolist() == [4]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_channel_has_its_own_mean_and_std(channels, dtype):
    data = small(channels, dtype)
    unit = 255 if dtype == torch.uint8 else 1
    x, _ = data.take(torch.arange(len(data)))
    for c in range(channels):
        expected = (data.x[:, c].double() / unit - data.mean[c]) / data.std[c]
        torch.testing.assert_close(x[:, c].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_give_what_take_gives_and_leave_the_data_alone(channels, dtype, size):
    data = small(channels, dtype)
    before = data.x.clone()
    xs, ys = zip(*data.batches(size), strict=True)
    x, y = data.take(torch.arange(len(data)))
    assert torch.equal(torch.cat(xs), x)
    assert torch.equal(torch.cat(ys), y)
    assert [len(b) for b in ys[:-1]] == [size] * (len(ys) - 1)
    assert torch.equal(data.x, before)


def test_select_takes_in_the_order_of_the_index():
    data = small()
    part = data.select(torch.tensor([5, 0]))
    assert part.y.tolist() == [5, 0]
    assert torch.equal(part.take(torch.tensor([0]))[0], data.take(torch.tensor([5]))[0])


def test_the_digest_covers_content_shape_dtype_and_normalisation():
    data = small()
    changed = data.x.clone()
    changed[0, 0, 0, 0] ^= 1
    relabelled = data.y.clone()
    relabelled[0] = 9
    others = [
        Arrays(changed, data.y, data.mean, data.std),
        Arrays(data.x, relabelled, data.mean, data.std),
        Arrays(data.x.reshape(7, 1, 3, 2), data.y, data.mean, data.std),
        Arrays(data.x.float(), data.y, data.mean, data.std),
        Arrays(data.x, data.y, (0.26,), data.std),
        Arrays(data.x, data.y, data.mean, (0.51,)),
        data.select(torch.arange(6)),
    ]
    assert len({data.digest, *(other.digest for other in others)}) == 1 + len(others)
    strided = Arrays(data.x.transpose(2, 3).contiguous().transpose(2, 3), data.y, data.mean, data.std)
    assert not strided.x.is_contiguous()
    assert strided.digest == small().digest == data.to("cpu").digest


@pytest.mark.parametrize(
    ("x", "y", "mean", "std", "rule"),
    [
        (torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), (0,), (1,), "uint8 or float32"),
        (torch.zeros(2, 1), torch.zeros(2), (0,), (1,), "int64"),
        (torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64), (0,), (1,), r"shape \(N,\)"),
        (torch.zeros(2, 1), torch.zeros(3, dtype=torch.int64), (0,), (1,), "equally long"),
        (torch.zeros(()), torch.zeros(1, dtype=torch.int64), (0,), (1,), "equally long"),
        (torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), (0,), (1,), "empty"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), (0, 0), (1, 1), "one per channel"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), (0,), (1, 1), "one per channel"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), (), (), "one per channel"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), (0,), (0,), "more than 0"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), (float("nan"),), (1,), "finite"),
        (torch.zeros(2, 3, requires_grad=True), torch.zeros(2, dtype=torch.int64), (0,), (1,), "detach"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(x, y, mean, std, rule):
    with pytest.raises(InputError, match=rule):
        Arrays(x, y, mean, std)


def test_an_empty_batch_size_is_refused():
    with pytest.raises(InputError, match="1 example or more"):
        next(small().batches(0))


@given(st.integers(2, 300), st.integers(0, 5), st.data())
def test_a_split_is_a_sorted_partition(n, seed, data):
    validation = data.draw(st.integers(1, n - 1))
    kept, held_out = split(n, validation, seed)
    assert len(held_out) == validation
    assert torch.cat([kept, held_out]).sort().values.tolist() == list(range(n))
    for part in (kept, held_out):
        assert part.tolist() == sorted(part.tolist())


def test_a_split_is_fixed_by_its_seed():
    assert torch.equal(split(100, 20, 3)[1], split(100, 20, 3)[1])
    assert not torch.equal(split(100, 20, 3)[1], split(100, 20, 4)[1])
    assert split(100, 20, 3)[1].tolist() != list(range(20))


@pytest.mark.parametrize("validation", [-1, 0, 10, 11])
def test_a_split_leaves_something_on_both_sides(validation):
    with pytest.raises(InputError, match=f"1 to 9 of 10 training examples, but got {validation}"):
        split(10, validation, 0)


# The embedded digits


def test_digits_are_those_of_scikit_learn():
    from sklearn import datasets

    theirs = datasets.load_digits()
    rows, labels = theirs.data.astype(int).tolist(), theirs.target.tolist()
    ours = [
        (*row, label)
        for part in load_digits()
        for row, label in zip((part.x // 15).flatten(1).tolist(), part.y.tolist(), strict=True)
    ]
    assert sorted(ours) == sorted((*row, label) for row, label in zip(rows, labels, strict=True))
    assert all(bool((part.x % 15 == 0).all()) for part in load_digits())


def test_digits_have_a_fixed_test_part_and_the_stated_normalisation():
    train, test = load_digits()
    assert (train.x.shape, test.x.shape) == ((1500, 1, 8, 8), (297, 1, 8, 8))
    assert test.digest == load_digits()[1].digest
    pixels = train.x.double() / 255
    assert round(float(pixels.mean()), 4) == train.mean[0]
    assert round(float(pixels.std()), 4) == train.std[0]
    assert set(test.y.tolist()) == set(range(10))


def test_digits_do_not_import_scikit_learn():
    code = (
        "import sys; from tombola.tasks.data.digits import load_digits; load_digits(); print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_damaged_digits_file_is_named(monkeypatch, tmp_path):
    path = tmp_path / "digits.csv.gz"
    monkeypatch.setattr("tombola.tasks.data.digits._file", lambda: path)
    for content in (b"not gzip", gzip.compress(b"1,2,3\n"), gzip.compress(b"1,x\n")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"digits\.csv\.gz.*reinstall"):
            load_digits()


# The real data sets


@pytest.mark.data
@pytest.mark.parametrize(
    ("load", "train_n"), [(load_mnist, 60_000), (load_fashion_mnist, 60_000), (load_cifar10, 50_000)]
)
def test_the_real_data_sets_have_their_counts_and_normalisation(load, train_n, data_root):
    train, test = load(data_root, download=False)
    assert (len(train), len(test)) == (train_n, 10_000)
    assert torch.bincount(test.y).tolist() == [1000] * 10 or load is load_mnist
    assert_normalised(train)


@pytest.mark.data
@pytest.mark.parametrize(
    ("load", "counts", "classes"),
    [
        (load_cifar100, (50_000, 10_000), 100),
        (load_svhn, (73_257, 26_032), 10),
        (load_tiny_imagenet, (100_000, 10_000), 200),
    ],
)
def test_the_larger_data_sets_too_where_they_are_there(load, counts, classes, data_root):
    try:
        train, test = load(data_root, download=False)
    except DataError as error:
        if "is not in the data root" not in str(error):
            raise
        pytest.skip(str(error).partition("\n")[0])
    assert (len(train), len(test)) == counts
    for part in (train, test):
        shares = torch.bincount(part.y, minlength=classes)
        assert len(shares) == classes
        assert load is load_svhn or set(shares.tolist()) == {len(part) // classes}
    assert_normalised(train)


def assert_normalised(train):
    sums = [(x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), x[:, 0].numel()) for x, _ in train.batches(5_000)]
    count = sum(n for _, _, n in sums)
    mean = sum(s for s, _, _ in sums) / count
    second = sum(q for _, q, _ in sums) / count
    torch.testing.assert_close(mean, torch.zeros(len(train.mean)), rtol=0, atol=1e-3)
    torch.testing.assert_close(second.sqrt(), torch.ones(len(train.mean)), rtol=0, atol=1e-3)
