"""What docs/guides/export.md shows, run as it stands."""

from __future__ import annotations

import re
from typing import Any

from tests.helpers import ROOT

PAGE = ROOT / "docs" / "guides" / "export.md"


def run_snippet(holding: str, **names: Any) -> dict[str, Any]:
    """Run the first block of Python that holds a text, in the working directory; what it named."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    exec(next(block for block in blocks if holding in block), names)
    return names
