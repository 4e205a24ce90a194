"""How the page looks: a calm botanical green on warm paper, system fonts only, light and dark."""

from __future__ import annotations

from pathlib import Path

from gradio.themes import Base
from gradio.themes.utils import sizes
from gradio.themes.utils.colors import Color

FOLDER = Path(__file__).resolve().parent

LEAF = Color(
    "#f1f7f2",
    "#e1efe4",
    "#c4dfcb",
    "#9cc7a9",
    "#6fab82",
    "#4c8f64",
    "#38744e",
    "#2d5d40",
    "#264b35",
    "#1f3d2c",
    "#11241a",
    name="leaf",
)
STONE = Color(
    "#fafaf6",
    "#f2f3ec",
    "#e4e6dc",
    "#cdd1c4",
    "#9ba396",
    "#727b70",
    "#566056",
    "#434c44",
    "#2a322c",
    "#1a211c",
    "#111713",
    name="stone",
)

# Plain strings name fonts of the reader's system; a Font object would be fetched.
_TEXT = (
    "ui-sans-serif",
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Helvetica Neue",
    "Arial",
    "sans-serif",
)
_CODE = ("ui-monospace", "SF Mono", "Cascadia Mono", "Menlo", "Consolas", "monospace")


def theme() -> Base:
    """Return the page's theme."""
    return Base(
        primary_hue=LEAF,
        secondary_hue=LEAF,
        neutral_hue=STONE,
        radius_size=sizes.radius_lg,
        text_size=sizes.text_md,
        font=_TEXT,
        font_mono=_CODE,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_900",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_800",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        input_shadow_focus="0 0 0 3px color-mix(in srgb, *primary_400 25%, transparent)",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_400",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )
