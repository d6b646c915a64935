"""What figures of reports share: colors, and how they get into a page or a file."""

from __future__ import annotations

import io

import matplotlib
from markupsafe import Markup
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

matplotlib.use("Agg")

# Colors that color-blind readers tell apart (Okabe and Ito), one for each model.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def svg(figure: Figure) -> Markup:
    """Returns a figure as HTML, and closes it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def png(figure: Figure) -> bytes:
    """Returns a figure as the bytes of a PNG file; it stays open."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
