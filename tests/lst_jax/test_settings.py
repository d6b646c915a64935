"""The validator of settings: what each declared type takes, and the one line that refuses."""

import copy
import dataclasses
import functools
import inspect
import pathlib
import pickle
import re
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lst_jax
from data_pipelines.microworld.build import MicroworldConfig
from data_pipelines.microworld.speech import Voice
from data_pipelines.records.storage import RecordMetadata, Shard, Totals
from data_pipelines.speech.ctc_examples import CTCDataConfig
from data_pipelines.speech.hubert_encoder import EncoderOptions
from data_pipelines.speech.unit_sets import read_unit_set
from data_pipelines.speech.units import MelFeatures
from data_pipelines.speech.vocoder_examples import VocoderDataConfig
from data_pipelines.training.dataset import DataConfig, SourceConfig
from data_pipelines.training.packing import PackingConfig
from experiments.common.ctc_experiment import CTCExperiment
from experiments.common.evaluators import EvaluationConfig
from experiments.common.experiment import Experiment
from experiments.common.step_config import StepConfig
from experiments.common.vocoder_experiment import VocoderExperiment
from experiments.demonstration.run_lengths import DemoPlan
from experiments.inspection.loss_runs import RunSettings
from experiments.inspection.word_patches import SampleConfig
from experiments.studies.measures import Measure
from experiments.studies.study_config import Arm, Comparison, Study, StudyData
from lst_jax import config as config_module
from lst_jax import settings as settings_module
from lst_jax.checkpoints.description import (
    DataDescription,
    GlobalTransformerOptions,
    ModelDescription,
)
from lst_jax.config import LSTConfig, TokenTransformerConfig
from lst_jax.inference.generation import GenerationLimits
from lst_jax.inference.sampling import SamplingConfig
from lst_jax.inference.scoring import ScoringShape
from lst_jax.local_paths import PathText
from lst_jax.model.attention import BACKENDS
from lst_jax.model.layers import REMAT_POLICIES
from lst_jax.patching import PatchingConfig
from lst_jax.settings import (
    Bounds,
    Fraction,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Width,
    configuration,
    describe_type,
    list_names,
    quote,
    require,
    validate_fields,
    validate_value,
)
from lst_jax.sharding import MeshConfig
from lst_jax.speech.discriminators import DiscriminatorConfig
from lst_jax.speech.hifigan_config import DurationPredictorConfig, HiFiGANConfig
from lst_jax.speech.plausibility import PlausibilityConfig
from lst_jax.speech.wav2vec2_config import Wav2Vec2Config
from lst_jax.training.optimizers import OptimizerConfig
from lst_jax.training.step import TrainingConfig
from lst_jax.training.vocoder_task import VocoderLossConfig
from lst_jax.unit_encoding import UnitEncoding, _UnitVocabularyFile
from lst_jax.vocabulary import Vocabulary


@configuration
class Inner:
    width: Width
    share: Fraction = 0.5


@configuration
class Outer:
    inners: tuple[Inner, ...]
    main: Inner | None = None
    sole: Inner = Inner(2)
    count: PositiveInt = 3
    maybe: NaturalInt | None = None
    rate: PositiveFloat = 1.0
    on: bool = False
    mode: Literal["fast", "slow"] | None = None
    path: PathText = "here"
    make: Callable[..., Inner] = Inner
    shape: tuple[int, str] = (1, "a")
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def __post_init__(self):
        require(self.count < 100, "Outer.count", self.count, "less than 100")


INNERS = (Inner(4), Inner(8))

