"""Reports from templates: text is escaped, every name is given, wheels have the files."""

import fnmatch
import pathlib
import tomllib

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.reports.demo_report import COST_HEADER
from experiments.reports.templating import environment, render
from lst_jax.evaluation.story_completion import Passage, StoryExample

ROOT = pathlib.Path(__file__).resolve().parents[3]
TEMPLATES = ROOT / "experiments" / "reports" / "templates"


def report(text, stories=()):
    """The demo's page with a text in every place that takes one."""
    return render(
        "demo_report.html",
        models=[{"name": text}],
        accuracies=[],
        accuracy=str,
        sizes={text: 3},
        stories=stories,
        speech=[{"title": text, "lines": [(text, text)], "clips": [{"wav": "a", "label": text}]}],
        clip_sounds={"a": b"RIFF"},
        spectrograms=text,
        cost_header=COST_HEADER,
        costs=[[text] * len(COST_HEADER)],
        sentences=[text],
        curves=text,
        losses=text,
        utterance=text,
        spoken=[{"wav": b"RIFF", "text": text}],
        corpus=[[text, text]],
    )


@given(st.text(min_size=1))
def test_text_is_never_markup(text):
    page = report(f"<script>&'\"{text}")
    assert "<script" not in page
    assert page.count("&lt;script&gt;&amp;&#39;&#34;") == 15 + len(COST_HEADER)


def test_a_story_is_shown_with_its_right_ending():
    endings = tuple(Passage(text, None) for text in ("wrong <b>", "right"))
    story = StoryExample("1", "set", "here", Passage("once", None), endings, 1)
    page = report("x", [story])
    assert "<li>wrong &lt;b&gt;</li><li class=right>right</li>" in page


def test_sound_is_in_the_page():
    assert report("x").count("src='data:audio/wav;base64,UklGRg=='") == 2


@pytest.mark.parametrize("path", sorted(TEMPLATES.rglob("*.*")), ids=lambda path: path.name)
def test_a_name_that_is_not_given_is_an_error(path):
    name = path.relative_to(TEMPLATES).as_posix()
    template = environment().get_template(name)
    if name in ("results/page.md", "tables.html"):  # the frame of others, and a macro of theirs
        return
    with pytest.raises(jinja2.UndefinedError):
        template.render()


def test_wheels_have_every_template():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["experiments"]
    for path in TEMPLATES.rglob("*.*"):
        name = path.relative_to(ROOT / "experiments").as_posix()
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
