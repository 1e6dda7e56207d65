"""What the tests of pages share: a strict parser, and a browser that says how wide a page is."""

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.test/x onerror=alert(1)> & $\\frac"
VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class Page(HTMLParser):
    """Fails where tags do not balance; keeps elements, visible text, and tables by region."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"attribute twice in <{tag}>"
        if tag not in VOID:
            self.open.append(tag)
        if dict(attrs).get("role") == "region":
            self._rows = self.tables[dict(attrs)["aria-label"]] = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self._rows[-1][-1] += data


def assert_stands_alone(html: str) -> None:
    """The page loads nothing, runs nothing, and forbids both."""
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            address = attributes.get(name) or "#"
            if tag == "a" and address.startswith(("file:///", "https://", "s3://")):
                # A video, which only a click opens.
                continue
            assert address.startswith(("#", "data:image/jpeg;base64,")), (tag, address)
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    style = html[html.index("<style>") : html.index("</style>")]
    assert html.count("<style") == 1
    assert "url(" not in style
    assert "@import" not in style
    policies = [a["content"] for t, a in page.elements if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def assert_structure(html: str) -> None:
    """What phones and screen readers rely on."""
    elements = Page(html).elements
    assert ("html", {"lang": "en"}) in elements
    viewports = [a["content"] for t, a in elements if a.get("name") == "viewport"]
    assert viewports == ["width=device-width, initial-scale=1"]
    identifiers = [a["id"] for _, a in elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    referred = [i for _, a in elements for i in (a.get("aria-labelledby") or "").split()]
    assert set(referred) <= set(identifiers)
    assert all(a.get("alt") for t, a in elements if t == "img")
    assert all(a.get("scope") in ("row", "col") for t, a in elements if t == "th")
    assert [t for t, _ in elements].count("h1") == 1


def assert_colours_of_the_page(html: str) -> None:
    """Drawings name the colours of the theme, and both themes have them."""
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert drawn
    assert not re.search(r"#[0-9a-f]{6}", drawn)
    for variable in set(re.findall(r"var\((--[a-z0-9-]+)\)", html)) - {"--v", "--columns", "--by"}:
        if variable.startswith("--by-"):
            # The place of a row in an order.
            continue
        assert html.count(f"{variable}:") == 2, f"{variable}: one light value and one dark"


def assert_fits(page: str, folder: Path, widths: tuple[int, ...] = (390, 1280)) -> None:
    """In a browser, the page is no wider than the window, without scrolling to the side."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    source = html.escape(page)
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px" srcdoc="{source}"></iframe>'
        for width in widths
    )
    script = (
        "onload=()=>{document.title=[...document.querySelectorAll('iframe')].map(f=>{"
        "const e=f.contentDocument.documentElement;"
        "return e.scrollWidth+'/'+e.clientWidth+'/'+f.contentDocument.querySelectorAll('h1').length"
        "}).join(' ')}"
    )
    file = folder / "frames.html"
    file.write_text(f"<title></title>{frames}<script>{script}</script>", encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder}/profile",
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    found = re.search("<title>(.*?)</title>", done.stdout).group(1).split()
    assert len(found) == len(widths), done.stderr
    for width, measured in zip(widths, found, strict=True):
        content, window, titles = map(int, measured.split("/"))
        assert titles == 1, "the page was loaded"
        assert width - 30 <= window <= width
        assert content <= window, f"at {width} px"
