"""The configuration files: sizes of the models, composition, and errors in one line."""

import dataclasses
import pathlib

import gin
import pytest

from experiments.common import gin_config
from experiments.common.gin_steps import read_config
from experiments.common.step_config import PRESETS, preset
from lst_jax.checkpoints.description import DataDescription, ModelDescription
from lst_jax.config import LSTConfig, TokenTransformerConfig, baseline_of
from lst_jax.model.models import count_parameters
from lst_jax.porting.published_config import published_differences
from lst_jax.vocabulary import Vocabulary
from tests.marks import quick

CONFIGS = pathlib.Path(gin_config.__file__).parents[1] / "configs"
DATA = ["TOKENIZER=t.model", "SPEECH_RECORDS=records/speech", "TEXT_RECORDS=records/text"]
ROWS = ["NUM_STEPS=3000", "BATCH_ROWS=8", "NUM_PATCHES=64", "NUM_TOKENS=96"]
LLAMA_SIZE = Vocabulary(32_000).size

LADDER = ("0_7m", "1_2m", "2_3m", "3_7m", "6_2m")

# Parameters of the LST and of its baseline, over the 32,508 ids of Llama 2's tokenizer.
PARAMETERS = {
    "tiny": (8_068_704, 13_811_520),
    "0_7m": (2_682_272, 4_694_848),
    "1_2m": (4_242_864, 7_238_688),
    "2_3m": (6_314_560, 10_241_408),
    "3_7m": (7_665_984, 19_857_664),
    "6_2m": (12_201_312, 17_796_288),
    "420m": (416_208_000, 408_321_280),
    "630m": (629_217_024, 609_529_344),
    "810m": (817_985_280, 779_417_088),
    "1b": (1_527_911_424, 1_417_762_816),
    "1_1b": (1_117_090_816, 1_058_072_576),
    "1_4b": (1_408_099_328, 1_314_994_176),
    "1_8b": (1_801_876_480, 1_674_684_416),
    "7b": (6_979_643_392, 6_337_810_432),
}


def load(*names, bindings=()):
    """The experiment of files under configs/."""
    gin_config.parse([f"experiments/configs/{name}.gin" for name in names], bindings)
    return gin_config.build_experiment()


@pytest.mark.parametrize("size", quick(PARAMETERS, "tiny", "1b"))
def test_every_model_file_has_its_parameter_count(size):
    files = (f"models/{size}", "data/speech_text", "runs/pretrain")
    model = load(*files, bindings=DATA).model(vocab_size=LLAMA_SIZE)
    baseline = load(*files, "runs/baseline", bindings=DATA).model(vocab_size=LLAMA_SIZE)
    assert (count_parameters(model), count_parameters(baseline)) == PARAMETERS[size]
    assert baseline == baseline_of(model)
    if size not in ("tiny", *LADDER):
        assert model.dim_local * model.latent_vectors_per_patch == model.dim_global
        assert model.dim_local // model.num_heads_local == 64
        assert model.dim_global // model.num_heads_global == 128
        assert (
            f"# {PARAMETERS[size][0]:,} parameters"
            in (CONFIGS / "models" / f"{size}.gin").read_text()
        )


def test_sizes_are_close_to_their_names():
    named = {"420m": 420e6, "630m": 630e6, "810m": 810e6, "1_1b": 1.1e9, "1_4b": 1.4e9}
    named |= {"1_8b": 1.8e9, "7b": 7e9}
    for size, count in named.items():
        assert PARAMETERS[size][0] == pytest.approx(count, rel=0.03)


def test_every_model_file_is_counted():
    files = {path.stem for path in (CONFIGS / "models").glob("*.gin")}
    assert files == {*PARAMETERS, "lst"}


def test_the_1b_model_has_the_paper_s_shape():
    model = load("models/1b", "data/speech_text", "runs/pretrain", bindings=DATA).model(
        vocab_size=LLAMA_SIZE
    )
    assert type(model) is LSTConfig
    assert (model.dim_local, model.dim_global, model.latent_vectors_per_patch) == (1024, 2048, 2)
    layers = (model.num_layers_encoder, model.num_layers_global, model.num_layers_decoder)
    assert layers == (1, 25, 9)
    assert (model.num_heads_local, model.num_heads_global) == (16, 16)


