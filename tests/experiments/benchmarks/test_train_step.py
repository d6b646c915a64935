"""The benchmark of the training step: its parts are the step's, and it reports what it should."""

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest

from experiments.benchmarks import step_timing, train_step
from experiments.benchmarks.step_parts import backpropagate, make_update, model_parts
from experiments.common.gin_steps import read_config
from lst_jax.batch import batch_arrays
from lst_jax.checkpoints.train_state import TrainState, state_shardings
from lst_jax.hardware import PeakRate
from lst_jax.model.flops import training_flops
from lst_jax.model.models import abstract_params
from lst_jax.sharding import MeshConfig, make_mesh, mesh_context, shard_batch
from lst_jax.training.optimizers import make_optimizer
from lst_jax.training.step import make_train_step
from tests.binaries import run_binary

pytestmark = pytest.mark.slow

TINY = "experiments/configs/models/tiny.gin"
RUN = "experiments/configs/runs/tiny.gin"
BASELINE = "experiments/configs/runs/baseline.gin"
# No clipping, so that Adam's mean is a share of the gradient.
SMALL = (
    *("DIM_LOCAL=32", "DIM_GLOBAL=64", "NUM_LAYERS_GLOBAL=2", "NUM_LAYERS_DECODER=1"),
    *("NUM_PATCHES=64", "NUM_TOKENS=96", "OptimizerConfig.clip_norm=1e9"),
)
FILES = {"lst": (TINY, RUN), "baseline": (TINY, RUN, BASELINE)}
PARTS = {
    "lst": ["encoder", "global", "decoder", "loss", "optimizer"],
    "baseline": ["transformer", "loss", "optimizer"],
}
MESHES = {"lst": (1, 1, 1), "baseline": (1, 2, 2)}
ROWS = {"lst": 1, "baseline": 2}
PEAK = PeakRate(1e12, "made up")
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nMore"


def make_config(name):
    return read_config(FILES[name], SMALL, text_size=300, attention="dense")


def small_mesh(name):
    sizes = MESHES[name]
    return make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    """Tests of this file compile the same few programs, and begin with states made on the host.

    Programs are shared within the process: those of several CPU devices that come from JAX's
    persistent cache may wait forever for each other's collectives.
    """
    programs = {}

    def compile_once(function, *arguments):
        lowered = function.lower(*arguments)
        text = lowered.as_text()
        if text not in programs:
            programs[text] = lowered.compile({"xla_backend_optimization_level": 0})
        return programs[text]

    def random_state(config, optimizer, seed, mesh):
        rng = np.random.default_rng(seed)
        shapes, shardings = state_shardings(config, optimizer, mesh)
        params = jax.tree.map(
            lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes.params
        )
        opt_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.opt_state)
        return jax.device_put(TrainState(np.int32(0), params, opt_state), shardings)

    make_batches = step_timing.make_batches

    def make_uneven_batches(config, rows):
        """So short rows would all be as full."""
        batches = make_batches(config, rows)
        for number, batch in enumerate(batches):
            padding = np.arange(config.num_tokens) >= config.num_tokens - 7 * number
            for name, value in (("document_ids", 0), ("loss_weights", 0), ("visible_patch", -1)):
                getattr(batch, name)[:, padding] = value
            batch.patch_ids[:, padding] = config.num_patches
        return batches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_timing, "make_batches", make_uneven_batches)
        patch.setattr(step_timing, "compile_for", compile_once)
        patch.setattr(step_timing, "init_state", random_state)
        yield


@functools.cache
def measured(name):
    """All that is yielded for one setting, a row a device."""
    config, mesh = make_config(name), small_mesh(name)
    return list(step_timing.measure_all(config, mesh, [1], ["none"], 2, True, PEAK))


def test_the_parts_have_every_parameter_once():
    for name in FILES:
        config = make_config(name).model
        names = [entry for part in model_parts(config) for entry in part.params]
        assert sorted(names) == sorted(abstract_params(config))


