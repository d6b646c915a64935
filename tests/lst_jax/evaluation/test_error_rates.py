"""Properties of word and character error rates."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.evaluation.error_rates import (
    character_error_rate,
    count_errors,
    normalize,
    word_error_rate,
)

WORDS = st.lists(st.text("abcd", min_size=1, max_size=4), min_size=1, max_size=8)


def edit_distance(left, right):
    """By the textbook's recursion over prefixes."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            best = min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
            previous, row[j] = row[j], best
    return row[-1]


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_errors_are_the_edit_distance(reference, hypothesis):
    left, right = " ".join(reference), " ".join(hypothesis)
    errors = count_errors("u", left, right)
    assert errors.word_errors == edit_distance(reference, hypothesis)
    assert errors.words == len(reference)
    assert errors.character_errors == edit_distance(left, right)
    assert errors.characters == len(left)


# What many scripts are made of beside letters: marks, joiners, apostrophes, other forms of letters.
HARD = st.text(
    st.sampled_from("aiIİıßςσ '\u2019\u02bc\u05f3\u05f4\u00b7\"א\u05bcकि\u094dก\u0e33가ᄀ\u1161ﬁ½Ⅳ")
    | st.sampled_from("\u0301\u0323\u0307\u0345ạŉ")
    | st.sampled_from("\u00ad\u034f\u200b\u200c\u200d\ufe0f\u3164\u20e3\u00b4_-.,\n1１१²"),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(HARD | st.text(max_size=30), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_forms_that_unicode_calls_equal_are_equal(text, form):
    assert normalize(unicodedata.normalize(form, text)) == normalize(text)
    # Unicode folds what is decomposed (D145): a mark that becomes a letter must be in its place.
    assert normalize(unicodedata.normalize("NFD", text).casefold()) == normalize(text)


@settings(max_examples=300, deadline=None)
@given(HARD)
def test_words_are_letters_and_numbers_with_their_marks(text):
    for word in normalize(text).split():
        kinds = "".join(unicodedata.category(c)[0] for c in word)
        assert set(kinds) <= set("LNMP") and kinds[0] in "LN" and kinds[-1] != "P"
        assert "PP" not in kinds and "PM" not in kinds


# Counted by hand: language, reference, hypothesis, errors and words, errors and characters.
# A mark that is a code point of its own counts as a character.
SCRIPTS = [
    ("Hindi, two vowel signs", "किताब अच्छी", "कुताब अच्छा", 2, 2, 2, 11),
    ("Hindi, a virama", "नमस्ते", "नमसते", 1, 1, 1, 6),
    ("Hindi, full stop", "वह गया।", "वह गया", 0, 2, 0, 6),
    ("Bengali, a vowel sign", "আমি ভাত খাই", "আমি ভাতা খাই", 1, 3, 1, 11),
    ("Tamil, a vowel sign", "தமிழ் மொழி", "தமிழ் மொழு", 1, 2, 1, 10),
    ("Tamil, vowel sign o in two parts", "மொழி", "ம\u0bc6\u0bbeழி", 0, 1, 0, 4),
    ("Telugu, a vowel sign is missing", "తెలుగు భాష", "తెలుగ భాష", 1, 2, 1, 10),
    ("Thai, a tone mark", "ไม่ ไป", "ไม้ ไป", 1, 2, 1, 6),
    ("Thai, sara am in two parts", "น้ำ", "น้\u0e4dา", 0, 1, 0, 4),
    ("Khmer, zero-width spaces", "ខ្ញុំ\u200bទៅ", "ខ្ញុំ ទៅ", 0, 2, 0, 8),
    ("Arabic, harakat are missing", "كَتَبَ الوَلَدُ", "كتب الولد", 2, 2, 6, 15),
    ("Arabic, hamza as a mark", "أكل", "ا\u0654كل", 0, 1, 0, 3),
    ("Arabic, ligature and comma", "ﻻ، نعم", "لا نعم", 0, 2, 0, 6),
    ("Persian, joiner inside a word", "می\u200cخواهم", "میخواهم", 0, 1, 0, 7),
    ("Hebrew, niqqud is missing", "שָׁלוֹם", "שלום", 1, 1, 3, 7),
    ("Hebrew, gershayim", "צה״ל כאן", 'צה"ל כאן', 0, 2, 0, 8),
    ("Yoruba, two tones", "ọ̀rọ̀", "ọ́rọ́", 1, 1, 2, 5),
    ("Yoruba, dot below is missing", "ẹ̀kọ́", "èkó", 1, 1, 4, 5),
    (
        "Vietnamese, decomposed",
        "Tiếng Việt",
        unicodedata.normalize("NFD", "tiếng việt"),
        0,
        2,
        0,
        10,
    ),
    ("Vietnamese, a tone", "tiếng việt", "tiềng việt", 1, 2, 1, 10),
    ("Turkish, dotted capital", "İstanbul GÜZEL", "istanbul güzel", 0, 2, 0, 14),
    ("Turkish, as lower() leaves it", "İzmir", "İzmir".lower(), 0, 1, 0, 5),
    ("Turkish, dotless i", "ısı", "isi", 1, 1, 2, 3),
    ("Korean, decomposed", "한국어 말", unicodedata.normalize("NFD", "한국어 말"), 0, 2, 0, 5),
    ("Korean, a final consonant", "한국 말", "한구 말", 1, 2, 1, 4),
    ("Japanese, half-width with a voicing mark", "ガラス、です。", "ｶﾞﾗｽ です", 0, 2, 0, 6),
    ("Japanese, a voicing mark", "か\u3099", "か", 1, 1, 1, 1),
    ("Chinese, punctuation", "你好，世界！", "你好 世界", 0, 2, 0, 5),
    ("German, sharp s", "Die Straße", "DIE STRASSE", 0, 2, 0, 11),
    ("Greek, final sigma", "ΟΔΟΣ", "οδος", 0, 1, 0, 4),
    ("Greek, an accent is missing", "καλημέρα", "καλημερα", 1, 1, 1, 8),
    ("Russian, short i decomposed", "мой ёж", unicodedata.normalize("NFD", "мой ёж"), 0, 2, 0, 6),
    ("Catalan, middle dot", "col·lecció", "COL·LECCIÓ", 0, 1, 0, 10),
    ("Ukrainian, apostrophe", "п’ять", "п'ять", 0, 1, 0, 5),
    ("Amharic, word separator", "ሰላም፡ነው", "ሰላም ነው", 0, 2, 0, 6),
    ("English, signs without a word", "yes ❤️ 1️⃣ \u0301", "yes 1", 0, 2, 0, 5),
]


@pytest.mark.parametrize(
    ("name", "reference", "hypothesis", "word_errors", "words", "character_errors", "characters"),
    SCRIPTS,
)
def test_errors_in_many_scripts_are_those_that_are_counted_by_hand(
    name, reference, hypothesis, word_errors, words, character_errors, characters
):
    errors = count_errors(name, reference, hypothesis)
    assert (errors.word_errors, errors.words) == (word_errors, words)
    assert (errors.character_errors, errors.characters) == (character_errors, characters)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30) | HARD)