# What no field of the kind may hold.
NUMBERS_THAT_ARE_NOT = [True, False, "1", "nan", b"1", None, [1], {}, 1j, np.bool_(True)]
NOT_WHOLE = [*NUMBERS_THAT_ARE_NOT, 2.0, 2.5, float("nan"), np.float64(2), np.float32(2.5)]
NOT_WHOLE += [np.array(2), np.timedelta64(2, "s")]
NOT_FINITE = [*NUMBERS_THAT_ARE_NOT, float("nan"), float("inf"), -float("inf"), 10**400]
NOT_FINITE += [np.float32("nan"), np.float64("inf")]
WRONG = {
    "inners": [None, 5, "ab", [{"width": 4}], {"width": 4}, INNERS[0], [None], set(INNERS)],
    "main": [{"width": 4}, "main", 5, [INNERS[0]]],
    "sole": [None, {"width": 4}, [INNERS[0]], Inner],
    "count": [*NOT_WHOLE, 0, -1, 2**31, 10**30, -(10**5000)],
    "maybe": [*(value for value in NOT_WHOLE if value is not None), -1, 2**31],
    "rate": [*NOT_FINITE, 0, 0.0, -1e-9],
    "on": ["false", "no", "off", "", "abc", 0, 1, 7, 0.0, None, [], np.int32(1)],
    "mode": ["", "Fast", "fast ", 1, [], ["fast"], b"fast", True],
    "path": [123, "", b"here", None, ["here"], "a\0b", 1.5, True],
    "make": [None, "Inner", 5],
    "shape": [(1,), (1, "a", 2), [1.0, "a"], (True, "a"), 5, "1a"],
    "extra": [None, [], "a", {1: 2}],
}
RIGHT = {
    "inners": [(), INNERS, list(INNERS)],
    "main": [None, INNERS[0]],
    "sole": [INNERS[1]],
    "count": [1, 99, np.int8(5), np.uint64(99), np.int64(7)],
    "maybe": [None, 0, 2**31 - 1, np.int32(0)],
    "rate": [1e-300, 2.5, 3, np.float32(0.5), np.float64(7), np.int32(2)],
    "on": [True, False, np.bool_(True)],
    "mode": [None, "fast", "slow", np.str_("fast")],
    "path": ["a", "./123", "a b\n", "./~", "été"],
    "make": [Inner, lambda **settings: Inner(1)],
    "shape": [(1, "a"), [2, "b"], (np.int32(3), "c")],
    "extra": [{}, {"a": [1, None, 2.5]}],
}


def refusal(call, *args, **kwargs):
    """The message of a refusal, which is one line of bounded length."""
    with pytest.raises(ValueError) as error:
        call(*args, **kwargs)
    assert type(error.value) is ValueError  # Gin builds subclasses of it
    message = str(error.value)
    assert len(message) < 500 and len(message.splitlines()) == 1 and message.isprintable()
    return message


@pytest.mark.parametrize("name", WRONG)
def test_a_value_of_another_kind_is_refused_in_a_line_that_names_it(name):
    for value in WRONG[name]:
        message = refusal(Outer, **{"inners": (), name: value})
        assert message.startswith(f"Outer.{name} is {quote(value)}, expected ")


@pytest.mark.parametrize("name", RIGHT)
def test_a_value_of_the_declared_kind_is_taken_as_python_s(name):
    for value in RIGHT[name]:
        held = getattr(Outer(**{"inners": (), name: value}), name)
        assert held == (tuple(value) if isinstance(value, list) else value)
        assert not isinstance(held, np.generic | list)
    assert type(Outer((), rate=3).rate) is float


def test_every_field_is_tried():
    names = {field.name for field in dataclasses.fields(Outer)}
    assert set(WRONG) == set(RIGHT) == names


def test_checks_across_fields_see_checked_fields_and_speak_in_the_same_format():
    assert refusal(Outer, (), count=100) == "Outer.count is 100, expected less than 100"
    assert refusal(Outer, (), count="many").endswith("expected an integer, 1 … 2147483647")


def test_a_configuration_is_a_plain_frozen_dataclass():
    config = Outer(INNERS, INNERS[0], rate=2)
    assert config == Outer(list(INNERS), INNERS[0], rate=2.0)
    assert hash(config) == hash(Outer(INNERS, INNERS[0], rate=2.0))
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert dataclasses.replace(config, count=4).count == 4
    assert refusal(dataclasses.replace, config, count=4.0).startswith("Outer.count is 4.0")
    assert dataclasses.asdict(config)["inners"] == (
        dataclasses.asdict(Inner(4)),
        {"width": 8, "share": 0.5},
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.count = 5
    for arguments in ({}, {"inners": (), "depth": 3}):
        with pytest.raises(TypeError):
            Outer(**arguments)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    name=st.sampled_from([field.name for field in dataclasses.fields(Outer)]),
    value=JSON,
)
def test_any_json_value_is_taken_or_refused_in_one_line(name, value):
    try:
        config = validate_fields(Outer, {"inners": [], name: value}, "file.json")
    except ValueError:
        message = refusal(validate_fields, Outer, {"inners": [], name: value}, "file.json")
        assert message.startswith("file.json: ")
    else:
        assert Outer(**vars(config)) == config


