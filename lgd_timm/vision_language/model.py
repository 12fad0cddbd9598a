"""A BERT over a text, names of objects, and regions of an image (Oscar's input, with MiniVLM's sizes).

    [CLS] word ... [SEP] | name ... [SEP] | region ...

Words and names have BERT's embeddings; a region is the sum of its feature and its 6 box numbers, each mapped to the
transformer's width and normalised. Names and regions are of BERT's second segment; names go on counting places after
the longest text, and all regions have the place after the longest names: their boxes say where they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import gelu, linear

from ..errors import require
from ..utils.schema import Layers, Share, Size, Tokens, Width, Words
from .batch import Batch
from .losses.blocks import States
from .masks import additive, attention_mask, masked_words_mask

ATTENTION = "lgd_probabilities"  # our attention function's name among transformers'
BOX = 6  # numbers of a box


@dataclass(frozen=True)
class ModelConfig:
    """All sizes of a model.

    Args:
        features: width of a region's feature.
        vocabulary: tokens.
        length: places of a text.
        tags: places of names.
        answers: that can be chosen; 0: no classifier.
        words: whether it predicts words.
        causal: whether words see earlier words alone, for captions.
        answer_dropout: before the classifier.
    """

    features: Width
    vocabulary: Words
    length: Tokens
    tags: Tokens
    layers: Layers
    width: Width
    heads: Width
    inner: Width
    dropout: Share
    answers: Size = 0
    words: bool = True
    causal: bool = False
    answer_dropout: Share = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Output(NamedTuple):
    """What the model computed of a batch.

    Attributes:
        last: hidden states of the last block [B, T, D].
        states: of all blocks; None unless asked for.
    """

    last: Tensor
    states: States | None = None


class VisionLanguageModel(nn.Module):
    """Text, names and regions through one transformer, with heads for words and answers.

    Raises:
        MissingExtra: transformers is missing.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.bert: Any = _bert(config)
        width = config.width
        self.feature_norm = nn.LayerNorm(config.features, elementwise_affine=False)
        self.region = nn.Linear(config.features, width)
        self.region_norm = nn.LayerNorm(width, eps=1e-12)
        self.box = nn.Linear(BOX, width)
        self.box_norm = nn.LayerNorm(width, eps=1e-12)
        if config.words:
            self.word_transform = nn.Linear(width, width)
            self.word_norm = nn.LayerNorm(width, eps=1e-12)
            self.word_bias = nn.Parameter(torch.zeros(config.vocabulary))
        if config.answers:
            self.answer_dropout = nn.Dropout(config.answer_dropout)
            self.answer = nn.Linear(width, config.answers)
        for part in self.children():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)
                nn.init.zeros_(part.bias)

    def forward(self, batch: Batch, *, states: bool = False) -> Output:
        """Compute hidden states of a batch's tokens.

        Args:
            batch: with features of this model's backbone.
            states: whether to give hidden states and attention of every block.
        """
        text = self.embed_words(batch.words)
        context = self.embed_context(batch)
        mask = attention_mask(batch.text, batch.context, causal=self.config.causal)
        places = self.places(batch)
        out = self.run(
            torch.cat([text, context], 1), mask=mask, places=places, segments=self.segments(batch), states=states
        )
        if not states:
            return Output(out.last_hidden_state)
        return Output(out.last_hidden_state, States(out.hidden_states[1:], out.attentions, batch.valid))

    def masked_states(self, batch: Batch, *, mask_token: int) -> Tensor:
        """Compute what predicts each next word where a [MASK] at its place asks for it, as `generate` does.

        Args:
            batch: words [B, L] from [CLS] on.
            mask_token: number of [MASK].

        Returns:
            Hidden states [B, L, D]: of a [MASK] behind each word, which sees that word, earlier ones, and the context.
        """
        count = batch.words.shape[1]
        masks = torch.full_like(batch.words, mask_token)
        embedded = torch.cat([self.embed_words(torch.cat([batch.words, masks], 1)), self.embed_context(batch)], 1)
        places = torch.arange(count, device=masks.device)[None]
        segments = (torch.arange(embedded.shape[1], device=masks.device) >= 2 * count).long()[None]
        out = self.run(
            embedded,
            mask=masked_words_mask(batch.text, batch.context),
            places=torch.cat([places, places + 1, self.context_places(batch)], 1),
            segments=segments,
        )
        states: Tensor = out.last_hidden_state[:, count : 2 * count]
        return states

    def run(
        self,
        embedded: Tensor,
        *,
        mask: Tensor,
        places: Tensor,
        segments: Tensor,
        cache: Any = None,
        states: bool = False,
    ) -> Any:
        """Run the transformer on embedded tokens [B, N, D].

        Args:
            embedded: tokens.
            mask: which keys each token sees, bool [B, 1, N, keys]; keys are those of the cache, then the tokens.
            places: int64 [1, N].
            segments: int64 [1, N].
            cache: transformers' cache of keys and values, which is extended; None: none.
            states: whether hidden states and attention of all blocks are given.
        """
        count = len(embedded)
        return self.bert(
            inputs_embeds=embedded,
            attention_mask=additive(mask, embedded.dtype),
            position_ids=places.expand(count, -1),
            token_type_ids=segments.expand(count, -1),
            output_attentions=states,
            output_hidden_states=states,
            **({} if cache is None else {"cache": cache}),
        )

    def embed_words(self, ids: Tensor) -> Tensor:
        """Embed tokens [B, N] as [B, N, D]."""
        embedded: Tensor = self.bert.embeddings.word_embeddings(ids)
        return embedded

    def embed_context(self, batch: Batch) -> Tensor:
        """Embed names and regions as [B, G + R, D]."""
        # Each normalised, as in LXMERT (arXiv 1908.07490): six numbers beside a thousand would hardly be seen
        contents = self.region_norm(self.region(self.feature_norm(batch.features)))
        regions = contents + self.box_norm(self.box(batch.boxes))
        names = self.embed_words(batch.tags)
        return torch.cat([names, regions.to(names.dtype)], 1)

    def places(self, batch: Batch) -> Tensor:
        """Places of a batch's tokens, int64 [1, T]."""
        words = torch.arange(batch.words.shape[1], device=batch.words.device)[None]
        return torch.cat([words, self.context_places(batch)], 1)

    def context_places(self, batch: Batch) -> Tensor:
        """Places of names and regions, int64 [1, G + R]."""
        config, device = self.config, batch.words.device
        names = config.length + torch.arange(batch.tags.shape[1], device=device)
        regions = torch.full((batch.boxes.shape[1],), config.length + config.tags, device=device)
        return torch.cat([names, regions])[None]

    def segments(self, batch: Batch) -> Tensor:
        """0 for words and 1 for names and regions, int64 [1, T]."""
        count = batch.words.shape[1]
        return (torch.arange(batch.valid.shape[1], device=batch.words.device) >= count).long()[None]

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Score all words [..., V] for hidden states [..., D]. The weights are those of the words' embeddings."""
        hidden = self.word_norm(gelu(self.word_transform(hidden)))
        return linear(hidden, self.bert.embeddings.word_embeddings.weight, self.word_bias)

    def answer_logits(self, hidden: Tensor) -> Tensor:
        """Score all answers [B, A] for the hidden states [B, T, D], of which [CLS]'s is read."""
        logits: Tensor = self.answer(self.answer_dropout(hidden[:, 0]))
        return logits


def _bert(config: ModelConfig) -> Any:
    library = require("transformers", extra="vl")
    library.AttentionInterface.register(ATTENTION, attention)
    settings = library.BertConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.inner,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        max_position_embeddings=config.length + config.tags + 1,
        initializer_range=config.width**-0.5,  # BERT's 0.02 is for wide models: narrow ones hardly learn from it
        attn_implementation=ATTENTION,
    )
    return library.BertModel(settings, add_pooling_layer=False)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attend, and return the distributions before dropout, which the attention loss compares.

    transformers' own eager function returns them after it.

    Args:
        module: transformers' block; only whether it trains matters.
        query, key, value: [B, H, N, D].
        attention_mask: what is added to the scores [B, 1, N, keys].
        scaling: of the scores.
        dropout: of the distributions.

    Returns:
        Outputs [B, N, H, D], distributions [B, H, N, keys].
    """
    probabilities = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1)
    dropped = drop(probabilities, dropout, training=module.training)
    return (dropped @ value).transpose(1, 2).contiguous(), probabilities
