"""Any timm model as a student."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from lgd_timm.errors import LGDError
from lgd_timm.students.model import Student, create_student, make_projector

EMBED = 10


def images(size: int = 32, count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# mobilenetv3_small and hgnetv2 have hidden layers between pooling and classifier: num_features is not what they give.
@pytest.mark.parametrize(
    "model",
    [
        "test_resnet",
        "test_efficientnet",
        "test_vit",
        "test_convnext",
        "mobilenetv2_035",
        "mobilenetv3_small_050",
        "hgnetv2_b0",
    ],
)
@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_embeddings_are_the_projected_pooled_features(model, projector):
    student = create_student(model, embed_dim=EMBED, projector=projector, image_size=32).eval()
    with torch.no_grad():
        features, embeddings = student.features(images()), student(images())
        plain = student.backbone(student.preprocess(images()))
    assert features.ndim == 2
    assert torch.equal(features, plain)
    assert embeddings.shape == (2, EMBED)
    assert torch.equal(embeddings, student.projector(features))
    assert not torch.equal(embeddings[0], embeddings[1])


def test_the_hard_case_is_one():
    """Without such a model the test above would not see a student that trusts num_features."""
    backbone = timm.create_model("mobilenetv3_small_050", num_classes=0)
    assert backbone.head_hidden_size != backbone.num_features


def test_the_backbone_is_the_stock_model():
    student = create_student("test_resnet", embed_dim=EMBED)
    stock = timm.create_model("test_resnet", num_classes=0)
    assert type(student.backbone) is type(stock)
    assert student.backbone.state_dict().keys() == stock.state_dict().keys()
    stock.load_state_dict(student.backbone.state_dict())


def test_linear_is_linear_and_mlp_is_not():
    torch.manual_seed(0)
    linear, mlp = make_projector("linear", 6, EMBED), make_projector("mlp", 6, EMBED)
    a, b = torch.randn(2, 1, 6)
    nought = torch.zeros(1, 6)
    torch.testing.assert_close(
        linear(a + b) - linear(nought), linear(a) + linear(b) - 2 * linear(nought), atol=1e-5, rtol=1e-5
    )
    assert not torch.allclose(mlp(a + b) - mlp(nought), mlp(a) + mlp(b) - 2 * mlp(nought), atol=1e-3)
    layers = [module for module in mlp if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(6, 6), (6, EMBED)], (
        "the paper's: hidden width = features"
    )


def test_dropout_and_stochastic_depth_pass_through():
    dropped = create_student("test_efficientnet", embed_dim=EMBED, image_size=32, drop_rate=0.4, drop_path_rate=0.3)
    plain = create_student("test_efficientnet", embed_dim=EMBED, image_size=32)
    assert dropped.backbone.drop_rate == 0.4
    assert plain.backbone.drop_rate == 0.0
    rates = {module.drop_prob for module in dropped.modules() if type(module).__name__ == "DropPath"}
    assert max(rates) > 0.1
    assert not [module for module in plain.modules() if type(module).__name__ == "DropPath" and module.drop_prob]
    for module in dropped.modules():  # batch statistics are no noise of ours
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True: None
    dropped.train()
    assert not torch.equal(dropped(images()), dropped(images()))
    dropped.eval()
    assert torch.equal(dropped(images()), dropped(images()))


def test_size_and_statistics_are_the_models_own_unless_given():
    own = create_student("test_vit", embed_dim=EMBED)
    config = timm.create_model("test_vit").pretrained_cfg
    assert own.preprocess.size == config["input_size"][-1]
    assert own.preprocess.mean.flatten().tolist() == pytest.approx(config["mean"])
    assert own.preprocess.std.flatten().tolist() == pytest.approx(config["std"])
    assert own.preprocess.interpolation == config["interpolation"]
    mean, std = (0.1, 0.2, 0.3), (0.7, 0.8, 0.9)
    given = create_student("test_vit", embed_dim=EMBED, image_size=48, mean=mean, std=std)
    assert given.preprocess.size == 48
    assert given.preprocess.mean.flatten().tolist() == pytest.approx(mean)
    assert given.preprocess.std.flatten().tolist() == pytest.approx(std)
    stated = given.backbone.pretrained_cfg
    assert (stated["input_size"], stated["mean"], stated["std"]) == ((3, 48, 48), mean, std), (
        "what is published must say so too"
    )
    half = create_student("test_vit", embed_dim=EMBED, mean=mean)
    assert half.preprocess.std.flatten().tolist() == pytest.approx(config["std"])


@pytest.mark.parametrize("size", [32, 64])
def test_models_of_one_fixed_size_are_built_for_the_size_asked_for(size):
    student = create_student("test_vit", embed_dim=EMBED, image_size=size).eval()
    seen = []
    student.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    assert student(images(40)).shape == (2, EMBED)
    assert seen == [(2, 3, size, size)]


def test_bytes_and_floats_give_equal_embeddings():
    student = create_student("test_resnet", embed_dim=EMBED, image_size=32).eval()
    torch.testing.assert_close(student(images()), student(images().float() / 255), rtol=1e-4, atol=1e-5)


def test_only_backbone_and_projector_are_saved():
    student = create_student("test_resnet", embed_dim=EMBED)
    assert {key.partition(".")[0] for key in student.state_dict()} == {"backbone", "projector"}


def test_registered_students_can_be_students():
    student = create_student("lgd_mobilenetv2", embed_dim=EMBED, image_size=32).eval()
    assert student(images()).shape == (2, EMBED)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet_nope", r"student\.model 'resnet_nope' is unknown to timm .*lgd_mobilenetv2"),
        ("mobilenetv2_100.nope", r"student\.model 'mobilenetv2_100\.nope' can't be built \(Invalid pretrained tag"),
        ("local-dir:/nowhere", r"student\.model 'local-dir:/nowhere': no such folder"),
    ],
)
def test_models_that_timm_can_not_build_are_refused(model, message):
    with pytest.raises(LGDError, match=message):
        create_student(model, embed_dim=EMBED)


def test_an_unknown_projector_is_refused():
    with pytest.raises(LGDError, match="projector 'cubic' is unknown; choose linear, mlp or deep"):
        Student(timm.create_model("test_resnet", num_classes=0), embed_dim=EMBED, projector="cubic")


@pytest.mark.parametrize(
    ("model", "size", "reason"),
    [
        ("test_vit", 17, "divisible by patch size"),
        ("test_convnext", 2, "Kernel size can't be greater"),
    ],
)
def test_a_size_that_a_model_does_not_take_is_refused_before_it_trains(model, size, reason):
    with pytest.raises(
        LGDError, match=rf"^image size = {size}: the model does not take images of that size \(.*{reason}"
    ):
        create_student(model, embed_dim=EMBED, image_size=size)


def test_the_check_of_a_size_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    checked = create_student("test_resnet", embed_dim=EMBED, image_size=2)  # padded all the way, one pixel is enough
    torch.manual_seed(0)
    plain = create_student("test_resnet", embed_dim=EMBED)
    assert checked.backbone.training
    for key, tensor in plain.state_dict().items():
        assert torch.equal(checked.state_dict()[key], tensor), key
