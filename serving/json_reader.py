"""JSON as job submissions have it, read block by block: an object of scalars and of long lists of strings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from serving.errors import InvalidRequest, MalformedBody

MAX_OPTION_CHARACTERS = 1000  # of a member's name, and of one that is a string
MAX_NUMBER_CHARACTERS = 32  # of any word; 64-bit integers and floats have 25 at most

_CLOSING = {"[": "]", "{": "}"}
_NESTED = {"[": "an array", "{": "an object"}
# No quantifier gives back what it took: a match takes linear time. What is inside a string or word is for `json`
_SPACE = r"[ \t\n\r]*+"
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PAIR = f"{_STRING}{_SPACE}:{_SPACE}{_STRING}"
_TOKEN = re.compile(rf'{_SPACE}({_STRING}|[\[\]{{}}:,]|[^ \t\n\r"\[\]{{}}:,]++|\Z)', re.DOTALL)
_MORE_ENTRIES = {
    opening: re.compile(f"(?:{_SPACE},{_SPACE}{entry})*+") for opening, entry in (("[", _STRING), ("{", _PAIR))
}
_DECODER = json.JSONDecoder(object_pairs_hook=list)  # so that names that are there twice stay


class JsonReader:
    """Reads a JSON text once, from its start. Nothing nests deeper than a list, so nothing recurs.

    Of the text, twice `max_characters` is held at most, if no block is longer than half of it. All methods raise
        MalformedBody: no JSON, or a string of more than `max_characters`; characters are counted from 0.
        InvalidRequest: JSON that is something else.
    """

    def __init__(self, blocks: Iterator[str], max_characters: int) -> None:
        self._blocks = blocks
        self._max_characters = max_characters
        self._text = ""
        self._at = 0
        self._dropped = 0  # characters before `_text`
        self._is_over = False

    def members(self) -> Iterator[tuple[str, str]]:
        """The name of each member and the first token of its value.

        What a list holds is to be read, by `batches`, before the next member is asked for.
        """
        if (token := self._take()) != "{":
            self._scalar("the body", token)
            raise InvalidRequest("the body is not an object")
        for token in self._each("}"):
            name = self._string("a member's name", token)
            if len(name) > MAX_OPTION_CHARACTERS:
                raise InvalidRequest(f"{name[:40]!r}... is longer than {MAX_OPTION_CHARACTERS} characters")
            self._expect(":")
            yield name, self._take()
        self._expect("")

    def option(self, name: str, token: str) -> Any:
        """The scalar that a token is."""
        if len(token) > MAX_OPTION_CHARACTERS:
            raise InvalidRequest(f"{name[:40]!r} is longer than {MAX_OPTION_CHARACTERS} characters")
        return self._scalar(repr(name[:40]), token)

    def batches(self, name: str, opening: str) -> Iterator[list[Any]]:
        """The strings of an array, or the (name, string) of an object, that begins with the token `opening`."""
        size, are_sound = 0, True
        for token in self._each(_CLOSING[opening]):
            entry: Any = self._string(f"{name}[{size}]", token)
            if opening == "{":
                self._expect(":")
                entry = entry, self._string(f"{name}[{size}]", self._take())
            size += 1
            yield [entry]
            # The others that are whole in this block, at once
            more = _MORE_ENTRIES[opening].match(self._text, self._at) if are_sound else None
            if more and more[0]:
                try:
                    batch = _decode(opening + more[0].partition(",")[2] + _CLOSING[opening])
                except ValueError:
                    are_sound = False  # one by one, then, to find the one that is wrong
                    continue
                self._at = more.end()
                size += len(batch)
                yield batch

    def _string(self, where: str, token: str) -> str:
        value = self._scalar(where, token)
        if not isinstance(value, str):
            raise InvalidRequest(f"{where}: {token} is not a string")
        return value

    def _scalar(self, where: str, token: str) -> Any:
        if token in _NESTED:
            raise InvalidRequest(f"{where}: {_NESTED[token]} has no place here")
        if not token.startswith('"') and len(token) > MAX_NUMBER_CHARACTERS:
            raise self._malformed(token, f"{where} has more than {MAX_NUMBER_CHARACTERS} characters")
        try:
            value = _decode(token)
        except ValueError as error:
            raise self._malformed(token, f"{where} is not JSON ({getattr(error, 'msg', error)})") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(f"{where}: {token} is no finite number")
        return value

    def _each(self, closing: str) -> Iterator[str]:
        """The first token of each entry, the rest of which is to be read before the next is asked for."""
        token = self._take()
        if token == closing:
            return
        while True:
            yield token
            separator = self._take()
            if separator == closing:
                return
            if separator != ",":
                raise self._malformed(separator, f"',' or {closing!r} belongs here")
            token = self._take()

    def _expect(self, wanted: str) -> None:
        if (token := self._take()) != wanted:
            raise self._malformed(token, f"{wanted!r} belongs here" if wanted else "the text should have ended")

    def _take(self) -> str:
        """The next token: a string with its quotes, a sign or a word; "" at the end."""
        token = _TOKEN.match(self._text, self._at)
        while (token is None or token.end() == len(self._text)) and self._may_read_on():
            self._read_on()
            token = _TOKEN.match(self._text, self._at)
        if token is None and self._is_over:
            raise MalformedBody(f"the string at character {self._dropped + self._at} has no end")
        if token is None or len(token[1]) > self._max_characters:
            start = self._dropped + self._at  # after several blocks, no white space is before it
            raise MalformedBody(
                f"the string at character {start} is longer than {self._max_characters} characters"
            )
        self._at = token.end()
        return token[1]

    def _may_read_on(self) -> bool:
        return not self._is_over and len(self._text) - self._at <= self._max_characters

    def _read_on(self) -> None:
        rest = self._text[self._at :].lstrip(" \t\n\r")
        self._dropped += len(self._text) - len(rest)
        more = ""
        while 2 * len(more) <= len(rest) and (block := next(self._blocks, "")):
            more += block  # by half at least: a long string is not looked through again with every block
        self._text, self._at, self._is_over = rest + more, 0, not more

    def _malformed(self, token: str, reason: str) -> MalformedBody:
        shown = repr(token[:40]) if token else "the end"
        return MalformedBody(f"{shown} at character {self._dropped + self._at - len(token)}: {reason}")


def _decode(text: str) -> Any:
    """As json.loads; half of a surrogate pair, which is no text, is a ValueError too."""
    value = _DECODER.decode(text)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair") from None
    return value
