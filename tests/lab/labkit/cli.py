"""The commands of `tests/lab/lab`."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time

from . import capsule, faults, hosts, image, locks, scenario
from .places import CACHE, HOSTS, IDENTITY, KNOWN_HOSTS, RUN, SOCKET, SSH_CONFIG
from .process import LabError, say


# Says that the lab was started by `use` for one command.
TRANSIENT = RUN.with_name(RUN.name + ".transient")


def up():
    """Starts the lab, or finds it up. Cleans up first what a crash has left."""
    started = time.monotonic()
    if capsule.answers() and image.has(image.tag()) and all(hosts.state(h) == "running" for h in HOSTS.values()):
        say("is up already")
        return
    down(quiet=True)
    # Before the engine starts: what is slow should not wait for anything.
    image.build()
    try:
        RUN.mkdir(parents=True, exist_ok=True)
        RUN.chmod(0o700)
        hosts.make_keys()
        capsule.start()
        image.ready()
        hosts.create()
    except BaseException:
        # Half a lab helps nobody; its log does.
        keep = RUN / "engine.log"
        if keep.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            shutil.copy(keep, CACHE / "last-failure.log")
            say(f"the engine's log is {CACHE}/last-failure.log")
        down(quiet=True)
        raise
    say(f"up in {time.monotonic() - started:.1f} s: {', '.join(f'{h.name} {h.address}' for h in HOSTS.values())}")


def down(quiet=False):
    was = capsule.pid() is not None
    faults.end_delay()
    capsule.stop()
    shutil.rmtree(RUN, ignore_errors=True)
    if not quiet:
        say("is down" if was else "was not up")


def status():
    """Prints what is up; the exit status tells whether all of it is."""
    if not capsule.answers():
        print("down")
        return 1
    good = True
    for host in HOSTS.values():
        state = hosts.state(host)
        reached = hosts.answers(host)
        good = good and state == "running" and reached
        failed = hosts.execute(host, "systemctl", "--failed", "--plain", "--no-legend", check=False).stdout.split("\n") if state == "running" else []
        failed = [line.split()[0] for line in failed if line.strip()]
        note = f", failed: {' '.join(failed)}" if failed else ""
        print(f"{host.name:6} {host.address:15} {state}, ssh {'answers' if reached else 'does not answer'}{note}")
    for line in faults.shown():
        print(line)
    print(f"ssh -F {SSH_CONFIG} HOST; docker -H unix://{SOCKET}; keys {IDENTITY}, {KNOWN_HOSTS}")
    return 0 if good else 1


def use(words):
    """Runs a command that has the lab to itself: starts the lab when it is not up, and ends it afterwards if it did."""
    with locks.held(locks.USE, " ".join(words)[:100]):
        with locks.held(locks.CHANGE, "up"):
            if TRANSIENT.exists():
                # Nobody but us holds it now: whoever it was made for did not live to end it.
                down(quiet=True)
                TRANSIENT.unlink()
            was = capsule.answers()
            if not was:
                # First, so that a lab of which half is up is known for what it is.
                TRANSIENT.touch()
            up()
            if was:
                faults.heal()
        # The command decides what Ctrl-C means; the lab is ended when it has ended.
        child = subprocess.Popen(words, env={**os.environ, "RUNBOOK_LAB_RUN": str(RUN)})
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda n, _: n == signal.SIGINT or child.send_signal(n))
        try:
            return child.wait()
        finally:
            with locks.held(locks.CHANGE, "down"):
                if was:
                    faults.heal()
                else:
                    down()
                    TRANSIENT.unlink(missing_ok=True)


def fault(args):
    kind, words = args.kind, args.words
    wants = {"kill": (1, 9), "partition": (1, 9), "heal": (0, 0), "slow": (3, 3), "disk-full": (1, 1), "reboot": (1, 2)}
    low, high = wants[kind]
    if not low <= len(words) <= high:
        raise LabError(f"fault {kind}: see `lab --help`")
    if kind == "heal":
        faults.heal()
    elif kind == "slow":
        faults.slow(hosts.find(words[0]), words[1], words[2])
    elif kind == "disk-full":
        print(faults.disk_full(hosts.find(words[0])))
    elif kind == "reboot":
        hard = words[1:] == ["hard"]
        if words[1:] and not hard:
            raise LabError("fault reboot HOST [hard]")
        hosts.reboot(hosts.find(words[0]), hard)
    elif kind == "partition":
        faults.partition([hosts.find(w) for w in words])
    else:
        for host in [hosts.find(w) for w in words]:
            faults.kill(host)


def cutover(kind, words):
    """Prints what the customer saw; the exit status tells whether it is what it must be."""
    rollback = "rollback" in words
    binary = next((w for w in words if w != "rollback"), None) or scenario.default_binary()
    seen = scenario.cutover(kind, os.path.abspath(binary), rollback)
    print(json.dumps(seen, indent=2))
    return 0 if seen["lost"] == [] and seen["doubled"] == 0 and seen["served_by"] == ("old" if rollback else "new") else 1


HELP = """
commands:
  up                       start the lab, or find it up; builds the image when it is missing or out of date
  down                     end it and remove everything but the cache
  status                   what is up; exit status 1 when not all is
  ssh HOST [COMMAND…]      a shell, or a command, on a host
  image                    build the image ahead (needs no lab)
  use COMMAND…             run a command that has the lab to itself; ends the lab afterwards unless it was up before
  forget                   remove the cache too
  seed KIND                set up the shop of runbooks/cutover on all hosts, as before the migration; KIND: mariadb or postgresql
  project DIR              write a project whose environments lab-mariadb and lab-postgres are the lab
  cutover KIND [rollback] [BINARY]   seed, move the shop while a customer orders, print what was seen as JSON
  fault kill HOST…         off at once, as when the power goes
  fault reboot HOST [hard] down and up again; `hard`: without a word to its init
  fault partition HOST…    no frame to or from these hosts
  fault slow HOST RATE DELAY   such as `slow old 10mbit 50ms`: a rate each way, a delay for each round trip
  fault disk-full HOST     no room on its data disk (/root, /home, /srv, databases)
  fault heal               take all of these back
