"""Charts are whole SVG documents, whatever is drawn."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from flashkit.plan.line_chart import Chart, Line, draw

SVG = "{http://www.w3.org/2000/svg}"


def chart(*lines: Line) -> Chart:
    return Chart("sessions <of> a & b", "tokens", "sessions", lines)


def test_a_line_goes_from_its_first_point_to_its_last():
    root = ElementTree.fromstring(draw(chart(Line("one", ((1, 0), (10, 5), (100, 10))))))
    places = root.find(f"{SVG}polyline").get("points").split()
    assert [tuple(map(float, place.split(","))) for place in places] == [(84, 420), (362, 238), (640, 56)]
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"sessions <of> a & b", "tokens", "sessions", "one", "10", "100"} <= set(texts)


def test_a_single_point_and_a_flat_line_are_drawn_too():
    for line in (Line("one", ((5, 5),)), Line("flat", ((1, 0), (2, 0)))):
        assert ElementTree.fromstring(draw(chart(line))).find(f"{SVG}polyline") is not None


@given(
    points=st.lists(st.tuples(st.floats(1, 1e9), st.floats(0, 1e9)), min_size=1, max_size=20),
    name=st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), max_size=20),
)
def test_every_point_is_inside_the_page(points: list[tuple[float, float]], name: str):
    root = ElementTree.fromstring(draw(chart(Line(name, tuple(sorted(points))))))
    for place in root.find(f"{SVG}polyline").get("points").split():
        x, y = map(float, place.split(","))
        assert 83.9 <= x <= 640.1
        assert 55.9 <= y <= 420.1
