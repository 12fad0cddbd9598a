"""Write the parts of a model card that name its repository: how to load the model four ways, and how to repeat the run.

    section(kind, repo_id, facts)    such a part, between two comments that hold its arguments
    retarget(text, repo_id)          the same card for another repository

The Hub's page does not show the comments. The text between them is written anew when the repository changes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import WeightsError
from ..students.entrypoints import STUDENTS
from ..utils.typed_json import parse_json

ORGANISATION = "lgd-timm"  # whose weights this package knows by name

_END = "<!-- lgd_timm end -->"
_SECTION = re.compile(
    rf"^<!-- lgd_timm (load|repeat|vl) (\{{[^\n]*\}}) -->\n.*?^{_END}$", flags=re.MULTILINE | re.DOTALL
)


def section(kind: str, repo_id: str, facts: Mapping[str, Any]) -> str:
    """Write one part of a card.

    Args:
        kind: "load", "repeat", or "vl": how a vision-language model is loaded.
        repo_id: the repository, `org/name`.
        facts: what the text needs beside the repository, as JSON holds it.
    """
    note = json.dumps({"repository": repo_id, **facts}, ensure_ascii=False)
    note = note.replace(">", "\\u003e")  # nothing may end the comment
    return f"<!-- lgd_timm {kind} {note} -->\n{_TEXTS[kind](repo_id, facts)}\n{_END}"


def retarget(text: str, repo_id: str) -> str:
    """Return a card with another repository's name.

    Args:
        text: a card, whichever repository it names; a text without our parts comes back unchanged.
        repo_id: the repository, `org/name`.

    Raises:
        WeightsError: a comment around one of our parts was changed by hand.
    """

    def again(found: re.Match[str]) -> str:
        facts = _facts(found)
        facts.pop("repository")
        return section(found[1], repo_id, facts)

    return _SECTION.sub(again, text)


def repository_of(text: str) -> str | None:
    """Return the repository that a card names; None for a card that is not ours."""
    found = _SECTION.search(text)
    return _facts(found)["repository"] if found else None


def _facts(found: re.Match[str]) -> dict[str, Any]:
    """The arguments of a part. Raises: WeightsError for one that was changed by hand."""
    try:
        facts = parse_json(found[2], dict)
        section(found[1], facts["repository"], facts)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        line = found[0].partition("\n")[0][:80]
        raise WeightsError(
            f"The card's line {line!r} was changed and can't be read ({error!r}). Put it back, or rewrite the card."
        ) from error
    return facts


def _load(repo_id: str, facts: Mapping[str, Any]) -> str:
    organisation, _, name = repo_id.partition("/")
    named = organisation == ORGANISATION and name.partition(".")[0] in STUDENTS and "." in name
    values = {
        "repo": repo_id,
        "name": name,
        "size": facts["size"],
        "texts": json.dumps(facts["texts"], ensure_ascii=False),
    }
    classes = "classifier" if facts["classes"] else "backbone"
    parts = [
        ("With timm and lgd_timm, every file compared with its sha256:", OURS_BY_NAME if named else OURS),
        ("With timm alone:", TIMM[classes]),
        ("With transformers:", TRANSFORMERS[classes]),
    ]
    if facts["open_clip"]:
        parts.append(("With open_clip, which brings the teacher's text tower, so that it knows any names:", OPEN_CLIP))
    return "\n\n".join(f"{title}\n\n```python\n{_filled(code, values)}```" for title, code in parts)


def _repeat(repo_id: str, facts: Mapping[str, Any]) -> str:
    extra = f"'lgd_timm[{facts['teacher']}]'" if facts["teacher"] in ("open_clip", "conse") else "lgd_timm"
    commands = [
        (f"pip install {extra}", ""),
        *([(f"lgd-timm teach hub://{repo_id}", "the teacher's embeddings, once")] if facts["stored"] else []),
        (f"lgd-timm distill hub://{repo_id}", "this student again"),
        (f"lgd-timm distill hub://{repo_id} --vocabulary names.txt", "one for your names, a line each"),
    ]
    width = max(len(command) for command, _ in commands)
    lines = [f"{command:{width}}  # {what}" if what else command for command, what in commands]
    return "\n".join(["```bash", *lines, "```"])


def _vl(repo_id: str, facts: Mapping[str, Any]) -> str:
    asks = {"captions": f"lgd-timm vl caption hub://{repo_id} photos/"}
    command = asks.get(facts["task"], f"lgd-timm vl answer hub://{repo_id} photo.jpg 'what is it?'")
    ours = f"With lgd_timm, every file compared with its sha256:\n\n```bash\npip install 'lgd_timm[vl]'\n{command}\n```"
    if not facts["stock"]:
        return ours
    return f"With transformers alone:\n\n```python\n{_filled(CAPTION, {'repo': repo_id})}```\n\n{ours}"


_TEXTS: dict[str, Callable[[str, Mapping[str, Any]], str]] = {"load": _load, "repeat": _repeat, "vl": _vl}


def _filled(code: str, values: Mapping[str, Any]) -> str:
    """Code with its <words> replaced, in one pass: a value that holds a <word> stays as it is."""
    return re.sub("<(repo|name|size|texts)>", lambda word: str(values[word[1]]), code)


_EMBED = """\
pixels = torch.randint(0, 256, (1, 3, <size>, <size>), dtype=torch.uint8)  # or your pictures: RGB, uint8 or 0..1
with torch.no_grad():
    embeddings = student(pixels)  # [B, D] in the teacher's space
