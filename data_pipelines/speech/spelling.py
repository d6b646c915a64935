"""Words as they are written to the letters in which they are said: numbers, symbols, other scripts.

An aligner knows letters. What a word has besides is spelled out, or the word is refused; only
punctuation, which nobody says, is passed over:

* numbers by `num2words`, in its languages: 1,234.5 by the language's own separators, English
  ordinals (3rd) and years (1984); digit by digit where a number begins with 0 or is very long;
* symbols (`$ % & + = @ # °`) in English;
* letters as they are, in the other case, or without their marks (é is e), whichever label there is;
* other scripts in Latin letters by `uroman`, where that is asked for.
"""

from __future__ import annotations

import dataclasses
import decimal
import functools
import re
import unicodedata
from collections.abc import Collection
from typing import Any

from lst_jax.extras import import_extra
from lst_jax.settings import list_names, quote
from lst_jax.speech.interfaces import Rejection

MISSING = "missing-letter"

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_ENGLISH_NUMBER = re.compile(r"([$€£¥]?)(\d+(?:[.,]\d+)*)(st|nd|rd|th)?", re.IGNORECASE)
_GROUPED = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")
_YEAR = re.compile(r"1[1-9]\d\d|20\d\d")
_MOST_DIGITS = 15  # longer numbers are read out digit by digit
_FEWER_DIGITS = {"am": 3}  # of larger ones num2words has no words in Amharic, and looks for ever
_POINT = ("en", "he", "ja", "ko", "th", "zh")  # languages whose decimals follow a point
_SYMBOLS = {
    **{"%": "percent", "&": "and", "+": "plus", "=": "equals", "@": "at", "#": "number"},
    **{"$": "dollars", "€": "euros", "£": "pounds", "¥": "yen", "°": "degrees"},
}
_SPOKEN_PUNCTUATION = frozenset("%&#@*/\\§¶†‡‰")  # Unicode counts them among it
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u2032`", "'"))


class _UnspokenError(Exception):
    """A number that `num2words` does not say in a language."""


@dataclasses.dataclass(frozen=True)
class Speller:
    """Spells words by labels.

    Attributes:
      labels: letters that an aligner knows, one character each. None: all letters.
      language: ISO 639-1, of numbers and symbols.
      romanize: whether letters are first turned into Latin ones.
    """

    labels: Collection[str] | None = None
    language: str = "en"
    romanize: bool = False

    def spell(self, word: str) -> str | Rejection:
        """Returns the letters in which a word is said, with spaces where it is several words.

        A word of punctuation alone has none.

        Returns:
          Letters, each one of `labels`; or, of kind "missing-letter", what cannot be spelled.

        Raises:
          ImportError: a package of the extra speech is missing.
        """
        text = unicodedata.normalize("NFC", word).translate(_APOSTROPHES)
        said = self._say_numbers(text)
        if isinstance(said, Rejection):
            return said
        if self.language == "en":
            said = "".join(f" {_SYMBOLS[c]} " if c in _SYMBOLS else c for c in said)
        if self.romanize:
            said = _romanize(said)
        spelled: list[str] = []
        for character in said:
            letters = self._find(character)
            if letters is not None:
                spelled.append(letters)
            elif character.isspace() or unicodedata.category(character) == "Pd":
                spelled.append(" ")
            elif not _is_unspoken(character):
                known = "" if self.labels is None else list_names(sorted(self.labels)) + ", "
                return Rejection(
                    MISSING,
                    f"word {quote(word)} has {quote(character)}, expected {known}a number or "
                    f"punctuation in the language {self.language}",
                )
        parts = (part.strip("'") for part in "".join(spelled).split())
        return " ".join(part for part in parts if part)

    def _say_numbers(self, text: str) -> str | Rejection:
        if not any(map(str.isnumeric, text)):
            return text
        pattern = _ENGLISH_NUMBER if self.language == "en" else _NUMBER
        try:
            return pattern.sub(self._say_number, text)
        except _UnspokenError as error:
            reason = " ".join(str(error).split()) or type(error.__cause__).__name__
            return Rejection(
                MISSING,
                f"the number in {quote(text)} is not spelled in the language {self.language} by "
                f"num2words: {reason[:120]}",
            )

    def _say_number(self, match: re.Match[str]) -> str:
        currency, number, suffix = match.groups() if self.language == "en" else ("", match[0], None)
        if "." not in number and "," not in number:
            if number[0] == "0":
                said = " ".join(map(self._say, number))
            elif self.language == "en" and not suffix and not currency and _YEAR.fullmatch(number):
                said = self._say(number, "year")
            else:
                said = self._say(number, "ordinal" if suffix else "cardinal")
        else:
            said = self._say_parts(number)
        return f" {said} {_SYMBOLS[currency] if currency else ''} "

    def _say(self, number: str, to: str = "cardinal") -> str:
        """Says digits, perhaps with a point among them."""
        num2words = import_extra("speech", "num2words").num2words
        if len(number) > _FEWER_DIGITS.get(self.language, _MOST_DIGITS):
            if not number.isdecimal():
                raise _UnspokenError("it has too many digits")
            return " ".join(map(self._say, number))
        value = decimal.Decimal(number) if "." in number else int(number)
        try:
            return num2words(value, lang=self.language, to=to)
        # What its languages raise of numbers that they do not have.
        except (NotImplementedError, ArithmeticError, LookupError, TypeError) as error:
            raise _UnspokenError(str(error)) from error

    def _say_parts(self, number: str) -> str:
        """Says a number with groups of thousands or decimals; else several numbers."""
        plain = number if self.language in _POINT else number.translate(str.maketrans(".,", ",."))
        if _GROUPED.fullmatch(plain):
            plain = plain.replace(",", "")
        parts = re.split(r",|\.(?=.*\.)", plain)
        return " ".join(map(self._say, parts))

    def _find(self, character: str) -> str | None:
        """Returns the labels of a character: as it is, in the other case, without its marks."""
        if self.labels is None:
            is_letter = character == "'" or unicodedata.category(character)[0] in "LM"
            return character if is_letter else None
        bare = "".join(c for c in unicodedata.normalize("NFKD", character) if c.isalpha())
        for letters in (
            character,
            character.lower(),
            character.upper(),
            bare.lower(),
            bare.upper(),
        ):
            if letters and all(letter in self.labels for letter in letters):
                return letters
        return None


def _is_unspoken(character: str) -> bool:
    if character in _SPOKEN_PUNCTUATION:
        return False
    return unicodedata.category(character)[0] in "PC"


@functools.cache
def _romanizer() -> Any:
    return import_extra("speech", "uroman").Uroman()


def _romanize(text: str) -> str:
    return text if text.isascii() else str(_romanizer().romanize_string(text))
