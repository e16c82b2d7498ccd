"""What benchmarks of one binary beside another way share: shell scripts, the binary, a runbook of one step, the table at the end."""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
ME = f"tests/bench/{Path(sys.argv[0]).name}"


def sh(script, **more):
    """Runs a script, and ends all with what it said when it fails."""
    done = subprocess.run(["bash", "-c", "set -e -o pipefail; " + script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more)
    if done.returncode:
        sys.exit(f"{ME}: {script}\n{done.stdout}")
    return done.stdout.strip()


def binary():
    """The binary in RUNBOOK, or target/release, or target/debug."""
    built = [os.environ.get("RUNBOOK"), TOP / "target/release/runbook", TOP / "target/debug/runbook"]
    return next((str(Path(b).absolute()) for b in built if b and os.access(b, os.X_OK)), None) or sys.exit("build the binary first: cargo build --release")


def arguments(description, **numbers):
    """The command line: --rounds, --json, and these numbers. Call `parse_args` on it."""
    ask = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"rounds": 3, **numbers}.items():
        ask.add_argument(f"--{name}", type=int, default=value)
    ask.add_argument("--json", action="store_true")
    return ask


class Place:
    """A folder with a project, whose runbooks are timed."""

    def __init__(self, at, runbook):
        self.at, self.runbook, self.peak, self.children = at, runbook, 0, []

    def start(self, *words):
        self.children.append(subprocess.Popen([str(w) for w in words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def step(self, script, **env):
        """Runs a runbook of one step; remembers the most memory that it took."""
        (self.at / "project/a.rhai").write_text(f'step "It" {{ {script} }}\n')
        with open(self.at / "out", "wb") as out:
            words = [self.runbook, "run", "a.rhai", "--env", "bench", "--yes"]
            child = subprocess.Popen(words, cwd=self.at / "project", stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **env})
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit((self.at / "out").read_text())
        self.peak = max(self.peak, usage.ru_maxrss // 1024)

    def end(self):
        for child in self.children:
            child.kill()
            child.wait()


class Times:
    """How long each way took for each thing; `other` is the way that runbook is compared with, further ones are shown beside it."""

    def __init__(self, other):
        self.other, self.all = other, {}

    def take(self, what, way, work):
        sh("sync")
        began = time.monotonic()
        work()
        self.all.setdefault((what, way), []).append(time.monotonic() - began)
        print(f"   {what}, {way}: {self.all[what, way][-1]:.2f} s", file=sys.stderr)

    def show(self, peak, as_json):
        ways = sorted(dict.fromkeys(way for _, way in self.all), key=lambda way: (way == "runbook", way != self.other))
        rows = []
        for what in dict.fromkeys(w for w, _ in self.all):
            took = {way: statistics.median(self.all[what, way]) for way in ways}
            rows.append({"what": what} | {way.replace(" ", "_"): round(took[way], 2) for way in ways} | {"ratio": round(took["runbook"] / took[self.other], 2)})
        if as_json:
            print(json.dumps({"passes": rows, "memory_mib": peak}, indent=1))
            return
        print(f"| what | {' | '.join(f'{way} (s)' for way in ways)} | ratio |\n|---|{'---:|' * (len(ways) + 1)}")
        for r in rows:
            print("| " + " | ".join(f"{n:.2f}" if isinstance(n, float) else n for n in r.values()) + " |")
        print(f"\nThe most memory that runbook held: {peak} MiB")


def run(place, other, measure, given):
    """Makes the place in a folder of its own, measures, and shows it; whatever happens nothing is left."""
    folder = Path(tempfile.mkdtemp(prefix="rb-bench-", dir="/tmp"))
    site, times = place(folder, binary()), Times(other)
    try:
        measure(site, given, times.take)
    finally:
        site.end()
        shutil.rmtree(folder, ignore_errors=True)
    times.show(site.peak, given.json)
