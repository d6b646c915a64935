"""What a cell is measured by besides story completion is read from the binaries' own results."""

import json

import pytest

from experiments.studies.measures import KINDS, METRICS, Measure

NAMES = ("within", "between", "silhouette")


def similarities(*values):
    return {name: {"value": x, "interval": None} for name, x in zip(NAMES, values, strict=True)}


RESULTS = {
    "pairs": {
        "results": [
            {"set_name": "sWUGGY", "category": None, "accuracy": 0.7, "chance": 0.5},
            {"set_name": "sWUGGY", "category": "oov", "accuracy": 0.6, "chance": 0.5},
            {"set_name": "sBLIMP", "category": None, "accuracy": 0.6, "chance": 0.5},
        ]
    },
    "asr": {"results": [{"errors": {"wer": {"rate": 0.1}, "cer": {"rate": 0.2}}}]},
    "tts": {"results": [{"errors": {"wer": {"rate": 0.3}, "cer": {"rate": 0.4}}}]},
    "patches": {
        "embeddings": {"trained": {"layers": [similarities(0, 1, 2), similarities(9, 9, 9)]}},
        "gain_over": {"untrained": similarities(3, 4, 5)},
    },
}
METRICS_READ = {
    "pairs": {"pairs/sWUGGY": 0.7, "pairs/sBLIMP": 0.6},
    "asr": {"asr/wer": 0.1, "asr/cer": 0.2},
    "tts": {"tts/wer": 0.3, "tts/cer": 0.4},
    "patches": {
        **{"patches/within": 0, "patches/between": 1, "patches/silhouette": 2},
        **{"patches/within_gain": 3, "patches/between_gain": 4, "patches/silhouette_gain": 5},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_what_the_binary_has_written_where_it_was_told(tmp_path, kind):
    measure = Measure(kind, ("data",), ("--limit=3",))
    module, *flags = measure.command(tmp_path / "run", tmp_path)
    output = measure.output(tmp_path)
    assert flags[0] == f"--checkpoint={tmp_path / 'run'}"
    assert flags[1] == ("--records=data" if kind == "patches" else "--data=data")
    assert flags[2:] == ["--limit=3", f"--output={output}"]
    assert module.startswith("experiments.") and module.count(".") == 1
    if kind == "patches":
        output.mkdir()
        output /= "analysis.json"
    output.write_text(json.dumps(RESULTS[kind]))
    values, chances = measure.read(tmp_path)
    assert values == METRICS_READ[kind]
    assert chances == ({"pairs/sWUGGY": 0.5, "pairs/sBLIMP": 0.5} if kind == "pairs" else {})
    if kind in METRICS:
        assert {f"{kind}/{name}" for name in METRICS[kind]} == set(values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("words", ("x",)), "Measure.kind"),
        (("pairs", ()), "one file or more"),
        (("patches", ("a", "b")), "one pattern"),
        (("asr", ("gs://a",)), "local path"),
        (("asr", ("a",), ("limit=3",)), "--NAME=VALUE"),
    ],
)
def test_what_is_no_measure_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Measure(*settings)


def test_a_metric_that_no_binary_gives_is_refused():
    with pytest.raises(ValueError, match="one of asr/wer, asr/cer"):
        Measure("asr", ("a",)).check_metric("accuracy")
