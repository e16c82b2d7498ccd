"""Running programs, and the one kind of error that the lab raises."""

import subprocess
import sys
import time

from .places import SOCKET


class LabError(Exception):
    """Something the lab cannot do; its text is for the person at the terminal."""


def say(text):
    print(f"lab: {text}", file=sys.stderr, flush=True)


def run(*args, check=True, stdin=None, timeout=120, env=None):
    """Runs a program and returns what it printed; raises with its own words when it fails."""
    args = [str(a) for a in args]
    try:
        done = subprocess.run(args, input=stdin, capture_output=True, text=True, timeout=timeout, check=False, env=env)
    except FileNotFoundError as e:
        raise LabError(f"{args[0]} is not installed (tests/run installs it)") from e
    except subprocess.TimeoutExpired as e:
        raise LabError(f"no answer within {timeout} s: {' '.join(args)}") from e
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise LabError(f"{' '.join(args[:8])}: exit status {done.returncode}: {said}")
    return done.stdout if check else done


def docker(*args, **options):
    """Asks the lab's own engine, whatever this machine's docker is set to."""
    return run("docker", "-H", f"unix://{SOCKET}", *args, **options)


def until(what, test, within=60.0, every=0.05):
    """Waits until `test()` is true."""
    end = time.monotonic() + within
    while True:
        last = test()
        if last:
            return last
        if time.monotonic() > end:
            raise LabError(f"{what}: not so after {within:.0f} s")
        time.sleep(every)