@pytest.mark.parametrize("name", FILES)
def test_the_parts_give_the_loss_the_gradient_and_the_update_of_the_step(name):
    config, mesh = make_config(name), small_mesh(name)
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    shardings = state_shardings(config.model, optimizer, mesh)[1]
    step = make_train_step(
        config.model,
        config.optimizer,
        config.training,
        config.vocabulary.first_unit_id,
        mesh,
    )
    state = step_timing.init_state(config.model, optimizer, 0, mesh)
    order = []

    def run(part, function, arguments):
        order.append(part.name)
        return jax.block_until_ready(function(*arguments))

    with mesh_context(mesh):
        batch = shard_batch(step_timing.make_batches(config, ROWS[name])[0], mesh)
        loss, gradients = backpropagate(
            config.model,
            state.params,
            shardings.params,
            batch,
            mesh,
            step_timing.compile_for,
            run,
        )
        start = jax.device_get((state.params, state.opt_state))
        state, sums = step_timing.compile_for(step, state, batch)(state, batch)
        arguments = jax.device_put(start, (shardings.params, shardings.opt_state))
        update = step_timing.compile_for(make_update(optimizer, shardings), *arguments, gradients)
        params = update(*arguments, gradients)[0]
    assert order == PARTS[name][-2::-1]
    weight = sums["text_weight"] + sums["speech_weight"]
    np.testing.assert_allclose(loss, (sums["text_nll"] + sums["speech_nll"]) / weight, rtol=1e-6)
    means = state.opt_state[1][0].mu
    scale = float(sums["gradient_norm"]) / sum(x.size for x in jax.tree.leaves(means)) ** 0.5

    def check(mean, gradient):
        expected = np.asarray(mean) / (1 - config.optimizer.beta1)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4 * scale)

    jax.tree.map(check, means, gradients)
    rate = float(sums["learning_rate"])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-2 * rate), state.params, params
    )


@pytest.mark.parametrize("name", FILES)
def test_every_figure_is_finite_and_positive(name):
    first, second = measured(name)
    assert second == first | {"breakdown": second["breakdown"]}
    result = json.loads(json.dumps(second))
    assert (result["remat"], result["rows_per_device"]) == ("none", 1)
    assert result["rows"] == ROWS[name]
    figures = [value for key, value in result.items() if key.endswith(("second", "_step"))]
    figures += [result["mfu"], result["loss"], result["memory"]["planned_peak"]]
    spreads = [result["step"], *result["breakdown"]["parts"]]
    for spread in spreads:
        low, high = spread["quartiles_ms"]
        assert min(spread["times_ms"]) - 1e-3 <= low <= spread["median_ms"] <= high
        figures += [spread["median_ms"], *spread["times_ms"]]
        assert len(spread["times_ms"]) == 2
    figures += [part["share"] for part in result["breakdown"]["parts"]]
    figures += [part["mfu"] for part in result["breakdown"]["parts"][:-1]]
    assert all(math.isfinite(x) and x > 0 for x in figures)
    assert len(figures) > 20


def used_patches(batch):
    rows = zip(batch.patch_ids, batch.document_ids, strict=True)
    return sum(len(np.unique(patches[documents > 0])) for patches, documents in rows)


@pytest.mark.parametrize("name", FILES)
def test_rates_and_shares_follow_from_times(name):
    result = measured(name)[-1]
    config = make_config(name)
    seconds = result["step"]["median_ms"] / 1e3
    batches = step_timing.make_batches(config, ROWS[name])
    # Two steps of warm-up, and two that are timed.
    assert result["patches_per_step"] == np.mean([used_patches(x) for x in batches[2:]])
    assert result["patches_per_second"] == pytest.approx(result["patches_per_step"] / seconds)
    assert result["tokens_per_second"] == pytest.approx(result["tokens_per_step"] / seconds)
    tokens = [np.sum(batch.document_ids > 0) for batch in batches[2:]]
    assert result["tokens_per_step"] == np.mean(tokens)
    rate = PEAK.flops_per_second * math.prod(MESHES[name])
    mfu = result["model_flops_per_step"] / seconds / rate
    assert result["mfu"] == pytest.approx(mfu)
    parts = result["breakdown"]["parts"]
    assert [part["part"] for part in parts] == PARTS[name]
    assert sum(part["share"] for part in parts) == pytest.approx(1)
    assert result["breakdown"]["sum_ms"] == pytest.approx(sum(part["median_ms"] for part in parts))
    flops = float(training_flops(config.model, batches[0]))
    assert sum(part["model_flops"] for part in parts) == pytest.approx(flops, rel=1e-5)


