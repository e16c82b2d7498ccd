"""The hosts: containers with systemd, sshd, keys of their own and a data disk."""

import json
import re
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import image
from .places import DISKS, HOSTS, IDENTITY, KNOWN_HOSTS, ME, NETWORK, RUN, SSH_CONFIG
from .process import LabError, docker, run, until


def find(name):
    if name not in HOSTS:
        raise LabError(f'there is no host "{name}"; there are {", ".join(HOSTS)}')
    return HOSTS[name]


def _keygen(path, comment):
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)


def make_keys():
    """The lab's login key, a host key per host, and the files that let ssh and runbook trust exactly these."""
    _keygen(IDENTITY, "the lab's login")
    known, config = [], []
    for host in HOSTS.values():
        shutil.rmtree(host.own, ignore_errors=True)
        host.own.mkdir(parents=True)
        _keygen(host.own / "host_key", host.name)
        shutil.copy(IDENTITY.with_suffix(".pub"), host.own / "authorized_keys")
        public = (host.own / "host_key.pub").read_text().split()
        known.append(f"{host.name},{host.address} {public[0]} {public[1]}\n")
        config.append(f"Host {host.name}\n    HostName {host.address}\n")
    KNOWN_HOSTS.write_text("".join(known))
    config.append(
        f"Host *\n    User root\n    IdentityFile {IDENTITY}\n    IdentitiesOnly yes\n    UserKnownHostsFile {KNOWN_HOSTS}\n"
        "    GlobalKnownHostsFile /dev/null\n    StrictHostKeyChecking yes\n"
    )
    SSH_CONFIG.write_text("".join(config))
    # For programs that use the lab: where its hosts are.
    (RUN / "hosts.json").write_text(json.dumps({h.name: h.address for h in HOSTS.values()}))
    # A key for dynamic updates of the lab's zone.
    secret = run("openssl", "rand", "-base64", "32").strip()
    (RUN / "tsig").write_text(secret + "\n")
    (RUN / "tsig").chmod(0o600)
    # The shop's password for its database.
    password = run("openssl", "rand", "-hex", "16")
    # What opens the backups on the vault.
    (RUN / "restic").write_text(run("openssl", "rand", "-hex", "16"))
    (RUN / "restic").chmod(0o600)
    (RUN / "app_password").write_text(password)
    (RUN / "app_password").chmod(0o600)
    (RUN / "replication_password").write_text(run("openssl", "rand", "-hex", "16"))
    (RUN / "replication_password").chmod(0o600)
    for host in HOSTS.values():
        (host.own / "app_password").write_text(password)
        (host.own / "tsig.conf").write_text(f'key "lab" {{ algorithm hmac-sha256; secret "{secret}"; }};\n')


def create():
    """Starts all hosts and waits until they have booted."""
    (RUN / "resolv.conf").write_text(f"nameserver {HOSTS['edge'].address}\n")
    with ThreadPoolExecutor() as pool:
        list(pool.map(_create, HOSTS.values()))
        list(pool.map(wait_booted, HOSTS.values()))


def _create(host):
    docker("rm", "-f", host.name, check=False)
    names = [word for other in HOSTS.values() for word in ("--add-host", f"{other.name}:{other.address}")]
    docker(
        "run", "--detach", "--name", host.name, "--hostname", host.name, *_rights(), "--cgroupns=private",
        "--network", NETWORK, "--ip", host.address, *names, "--add-host", f"controller:{ME}",
        "--tmpfs", "/run:exec,mode=755", "--tmpfs", "/tmp:exec,mode=1777",
        "-v", f"{DISKS / host.name}:/data", "-v", f"{host.own}:/lab/own:ro", "-v", f"{RUN / 'resolv.conf'}:/etc/resolv.conf:ro",
        "-e", "container=docker", "-e", f"LAB_UNITS={' '.join(host.units)}", "--stop-signal", "SIGRTMIN+3", "--stop-timeout", "20",
        image.tag(),
    )  # fmt: skip


def _rights():
    """The rights of a machine's root, as far as we have them ourselves: `--privileged` fails where one is missing. `entry` mounts what
    that would have mounted."""
    mine = int(re.search(r"CapBnd:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16)
    lacking = [word for bit, name in ((24, "SYS_RESOURCE"), (17, "SYS_RAWIO"), (25, "SYS_TIME")) if not mine >> bit & 1 for word in ("--cap-drop", name)]
    return [
        "--cap-add", "ALL", *lacking, "--device-cgroup-rule", "a *:* rwm",
        "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined", "--security-opt", "systempaths=unconfined",
    ]  # fmt: skip


def answers(host, port=22):
    """Whether something listens there."""
    try:
        with socket.create_connection((host.address, port), timeout=2) as s:
            return port != 22 or s.recv(4) == b"SSH-"
    except OSError:
        return False


def wait_booted(host, within=90.0):
    until(f"{host.name} boots", lambda: answers(host) or _still_runs(host), within)
    # `degraded` is booted too; which unit failed is for `status` to say.
    state = execute(host, "systemctl", "is-system-running", "--wait", check=False, timeout=within).stdout.strip()
    if state not in ("running", "degraded"):
        raise LabError(f"{host.name} does not boot: systemd says {state or 'nothing'}")


def _still_runs(host):
    if state(host) != "running":
        said = docker("logs", "--tail", "10", host.name, check=False)
        raise LabError(f"{host.name} ended while it booted: {said.stdout}{said.stderr}")
    return False


def execute(host, *words, check=True, stdin=None, timeout=120):
    """Runs a program on a host beside ssh, which may be cut off."""
    more = ["-i"] if stdin is not None else []
    return docker("exec", *more, host.name, *words, check=check, stdin=stdin, timeout=timeout)


def state(host):
    done = docker("inspect", "--format", "{{.State.Status}}", host.name, check=False)
    return done.stdout.strip() if done.returncode == 0 else "absent"


def start(host):
    if state(host) != "running":
        docker("start", host.name)
    wait_booted(host)


def kill(host):
    """Off at once, as when the power goes."""
    docker("kill", host.name, check=False)
    until(f"{host.name} is off", lambda: state(host) != "running", 20)


def reboot(host, hard=False):
    """Down, by its own init unless `hard`, and up again."""
    if hard:
        kill(host)
    else:
        docker("stop", host.name)
    start(host)


def ssh_words(host, user="root"):
    return ["ssh", "-F", str(SSH_CONFIG), "-l", user, host.name]


def ssh(host, words):
    """Becomes an ssh session; its exit status."""
    return subprocess.run([*ssh_words(host), *words], check=False).returncode
