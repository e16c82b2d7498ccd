"""The capsule: one process tree in namespaces of its own (processes, mounts, network, IPC) that holds the lab's Docker Engine.

Killing its first process ends every container, mount, loop device and network device of the lab: the kernel sees to that. So nothing of
the lab can stay behind, however its user went away, and this machine's own Docker, firewall and bridges are never touched.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

from .places import BRIDGE, CACHE, CAPSULE, CGROUP, DISK_SIZE, DISKS, GATEWAY, HOSTS, LINK, ME, NET, NETWORK, RUN, SOCKET, SOURCE
from .process import LabError, docker, run, until


def _birth(pid):
    """A process's start time, which tells it from a later one with the same number; None when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def _read():
    try:
        return json.loads(CAPSULE.read_text())
    except (OSError, ValueError):
        return None


def pid():
    """The capsule's first process as this machine numbers it; None when the lab is not up."""
    c = _read()
    return c["init"] if c and _birth(c["init"]) == c["birth"] else None


def inside(*args, **options):
    """Runs a program of this machine in the lab's network: bridges, traffic control, filters."""
    first = pid()
    if first is None:
        raise LabError("the lab is not up: `tests/lab/lab up`")
    return run("nsenter", "-t", first, "-n", "-m", "-p", "--", *args, **options)


def answers():
    return pid() is not None and docker("version", check=False, timeout=10).returncode == 0


def start():
    """Starts the capsule with the engine in it and connects this machine to the lab's network."""
    if f"{NET}." in run("ip", "-4", "-o", "route"):
        raise LabError(f"this machine has a route to {NET}.0/24 already; set RUNBOOK_LAB_NET to other first three bytes")
    for folder in (RUN, DISKS, CACHE / "engine", CACHE / "disks"):
        folder.mkdir(parents=True, exist_ok=True)
    RUN.chmod(0o700)
    (RUN / "daemon.json").write_text("{}\n")
    disks = []
    for host in HOSTS.values():
        host.disk.unlink(missing_ok=True)
        run("truncate", "-s", DISK_SIZE, host.disk)
        # All of it for the tests, no journal to write twice: it lives as long as the lab.
        run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", host.disk)
        disks += [host.disk, DISKS / host.name]
    log = open(RUN / "engine.log", "ab")
    words = ["unshare", "--fork", "--pid", "--mount", "--net", "--ipc", "--mount-proc", "--kill-child", SOURCE / "capsule", RUN, CACHE / "engine", CGROUP]
    first = subprocess.Popen(
        [str(w) for w in words + disks], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/", close_fds=True
    )
    log.close()
    init = until("the capsule starts", lambda: _child(first), within=20)
    CAPSULE.write_text(json.dumps({"init": init, "birth": _birth(init)}))
    until("the lab's Docker Engine answers (see engine.log)", lambda: _alive(first) and SOCKET.exists() and answers(), within=90)
    _connect(init)


def _alive(first):
    if first.poll() is not None:
        raise LabError(f"the capsule ended at once; its last words:\n{_tail(RUN / 'engine.log')}")
    return True


def _child(first):
    _alive(first)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    return int(children[0]) if children else None


def _tail(path, lines=15):
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _connect(init):
    """The hosts' network, with this machine as a member of it by a cable of its own."""
    # The engine remembers the containers and the network of a lab that was ended by force.
    for left in docker("ps", "-aq").split():
        docker("rm", "-f", "-v", left, check=False)
    docker("network", "rm", NETWORK, check=False)
    docker(
        "network", "create", "--driver", "bridge", "--subnet", f"{NET}.0/24", "--gateway", GATEWAY,
        "-o", f"com.docker.network.bridge.name={BRIDGE}", NETWORK,
    )  # fmt: skip
    run("ip", "link", "add", LINK, "type", "veth", "peer", "name", "cable0", "netns", init)
    inside("ip", "link", "set", "cable0", "master", BRIDGE, "up")
    run("ip", "addr", "add", f"{ME}/24", "dev", LINK)
    run("ip", "link", "set", LINK, "up")


def stop():
    """Ends everything. Safe to repeat, and after a crash of any kind."""
    first = pid()
    if first is not None:
        os.kill(first, signal.SIGKILL)
        until("the capsule's processes end", lambda: _birth(first) is None or _zombie(first), within=60)
    CAPSULE.unlink(missing_ok=True)
    until("the cable is gone", lambda: run("ip", "link", "del", LINK, check=False).returncode != 0, within=20)
    SOCKET.unlink(missing_ok=True)
    for host in HOSTS.values():
        host.disk.unlink(missing_ok=True)
    _remove_cgroups()


def _zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def _remove_cgroups():
    for top in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*")):
        folder = top / CGROUP
        if folder.is_dir():
            for path, _, _ in os.walk(folder, topdown=False):
                try:
                    os.rmdir(path)
                except OSError:
                    pass
