"""Wiki markup to plain prose.

What is not prose is left out rather than approximated: tables, lists, captions, footnotes,
headings, reference sections, and every paragraph that needs a formula to be read.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass

HOLE = "\x00"
"""Stands for removed content without which its paragraph cannot be read."""

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)
_REFERENCE = re.compile(r"<ref\b[^>]*/>|<ref\b[^>]*>(?:(?!<ref\b).)*?</ref\s*>", re.S | re.I)
_UNREADABLE = re.compile(r"<(math|chem|score|hiero)\b[^>]*>.*?</\1\s*>", re.S | re.I)
_DISPLAYED = re.compile(
    r"<(gallery|pre|source|syntaxhighlight|timeline|imagemap|references|table)\b[^>]*>.*?</\1\s*>",
    re.S | re.I,
)
_POWER = re.compile(r"(?<=\w)<sup\b[^>]*>(?=[-+\d\N{MINUS SIGN}])", re.I)
_BREAK = re.compile(r"<(?:br|hr|p)\b[^<>]*>", re.I)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.I)
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:|mailto:)?//[^\s\]]*([^\]\n]*)\]", re.I)
_ADDRESS = re.compile(r"\bhttps?://\S+", re.I)
_SWITCH = re.compile(r"__[A-Z]+__")
# Content without an opener, so that nested markup is resolved from the inside out. Possessive:
# an unclosed opener must not make the engine try every way to split what follows it.
_INSIDE = r"((?:[^\[\]{}]++|\[(?!\[)|\](?!\])|\{(?!\{)|\}(?!\}))*+)"
_LINK = re.compile(r"\[\[" + _INSIDE + r"\]\]")
_TEMPLATE = re.compile(r"\{\{" + _INSIDE + r"\}\}")
_OPTION = re.compile(r"\s*([a-z][a-z_-]*[0-9]*)\s*=(.*)", re.S)
_HEADING = re.compile(r"^(={2,6})\s*(.*?)\s*=+\s*$")
_LEFTOVER = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|\|\||[|\[{]\s*$|" + HOLE)
_PROSE_END = re.compile(r"[.!?][\"'\u201d\u2019)\]]*$")

_NOT_TEXT = frozenset({"file", "image", "media", "category", "template", "special"})
_SISTERS = frozenset({"wikt", "wiktionary", "w", "s", "q", "commons", "wikisource", "wikiquote"})
_END_MATTER = re.compile(
    r"see also|references|notes|notes and references|external links|further reading|sources"
    r"|bibliography|selected bibliography|citations|footnotes|works cited|works|selected works"
    r"|publications|filmography|discography|gallery|primary sources|secondary sources",
    re.I,
)
_UNITS = {"km2": "km²", "m2": "m²", "m3": "m³", "sqmi": "sq mi", "C": "°C", "F": "°F"}
_DASH = "\N{EN DASH}"
_RANGES = {"to": "to", "and": "and", "or": "or", "x": "by", "by": "by", "-": _DASH, _DASH: _DASH}

_MIN_PARAGRAPH = 40
_MAX_NESTING = 30

_TIDY = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("[\u200b\u200e\u200f\ufeff\u00ad]", ""),
        (r"[^\S\n]+", " "),
        (r"\( ?(?:[;,:/] ?)+", "("),
        (r" ?(?:[;,:/] ?)+\)", ")"),
        (r" ?\( ?\)", ""),
        (r"([;,])(?: ?[;,])+", r"\1"),
        (r"\( ", "("),
        (r" +([,.;:!?)])(?!\.)", r"\1"),
        (r",\.", "."),
        (r" {2,}", " "),
    )
)


@dataclass(frozen=True)
class _Call:
    """One use of a template: {{name|value|option=value}}."""

    name: str
    values: list[str]
    options: dict[str, str]

    @classmethod
    def parse(cls, content: str) -> _Call:
        name, *arguments = content.split("|")
        options = [match for argument in arguments if (match := _OPTION.match(argument))]
        values = [argument.strip() for argument in arguments if not _OPTION.match(argument)]
        return cls(name.strip(), values, {match[1]: match[2].strip() for match in options})


def _convert(call: _Call) -> str:
    number, unit, upper, upper_unit = [*call.values, "", "", ""][:4]
    if unit in _RANGES and upper:
        number, unit = f"{number} {_RANGES[unit]} {upper}", upper_unit
    return f"{number} {_UNITS.get(unit, unit)}"


def _fraction(call: _Call) -> str:
    *whole, top, bottom = ["1", *call.values] if len(call.values) < 2 else call.values
    return " ".join([*whole, f"{top}/{bottom}"])


def _as_of(call: _Call) -> str:
    return f"{'as' if call.options.get('lc') else 'As'} of {_first(call)}"


def _first(call: _Call) -> str:
    return call.values[0]


# Templates that only set their first value in another font, script or language.
_VERBATIM = re.compile(
    r"lang-.*|nowrap|nobr|small|smaller|big|large|nobold|linktext|quote|blockquote|cquote|angbr"
    r"|vr|sc|smallcaps|nihongo|val|formatnum|nastaliq|abbr"
)
# Other templates whose text belongs to the sentence; the rest are notes, boxes and footnotes.
_TEMPLATES: dict[str, Callable[[_Call], str]] = {
    **dict.fromkeys(("convert", "cvt"), _convert),
    **dict.fromkeys(("frac", "sfrac", "fraction"), _fraction),
    **dict.fromkeys(
        ("lang", "transl", "rtl-lang", "script", "resize"), lambda call: call.values[-1]
    ),
    "chem": lambda call: "".join(call.values),
    "as of": _as_of,
    **dict.fromkeys(("uss", "mv", "ss", "hms"), lambda call: f"{call.name} {_first(call)}"),
    **dict.fromkeys(("circa", "c."), lambda call: f"c. {_first(call)}"),
}
_CONSTANTS = {
    **dict.fromkeys(("snd", "snds", "spaced ndash", "ndash"), f" {_DASH} "),
    **dict.fromkeys(("mdash", "mdashb", "em dash"), "—"),
    **dict.fromkeys(("nbsp", "spaces", "space", "thinsp"), " "),
    **{"'s": "'s", "'": "'", "' \"": "'\"", "\" '": "\"'", '-"': '"', "=": "=", "!": "|"},
}


def _template(match: re.Match[str]) -> str:
    call = _Call.parse(match[1])
    key = " ".join(call.name.replace("_", " ").lower().split())
    if key in _CONSTANTS:
        return _CONSTANTS[key]
    render = _first if _VERBATIM.fullmatch(key) else _TEMPLATES.get(key)
    return render(call) if render and call.values else ""


def _link(match: re.Match[str]) -> str:
    target, *rest = match[1].split("|")
    prefix, colon, page = target.strip().partition(":")
    space = prefix.strip().lower()
    if colon and space in _NOT_TEXT:
        return ""
    if rest:
        return rest[-1].strip() or target.strip().lstrip(":")
    if colon and space in _SISTERS:
        return page
    # A bare lower-case prefix links the same article in another language.
    if colon and re.fullmatch(r"[a-z]{2,3}(-[a-z]+)*", prefix.strip()):
        return ""
    return target.strip().lstrip(":")


def _resolve(text: str) -> str:
    """Replace links and templates by their text, innermost first."""
    for _ in range(_MAX_NESTING):
        before = text
        text = _TEMPLATE.sub(_template, _LINK.sub(_link, text))
        if text == before:
            break
    return text


def _running_lines(text: str) -> list[str]:
    """The lines outside tables, headings, lists and end matter; blank lines end paragraphs."""
    kept: list[str] = []
    tables = 0
    skipped_level = 0
    for line in text.split("\n"):
        if heading := _HEADING.match(line):
            tables = 0
            level = len(heading[1])
            if not skipped_level or level <= skipped_level:
                skipped_level = level if _END_MATTER.fullmatch(heading[2]) else 0
            kept.append("")
        elif line.lstrip(" :*#").startswith("{|"):
            tables += 1
        elif tables or skipped_level:
            tables -= bool(tables) and line.lstrip().startswith("|}")
        elif line.startswith(("*", "#", ";", "|", "!")):
            kept.append("")
        else:
            kept.append(line.lstrip(" :"))
    return kept


def _tidy(paragraph: str) -> str:
    for pattern, replacement in _TIDY:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph.strip()


def _is_prose(paragraph: str) -> bool:
    return (
        len(paragraph) >= _MIN_PARAGRAPH
        and _PROSE_END.search(paragraph) is not None
        and _LEFTOVER.search(paragraph) is None
    )


def to_prose(markup: str) -> str:
    """Plain prose of one article: paragraphs with a blank line between them, or ""."""
    text = _COMMENT.sub("", markup.replace(HOLE, ""))
    text = _REFERENCE.sub("", text)
    text = _UNREADABLE.sub(HOLE, text)
    text = _DISPLAYED.sub("\n\n", text)
    text = _EXTERNAL.sub(lambda match: match[1].strip(), text)
    text = _resolve(text)
    text = _BREAK.sub("\n", _POWER.sub("^", text))
    text = html.unescape(_TAG.sub("", text))
    text = _SWITCH.sub("", _ADDRESS.sub("", re.sub("'{2,}", "", text)))
    paragraphs = (_tidy(line) for line in _running_lines(text))
    return "\n\n".join(paragraph for paragraph in paragraphs if _is_prose(paragraph))
