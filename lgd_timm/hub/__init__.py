"""Download published weights from the Hugging Face Hub and list them. Every file is verified by its hash.

    manifest()      the weights that this package knows: repository, commit, size and sha256 of every file
    locate(name)    the folder of such a weight: in the local hub folder, else from the Hub
    pull(name)      a published folder, ours or anybody's (`org/name[@revision]`), all files at one commit
    snapshot(name)  the same for other files of a repository
    listing()       what is published, where it is, and whether it is right

The Hub's own client compares sizes only, and keeps a byte that flips on the way. Here no file is used before its hash
was compared, and only safetensors are read. Every failure is a WeightsError, and every wait has a bound
(`lgd_timm.settings`). To upload, use `lgd_timm.publish.push`.
"""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .snapshot_download import locate, pull, snapshot
    from .status import Row, listing
    from .weights import Weight, manifest

__all__ = ["Row", "Weight", "listing", "locate", "manifest", "pull", "snapshot"]

# Lazy, as `students` needs `hub.weights` and `hub.verify` alone, and the Hub's client is heavy.
__getattr__ = lazy_names(
    __name__,
    {
        "Row": "status",
        "Weight": "weights",
        "listing": "status",
        "locate": "snapshot_download",
        "manifest": "weights",
        "pull": "snapshot_download",
        "snapshot": "snapshot_download",
    },
)
