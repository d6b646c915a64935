"""Words to letters: what is said, what is passed over, what is refused."""

import string

import pytest

from data_pipelines.speech.spelling import Speller
from lst_jax.speech.interfaces import Rejection

ENGLISH = Speller(frozenset(string.ascii_uppercase + "'"))


@pytest.mark.parametrize(
    ("word", "letters"),
    [
        ("Don\u2019t!", "DON'T"),
        ("\u201chello,\u201d", "HELLO"),
        ("'quoted'", "QUOTED"),
        ("café", "CAFE"),
        ("Straße", "STRASSE"),
        ("well-known", "WELL KNOWN"),
        ("\u2014", ""),
        ("1984.", "NINETEEN EIGHTY FOUR"),
        ("1,234", "ONE THOUSAND TWO HUNDRED AND THIRTY FOUR"),
        ("3rd", "THIRD"),
        ("2.5", "TWO POINT FIVE"),
        ("007", "ZERO ZERO SEVEN"),
        ("$5", "FIVE DOLLARS"),
        ("50%", "FIFTY PERCENT"),
        ("10:30", "TEN THIRTY"),
        ("1.2.3", "ONE TWO POINT THREE"),
        ("R&B", "R AND B"),
        ("9" * 20, " ".join(["NINE"] * 20)),
        ("1" + "0" * 14, "ONE HUNDRED TRILLION"),
        ("1" + "0" * 15, " ".join(["ONE", *["ZERO"] * 15])),
        ("1100", "ELEVEN HUNDRED"),
        ("2500", "TWO THOUSAND FIVE HUNDRED"),
        ("$1984", "ONE THOUSAND NINE HUNDRED AND EIGHTY FOUR DOLLARS"),
        ("1984TH", "ONE THOUSAND NINE HUNDRED AND EIGHTY FOURTH"),
        ("a\u200bb", "AB"),
    ],
)
def test_english_words_are_spelled_as_they_are_said(word, letters):
    assert ENGLISH.spell(word) == letters


def test_numbers_follow_the_language():
    german = Speller(frozenset(string.ascii_lowercase + "äöüß"), "de")
    assert german.spell("3,5") == "drei komma fünf"
    assert german.spell("1.000") == "eintausend"
    assert Speller(None, "es").spell("21") == "veintiuno"


@pytest.mark.slow  # uroman reads its tables for seconds
def test_other_scripts_are_romanized_where_that_is_asked_for():
    roman = Speller(frozenset(string.ascii_lowercase + "'"), "ru", romanize=True)
    assert roman.spell("Привет,") == "privet"
    assert roman.spell("2") == "dva"


@pytest.mark.parametrize("word", ["жук", "a*b", "½", "♥", "5‰", "§5"])
def test_what_has_no_letters_is_refused_by_name(word):
    found = ENGLISH.spell(word)
    assert isinstance(found, Rejection) and found.kind == "missing-letter"
    assert "expected" in found.reason and "\n" not in found.reason


def test_a_letter_of_which_a_part_is_no_label_is_refused():
    assert Speller(frozenset("FI")).spell("ﬁ") == "FI"
    assert isinstance(Speller(frozenset("F")).spell("ﬁ"), Rejection)


def test_numbers_of_an_unknown_language_and_symbols_outside_english_are_refused():
    for word, language in (("12", "xx"), ("5%", "de")):
        found = Speller(frozenset(string.ascii_lowercase), language).spell(word)
        assert isinstance(found, Rejection) and found.kind == "missing-letter"


def test_numbers_of_any_length_are_said_or_refused_at_once():
    assert Speller(None, "am").spell("9" * 7).split() == [Speller(None, "am").spell("9")] * 7
    assert Speller(None, "en").spell("1," + "2" * 5000).split() == ["one", *["two"] * 5000]
    found = Speller(None, "en").spell("0." + "1" * 5000)
    assert isinstance(found, Rejection) and "too many digits" in found.reason


def test_a_fault_of_the_speller_s_own_is_no_rejection(monkeypatch):
    monkeypatch.setattr(Speller, "_say_parts", lambda *_: [][0])
    with pytest.raises(IndexError):
        Speller(None, "en").spell("1.5")
