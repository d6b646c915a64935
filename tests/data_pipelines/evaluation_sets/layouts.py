"""Tiny trees and files in the layouts of released evaluation sets."""

import csv
import json

import numpy as np

from data_pipelines.speech.audio import write_wav

RATE = 16_000
COLUMNS = {
    "lexical": "id,filename,voice,frequency,word,phones,length,correct",
    "syntactic": "id,filename,voice,type,subtype,transcription,length,correct",
}


def gold_rows(task, pairs, voices):
    """Rows of `gold.csv`, the right member of each pair first."""
    rows = []
    for number in range(pairs):
        for voice in voices:
            for correct in (1, 0):
                name = f"{task[0]}{number}{voice}{'xy'[correct]}"
                if task == "lexical":
                    about = (str(number * 7), "word" if correct else "", "W ER D", "4")
                else:
                    about = ("agreement", f"kind {number % 2}", "Ann, who sings, sits.", "4")
                rows.append([str(number), name, voice, *about, str(correct)])
    return rows


def write_gold(folder, task, rows):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gold.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS[task].split(","))
        writer.writerows(rows)


def write_sound(path, seed):
    noise = np.random.default_rng(seed).normal(0, 0.1, RATE // 2)
    write_wav(path, noise.astype(np.float32), RATE)


def write_zerospeech(root, pairs=2, voices=("A", "B"), split="dev", sound=True):
    """A tree of ZeroSpeech 2021 with recordings of noise, or with files of nothing."""
    for task in COLUMNS:
        rows = gold_rows(task, pairs, voices)
        write_gold(root / task / split, task, rows)
        for number, row in enumerate(rows):
            path = root / task / split / f"{row[1]}.wav"
            write_sound(path, number) if sound else path.touch()


def hellaswag(number, **changes):
    """A line of HellaSwag's validation file."""
    return {
        "ind": 24 + number,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": f"A man is sitting on roof {number}. he",
        "split": "val",
        "split_type": "indomain",
        "label": number % 4,
        "endings": ["is using wrap.", "is ripping tiles off.", "holds a cube.", "starts pulling."],
        "source_id": "activitynet~v_-JhWjGDPHMY",
        **changes,
    }


def write_hellaswag(path, count):
    path.write_text("".join(json.dumps(hellaswag(i)) + "\n" for i in range(count)))
    return path


STORY_HEADER = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding"
)


def write_storycloze(path, count=2):
    rows = [
        f'{i}-abc,Ann sat.,"Ann, of course, ran.",She fell.,She rose.,She left.,It rained.,'
        f"{1 + i % 2}"
        for i in range(count)
    ]
    path.write_text("\n".join([STORY_HEADER, *rows]) + "\n")
    return path
