"""Keeps the notebooks' pages in Chinese, `docs/zh`: code is copied from the notebooks, prose is translated by hand.

python -m docs.make_zh

Above each Chinese text stands the id of its cell, with a hash of the English text that was translated. Where that text
is new or has changed, the command writes it above the Chinese one and marks the cell as untranslated: mend the Chinese,
delete the English and the mark.
"""

import json
import re
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("0*.ipynb"))
HEAD = (
    "[English](../../{name}) · [README](../../README.zh-CN.md)\n\n"
    "这是笔记本 [{name}](../../{name}) 的中文版：代码与它相同；图和表请看笔记本本身。"
)
MARK = re.compile(r"^<!-- (\S+) (\w{8})( untranslated)? -->\n", re.MULTILINE)


def page_of(notebook: Path) -> Path:
    """The file of a notebook's page in Chinese."""
    return ROOT / "docs" / "zh" / f"{notebook.stem}.md"


def page(notebook: Path, stored: str) -> str:
    """A notebook's page, with its code of today and the translations of a `stored` page."""
    _, *parts = MARK.split(stored)
    known = {cell: (digest, mark or "", text) for cell, digest, mark, text in zip(*[iter(parts)] * 4)}
    blocks = [HEAD.format(name=notebook.name)]
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            blocks.append(f"```python\n{source}\n```")
            continue
        digest = sha256(source.encode()).hexdigest()[:8]
        before, mark, text = known.get(cell["id"], ("", "", ""))
        text = text.partition("```python\n")[0].strip()
        if digest != before:
            mark, text = " untranslated", f"{source}\n\n{text}".strip()
        blocks.append(f"<!-- {cell['id']} {digest}{mark} -->\n{text}")
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    for notebook in NOTEBOOKS:
        file = page_of(notebook)
        text = page(notebook, file.read_text(encoding="utf-8") if file.exists() else "")
        file.write_text(text, encoding="utf-8")
        for cell in (cell for cell, _, mark in MARK.findall(text) if mark):
            print(f"{file}: {cell} is to be translated")


if __name__ == "__main__":
    main()
