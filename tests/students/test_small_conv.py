"""Convolutions over small maps: the same numbers, gradients and state as torch's own."""

from __future__ import annotations

import copy
import logging

import pytest
import timm
import torch
from torch import nn

from lgd_timm.students.small_conv import speed_up_small_convs

CASES = [  # channels in and out, groups, kernel, stride, padding, height, width
    (6, 6, 6, 3, 1, 1, 2, 2),
    (6, 6, 6, 3, 1, 1, 1, 1),
    (6, 6, 6, 5, 1, 2, 3, 2),
    (6, 6, 6, 5, 2, 2, 4, 4),
    (6, 6, 6, 3, 2, 1, 2, 1),
    (6, 6, 6, 3, 1, 0, 4, 4),  # no small map
    (6, 6, 6, 5, 3, 4, 4, 2),  # padding so wide that some outputs see nothing
    (6, 4, 1, 3, 1, 1, 1, 1),
    (6, 4, 1, 3, 2, 1, 2, 2),
    (6, 4, 1, 3, 1, 1, 2, 2),  # dense, with more than one pixel to give
    (6, 4, 1, 7, 2, 3, 1, 2),
    (6, 4, 1, 3, 2, 1, 5, 5),
    (1, 1, 1, 3, 1, 1, 1, 1),
]


def pair(case: tuple[int, ...], *, bias: bool) -> tuple[nn.Conv2d, nn.Module, torch.Tensor]:
    inputs, outputs, groups, kernel, stride, padding, height, width = case
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=bias)
    return conv, speed_up_small_convs(copy.deepcopy(conv)), torch.randn(3, inputs, height, width)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_torch(
    case: tuple[int, ...], layout: torch.memory_format, bias: bool
) -> None:
    conv, fast, images = pair(case, bias=bias)
    results = []
    for module in (conv, fast):
        inputs = images.clone().to(memory_format=layout).requires_grad_()
        output = module(inputs)
        weights = torch.arange(output.numel(), dtype=torch.float32).view(output.shape).sin()
        gradients = torch.autograd.grad((output * weights).sum(), [inputs, *module.parameters()])
        results.append([output, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("mobilenetv2_100", 32), ("efficientnet_b0", 48), ("resnet18", 32)])
def test_a_student_gives_the_same_and_takes_the_short_way(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    fast = speed_up_small_convs(copy.deepcopy(model))
    assert fast.state_dict().keys() == model.state_dict().keys()
    images, calls = torch.randn(2, 3, size, size), []
    original = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, input: calls.append(self) or original(self, input))
    with torch.no_grad():
        expected = model(images)
        slow, calls[:] = len(calls), []
        torch.testing.assert_close(fast(images), expected, atol=1e-4, rtol=1e-3)
    assert 0 < len(calls) < slow


def test_a_copy_has_weights_of_its_own() -> None:
    fast = speed_up_small_convs(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    other = copy.deepcopy(fast)
    images = torch.randn(1, 4, 2, 2)
    before = fast(images)
    with torch.no_grad():
        other.weight.zero_()
    assert torch.equal(fast(images), before)
    assert not torch.equal(other(images), before)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
        nn.Conv2d(4, 4, 1),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    assert type(speed_up_small_convs(nn.Sequential(conv))[0]) is nn.Conv2d


def test_the_log_says_how_many_layers_changed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    speed_up_small_convs(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1)))
    (line,) = caplog.messages
    assert "2 layers" in line
