#!/usr/bin/env python3
"""Images and volumes between two Docker Engines, each behind a real sshd on loopback: runbook beside what people do by hand, in turns, in one run.

    tests/bench/docker.py [--rounds N] [--layers N] [--mib N] [--json]

An image of --layers layers (6) of --mib MiB (40) each that the other engine does not have at all, then one of which it lacks the last layer:
`docker save | ssh docker load` against Image.copy_from. A volume of 300 MiB in one file and 2000 small ones, first and delta pass: with what was
copied compared by size and time, `rsync -aHAX --numeric-ids` on the old host against Volume.copy_from with `verify: "size"`; and compared by content,
the same rsync and then `sha256sum` on both hosts against Volume.copy_from. Each pass is timed as a whole, runbook with its start, its connections and its
journal; the median counts. The most memory that runbook held is printed. Uses the binary in RUNBOOK, or target/release, or target/debug.
Needs root, and the packages docker.io, openssh-server and rsync.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True

from common import Place, arguments, run, sh  # noqa: E402

CAPSULE = """ip link set lo up
exec dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" -H "unix://$1/docker.sock" --iptables=false --ip-masq=false \
  --ip-forward=false --userland-proxy=false --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$2" --log-level=error"""


class Site(Place):
    """Two hosts, `old` and `new`, with an engine each, and a project that knows them."""

    def __init__(self, folder, runbook):
        super().__init__(folder, runbook)
        sh(f"mkdir -p /run/sshd {folder}/project; ssh-keygen -q -t ed25519 -N '' -f {folder}/key")
        self.port, inventory = {}, ["[environments.bench]"]
        for i, host in enumerate(["old", "new"]):
            home = folder / host
            port = self.port[host] = 20000 + os.getpid() % 20000 + i
            sh(f"mkdir -p {home}/.ssh; ssh-keygen -q -t ed25519 -N '' -f {home}/key; cp {folder}/key.pub {home}/keys")
            lines = [f"ListenAddress 127.0.0.1:{port}", f"HostKey {home}/key", f"AuthorizedKeysFile {home}/keys {home}/.ssh/authorized_keys"]
            lines += ["PidFile none", "StrictModes no", "UsePAM no", "PermitRootLogin yes", "MaxStartups 100", f"SetEnv HOME={home}"]
            (home / "sshd").write_text("\n".join(lines) + "\n")
            self.start("/usr/sbin/sshd", "-D", "-f", home / "sshd")
            (home / "engine").mkdir()
            capsule = ["--fork", "--pid", "--mount", "--net", "--ipc", "--mount-proc", "--kill-child"]
            self.start("unshare", *capsule, "sh", "-c", CAPSULE, "sh", home / "engine", f"rb-bench-{os.getpid()}-{host}")
            key = (home / "key.pub").read_text().split()
            with open(folder / "known_hosts", "a") as known:
                known.write(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
            inventory += [f"[environments.bench.hosts.{host}]", f'ssh = "root@127.0.0.1:{port}"', 'ssh_config = "none"']
            inventory += [f'identity_file = "{folder}/key"', f'known_hosts = "{folder}/known_hosts"']
            inventory += [f"[environments.bench.engines.{host}]", 'kind = "docker"', f'host = "{host}"', f'socket = "{home}/engine/docker.sock"']
        (folder / "project/runbook.toml").write_text("\n".join(inventory) + "\n")
        for host in ["old", "new"]:
            end = time.monotonic() + 60
            while subprocess.run(self.docker(host, "version"), shell=True, capture_output=True).returncode:
                if time.monotonic() > end:
                    sys.exit(f"tests/bench/docker.py: the engine of {host} does not start")
                time.sleep(0.1)
        self.ssh = f"ssh -F /dev/null -i {folder}/key -o IdentitiesOnly=yes -o UserKnownHostsFile={folder}/known_hosts -p {self.port['new']} root@127.0.0.1"

    def docker(self, host, words):
        return f"docker -H unix://{self.at}/{host}/engine/docker.sock {words}"

    def end(self):
        super().end()
        for group in Path("/sys/fs/cgroup").glob(f"**/rb-bench-{os.getpid()}-*"):
            for folder, _, _ in os.walk(group, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass


def measure(site, given, timed):
    old, new = (lambda words: sh(site.docker("old", words))), (lambda words: sh(site.docker("new", words)))
    build = site.at / "build"
    build.mkdir()
    for version in ["1", "2"]:
        names = [f"l{i}" for i in range(given.layers - 1)] + [f"top{version}"]
        for name in names:
            if not (build / name).exists():
                sh(f"head -c {given.mib}M /dev/urandom >{build / name}")
        (build / "Dockerfile").write_text("FROM scratch\n" + "".join(f"COPY {n} /{n}\n" for n in names))
        old(f"build -q -t shop:{version} {build}")
    volume = old("volume create data") and old("volume inspect -f '{{.Mountpoint}}' data")
    sh(f"cd {volume}; head -c 300M /dev/urandom >big; for i in $(seq 2000); do head -c 9000 /dev/urandom >f$i; done")

    def image(version, way):
        if way == "runbook":
            return lambda: site.step(f'docker("new").image("shop:{version}").copy_from(docker("old"));')
        load = shlex.quote(site.docker("new", "load -q"))
        return lambda: sh(f"{site.docker('old', f'save shop:{version}')} | {site.ssh} {load}")

    def files(way, sums):
        name = f"{way.split()[-1]}-{'content' if sums else 'size'}"
        if way == "runbook":
            verify = "" if sums else ', verify: "size"'
            return lambda: site.step(f'docker("new").volume("{name}").copy_from(docker("old"), #{{ name: "data"{verify} }});')
        target = new(f"volume create {name}") and new(f"volume inspect -f '{{{{.Mountpoint}}}}' {name}")
        copy = f"rsync -aHAX --numeric-ids --delete -e {shlex.quote(site.ssh.rsplit(' ', 1)[0])} {volume}/ root@127.0.0.1:{target}/"
        hashes = "find . -type f -print0 | sort -z | xargs -0 sha256sum"
        compare = f"cmp <(cd {volume}; {hashes}) <({site.ssh} {shlex.quote(f'cd {target}; {hashes}')})"
        return lambda: sh(f"{copy}; {compare}" if sums else copy)

    for n in range(given.rounds):
        print(f"== round {n + 1} of {given.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
        # Another one goes first in each round.
        ways = ["by hand", "runbook"] if n % 2 else ["runbook", "by hand"]
        for way in ways:
            new("image prune -af")
            timed("image, all of it", way, image(1, way))
            timed("image, one layer of it", way, image(2, way))
            ids = [sh(site.docker(h, "image inspect -f '{{.Id}}' shop:1 shop:2")) for h in ["old", "new"]]
            assert ids[0] == ids[1], ids
        passes = [(way, sums) for sums in [False, True] for way in ways]
        named = {True: ", compared by content", False: ""}
        for name in new("volume ls -q").split():
            new(f"volume rm {name}")
        for way, sums in passes:
            timed(f"volume, first{named[sums]}", way, files(way, sums))
        sh(f"cd {volume}; head -c 10M /dev/urandom | dd of=big bs=1M seek={n * 20} conv=notrunc status=none; for i in $(seq 20); do echo more >>f$i; done")
        for way, sums in passes:
            timed(f"volume, delta{named[sums]}", way, files(way, sums))
        for name in new("volume ls -q").split():
            sh(f"diff -r {volume} {new('volume inspect -f {{.Mountpoint}} ' + name)}")


def main():
    run(Site, "by hand", measure, arguments(__doc__, layers=6, mib=40).parse_args())


if __name__ == "__main__":
    main()