"""

OURS_BY_NAME = f"""\
import timm
import torch

import lgd_timm  # registers the name
from lgd_timm import hub, publish

model = timm.create_model("<name>", pretrained=True).eval()
student = publish.load(hub.locate("<name>")).student
{_EMBED}"""

OURS = f"""\
import timm
import torch

import lgd_timm.hub
import lgd_timm.publish

folder = lgd_timm.hub.pull("<repo>")
model = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval()
student = lgd_timm.publish.load(folder).student
{_EMBED}"""

_PICTURE = 'picture = Image.new("RGB", (320, 240), "skyblue")  # or Image.open("yours.jpg").convert("RGB")\n'

TIMM = {
    "classifier": f"""\
import timm
import torch
from PIL import Image

{_PICTURE}\
model = timm.create_model("hf-hub:<repo>", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
    scores = model(transform(picture).unsqueeze(0)).softmax(1)[0]
print(model.pretrained_cfg["label_names"][scores.argmax()], scores.max())

backbone = timm.create_model("hf-hub:<repo>", pretrained=True, num_classes=0)  # features for your task
""",
    "backbone": f"""\
import timm
import torch
from PIL import Image

{_PICTURE}\
backbone = timm.create_model("hf-hub:<repo>", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(backbone))
with torch.no_grad():
    features = backbone(transform(picture).unsqueeze(0))  # [1, F], for your own task
""",
}

TRANSFORMERS = {
    "classifier": f"""\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

{_PICTURE}\
processor = AutoImageProcessor.from_pretrained("<repo>")
model = AutoModelForImageClassification.from_pretrained("<repo>", dtype=torch.float32).eval()
with torch.no_grad():
    scores = model(**processor(picture)).logits.softmax(1)[0]
print(model.config.id2label[scores.argmax().item()], scores.max())
""",
    "backbone": f"""\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

{_PICTURE}\
processor = AutoImageProcessor.from_pretrained("<repo>")
backbone = AutoModel.from_pretrained("<repo>", dtype=torch.float32).eval()
with torch.no_grad():
    features = backbone(**processor(picture)).pooler_output  # [1, F], for your own task
""",
}

CAPTION = f"""\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

{_PICTURE}\
model = AutoModelForImageTextToText.from_pretrained("<repo>").eval()
processor = AutoProcessor.from_pretrained("<repo>")
inputs = processor(images=[picture], text=["<image>[CLS]"], return_tensors="pt")
tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(tokens, skip_special_tokens=True)[0])
"""

OPEN_CLIP = f"""\
import open_clip
import torch
from PIL import Image

{_PICTURE}\
texts = <texts>  # or any others
model, preprocess = open_clip.create_model_from_pretrained("hf-hub:<repo>")
tokenizer = open_clip.get_tokenizer("hf-hub:<repo>")
model.eval()
with torch.no_grad():
    image = model.encode_image(preprocess(picture).unsqueeze(0), normalize=True)
    scores = (model.logit_scale.exp() * image @ model.encode_text(tokenizer(texts), normalize=True).T).softmax(1)[0]
print(texts[scores.argmax()], scores.max())
"""
