"""A page as its elements, by the parser of the standard library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "link", "input", "img", "br"}


@dataclass
class Element:
    """A tag with what stands in it; `children` are elements and text."""

    name: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text below."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def everything(self) -> Iterator[Element]:
        """The element itself and all below."""
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.everything()

    def all(self, name: str, style: str = "") -> list[Element]:
        """The elements of a name below, and of a class."""
        return [
            element
            for element in self.everything()
            if element.name == name and (not style or style in element.attributes.get("class", "").split())
        ]

    def part(self, key: str) -> Element:
        """The one element with an id."""
        (found,) = (element for element in self.everything() if element.attributes.get("id") == key)
        return found

    def rows(self) -> list[list[str]]:
        """The text of the cells of a table's body."""
        (body,) = self.all("tbody")
        return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in body.all("tr")]

    def table(self, head: str) -> list[list[str]]:
        """The rows of the one table below with a column named so."""
        (found,) = (table for table in self.all("table") if head in [cell.text for cell in table.all("th")])
        return found.rows()


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        assert len(element.attributes) == len(attrs), "an attribute twice"
        self._open[-1].children.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().name == tag, f"{tag} is closed where it is not open"

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def parse(page: str) -> Element:
    """The page; a tag that is not closed is an error."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert [element.name for element in parser._open] == [""]
    return parser.root
