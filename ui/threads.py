"""How the list of earlier conversations is shown."""

from __future__ import annotations

from collections.abc import Sequence

from agents.state import ThreadInfo
from ui.markup import escape

MAX_THREADS = 50
"""Conversations listed, latest first."""

_NAV = '<nav class="threads" aria-label="Earlier chats">'

_STEPS = ((60, "just now"), (3600, "{} min"), (86_400, "{} h"), (7 * 86_400, "{} d"))


def thread_list(threads: Sequence[ThreadInfo], current_id: str, now_s: float) -> str:
    """Return the list of conversations, the open one marked."""
    if not threads:
        return f'{_NAV}<p class="none">Your chats are kept here.</p></nav>'
    rows = "".join(_row(thread, current_id, now_s) for thread in threads[:MAX_THREADS])
    more = len(threads) - MAX_THREADS
    rest = f'<p class="none">and {more} earlier</p>' if more > 0 else ""
    return f"{_NAV}<ul>{rows}</ul>{rest}</nav>"


def _row(thread: ThreadInfo, current_id: str, now_s: float) -> str:
    thread_id, title = escape(thread.thread_id), escape(thread.title or "Untitled")
    current = ' aria-current="true"' if thread.thread_id == current_id else ""
    return (
        f"<li data-row{current}>"
        f'<button type="button" class="name" data-act="open_thread" data-id="{thread_id}" title="{title}">'
        f"<span>{title}</span><small>{age(now_s - thread.updated_s)}</small></button>"
        '<button type="button" class="remove" data-act="confirm" '
        f'aria-label="Delete chat {title}">&times;</button><span class="sure">'
        f'<button type="button" data-act="delete_thread" data-id="{thread_id}">Delete</button>'
        '<button type="button" data-act="keep">Keep</button></span></li>'
    )


def age(seconds: float) -> str:
    """Return how long ago something was, in one short unit."""
    unit = 1
    for limit, words in _STEPS:
        if seconds < limit:
            return words.format(int(max(0, seconds) // unit))
        unit = limit
    return f"{int(seconds // (7 * 86_400))} wk"