def test_the_pretraining_run_is_the_paper_s():
    run = load("models/1b", "data/speech_text", "runs/pretrain", bindings=DATA)
    optimizer = run.optimizer
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.95, 0.1)
    assert (optimizer.peak_learning_rate, optimizer.warmup_steps) == (4e-4, 2000)
    assert (optimizer.final_ratio, optimizer.clip_norm) == (0.01, 1.0)
    assert run.training.num_steps == 200_000
    assert run.data.batch_size * run.data.patches_per_row == 2**19
    assert run.data.speech_text_ratio == 0.5
    patching = run.data.patching
    assert (patching.strategy, patching.patch_size) == ("curriculum", 4)
    assert (patching.curriculum_start, patching.curriculum_end) == (66_667, 133_333)


def test_the_published_preset_is_what_the_published_implementation_computes():
    files = ("models/1b", "data/speech_text", "runs/pretrain")

    def differences(*names):
        run = load(*files, *names, bindings=DATA)
        model = run.model(vocab_size=LLAMA_SIZE)
        data = DataDescription(run.data.patching, run.data.visibility)
        description = ModelDescription(model, Vocabulary(32_000), None, data)
        return [difference.split()[0] for difference in published_differences(description)]

    assert differences("runs/published") == []
    ours = ["cross_residual", "document_cross_masking", "visibility", "join_speech_mode"]
    assert sorted(differences()) == sorted(ours)


@pytest.mark.parametrize("task", ["asr", "tts"])
@pytest.mark.parametrize("last", [(), ("runs/baseline",)])
def test_fine_tuning_starts_from_a_checkpoint_on_documents_of_its_task(task, last):
    files = ("models/1b", "data/speech", f"runs/{task}", *last)
    run = load(*files, bindings=[*DATA[:2], "INITIAL_CHECKPOINT=runs/1b"])
    assert (run.data.task, run.training.initial_checkpoint) == (task, "runs/1b")
    assert run.data.patching.strategy == ("none" if last else "static")
    with pytest.raises(ValueError, match=r"required and not set: .*INITIAL_CHECKPOINT=VALUE"):
        load(*files, bindings=DATA[:2])


def test_the_curriculum_follows_the_length_of_the_run():
    files = ("models/tiny", "data/speech_text", "runs/custom")
    patching = load(*files, bindings=[*DATA, *ROWS]).data.patching
    assert (patching.curriculum_start, patching.curriculum_end) == (1000, 2000)
    bindings = [*DATA, *ROWS, "CURRICULUM_START=5", "CURRICULUM_END=7"]
    patching = load(*files, bindings=bindings).data.patching
    assert (patching.curriculum_start, patching.curriculum_end) == (5, 7)


@pytest.mark.parametrize("data", ["speech", "text", "speech_text"])
@pytest.mark.parametrize("run", ["tiny", "demo", "custom", "pretrain"])
def test_data_and_run_files_go_with_every_other(data, run):
    needed = {"speech": DATA[:2], "text": [DATA[0], DATA[2]], "speech_text": DATA}[data]
    bindings = [*needed, *(ROWS if run == "custom" else [])]
    experiment = load("models/tiny", f"data/{data}", f"runs/{run}", bindings=bindings)
    assert {source.kind for source in experiment.data.sources} == set(data.split("_"))
    assert experiment.unit_count == 502


def test_the_baseline_has_as_many_units_a_row_and_every_token_is_one():
    files = ("models/tiny", "data/speech_text", "runs/custom")
    lst = load(*files, bindings=[*DATA, *ROWS])
    baseline = load(*files, "runs/baseline", bindings=[*DATA, *ROWS])
    assert type(baseline.model(vocab_size=100)) is TokenTransformerConfig
    assert baseline.data.patching.strategy == "none"
    assert baseline.data.patches_per_row == baseline.data.tokens_per_row
    assert baseline.data.patches_per_row == lst.data.patches_per_row
    assert (baseline.training, baseline.optimizer) == (lst.training, lst.optimizer)


@pytest.mark.parametrize("last", [(), ("runs/baseline",)])
def test_the_operative_config_repeats_the_run(tmp_path, last):
    run = load("models/tiny", "data/speech_text", "runs/tiny", *last, bindings=DATA)
    model = run.model(vocab_size=100)
    (tmp_path / "config.gin").write_text(gin.operative_config_str())
    gin_config.parse([str(tmp_path / "config.gin")])
    again = gin_config.build_experiment()
    assert again.model(vocab_size=100) == model
    fields = {field.name for field in dataclasses.fields(run)} - {"model"}
    assert all(getattr(again, name) == getattr(run, name) for name in fields)


