"""What full-text search finds: the words of a record, the same ones for every store.

A *word* is a run of letters, digits and `_`, without regard to case, so that identifiers are one
word (`create_user`, `createUser`) while paths, UUIDs, addresses and hyphenated names are several
that follow each other: pasted as they are, they are found as a phrase. Of a longer run the first
MAX_WORD characters count. Scripts that put no spaces between words (Han, kana, Thai, …) have a word
for each character. Text is compared in Unicode's form NFKC, case folded.

The *values* of a record are all strings and numbers of its JSON, at any depth, and its message; not
the names of members, and not `time`, `traceTimestamp` and `traceNumber`, which are asked for as
fields and would only be noise here. A number is searched as JSON writes it.

`searched_text` puts the words of all values into one string, with SEPARATOR between values:

    " create_user · alice · 10 0 0 1 · 2 5 "

so that a phrase is a substring. The same string can go into an index that knows nothing of all
this: SQLite's FTS5 with `tokenize = "ascii tokenchars '_'"` has exactly these words, since it takes
all characters beyond ASCII for letters, and no phrase goes past a SEPARATOR, which is a word there
but in no query; so has whatever splits it at blanks.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any, Final

from hyperlog.store.records import StoredRecord, decode_body

__all__ = ["SEPARATOR", "number_text", "scalar_text", "searched_text", "searched_words", "words_of"]

SEPARATOR: Final = "·"
MAX_WORD: Final = 64  # characters; a SHA-256 in hex has as many
MAX_MARKS: Final = 30  # combining ones in a row, more than any language has; Spec: UAX #15, 13
LEFT_OUT: Final = ("time", "traceTimestamp", "traceNumber")

_MARK: Final = "\x00"  # stands for SEPARATOR as long as the text is ASCII
_ASCII_WORDS = bytes(
    code if chr(code).isalnum() or code in (0, ord("_")) else ord(" ") for code in range(128)
).lower() + bytes(128)
# Letters that stand for syllables or words, and those of languages written without spaces.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[^\W{_UNSPACED}]+|(?=\w)[{_UNSPACED}]")


def words_of(text: str) -> list[str]:
    """The words of a text, in their order. `words_of(word)` of each of them is that word alone."""
    if text.isascii():
        words = text.replace(_MARK, " ").encode().translate(_ASCII_WORDS).decode().split()
        if len(text) <= MAX_WORD:
            return words
    else:
        words = _WORD.findall(_folded(text))
    return [word[:MAX_WORD] for word in words]


def _folded(text: str) -> str:
    if len(text) > MAX_MARKS:
        # Unicode's order of marks is found in a time that grows with the square of their number.
        text = _marks().sub(lambda run: run[0][:MAX_MARKS], text)
    # Unicode's NFKC_Casefold: folding undoes some of the normal form, which decomposes further.
    text = unicodedata.normalize("NFD", text).casefold()
    text = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", text)


@cache
def _marks() -> re.Pattern[str]:
    """Too many characters in a row that are, or are taken apart into, nothing but combining marks.

    In the planes above there are none.
    """
    marks = "".join(
        char
        for char in map(chr, range(0x300, 0x20000))
        if unicodedata.combining(unicodedata.normalize("NFKD", char)[0])
    )
    return re.compile(rf"(?<![{marks}])[{marks}]{{{MAX_MARKS + 1},}}")


def searched_text(record: StoredRecord, members: dict[str, Any] | None = None) -> str:
    """The words of all values; `members` is `decode_body(record.body)`, for those who have it."""
    values = _values(record, decode_body(record.body) if members is None else members)
    joined = f" {_MARK} ".join(values)
    if not joined.isascii():
        words_of_values = f" {SEPARATOR} ".join(" ".join(words_of(value)) for value in values)
        return f" {' '.join(words_of_values.split())} "
    if joined.count(_MARK) >= len(values):
        joined = f" {_MARK} ".join(value.replace(_MARK, " ") for value in values)
    words = joined.encode().translate(_ASCII_WORDS).split()
    if max(map(len, values), default=0) > MAX_WORD:
        words = [word[:MAX_WORD] for word in words]
    return f" {b' '.join(words).decode()} ".replace(_MARK, SEPARATOR)


def searched_words(record: StoredRecord) -> list[list[str]]:
    """The words of each value that has any."""
    texts = searched_text(record).split(SEPARATOR)
    return [words for words in (text.split() for text in texts) if words]


def scalar_text(value: str | float | bool | None) -> str:
    """A value as people read it: a text as it is, all else as JSON writes it."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return number_text(value)


def number_text(number: float) -> str:
    """A number as JSON writes it."""
    if type(number) is int:
        try:
            return str(number)
        except ValueError:  # more digits than Python converts
            return "1e+9999" if number > 0 else "-1e+9999"
    text = repr(number)
    return text.replace("inf", "1e+9999")


def _values(record: StoredRecord, members: dict[str, Any]) -> list[str]:
    found: list[str] = []
    try:
        _collect([value for name, value in members.items() if name not in LEFT_OUT], found)
    except RecursionError:  # far deeper than what a server accepts
        pass
    if record.message not in found:
        found.append(record.message)
    return found


def _collect(values: Any, found: list[str]) -> None:  # noqa: ANN401 - any iterable of JSON values
    for value in values:
        kind = type(value)
        if kind is str:
            found.append(value)
        elif kind is dict:
            _collect(value.values(), found)
        elif kind is list:
            _collect(value, found)
        elif kind is int or kind is float:
            found.append(number_text(value))