"""


def main(words):
    parser = argparse.ArgumentParser(prog="lab", description="Real servers for tests and benchmarks.", epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("up", "down", "status", "image", "forget"):
        commands.add_parser(name)
    for name, rest in (("ssh", "words"), ("use", "words")):
        p = commands.add_parser(name)
        if name == "ssh":
            p.add_argument("host")
        p.add_argument(rest, nargs=argparse.REMAINDER)
    for name in ("seed", "project", "cutover"):
        p = commands.add_parser(name)
        p.add_argument("what")
        if name == "cutover":
            p.add_argument("words", nargs="*")
    p = commands.add_parser("fault")
    p.add_argument("kind", choices=["kill", "partition", "heal", "slow", "disk-full", "reboot"])
    p.add_argument("words", nargs="*")
    args = parser.parse_args(words)
    if os.geteuid() != 0:
        raise LabError("it needs root: namespaces, mounts, network devices")
    if args.command == "status":
        return status()
    if args.command == "ssh":
        return hosts.ssh(hosts.find(args.host), args.words)
    if args.command == "use":
        if not args.words:
            raise LabError("use COMMAND…")
        return use(args.words[1:] if args.words[0] == "--" else args.words)
    if args.command == "project":
        scenario.project(args.what)
        return 0
    if args.command == "cutover":
        return cutover(args.what, args.words)
    if args.command == "image":
        image.build()
        return 0
    with locks.held(locks.CHANGE, args.command):
        if args.command == "up":
            up()
        elif args.command == "seed":
            scenario.seed(args.what)
        elif args.command == "down":
            down()
            TRANSIENT.unlink(missing_ok=True)
        elif args.command == "forget":
            down(quiet=True)
            image.forget()
        else:
            fault(args)
    return 0


def start():
    # A terminal that goes away must not leave half a lab: the same way out as Ctrl-C.
    def out(number, _):
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, out)
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as e:
        print(f"lab: {e}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
