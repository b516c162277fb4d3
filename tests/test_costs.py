"""Costs against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tombola.costs import Cost, cost
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.tasks.models.lenet import conv_net, lenet5, lenet300


def first(mask: Mask, name: str, kept: int) -> Mask:
    """The mask with only the first ``kept`` entries of one tensor."""
    tensor = torch.zeros(mask[name].shape, dtype=torch.bool)
    tensor.view(-1)[:kept] = True
    return Mask({**mask, name: tensor})


def test_lenet_300_100_dense() -> None:
    found = cost(lenet300(), example=torch.zeros(2, 1, 28, 28))
    assert found.weights == 266_200
    assert found.parameters == 266_200 + 410
    assert found.flops == found.kept_flops == 2 * 266_200
    assert found.bytes_dense == 4 * 266_610
    assert [layer.flops for layer in found.layers] == [2 * 784 * 300, 2 * 300 * 100, 2 * 100 * 10]
    assert found.uncounted == ()


def test_lenet_300_100_under_a_mask() -> None:
    net = lenet300()
    mask = first(Mask.full(net), "fc1.weight", 1000)
    found = cost(net, mask, example=torch.zeros(1, 784))
    assert found.kept_weights == 1000 + 30_000 + 1000
    assert found.kept_parameters == 32_000 + 410
    assert found.kept_flops == 64_000
    assert found.flops == 532_400
    # Values of 4 bytes, column numbers of 2, row beginnings of 4; 784 x 300 bits are 29,400 bytes.
    assert found.layers[0].bytes_sparse == 1000 * 6 + 4 * 301
    assert found.layers[0].bytes_bitmask == 4000 + 29_400
    assert found.bytes_sparse == 6 * 32_000 + 4 * (301 + 101 + 11) + 4 * 410
    assert found.bytes_bitmask == 4 * 32_000 + 29_400 + 3750 + 125 + 4 * 410


def test_convolutions_use_each_weight_once_a_position() -> None:
    found = cost(lenet5(), example=torch.zeros(3, 1, 28, 28))
    # 20 filters of 5x5 at 24x24 positions, 50 of 20x5x5 at 8x8, then 800x500 and 500x10.
    assert [layer.flops for layer in found.layers] == [
        2 * 500 * 576,
        2 * 25_000 * 64,
        2 * 400_000,
        2 * 5_000,
    ]
    assert found.weights == 430_500
    assert cost(conv_net(2), example=torch.zeros(1, 3, 32, 32)).layers[0].flops == 2 * (3 * 64 * 9) * 32 * 32


def test_grouped_strided_and_transposed_convolutions() -> None:
    net = nn.Sequential(
        nn.Conv2d(8, 16, 3, stride=2, groups=4, bias=False), nn.ConvTranspose2d(16, 6, 2, stride=2, groups=2)
    )
    found = cost(net, example=torch.zeros(5, 8, 9, 9))
    grouped, transposed = found.layers
    # 4x4 outputs a channel, each of 2 x 9 products: 16 x 16 x 18.
    assert grouped.flops == 2 * 16 * 16 * 18
    # Each of 16 x 4 x 4 inputs is multiplied into 3 channels of 2x2.
    assert transposed.flops == 2 * (16 * 16) * (3 * 4)
    assert found.others == 6


def test_a_layer_used_twice_costs_twice_and_sequences_by_their_length() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x))

    found = cost(Twice(), example=torch.zeros(2, 7, 4))
    assert (found.weights, found.flops) == (16, 2 * 16 * 7 * 2)


def test_layers_that_are_not_counted_are_named() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.fc, self.idle = nn.Embedding(7, 3), nn.Linear(3, 2), nn.Linear(9, 9)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.words(x))

    mask = Mask.full(Mixed(), embeddings=True)
    found = cost(Mixed(), mask, example=torch.zeros(2, 5, dtype=torch.int64))
    assert found.uncounted == ("words.weight", "idle.weight")
    assert found.flops == 2 * 6 * 5
    assert found.weights == 21 + 6 + 81


@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_layers_use_each_weight_once_a_time_step(packed: bool) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
            self.cell = nn.GRUCell(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.cell(x[:, 1], self.cell(x[:, 0]))
            lengths = torch.tensor([6, 4])
            self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True) if packed else x)
            return h

    found = cost(Recurrent(), example=torch.zeros(2, 6, 3))
    steps = 5 if packed else 6  # of packed sequences, those of 6 and of 4 steps, on the average
    layers = {layer.name: layer.flops for layer in found.layers}
    assert found.uncounted == ()
    for ending in ("", "_reverse"):
        assert layers[f"rnn.weight_ih_l0{ending}"] == 2 * 16 * 3 * steps
        assert layers[f"rnn.weight_hh_l1{ending}"] == 2 * 16 * 4 * steps
        assert layers[f"rnn.weight_ih_l1{ending}"] == 2 * 16 * 8 * steps
    assert layers["cell.weight_ih"] == 2 * 15 * 3 * 2
    assert layers["cell.weight_hh"] == 2 * 15 * 5 * 2


def test_kept_work_weighs_layers_by_their_positions() -> None:
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(16, 5))
    mask = first(Mask.full(net), "0.weight", 2)
    found = cost(net, mask, example=torch.zeros(1, 1, 10))
    assert (found.layers[0].kept_flops, found.layers[0].flops) == (2 * 2 * 8, 2 * 6 * 8)
    assert found.kept_flops == 32 + 160


def test_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    net.train()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    cost(net, example=torch.randn(6, 4))
    assert [m.training for m in net.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())
    with pytest.raises(InputError, match="can't run on an example of shape"):
        cost(net, example=torch.randn(6, 5))
    assert [m.training for m in net.modules()] == [True, True, False, True]
    assert not any(m._forward_hooks for m in net.modules())
    cost(net, example=torch.randn(1, 4))
    assert state.shape == torch.get_rng_state().shape


@pytest.mark.parametrize("example", [torch.tensor(1.0), (), torch.zeros(0, 4), "x"])
def test_a_bad_example_is_refused(example: object) -> None:
    with pytest.raises(InputError, match="an example is a batch"):
        cost(nn.Linear(4, 3), example=example)  # type: ignore[arg-type]


def test_a_mask_of_another_net_is_refused() -> None:
    with pytest.raises(InputError, match="the mask"):
        cost(nn.Linear(4, 3), Mask.full(nn.Linear(5, 3)), example=torch.zeros(1, 4))


def test_the_table_has_a_line_a_layer_and_the_total() -> None:
    net = lenet300()
    found = cost(net, first(Mask.full(net), "fc2.weight", 7), example=torch.zeros(1, 784))
    assert isinstance(found, Cost)
    lines = found.table().splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "fc1.weight", "fc2.weight", "fc3.weight", "total"]
    assert lines[2].split()[1:5] == ["7", "30,000", "60,000", "14"]
    assert len({len(line) for line in lines}) == 1
    assert found.rows()[-1]["flops"] == sum(row["flops"] for row in found.rows()[:-1])
