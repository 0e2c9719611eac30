"""Opens pages in Chromium, for the tests of what people look at."""

import contextlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

from playwright.sync_api import Browser, Page

# The contrast (WCAG 2) of each text with the first opaque element under its center.
CONTRAST = """
async () => {
    const style = document.createElement("style");
    style.textContent = "* { pointer-events: auto !important; scroll-behavior: auto !important; }";
    document.head.append(style);
    for (const details of document.querySelectorAll("details")) details.open = false;
    const parse = text => {
        const [r, g, b, a = 1] = (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
        return {rgb: [r, g, b], a};
    };
    const luminance = rgb => {
        const [r, g, b] = rgb.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paint = one => {
        const style = getComputedStyle(one);
        const within = one instanceof SVGElement && !(one instanceof SVGSVGElement);
        if (within && style.fill === "none") return null;
        const colour = parse(within ? style.fill : style.backgroundColor);
        return colour.a > 0.99 && style.display !== "none" ? colour.rgb : null;
    };
    const below = [];
    let measured = 0;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const one = node.parentElement;
        if (!node.data.trim() || !one.checkVisibility()) continue;
        one.scrollIntoView({block: "center", inline: "start"});
        const range = document.createRange();
        range.selectNodeContents(node);
        const box = range.getClientRects()[0];
        if (!box || box.width < 1) continue;
        const style = getComputedStyle(one);
        const text = parse(one instanceof SVGElement ? style.fill : style.color).rgb;
        const under = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
        const behind = under.filter(other => other.tagName !== "text").map(paint).find(colour => colour);
        if (!behind) { below.push(`nothing is behind ${node.data.trim()}`); continue; }
        const [high, low] = [luminance(text), luminance(behind)].sort((a, b) => b - a);
        const ratio = (high + 0.05) / (low + 0.05);
        measured += 1;
        if (ratio < 4.5) below.push(`${ratio.toFixed(2)}: ${node.data.trim().slice(0, 40)} in ${one.tagName}`);
    }
    return {measured, below};
}
"""


class Visit(NamedTuple):
    """A page, the messages and errors of its scripts, and the addresses that it asked for."""

    page: Page
    messages: list[str]
    requests: list[str]


@contextlib.contextmanager
def visit(
    browser: Browser, address: str, width: int, scheme: Literal["light", "dark"], bypass_csp: bool = False
) -> Iterator[Visit]:
    """The page at `address` on a screen of that width and color scheme."""
    with browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=bypass_csp
    ) as context:
        context.set_default_timeout(10_000)
        visit = Visit(context.new_page(), [], [])
        visit.page.on("console", lambda message: visit.messages.append(message.text))
        visit.page.on("pageerror", lambda error: visit.messages.append(str(error)))
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.goto(address)
        yield visit
