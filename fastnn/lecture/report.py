"""The report: one HTML file without any external request, and the figures beside it as PNG files."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fastnn.lecture.errors import LectureError
from fastnn.lecture.experiment import Figure, Result, Table

REPORT = "report.html"
SUMMARY_IMAGE = "lecture.png"
# experiment and figure of the panels of the summary image, row by row
SUMMARY = (
    ("zigzag", "steps"),
    ("initialization", "forward"),
    ("batch-norm", "without"),
    ("batch-norm", "with"),
)

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f5f7fa; --ink: #1f2933; --muted: #5b6673;
  --line: #dde2e8; --good: #1e7d43; --bad: #b42a2a; --link: #2f6fb2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --card: #1d232a; --ink: #e6e9ed; --muted: #a3adb8;
  --line: #343c46; --good: #5cc485; --bad: #f08080; --link: #7fb4ea; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 70rem; padding: 1.2rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .4rem 0; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
a { color: var(--link); }
p { margin: .6rem 0; max-width: 46rem; }
.muted, .note, figcaption, footer { color: var(--muted); font-size: .9rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
section { border-top: 1px solid var(--line); margin-top: 2.6rem; padding-top: 1.6rem; }
.claim { border-left: 4px solid var(--line); padding-left: .9rem; font-style: italic; }
.verdict { font-weight: 600; }
ul.verdicts { list-style: none; padding: 0; margin: 1.2rem 0; display: grid; gap: .5rem;
  grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
ul.verdicts a { display: block; height: 100%; background: var(--card); border-radius: .5rem; padding: .7rem .9rem;
  color: inherit; text-decoration: none; }
ul.verdicts b { display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 20rem; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--muted); }
td.number { white-space: nowrap; }
.figures { display: grid; gap: 1rem; margin: 1.2rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.figures.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
figure { margin: 0; } figure.wide { grid-column: 1 / -1; }
figure div { background: #ffffff; border: 1px solid var(--line); border-radius: .5rem; padding: .4rem;
  overflow-x: auto; }
figure img { display: block; width: 100%; max-width: 34rem; height: auto; margin: 0 auto; }
figure.wide img { min-width: 46rem; max-width: none; }
figcaption { margin: .3rem .2rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Facts:
    """What the head of the report says of a run."""

    command: str
    data: str
    total: int  # experiments asked for
    machine: dict[str, str]
    interrupted: bool = False


def write(folder: Path, groups: Sequence[Sequence[Result]], facts: Facts) -> Path:
    """Write the report and the figures; a group is one experiment's results, one for each backend."""
    try:
        for group in groups:
            for figure in group[0].figures:
                (folder / f"{group[0].name}-{figure.name}.png").write_bytes(figure.png)
        summary = _summary_image([group[0] for group in groups])
        if summary is not None:
            (folder / SUMMARY_IMAGE).write_bytes(summary)
        # In one step, so that a reader never sees half a report.
        unfinished = folder / (REPORT + ".part")
        unfinished.write_text(page(groups, facts), encoding="utf-8")
        os.replace(unfinished, folder / REPORT)
    except OSError as error:
        raise LectureError(f"cannot write the report to {folder}: {error.strerror}; choose another --out") from error
    return folder / REPORT


def page(groups: Sequence[Sequence[Result]], facts: Facts) -> str:
    """The whole report as HTML."""
    held = sum(all(result.held for result in group) for group in groups)
    state = f"{held} of {len(groups)} claims held"
    if facts.interrupted:
        state += f"; interrupted after {len(groups)} of {facts.total} experiments"
    elif len(groups) < facts.total:
        state += f"; {len(groups)} of {facts.total} experiments finished so far"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>Training neural networks: the lecture's experiments</title>",
            f"<style>{STYLE}</style></head><body>",
            "<h1>Training neural networks: the lecture's experiments</h1>",
            f'<p class="verdict {"good" if held == len(groups) else "bad"}">{escape(state)}</p>',
            f'<p class="muted">Data: {escape(facts.data)}. Every verdict follows from the numbers of this run.</p>',
            '<ul class="verdicts">',
            *(_summary_item(group) for group in groups),
            "</ul>",
            *(_section(group) for group in groups),
            "<section><h2>This run</h2>",
            _facts(facts),
            "</section>",
            "<footer><p>The claims are those of the lecture Training Neural Networks I of CS231n.</p></footer>",
            "</body></html>",
        ]
    )


