"""Draws architecture.svg: tokens, patch encoder, global transformer, patch decoder.

python docs/images/architecture.py > docs/images/architecture.svg
"""

# Tokens of a document, and the tokens of each patch: only speech is grouped.
TOKENS = ["bos", "‹t›", "the", "dog", "‹s›", *["unit"] * 10, "‹t›", "ran", "eos"]
PATCHES = [1, 1, 1, 1, 1, 4, 4, 2, 1, 1, 1]

WIDTH, LEFT, PITCH, BOX = 960, 30, 50, 42
TEXT, SPEECH, INK, PALE = "#0072B2", "#D55E00", "#24292f", "#f3f6f9"
ROWS = {"next": 14, "decoder": 66, "global": 150, "patches": 250, "encoder": 316, "tokens": 388}


def center(token: int) -> float:
    """Returns the middle of a token's column."""
    return LEFT + PITCH * token + PITCH / 2


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str, label: str) -> str:
    """Returns a rounded box around (x, y) with a label."""
    color = "#ffffff" if fill in (TEXT, SPEECH) else INK
    return (
        f'<rect x="{x - width / 2:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
        f'fill="{fill}" stroke="{stroke}"/>'
        f'<text x="{x:g}" y="{y + height / 2 + 4.5:g}" fill="{color}">{label}</text>'
    )


def band(y: float, height: float, title: str, note: str) -> str:
    """Returns a module: a bar over all columns, with its name and what it does."""
    width = PITCH * len(TOKENS)
    middle = LEFT + width / 2
    return (
        f'<rect x="{LEFT}" y="{y}" width="{width}" height="{height}" rx="10" fill="{PALE}" '
        f'stroke="{INK}"/>'
        f'<text x="{middle:g}" y="{y + height / 2 - 3:g}" fill="{INK}" font-weight="700" '
        f'font-size="17">{title}</text>'
        f'<text x="{middle:g}" y="{y + height / 2 + 17:g}" fill="{INK}">{note}</text>'
    )


def arrow(x: float, top: float, bottom: float) -> str:
    """Returns an arrow upwards."""
    return f'<path d="M{x:g} {bottom:g}V{top + 5:g}" stroke="#8c959f" marker-end="url(#head)"/>'


def main() -> None:
    """Prints the picture."""
    parts = []
    kinds = [SPEECH if token == "unit" else TEXT for token in TOKENS]
    for i, (token, kind) in enumerate(zip(TOKENS, kinds, strict=True)):
        x = center(i)
        parts.append(box(x, ROWS["tokens"], BOX, 28, kind, kind, token))
        parts.append(arrow(x, ROWS["encoder"] + 50, ROWS["tokens"]))
        if i:  # what is predicted at the token before
            before = center(i - 1)
            parts.append(box(before, ROWS["next"], BOX, 28, "#ffffff", kind, token))
            parts.append(arrow(before, ROWS["next"] + 28, ROWS["decoder"]))
    first = 0
    for length in PATCHES:
        x = (center(first) + center(first + length - 1)) / 2
        kind, width = kinds[first], PITCH * length - 8
        label = "patch" if kind == SPEECH else ""
        parts.append(box(x, ROWS["patches"], width, 28, "#ffffff", kind, label))
        parts.append(arrow(x, ROWS["patches"] + 28, ROWS["encoder"]))
        parts.append(arrow(x, ROWS["global"] + 66, ROWS["patches"]))
        parts.append(arrow(x, ROWS["decoder"] + 50, ROWS["global"]))
        first += length
    parts.append(band(ROWS["encoder"], 50, "patch encoder", "a light transformer over tokens"))
    parts.append(
        band(ROWS["global"], 66, "global transformer", "most parameters; one position a patch")
    )
    parts.append(
        band(ROWS["decoder"], 50, "patch decoder", "a light transformer over tokens, reads patches")
    )
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 432" '
        f'font-family="system-ui, sans-serif" font-size="13" text-anchor="middle" role="img" '
        f'aria-label="Tokens pass through patch encoder, global transformer, patch decoder">'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 1 7 4 0 7z" fill="#8c959f"/></marker></defs>'
        f'<rect width="{WIDTH}" height="432" fill="#ffffff"/>' + "".join(parts) + "</svg>"
    )


if __name__ == "__main__":
    main()
