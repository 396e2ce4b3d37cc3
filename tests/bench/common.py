"""What the benchmarks share: commands that must work, waiting, a root folder of busybox, a lab that goes away."""

import json
import pathlib
import shutil
import subprocess
import sys
import time

DEADLINE_S = 180
PAUSE_S = 0.05


def run(*args, **options):
    """A command's output. Ends the benchmark with what it said when it fails."""
    done = subprocess.run(args, text=True, capture_output=True, **options)
    if done.returncode != 0:
        sys.exit(f"bench: {' '.join(map(str, args))}: {done.stderr or done.stdout}")
    return done.stdout


def tried(*args):
    """A command's output; None when it fails."""
    done = subprocess.run(args, text=True, capture_output=True)
    return done.stdout if done.returncode == 0 else None


def until(what, probe, pause_s=PAUSE_S):
    """What the probe finds in the end."""
    end = time.monotonic() + DEADLINE_S
    while not (found := probe()):
        if time.monotonic() > end:
            sys.exit(f"bench: not within {DEADLINE_S} s: {what}")
        time.sleep(pause_s)
    return found


def busybox_root(folder, *tools):
    """A root folder with nothing but busybox, under these names."""
    root = pathlib.Path(folder) / "root"
    for name in ("bin", "proc", "sys", "dev", "etc", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for tool in tools:
        (root / "bin" / tool).symlink_to("busybox")
    return root


def busybox_tar(folder, *tools):
    """The same for an import."""
    run("tar", "-C", busybox_root(folder, *tools), "-cf", f"{folder}/root.tar", ".")
    return f"{folder}/root.tar"


class Lab:
    """A cluster on this machine; `with` takes it down."""

    def __init__(self, binary, name, nodes, managers=1):
        self.binary, self.name, self.programs, self.address = binary, name, [], {}
        self.counts = ("--nodes", str(nodes), "--managers", str(managers))

    def __enter__(self):
        try:
            self.verb("up", *self.counts)
            hosts = json.loads(self.verb("ls", "--format", "json"))
        except BaseException:
            self.__exit__()
            raise
        self.address = {host["name"]: host["address"] for host in hosts}
        return self

    def __exit__(self, *_):
        for program in self.programs:
            program.terminate()
            program.wait()
        subprocess.run([self.binary, "lab", "down", "--name", self.name], capture_output=True)

    def verb(self, verb, *args):
        return run(self.binary, "lab", verb, "--name", self.name, *args)

    def command(self, host, *args):
        return (self.binary, "lab", "exec", "--name", self.name, host, "--", *args)

    def on(self, host, *args):
        return run(*self.command(host, *args))

    def orch(self, *args):
        return self.on("n1", "orch", *args)

    def begin(self, host, *args, stdout=subprocess.DEVNULL):
        """In the background, until the lab goes."""
        command = self.command(host, *args)
        self.programs.append(subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL, text=True))
        return self.programs[-1]