def test_with_accumulation_a_part_is_timed_on_a_microbatch_times_their_number(monkeypatch):
    config = make_config("baseline")
    training = dataclasses.replace(config.training, accumulation_steps=2)
    config = dataclasses.replace(config, training=training)
    mesh = small_mesh("baseline")

    def measure_step(self, _):
        return {}, self.init_state()

    monkeypatch.setattr(step_timing.StepMeasurement, "measure_step", measure_step)
    result = list(step_timing.measure_all(config, mesh, [2], ["none"], 1, True, PEAK))[-1]
    batch = jax.tree.map(lambda x: x[:2], step_timing.make_batches(config, 4)[0])
    flops = 2 * float(training_flops(config.model, batch))
    parts = result["breakdown"]["parts"]
    assert sum(part["model_flops"] for part in parts) == pytest.approx(flops, rel=1e-5)
    with pytest.raises(ValueError, match="the batch has 6 rows, expected a multiple of 4"):
        list(step_timing.measure_all(config, mesh, [2, 3], ["none"], 1, True, PEAK))


def test_the_tables_show_the_figures():
    result = measured("lst")[-1]
    report = {"num_devices": 1, "peak": PEAK._asdict()}
    table = train_step.format_result(result, report)
    assert "remat none, 1 row(s) a device: compiled in" in table
    assert f"{result['patches_per_second']:,.0f}" in table
    assert f"{result['mfu']:.1%} of 1 × 1e+12" in table
    assert "anchor" not in table
    anchor = {"paper_patches_per_second_per_gpu": 53542, "goal_patches_per_second_per_gpu": 60000}
    on_gpu = result | {"patches_per_second_per_device": 30000.0}
    table = train_step.format_result(on_gpu, report | {"anchor": anchor})
    assert "30,000 patches/s a GPU; the paper's 1B run on 32 H100 53,542 (0.56 of it)" in table
    lines = train_step.format_breakdown(result, report).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == PARTS["lst"]
    total, step = result["breakdown"]["sum_ms"], result["step"]["median_ms"]
    assert f"{total:.1f} ms" in lines[6]
    assert f"{step:.1f} ms, {step - total:+.1f} ms" in lines[7]


def test_the_anchor_is_the_papers():
    assert round(train_step.PAPER_PATCHES_PER_GPU_S, -2) == 53_500


def test_drawn_ids_keep_kinds_and_targets_follow_tokens():
    config = make_config("lst")
    vocabulary = config.vocabulary
    shape = config.num_patches, config.num_tokens, 4, 0
    plain = step_timing.typical_batch(vocabulary, config.patching, *shape)
    drawn = step_timing.make_batches(config, 4)[0]
    for kind in (vocabulary.is_text, vocabulary.is_unit):
        real = plain.document_ids > 0
        np.testing.assert_array_equal(kind(drawn.tokens)[real], kind(plain.tokens)[real])
    others = ~(vocabulary.is_text(plain.tokens) | vocabulary.is_unit(plain.tokens))
    np.testing.assert_array_equal(drawn.tokens[others], plain.tokens[others])
    np.testing.assert_array_equal(drawn.tokens[plain.document_ids == 0], 0)
    assert len(np.unique(drawn.tokens)) > 100
    assert drawn.num_patches == plain.num_patches
    for name in set(batch_arrays(plain)) - {"tokens", "targets"}:
        np.testing.assert_array_equal(getattr(drawn, name), getattr(plain, name))
    same = plain.document_ids[:, 1:] == plain.document_ids[:, :-1]
    for batch in (plain, drawn):
        following = np.where(same, batch.tokens[:, 1:], plain.targets[:, :-1])
        np.testing.assert_array_equal(batch.targets[:, :-1], following)


def test_batches_differ_and_fewer_rows_are_their_first():
    config = make_config("lst")
    batches = step_timing.make_batches(config, 2)
    assert len({batch.tokens.tobytes() for batch in batches}) == len(batches) > 1
    again = step_timing.make_batches(config, 2)
    np.testing.assert_array_equal(batches[1].tokens, again[1].tokens)


def refuse(fits):
    """A compiler for which some batches, and parts where `fits` says so, do not fit."""
    compile_ = step_timing.compile_for

    def compile_or_refuse(function, *arguments):
        if not fits(*arguments):
            raise jax.errors.JaxRuntimeError(OUT_OF_MEMORY)
        return compile_(function, *arguments)

    return compile_or_refuse


