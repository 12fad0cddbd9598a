"""LGDTask as timm's TrainingTask: what is trained, what is frozen, what is saved."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.distributed as dist
from timm.task import TrainingTask
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from lgd_timm.data.preprocess import Preprocess
from lgd_timm.errors import LGDError
from lgd_timm.objectives import LGD
from lgd_timm.students.model import Student, create_student
from lgd_timm.task import LGDTask
from lgd_timm.teachers import ImageTeacher

EMBED, NAMES = 8, 5


class TinyTeacher(ImageTeacher):
    """A convolution with batch norm and dropout, so that training mode would show. 24 px, its own statistics."""

    name, embed_dim, fingerprint = "tiny", EMBED, "0" * 16

    def __init__(self) -> None:
        super().__init__(Preprocess(size=24, mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7)))
        torch.manual_seed(7)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, EMBED, 5, stride=3),
            torch.nn.BatchNorm2d(EMBED),
            torch.nn.Dropout(0.5),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        )

    def encode(self, inputs):
        return self.body(inputs)


def text_bank() -> torch.Tensor:
    return normalize(torch.randn(NAMES, EMBED, generator=torch.Generator().manual_seed(1)), dim=1)


def make_student(seed: int = 0, **options) -> Student:
    torch.manual_seed(seed)
    return create_student("test_resnet", embed_dim=EMBED, **{"image_size": 32, **options})


def make_task(teacher: bool = False, seed: int = 0, **options) -> LGDTask:
    lgd = LGD(text_bank(), teacher_temperature=0.1, momentum=0.9, seed=seed)
    return LGDTask(make_student(seed), lgd, TinyTeacher() if teacher else None, **options)


def images(seed: int = 0, size: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def targets(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, EMBED, generator=torch.Generator().manual_seed(seed))


def train(task: LGDTask, steps: int = 3) -> list[float]:
    optimizer = torch.optim.SGD(task.student.parameters(), lr=0.1)
    losses = []
    for step in range(steps):
        result = task(images(step), targets(step))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        task.update(result["teacher"])
        losses.append(result["loss"].item())
    return losses


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_it_is_a_training_task_and_learns():
    task = make_task(teacher=True)
    assert isinstance(task, TrainingTask)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    losses = []
    for _ in range(12):
        result = task(images())
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        losses.append(result["loss_text"].item())
    assert losses[-1] < losses[0]
    assert result["output"].shape == result["teacher"].shape == (6, EMBED)


def test_the_loss_is_the_objectives_of_student_and_teacher():
    task = make_task(teacher=True).eval()
    result = task(images())
    with torch.no_grad():
        expected = task.objective(task.student(images()), task.teacher(images()))
    for key in ("loss", "loss_text", "loss_visual"):
        torch.testing.assert_close(result[key].detach(), expected[key])
    for mine, other in zip(result["assigned"], expected["assigned"], strict=True):
        torch.testing.assert_close(mine, other)


def test_a_stored_target_is_as_good_as_the_teacher():
    online, stored = make_task(teacher=True), make_task()
    target = TinyTeacher().freeze()(images())
    first, second = online(images()), stored(images(), target)
    torch.testing.assert_close(first["loss"], second["loss"])
    for task, result in ((online, first), (stored, second)):
        result["loss"].backward()
        task.update(result["teacher"])
    for mine, other in zip(online.student.parameters(), stored.student.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    torch.testing.assert_close(online.objective.visual_bank, stored.objective.visual_bank)
    assert online.objective.seen.any()


def test_a_given_target_spares_the_teacher():
    task = make_task(teacher=True)
    task.teacher.encode = lambda inputs: pytest.fail("the teacher was asked")
    assert torch.equal(task(images(), targets())["teacher"], targets())


def test_without_teacher_and_target_there_is_nothing_to_learn():
    with pytest.raises(LGDError, match=r"no teacher and was given no stored embeddings\. Pass `target`"):
        make_task()(images())


# The teacher is no part of it


def test_the_teacher_stays_frozen_and_in_eval_and_inference_mode():
    task = make_task(teacher=True).train()
    task.teacher.train()
    assert task.student.training
    assert not [module for module in task.teacher.modules() if module.training]
    assert not [parameter for parameter in task.teacher.parameters() if parameter.requires_grad]
    before = copy.deepcopy(task.teacher.state_dict())
    modes = []
    task.teacher.body.register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    first, second = task(images()), task(images())
    assert torch.equal(first["teacher"], second["teacher"]), "dropout is off"
    assert modes == [True, True]
    assert not first["teacher"].is_inference()
    assert not first["teacher"].requires_grad
    for key, value in task.teacher.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} moved: batch norm is in training mode"


def test_the_teachers_output_can_be_a_target():
    task = make_task(teacher=True)
    target = task.teach(images())
    result = make_task()(images(), target)
    (result["loss"] + (result["output"] - target).square().mean()).backward()
    assert make_task().train()(images(), task.teacher(images()))["loss"].isfinite(), (
        "even while it is an inference tensor"
    )


def test_the_teacher_is_in_no_checkpoint_and_not_among_the_parameters():
    task, alone = make_task(teacher=True), make_task()
    for one in (task, alone):
        one.setup_ema(decay=0.5)
    assert task.state_dict().keys() == alone.state_dict().keys()
    assert [name for name, _ in task.named_parameters()] == [name for name, _ in alone.named_parameters()]
    theirs = {id(parameter) for parameter in task.teacher.parameters()}
    assert not theirs & {id(parameter) for parameter in task.parameters()}
    for ema in (False, True):
        state, expected = task.get_checkpoint_state(ema=ema), alone.get_checkpoint_state(ema=ema)
        assert [*state] == [*expected]
        assert all(state[key].keys() == expected[key].keys() for key in state)


def test_the_teacher_follows_the_task_to_its_device():
    task = make_task(teacher=True).to("meta")
    assert {tensor.device.type for tensor in task.teacher.state_dict().values()} == {"meta"}
    assert task.teacher.preprocess.mean.device.type == "meta"
    assert task.objective.visual_bank.device.type == "meta"
    assert task.device.type == "meta"


def test_each_model_gets_its_own_size_and_statistics():
    task = make_task(teacher=True)
    task.student.preprocess = Preprocess(
        size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear"
    )
    seen = {}
    task.student.backbone.register_forward_pre_hook(lambda module, args: seen.update(student=args[0].detach()))
    task.teacher.body.register_forward_pre_hook(lambda module, args: seen.update(teacher=args[0].clone()))
    pixels = torch.full((2, 3, 40, 40), 51, dtype=torch.uint8)  # 0.2: flat, so no resizing can hide a wrong statistic
    task(pixels)
    assert seen["student"].shape == (2, 3, 32, 32)
    assert seen["teacher"].shape == (2, 3, 24, 24)
    torch.testing.assert_close(seen["student"], torch.full((2, 3, 32, 32), (0.2 - 0.5) / 0.25))
    for channel, (mean, std) in enumerate(((0.1, 0.9), (0.2, 0.8), (0.3, 0.7))):
        torch.testing.assert_close(
            seen["teacher"][:, channel], torch.full((2, 24, 24), (0.2 - mean) / std), atol=1e-6, rtol=1e-6
        )


# timm's calls


def test_ema_is_the_running_average_and_what_is_published():
    task = make_task()
    assert task.best_student is task.student
    task.setup_ema(decay=0.75)
    assert task.best_student is task.ema_student
    assert isinstance(task.ema_student, Student)
    before = task.student.projector.weight.detach().clone()
    train(task, 1)
    after = task.student.projector.weight.detach()
    assert not torch.equal(after, before)
    assert torch.equal(task.ema_student.projector.weight, before)
    task.update_ema(step=2)  # timm copies up to step 1
    torch.testing.assert_close(task.ema_student.projector.weight.detach(), 0.75 * before + 0.25 * after)


def test_checkpoint_state_resumes_student_average_and_banks():
    task, other = make_task(seed=0), make_task(seed=1)
    for one in (task, other):
        one.setup_ema(decay=0.5)
    train(task)
    task.update_ema(step=2)
    plain, average = task.get_checkpoint_state(), task.get_checkpoint_state(ema=True)
    assert {key.partition(".")[0] for key in plain["state_dict"]} == {"backbone", "projector"}
    other.load_checkpoint_state(plain["state_dict"], plain["task_state"])
    other.load_checkpoint_state(average["state_dict_ema"], average["task_state_ema"], ema=True)
    assert torch.equal(other.objective.visual_bank, task.objective.visual_bank)
    assert torch.equal(other.objective.seen, task.objective.seen)
    assert task.objective.seen.any()
    for mine, theirs in ((task.student, other.student), (task.ema_student, other.ema_student)):
        for key, value in mine.state_dict().items():
            assert torch.equal(theirs.state_dict()[key], value), key
    assert not torch.equal(task.ema_student.projector.weight, task.student.projector.weight)
    assert train(task, 2) == train(other, 2)


def test_a_checkpoint_without_banks_is_refused_unless_one_asks_for_it():
    task = make_task()
    state = task.get_checkpoint_state()["state_dict"]
    with pytest.raises(LGDError, match=r"no objective state \(banks\).*strict=False"):
        task.load_checkpoint_state(state)
    task.load_checkpoint_state(state, strict=False)


def test_compiled_training_gives_the_same_losses_and_keys():
    torch.compiler.reset()
    plain, compiled = make_task(), make_task()
    compiled.setup_ema(decay=0.5)
    assert isinstance(compiled.compile(backend="eager"), torch.nn.Module)
    ran = []
    compiled.student.backbone.register_forward_hook(lambda *_: ran.append(torch.compiler.is_compiling()))
    assert train(compiled) == pytest.approx(train(plain), rel=1e-5)
    assert any(ran), "the student was not compiled"
    torch.testing.assert_close(compiled.objective.visual_bank, plain.objective.visual_bank)
    assert compiled.get_checkpoint_state()["state_dict"].keys() == plain.get_checkpoint_state()["state_dict"].keys()
    assert {key for key in compiled.state_dict() if "_ema" not in key} == {*plain.state_dict()}
    assert isinstance(compiled.student, Student)
    compiled.update_ema(step=1)
    assert isinstance(compiled.ema_student, Student)


@pytest.mark.parametrize("compile", [False, True])
def test_distributed_training_gives_the_same_losses_and_keys(process_group, compile):
    torch.compiler.reset()
    plain, wrapped = make_task(), make_task()
    wrapped.setup_ema(decay=0.5)
    if compile:
        wrapped.compile(backend="eager")
    assert wrapped.prepare_distributed() is wrapped
    assert isinstance(wrapped.trainable_module, DistributedDataParallel)
    assert isinstance(wrapped.student, Student)
    assert train(wrapped) == pytest.approx(train(plain), rel=1e-5)
    wrapped.update_ema(step=1)
    assert wrapped.get_checkpoint_state()["state_dict"].keys() == plain.get_checkpoint_state()["state_dict"].keys()
    assert (
        wrapped.get_checkpoint_state(ema=True)["state_dict_ema"].keys()
        == plain.get_checkpoint_state()["state_dict"].keys()
    )
    state = plain.get_checkpoint_state()
    wrapped.load_checkpoint_state(state["state_dict"], state["task_state"])
    assert torch.equal(wrapped.student.projector.weight, plain.student.projector.weight)


def test_no_sync_reaches_the_wrapper(process_group):
    task = make_task()
    with task.no_sync():
        task(images(), targets())["loss"].backward()
    task.prepare_distributed()
    assert task.trainable_module.require_backward_grad_sync
    with task.no_sync():
        assert not task.trainable_module.require_backward_grad_sync
    assert task.trainable_module.require_backward_grad_sync


def test_under_autocast_the_loss_stays_float32():
    task, exact = make_task(teacher=True), make_task(teacher=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = task(images())
    assert result["output"].dtype == torch.bfloat16
    assert {result[key].dtype for key in ("loss", "loss_text", "loss_visual")} == {torch.float32}
    assert result["loss"].item() == pytest.approx(exact(images())["loss"].item(), rel=0.05)
    result["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in task.student.parameters())


def test_a_registered_model_and_a_real_teacher_tower_fit(tiny_clip):
    from lgd_timm.teachers import OpenCLIP

    teacher = OpenCLIP(f"local-dir:{tiny_clip}").image()
    bank = normalize(torch.randn(NAMES, teacher.embed_dim), dim=1)
    student = create_student("lgd_resnet18", embed_dim=teacher.embed_dim, image_size=32)
    result = LGDTask(student, LGD(bank), teacher)(images(size=48))
    result["loss"].backward()
    assert result["teacher"].shape == (6, teacher.embed_dim)
    assert timm.is_model("lgd_resnet18")
