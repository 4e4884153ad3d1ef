import sys

import numpy as np
import pytest

from datasets_scripts.schema import RowError
from datasets_scripts.svg import Drawing, render_svg

RED = '<path d="M0 0h10v10h-10z" fill="red"/>'


def drawing(body, width=10.0, height=10.0):
    return Drawing("set, icon 'a'", body, 0.0, 0.0, width, height)


def test_shapes_are_drawn_on_white():
    pixels = np.asarray(render_svg(drawing('<path d="M0 0h5v10h-5z" fill="red"/>'), 20))
    assert pixels.shape == (20, 20, 3)
    assert (pixels[:, :10] == (255, 0, 0)).all()
    assert (pixels[:, 10:] == 255).all()


def test_what_is_not_square_stands_in_the_middle():
    pixels = np.asarray(render_svg(drawing(RED, height=5.0), 20))
    rows = (pixels == (255, 0, 0)).all(axis=(1, 2))
    assert rows.tolist() == [5 <= row < 15 for row in range(20)] or rows[5:15].all()


def test_gradients_uses_and_filters_work():
    body = (
        '<defs><g id="a"><path id="b" d="M0 0h5v5h-5z"/><use href="#b" x="5"/></g>'
        '<linearGradient id="c"><stop stop-color="blue"/></linearGradient></defs>'
        '<g fill="url(#c)"><use xlink:href="#a"/></g>'
    )
    assert (np.asarray(render_svg(drawing(body), 10))[:5] == (0, 0, 255)).all()


DOUBLING = "".join(f'<g id="g{n}"><use href="#g{n + 1}"/><use href="#g{n + 1}"/></g>' for n in range(30))
MASKS = "".join(
    f'<mask id="m{n}">{RED * 3}<g mask="url(#m{n + 1})"/><g mask="url( \'#m{n + 1}\' )"/></mask>' for n in range(30)
)


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ('<image href="file:///etc/passwd"/>', "may hold the elements"),
        ('<image href="data:image/png;base64,AAAA"/>', "may hold the elements"),
        ("<text>a</text>", "may hold the elements"),
        ("<style>@import 'http://a'</style>", "may hold the elements"),
        ("<script>1</script>", "may hold the elements"),
        ("<foreignObject/>", "may hold the elements"),
        ('<use href="other.svg#a"/>', "its own parts only"),
        ('<path xlink:href="http://a/b"/>', "its own parts only"),
        ("<path fill=\"URL( 'http://a/b#c')\"/>", "its own parts only"),
        ('<path style="fill:url(//a/b)"/>', "its own parts only"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>', "a declaration or an instruction"),
        ("<?xml-stylesheet href='a'?>", "a declaration or an instruction"),
        ("<g>", "must be XML"),
        ("</svg><svg>", "must be XML"),
        ("\0", "must be XML"),
        ("\ud800", "must be XML"),
        ("<g>" * 100 + "</g>" * 100, "64 elements deep"),
        (RED * 30_000, "1048576 characters"),
        ("<g/>" * 20_001, "20000 elements"),
        (DOUBLING + '<use href="#g0"/>', "20000 elements"),
        (MASKS + '<g mask="url(#m0)"/>', "20000 elements"),
        ('<g id="a"><use href="#a"/></g>', "or a circle"),
    ],
)
def test_what_loads_multiplies_or_is_broken_is_refused(body, rule):
    with pytest.raises(RowError, match=f"set, icon 'a': an SVG .*{rule}"):
        render_svg(drawing(body), 8)


@pytest.mark.parametrize("side", [0.0, -1.0, 1e9, float("nan"), float("inf")])
def test_sizes_that_cannot_be_are_refused(side):
    with pytest.raises(RowError, match="must show a part of the plane"):
        render_svg(drawing(RED, width=side), 8)


def test_without_the_renderer_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match="pip install resvg-py"):
        render_svg(drawing(RED), 8)