def test_running_out_of_memory_is_recorded_and_the_rest_is_measured(monkeypatch):
    def fits(*arguments):
        return len(arguments) == 2 and len(arguments[1].tokens) == 2

    made, init = [], step_timing.init_state

    def count(*arguments):
        made.append(arguments)
        return init(*arguments)

    monkeypatch.setattr(step_timing, "compile_for", refuse(fits))
    monkeypatch.setattr(step_timing, "init_state", count)
    config, mesh = make_config("baseline"), small_mesh("baseline")
    results = list(step_timing.measure_all(config, mesh, [1, 2, 4], ["none"], 1, True, PEAK))
    assert [result["rows"] for result in results] == [2, 2, 4, 8]
    assert "out_of_memory" not in results[1]
    message = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes. More"
    assert results[1]["breakdown"] == {"out_of_memory": message}
    assert results[2]["out_of_memory"] == message
    assert results[3]["out_of_memory"] == "not tried, 2 row(s) ran out of memory"
    assert len(made) == 2  # after the parts had lost the first state
    assert "the parts ran out of memory" in train_step.format_breakdown(results[1], {})
    table = train_step.format_result(results[2], {})
    assert (
        "remat none, 2 row(s) a device: out of memory; try --rows=1 or --remat=dots,full\n" in table
    )
    train_step.check_measured(results[1:])
    with pytest.raises(ValueError, match="even with 2 row") as error:
        train_step.check_measured(results[2:])
    assert "remat none; try --rows=1 or --remat=dots,full" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_state_is_made_once_and_policies_are_tried_apart(monkeypatch):
    made = []
    monkeypatch.setattr(step_timing, "init_state", lambda *_: made.append(_) or "state")

    def measure_step(self, state):
        if self._config.model.remat == "none":
            raise jax.errors.JaxRuntimeError(OUT_OF_MEMORY)
        return {}, self.init_state() if state is None else state

    monkeypatch.setattr(step_timing.StepMeasurement, "measure_step", measure_step)
    config, mesh = make_config("baseline"), small_mesh("lst")
    policies = ["none", "dots", "full"]
    results = list(step_timing.measure_all(config, mesh, [1, 2], policies, 1, False, PEAK))
    assert [(x["remat"], x["rows"]) for x in results if "out_of_memory" not in x] == [
        *(("dots", 1), ("dots", 2), ("full", 1), ("full", 2))
    ]
    assert len(made) == 1


@pytest.mark.parametrize(
    "message",
    [
        "INTERNAL: out of memory, it seems",
        "RESOURCE_EXHAUSTED: Shared memory size limit exceeded: allocated 300000",
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem",
        "RESOURCE_EXHAUSTED: too many open files",
    ],
)
def test_other_errors_are_not_taken_for_a_lack_of_memory(message):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message[:12]):
        step_timing._out_of_memory(jax.errors.JaxRuntimeError(message))


def test_where_nothing_helps_a_smaller_problem_does():
    results = [{"rows_per_device": 1, "remat": "full", "out_of_memory": "so"}]
    with pytest.raises(ValueError, match="try more devices, shorter rows or a smaller model"):
        train_step.check_measured(results)


@pytest.mark.parametrize("texts", [[], ["0"], ["-1"], ["1", "x"], ["1.5"], [""]])
def test_rows_are_positive_integers(texts):
    with pytest.raises(ValueError, match=r"^rows is .*, expected positive integers such as 1,2,4$"):
        train_step.parse_rows(texts)


def test_rows_and_policies_are_measured_once_each():
    assert train_step.parse_rows(["4", "1", "4"]) == [1, 4]
    assert train_step.check_policies(["full", "none", "full"]) == ["full", "none"]
    with pytest.raises(ValueError, match="remat is 'half', expected some of none,dots,full"):
        train_step.check_policies(["none", "half"])


def measure(*arguments):
    return run_binary("experiments.benchmarks.train_step", *arguments)


@pytest.mark.multiprocess
def test_the_binary_measures_and_writes_what_it_was_asked_for(tmp_path):
    output = tmp_path / "train_step.json"
    settings = [f"--gin.{binding}" for binding in SMALL]
    files = [f"--gin_file={file}" for file in FILES["baseline"]]
    flags = ["--text_size=300", "--steps=1", "--noparts", "--rows=1", f"--output={output}"]
    done = measure(*files, *settings, *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    (result,) = report["results"]
    assert result["patches_per_second"] > 0 and "breakdown" not in result
    assert f"{result['patches_per_second']:,.0f}" in done.stdout
    assert set(report["versions"]) == {"jax", "jaxlib", "flax", "optax"}
    assert report["platform"] == "cpu" and report["device"] and "anchor" not in report
    configuration = report["configuration"]
    assert (configuration["patches_per_row"], configuration["tokens_per_row"]) == (64, 64)
    assert configuration["model"]["attention"] == "blocked"  # the best of CPUs
    assert set(flags) < set(report["command"].split())


@pytest.mark.multiprocess
def test_a_mistake_is_one_line():
    done = measure(f"--gin_file={TINY}", "--rows=1,none")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: rows is '1,none', expected positive integers such as 1,2,4"
    ]
