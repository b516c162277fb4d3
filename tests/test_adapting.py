"""``TARGET@SOURCE``: inputs by hand, the output layer replaced or not, and nothing new where nothing differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import same, toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.draws import Draw
from tombola.errors import InputError
from tombola.lab import Lab
from tombola.tasks import TASKS, get_task, is_known
from tombola.tasks.adapting import LUMA, adapted, adapted_examples, adapted_images, output_layer
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.augment import Augmented
from tombola.tasks.data.imagenet import ImageFolder
from tombola.tasks.models import gaussian_glorot_, mlp
from tombola.tasks.task import examples


def row(*values: float, dtype: torch.dtype = torch.uint8) -> Tensor:
    """One grey image of one line."""
    return torch.tensor(values, dtype=dtype).reshape(1, 1, 1, -1)


# Inputs.


def test_grey_becomes_three_equal_channels() -> None:
    x = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    made = adapted_images(x, (3, 4, 4))
    assert made.dtype == torch.uint8
    assert torch.equal(made, x.repeat(1, 3, 1, 1))


def test_colour_becomes_grey_by_luma() -> None:
    x = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], dtype=torch.uint8)[:, :, None, None]
    # 76.245, 149.685, 29.07, and 2.99 + 11.74 + 3.42 = 18.15
    assert adapted_images(x, (1, 1, 1)).flatten().tolist() == [76, 150, 29, 18]
    exact = adapted_images(x.float(), (1, 1, 1)).flatten()
    assert exact.tolist() == pytest.approx([76.245, 149.685, 29.07, 18.15])
    assert sum(LUMA) == pytest.approx(1)


def test_sizes_change_by_antialiased_bilinear_interpolation() -> None:
    # To half the size the triangle is two pixels wide to either side: weights 3, 3, 1 of 7 at the border.
    assert adapted_images(row(0, 70, 140, 210), (1, 1, 2)).flatten().tolist() == [50, 160]
    # To twice the size it is one pixel wide: a quarter and three quarters of two neighbours.
    assert adapted_images(row(0, 100), (1, 1, 4)).flatten().tolist() == [0, 25, 75, 100]
    for shape in ((3, 7, 9), (3, 31, 2)):
        flat = adapted_images(torch.full((2, 3, 8, 8), 200, dtype=torch.uint8), shape)
        assert flat.shape == (2, *shape)
        assert bool((flat == 200).all()), "a flat image stays flat"


def test_what_keeps_its_shape_keeps_its_bits() -> None:
    x = torch.randn(9, 3, 5, 5)
    assert torch.equal(adapted_images(x, (3, 5, 5)), x)


def test_many_images_are_adapted_as_single_ones_are(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randint(0, 256, (7, 3, 6, 6), dtype=torch.uint8)
    whole = adapted_images(x, (1, 4, 5))
    monkeypatch.setattr("tombola.tasks.adapting._AT_ONCE", 3)
    assert torch.equal(adapted_images(x, (1, 4, 5)), whole)


def test_arrays_keep_classes_and_the_targets_normalisation() -> None:
    x, y = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6)
    colour = Arrays(x, y, (0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    made = adapted_examples(colour, (1, 4, 4))
    assert isinstance(made, Arrays)
    assert made.mean == pytest.approx((0.299 * 0.5 + 0.587 * 0.4 + 0.114 * 0.3,))
    assert made.std == pytest.approx((0.299 * 0.2 + 0.587 * 0.3 + 0.114 * 0.1,))
    assert torch.equal(made.y, y)
    grey = adapted_examples(Arrays(x[:, :1], y, (0.5,), (0.2,)), (3, 8, 8))
    assert isinstance(grey, Arrays)
    assert (grey.mean, grey.std, grey.x.shape) == ((0.5,), (0.2,), (6, 3, 8, 8))


def test_augmentation_stays_and_parts_stay_parts() -> None:
    x, y = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), torch.arange(6)
    made = adapted_examples(Augmented(Arrays(x, y, (0.5,), (0.2,)), pad=2, flip=False), (1, 4, 4))
    assert isinstance(made, Augmented)
    assert (made.pad, made.flip, made.plain.x.shape) == (2, False, (6, 1, 4, 4))
    floats = (x.float(), y)
    task = toy_task(train=floats, test=None, model=lambda: mlp(64, 6))
    part = task.splits(0).validation
    found = adapted_examples(part, (3, 4, 4)).take(torch.arange(len(part)))
    assert torch.equal(found[0], adapted_images(part.take(torch.arange(len(part)))[0], (3, 4, 4)))
    assert adapted_examples(examples(floats), (1, 8, 8)).digest == examples(floats).digest


# Nets.


def images(name: str, shape: tuple[int, int, int], classes: int, net: Any = None, **changes: Any) -> tb.Task:
    g = torch.Generator().manual_seed(len(name))
    x, y = torch.randn(60, *shape, generator=g), torch.randint(0, classes, (60,), generator=g)
    size = shape[0] * shape[1] * shape[2]
    fields: dict[str, Any] = {"train": (x, y), "test": (x[:9], y[:9]), "name": name}
    fields |= {
        "model": net or (lambda: mlp(size, 8, classes)),
        "scaled": lambda f: mlp(size, max(1, round(8 * f)), classes),
    }
    return toy_task(**(fields | {"recipe": {"steps": "10it", "evaluate_every": "5it"}} | changes))


def make_net() -> nn.Module:
    return mlp(16, 8, 3)


def test_where_nothing_differs_it_is_the_target() -> None:
    one, other = images("one", (1, 4, 4), 3), images("other", (1, 4, 4), 3)
    assert adapted(other, one) is other
    assert adapted(one, one) is one
    assert get_task("fashion-lenet300@mnist-lenet300") is get_task("fashion-lenet300")
    assert get_task("cifar10b-vgg11-quick@cifar10a-vgg11-quick").name == "cifar10b-vgg11-quick"
    assert get_task("cifar10-vgg11-quick@cifar10a-vgg11-quick").name == "cifar10-vgg11-quick"


class Signed(nn.Sequential):
    """Differs from a sequence of layers in what it computes alone."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "net",
    [
        lambda: mlp(16, 9, 3),
        lambda: gaussian_glorot_(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))),
        lambda: gaussian_glorot_(Signed(*make_net().children())),
        lambda: nn.Sequential(*(type(m)(16, 8) if m is list(make_net())[1] else m for m in make_net())),
    ],
)
def test_another_net_is_another_task(net: Any) -> None:
    one, other = images("one", (1, 4, 4), 3, net), images("other", (1, 4, 4), 3, make_net)
    found = adapted(other, one)
    assert found.name == "other@one"
    assert same(dict(found.build(3).state_dict()), dict(one.build(3).state_dict()))
    assert adapted(other, found) is found, "it is in that net already"


