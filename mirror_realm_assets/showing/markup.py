"""Text on a page: the one place where it is escaped.

What belongs here: making names, queries and reasons harmless in HTML. What does not: any page.
"""

from __future__ import annotations

import base64
import html


def text(value: str) -> str:
    """`value` as text of a page or as an attribute in double quotes; nothing in it can be markup."""
    return html.escape(visible(value), quote=True)


def visible(value: str) -> str:
    r"""`value` with all of it to be seen.

    Control characters, marks that change the direction of writing and halves of surrogate pairs become escapes
    (`\x1b`, `\u202e`, `\udcff`): a name must not look like another one.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value)


def data_uri(data: bytes, mime: str) -> str:
    """A file within a page; `mime` is ours, never a file's own word."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
