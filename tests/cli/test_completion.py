"""`lgd-timm --print-completion`: what a shell completes with the printed script, without starting Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lgd_timm import cli
from lgd_timm.cli.completion import SHELLS

TAB = """
source ./script
COMP_WORDS=({words}); COMP_CWORD={last}
_shtab_lgd_timm
echo "${{COMPREPLY[@]}}"
"""


def printed(capsys: pytest.CaptureFixture[str], shell: str) -> str:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--print-completion", shell])
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script_that_knows_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    script = printed(capsys, shell)
    assert all(word in script for word in ("linear-probe", "shards", "subset", "distill", "--version"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    (tmp_path / "script").write_text(printed(capsys, "bash"))
    (tmp_path / "tiny.yaml").touch()
    for words, expected in {
        "lgd-timm sha": "shards",
        "lgd-timm shards ''": "write resize index verify subset",
        "lgd-timm evaluate linear-probe m --prot": "--protocol",
        "lgd-timm distill ti": "tiny.yaml",
        "lgd-timm distill x --output ti": "tiny.yaml",
    }.items():
        tab = TAB.format(words=words, last=len(words.split()) - 1)
        done = subprocess.run(["bash", "-c", tab], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.strip() == expected, words


def test_without_shtab_the_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["--print-completion", "bash"])
    assert "pip install 'lgd_timm[completion]'" in capsys.readouterr().err
