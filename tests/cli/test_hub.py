"""`lgd-timm push`, `pull` and `list`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from lgd_timm import hub
from lgd_timm.cli.hub import list_lines
from lgd_timm.hub import weights
from lgd_timm.hub.status import Row
from lgd_timm.hub.verify import facts_of
from lgd_timm.publish.card import retarget
from tests.helpers.commands import say
from tests.helpers.hub_fixtures import environment, read_files, run_script
from tests.helpers.hub_server import WRITE_TOKEN, HubServer

# push, push again, pull, pull of nothing: by a process that has HF_ENDPOINT from its start.
HUB = """
import contextlib, io, json
from lgd_timm.cli import main

def said(*argv):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(argv)
    return [status, out.getvalue(), error.getvalue()]

folder, target = {arguments}
print(json.dumps([
    said("push", folder, "me/tiny", "--tag", "v1", "--message", "Publish the tiny one"),
    said("push", folder, "me/tiny"),
    said("pull", "me/tiny@v1", "--local-dir", target),
    said("pull", "me/other"),
]))
"""

REGISTER = """
import json
from pathlib import Path
from lgd_timm import cli
from lgd_timm.hub import weights
weights.MANIFEST = Path({manifest!r})
print(json.dumps(cli.main(["push", {folder!r}, "me/tiny", "--register"])))
"""


def test_push_and_pull(published_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "pulled"
    with HubServer(tmp_path / "store") as server:
        script = HUB.format(arguments=[str(published_folder), str(target)])
        pushed, again, pulled, refused = run_script(
            script, environment(server.url, tmp_path / "home", HF_TOKEN=WRITE_TOKEN)
        )
    assert pushed[0] == 0, pushed[2]
    said = re.fullmatch(
        rf"sent: (.*\..*, ){{5,}}.*\n{server.url}/me/tiny/tree/([0-9a-f]{{40}}) at \2\n(.*)", pushed[1], re.DOTALL
    )
    assert said
    (row,) = json.loads(said[3]).values()
    assert (row["repo_id"], row["commit"], row["cfg"]["num_classes"]) == ("me/tiny", said[2], 3)
    assert again[1].splitlines()[0] == "sent: nothing, all is there"
    assert pulled == [0, f"{target}\n", pulled[2]]
    assert {name: facts_of(target / name) for name in read_files(target)} == row["files"]
    there, here = read_files(target), read_files(published_folder)
    assert there.pop("README.md").decode() == retarget(here.pop("README.md").decode(), "me/tiny")
    assert there == here
    assert refused[:2] == [2, ""]
    assert refused[2].startswith("lgd-timm: error: me/other: no such repository")


def test_push_dry_run_sends_nothing(capsys: pytest.CaptureFixture[str], published_folder: Path) -> None:
    first, second, *row = say(capsys, "push", published_folder, "me/tiny", "--dry-run").splitlines()
    assert json.loads("\n".join(row))["published"]["commit"] is None
    assert first.startswith("would send: config.json, model.safetensors, README.md")
    assert second.endswith("/me/tiny at None")


def test_push_register_makes_a_weight(
    published_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its row goes into the manifest, its folder is what is on the Hub, and `list` shows it."""
    folder = Path(shutil.copytree(published_folder, tmp_path / "hub" / "lgd_resnet18.tiny"))
    (tmp_path / "manifest.json").write_text("{}")
    with HubServer(tmp_path / "store") as server:
        script = REGISTER.format(manifest=str(tmp_path / "manifest.json"), folder=str(folder))
        environ = environment(server.url, tmp_path / "home", HF_TOKEN=WRITE_TOKEN, LGD_TIMM_HUB=str(folder.parent))
        assert run_script(script, environ) == 0
        commit = server.store.repo("me/tiny").branches["main"]
    monkeypatch.setattr(weights, "MANIFEST", tmp_path / "manifest.json")
    monkeypatch.setenv("LGD_TIMM_HUB", str(folder.parent))
    assert hub.manifest()["lgd_resnet18.tiny"].commit == commit
    assert hub.locate("lgd_resnet18.tiny") == folder
    assert "me/tiny" in (folder / "README.md").read_text()
    assert re.search(
        r"^lgd_resnet18\.tiny  [\d.]+ MB  local\+remote  verified  [\d.]+", say(capsys, "list"), re.MULTILINE
    )
    (row,) = json.loads(say(capsys, "list", "--json"))
    assert (row["commit"], row["verified"], row["places"]["local"]) == (commit, True, str(folder))
    (folder / "config.json").write_text("{}")
    assert "WRONG: config.json should have" in say(capsys, "list")


def test_the_list_fits_120_columns() -> None:
    metrics = {"zero_shot_top1": 61.35, "knn_top1": 66.63, "linear_probe_top1": 68.17, "teacher_knn_top1": 80.63}
    places = {"local": "/a", "cached": "/b", "remote": "/c"}
    digest = "0123456789abcdef" * 4
    wrong = (
        f"model.safetensors should have 4569644 bytes with sha256 {digest}, but there is 1 bytes with sha256 {digest}"
    )
    rows = [
        Row("lgd_efficientnet_b0.conse_cifar10", "lgd-timm/x", None, 9_200_000, metrics, places, {}, True),
        Row(f"org/{'n' * 92}@{'0' * 40}", "org/n", "0" * 40, 10**9, metrics, places, {"model": wrong}, False),
        Row("mine", None, None, 1, {}, {}, {}, None),
    ]
    lines = list(list_lines(rows))
    assert max(map(len, lines)) <= 120
    assert lines[0].split() == ["name", "size", "where", "state", "zero-shot", "%", "k-NN", "%", "probe", "%"]
    assert re.split(" {2,}", lines[1])[1:] == ["9.2 MB", "local+cached+remote", "verified", "61.35", "66.63", "68.17"]
    assert lines[2] == f"org/{'n' * 92}@0000000"
    assert re.split(" {2,}", lines[3])[1:] == ["1000.0 MB", "local+cached+remote", "WRONG", "61.35", "66.63", "68.17"]
    assert re.split(" {2,}", lines[4]) == ["mine", "0.0 MB", "nowhere yet", "not verified"]
    assert " ".join(line.strip() for line in lines[5:]) == f"{lines[2]}: WRONG: {wrong}"
