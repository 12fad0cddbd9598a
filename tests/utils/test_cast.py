"""Weights are converted to the type that they are saved in, or refused."""

from __future__ import annotations

import pytest
import torch

from lgd_timm.errors import WeightsError
from lgd_timm.utils.cast import cast_weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_floating_point_is_converted_and_integers_stay(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4).T)
    found = cast_weights({"weight": weight, "steps": torch.tensor(70_000)}, dtype)
    assert found["weight"].equal(weight.to(dtype))
    assert found["weight"].is_contiguous()
    assert not found["weight"].requires_grad
    assert (found["steps"].dtype, found["steps"].item()) == (torch.int64, 70_000)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 65504.0), (torch.bfloat16, 3.38e38)])
def test_what_is_too_large_is_named(dtype: torch.dtype, most: float) -> None:
    assert cast_weights({"fc": torch.tensor([most])}, dtype)["fc"].isfinite()
    with pytest.raises(WeightsError, match=rf"^fc does not fit {dtype}: save with dtype=torch.float32\.$"):
        cast_weights({"fc": torch.tensor([most * 1.006])}, dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_type_is_advised_for_what_is_not_finite(value: float) -> None:
    with pytest.raises(WeightsError, match=r"^fc holds values that are not finite\. The training diverged"):
        cast_weights({"conv": torch.ones(1), "fc": torch.tensor([value])}, torch.float16)
