"""SLURM as far as a machine without it can be one: sbatch, srun, sacct, scancel and scontrol, which run jobs here.

Jobs are files in a folder: 1.script is what was submitted, 1.state what sacct says, 1.pid the leader of its
processes; 1.again has it queued again when it ends.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["installed"]

PROGRAM = """
import os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

jobs = Path(os.environ["FAKE_SLURM"])


def file(job, kind):
    return jobs / f"{job}.{kind}"


def sbatch(script, *arguments):
    script = Path(script)
    if "--partition=closed" in script.read_text():
        sys.exit("sbatch: error: invalid partition specified: closed")
    job = str(len(list(jobs.glob("*.script"))) + 1)
    shutil.copy(script, file(job, "script"))
    file(job, "state").write_text("PENDING")
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.Popen([sys.executable, __file__, "run", job, *arguments], start_new_session=True, **quiet)
    print(f"Submitted batch job {job}")


def run(job, *arguments):
    text = file(job, "script").read_text()
    told = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\\S+)$", text, re.M))
    nodes = told.get("nodes", "1")
    mine = {"SLURM_JOB_ID": job, "SLURM_JOB_NUM_NODES": nodes, "SLURM_NNODES": nodes, "SLURM_NTASKS": nodes}
    mine |= {"SLURM_JOB_NODELIST": ",".join(["localhost"] * int(nodes))}
    for count in range(5):
        if count:  # of a job that was never queued again it is not set
            mine["SLURM_RESTART_COUNT"] = str(count)
        with open(told.get("output", os.devnull).replace("%j", job), "a") as output:
            batch = subprocess.Popen(
                ["bash", file(job, "script"), *arguments], env=os.environ | mine,
                start_new_session=True, stdout=output, stderr=output,
            )
            file(job, "pid").write_text(str(batch.pid))
            file(job, "state").write_text("RUNNING")
            code = batch.wait()
        if not file(job, "again").exists():
            break
        file(job, "again").unlink()
    cancelled = file(job, "cancelled").exists()
    file(job, "state").write_text("CANCELLED" if cancelled else "FAILED" if code else "COMPLETED")


def srun(*arguments):
    words, streams = list(arguments), {}
    names = {"--output": "stdout", "--error": "stderr"}
    while words[0].startswith("--"):
        option = words.pop(0)
        if option in names:
            streams[names[option]] = words.pop(0).replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
    tasks = []
    for task in range(int(os.environ["SLURM_NTASKS"])):
        number = str(task)
        mine = {"SLURM_PROCID": number, "SLURM_NODEID": number, "SLURM_LOCALID": "0"}
        opened = {name: open(path, "a") for name, path in streams.items()}
        tasks.append(subprocess.Popen(words, env=os.environ | mine, **opened))
    sys.exit(max(abs(task.wait()) for task in tasks))


def sacct(*arguments):
    print("JobID|State|NodeList")
    for job in (arguments[i + 1] for i, word in enumerate(arguments) if word == "-j"):
        if file(job, "state").exists():
            print(f"{job}|{file(job, 'state').read_text()}|localhost")


def scancel(job):
    file(job, "cancelled").touch()
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(int(file(job, "pid").read_text()), number)
        except ProcessLookupError:
            break
        time.sleep(0.2)


def scontrol(*arguments):
    if arguments[0] == "requeue":
        file(arguments[1], "again").touch()
    else:  # show hostnames
        print("\\n".join(arguments[2].split(",")))


globals()[sys.argv[1]](*sys.argv[2:])
"""


def installed(folder: Path) -> Mapping[str, str]:
    """Put it into the folder; environment variables with which its commands are found."""
    folder.mkdir()
    (folder / "slurm.py").write_text(PROGRAM)
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        command = shlex.join([sys.executable, str(folder / "slurm.py"), name])
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)
    return {"FAKE_SLURM": str(folder), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
