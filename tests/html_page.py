"""A page of HTML as a test looks at it: its tags, its visible text, its scripts."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "source", "br", "input"}


class Page(HTMLParser):
    """Tags and visible text of a page; fails on a tag that is not closed."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data + " "

    def words(self) -> str:
        return " ".join(self.text.split())
