"""Faults on demand: hosts cut off, slow links, full disks. `heal` takes all of them back.

Rules lie in the lab's network, not in the hosts, so that they stay in force when a host reboots.
"""

import json
import os
import re
import signal
import subprocess
import sys

from . import capsule, hosts
from .places import HOSTS, RUN, SOURCE
from .process import LabError, docker, until

TABLE = "lab_faults"
DELAYS = RUN / "delays.json"
FILLER = "/data/.lab-filler"
QUEUE = 7


def kill(host):
    hosts.kill(host)


def partition(cut):
    """Drops every packet from and to these hosts, also those of standing connections, without a word to either side."""
    text = f"""
        table bridge {TABLE} {{
            set cut {{ type ipv4_addr; }}
            chain forward {{ type filter hook forward priority -300; policy accept; }}
        }}
        flush chain bridge {TABLE} forward
        add rule bridge {TABLE} forward ip saddr @cut drop
        add rule bridge {TABLE} forward ip daddr @cut drop
        add rule bridge {TABLE} forward arp saddr ip @cut drop
        add rule bridge {TABLE} forward arp daddr ip @cut drop
    """
    rules = [f"add element bridge {TABLE} cut {{ {host.address} }}\n" for host in cut]
    capsule.inside("nft", "-f", "-", stdin=text + "".join(rules))


def slow(host, rate, delay):
    """Limits the host's link to a rate in both directions, and makes each round trip to it last longer by a delay."""
    if not re.fullmatch(r"\d+(\.\d+)?[kmg]bit", rate):
        raise LabError(f'"{rate}" is not a rate; write it like 10mbit or 512kbit')
    found = re.fullmatch(r"(\d+)ms", delay)
    if not found:
        raise LabError(f'"{delay}" is not a delay; write it like 50ms, or 0ms for none')
    _limit(host, rate)
    delays = _delays()
    delays[host.address] = int(found[1])
    _set_delays(delays)


def _limit(host, rate):
    # Token bucket at both ends of the host's cable: a queue of 64 KiB or 50 ms, whichever is longer.
    words = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "50ms"]
    capsule.inside("tc", "qdisc", "replace", "dev", _port(host), *words)
    hosts.execute(host, "tc", "qdisc", "replace", "dev", "eth0", *words)


def _port(host):
    """The lab's end of the host's cable."""
    index = hosts.execute(host, "cat", "/sys/class/net/eth0/iflink").strip()
    for link in json.loads(capsule.inside("ip", "-j", "link")):
        if str(link["ifindex"]) == index:
            return link["ifname"]
    raise LabError(f"the cable of {host.name} is not to be found")


def _delays():
    try:
        return json.loads(DELAYS.read_text())
    except OSError:
        return {}


def _set_delays(delays):
    """Has packets to these addresses wait. The kernel here may lack netem, so that a small program (delay.py) holds them instead."""
    delays = {address: ms for address, ms in delays.items() if ms}
    end_delay()
    table = f"table ip {TABLE}_delay {{}}\ndelete table ip {TABLE}_delay\n"
    capsule.inside("nft", "-f", "-", stdin=table)
    capsule.inside("iptables", "-F", "FORWARD", check=False)
    DELAYS.write_text(json.dumps(delays))
    if not delays:
        return
    capsule.inside("sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=1")
    log = open(RUN / "delay.log", "ab")
    words = ["nsenter", "-t", str(capsule.pid()), "-n", "--", sys.executable, str(SOURCE / "labkit" / "delay.py"), str(QUEUE), json.dumps(delays)]
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    log.close()
    (RUN / "delay.pid").write_text(f"{child.pid}\n")
    until("delay.py starts (see delay.log)", lambda: child.poll() is None and capsule.inside("cat", "/proc/net/netfilter/nfnetlink_queue").strip(), 10)
    for address in delays:
        # If the program ends, packets pass: a fault that is over, not another one.
        capsule.inside("iptables", "-A", "FORWARD", "-d", address, "-j", "NFQUEUE", "--queue-num", QUEUE, "--queue-bypass")


def end_delay():
    """Ends the program that holds packets back; it does not live in the capsule."""
    try:
        pid = int((RUN / "delay.pid").read_text())
    except (OSError, ValueError):
        return
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            ours = b"delay.py" in f.read()
        if ours:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
    (RUN / "delay.pid").unlink(missing_ok=True)


def disk_full(host):
    """Takes all free room of the host's data disk. The room is only set aside: nothing is written on this machine's disk."""
    script = (
        f"f={FILLER}; : >>$f; free=$(df --output=avail -B1 /data | tail -n 1); "
        "while [ $free -ge 4096 ]; do fallocate -o $(stat -c %s $f) -l $free $f 2>/dev/null || free=$((free / 2 / 4096 * 4096)); done; df -h /data | tail -n 1"
    )
    return hosts.execute(host, "sh", "-c", script).strip()


def heal():
    """Takes back every fault: hosts that are off start, links are whole and fast, disks have room."""
    capsule.inside("nft", "-f", "-", stdin=f"table bridge {TABLE} {{}}\ndelete table bridge {TABLE}\n")
    _set_delays({})
    for host in HOSTS.values():
        hosts.start(host)
        hosts.execute(host, "rm", "-f", FILLER)
        hosts.execute(host, "tc", "qdisc", "del", "dev", "eth0", "root", check=False)
        capsule.inside("tc", "qdisc", "del", "dev", _port(host), "root", check=False)
    # A frozen host would look healed.
    for host in HOSTS.values():
        if docker("inspect", "--format", "{{.State.Paused}}", host.name).strip() == "true":
            docker("unpause", host.name)


def shown():
    """The faults in force, as lines for people."""
    lines = []
    listed = capsule.inside("nft", "list", "table", "bridge", TABLE, check=False)
    text = listed.stdout if listed.returncode == 0 else ""
    for host in HOSTS.values():
        if re.search(rf"\b{re.escape(host.address)}\b", text):
            lines.append(f"{host.name} is cut off")
    for address, ms in _delays().items():
        name = next((h.name for h in HOSTS.values() if h.address == address), address)
        lines.append(f"{name} answers {ms} ms later")
    return lines
