"""What is counted of recordings that are heard again."""

from experiments.benchmarks.voice_recordings import count_same
from experiments.reports.speed_results import voices_page

TRAINING = {"parameters": 720_000, "steps": 1500, "seconds": 600.0}
KEPT = {
    **{"command": "run it", "unit_count": 100, "learned_seconds": 20.2, "training": TRAINING},
    **{"cores": 2, "device": "processor", "recognizer": "pocketsphinx"},
}


def test_words_count_where_they_are_heard_in_order():
    assert count_same("He was not, he SAID.", "he was said") == 3
    assert count_same("one two three", "three two one") == 1
    assert count_same("one", "") == count_same("", "one") == 0


def test_the_page_says_in_how_many_recordings_a_voice_is_heard_as_well_as_griffin_lims():
    same = {"original": (9, 9, 9), "mel": (4, 5, 6), "hifigan": (5, 4, 6)}
    results = [
        {
            "units": "fitted, learned" if i < 2 else "fitted, not learned",
            **{"voice": voice, "words": 10, "right": count, "same": count, "mel_distance": 0.25},
        }
        for voice, counts in same.items()
        for i, count in enumerate(counts)
    ]
    page = voices_page(None, None, {**KEPT, "results": results})
    assert "| fitted, learned | hifigan | 2 | 20 | 9 | 9 | 1 | 0.250 |" in page
    assert "| fitted, not learned | hifigan | 1 | 10 | 6 | 6 | 1 | 0.250 |" in page
    assert "720,000 parameters" in page and "Nothing was measured" not in page
