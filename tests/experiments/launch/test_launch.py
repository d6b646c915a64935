"""Launches mean what their plans say, and what does not fit is refused."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import stat
import subprocess
import sys

import pytest
import yaml

from experiments.launch.hosts import parse_topology
from experiments.launch.targets import check_target, render, submit
from tests.binaries import run_binary
from tests.experiments.launch import launches

# Prints its arguments as JSON, and what it is asked for of its variables.
ECHO = """import json, os, sys
print(json.dumps([sys.argv[1:], {x: os.environ.get(x) for x in ("A", "EMPTY", "WORD", "NUMBER")}]))
"""
ENV = {
    "A": 'it\'s "b" $(X) ${Y} `c` \\',
    "EMPTY": "",
    "WORD": "yes # no",
    "NUMBER": "1",
}


@pytest.fixture
def programs(tmp_path):
    """Makes programs by name, alone on a path with the system's; returns the environment."""

    def make(**scripts):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, script in scripts.items():
            file = folder / name
            file.write_text(f"#!/usr/bin/env bash\n{script}\n")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)
        return {"PATH": f"{folder}:/usr/bin:/bin", "T": str(tmp_path)}

    return make


def run(text, environment):
    return subprocess.run(
        ["bash", "-c", text], env=environment, capture_output=True, text=True, timeout=60
    )


def kubernetes(text):
    """A value as Kubernetes hands it on, where every variable named is known and empty."""
    return re.sub(r"\$\$\(|\$\(\w+\)", lambda match: "$(" if match[0] == "$$(" else "", text)


@pytest.mark.parametrize("name", [x for x in launches.EVERY if x.startswith("jobset")])
def test_a_jobset_runs_the_plan(name):
    plan = launches.EVERY[name]()
    made = list(yaml.safe_load_all(render(plan)))
    assert [x["metadata"]["name"] for x in made] == [job.name for job in plan.jobs]
    for jobset, job in zip(made, plan.jobs, strict=True):
        (replicated,) = jobset["spec"]["replicatedJobs"]
        spec = replicated["template"]["spec"]
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        assert replicated["replicas"] == plan.hosts.slices
        assert spec["parallelism"] == spec["completions"] == plan.hosts.hosts
        chips = container["resources"]["limits"]["google.com/tpu"]
        assert chips * spec["completions"] == plan.hosts.devices
        labels = pod["nodeSelector"]
        assert labels["cloud.google.com/gke-tpu-topology"] == plan.hosts.shape
        command = [kubernetes(x) for x in container["command"]]
        assert command == [*job.command, *job.cell_flags]
        assert {x["name"]: kubernetes(x["value"]) for x in container["env"]} == ENV
        volumes = {x["name"] for x in pod["volumes"]}
        assert {x["name"] for x in container["volumeMounts"]} == volumes
        assert ("shared" in volumes) == bool(plan.volume)
        hopeless = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
        assert hopeless == {"containerName": "train", "operator": "In", "values": [2, 3]}
        assert pod["restartPolicy"] == "Never"  # which a pod failure policy takes
    assert json.dumps(made)  # text where text is needed: no dates, no truth values


def test_processes_find_each_other_where_there_are_several():
    assert launches.plan().jobs[0].command[-1] == "--multihost"
    assert launches.plan("slurm").jobs[0].command[-1] == "--multihost"
    one = launches.plan(topology="v5e:2x4").jobs[0].command
    assert "--multihost" not in one and one[-1].startswith("--compilation_cache_dir=/mnt/lst/")


def test_a_command_names_files_as_any_host_can():
    command = launches.plan().jobs[0].command
    files = [x.partition("=")[2] for x in command if x.startswith("--gin_file=")]
    assert files == [f"experiments/configs/{name}" for name in launches.FILES]


@pytest.mark.parametrize("target", ["jobset", "slurm"])
@pytest.mark.parametrize("decay", [None, 0.2])
def test_every_cell_of_a_study_is_in_one_job(target, decay):
    plan = launches.study(target, decay)
    cells = [cell for job in plan.jobs for cell in job.cells]
    assert len(cells) == len(set(cells)) == 8
    # Budgets that share a run are one worker's: another would find the run taken, and end.
    assert len(plan.jobs) == (4 if decay else 8)
    text = render(plan)
    assert all(text.count(f"--cell={cell}") == 1 for cell in cells)


@pytest.mark.parametrize("name", ["slurm", "slurm-study", "xpk"])
def test_a_script_passes_on_the_command(name, programs):
    plan = launches.EVERY[name]()
    program = "xpk" if name == "xpk" else "srun"
    environment = programs(**{program: f'{sys.executable} -c {shlex.quote(ECHO)} "$@"'})
    done = run(render(plan), environment | {"SLURM_ARRAY_TASK_ID": "3"})
    arguments, env = json.loads(done.stdout)
    if name == "xpk":
        given = [x for x in arguments if x.startswith("--env=")]
        assert given == [f"--env={key}={value}" for key, value in ENV.items()]
        (command,) = [x for x in arguments if x.startswith("--command=")]
        assert tuple(shlex.split(command.removeprefix("--command="))) == plan.jobs[0].command
        assert "--tpu-type=v5litepod-64" in arguments
        return
    assert env == ENV
    job = plan.jobs[3 if plan.is_study else 0]
    assert tuple(arguments[arguments.index("python") :]) == job.command + job.cell_flags
    assert ("#SBATCH --array=0-7" in render(plan)) == plan.is_study


