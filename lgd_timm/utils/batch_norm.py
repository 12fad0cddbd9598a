"""Say what to do where batch normalisation can't normalise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import LGDError


@contextmanager
def explain_batch_of_one() -> Iterator[None]:
    """Explain the error of a batch normalisation in training that gets one value a channel.

    Raises:
        LGDError: says which settings give it more.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise LGDError(
            "Batch normalisation can't learn from one value a channel: there is one image a pass, and its features are "
            "one pixel. Raise the batch size (of each rank and pass), or the size of the images."
        ) from error