@pytest.mark.parametrize(
    "text, value",
    [
        ("runs/a b.model", "runs/a b.model"),
        ("4k", "4k"),
        ("'quoted'", "quoted"),
        ("12", 12),
        ("1e-3", 1e-3),
        ("None", None),
        ("(1, 2)", (1, 2)),
        ("a=b", "a=b"),
        ("%SEED", 0),
    ],
)
def test_values_of_the_command_line_need_no_quotes(text, value):
    gin_config.parse(["experiments/configs/runs/tiny.gin"], [f"STRATEGY={text}"])
    found = gin.query_parameter("STRATEGY/gin.macro.value")
    assert (found if not text.startswith("%") else 0) == value


def test_bindings_become_flags():
    argv = ["train", "--gin.A=1", "--workdir=x", "--gin.B.c=d e", "--gin_file=f"]
    assert gin_config.rewrite_arguments(argv) == [
        "train",
        "--gin_binding=A=1",
        "--workdir=x",
        "--gin_binding=B.c=d e",
        "--gin_file=f",
    ]


@pytest.mark.parametrize(
    "files, bindings, message",
    [
        (["models/2b"], [], r"Gin file experiments/configs/models/2b\.gin: no such file"),
        (["models/tiny"], ["STEPS=3"], "--gin.STEPS: no Gin file has a macro of that name"),
        (["models/tiny"], ["LSTConfig.width=3"], "doesn't have a parameter named 'width'"),
        (["models/tiny"], ["Model.width=3"], "No configurable matching 'Model'"),
        (["models/tiny"], ["DTYPE"], "binding is 'DTYPE', expected NAME=VALUE"),
        (["models/tiny"], ["DTYPE="], "binding is 'DTYPE=', expected NAME=VALUE"),
        (["models/tiny"], [], "Experiment.tokenizer is not set, expected a model, a data and a"),
        (["data/speech"], ROWS[:1], "--gin.NUM_STEPS: no Gin file has a macro of that name"),
        (
            ["models/tiny", "data/text", "runs/custom"],
            DATA[::2],
            "required and not set: --gin.NUM_STEPS=VALUE, --gin.BATCH_ROWS=VALUE, --gin.NUM_PATC",
        ),
        (["models/tiny", "data/text", "runs/tiny"], [*DATA[::2], "NUM_STEPS=many"], "num_steps"),
        (["models/tiny", "data/text", "runs/tiny"], [*DATA[::2], "SEED=%NO"], "NO"),
        (["models/tiny", "data/text", "runs/tiny"], [*DATA[::2], "BATCH_ROWS=many"], "DataConfig"),
        (["models/tiny", "data/text", "runs/tiny"], [*DATA[::2], "STRATEGY=dynamic"], "strategy"),
    ],
)
def test_mistakes_are_errors_that_name_them(files, bindings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(*files, bindings=bindings)


@pytest.mark.parametrize(
    "binding, message",
    [
        *(
            (f"DOCUMENT_CROSS_MASKING={value}", f"LSTConfig.document_cross_masking is {shown}, ")
            for value, shown in [("false", "'false'"), ("no", "'no'"), ("7", "7"), ("0", "0")]
        ),
        (
            "JOIN_SPEECH_MODE=off",
            "PatchingConfig.join_speech_mode is 'off', expected True or False",
        ),
        ("PATCH_SIZE=2.5", "PatchingConfig.patch_size is 2.5, expected an integer, 1 … "),
        ("PATCH_SIZE=True", "PatchingConfig.patch_size is True, expected an integer"),
        ("WARMUP_STEPS=1.5", "OptimizerConfig.warmup_steps is 1.5, expected an integer, 0 … "),
        ("SEED=-1", "TrainingConfig.seed is -1, expected an integer, 0 … 4294967295"),
        ("DATA_SEED=-1", "DataConfig.seed is -1, expected an integer, 0 … "),
        ("LSTConfig.vocab_size=5", "LSTConfig.vocab_size is 5, expected no value: the tokenizer"),
        ("TokenTransformerConfig.vocab_size=%SEED", "TokenTransformerConfig.vocab_size is %SEED"),
        ("LSTConfig.norm_eps=-1", "LSTConfig.norm_eps is -1, expected a finite number, above 0"),
        ("LSTConfig.rope_theta=0", "LSTConfig.rope_theta is 0, expected a finite number, above 0"),
        ("NUM_STEPS=2.0", "num_steps is 2.0, expected an integer"),
        ("NUM_STEPS=1e3", "num_steps is 1000.0, expected an integer"),
        ("NUM_STEPS=abc", "num_steps is 'abc', expected an integer"),
        ("LOG_EVERY=2.0", "TrainingConfig.log_every is 2.0, expected an integer"),
        (
            "PEAK_LEARNING_RATE=nan",
            "OptimizerConfig.peak_learning_rate is 'nan', expected a finite",
        ),
        (
            "PEAK_LEARNING_RATE=1e999",
            "OptimizerConfig.peak_learning_rate is inf, expected a finite",
        ),
        ("curriculum_end/step_fraction.fraction=inf", "fraction is 'inf', expected a finite"),
        ("TOKENIZER=123", "Experiment.tokenizer is 123, expected a local path"),
        (
            "TEXT_RECORDS=1e3",
            "SourceConfig.path is 1000.0, expected a local path (one of digits alone as",
        ),
        (
            "INITIAL_CHECKPOINT=48213",
            "TrainingConfig.initial_checkpoint is 48213, expected None or a",
        ),
        ("VISIBILITY=all", "DataConfig.visibility is 'all', expected 'causal' or 'reference'"),
        ("REMAT=half", "LSTConfig.remat is 'half', expected 'none', 'dots' or 'full'"),
        ("ATTENTION=fast", "LSTConfig.attention is 'fast', expected 'auto', 'dense', "),
        ("MESH_FSDP=2.0", "MeshConfig.fsdp is 2.0, expected an integer"),
        ("UNIT_COUNT=100000000", "Experiment.unit_count is 100000000, expected an integer, 1 … 10"),
        ("BATCH_ROWS=1000000000000", "DataConfig.batch_size is 1000000000000, expected an integer"),
        ("DIM_LOCAL=10000000", "LSTConfig.dim_local is 10000000, expected an integer, 1 … 65536"),
        ("DIM_LOCAL=97", "LSTConfig.num_heads_local is 4, expected a divisor of dim_local = 97"),
        ("train.model=@PatchingConfig", "PatchingConfig.__init__() got an unexpected keyword"),
        ("train.model=@step_fraction", "step_fraction() got an unexpected keyword"),
        ("train.mesh=5", "Experiment.mesh is 5, expected MeshConfig"),
        ("DataConfig.sources=(1,)", "DataConfig.sources is (1,), expected a tuple, each item Sour"),
        (f"STRATEGY={'x' * 10**5}", f"PatchingConfig.strategy is '{'x' * 78}…, expected 'none', "),
    ],
)
def test_values_that_no_setting_may_have_are_refused_in_a_line_that_names_it(binding, message):
    with pytest.raises(ValueError) as error:
        load("models/tiny", "data/speech_text", "runs/tiny", bindings=[*DATA, binding])
    text = str(error.value)
    assert text.startswith(message)
    assert len(text) < 500 and len(text.splitlines()) == 1


def test_which_of_several_sources_is_wrong_is_told_by_its_scope():
    bindings = [*DATA, "TEXT_RECORDS=12"]
    with pytest.raises(ValueError, match=r" \(in text/SourceConfig\)$"):
        load("models/tiny", "data/speech_text", "runs/tiny", bindings=bindings)


def test_a_list_of_sources_is_taken_as_a_tuple():
    bindings = [*DATA, "DataConfig.sources=[@speech/SourceConfig()]"]
    run = load("models/tiny", "data/speech_text", "runs/tiny", bindings=bindings)
    assert [source.kind for source in run.data.sources] == ["speech"]
    assert type(run.data.sources) is tuple


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_a_fraction_of_a_run_is_between_none_and_all(fraction):
    with pytest.raises(ValueError, match=f"fraction is {fraction}"):
        gin_config.step_fraction(10, fraction)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_gin_files_of_their_names(name):
    run = ["experiments/configs/runs/tiny.gin"] if name == "tiny" else []
    files = [f"experiments/configs/models/{name}.gin", *run]
    config = preset(name, text_size=32_000)
    gin_step = read_config(files, [])
    assert config.model == gin_step.model and config.vocabulary == gin_step.vocabulary
    shapes = ("num_patches", "num_tokens", "num_rows")
    assert [getattr(config, x) for x in shapes] == [getattr(gin_step, x) for x in shapes]
    assert config.patching.patch_size == gin_step.patching.patch_size
    if name != "tiny":  # whose run is shorter
        assert config.optimizer == gin_step.optimizer
        assert config.training == gin_step.training
