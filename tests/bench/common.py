"""What the benchmarks share: commands that must work, waiting, a lab that goes away."""

import json
import subprocess
import sys
import time

DEADLINE_S = 120
PAUSE_S = 0.05


def run(*args, **options):
    """A command's output. Ends the benchmark with what it said when it fails."""
    done = subprocess.run(args, text=True, capture_output=True, **options)
    if done.returncode != 0:
        sys.exit(f"bench: {' '.join(args)}: {done.stderr or done.stdout}")
    return done.stdout


def until(what, probe):
    end = time.monotonic() + DEADLINE_S
    while not probe():
        if time.monotonic() > end:
            sys.exit(f"bench: not within {DEADLINE_S} s: {what}")
        time.sleep(PAUSE_S)


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
        self.programs.append(subprocess.Popen(self.command(host, *args), stdout=stdout, stderr=subprocess.DEVNULL))
        return self.programs[-1]