def _summary_item(group: Sequence[Result]) -> str:
    first = group[0]
    held = all(result.held for result in group)
    return (
        f'<li><a href="#{first.name}"><b>{escape(first.title)}</b>'
        f'<span class="{"good" if held else "bad"}">{"✓ held" if held else "✗ did not hold"}</span> '
        f'<span class="muted">{sum(r.held_checks for r in group)} of {sum(len(r.checks) for r in group)} checks, '
        f"{sum(r.seconds for r in group):.1f} s</span></a></li>"
    )


def _section(group: Sequence[Result]) -> str:
    first = group[0]
    parts = [
        f'<section id="{first.name}"><h2>{escape(first.title)}</h2>',
        f'<p class="claim">{escape(first.claim)}</p>',
    ]
    for result in group:
        on = f" on {result.backend}" if len(group) > 1 else ""
        css = "good" if result.held else "bad"
        parts.append(f'<p class="verdict {css}">{escape(result.verdict + on)}.</p>')
    parts.append(_checks(group))
    parts.append(_figures(first.figures))
    parts += [_table(table) for table in first.tables]
    parts += [f'<p class="note">{escape(note)}</p>' for note in first.notes]
    parts.append(f'<p class="note">Ran on {escape(first.backend)} in {first.seconds:.1f} s.</p></section>')
    return "\n".join(parts)


def _checks(group: Sequence[Result]) -> str:
    """The checks of an experiment side by side for every backend it ran on."""
    several = len(group) > 1
    head = ["", "expected", *(f"measured on {r.backend}" if several else "measured" for r in group)]
    rows = []
    for checks in zip(*(result.checks for result in group), strict=True):
        held = all(check.held for check in checks)
        mark = f'<span class="{"good" if held else "bad"}">{"✓" if held else "✗"}</span>'
        cells = "".join(f"<td>{escape(check.measured)}</td>" for check in checks)
        rows.append(f"<tr><td>{mark}</td><td>{escape(checks[0].expected)}</td>{cells}</tr>")
    return _html_table(head, rows)


def _table(table: Table) -> str:
    rows = []
    for row in table.rows:
        cells = "".join(f'<td class="number">{escape(cell)}</td>' for cell in row)
        rows.append(f"<tr>{cells}</tr>")
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h3>{escape(table.title)}</h3>{_html_table(table.columns, rows)}{note}"


def _html_table(head: Iterable[str], rows: Iterable[str]) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _figures(figures: Sequence[Figure]) -> str:
    narrow = sum(not figure.wide for figure in figures)
    parts = [f'<div class="figures{" three" if narrow == 3 else ""}">']
    for figure in figures:
        source = "data:image/png;base64," + base64.b64encode(figure.png).decode()
        kind = ' class="wide"' if figure.wide else ""
        caption = escape(figure.caption)
        parts.append(
            f'<figure{kind}><div><img src="{source}" alt="{caption}"></div><figcaption>{caption}</figcaption></figure>'
        )
    return "\n".join([*parts, "</div>"])


def _facts(facts: Facts) -> str:
    items = {"command": facts.command, **facts.machine}
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items()) + "</dl>"


def _summary_image(results: Sequence[Result]) -> bytes | None:
    """Four of the figures in one image, for those who want to show the run; None where one of them is missing."""
    from PIL import Image  # comes with matplotlib

    known = {(result.name, figure.name): figure.png for result in results for figure in result.figures}
    if any(key not in known for key in SUMMARY):
        return None
    panels = [Image.open(io.BytesIO(known[key])).convert("RGB") for key in SUMMARY]
    width = 560
    panels = [
        panel.resize((width, round(panel.height * width / panel.width)), Image.Resampling.LANCZOS) for panel in panels
    ]
    rows = [panels[:2], panels[2:]]
    heights = [max(panel.height for panel in row) for row in rows]
    sheet = Image.new("RGB", (2 * width + 30, sum(heights) + 30), "white")
    top = 10
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            sheet.paste(panel, (10 + column * (width + 10), top))
        top += height + 10
    buffer = io.BytesIO()
    sheet.quantize(128).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
