"""One HTML page of figures and tables that needs no network, and is light or dark as its reader is."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_STYLE = """
:root { color-scheme: light dark; --fg: #1b1b1b; --bg: #ffffff; --soft: #5a5a5a; --line: #d5d5d5; --head: #f2f2f2; }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e8e8e8; --bg: #16181c; --soft: #a8a8a8; --line: #3a3d44; --head: #22252b; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); margin: 2rem auto;
  max-width: 1160px; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p.note { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--head); position: sticky; top: 0; }
td.number { text-align: right; }
td.long { white-space: normal; min-width: 24rem; }
"""

_SCRIPT = """
function dress() {
  const style = getComputedStyle(document.documentElement);
  const colour = style.getPropertyValue('--fg').trim();
  for (const figure of document.querySelectorAll('.plotly-graph-div')) {
    Plotly.relayout(figure, {'font.color': colour, 'xaxis.color': colour, 'yaxis.color': colour,
      'legend.font.color': colour, 'title.font.color': colour});
  }
  document.documentElement.dataset.dressed = colour;
}
window.addEventListener('load', dress);
window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', dress);
"""


@dataclass(frozen=True)
class Section:
    """Hold a heading and what is below it: a note, a figure, a table; what is None or empty is left out."""

    title: str
    note: str = ""
    figure: "Figure | None" = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def build_page(title: str, note: str, sections: Sequence[Section]) -> str:
    """Return the page; plotly's script is in it (4.8 MB), so that it works from a disk and years later."""
    from plotly.offline import get_plotlyjs

    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script><script>{_SCRIPT}</script></head><body>",
        f"<h1>{html.escape(title)}</h1><p class='note'>{html.escape(note)}</p>",
    ]
    for section in sections:
        parts.append(f"<section><h2>{html.escape(section.title)}</h2>")
        if section.note:
            parts.append(f"<p class='note'>{html.escape(section.note)}</p>")
        if section.figure is not None:
            config = {"displaylogo": False, "responsive": True}
            parts.append(section.figure.to_html(full_html=False, include_plotlyjs=False, config=config))
        if section.rows:
            parts.append(_table(section.columns, section.rows))
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>"])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(_cell(text) for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    kind = "number" if text[:1] in "+-0123456789" and text[:1] else "long" if len(text) > 60 else ""
    return f'<td class="{kind}">{html.escape(text)}</td>' if kind else f"<td>{html.escape(text)}</td>"
