"""Words as tokens: BERT's word pieces, or the training texts' own words; masking, and back to words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecipeError, TeacherError, WeightsError, require
from ..teachers.sentence_encoder import package_folder
from ..utils.files import fingerprint
from ..utils.schema import brief
from ..utils.typed_json import read_json

FILE = "tokenizer.json"
IMAGE = "<image>"  # the token that stands for a cell of the image in transformers' models
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
IGNORED = -100  # target of a place where no word is predicted, as torch's cross-entropy has it


class Tokenizer:
    """Tokens of texts. The library is that of transformers' fast tokenizers.

    Args:
        data: content of a `tokenizer.json` that has BERT's special tokens.

    Raises:
        WeightsError: it is none.
    """

    def __init__(self, data: str) -> None:
        library = require("tokenizers", extra="vl")
        try:
            self._tokenizer = library.Tokenizer.from_str(data)
        except Exception as error:  # the library raises no narrower one
            raise WeightsError(f"{FILE} can't be read ({error}). Fetch it again.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.post_processor = None  # special tokens are added by `sentence`
        if missing := [token for token in SPECIAL if self._tokenizer.token_to_id(token) is None]:
            raise WeightsError(f"{FILE} lacks {', '.join(missing)}. Give a tokenizer of a BERT.")
        if max(self._tokenizer.get_vocab().values()) >= len(self):
            raise WeightsError(f"{FILE} has numbers of tokens beyond their count, {len(self)}. Fetch it again.")
        self.pad, self.unknown, self.cls, self.sep, self.mask = map(self._tokenizer.token_to_id, SPECIAL)

    def __len__(self) -> int:
        """How many tokens there are."""
        return int(self._tokenizer.get_vocab_size())

    @cached_property
    def data(self) -> str:
        """What `tokenizer.json` holds."""
        return str(self._tokenizer.to_str())

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(json.loads(self.data))

    @property
    def unwritten(self) -> list[int]:
        """Tokens that no written caption has."""
        return [self.pad, self.unknown, self.cls, self.mask]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without [CLS] and [SEP]."""
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises no narrower one
            raise WeightsError(f"{FILE} can't encode {brief(text)} ({error}). Fetch it again.") from error
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Words of tokens, without special ones."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def sentence(self, text: str, *, length: int) -> list[int]:
        """[CLS], the text and [SEP], at most `length` tokens."""
        return [self.cls, *self.encode(text)[: length - 2], self.sep]

    def tags(self, names: Iterable[str], *, length: int) -> list[int]:
        """Names of objects and [SEP], at most `length` tokens; none where `length` is 0."""
        if not length:
            return []
        return [*self.encode(" ".join(names))[: length - 1], self.sep]


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`; of a model of transformers' class it has the image's token too, which is left out.

    Raises:
        OSError, ValueError: it can't be read.
        WeightsError: it is none of a BERT.
    """
    content = read_json(path, dict)
    content["added_tokens"] = [token for token in content.get("added_tokens", ()) if token.get("content") != IMAGE]
    return Tokenizer(json.dumps(content))


def find_tokenizer(name: str, *, texts: Iterable[str] = (), vocabulary: int = 4000) -> Tokenizer:
    """Open or make a tokenizer.

    Args:
        name: `words`, `package:MODULE/FOLDER`, or a folder with `tokenizer.json`.
        texts: of `words`: what the vocabulary is made of.
        vocabulary: of `words`: how many of the most frequent words it has.

    Raises:
        RecipeError: there is no such tokenizer.
        WeightsError: its file can't be read.
    """
    if name == "words":
        return Tokenizer(_of_words(texts, count=vocabulary))
    try:
        folder = package_folder(name) if name.startswith("package:") else Path(name)
        return read_tokenizer(next(path for path in (folder / FILE, folder / "model" / FILE) if path.is_file()))
    except (StopIteration, OSError, ValueError, LookupError, TypeError, AttributeError, TeacherError) as error:
        raise RecipeError(
            f"text.tokenizer {name!r} holds no {FILE} ({error or 'no such file'}). Give words, package:MODULE/FOLDER, "
            "or a folder with it, such as a teacher's."
        ) from error


def _of_words(texts: Iterable[str], *, count: int) -> str:
    """A `tokenizer.json` of the most frequent words; of equally frequent ones the first in the alphabet."""
    library: Any = require("tokenizers", extra="vl")
    normalizer, splitter = library.normalizers.BertNormalizer(), library.pre_tokenizers.BertPreTokenizer()
    found = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(found, key=lambda word: (-found[word], word))[:count]
    if not words:
        raise RecipeError("text.tokenizer words finds no words: the training data has no texts. Name a tokenizer.")
    ids = {word: number for number, word in enumerate((*SPECIAL, *words))}
    tokenizer = library.Tokenizer(library.models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(list(SPECIAL))
    return str(tokenizer.to_str())


def next_words(ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Let each token predict the next. Returns: tokens, and the target of each place."""
    return list(ids), [*ids[1:], IGNORED]


def masked_words(
    ids: Sequence[int], *, tokenizer: Tokenizer, share: float, most: int, draw: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Mask some of a sentence's tokens, all but [CLS]: of these 80 % become [MASK], 10 % any token, 10 % stay (BERT).

    Args:
        ids: the sentence, with [CLS] and [SEP].
        tokenizer: of the tokens.
        share: of the tokens that are masked; one is at least.
        most: how many are masked at most; 0: no limit.
        draw: what is drawn with.

    Returns:
        Tokens, and the target of each place.
    """
    count = max(1, round(share * (len(ids) - 1)))
    count = min(count, most) if most else count
    words, targets = list(ids), [IGNORED] * len(ids)
    for place in (1 + draw.permutation(len(ids) - 1)[:count]).tolist():
        targets[place] = words[place]
        chance = draw.random()
        if chance < 0.8:
            words[place] = tokenizer.mask
        elif chance < 0.9:
            words[place] = int(draw.integers(len(tokenizer)))
    return words, targets
