"""Read category names and prompt templates, which a text encoder turns into the textual semantics bank.

    kind of source                 names
    a list                         as written (a recipe's own list)
    PATH or file:PATH              a UTF-8 text file, one name a line; blank lines and `#` lines are skipped
    folder:PATH                    sorted class folders of an image folder, underscores read as spaces; the same folders
                                   that `lgd-timm shards write` numbers: hidden and empty ones are none
    coco:PATH                      `categories` of a COCO annotation file, by id
    lvis:PATH                      the same of an LVIS file, underscores read as spaces ("bat_(animal)": "bat (animal)")
    open_clip:imagenet             open_clip's ImageNet names; refused, as two pairs are equal
    open_clip:imagenet-disambiguated   the same, one name of each pair replaced
    timm:imagenet-1k, ...          first WordNet lemma from timm's ImageNetInfo, with more words only where two clash

open_clip is imported only when one of its sources is read.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ..errors import VocabularyError, require
from ..utils.files import fingerprint
from ..utils.typed_json import LARGEST_ANNOTATIONS, JSONError, parse_json
from .image_folder import class_folders

log = logging.getLogger(__name__)

# open_clip says "missile" at 657 and 744, "sunglasses" at 836 and 837, but WordNet's synset of 744 is "projectile,
# missile" and that of 836 is "sunglass". Each takes its synset's first lemma, if open_clip still has the shared word.
_OPEN_CLIP_SUBSETS: dict[str, dict[tuple[int, str], str]] = {
    "imagenet": {},
    "imagenet-disambiguated": {(744, "missile"): "projectile", (836, "sunglasses"): "sunglass"},
}

# What ImageNetInfo accepts; it has no public list and refuses the rest with a bare assert.
TIMM_SUBSETS = [f"imagenet-{size}" for size in ("1k", "12k", "21k", "21k-goog", "21k-miil", "22k", "22k-ms")]

# Named template sets -> list in open_clip.zero_shot_metadata.
_OPEN_CLIP_TEMPLATES = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}

# Further advice on names that a source is known to get wrong.
_ADVICE = {"open_clip:imagenet": " Use the source 'open_clip:imagenet-disambiguated', which tells these apart."}


@dataclass(frozen=True)
class Vocabulary:
    """Category names, in the order of the classes, and the prompts in which a text encoder reads them.

    Raises:
        VocabularyError: there are fewer than two names, a name is empty, an identifier or a duplicate, or a template
            has not exactly one `{}`.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        _check_names(self.names)
        wrong = [repr(template) for template in self.templates if template.count("{}") != 1]
        if wrong or not self.templates:
            raise VocabularyError(f"templates {_some(wrong) or '[]'}: each needs exactly one {{}} for the name.")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over names (their order matters) and templates, the same in every process."""
        return fingerprint(self.names, self.templates)

    def prompts(self, name: str) -> list[str]:
        """Build one prompt per template. Braces in the name are plain characters."""
        return [template.replace("{}", name) for template in self.templates]


def load_vocabulary(
    source: str | Sequence[str], *, templates: str | Sequence[str] = "none", root: Path | None = None
) -> Vocabulary:
    """Read category names and prompt templates.

    Args:
        source: of the names; the module's docstring lists the kinds. White space between words becomes one space.
        templates: "none" (the bare name), "openai" (CLIP's 80), "simple" (its 7), a string with `{}`, a list of them,
            or the path of a text file with one a line.
        root: where relative paths start; None: the working directory.

    Raises:
        VocabularyError: the source is unknown or can't be read, or `Vocabulary` refuses its names or templates.
        MissingExtra: open_clip is needed and not installed.
    """
    base = root or Path()
    names = tuple(" ".join(name.split()) for name in _read_names(source, base))
    prompts = tuple(_read_templates(templates, base))
    try:
        return Vocabulary(names, prompts)
    except VocabularyError as error:
        where, advice = (source, _ADVICE.get(source, "")) if isinstance(source, str) else ("list of names", "")
        raise VocabularyError(f"{where}: {error}{advice}") from None


def class_order(names: Sequence[str], class_names: Sequence[str]) -> list[int] | None:
    """Find the name of each class, where the names are the classes in another order.

    Args:
        names: of a vocabulary.
        class_names: of shards, in the order of their labels. Underscores are spaces, and case does not count.

    Returns:
        For each class the index of its name; None where both are in one order already, or are not the same.
    """
    index = {_plain(name): number for number, name in enumerate(names)}
    order = [index.get(_plain(name), -1) for name in class_names]
    numbers = list(range(len(names)))
    return order if order != numbers and sorted(order) == numbers else None


def misplaced(names: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Find names that equal the name of another class than their own, as "name 0 'cat' is class 3"."""
    label = {_plain(name): number for number, name in enumerate(class_names)}
    return [
        f"name {number} {name!r} is class {label[_plain(name)]}"
        for number, name in enumerate(names)
        if label.get(_plain(name), number) != number
    ]


def names_as_classes(names: Sequence[str], class_names: Sequence[str]) -> bool:
    """Tell whether names and classes are the same, in one order."""
    return [_plain(name) for name in names] == [_plain(name) for name in class_names]


def _plain(name: str) -> str:
    return _spelled(name).casefold()


def names_file(source: str) -> str | None:
    """Return the path in a source, which is its end; None where names come from a library."""
    kind, colon, rest = source.partition(":")
    if colon and kind in _KINDS:
        return rest if kind in _FILE_KINDS else None
    return source


def templates_file(templates: str) -> str | None:
    """Return `templates` if it is a path; None for a known set, or a template."""
    return None if templates == "none" or templates in _OPEN_CLIP_TEMPLATES or "{}" in templates else templates


def _check_names(names: Sequence[str]) -> None:
    if len(names) < 2:
        reason = "a distribution over fewer than two names is constant, nothing can be learned"
        raise VocabularyError(f"{list(names)}: {reason}. Give at least two names.")
    empty = [f"the name at index {index}" for index, name in enumerate(names) if not name.strip()]
    odd = [ascii(name) for name in names if not name.isprintable()]
    ids = [repr(name) for name in names if re.fullmatch(r"n\d{8}", name)]
    joined = [f"{name!r} (write {_spelled(name)!r})" for name in names if "_" in name]
    twins = [f"{names[same[0]]!r} at index {' and '.join(map(str, same))}" for same in _duplicates(names)]
    for bad, reason, remedy in (
        (empty, "empty", "Write or remove it."),
        (odd, "a control character or half of one, which no recipe or page can hold", "Write it as plain text."),
        (ids, "WordNet ids mean nothing to a text encoder", "Write words: 'timm:imagenet-1k' has those of ImageNet."),
        (joined, "an underscore is not part of a word", "Only 'folder:' and 'lvis:' sources read it as a space."),
        (twins, "duplicates, of which only the first could be the nearest", "Tell them apart or remove the others."),
    ):
        if bad:
            raise VocabularyError(f"{_some(bad)}: {reason}. {remedy}")


def _duplicates(names: Sequence[str]) -> list[list[int]]:
    """Group the indices of names that are equal but for case and white space, one list for each such name."""
    where: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        where.setdefault(" ".join(name.split()).casefold(), []).append(index)
    return [indexes for indexes in where.values() if len(indexes) > 1]


def _some(items: Sequence[str]) -> str:
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")


def _unknown(what: str, value: str, known: Collection[str]) -> VocabularyError:
    nearest = difflib.get_close_matches(value, known, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return VocabularyError(f"{value!r} is not a known {what}.{hint} Known: {', '.join(known)}.")


def _read_names(source: str | Sequence[str], base: Path) -> list[str]:
    if not isinstance(source, str):
        return _strings(source, what="names")
    kind, colon, rest = source.partition(":")
    if colon and kind in _KINDS:
        return _KINDS[kind](rest, base)
    if colon and len(kind) > 1 and not _is_there(base / source):  # one letter is a Windows drive
        raise _unknown("kind of vocabulary source", kind, _KINDS)
    return _lines(source, base)


def _strings(values: object, *, what: str) -> list[str]:
    """Require a list of strings: YAML reads a bare `no` or `7` as another type, and an empty list as None."""
    if not isinstance(values, Sequence):
        raise VocabularyError(f"{values!r} is not a list of {what}. Write one, or a string that says where they are.")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise VocabularyError(f"{what}: the entry at index {index} is {value!r}, not text. Put it in quotes.")
    return list(values)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # -sig: editors on Windows begin a file with a BOM
    except IsADirectoryError:
        raise VocabularyError(f"{path} is a folder. For its class folders as names, write 'folder:{path}'.") from None
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path} is not UTF-8 (byte {error.start}: {error.reason}). Save it as such.") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        hint = "Relative paths start at the working directory."
        raise VocabularyError(f"{path} can't be read ({getattr(error, 'strerror', None) or error}). {hint}") from None


def _lines(rest: str, base: Path) -> list[str]:
    return [line for line in map(str.strip, _text(base / rest).splitlines()) if line and not line.startswith("#")]


def _spelled(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _folder(rest: str, base: Path) -> list[str]:
    """List class folders in plain sorted order, as torchvision's ImageFolder and our shards number them."""
    path = base / rest
    try:
        (found, empty), reason = class_folders(path), "holds no class folders"
    except (OSError, ValueError):
        found, empty, reason = [], [], "is not a folder"
    if not found:
        raise VocabularyError(f"{path} {reason}. Give the folder that holds one folder per class.")
    if empty:
        log.warning("%s: folders without images, which are no classes: %s", path, _some(empty))
    return [_spelled(name) for name in found]


class _Category(TypedDict):
    id: int
    name: str


class _Categories(TypedDict):
    categories: list[_Category]


def _coco(rest: str, base: Path) -> list[str]:
    path = base / rest
    try:
        categories = parse_json(_text(path), _Categories, limit=LARGEST_ANNOTATIONS)["categories"]
        names = [category["name"] for category in sorted(categories, key=lambda category: category["id"])]
    except JSONError as error:
        need = "Give a COCO or LVIS annotation file: `categories` with `id` and `name`."
        raise VocabularyError(f"{path} can't be used ({error}). {need}") from None
    return _strings(names, what=f"names in {path}")


def _lvis(rest: str, base: Path) -> list[str]:
    return [_spelled(name) for name in _coco(rest, base)]


def _open_clip(rest: str, base: Path) -> list[str]:
    if rest not in _OPEN_CLIP_SUBSETS:
        raise _unknown("open_clip vocabulary", rest, _OPEN_CLIP_SUBSETS)
    names = require("open_clip.zero_shot_metadata", extra="open-clip").IMAGENET_CLASSNAMES
    return [_OPEN_CLIP_SUBSETS[rest].get((index, name), name) for index, name in enumerate(names)]


def _timm(rest: str, base: Path) -> list[str]:
    """Take the first lemma of each synset; names that clash get further words from timm, as few as needed."""
    if rest not in TIMM_SUBSETS:
        raise _unknown("timm vocabulary", rest, TIMM_SUBSETS)
    from timm.data import ImageNetInfo

    info = ImageNetInfo(rest)
    return _told_apart([*map(_spellings, info.label_descriptions(), info.label_descriptions(detailed=True))])


def _spellings(brief: str, detailed: str) -> list[str]:
    """Spell a name from short to long, of "maillot, tank suit" and "maillot, tank suit: a woman's ...; ...":

    first lemma; with the second; with the definition up to its first semicolon; with the whole definition.
    """
    first, *more = brief.split(", ")
    definition = detailed.removeprefix(f"{brief}: ")
    return [first, ", ".join([first, *more[:1]]), f"{first}, {definition.split(';')[0]}", f"{first}, {definition}"]


def _told_apart(spellings: Sequence[Sequence[str]]) -> list[str]:
    """Choose the shortest spelling of each name; all names that clash take their next longer one."""
    names = [row[0] for row in spellings]
    for length in range(1, max(map(len, spellings))):
        for index in [index for indexes in _duplicates(names) for index in indexes]:
            names[index] = spellings[index][length]
    return names


_FILE_KINDS = {"file": _lines, "folder": _folder, "coco": _coco, "lvis": _lvis}
_KINDS = {**_FILE_KINDS, "open_clip": _open_clip, "timm": _timm}


def _read_templates(templates: str | Sequence[str], base: Path) -> list[str]:
    if not isinstance(templates, str):
        return _strings(templates, what="templates")
    if templates == "none":
        return ["{}"]
    if templates in _OPEN_CLIP_TEMPLATES:
        module = require("open_clip.zero_shot_metadata", extra="open-clip")
        return [template("{}") for template in getattr(module, _OPEN_CLIP_TEMPLATES[templates])]
    if "{}" in templates:
        return [templates]
    if not _is_there(base / templates):
        raise _unknown("set of templates, a text with {} or a file", templates, ["none", *_OPEN_CLIP_TEMPLATES])
    return _lines(templates, base)
