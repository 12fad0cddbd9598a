"""Published weights: which exist, where they lie, how they come and go. Every file is checked by its hash.

    manifest()      what this package knows to be published: repository, commit, size and sha256 of every file
    locate(name)    the folder of such a weight: in the local hub folder, else from the Hub
    pull(name)      a published folder, ours or anybody's (`org/name[@revision]`), whole and at one commit
    snapshot(name)  the same for other files of a repository
    push(folder)    a published folder to the Hub: one commit, read back, then tagged
    listing()       what is published, where it is, and whether it is right

The Hub's own client compares sizes only: a byte that flips on the way stays, silently. Here nothing is used
before its hash was compared, and only safetensors are read. Every failure is a WeightsError, and every wait has a bound
(`lgd_timm.settings`).
"""

from ..weights import Weight, manifest
from .listing import Row, listing
from .pull import locate, pull, snapshot
from .push import PushResult, name_in_card, push

__all__ = ["PushResult", "Row", "Weight", "listing", "locate", "manifest", "name_in_card", "pull", "push", "snapshot"]
