"""Register the students with timm: one table, one builder, one-line entry points. Importing this module does it.

A student is a stock timm architecture; only its weights are ours. Rows of the weights table come from the package's
manifest, so a tag is listed as pretrained exactly when its weights exist. `pretrained=True` hands timm a file that was
found in the local hub folder or on the Hub at the pinned commit, and verified (`hub.locate`).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg, generate_default_cfgs, register_model, resolve_pretrained_cfg

from ..errors import WeightsError
from ..hub.weights import local_folder, manifest


@dataclass(frozen=True)
class Entry:
    """A student: the stock architecture, its classifier and first convolution, and the tags that a recipe makes."""

    base: str
    first_conv: str
    classifier: str
    recipes: dict[str, str]  # tag -> what `lgd-timm distill` makes it of


STUDENTS: dict[str, Entry] = {
    "lgd_resnet18": Entry(
        "resnet18",
        first_conv="conv1",
        classifier="fc",
        recipes={
            "conse_cifar10": "recipes/cifar10_conse_resnet18.yaml",
            "clip_rn50_in1k": "recipes/paper/lgd_in1k.yaml",
        },
    ),
    "lgd_mobilenetv2": Entry(
        "mobilenetv2_100",
        first_conv="conv_stem",
        classifier="classifier",
        recipes={
            "conse_cifar10": "recipes/cifar10_conse_mobilenetv2.yaml",
            "clip_rn50_in1k": "recipes/paper/lgd_in1k.yaml --student.model lgd_mobilenetv2 --student.drop_rate 0.2",
        },
    ),
    "lgd_efficientnet_b0": Entry(
        "efficientnet_b0",
        first_conv="conv_stem",
        classifier="classifier",
        recipes={"conse_cifar10": "recipes/cifar10_conse_efficientnet_b0.yaml"},
    ),
}


def stock_name(model: str) -> str:
    """Return an entry's stock architecture, which published folders name; other names come back unchanged."""
    name = model.partition(".")[0]
    return STUDENTS[name].base if name in STUDENTS else name


def short_name(model: str) -> str:
    """Strip source, organisation, tag and revision off a model's name: `hf-hub:org/resnet18.x@v1` -> resnet18."""
    return model.rpartition(":")[2].rstrip("/").rpartition("/")[2].partition("@")[0].partition(".")[0]


def _cfgs() -> dict[str, dict[str, Any] | PretrainedCfg]:
    """pretrained_cfg rows: first tags that have weights, as the first tag is timm's default, then tags without."""
    published = manifest()
    rows: dict[str, dict[str, Any] | PretrainedCfg] = {}
    for name, entry in STUDENTS.items():
        facts = {"first_conv": entry.first_conv, "classifier": entry.classifier}
        tags = [row for row in published if row.startswith(f"{name}.")]
        for row in tags:
            weight = published[row]
            revision = f"@{weight.commit}" if weight.commit else ""
            rows[row] = {**_stock_cfg(entry.base), **weight.cfg, **facts, "hf_hub_id": weight.repo_id + revision}
        for tag in entry.recipes:
            rows.setdefault(f"{name}.{tag}", {**_stock_cfg(entry.base), **facts})
    return rows


def _stock_cfg(base: str) -> dict[str, Any]:
    """The stock architecture's own facts, without any pointer to the stock weights."""
    stock = timm.models.get_pretrained_cfg(base)
    assert stock is not None
    keep = ("input_size", "pool_size", "crop_pct", "interpolation", "mean", "std", "num_classes")
    return {key: getattr(stock, key) for key in keep}


default_cfgs = generate_default_cfgs(_cfgs())


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    """Build the stock model, with our weights' facts and, when asked for, our verified file."""
    cfg = resolve_pretrained_cfg(name, kwargs.pop("pretrained_cfg", None), kwargs.pop("pretrained_cfg_overlay", None))
    cache_dir = kwargs.get("cache_dir")
    if pretrained and not (cfg.file or cfg.state_dict or cfg.url):
        folder = _locate(_published_name(name, cfg.tag), cache_dir)
        cfg.file, cfg.hf_hub_id = str(folder / "model.safetensors"), None
    return timm.models.model_entrypoint(STUDENTS[name].base)(pretrained=pretrained, pretrained_cfg=cfg, **kwargs)


def _locate(weight: str, cache_dir: Any) -> Path:
    """As `hub.locate`, which is imported only where it is needed, as the Hub's client is slow to import."""
    if (folder := local_folder(weight)) is not None:
        return folder
    from ..hub.snapshot_download import locate

    return locate(weight, cache_dir=cache_dir)


def _published_name(name: str, tag: str | None) -> str:
    """`<entry>.<tag>` if it has weights. Raises: WeightsError that names the recipe which makes them."""
    full = f"{name}.{tag}" if tag else name
    published = manifest()
    if full in published:
        return full
    recipe = STUDENTS[name].recipes.get(tag or "")
    there = sorted(row for row in published if row.startswith(f"{name}.")) or sorted(published)
    hint = (
        f"Make them with: lgd-timm distill {recipe}"
        if recipe
        else f"Did you mean {difflib.get_close_matches(full, there, n=1)}?"
    )
    raise WeightsError(f"No weights of {full!r} are published (there are: {', '.join(there) or 'none'}). {hint}")


@register_model
def lgd_resnet18(pretrained: bool = False, **kwargs: Any) -> Any:
    """ResNet-18, distilled with language guidance."""
    return _create("lgd_resnet18", pretrained, kwargs)


@register_model
def lgd_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> Any:
    """MobileNetV2 1.0, distilled with language guidance."""
    return _create("lgd_mobilenetv2", pretrained, kwargs)


@register_model
def lgd_efficientnet_b0(pretrained: bool = False, **kwargs: Any) -> Any:
    """EfficientNet-B0, distilled with language guidance."""
    return _create("lgd_efficientnet_b0", pretrained, kwargs)
