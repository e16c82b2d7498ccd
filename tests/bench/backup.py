#!/usr/bin/env python3
"""Snapshots of a host behind a real sshd on loopback: runbook beside plain restic and plain borg, in turns, in one run.

    tests/bench/backup.py [--rounds N] [--mib N] [--files N] [--only restic,borg] [--json]

A folder of --mib MiB (400) in four files and --files (4000) small ones, first and second pass (10 MiB and 20 files changed), each into repositories of
their own; new repositories each round. Each pass is timed as a whole: plain is `restic backup` or `borg create` on the host itself; by ssh is the same by
`ssh host …`, from where runbook is; runbook has its start, its connection, its journal and the list of what was taken on top. The median counts. The most memory that runbook held is printed.
Uses the binary in RUNBOOK, or target/release, or target/debug. Needs root, and the packages restic, borgbackup and openssh-server.
"""

import os
import shlex
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
        (at / "password").write_text(PASSWORD)
        self.ssh = f"ssh -F /dev/null -i {at}/key -o IdentitiesOnly=yes -o UserKnownHostsFile={at}/known_hosts -p {port} root@127.0.0.1"

    def shell(self, way, script):
        """What somebody types for one of the other ways, with a repository and a cache of its own."""
        where = [f"RESTIC_REPOSITORY={self.home}/restic-{way}", f"BORG_REPO={self.home}/borg-{way}", f"HOME={self.at}/{way}"]
        where += [f"RESTIC_PASSWORD_FILE={self.at}/password", f"BORG_PASSCOMMAND='cat {self.at}/password'"]
        return f"cd {self.home}; export {' '.join(where)}; {script}"

    def plain(self, script):
        sh(self.shell("plain", script))

    def by_ssh(self, script):
        sh(f"{self.ssh} {shlex.quote(self.shell('ssh', script))}")

    def ours(self, script):
        self.step(script, BENCH_PASSWORD=PASSWORD)


def measure(site, given, timed):
    shop = site.home / "shop"
    for n in range(given.rounds):
        for tool in given.only.split(","):
            sh(f"cd {site.home}; rm -rf {tool}-ours {tool}-plain {tool}-ssh shop .cache .config {site.at}/plain {site.at}/ssh; mkdir -p shop {site.at}/plain {site.at}/ssh")
            sh(f"cd {shop}; for i in 1 2 3 4; do head -c {given.mib // 4}M /dev/urandom >big$i; done; for i in $(seq {given.files}); do head -c 9000 /dev/urandom >f$i; done")
            init, backup = PLAIN[tool]
            site.plain(init)
            site.by_ssh(init)
            site.ours(f'backup("{tool}").init();')
            ways = [("plain", lambda: site.plain(backup)), ("by ssh", lambda: site.by_ssh(backup))]
            ways += [("runbook", lambda: site.ours(f'backup("{tool}").snapshot(host("old"), "shop");'))]
            for what in ["first", "second"]:
                for way, work in ways[n % 3 :] + ways[: n % 3]:
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
