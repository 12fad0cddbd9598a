"""Which tokens see which. Every token is one of the text, or of its context: object tags and regions.

both ways      each token sees all tokens
captions       words see earlier words, themselves and the context; the context sees the context alone, so that
               its states do not depend on the caption (the mask of Oscar's run_captioning.py)
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention_mask(text: Tensor, context: Tensor, *, causal: bool) -> Tensor:
    """Make the mask of a batch.

    Args:
        text: whether a place of the text holds a token, bool [B, L].
        context: whether a place of the tags and regions holds a token, bool [B, C].
        causal: the mask for captions; else tokens see each other both ways.

    Returns:
        bool [B, 1, L + C, L + C]: whether the row's token sees the column's. A place without a token sees others,
        so that no row is empty, and is seen by none.
    """
    length, size = text.shape[1], text.shape[1] + context.shape[1]
    seen = torch.cat([text, context], 1)[:, None, None, :]
    if not causal:
        return seen.expand(-1, 1, size, size)
    allowed = torch.ones(size, size, dtype=torch.bool, device=text.device)
    allowed[:length, :length] = allowed[:length, :length].tril()
    allowed[length:, :length] = False
    return seen & allowed


def masked_words_mask(text: Tensor, context: Tensor) -> Tensor:
    """Make the mask of a batch whose L words are followed by L [MASK]s, each of which asks for the word after one.

    Words and context are those of `attention_mask`, causal, and see no [MASK]; a [MASK] sees its word, what that sees,
    and itself.

    Args, Returns: as of `attention_mask`, with L [MASK]s between text and context: bool [B, 1, 2 L + C, 2 L + C].
    """
    length = text.shape[1]
    masks = slice(length, 2 * length)
    places = torch.arange(length + context.shape[1], device=text.device)
    places = torch.cat([places[:length], places])  # the words' twice: a [MASK] sees what its word does
    mask = attention_mask(text, context, causal=True)[:, :, places[:, None], places]
    mask[..., masks] = False
    mask[:, :, masks, masks] = torch.eye(length, dtype=torch.bool, device=text.device)
    return mask


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a mask into what is added to attention scores: 0 where a token is seen, else the type's least number."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
