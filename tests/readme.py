"""README.md is nbs/index.ipynb: `python tests/readme.py` writes it, a test keeps the two in step."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rendered() -> str:
    """The index notebook's cells, all of them Markdown, with links seen from the root of the repository."""
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text())["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells)
    text = re.sub(r"\]\((?!https?:|#|\.\./)", "](nbs/", text)
    return text.replace("](../", "](").strip() + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(rendered())
