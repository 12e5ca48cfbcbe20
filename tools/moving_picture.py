"""Draw the moving picture of the book's first page, and its still, from the record of the experiment `collapse`.

    python tools/moving_picture.py

Both are vector graphics in `_static`, of colours that a light and a dark page bear. The moving one plays twice.
"""

from pathlib import Path

import numpy as np

from migelib.experiments import collapse, records

STATIC = Path(__file__).parents[1] / "_static"
SIDE, REACH = 300, 3.4  # pixels of a panel, and the part of the plane that it shows
SAMPLES = 120
SECONDS, RESTS = 7, 10  # length of one play, and moments at its end at which nothing moves
PANELS = (
    ("0", "without the entropy term", "#949494"),
    ("1", "with it", "#0173b2"),
)


def pixels(points: np.ndarray) -> np.ndarray:
    """Points of the plane [..., 2] as pixels of a panel."""
    return SIDE / 2 * (1 + points * np.array([1, -1]) / REACH)


def paths(record: records.Record, beta: str) -> np.ndarray:
    """The first samples of the first seed at all moments of the training [moments, samples, 2], in pixels."""
    return pixels(record.curves[f"tikhonov/beta-{beta}/snapshots"][0, :, :SAMPLES].astype(float))


def dot(path: np.ndarray, moves: bool) -> str:
    """One sample: where it ends, and how it came there."""
    x, y = path[-1]
    if not moves:
        return f'<circle cx="{x:.0f}" cy="{y:.0f}" r="2.6"/>'
    rested = np.concatenate([path, path[-1:].repeat(RESTS, axis=0)])
    animations = "".join(
        f'<animate attributeName="c{axis}" dur="{SECONDS}s" repeatCount="2" values="{values}"/>'
        for axis, values in zip("xy", (";".join(f"{v:.0f}" for v in way) for way in rested.T), strict=True)
    )
    return f'<circle cx="{x:.0f}" cy="{y:.0f}" r="2.6">{animations}</circle>'


def picture(record: records.Record, moves: bool) -> str:
    """The panels side by side, each with its wells and a line below."""
    radius = collapse.SPREAD * SIDE / 2 / REACH
    wells = "".join(
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{radius:.0f}"/>' for x, y in pixels(collapse.centres().numpy())
    )
    panels = []
    for column, (beta, title, color) in enumerate(PANELS):
        path = paths(record, beta)
        dots = "".join(dot(path[:, sample], moves) for sample in range(SAMPLES))
        panels.append(
            f'<g transform="translate({column * SIDE})"><g fill="none" stroke="#8a8a8a">{wells}</g>'
            f'<g fill="{color}" fill-opacity="0.85">{dots}</g>'
            f'<text x="{SIDE / 2:.0f}" y="{SIDE + 14}" text-anchor="middle">{title}</text></g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE * len(PANELS)} {SIDE + 24}" '
        f'font-family="sans-serif" font-size="15" fill="#767676">{"".join(panels)}</svg>\n'
    )


if __name__ == "__main__":
    recorded = records.load("collapse", "full", records.published())
    for name, moves in (("moving", True), ("still", False)):
        path = STATIC / f"collapse-{name}.svg"
        path.write_text(picture(recorded, moves))
        print(path.name, path.stat().st_size, "bytes")
