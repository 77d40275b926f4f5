"""What the site does beyond MkDocs.

README is the home page. A page may link to any file of the repository, which the site takes along: Markdown and
notebooks as pages. The dotted name of something of LensJAX becomes a link to its docstring, where an API page has it.
Formulas become MathML, which browsers draw without a script.
"""

import html
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOME = ROOT / "README.md"
# Code is left alone: only a link outside `…` and ``` fences is one.
LINK = re.compile(r"(`+[^`]*`+)|(\]\()([^()\s#:]+)((?:#[^()\s]*)?\))")
NAME = re.compile(r"(?<![`\[])`(lensjax(?:\.\w+)+)`(?!`)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([\[(])(.*?)\\[\])]</\1>', re.DOTALL)


def place(path: Path) -> str:
    """Where a file of the repository lies in the site's sources."""
    if path == HOME:
        return "index.md"
    inside = path.relative_to(DOCS) if path.is_relative_to(DOCS) else path.relative_to(ROOT)
    return str(inside.with_suffix(".md") if path.suffix == ".ipynb" else inside)


def linked(path: Path) -> Iterator[Path]:
    """Files of the repository that a page links to."""
    for match in LINK.finditer(text_of(path)):
        if match[3]:
            target = (path.parent / match[3]).resolve()
            if target.is_file() and target.is_relative_to(ROOT):
                yield target


def text_of(path: Path) -> str:
    """Markdown of a page, or of a notebook: its cells without their output."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells)


def on_files(files: Files, config: Any) -> Files:
    known: dict[str, Path] = {file.src_uri: Path(str(file.abs_src_path)) for file in files if file.abs_src_path}
    waiting = [HOME, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    waiting += [path for path in known.values() if path.suffix == ".md"]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop().resolve()
        if path in seen:
            continue
        seen.add(path)
        uri = place(path)
        if uri not in known:
            added = {"content": text_of(path)} if path.suffix == ".ipynb" else {"abs_src_path": str(path)}
            files.append(File.generated(config, uri, **added))
            known[uri] = path
        if path.suffix in (".md", ".ipynb"):
            waiting += linked(path)
    config["sources"] = known
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    path = config["sources"][page.file.src_uri]
    folder = os.path.dirname(page.file.src_uri)

    def relative(match: re.Match[str]) -> str:
        if match[1]:
            return match[0]
        target = (path.parent / match[3]).resolve()
        if not (target.is_file() and target.is_relative_to(ROOT)):
            return match[0]
        return f"{match[2]}{os.path.relpath(place(target), folder or '.')}{match[4]}"

    pieces = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    for i in range(0, len(pieces), 2):
        text = LINK.sub(relative, pieces[i])
        pieces[i] = NAME.sub(r'<autoref identifier="\1" optional><code>\1</code></autoref>', text)
    return "".join(pieces)


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    def mathml(match: re.Match[str]) -> str:
        return convert(html.unescape(match[3]), display="block" if match[2] == "[" else "inline")

    return FORMULA.sub(mathml, content)
