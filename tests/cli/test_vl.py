"""`lgd-timm vl`: from a recipe to captions and answers of plain pictures, and one line for bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lgd_timm import cli
from tests.helpers import ROOT
from tests.helpers.hub_fixtures import environment, run_script
from tests.helpers.hub_server import WRITE_TOKEN, HubServer
from tests.helpers.vl_data import tiny, write_scenes

ANSWERS: dict[str, Any] = {"task": {"kind": "answers"}, "regions": {"kind": "grid", "rows": 1, "columns": 2}}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGD_TIMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def write(path: Path, **changes: Any) -> str:
    path.write_text(yaml.safe_dump(tiny(path.parent / "scenes" / "scenes.jsonl", **changes)))
    return str(path)


def test_teacher_student_and_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path / "scenes")
    distillation = {"teacher": "teacher"}
    student = write(tmp_path / "s.yaml", model={"width": 12}, text={"length": 10}, distillation=distillation)
    teacher = write(tmp_path / "t.yaml", regions={"kind": "grid"})
    assert cli.main(["vl", "adapt", teacher, "--student", student, "--output", "teacher"]) == 0
    assert cli.main(["vl", "distill", student, "--output", "run", "--text.tokenizer", "teacher"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tiny: not evaluated",
        "run: teacher",
        "tiny: not evaluated",
        "run: run",
    ]
    assert cli.main(["vl", "publish", "run", "published"]) == 0
    assert capsys.readouterr().out == "published\n"
    assert cli.main(["vl", "caption", "published", "scenes", "--grid", "2", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == sorted(f"{number}.png" for number in range(12))
    assert cli.main(["vl", "caption", "published", "scenes/3.png", "--grid", "2", "--json", "--device", "cpu"]) == 0
    (said,) = json.loads(capsys.readouterr().out).values()
    assert f"3.png: {said}" in lines


PUSHED = """
import json, sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from lgd_timm.cli import main
said = []
def run(*words):
    out = StringIO()
    with redirect_stdout(out):
        code = main(list(words))
    said.append([code, out.getvalue()])
for form in ("stock", "paper"):
    run("push", form, f"me/{form}", "--tag", "v1")
    run("pull", f"me/{form}@v1", "--local-dir", f"pulled/{form}")
    for source in (form, f"hub://me/{form}@v1"):
        run("vl", "caption", source, "scenes/3.png", "--device", "cpu", *(("--grid", "2") if form == "paper" else ()))
run("push", "damaged", "me/damaged")
print(json.dumps(said))
"""
STOCK: dict[str, Any] = {
    "model": {"form": "fastvlm", "dropout": 0.0},
    "text": {"tags": 0},
    "regions": {"kind": "grid", "rows": 4, "columns": 4},
    "backbone": {"level": 4},
}


def test_published_folders_go_to_the_hub_and_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both forms; what transformers can't load is refused."""
    write_scenes(tmp_path / "scenes")
    for form, changes in (("stock", STOCK), ("paper", {})):
        recipe = write(tmp_path / f"{form}.yaml", **changes, schedule={"epochs": 1})
        assert cli.main(["vl", "pretrain", recipe, "--output", f"run_{form}"]) == 0
        assert cli.main(["vl", "publish", f"run_{form}", form, "--compare", f"run_{form}"]) == 0
    shutil.copytree("stock", "damaged")
    config = json.loads(Path("damaged/config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    Path("damaged/config.json").write_text(json.dumps(config))
    with HubServer(tmp_path / "store") as server:
        environ = environment(server.url, tmp_path / "home", HF_TOKEN=WRITE_TOKEN, PYTHONPATH=str(ROOT))
        *both, damaged = run_script(PUSHED, environ)
    assert [code for code, _ in both] == [0] * 8
    for form, (_, _, here, there) in zip(("stock", "paper"), (both[:4], both[4:]), strict=True):
        assert here[1] == there[1]
        assert here[1].startswith("3.png: ")
        for file in sorted(Path(form).iterdir()):
            pulled = (Path("pulled") / form / file.name).read_text("latin-1")
            assert pulled.replace(f"me/{form}", f"lgd-timm/{form}") == file.read_text("latin-1")
    assert damaged[0] == 2


def test_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path / "scenes")
    recipe = write(tmp_path / "a.yaml", **ANSWERS)
    assert cli.main(["vl", "pretrain", recipe, "--output", "run", "--schedule.epochs", "1"]) == 0
    capsys.readouterr()
    assert cli.main(["vl", "answer", "run", "scenes/0.png", "what is at the left ?", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() in {"red", "green", "blue"}
    with_val = write(tmp_path / "b.yaml", **ANSWERS)
    content = yaml.safe_load(Path(with_val).read_text())
    content["data"]["val"] = dict(content["data"]["train"])
    Path(with_val).write_text(yaml.safe_dump(content))
    assert cli.main(["vl", "evaluate", "run", "--recipe", with_val, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("run: accuracy ")


def test_the_resolved_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write(tmp_path / "t.yaml")
    assert cli.main(["vl", "pretrain", recipe, "--print-config", "--optimizer.lr", "0.5"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["optimizer"]["lr"] == 0.5
    assert not (tmp_path / "output").exists()


WRONG = {
    "no recipe": (["vl", "pretrain", "nowhere.yaml"], "No recipe at nowhere.yaml"),
    "no scenes": (["vl", "pretrain", "t.yaml"], "scenes.jsonl can't be read"),
    "no teacher": (["vl", "distill", "t.yaml"], "names no distillation.teacher"),
    "no model": (["vl", "caption", "nowhere", "scenes"], "nowhere holds no config.json"),
    "no run": (["vl", "publish", "nowhere", "out"], "nowhere holds no config.json"),
    "no picture": (["vl", "answer", "nowhere", "no.png", "what ?"], "no.png"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    write(tmp_path / "t.yaml")
    words, message = WRONG[name]
    if name == "no model":
        write_scenes(tmp_path / "scenes", count=1)
    assert cli.main(words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "output").exists()
