"""The report as one HTML file."""

import base64
import html
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from benchmarks.report.document import slugs_of

_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def page(text: str, folder: Path) -> str:
    """Markdown as an HTML page that needs no other file; its pictures are those of the folder."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", lambda *_: '<div class="table" tabindex="0"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(text)
    headings = [index for index, token in enumerate(tokens) if token.type == "heading_open"]
    titles = [_text(tokens[index + 1]) for index in headings]
    for index, slug in zip(headings, slugs_of(titles), strict=True):
        tokens[index].attrSet("id", slug)
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                picture = base64.b64encode((folder / str(child.attrs["src"])).read_bytes()).decode()
                child.attrSet("src", f"data:image/png;base64,{picture}")
    body = parser.renderer.render(tokens, parser.options, {})
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(titles[0])}</title>
<style>
{_STYLE}</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""


def _text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or ())
