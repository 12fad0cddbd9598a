"""Captions of any shards, as img2dataset writes them: an image, and its caption in a field `txt` or `json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ...data.index import ShardSet, open_shards
from ...errors import ShardError
from ...utils.files import fingerprint
from ...utils.schema import brief
from .images import ShardReader
from .sample import Sample

LONGEST_CAPTION = 1 << 16  # bytes of a `txt`
LARGEST_RECORD = 1 << 22  # bytes of a `json`


@dataclass(frozen=True)
class CaptionShards:
    """A split of shards with captions."""

    kind: ClassVar[str] = "shards"
    root: str  # folder or address of the shards
    split: str = "train"

    def open(self) -> CaptionShardsDataset:
        """Open the index. Raises: ShardError."""
        return CaptionShardsDataset(open_shards(self.root, split=self.split))


class CaptionShardsDataset:
    """One sample an image, with the caption of its `txt`, or else that of its `json`, {"caption": text or texts, ...}.

    Args:
        shards: the split that is read; `lgd-timm shards index` indexes tars of others where they lie.
    """

    def __init__(self, shards: ShardSet) -> None:
        self._reader = ShardReader(shards)
        self.fingerprint = fingerprint("shards", shards.fingerprint)

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Sample:
        """Read a sample; its image is read when it is asked for. Raises: ShardError for one without a caption."""
        return Sample(
            key=self._reader.key(index), image=partial(self._reader.pil, index), captions=self._captions(index)
        )

    def _captions(self, index: int) -> tuple[str, ...]:
        fields = self._reader.fields(index)
        if "txt" in fields:
            texts: list[object] = [self._text(index, "txt", LONGEST_CAPTION)]
        elif "json" in fields:
            texts = self._record(index)
        else:
            raise self._wrong(index, f"has neither txt nor json among its fields ({', '.join(fields)})")
        captions = tuple(" ".join(text.split()) for text in texts if isinstance(text, str))
        if len(captions) < len(texts) or not captions or not all(captions):
            raise self._wrong(index, f"has the caption {brief(texts)}")
        return captions

    def _record(self, index: int) -> list[object]:
        text = self._text(index, "json", LARGEST_RECORD)
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._wrong(index, f"has a json that can't be read ({brief(str(error))})") from error
        caption = record.get("caption") if isinstance(record, dict) else None
        return caption if isinstance(caption, list) else [caption]

    def _text(self, index: int, field: str, limit: int) -> str:
        data = self._reader.read(index, field)
        if len(data) > limit:
            raise self._wrong(index, f"has a {field} of {len(data)} bytes, more than {limit}")
        try:
            return data.decode("utf-8-sig")
        except ValueError as error:
            raise self._wrong(index, f"has a {field} that is no UTF-8") from error

    def _wrong(self, index: int, reason: str) -> ShardError:
        return ShardError(
            f"{self._reader.shards.root}: sample {brief(self._reader.key(index))} {reason}. Expected: a caption as "
            'text in txt, or in json as {"caption": ...}.'
        )
