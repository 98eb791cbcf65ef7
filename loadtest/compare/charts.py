"""Bar charts as SVG, written by hand: legible on a light and on a dark page, and as text in a diff."""

from __future__ import annotations

from html import escape

WIDTH = 760
LABEL = 210
VALUE = 90
BAR = 20
GAP = 8
TOP = 58
FOOT = 30

# The viewer's colour scheme decides. Both pairs of bar colours have a contrast of 3 to 1 against their page or more.
STYLE = """
  text { font: 13px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328; }
  .title { font-size: 15px; font-weight: 600; }
  .note { font-size: 12px; fill: #59636e; }
  .value { font-variant-numeric: tabular-nums; }
  .page { fill: #ffffff; }
  .bar { fill: #8c96a1; }
  .ours { fill: #1a7f64; }
  .axis { stroke: #d1d9e0; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .note { fill: #9198a1; }
    .page { fill: #0d1117; }
    .bar { fill: #6e7781; }
    .ours { fill: #3fb98f; }
    .axis { stroke: #3d444d; }
  }
"""


def bars(title: str, note: str, rows: list[tuple[str, float, str, bool]]) -> str:
    """A chart of horizontal bars from nought.

    Rows are label, value, the value as text, and whether it is ours. A bar that would leave the others no room is cut
    off, with a break in it that says so.
    """
    room = WIDTH - LABEL - VALUE - 20
    values = sorted(value for _, value, _, _ in rows)
    # Up to four times the median: gunicorn's bar must not make the others one pixel high.
    most = max(value for value in values if value <= 4 * values[len(values) // 2])
    height = TOP + len(rows) * (BAR + GAP) + FOOT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
        f'<text class="note" x="16" y="44">{escape(note)}</text>',
    ]
    for index, (label, value, text, ours) in enumerate(rows):
        y = TOP + index * (BAR + GAP)
        middle = y + BAR / 2 + 4.5
        cut = value > most
        length = room if cut else max(1.0, room * value / most)
        kind = "ours" if ours else "bar"
        out.append(f'<text x="{LABEL - 8}" y="{middle}" text-anchor="end">{escape(label)}</text>')
        out.append(f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>')
        if cut:
            at = LABEL + room * 0.9
            out.append(f'<path class="page" d="M{at} {y - 2}l8 0l-6 {BAR + 4}l-8 0z"/>')
        out.append(f'<text class="value" x="{LABEL + length + 6:.1f}" y="{middle}">{escape(text)}</text>')
    bottom = height - FOOT + 2
    out.append(f'<line class="axis" x1="{LABEL}" y1="{TOP - 4}" x2="{LABEL}" y2="{bottom}"/>')
    foot = "A broken bar is longer than there is room for." if values[-1] > most else ""
    out.append(f'<text class="note" x="{LABEL}" y="{height - 10}">{foot}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