def test_the_target_gives_everything_but_the_net_and_the_inputs_shape() -> None:
    source = images("source", (3, 6, 6), 3, allocation="global", unpruned=("fc1*",))
    target = images("target", (1, 4, 4), 3, rounds=7, margin=0.2, recipe={"steps": "33it"})
    found = adapted(target, source)
    assert (found.recipe, found.rounds, found.margin) == (target.recipe, 7, 0.2)
    assert (found.allocation, found.unpruned, found.input_shape) == ("global", ("fc1*",), (3, 6, 6))
    assert found.identity()["loss"] == target.identity()["loss"]
    own, made = target.splits(5), found.splits(5)
    for part in ("train", "validation", "test"):
        (x, y), (ours, labels) = (getattr(s, part).take(torch.arange(5)) for s in (own, made))
        assert torch.equal(labels, y)
        assert torch.equal(ours, adapted_images(x, (3, 6, 6)))


def test_another_number_of_classes_replaces_the_output_layer_alone(store: tb.Store) -> None:
    source = images("source", (1, 4, 4), 3, relative_rates={"fc2.weight": 0.5, "fc1*": 0.9})
    found = adapted(images("target", (1, 4, 4), 7), source)
    own, net = source.build(1).state_dict(), found.build(1).state_dict()
    assert output_layer(found, found.build(0)) == "fc2"
    assert torch.equal(net["fc1.weight"], own["fc1.weight"]), "all else is drawn as in the source"
    assert (net["fc2.weight"].shape, net["fc2.bias"].shape) == ((7, 8), (7,))
    assert bool((net["fc2.bias"] == 0).all()), "as this family begins"
    assert (found.unpruned, dict(found.relative_rates)) == (("fc2.weight",), {"fc1*": 0.9})
    assert found.scaled is not None
    assert found.scaled(0.5).get_submodule("fc2").out_features == 7
    draw = Draw(draw_recipe(found, {"rounds": 1}), Lab(found, store))
    assert list(draw.search.whole(found.build(0))) == ["fc1.weight"], "no density counts it"


