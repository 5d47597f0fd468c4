"""Launchers print exactly what they would run, and what reaches the hosts is the command that was asked for."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
CONFIG, OVERRIDE = "configs/gemma2_2b_main.py", "--config.target=a folder/gemma"
WORKDIR = "gs://bucket/run"


def dry_run(name: str, *args: str, **env: str) -> list[list[str]]:
    """The commands that a launcher prints, split as a shell would."""
    clean = {key: os.environ[key] for key in ("PATH",)} | {"HOME": "/nonexistent"}
    done = subprocess.run(
        [LAUNCH / name, "--dry-run", *args], capture_output=True, text=True, check=True, env=clean | env
    )
    return [shlex.split(line) for line in done.stdout.splitlines()]


def flags(command: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in command if word.startswith("--") and "=" in word)


def trained(script: str) -> list[str]:
    """The `d2l train` command at the end of a shell script."""
    words = shlex.split(script)
    return words[max(i for i, word in enumerate(words) if word.endswith("d2l")) :]


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke.sh", "slurm.sh"])
def test_hosts_run_the_command_that_was_asked_for(name):
    last = flags(dry_run(name, CONFIG, WORKDIR, OVERRIDE)[-1])
    script = last.get("--command") or last["--wrap"]
    assert trained(script)[1:] == ["train", "--config", CONFIG, "--workdir", WORKDIR, OVERRIDE]


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke.sh", "slurm.sh"])
def test_the_same_command_again_is_the_same(name):
    assert dry_run(name, CONFIG, WORKDIR) == dry_run(name, CONFIG, WORKDIR)


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke.sh", "slurm.sh"])
@pytest.mark.parametrize("args", [[], [CONFIG], [CONFIG, "--config.lr=1"]])
def test_missing_arguments_print_the_usage(name, args):
    done = subprocess.run([LAUNCH / name, "--dry-run", *args], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: launch/{name}")
    assert not done.stdout


def test_tpu_slice_is_what_the_environment_says():
    create, *_ = dry_run("tpu_vm.sh", CONFIG, WORKDIR, TYPE="v5p-16", VERSION="v2-alpha-tpuv5", NAME="x", SPOT="")
    assert create[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "x"]
    assert flags(create)["--accelerator-type"] == "v5p-16"
    assert "--spot" not in create
    assert "--spot" in dry_run("tpu_vm.sh", CONFIG, WORKDIR)[0]


def test_hub_token_reaches_the_hosts_without_being_printed(tmp_path):
    (tmp_path / "token").write_text("hf_secret")
    commands = dry_run("tpu_vm.sh", CONFIG, WORKDIR, HF_HOME=str(tmp_path))
    assert [c for c in commands if "scp" in c and str(tmp_path / "token") in c]
    on_gke = dry_run("gke.sh", CONFIG, WORKDIR, HF_TOKEN="hf_secret")
    assert flags(on_gke[-1])["--env-file"] == "runs/gke/d2l.env"
    assert not [word for command in commands + on_gke for word in command if "hf_secret" in word]


def test_slurm_starts_one_process_a_gpu_and_is_told_before_the_end():
    (command,) = dry_run("slurm.sh", CONFIG, WORKDIR, NODES="4", GPUS="2")
    asked = flags(command)
    assert (asked["--nodes"], asked["--ntasks-per-node"], asked["--gpus-per-node"]) == ("4", "2", "2")
    assert asked["--signal"] == "TERM@60"
    assert "--requeue" in command


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, "-x", *LAUNCH.glob("*.sh")], capture_output=True, text=True, cwd=LAUNCH.parent)
    assert not done.stdout


def test_launchers_are_short():
    assert not {path.name for path in LAUNCH.glob("*.sh") if len(path.read_text().splitlines()) >= 80}


@pytest.mark.parametrize(("name", "given"), [("niah_tiny.sh", "--config.target"), ("niah_smollm2.sh", "--config.init")])
def test_needle_recipes_hand_on_what_they_trained(name, given):
    first, second, last = dry_run(name, "a run")
    made = {flag: pathlib.Path(path) for flag, path in flags(second).items()}
    assert made[given].parent == pathlib.Path(first[first.index("--workdir") + 1])
    trained = f"{second[second.index('--workdir') + 1]}/hypernet"
    assert trained in (last[-1], flags([last[-1]]).get("--config.hypernet"))


@pytest.mark.parametrize("name", ["niah_tiny.sh", "niah_smollm2.sh", "local_pipeline.sh"])
@pytest.mark.parametrize("args", [["--no-such"], ["a", "b", "c"]])
def test_other_arguments_print_the_usage(name, args):
    done = subprocess.run([LAUNCH / name, "--dry-run", *args], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: launch/{name} [--dry-run]") and not done.stdout


def test_local_pipeline_never_learns_from_what_it_is_evaluated_on(tmp_path):
    for number in range(6):
        (tmp_path / f"a file {number}.txt").write_text("text")
    generate = [c for c in dry_run("local_pipeline.sh", str(tmp_path), "a run") if c[:2] == ["d2l", "selfgen"]]
    files = [sorted(pathlib.Path(word).name for word in command if word.endswith(".txt")) for command in generate]
    assert files == [[f"a file {i}.txt" for i in (0, 1, 2, 3, 5)], ["a file 4.txt"], []]


def test_local_pipeline_hands_each_step_what_the_one_before_wrote():
    commands = dry_run("local_pipeline.sh")
    made = {
        command[command.index(word) + 1] for command in commands for word in ("--out", "--workdir") if word in command
    }
    read = {
        value for c in commands for name, value in flags(c).items() if name.endswith((".path", ".init", ".hypernet"))
    }
    assert {path.removesuffix("/hypernet") for path in read} < made
    for command in commands:
        if "--config" in command:
            assert (LAUNCH.parent / command[command.index("--config") + 1]).exists()
