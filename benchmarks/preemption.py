"""What does the death of a host cost? Kills one of several training processes at random steps, and starts them again.

    python -m benchmarks.preemption --workdir DIR [--processes 4 --devices 2 --kills 10]

Runs of the tiny recipe's network on a target of one update: one process alone, several processes, and several of which
one is killed with SIGKILL again and again. Prints JSON: the largest relative difference of the loss between one
process and several, for each kill the step it struck and the step the next start went on from, and whether the killed
run ended in the same bits as the run that nothing struck; and what a SIGTERM does. The same command goes on where it
was stopped.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from d2l.train.pretrain import train_target

ROOT = pathlib.Path(__file__).parents[1]
STEPS, EVERY = 60, 4
CONFIG = """from configs.niah_tiny import get_config as tiny


def get_config():
    config = tiny()
    config.target, config.dtype, config.checkpoint_every, config.keep = {target!r}, "float32", {every}, 2
    config.mesh, config.packs = {{"data": -1}}, {packs}
    for name in ("needle", "haystack"):
        del config.stages[name]
    config.stages.chunks.update({{"steps": {steps}, "contexts": {contexts}, "chunks": {chunks}, "max_tokens": 200}})
    return config
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--devices", type=int, default=2, help="of each process")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = pathlib.Path(args.workdir).absolute()
    _prepare(folder, args.processes * args.devices)

    _train(folder, "alone", 1, args.processes * args.devices)
    _train(folder, "whole", args.processes, args.devices)
    log = folder / "kills.json"
    kills = json.loads(log.read_text()) if log.exists() else []
    while len(kills) < args.kills:
        kills.append(_kill_once(folder, args, random.Random((args.seed, len(kills)).__repr__()), len(kills)))
        log.write_text(json.dumps(kills))
    _train(folder, "killed", args.processes, args.devices)
    stopped = _stop_once(folder, args)
    _train(folder, "stopped", args.processes, args.devices)

    alone, whole, killed = (_losses(folder / name) for name in ("alone", "whole", "killed"))
    result = {
        "processes": args.processes,
        "devices": args.processes * args.devices,
        "steps": STEPS,
        "checkpoint_every": EVERY,
        "loss_first": whole[1],
        "loss_last": whole[STEPS],
        "largest_relative_difference_to_one_process": max(abs(whole[i] / alone[i] - 1) for i in alone),
        "kills": kills,
        "most_steps_lost": max(kill["struck"] - kill["went_on_from"] for kill in kills),
        "same_losses": whole == killed,
        "same_bits": _bits(folder / "whole") == _bits(folder / "killed") == _bits(folder / "stopped"),
        "sigterm": stopped,
    }
    print(json.dumps(result, indent=2))
    ok = result["same_bits"] and result["same_losses"] and result["most_steps_lost"] < 2 * EVERY
    ok = ok and stopped["exit_code"] == 0 and stopped["seconds"] < 30 and stopped["steps_lost"] == 0
    sys.exit(0 if ok else 1)


def _prepare(folder: pathlib.Path, packs: int) -> None:
    """The target and the config of all runs."""
    if (folder / "conf.py").exists():
        return
    from configs.niah_tiny_target import get_config

    config = get_config()
    del config.stages["full"]
    config.stages.short.update({"steps": 1, "contexts": 8, "warmup": 0})
    train_target(config, folder / "target")
    target = str(folder / "target" / "target")
    sizes = {"packs": packs, "contexts": packs, "chunks": 3 * packs}
    (folder / "conf.py").write_text(CONFIG.format(target=target, every=EVERY, steps=STEPS, **sizes))


def _start(folder: pathlib.Path, name: str, processes: int, devices: int) -> subprocess.Popen:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [str(ROOT / "launch" / "local.sh"), str(processes), "--config", str(folder / "conf.py")]
    return subprocess.Popen(
        [*command, "--workdir", str(folder / name)],
        env=os.environ | cache | {"DEVICES": str(devices), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=(folder / f"{name}.log").open("a"),
        start_new_session=True,
    )


def _train(folder: pathlib.Path, name: str, processes: int, devices: int) -> None:
    if not (folder / name / "hypernet").exists() and _start(folder, name, processes, devices).wait() != 0:
        sys.exit(f"the run {name} failed: see {folder / name}.log")


def _kill_once(folder: pathlib.Path, args: argparse.Namespace, rng: random.Random, number: int) -> dict[str, int]:
    """Start all processes, and kill one of them some updates later."""
    launcher = _start(folder, "killed", args.processes, args.devices)
    done = _checkpoint(folder / "killed")
    # Kills are spread over the run, so that there is always something left to do.
    aim = max(done + 1, (number + 1) * (STEPS - EVERY) // args.kills - rng.randrange(EVERY))
    while max(_losses(folder / "killed"), default=0) < aim:
        if launcher.poll() is not None:
            sys.exit(f"the run to be killed ended by itself: see {folder / 'killed.log'}")
        time.sleep(0.002)
    victims = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
    victim = rng.randrange(len(victims))
    os.kill(int(victims[victim]), signal.SIGKILL)
    launcher.wait()
    struck = max(_losses(folder / "killed"))
    return {"process": victim, "struck": struck, "went_on_from": _checkpoint(folder / "killed")}


def _stop_once(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, float]:
    """Start all processes, and end them with SIGTERM after some updates."""
    log = folder / "stopped.json"
    if log.exists():
        return json.loads(log.read_text())
    launcher = _start(folder, "stopped", args.processes, args.devices)
    while max(_losses(folder / "stopped"), default=0) < EVERY + 1:
        if launcher.poll() is not None:
            sys.exit(f"the run to be stopped ended by itself: see {folder / 'stopped.log'}")
        time.sleep(0.002)
    began = time.monotonic()
    launcher.terminate()
    code = launcher.wait()
    last, kept = max(_losses(folder / "stopped")), _checkpoint(folder / "stopped")
    result = {"exit_code": code, "seconds": time.monotonic() - began, "step": last, "steps_lost": last - kept}
    log.write_text(json.dumps(result))
    return result


def _checkpoint(workdir: pathlib.Path) -> int:
    """The latest complete checkpoint."""
    return max((int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdecimal()), default=0)


def _losses(workdir: pathlib.Path) -> dict[int, float]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: row["loss"] for row in rows}


def _bits(workdir: pathlib.Path) -> str:
    return hashlib.sha256((workdir / "hypernet" / "hypernet.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