# A run that saves when it is told to, and says what it heard.
SRUN = (
    "trap 'echo told; exit $CODE' USR1; echo up; for i in $(seq 100); do sleep 0.05; done; exit 0"
)
SCONTROL = 'echo "scontrol $*"'


@pytest.mark.multiprocess
@pytest.mark.parametrize("code", [143, 0, 2])
@pytest.mark.parametrize("name", ["slurm", "slurm-study"])
def test_a_slurm_job_that_is_warned_saves_and_is_requeued_if_steps_are_left(name, code, programs):
    environment = programs(srun=SRUN, scontrol=SCONTROL) | {"CODE": str(code)}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
    script = render(launches.EVERY[name]())
    with subprocess.Popen(
        ["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout.readline() == "up\n"
        job.send_signal(10)  # USR1, to the shell alone
        said = job.stdout.read()
    assert job.returncode == code
    requeued = "scontrol requeue " + ("5_2" if "study" in name else "7")
    assert said == "told\n" + (f"{requeued}\n" if code == 143 else "")


@pytest.mark.parametrize("code", [143, 0, 1, 2])
def test_a_slurm_job_that_is_not_warned_ends_with_its_run(code, programs):
    """Also a cancelled one, whose run ends with 143."""
    environment = programs(srun=f"exit {code}", scontrol=SCONTROL) | {"SLURM_JOB_ID": "7"}
    done = run(render(launches.plan("slurm")), environment)
    assert (done.returncode, done.stdout) == (code, "")


@pytest.mark.parametrize(
    ("codes", "starts"), [((143, 1, 0), 3), ((2,), 1), ((3,), 1), ((1, 1, 1, 1), 3)]
)
def test_a_tpu_vm_starts_its_run_until_it_is_done_or_hopeless(codes, starts, programs):
    plan = launches.plan("queued_resources", "v5p:4x4x4", restarts=2)
    # gcloud keeps what the hosts would run, and docker ends as it is told, one code after another.
    environment = programs(
        gcloud='for x; do case $x in *-script=*) cp "${x#*script=}" "$T/startup";; esac; done\n'
        'printf "%s\\n" "$@" >> "$T/gcloud"',
        docker='[ "$1" = run ] || exit 0\nprintf "%s\\0" "$@" > "$T/arguments"\n'
        'read -r code rest < "$T/codes"; echo "$rest" > "$T/codes"; echo x >> "$T/starts"\n'
        "exit $code",
        sleep="exit 0",
        mkdir="exit 0",
    )
    folder = pathlib.Path(environment["T"])
    (folder / "codes").write_text(" ".join(map(str, codes)) + "\n")
    assert run(render(plan), environment).returncode == 0
    asked = (folder / "gcloud").read_text().splitlines()
    assert {"--type=v5p", "--topology=4x4x4", "--node-id=first"} < set(asked)
    done = run((folder / "startup").read_text(), environment)
    assert done.returncode == codes[starts - 1]
    assert (folder / "starts").read_text().count("x") == starts
    arguments = (folder / "arguments").read_text().split("\0")[:-1]
    assert tuple(arguments[-len(plan.jobs[0].command) :]) == plan.jobs[0].command
    assert [x for x in arguments if x.startswith("--env=")] == [
        f"--env={k}={v}" for k, v in ENV.items()
    ]


def test_an_image_has_what_the_run_needs():
    text = render(launches.plan("container", bindings=(*launches.BINDINGS, "WRITERS=('clu',)")))
    assert "'.[clu,tpu]'" in text
    assert '".[${CUDA}]"' in render(launches.EVERY["container-gpu"]())
    assert '".[${CUDA},demo]"' in render(launches.EVERY["container-study"]())


@pytest.mark.parametrize("name", [x for x in launches.EVERY if not x.startswith("container")])
def test_nothing_is_downloaded_at_start_but_the_image(name):
    text = render(launches.EVERY[name]())
    assert not re.search(r"\b(pip|uv|apt|apt-get|curl|wget|git|gsutil|gcloud storage)\b", text)


REFUSED = {
    "mesh axes are": dict(bindings=(*launches.BINDINGS, "MESH_FSDP=48")),
    "the batch has 8 rows, expected a multiple of 64": dict(bindings=launches.BINDINGS[:-1]),
    "expected data or fsdp to be a multiple of the 3 slices": dict(
        slices=3, bindings=(*launches.BINDINGS[:-1], "MESH_FSDP=64", "MESH_TENSOR=3")
    ),
    "num_heads_global is 4": dict(
        bindings=(*launches.BINDINGS, "MESH_TENSOR=64"), files=launches.FILES
    ),
    "workdir is '/home/me/run', expected a path below /mnt/lst": dict(workdir="/home/me/run"),
    "workdir is '/mnt/lst/../run'": dict(workdir="/mnt/lst/../run"),
    "workdir is 'runs/first'": dict(workdir="runs/first"),
    "tokenizer is 'own.model', expected a path below": dict(
        bindings=(*launches.BINDINGS, "TOKENIZER=own.model")
    ),
    "sources is '/data/speech'": dict(bindings=(*launches.BINDINGS, "SPEECH_RECORDS=/data/speech")),
    "shared is '/', expected an absolute path other": dict(shared="/"),
    "name is 'First_run', expected at most 40": dict(name="First_run"),
    "name is '1st'": dict(workdir="/mnt/lst/1st"),
    "volume is 'x'": dict(volume="x"),
    "env is '1=2'": dict(env=("1=2",)),
    "expected one line of printable": dict(bindings=(*launches.BINDINGS, "SEED=1\n#SBATCH x")),
    "no such file": dict(files=("none.gin",)),
    "Experiment.tokenizer|required and not set": dict(bindings=()),
    "cell of a study": dict(files=("studies/pilot.gin",), bindings=("CORPUS=/mnt/lst/corpus",)),
}


@pytest.mark.parametrize("expected", REFUSED)
def test_what_does_not_fit_is_refused(expected):
    with pytest.raises((ValueError, OSError), match=expected) as caught:
        launches.plan(**REFUSED[expected])
    assert "\n" not in str(caught.value)


def test_a_gin_file_that_hosts_do_not_have_is_refused(tmp_path):
    file = tmp_path / "own.gin"
    file.write_text("SEED = 3\n")
    with pytest.raises(ValueError, match=r"gin_file is '.*, expected a path below /mnt/lst"):
        launches.plan(files=(*launches.FILES, str(file)))
    file.write_text("SEED = \n")
    bindings = [x.replace("/mnt/lst", str(tmp_path)) for x in launches.BINDINGS]
    here = dict(shared=str(tmp_path), workdir=f"{tmp_path}/first", bindings=bindings)
    with pytest.raises(ValueError, match=r"own.gin, line 1"):
        launches.plan(files=(*launches.FILES, str(file)), **here)
    file.write_text("SEED = 3\n")
    assert (
        f"--gin_file={file}"
        in launches.plan(files=(*launches.FILES, str(file)), **here).jobs[0].command
    )


@pytest.mark.parametrize(
    ("target", "topology", "options", "expected"),
    [
        ("slurm", "v5p:2x2x1", {}, "a chip of slurm: a100"),
        ("jobset", "h100:1x8", {}, "a chip of jobset: v5e"),
        ("jobset", "v5p:2x2x1", {"image": None}, "image"),
        ("jobset", "v5p:2x2x1", {"image": "a b"}, "a container image"),
        ("xpk", "v5p:2x2x1", {"cluster": None}, "cluster"),
        ("queued_resources", "v5p:2x2x1", {"zone": "x; rm"}, "zone is 'x; rm'"),
        ("queued_resources", "v5p:2x2x1", {"volume": "claim:a"}, "mounts: nfs"),
        ("xpk", "v5p:2x2x1", {"volume": "nfs:a:/b"}, "mounts: none"),
        ("slurm", "h100:1x8", {"spot": True}, "spot is True, expected False"),
    ],
)
def test_what_a_target_cannot_start_is_refused(target, topology, options, expected):
    changed = dataclasses.replace(launches.OPTIONS, target=target, **options)
    with pytest.raises(ValueError, match=expected):
        check_target(parse_topology(topology), changed)


def test_a_multislice_of_hosts_that_are_slices_is_refused():
    with pytest.raises(ValueError, match="slices is 2, expected 1"):
        check_target(parse_topology("v5e:2x4", 2), launches.OPTIONS)


def test_a_launch_goes_to_the_program_that_starts_it(programs, monkeypatch):
    environment = programs(kubectl='echo "$*" > "$T/arguments"; cat > "$T/input"; exit ${CODE:-0}')
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder, plan = pathlib.Path(environment["T"]), launches.plan()
    submit(plan)
    assert (folder / "arguments").read_text() == "create --filename=-\n"
    assert (folder / "input").read_text() == render(plan)
    monkeypatch.setenv("CODE", "1")
    with pytest.raises(ValueError, match="exit code of kubectl is 1, expected 0"):
        submit(plan)
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(ValueError, match="kubectl"):
        submit(plan)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_dry_run_prints_what_would_start_and_starts_nothing(programs):
    environment = programs(sbatch='touch "$T/started"')
    settings = [f"--gin.{binding}" for binding in launches.BINDINGS]
    files = [f"--gin_file={file}" for file in launches.FILES]
    flags = ["--target=slurm", "--topology=h100:8x8", "--workdir=/mnt/lst/runs/first"]
    command = ("experiments.launch", *flags, *files, *settings)
    done = run_binary(*command, "--dry_run", environment=environment)
    expected = render(launches.plan("slurm", image=None, env=()))
    assert (done.returncode, done.stdout) == (0, expected)
    assert not pathlib.Path(environment["T"], "started").exists()
    assert run_binary(*command, environment=environment).returncode == 0
    assert pathlib.Path(environment["T"], "started").exists()
