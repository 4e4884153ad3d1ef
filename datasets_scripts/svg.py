"""SVG drawings that nobody vouches for, as pixels: only shapes, gradients and filters, within limits, nothing loaded."""

import re
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple
from xml.etree.ElementTree import ParseError, XMLParser

from PIL import Image

from .schema import RowError

RESVG_INSTALL = "install it with `pip install resvg-py==0.5.0`"
MAX_CHARS = 2**20  # the longest icon that we know of has 898,083
MAX_DEPTH = 64
MAX_SIDE = 4096
MAX_DRAWN = 20_000  # elements, those that are referred to counted each time
SHAPES = {"path", "rect", "circle", "ellipse", "line", "polyline", "polygon"}
GROUPS = {"g", "defs", "use", "symbol", "title", "desc"}
PAINTS = {"clipPath", "mask", "linearGradient", "radialGradient", "stop"}
FILTERS = {"filter", "feBlend", "feColorMatrix", "feComposite", "feFlood", "feGaussianBlur", "feOffset"}
TAGS = SHAPES | GROUPS | PAINTS | FILTERS
HEADER = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '


class Drawing(NamedTuple):
    """An SVG drawing without its outer element, and the part of the plane that it shows."""

    name: str  # for messages
    body: str
    left: float
    top: float
    width: float
    height: float

    def svg(self, size: int) -> str:
        """The whole SVG file, as a square that the drawing stands in the middle of."""
        frame = f"{self.left} {self.top} {self.width} {self.height}"
        return f'{HEADER}width="{size}" height="{size}" viewBox="{frame}">{self.body}</svg>'


def render_svg(drawing: Drawing, size: int) -> Image.Image:
    """The drawing on white, RGB, `size` pixels square.

    Raises:
        RowError: If it is no SVG, uses more than shapes, gradients and filters, or breaks a limit.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError(f"Drawing SVG needs `resvg-py`; {RESVG_INSTALL}.") from error
    check_drawing(drawing)
    try:
        png = svg_to_bytes(svg_string=drawing.svg(size), background="#ffffff", skip_system_fonts=True)
    except BaseException as error:  # a panic of the renderer is no `Exception`
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise RowError(f"{drawing.name}: the SVG can't be drawn ({error}); repair it or leave it out.") from error
    with Image.open(BytesIO(bytes(png))) as image:
        return image.convert("RGB")


def check_drawing(drawing: Drawing) -> None:
    """Check that a drawing can be rendered in little time and memory, and loads nothing.

    Raises:
        RowError: If not.
    """
    if len(drawing.body) > MAX_CHARS:
        raise refusal(drawing, f"may have {MAX_CHARS} characters, got {len(drawing.body)}")
    if "<!" in drawing.body or "<?" in drawing.body:
        raise refusal(drawing, "must be plain elements, got a declaration or an instruction")
    sides = drawing.width, drawing.height, abs(drawing.left), abs(drawing.top)
    if not all(0 <= side <= MAX_SIDE for side in sides) or not drawing.width or not drawing.height:
        raise refusal(drawing, f"must show a part of the plane of at most {MAX_SIDE} units, got {drawing[2:]}")
    checker = ElementChecker(drawing)
    parser = XMLParser(target=checker)
    try:
        parser.feed(drawing.svg(1))
        parser.close()
    except (ParseError, UnicodeError) as error:
        raise refusal(drawing, f"must be XML, got {error}") from error


class ElementChecker:
    """What an XML parser calls for every element; it keeps no tree, so that depth costs nothing."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.open_ids: list[str] = []  # of the elements around, "" for one without
        self.sizes: Counter[str] = Counter()  # elements within each id
        self.references: dict[str, list[str]] = {}  # from within each id

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        name = tag.rpartition("}")[2]
        if self.open_ids and name not in TAGS:
            raise refusal(self.drawing, f"may hold the elements {sorted(TAGS)} only, got `{name}`")
        if len(self.open_ids) == MAX_DEPTH:
            raise refusal(self.drawing, f"may be {MAX_DEPTH} elements deep, got more")
        self.open_ids.append(attributes.get("id", ""))
        targets = [target for key, value in attributes.items() for target in self.targets(key, value)]
        for around in {"", *self.open_ids}:
            self.sizes[around] += 1
            self.references.setdefault(around, []).extend(targets)

    def end(self, tag: str) -> None:
        """An element ends."""
        self.open_ids.pop()

    def close(self) -> None:
        """The document ends. References to what refers on can multiply at every step."""
        drawn = self.drawn("", {}, MAX_DEPTH)
        if drawn > MAX_DRAWN:
            raise refusal(
                self.drawing, f"may draw {MAX_DRAWN} elements, what it refers to counted each time, got more"
            )

    def drawn(self, part: str, known: dict[str, int], depth: int) -> int:
        """How many elements it takes to draw a part."""
        if depth == 0:
            raise refusal(self.drawing, f"may refer on {MAX_DEPTH} times, got more, or a circle")
        if part not in known:
            targets = self.references.get(part, ())
            known[part] = self.sizes[part] + sum(self.drawn(target, known, depth - 1) for target in targets)
        return known[part]

    def targets(self, key: str, value: str) -> Iterator[str]:
        """The ids that an attribute refers to.

        Raises:
            RowError: If it names anything outside the drawing.
        """
        plain = re.sub("[\\s'\"]", "", value)
        found = [part.partition(")")[0] for part in re.split("(?i)url[(]", plain)[1:]]
        if key.rpartition("}")[2] == "href":
            found.append(plain)
        for target in found:
            if not target.startswith("#"):
                raise refusal(self.drawing, f"may refer to its own parts only, got {key}={value[:60]!r}")
            yield target[1:]


def refusal(drawing: Drawing, rule: str) -> RowError:
    """The error for a drawing that breaks a rule."""
    return RowError(f"{drawing.name}: an SVG {rule}; repair it or leave it out.")