def test_normalizing_twice_is_normalizing_once(text):
    once = normalize(text)
    assert normalize(once) == once
    assert once == " ".join(once.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,   WORLD!\n", "hello world"),
        ("Don\u2019t 'quote' me\u2014it's 5 o'clock", "don't quote me it's 5 o'clock"),
        ("caf\u00e9 \ufb01ne snake_case", "caf\u00e9 fine snake case"),
        ("... ' '' --", ""),
    ],
)
def test_case_and_punctuation_do_not_count(text, expected):
    assert normalize(text) == expected


def test_rates_weigh_utterances_by_their_length():
    utterances = [
        count_errors("a", "one two three four", "one two three four"),
        count_errors("b", "five", "six seven"),
    ]
    rate = word_error_rate(utterances)
    assert rate.rate == 2 / 5
    assert utterances[1].wer == 2.0
    assert rate.interval[0] == 0 and rate.interval[1] == 2.0
    cer = character_error_rate(utterances)
    assert cer.rate == utterances[1].character_errors / (len("one two three four") + len("five"))


def test_nothing_heard_is_all_deletions():
    errors = count_errors("a", "one two", "...")
    assert (errors.word_errors, errors.wer, errors.cer) == (2, 1.0, 1.0)


@pytest.mark.parametrize("reference", ["", " ... "])
def test_a_reference_without_words_is_an_error(reference):
    with pytest.raises(ValueError, match="the reference of utterance 'u7' has no words"):
        count_errors("u7", reference, "hello")
