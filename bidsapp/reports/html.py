"""Markup that is safe by construction: whatever is not ``Html`` is escaped when it is used."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from bidsapp import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Elements without content or end tag.
VOID = ('img', 'meta')
#: Longer lists of numbers are told by their count and range.
LONG_LIST = 12

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem 1.5rem 4rem; color: #1c1f23;
  background: #fff; font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', sans-serif; }
header { border-bottom: 1px solid #d5d9de; margin-bottom: 1.5rem; }
h1 { font-size: 1.7rem; margin: .5rem 0 0; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid #d5d9de;
  overflow-wrap: anywhere; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
.note { color: #5a636e; margin: .25rem 0 1rem; }
.problem, .warning { border-left: .35rem solid; padding: .6rem 1rem; margin: 1rem 0; }
.problem { border-color: #b42318; background: #fdecea; }
.warning { border-color: #b7791f; background: #fdf6e3; }
.problem ul, .warning ul { margin: .25rem 0; padding-left: 1.2rem; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0 1rem; }
th, td { border-bottom: 1px solid #e4e7eb; padding: .3rem .9rem .3rem 0; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
td { min-width: 4.5rem; }
td > div > div { padding-left: 1rem; }
td ul { margin: 0; padding-left: 1.2rem; }
th { overflow-wrap: normal; font-weight: 600; color: #3b444f; }
.wide { overflow-x: auto; }
figure { margin: .5rem 0 1.5rem; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: #3b444f; font-size: .9rem; margin-top: .4rem; max-width: 60rem; }
@media print { body { max-width: none; } h2, figure { break-inside: avoid; } }
"""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def element(tag: str, *content: Any, **attributes: str) -> Html:
    """``<tag attributes>content</tag>``; content that is not Html is escaped, as attributes are.

    A trailing underscore of an attribute's name is dropped (``class_``).
    """
    named = ''.join(f' {k.rstrip("_")}="{escape(v)}"' for k, v in attributes.items())
    if tag in VOID:
        return Html(f'<{tag}{named}>')
    return Html(f'<{tag}{named}>{joined(*content)}</{tag}>')


def joined(*content: Any) -> Html:
    """Pieces one after the other, escaped where they are not Html."""
    return Html(''.join(x if isinstance(x, Html) else escape(str(x)) for x in content))


def readable(value: Any) -> Html:
    """A JSON value as a person would write it."""
    if isinstance(value, Html):
        return value
    if value is None or value in ('', [], {}):
        return Html('–')
    match value:
        case bool():
            return Html('yes' if value else 'no')
        case float():
            return joined(f'{value:.6g}')
        case dict():
            lines = (element('div', k, ': ', readable(v)) for k, v in value.items())
            return joined(*lines)
        case list() | tuple() if len(value) > LONG_LIST and all(_is_number(x) for x in value):
            return joined(f'{len(value)} values, {min(value):.4g} to {max(value):.4g}')
        case list() | tuple():
            if len(value) == 1 or all(_is_number(x) for x in value):
                return Html(', '.join(readable(x) for x in value))
            return element('ul', *(element('li', readable(x)) for x in value))
    return joined(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def facts(content: Mapping[str, Any]) -> Html:
    """A table of two columns; nothing if there is nothing to say."""
    rows = [element('tr', element('th', k, scope='row'), element('td', readable(v)))
            for k, v in content.items()]  # fmt: skip
    return element('table', *rows) if rows else Html()


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Html:
    """A table with a header row; nothing if there are no rows."""
    body = [element('tr', *(element('td', readable(x)) for x in row)) for row in rows]
    head = element('tr', *(element('th', name, scope='col') for name in header))
    content = element('table', element('thead', head), element('tbody', *body))
    return element('div', content, class_='wide') if body else Html()


def box(kind: str, title: str, messages: Sequence[str]) -> Html:
    """A coloured box of ``kind`` 'problem' or 'warning'; nothing if there is no message."""
    if not messages:
        return Html()
    items = [element('li', message) for message in messages]
    return element('div', element('strong', title), element('ul', *items), class_=kind)


def figure(source: str, caption: str, alt: str = '') -> Html:
    """A picture that links to itself in full size; ``alt`` names it, else the caption does."""
    image = element('img', src=source, alt=alt or caption)
    return element('figure', element('a', image, href=source), element('figcaption', caption))


def page(title: str, *content: Any) -> str:
    """A whole document."""
    head = [
        element('meta', charset='utf-8'),
        element('meta', name='viewport', content='width=device-width, initial-scale=1'),
        element('title', f'{title} · TransferMRI'),
        Html(f'<style>{STYLE}</style>'),
    ]
    note = element(
        'p', f'TransferMRI {__version__} · ', element('strong', 'Not for clinical use'),
        class_='note',
    )  # fmt: skip
    body = element('body', element('header', element('h1', title), note), *content)
    return f'<!DOCTYPE html>\n{element("html", element("head", *head), body, lang="en")}\n'
