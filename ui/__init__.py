"""The web page of the platform: the Chat and Library tabs, one Gradio application.

`build_app(graft, authorise)` builds it, `mount(app, blocks, ...)` puts it into a FastAPI application.
Importing this package loads no Gradio; the first use of either name does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ui.app import build_app, mount

__all__ = ["build_app", "mount"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ui import app

        return getattr(app, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