def test_a_new_output_layer_is_drawn_by_the_nets_own_rule() -> None:
    def deviation(net: Any, name: str) -> float:
        source = images("source", (1, 4, 4), 3, net)
        return float(adapted(images("target", (1, 4, 4), 400), source).build(0).state_dict()[name].std())

    # Glorot: 2 / (64 + 400); He: 2 / 64; PyTorch's own: uniform below 1 / 8.
    assert deviation(lambda: mlp(16, 64, 3), "fc2.weight") == pytest.approx((2 / 464) ** 0.5, rel=0.03)
    he = TASKS["cifar10-vgg11-quick"].build(0)
    wide = get_task("cifar100-vgg16@cifar10-vgg11-quick").build(0)
    fan_in = he.get_submodule("fc").in_features
    assert float(wide.state_dict()["fc.weight"].std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
    plain = lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3, bias=False))  # noqa: E731
    assert deviation(plain, "3.weight") == pytest.approx((1 / 8) / 3**0.5, rel=0.03)
    target = adapted(images("target", (1, 4, 4), 4), images("source", (1, 4, 4), 3, plain))
    assert "3.bias" not in target.build(0).state_dict()


# Names.


def test_names_are_resolved_everywhere_to_one_task() -> None:
    found = get_task("mnist-lenet300@cifar10-conv2")
    assert found is get_task("mnist-lenet300@cifar10-conv2")
    assert is_known(found)
    assert is_known(TASKS["digits-mlp"])
    assert not is_known(images("digits-mlp", (1, 4, 4), 3))
    assert found.input_shape == (3, 32, 32)
    again = get_task("svhn-resnet20@mnist-lenet300@cifar10-conv2")
    assert again.name == "svhn-resnet20@mnist-lenet300@cifar10-conv2"
    assert same(dict(again.build(0).state_dict()), dict(get_task("cifar10-conv2").build(0).state_dict()))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist-lenet30@cifar10-conv2", r"unknown task 'mnist-lenet30'\. Did you mean"),
        ("mnist-lenet300@cifar10-conv3", r"unknown task 'cifar10-conv3'\. Did you mean"),
        ("mnist-lenet300@", "unknown task ''"),
        ("@mnist-lenet300", "unknown task ''"),
    ],
)
def test_unknown_parts_are_named(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        get_task(name)


def tabular(name: str, features: int) -> tb.Task:
    return toy_task(name=name, train=(torch.randn(40, features), torch.arange(40) % 3), test=None,
                    model=lambda: mlp(features, 8, 3))  # fmt: skip


def words(name: str) -> tb.Task:
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    return toy_task(name=name, train=(torch.zeros(40, 5, dtype=torch.int64), torch.arange(40) % 3), test=None,
                    model=lambda: tokens)  # fmt: skip


def test_what_cannot_be_adapted_is_refused_with_the_rule() -> None:
    image = images("image", (1, 4, 4), 3)
    loss = images("lossy", (1, 4, 4), 3, metric="loss", higher_is_better=False)
    map_of = images("maps", (1, 4, 4), 3, lambda: nn.Conv2d(1, 3, 3))
    headless = images("headless", (1, 4, 4), 3, lambda: nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()))
    listed = images("listed", (3, 4, 4), 3, train=[(torch.zeros(3, 4, 4), 0)] * 9, input_shape=(3, 4, 4))
    deep = images("deep", (5, 4, 4), 3)
    for target, source, said in [
        (image, tabular("table", 12), r"as images, \(1 or 3 colours, height, width\), but those of 'table'"),
        (tabular("a", 12), tabular("b", 13), r"but those of 'a' have shape \(12,\), and \(13,\) on the other side"),
        (deep, image, r"but those of 'deep' have shape \(5, 4, 4\)"),
        (words("text"), image, "'text' has none: text and the like can't be carried"),
        (image, words("text"), "'text' has none: text and the like can't be carried"),
        (loss, image, "one kind of metric, but 'lossy' is by loss and 'image' is by accuracy"),
        (image, map_of, r"a score for each class, shape \(batch, classes\), but that of 'maps' gives shape"),
        (images("more", (1, 4, 4), 5), headless, "a linear layer of 3 outputs, but the net of 'headless' has none"),
        (listed, image, "as tensors of images in memory, but these are Indexed"),
        (images("image", (1, 4, 4), 3), image, "two tasks must have names of their own, but both are 'image'"),
        (adapted(images("more", (1, 4, 4), 5), image), tabular("t", 12), "name the task before the @ alone"),
    ]:
        with pytest.raises(InputError, match=said):
            adapted(target, source)
    with pytest.raises(InputError, match=r"these are ImageFolder: choose a source"):
        adapted_examples(ImageFolder(None, ("a",), (0,)), (3, 32, 32))  # type: ignore[arg-type]


def test_equal_shapes_need_no_images() -> None:
    assert adapted(tabular("a", 12), tabular("b", 12)).name == "a"
