#!/usr/bin/env python3
"""Snapshots of a host behind a real sshd on loopback: runbook beside plain restic and plain borg on that host, in turns, in one run.

    tests/bench/backup.py [--rounds N] [--mib N] [--files N] [--only restic,borg] [--json]

A folder of --mib MiB (400) in four files and --files (4000) small ones, first and second pass (10 MiB and 20 files changed), each into repositories of
their own; a new pair of repositories each round. Each pass is timed as a whole: plain is `restic backup` or `borg create` on the host itself; runbook has its
start, its connection, its journal and the list of what was taken on top. The median counts. The most memory that runbook held is printed.
Uses the binary in RUNBOOK, or target/release, or target/debug. Needs root, and the packages restic, borgbackup and openssh-server.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
PASSWORD = "of the benchmark"
PLAIN = {
    "restic": ("restic init -q", "restic backup -q --host old shop"),
    "borg": ("borg init -e repokey", "borg create ::$(date +%s%N) shop"),
}


def sh(script, **more):
    done = subprocess.run(["bash", "-c", "set -e -o pipefail; " + script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more)
    if done.returncode:
        sys.exit(f"tests/bench/backup.py: {script}\n{done.stdout}")
    return done.stdout.strip()


class Site:
    """A host, and a project that knows it."""

    def __init__(self, at, runbook):
        self.at, self.runbook, self.peak, self.home = at, runbook, 0, at / "home"
        port = 20000 + os.getpid() % 20000
        sh(f"mkdir -p /run/sshd {self.home} {at}/project; ssh-keygen -q -t ed25519 -N '' -f {at}/key; ssh-keygen -q -t ed25519 -N '' -f {at}/host")
        lines = [f"ListenAddress 127.0.0.1:{port}", f"HostKey {at}/host", f"AuthorizedKeysFile {at}/key.pub", "PidFile none", "StrictModes no"]
        lines += ["UsePAM no", "PermitRootLogin yes", f"SetEnv HOME={self.home}"]
        (at / "sshd").write_text("\n".join(lines) + "\n")
        self.sshd = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", at / "sshd"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (at / "known_hosts").write_text(f"[127.0.0.1]:{port} " + (at / "host.pub").read_text())
        inventory = ["[environments.bench.hosts.old]", f'ssh = "root@127.0.0.1:{port}"', 'ssh_config = "none"']
        inventory += [f'identity_file = "{at}/key"', f'known_hosts = "{at}/known_hosts"', "[secrets]", 'password = { env = "BENCH_PASSWORD" }']
        for tool in PLAIN:
            inventory += [f"[environments.bench.backups.{tool}]", f'kind = "{tool}"', 'host = "old"', f'repository = "{self.home}/{tool}-ours"', 'password = "password"']
        (at / "project/runbook.toml").write_text("\n".join(inventory) + "\n")

    def plain(self, tool, script):
        where = {f"{tool.upper()}_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": f"{self.home}/restic-plain", "BORG_PASSPHRASE": PASSWORD, "BORG_REPO": f"{self.home}/borg-plain"}
        # A cache of its own: both start with none.
        sh(script, cwd=self.home, env={**os.environ, **where, "HOME": str(self.at / "plain")})

    def ours(self, script):
        """Runs a runbook of one step; remembers the most memory that it took."""
        (self.at / "project/a.rhai").write_text(f'step "Back up" {{ {script} }}\n')
        with open(self.at / "out", "wb") as out:
            words = [self.runbook, "run", "a.rhai", "--env", "bench", "--yes"]
            env = {**os.environ, "BENCH_PASSWORD": PASSWORD}
            child = subprocess.Popen(words, cwd=self.at / "project", stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit((self.at / "out").read_text())
        self.peak = max(self.peak, usage.ru_maxrss // 1024)

    def end(self):
        self.sshd.send_signal(signal.SIGKILL)
        self.sshd.wait()


def measure(site, given):
    times, shop = {}, site.home / "shop"

    def timed(what, way, work):
        sh("sync")
        began = time.monotonic()
        work()
        times.setdefault((what, way), []).append(time.monotonic() - began)

    for n in range(given.rounds):
        for tool in given.only.split(","):
            sh(f"rm -rf {site.home}/{tool}-ours {site.home}/{tool}-plain {shop} {site.home}/.cache {site.home}/.config {site.at}/plain; mkdir -p {shop} {site.at}/plain")
            sh(f"cd {shop}; for i in 1 2 3 4; do head -c {given.mib // 4}M /dev/urandom >big$i; done; for i in $(seq {given.files}); do head -c 9000 /dev/urandom >f$i; done")
            init, backup = PLAIN[tool]
            site.plain(tool, init)
            site.ours(f'backup("{tool}").init();')
            ways = [("plain", lambda: site.plain(tool, backup)), ("runbook", lambda: site.ours(f'backup("{tool}").snapshot(host("old"), "shop");'))]
            for what in ["first", "second"]:
                # Who begins finds the files in no warmer cache than the other: taken in turns.
                for way, work in ways if n % 2 == 0 else ways[::-1]:
                    timed(f"{tool}, {what} pass", way, work)
                sh(f"cd {shop}; dd if=/dev/urandom of=big1 bs=1M count=10 conv=notrunc status=none; for i in $(seq 20); do echo $RANDOM >>f$i; done")
    return times


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--mib", type=int, default=400)
    ask.add_argument("--files", type=int, default=4000)
    ask.add_argument("--only", default="restic,borg")
    ask.add_argument("--json", action="store_true")
    given = ask.parse_args()
    built = [os.environ.get("RUNBOOK"), TOP / "target/release/runbook", TOP / "target/debug/runbook"]
    runbook = next((str(Path(b).absolute()) for b in built if b and os.access(b, os.X_OK)), None) or sys.exit("build the binary first: cargo build --release")
    folder = Path(tempfile.mkdtemp(prefix="rb-bench-", dir="/tmp"))
    site = Site(folder, runbook)
    try:
        times = measure(site, given)
    finally:
        site.end()
        shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for what in dict.fromkeys(w for w, _ in times):
        plain, ours = (statistics.median(times[what, way]) for way in ["plain", "runbook"])
        rows.append({"what": what, "plain": round(plain, 2), "runbook": round(ours, 2), "ratio": round(ours / plain, 2)})
    if given.json:
        print(json.dumps({"passes": rows, "memory_mib": site.peak}, indent=1))
        return
    print("| what | plain (s) | runbook (s) | ratio |\n|---|---:|---:|---:|")
    for r in rows:
        print(f"| {r['what']} | {r['plain']:.2f} | {r['runbook']:.2f} | {r['ratio']:.2f} |")
    print(f"\nThe most memory that runbook held: {site.peak} MiB")


if __name__ == "__main__":
    main()
