"""Category names and templates: every source, every way in which one can be wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lgd_timm.data.vocabulary import TIMM_SUBSETS, Vocabulary, load_vocabulary, names_file, templates_file
from lgd_timm.errors import MissingExtra, VocabularyError
from tests.helpers import ROOT

NAMES = ["cat", "dog", "sea otter"]


def write_categories(path: Path, *names: object) -> Path:
    """Annotation file whose categories lie in reverse order of their ids."""
    rows = [{"id": index, "name": name, "synonyms": ["x"]} for index, name in enumerate(names)]
    path.write_text(json.dumps({"images": [], "categories": rows[::-1]}))
    return path


def folded(names: tuple[str, ...]) -> set[str]:
    return {" ".join(name.split()).casefold() for name in names}


# Vocabulary


def test_prompts_put_the_name_into_every_template_and_leave_its_braces_alone() -> None:
    vocabulary = Vocabulary(("cat", "{} {0}"), ("{}", "a photo of a {}."))
    assert vocabulary.prompts("cat") == ["cat", "a photo of a cat."]
    assert vocabulary.prompts("{} {0}") == ["{} {0}", "a photo of a {} {0}."]
    assert len(vocabulary) == 2


def test_fingerprint_tells_names_their_order_and_templates_apart() -> None:
    variants = [
        Vocabulary(("cat", "dog")),
        Vocabulary(("dog", "cat")),
        Vocabulary(("cat", "dog", "{}")),
        Vocabulary(("cat", "dog"), ("a {}",)),
        Vocabulary(("cat", "dog"), ("a {}", "{}")),
        Vocabulary(("cat", "dog"), ("{}", "a {}")),
    ]
    assert len({vocabulary.fingerprint for vocabulary in variants}) == len(variants)
    assert Vocabulary(("cat", "dog")).fingerprint == load_vocabulary([" cat", "dog "]).fingerprint


def test_fingerprint_is_the_same_in_another_process_which_loads_no_heavy_library() -> None:
    script = (
        "import sys, types; package = types.ModuleType('lgd_timm'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['lgd_timm'] = package\n"
        "from lgd_timm.data.vocabulary import Vocabulary\n"
        "print(Vocabulary(('café', 'dog')).fingerprint, sorted({'torch', 'timm', 'open_clip'} & set(sys.modules)))"
    )
    package = ROOT / "lgd_timm"
    printed = subprocess.run(
        [sys.executable, "-c", script, str(package)], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert printed == f"{Vocabulary(('café', 'dog')).fingerprint} []"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"\[\].*Give at least two"),
        (["cat"], r"\['cat'\].*constant.*Give at least two"),
        (["cat", "  ", "dog", ""], r"name at index 1, the name at index 3: empty"),
        (["cat", "Cat "], r"'cat' at index 0 and 1: duplicates"),
        (["sea otter", "x", "Sea  Otter", "a", "A"], r"'sea otter' at index 0 and 2, 'a' at index 3 and 4: duplicates"),
        (["aerosol_can", "dog"], r"'aerosol_can' \(write 'aerosol can'\).*underscore"),
        (["n01440764", "n01443537"], r"'n01440764', 'n01443537': WordNet ids.*timm:imagenet-1k"),
    ],
)
def test_names_that_no_bank_can_use_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary(tuple(names))
    with pytest.raises(VocabularyError, match=f"list of names: .*{message}"):
        load_vocabulary(names)


def test_long_lists_of_faults_are_cut() -> None:
    with pytest.raises(VocabularyError, match=r"'a_7' \(write 'a 7'\) and 2 more:"):
        Vocabulary(tuple(f"a_{index}" for index in range(10)))


# Lists and text files


def test_list_is_taken_in_order_with_single_spaces() -> None:
    assert load_vocabulary([" dog", "cat ", "sea \t otter"]).names == ("dog", "cat", "sea otter")


@pytest.mark.parametrize("value", [False, 7, None, ["x"]])
def test_entries_that_yaml_did_not_read_as_text_are_named(value: object) -> None:
    with pytest.raises(VocabularyError, match=r"names: the entry at index 1 is .*quotes"):
        load_vocabulary(["cat", value])  # type: ignore[list-item]


@pytest.mark.parametrize("source", [None, {"names": 2}, 3])
def test_source_of_another_type_is_refused(source: object) -> None:
    with pytest.raises(VocabularyError, match="is not a list of names"):
        load_vocabulary(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_file_skips_comments_blank_lines_and_bom(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "names.txt"
    path.write_text("crème brûlée\r\n\n  # a comment\n dog \n#x\n", encoding=encoding)
    for source in (str(path), f"file:{path}"):
        assert load_vocabulary(source).names == ("crème brûlée", "dog")


def test_relative_paths_start_at_root_else_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "templates.txt").write_text("# two\na {}\nthe {}\n")
    expected = Vocabulary(tuple(NAMES), ("a {}", "the {}"))
    assert load_vocabulary("names.txt", templates="templates.txt", root=tmp_path) == expected
    with pytest.raises(VocabularyError, match=r"names\.txt can't be read \(No such file.*Relative paths"):
        load_vocabulary("names.txt")
    monkeypatch.chdir(tmp_path)
    assert load_vocabulary("file:names.txt", templates="templates.txt") == expected


def test_path_with_a_colon_is_a_path_when_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "my:names.txt").write_text("\n".join(NAMES))
    assert load_vocabulary("my:names.txt", root=tmp_path).names == tuple(NAMES)


def test_text_that_is_not_utf8_and_folders_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("café\ndog".encode("latin-1"))
    with pytest.raises(VocabularyError, match=r"names\.txt is not UTF-8 \(byte 3"):
        load_vocabulary(str(path))
    with pytest.raises(VocabularyError, match=r"is a folder.*write 'folder:"):
        load_vocabulary(str(tmp_path))


def test_file_without_names_is_refused_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("# nothing yet\n\n")
    with pytest.raises(VocabularyError, match=r"^names\.txt: \[\]"):
        load_vocabulary("names.txt", root=tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("foldr:x", "'foldr' is not a known kind.*'folder'"),
        ("openclip:imagenet", "'openclip' is not a known kind.*'open_clip'"),
        ("timm:imagenet-1", "'imagenet-1' is not a known timm vocabulary.*'imagenet-1k'"),
        ("open_clip:imagenet-disambig", "not a known open_clip vocabulary.*'imagenet-disambiguated'"),
    ],
)
def test_unknown_kinds_and_subsets_offer_the_nearest(source: str, message: str) -> None:
    with pytest.raises(VocabularyError, match=f"{message}\\?"):
        load_vocabulary(source)


# Image folders and annotation files


def test_folder_gives_sorted_class_folders_with_spaces(tmp_path: Path) -> None:
    for name in ("sea_otter", "Zebra", "dog", ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "readme.txt").touch()
    assert load_vocabulary(f"folder:{tmp_path}").names == ("Zebra", "dog", "sea otter")


def test_folder_that_is_missing_or_has_no_class_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").touch()
    with pytest.raises(VocabularyError, match="holds no class folders"):
        load_vocabulary(f"folder:{tmp_path}")
    with pytest.raises(VocabularyError, match="nowhere is not a folder"):
        load_vocabulary("folder:nowhere", root=tmp_path)


def test_coco_is_sorted_by_id_and_keeps_its_spelling(tmp_path: Path) -> None:
    path = write_categories(tmp_path / "coco.json", "person", "hot dog", "car")
    assert load_vocabulary(f"coco:{path}").names == ("person", "hot dog", "car")
    write_categories(path, "person", "hot_dog")
    with pytest.raises(VocabularyError, match=r"'hot_dog' \(write 'hot dog'\)"):
        load_vocabulary(f"coco:{path}")


def test_lvis_underscores_become_spaces(tmp_path: Path) -> None:
    path = write_categories(tmp_path / "lvis.json", "aerosol_can", "bat_(animal)", "CD_player")
    assert load_vocabulary(f"lvis:{path}").names == ("aerosol can", "bat (animal)", "CD player")


@pytest.mark.parametrize("kind", ["coco", "lvis"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON.*Give a COCO or LVIS"),
        ("{}", "lacks categories.*Give a COCO or LVIS"),
        ("[1, 2]", "must be an object.*Give a COCO or LVIS"),
        ('{"categories": null}', "categories = None.*.*Give a COCO or LVIS"),
        ('{"categories": ["cat", "dog"]}', "must be an object.*Give a COCO or LVIS"),
        ('{"categories": [{"id": 1}]}', "lacks name.*Give a COCO or LVIS"),
        ('{"categories": [{"id": 1, "name": 5}]}', "name = 5 is no str"),
        ('{"categories": []}', "Give at least two"),
    ],
)
def test_annotation_files_that_do_not_fit_are_refused(tmp_path: Path, kind: str, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(VocabularyError, match=rf"a\.json.*{message}"):
        load_vocabulary(f"{kind}:a.json", root=tmp_path)


# Names from libraries


@pytest.mark.parametrize("subset", TIMM_SUBSETS)
def test_every_timm_subset_gives_one_distinct_name_per_class(subset: str) -> None:
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    names = load_vocabulary(f"timm:{subset}").names
    assert len(folded(names)) == info.num_classes()
    for name, brief in zip(names, info.label_descriptions(), strict=True):
        assert name.split(", ")[0] == " ".join(brief.split(", ")[0].split())


def test_timm_subsets_are_all_that_timm_knows() -> None:
    from timm.data import imagenet_info

    assert {subset.replace("-", "") for subset in TIMM_SUBSETS} == set(imagenet_info._SUBSETS)


def test_timm_imagenet_1k_adds_words_to_clashing_names_only() -> None:
    names = load_vocabulary("timm:imagenet-1k").names
    assert names[:2] == ("tench", "goldfish")
    assert (names[264], names[474]) == ("Cardigan, Cardigan Welsh corgi", "cardigan")
    assert (names[638], names[639]) == ("maillot", "maillot, tank suit")
    assert names[134].startswith("crane, large long-necked wading bird")
    assert names[517] == "crane, lifts and moves heavy objects"
    assert sum("," in name for name in names) == 4


def test_open_clip_imagenet_names_its_twins_and_offers_the_disambiguated_list() -> None:
    pytest.importorskip("open_clip")
    message = "'missile' at index 657 and 744, 'sunglasses' at index 836 and 837: .*'open_clip:imagenet-disambiguated'"
    with pytest.raises(VocabularyError, match=message):
        load_vocabulary("open_clip:imagenet")


def test_open_clip_disambiguated_changes_one_name_of_each_pair_and_agrees_with_wordnet() -> None:
    original = pytest.importorskip("open_clip.zero_shot_metadata").IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    names = load_vocabulary("open_clip:imagenet-disambiguated").names
    assert len(folded(names)) == len(original)
    changed = [index for index, pair in enumerate(zip(names, original, strict=True)) if pair[0] != pair[1]]
    assert changed == [744, 836]
    for index in (657, 744, 836, 837):
        assert names[index] == ImageNetInfo().index_to_description(index).split(", ")[0]


# Templates


def test_templates_from_words_lists_and_open_clip() -> None:
    pytest.importorskip("open_clip")
    assert load_vocabulary(NAMES).templates == ("{}",)
    assert load_vocabulary(NAMES, templates="a {} photo").templates == ("a {} photo",)
    assert load_vocabulary(NAMES, templates=["a {}", "the {}"]).templates == ("a {}", "the {}")
    openai = load_vocabulary(NAMES, templates="openai")
    simple = load_vocabulary(NAMES, templates="simple")
    assert (len(set(openai.templates)), len(set(simple.templates))) == (80, 7)
    assert set(simple.templates) < set(openai.templates)
    assert "a bad photo of the sea otter." in openai.prompts("sea otter")


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("a {} and a {}", r"'a \{\} and a \{\}': each needs exactly one \{\}"),
        (["a {}", "a photo"], r"templates 'a photo': each needs"),
        (["a {name}"], r"'a \{name\}': each needs"),
        ([], r"templates \[\]: each needs"),
        (["a {}", 3], r"templates: the entry at index 1 is 3"),
        (None, "None is not a list of templates"),
        ("opnai", "'opnai' is not a known set of templates.*Did you mean 'openai'"),
        ("a photo of {name}", "is not a known set of templates, a text with {} or a file"),
    ],
)
def test_templates_without_exactly_one_place_for_the_name_are_refused(templates: object, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        load_vocabulary(NAMES, templates=templates)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"source": "open_clip:imagenet"}, {"source": NAMES, "templates": "openai"}])
def test_without_open_clip_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, arguments: dict[str, object]) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.delitem(sys.modules, "open_clip.zero_shot_metadata", raising=False)
    with pytest.raises(MissingExtra, match=r"lgd_timm\[open-clip\]"):
        load_vocabulary(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "source",
    [
        "x" * 5000,
        "a/" * 5000,
        "file:a\0b",
        "folder:a\0b",
        "coco:" + "x" * 5000,
        "folder:" + "x" * 5000,
        "kind:" + "x" * 5000,
    ],
)
def test_names_of_files_that_no_file_can_have_are_refused(source: str) -> None:
    with pytest.raises(VocabularyError):
        load_vocabulary(source)
    with pytest.raises(VocabularyError):
        load_vocabulary(["a", "b"], templates=source)


def test_a_file_of_brackets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text("[" * 200_000)
    with pytest.raises(VocabularyError, match="can't be used"):
        load_vocabulary(f"coco:{tmp_path / 'coco.json'}")


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("names.txt", "names.txt"),
        ("file:a/b", "a/b"),
        ("folder:/a", "/a"),
        ("coco:a:b", "a:b"),
        ("lvis:x", "x"),
        ("timm:imagenet-1k", None),
        ("open_clip:imagenet", None),
        ("other:x", "other:x"),
    ],
)
def test_a_source_says_which_file_it_reads(source: str, path: str | None) -> None:
    assert names_file(source) == path


@pytest.mark.parametrize(
    ("templates", "path"), [("none", None), ("openai", None), ("simple", None), ("a {}", None), ("a.txt", "a.txt")]
)
def test_templates_say_which_file_they_read(templates: str, path: str | None) -> None:
    assert templates_file(templates) == path


@pytest.mark.parametrize("name", ["\x1b[31mred", "\ud800", "a\x00b", "a\u202eb"])
def test_names_with_control_characters_are_refused_at_once(name: str) -> None:
    with pytest.raises(VocabularyError, match="a control character") as error:
        Vocabulary((name, "blue"))
    assert str(error.value).isprintable()
