#!/usr/bin/env python3
"""Snapshots of a host behind a real sshd on loopback: runbook beside plain restic and plain borg on that host, in turns, in one run.

    tests/bench/backup.py [--rounds N] [--mib N] [--files N] [--only restic,borg] [--json]

A folder of --mib MiB (400) in four files and --files (4000) small ones, first and second pass (10 MiB and 20 files changed), each into repositories of
their own; a new pair of repositories each round. Each pass is timed as a whole: plain is `restic backup` or `borg create` on the host itself; runbook has its
start, its connection, its journal and the list of what was taken on top. The median counts. The most memory that runbook held is printed.
Uses the binary in RUNBOOK, or target/release, or target/debug. Needs root, and the packages restic, borgbackup and openssh-server.
"""

import os
import sys

sys.dont_write_bytecode = True

from common import Place, arguments, run, sh  # noqa: E402

PASSWORD = "of the benchmark"
PLAIN = {
    "restic": ("restic init -q", "restic backup -q --host old shop"),
    "borg": ("borg init -e repokey", "borg create ::$(date +%s%N) shop"),
}


class Site(Place):
    """A host, and a project that knows it."""

    def __init__(self, at, runbook):
        super().__init__(at, runbook)
        self.home = at / "home"
        port = 20000 + os.getpid() % 20000
        sh(f"mkdir -p /run/sshd {self.home} {at}/project; ssh-keygen -q -t ed25519 -N '' -f {at}/key; ssh-keygen -q -t ed25519 -N '' -f {at}/host")
        lines = [f"ListenAddress 127.0.0.1:{port}", f"HostKey {at}/host", f"AuthorizedKeysFile {at}/key.pub", "PidFile none", "StrictModes no"]
        lines += ["UsePAM no", "PermitRootLogin yes", f"SetEnv HOME={self.home}"]
        (at / "sshd").write_text("\n".join(lines) + "\n")
        self.start("/usr/sbin/sshd", "-D", "-f", at / "sshd")
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
        self.step(script, BENCH_PASSWORD=PASSWORD)


def measure(site, given, timed):
    shop = site.home / "shop"
    for n in range(given.rounds):
        for tool in given.only.split(","):
            sh(f"rm -rf {site.home}/{tool}-ours {site.home}/{tool}-plain {shop} {site.home}/.cache {site.home}/.config {site.at}/plain; mkdir -p {shop} {site.at}/plain")
            sh(f"cd {shop}; for i in 1 2 3 4; do head -c {given.mib // 4}M /dev/urandom >big$i; done; for i in $(seq {given.files}); do head -c 9000 /dev/urandom >f$i; done")
            init, backup = PLAIN[tool]
            site.plain(tool, init)
            site.ours(f'backup("{tool}").init();')
            ways = [("plain", lambda: site.plain(tool, backup)), ("runbook", lambda: site.ours(f'backup("{tool}").snapshot(host("old"), "shop");'))]
            for what in ["first", "second"]:
                for way, work in ways if n % 2 == 0 else ways[::-1]:
                    # borg has the system forget what it has read: who comes second would read the disk.
                    sh(f"cat {shop}/* >/dev/null")
                    timed(f"{tool}, {what} pass", way, work)
                sh(f"cd {shop}; dd if=/dev/urandom of=big1 bs=1M count=10 conv=notrunc status=none; for i in $(seq 20); do echo $RANDOM >>f$i; done")


def main():
    ask = arguments(__doc__, mib=400, files=4000)
    ask.add_argument("--only", default="restic,borg")
    run(Site, "plain", measure, ask.parse_args())


if __name__ == "__main__":
    main()