def test_a_configuration_is_read_from_json_values():
    values = {"inners": [{"width": 4}, {"width": 8, "share": 1}], "main": {"width": 1}}
    values |= {"shape": [2, "b"], "extra": {"a": {"width": 3}}}
    expected = Outer((Inner(4), Inner(8, 1.0)), Inner(1), shape=(2, "b"))
    config = validate_fields(Outer, values, "file.json")
    assert config == expected and config.extra == {"a": {"width": 3}}
    assert validate_fields(Outer, {"inners": INNERS}, "file.json") == Outer(INNERS)


@pytest.mark.parametrize(
    "values, message",
    [
        ([], "f.json: Outer is [], expected an object"),
        (None, "f.json: Outer is None, expected an object"),
        ({}, "f.json: Outer is without inners"),
        ({"inners": [{}]}, "f.json: Inner is without width"),
        (
            {"inners": [{"width": "4"}]},
            "f.json: Inner.width is '4', expected an integer, 1 … 65536",
        ),
        ({"inners": [3]}, "f.json: Outer.inners is (3,), expected a tuple, each item Inner"),
        ({"inners": [], "count": 100}, "f.json: Outer.count is 100, expected less than 100"),
        (
            {"inners": [], "main": {"width": 1, "depth": 2}},
            "f.json: Inner has no depth, expected wi",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(values, message):
    assert refusal(validate_fields, Outer, values, "f.json").startswith(message)


def test_unknown_names_may_be_left_out_and_are_never_listed_without_end():
    unknown = {f"name{number}\n" * 50: number for number in range(1000)}
    message = refusal(validate_fields, Inner, {"width": 1, **unknown}, "f.json")
    assert message.startswith("f.json: Inner has no name0") and " more, expected width" in message
    values = {"width": 1, **unknown}
    assert validate_fields(Inner, values, "f.json", ignore_unknown=True) == Inner(1)
    assert list_names(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_values_are_quoted_in_a_line_of_80_characters():
    nested = []
    nested.append(nested)
    for _ in range(100_000):
        nested = [nested]
    for value in ("a\n" * 10**6, b"\n" * 10**6, np.zeros((9, 9)), 10**5000, nested, ["\n"] * 99):
        assert len(quote(value)) <= 80 and quote(value).isprintable()
    assert quote("a\nb") == r"'a\nb'" and quote(2.50) == "2.5"


def test_a_single_value_is_checked_like_a_field():
    assert validate_value(PositiveInt, np.int16(3), "steps") == 3
    message = refusal(validate_value, PositiveInt, "3", "steps")
    assert message == "steps is '3', expected an integer, 1 … 2147483647"
    assert describe_type(PositiveFloat) == "a finite number, above 0"
    assert describe_type(Literal["a", "b"] | None) == "None, 'a' or 'b'"


@pytest.mark.slow
@pytest.mark.multiprocess
def test_without_pydantic_only_checks_across_fields_are_left():
    code = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from tests.lst_jax.test_settings import Inner, Outer, refusal, validate_fields\n"
        "assert Outer([Inner('4')], rate=-1).inners == (Inner('4'),)\n"
        "assert refusal(Outer, (), count=100) == 'Outer.count is 100, expected less than 100'\n"
        "read = validate_fields(Outer, {'inners': [{'width': 4}]}, 'f.json')\n"
        "assert read == Outer((Inner(4),)) and hash(read) == hash(Outer((Inner(4),)))\n"
        "assert refusal(validate_fields, Outer, {}, 'f') == 'f: Outer is without inners'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


PATCHING = PatchingConfig("static", curriculum_end=3)
SOURCE = SourceConfig("records", "speech")
MODEL = LSTConfig(10, 8, 16, 1, 1, 1, 2, 2)
DATA = DataConfig((SOURCE,), 4, 64, 96, patching=PATCHING)
STUDY_DATA, ARMS = StudyData((), ()), (Arm("a"), Arm("b"))
COMPARISON = Comparison("a", "b", "mean/S-S")
# One of every class that is decorated in the three packages.
CONFIGURATIONS = [
    *(PATCHING, SOURCE, MODEL, DATA, Vocabulary(10), MeshConfig(), OptimizerConfig()),
    *(TokenTransformerConfig(10, 16, 1, 2), TrainingConfig(5), SamplingConfig()),
    *(GenerationLimits(), ScoringShape(), PackingConfig(64, 96), MicroworldConfig()),
    *(Voice("gmw/en-US", "", 260, 50), MelFeatures(), EncoderOptions(6)),
    Experiment(LSTConfig, "t.model", DATA, TrainingConfig(5)),
    StepConfig(MODEL, Vocabulary(10), OptimizerConfig(), TrainingConfig(5), PATCHING, 64, 96, 8),
    *(Totals(3), Shard("a", 3, 5), EvaluationConfig(5), RunSettings()),
    RecordMetadata("speech", "0" * 64, 30, 20, Totals(3), (Shard("a", 3, 5),)),
    *(Wav2Vec2Config(), UnitEncoding(), _UnitVocabularyFile(9, UnitEncoding())),
    *(GlobalTransformerOptions(), DataDescription(PATCHING)),
    ModelDescription(LSTConfig(518, 8, 16, 1, 1, 1, 2, 2), Vocabulary(10), "0" * 64),
    *(DemoPlan(20.0, 20, 1.0, 1.0, 1e9, 1e9), STUDY_DATA, ARMS[0], COMPARISON, SampleConfig()),
    Measure("asr", ("a",)),
    Study("a", STUDY_DATA, (), ARMS, (5.0,), COMPARISON),
    read_unit_set("mhubert-base-25hz"),
    *(HiFiGANConfig(), DurationPredictorConfig(), DiscriminatorConfig()),
    *(VocoderLossConfig(), VocoderDataConfig()),
    VocoderExperiment(TrainingConfig(5), HiFiGANConfig(), encoder="mel:e.npz"),
    *(PlausibilityConfig(), CTCDataConfig(), CTCExperiment(TrainingConfig(5), Wav2Vec2Config())),
]
FIELDS = [(config, f.name) for config in CONFIGURATIONS for f in dataclasses.fields(config)]
FIELD_IDS = [f"{type(config).__name__}.{name}" for config, name in FIELDS]

BY_KIND = {
    bool: [True, False, np.bool_(False)],
    int: [1, np.int64(1)],
    float: [2.0, 2.5, np.float32(2)],
    str: ["false", "2", ""],
    type(None): [None],
    tuple: [(), (1,), [2]],
}
NEVER = [float("nan"), float("inf"), np.float64("nan"), 1j, b"2", {"a": 1}, {1}, object, 10**4000]


def kinds_of(hint):
    """The kinds of `BY_KIND` that a declared type may take something of."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return kinds_of(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(kinds_of, arguments))
    if origin is Literal:
        return {type(choice) for choice in arguments}
    return {int, float} if hint is float else {origin or hint}


def bounds_of(hint):
    """Values one step outside of the bounds of a declared number."""
    arguments = typing.get_args(hint)
    outside = [
        value for part in arguments if not isinstance(part, str) for value in bounds_of(part)
    ]
    for bounds in arguments[1:] if typing.get_origin(hint) is typing.Annotated else ():
        if isinstance(bounds, Bounds):
            step = 1 if arguments[0] is int else 1e-6
            outside += [] if bounds.least is None else [bounds.least - step]
            outside += [] if bounds.most is None else [bounds.most + step]
            outside += [edge for edge in (bounds.above, bounds.below) if edge is not None]
    return outside


def test_every_configuration_is_tried():
    root = pathlib.Path(lst_jax.__file__).parent.parent
    decorated = [
        name
        for package in ("lst_jax", "data_pipelines", "experiments")
        for file in (root / package).rglob("*.py")
        for name in re.findall(r"^@configuration\nclass (\w+)", file.read_text(), re.MULTILINE)
    ]
    assert sorted(decorated) == sorted(type(config).__name__ for config in CONFIGURATIONS)


@pytest.mark.parametrize(("config", "name"), FIELDS, ids=FIELD_IDS)
def test_no_field_of_any_configuration_takes_another_kind(config, name):
    hint = typing.get_type_hints(type(config), include_extras=True)[name]
    kinds = kinds_of(hint)
    wrong = [value for kind in BY_KIND if kind not in kinds for value in BY_KIND[kind]]
    never = [value for value in NEVER if value is not object or Callable not in kinds]
    if typing.get_origin(hint) is Literal or Literal in map(
        typing.get_origin, typing.get_args(hint)
    ):
        wrong += ["no such choice", ""]
    for value in [*wrong, *never, *bounds_of(hint)]:
        message = refusal(dataclasses.replace, config, **{name: value})
        named = f"{type(config).__name__}.{name} is {quote(value)}, expected {describe_type(hint)}"
        assert message == named


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=lambda config: type(config).__name__)
def test_every_configuration_is_copied_hashed_and_sent_to_other_processes(config):
    copied = dataclasses.replace(config)
    assert copied == config and hash(copied) == hash(config) and copied is not config
    assert pickle.loads(pickle.dumps(config)) == config
    assert {field.name for field in dataclasses.fields(config)} == set(dataclasses.asdict(config))


# Values of the right kind, of which some do not go together with a configuration's others.
PLAUSIBLE = [
    *(None, False, True, -1, 1, 2, 7, 64, 1000, 0.5, 1.0, 1.5, 1000.0),
    *("", "a", "a b", "none", "aligned", "wsd", "asr", "SEED=3", "--a=b", "hubert", "a/b"),
    *((), (1,), (2, 2), (3, 7, 3, 1), ("a",), ("a", "a"), ("SEED=3",), ((1,),), ((1, 3), (2,))),
    *((5.0, 5.0), (3.0, 1.0), (ARMS[0],), ARMS * 2, (ARMS[0], Arm("b", same_flops_as="c"))),
    *((COMPARISON,), (Comparison("a", "c", "mean/S-S"),), (SourceConfig("t", "text"),)),
    *(Totals(5), Vocabulary(11), DurationPredictorConfig(64)),
]


@functools.cache
def classes_of(hint):
    """The configurations that a declared type may hold, and those that these may hold."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True).values()
        return {hint}.union(*map(classes_of, hints))
    return set().union(*map(classes_of, typing.get_args(hint)))


def check_named(message, cls):
    """A refusal begins with the class, the configuration's or a part's, and a field of it."""
    found = re.match(r"(\w+)\.(\w+)[. ].*, expected ", message)
    fields = {part.__name__: [x.name for x in dataclasses.fields(part)] for part in classes_of(cls)}
    assert found and found[2] in fields.get(found[1], ()), message


@pytest.mark.parametrize("config", CONFIGURATIONS, ids=lambda config: type(config).__name__)
def test_what_is_checked_across_fields_is_named_by_class_and_field(config):
    across = 0
    for field in dataclasses.fields(config):
        for value in PLAUSIBLE:
            try:
                dataclasses.replace(config, **{field.name: value})
            except ValueError as error:
                check_named(str(error), type(config))
                hint = typing.get_type_hints(type(config), include_extras=True)[field.name]
                across += not str(error).endswith(f", expected {describe_type(hint)}")
    assert (across > 0) == ("def __post_init__" in inspect.getsource(type(config)))


@given(st.sampled_from(FIELDS), JSON)
def test_any_json_value_of_any_field_is_taken_or_refused_in_one_line(field, value):
    config, name = field
    try:
        changed = dataclasses.replace(config, **{name: value})
    except ValueError:
        check_named(refusal(dataclasses.replace, config, **{name: value}), type(config))
    else:
        held = getattr(changed, name)
        assert held == (tuple(value) if isinstance(value, list) else value)
        assert isinstance(held, bool) == isinstance(value, bool)


def test_names_of_choices_are_those_of_the_code_that_they_choose():
    assert set(typing.get_args(config_module.Remat)) == set(REMAT_POLICIES)
    assert set(typing.get_args(config_module.AttentionBackend)) == set(BACKENDS)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Vocabulary(10, bos_id=10), "Vocabulary.bos_id is 10, expected an id, 0 … 9"),
        (lambda: Vocabulary(10, eos_id=10), "Vocabulary.eos_id is 10, expected an id, 0 … 9"),
        (lambda: Vocabulary(10, 2, 2), "Vocabulary.eos_id is 2, expected another id than bos_id"),
        (lambda: MeshConfig(0), "MeshConfig.data is 0, expected a positive number of devices"),
        (lambda: MeshConfig(-1, -1), "MeshConfig.fsdp is -1, expected a number of"),
        (lambda: PatchingConfig(curriculum_start=1), "PatchingConfig.curriculum_start is 1, exp"),
        (lambda: dataclasses.replace(MODEL, num_heads_local=8), "LSTConfig.num_heads_local is 8"),
        (lambda: dataclasses.replace(MODEL, num_heads_cross=3), "LSTConfig.num_heads_cross is 3"),
        (lambda: dataclasses.replace(DATA, sources=[]), "DataConfig.sources is ()"),
        (
            lambda: dataclasses.replace(DATA, batch_size=2**15, tokens_per_row=2**14),
            "DataConfig.batch_size is 32768, expected at most 16384 rows of 16384 tokens",
        ),
        (
            lambda: dataclasses.replace(DATA, task="asr", sources=[SourceConfig("t", "text")]),
            "DataConfig.sources is (SourceConfig(path='t', kind='text', weight=1.0),), expected ",
        ),
        (lambda: MicroworldConfig(unit_clusters=503), "MicroworldConfig.unit_clusters is 503"),
        (lambda: MelFeatures(min_hz=9000), "MelFeatures.min_hz is 9000.0, expected less than max"),
    ],
)
def test_fields_that_do_not_go_together_are_named(make, message):
    assert refusal(make).startswith(message)


# Smallest and largest number of each type; of floats "above" and "below" are left out.
EDGES = {
    "PositiveInt": (1, 2_147_483_647),
    "NaturalInt": (0, 2_147_483_647),
    "Width": (1, 65_536),
    "Depth": (1, 1024),
    "UnrolledDepth": (1, 128),
    "TextSize": (2, 2_097_152),
    "UnitCount": (1, 1_048_576),
    "VocabularySize": (1, 4_194_304),
    "BatchRows": (1, 65_536),
    "RowSlots": (1, 16_777_216),
    "Workers": (0, 1024),
    "Seed32": (0, 4_294_967_295),
    "Seed64": (0, 18_446_744_073_709_551_615),
    "PositiveFloat": (5e-324, None),
    "NaturalFloat": (0.0, None),
    "Fraction": (0.0, 1.0),
}


def test_the_table_of_edges_has_every_type_with_bounds():
    annotated = {
        name
        for name, value in vars(settings_module).items()
        if any(isinstance(x, Bounds) for x in getattr(value, "__metadata__", ()))
    }
    assert EDGES.keys() == annotated


@pytest.mark.parametrize("name", EDGES)
def test_numbers_are_taken_up_to_the_edges_of_their_type_and_no_further(name):
    declared = getattr(settings_module, name)
    for edge, further in zip(EDGES[name], (-1, 1), strict=True):
        if edge is None:
            assert validate_value(declared, 1e300, "x") == 1e300
            continue
        assert validate_value(declared, edge, "x") == edge
        outside = edge + further if isinstance(edge, int) else np.nextafter(edge, further * np.inf)
        outside = type(edge)(outside)
        with pytest.raises(ValueError, match=r"^x is .*, expected "):
            validate_value(declared, outside, "x")
