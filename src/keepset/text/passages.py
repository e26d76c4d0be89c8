"""Find passages whose last word can be predicted from the words before it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from keepset.text.corpora import paragraphs

_SENTENCE_END = re.compile(r"[.!?][\"')\]\u2019\u201d]*(?=\s+[\"'(\[\u2018\u201c]?[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|Rev|Hon|Gen|Col|Capt|Lt|Maj|Sgt|Gov|Sen|Rep|St|Mt|Ft"
    r"|Jr|Sr|Co|Corp|Inc|Ltd|No|Nos|Vol|Fig|Eq|Art|Sec|Ch|pp|ca|cf|vs|etc|al|viz|approx|est"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)|\.[A-Za-z])\.$"
)
_LAST_WORD = re.compile(r"(?<=\s)([A-Za-z]{4,})[.!?][\"')\]\u2019\u201d]*$")
_WORD = re.compile(r"[^\W\d_]+")
# Signs of code, markup, tables and footnotes; "--" is part of a ruled line.
_NOT_PROSE = re.compile(r"[<>{}|\\^=*_`~#@\[\]\ufffd]|::|--|>>>|\.\.\.|https?:|www\.")
_PROSE_SHARE = 0.85

STOP_WORDS = frozenset(
    """
    about above across after again against also although always among another anything around
    aside away back because been before behind being below between beyond both cannot could does
    doing done down during each either else even ever every everything except from further given
    goes gone have having here hers herself himself however indeed instead into itself just less
    like made make many maybe might more most much must myself near neither never none nothing
    often once only onto other others otherwise ours ourselves over perhaps quite rather said same
    shall should since some something soon still such than that their theirs them themselves then
    there therefore these they thing things this those though through thus together too toward
    towards under unless until upon used very want well went were what whatever when where whether
    which while whom whose will with within without would your yours yourself
    """.split()  # noqa: SIM905 - a list of words reads better as text
)
"""Words of four or more letters that carry grammar, not content; never a target."""


def passages(document: str, min_words: int, max_words: int) -> Iterator[tuple[str, str]]:
    """Yield (context, target) pairs: complete sentences of one paragraph, without overlap.

    A passage has `min_words` to `max_words` words. Its last word is the target: at least four
    plain letters, not a stop word, and used before in the passage, in any case. The space before
    the target and the punctuation after it are left out, and so are paragraphs that are not prose.
    """
    for pieces in prose_paragraphs(document):
        start = 0
        while start < len(pieces):
            passage = _passage(pieces[start:], min_words, max_words)
            if passage is not None:
                length, context, target = passage
                yield context, target
                start += length
            else:
                start += 1


def prose_paragraphs(document: str) -> Iterator[list[str]]:
    """The sentences of each paragraph of prose; other paragraphs are skipped."""
    for paragraph in paragraphs(document):
        text = " ".join(paragraph.split())
        if _is_prose(text):
            yield sentences(text)


def sentences(text: str) -> list[str]:
    """The sentences of one paragraph; the dot of an abbreviation or initial does not end one."""
    ends = [
        match.end()
        for match in _SENTENCE_END.finditer(text)
        if not _ABBREVIATION.search(text[: match.start() + 1])
    ]
    bounds = zip([0, *ends], [*ends, len(text)], strict=True)
    return [sentence for start, end in bounds if (sentence := text[start:end].strip())]


def _is_prose(text: str) -> bool:
    """Whether a paragraph is prose: at least 85% letters and spaces, no marks of code or markup."""
    plain = sum(character.isalpha() or character == " " for character in text)
    return bool(text) and plain >= _PROSE_SHARE * len(text) and not _NOT_PROSE.search(text)


def _passage(pieces: list[str], min_words: int, max_words: int) -> tuple[int, str, str] | None:
    """The shortest passage from the first of `pieces`: its sentences, context and target."""
    words = 0
    for length, sentence in enumerate(pieces, start=1):
        words += len(sentence.split())
        if words > max_words:
            return None
        if words >= min_words and (last := _LAST_WORD.search(sentence)):
            text = " ".join(pieces[:length])
            context = text[: len(text) - len(sentence) + last.start()].rstrip()
            if _is_predictable(last[1], context):
                return length, context, last[1]
    return None


def _is_predictable(target: str, context: str) -> bool:
    target = target.lower()
    return target not in STOP_WORDS and target in {word.lower() for word in _WORD.findall(context)}
