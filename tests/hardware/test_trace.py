import pytest
import torch
from torch import nn

from crosspruner.errors import ModelError
from crosspruner.hardware.trace import trace


class Twice(nn.Module):
    """Calls one convolution on two sizes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x)[..., ::2, ::2])


class Tied(nn.Module):
    """Two linear layers on one weight, one that is never called, an embedding."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(4, 4)
        self.table = nn.Embedding(5, 4)
        self.first = nn.Linear(4, 4)
        self.norm = nn.LayerNorm([2, 4])
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(input=self.norm(self.first(x)))


class Data(nn.Module):
    """Reads a value back, which shapes alone cannot give."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        y = self.conv(x)
        return y if y.sum().item() > -1e9 else y.flatten()


def test_convolution_sizes():
    model = nn.Conv2d(6, 4, (3, 5), (2, 1), (1, 0), (1, 2), groups=2)
    (geometry,) = trace(model, (6, 9, 21)).geometries
    assert geometry.name == ""
    assert (geometry.kernel, geometry.stride, geometry.padding) == ((3, 5), (2, 1), (1, 0))
    assert (geometry.dilation, geometry.conv_groups) == ((1, 2), 2)
    assert (geometry.in_size, geometry.out_size, geometry.calls) == ((9, 21), (5, 13), 1)


def test_same_padding_of_an_even_kernel_starts_with_the_smaller_half():
    (geometry,) = trace(nn.Conv2d(1, 1, (4, 3), padding="same"), (1, 8, 8)).geometries
    assert (geometry.padding, geometry.out_size) == ((1, 1), (8, 8))


def test_other_padding_modes_count_the_padded_map():
    model = nn.Conv2d(1, 1, 3, padding=(1, 2), padding_mode="reflect")
    (geometry,) = trace(model, (1, 8, 8)).geometries
    assert (geometry.in_size, geometry.padding, geometry.out_size) == ((10, 12), (0, 0), (8, 10))


def test_padding_done_in_a_subclass_is_recovered_from_the_sizes():
    class Same(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    (geometry,) = trace(Same(1, 1, 3, stride=2), (1, 8, 8)).geometries
    assert (geometry.in_size, geometry.padding, geometry.out_size) == ((8, 8), (0, 0), (4, 4))


def test_a_module_called_twice_is_one_layer_of_its_larger_size():
    traced = trace(Twice(), (3, 8, 8))
    (geometry,) = traced.geometries
    assert (geometry.out_size, geometry.calls) == ((8, 8), 2)


def test_tied_weights_count_once_under_the_first_name():
    traced = trace(Tied(), (2, 4))
    assert [g.name for g in traced.geometries] == ["first"]
    assert traced.shared == {"second": "first"}
    assert traced.geometries[0].calls == 4  # two layers, two rows of the image each


def test_modules_left_out_are_named_with_their_kind():
    traced = trace(Tied(), (2, 4))
    assert traced.not_mapped == {
        "spare": "Linear, never called",
        "table": "Embedding",
        "norm": "LayerNorm",
    }


def test_unknown_weight_bearing_modules_are_named():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(4, 4))
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(x @ self.table)

    traced = trace(Mixer(), (4,))
    assert traced.not_mapped == {"table": "parameter of Mixer"}
    assert [g.name for g in traced.geometries] == ["head"]


def test_layers_come_in_the_order_of_use():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(3, 2), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.first(x))

    assert [g.name for g in trace(Backwards(), (4,)).geometries] == ["first", "last"]


def test_a_model_that_reads_values_is_run_for_real():
    (geometry,) = trace(Data(), (1, 8, 8)).geometries
    assert geometry.out_size == (6, 6)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(Data(), nn.BatchNorm2d(2), nn.Dropout())
    model.train()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    trace(model, (1, 8, 8))
    assert [m.training for m in model.modules()] == [True, True, True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_model_on_the_meta_device_is_planned_too():
    with torch.device("meta"):
        model = nn.Conv2d(1, 1, 3)
    assert trace(model, (1, 5, 5)).geometries[0].out_size == (3, 3)


def test_a_wrong_input_shape_is_a_model_error():
    with pytest.raises(ModelError, match=r"image of shape \(3, 8, 8\)"):
        trace(nn.Conv2d(1, 1, 3), (3, 8, 8))


def test_a_model_without_layers_is_a_model_error():
    with pytest.raises(ModelError, match="no Conv2d and no Linear"):
        trace(nn.ReLU(), (1,))
