"""The lab's cutover: `runbooks/cutover` between the real servers of the lab, with a customer at the public entry."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import hosts
from .places import HOSTS, NET, RUN, SOURCE
from .process import LabError, run, say

PARTS = SOURCE / "cutover"
CHECKOUT = SOURCE.parent.parent
ENVIRONMENTS = {"mariadb": "lab-mariadb", "postgresql": "lab-postgres"}
RUNBOOK = "runbooks/cutover/runbook.rhai"


def seed(kind):
    """Brings all hosts to the state before the migration, whatever an earlier one has left."""
    if kind not in ENVIRONMENTS:
        raise LabError(f'"{kind}" is none of {", ".join(ENVIRONMENTS)}')
    started = time.monotonic()
    for host in HOSTS.values():
        run("tar", "-C", PARTS / "hosts", "--owner=0", "--group=0", "-cf", RUN / "hosts.tar", ".")
        with open(RUN / "hosts.tar", "rb") as tar:
            done = subprocess.run(
                ["docker", "-H", f"unix://{RUN}/docker.sock", "exec", "-i", host.name, "tar", "-C", "/", "--no-overwrite-dir", "-xf", "-"],
                stdin=tar, capture_output=True, check=False,
            )  # fmt: skip
        if done.returncode != 0:
            raise LabError(f"{host.name}: {done.stderr.decode(errors='replace')}")

    def one(host):
        hosts.execute(host, "env", f"NET={NET}", "/opt/shop/setup", kind, host.name)

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, HOSTS.values()))
    vault()
    say(f"the shop is on {kind} on the host old, as before the migration ({time.monotonic() - started:.1f} s)")


def vault():
    """The old host's own way to the vault, by a key that can do nothing but store files, and a repository of restic there."""
    make = "mkdir -p .ssh && rm -f .ssh/vault .ssh/vault.pub && ssh-keygen -q -t ed25519 -N '' -C vault -f .ssh/vault && cat .ssh/vault.pub"
    public = hosts.execute(HOSTS["old"], "sh", "-c", f"cd /root && {make}").strip()
    hosts.execute(HOSTS["old"], "sh", "-c", "cat >/root/.ssh/vault_known_hosts", stdin=(RUN / "known_hosts").read_text())
    admit = "umask 077; mkdir -p .ssh; touch .ssh/authorized_keys; sed -i '/ vault$/d' .ssh/authorized_keys; cat >>.ssh/authorized_keys"
    hosts.execute(HOSTS["vault"], "sh", "-c", f"cd /root && {admit}", stdin=f'restrict,command="internal-sftp" {public}\n')
    command = f"sftp.command=ssh -i /root/.ssh/vault -o UserKnownHostsFile=/root/.ssh/vault_known_hosts root@{HOSTS['vault'].address} -s sftp"
    # By standard input: a password is nobody's argument.
    hosts.execute(
        HOSTS["old"], "restic", "-q", "--password-file", "/dev/stdin", "-r", "sftp:vault:/root/backups", "-o", command, "init",
        stdin=(RUN / "restic").read_text(),
    )  # fmt: skip


def project(folder, environments=tuple(ENVIRONMENTS.values())):
    """Writes a project whose environments lab-mariadb and lab-postgres are the lab."""
    to = Path(folder)
    if (to / "runbook.toml").exists():
        raise LabError(f"{to} has a runbook.toml already")
    shutil.copytree(CHECKOUT / "runbooks" / "cutover", to / "runbooks" / "cutover", ignore=shutil.ignore_patterns("runbook.toml"))
    parts = [(PARTS / "inventory" / f"{name}.toml").read_text() for name in ("project", *environments)]
    text = "\n".join(parts)
    (to / "runbook.toml").write_text(text.replace("@NET@", NET).replace("@RUN@", str(RUN)))


class Customer:
    """The customer at the public entry, until `end`."""

    def __init__(self, every_ms):
        words = [str(PARTS / "customer"), "shop.example.test", HOSTS["edge"].address, str(every_ms)]
        self.child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def report(self):
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        return json.loads(self.child.stdout.readline())

    def wait_for_orders(self, more=25):
        have = self.report()["placed"]
        end = time.monotonic() + 20
        while self.report()["placed"] < have + more:
            if time.monotonic() > end:
                raise LabError(f"the customer cannot place orders: {self.report()['refusals']}")
            time.sleep(0.1)

    def end(self):
        out, _ = self.child.communicate(timeout=60)
        return json.loads(out.splitlines()[-1])

    def kill(self):
        self.child.kill()
        self.child.wait()


def runbook(binary, folder, *words, status=0):
    """Runs `runbook` in the project; its standard error when it ends as it should."""
    done = subprocess.run([str(binary), *words], cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=600)
    if done.returncode != status:
        raise LabError(f"runbook {' '.join(words)} ended with {done.returncode}, not {status}:\n{done.stdout[-1500:]}\n{done.stderr[-4000:]}")
    return done.stdout


def cutover(kind, binary, rollback=False, every_ms=20):
    """Moves the shop while the customer orders; with `rollback`, fails at the last step before the point of no return and goes back."""
    seed(kind)
    with tempfile.TemporaryDirectory(prefix="lab-cutover-") as folder:
        project(folder, [ENVIRONMENTS[kind]])
        if rollback:
            file = Path(folder) / RUNBOOK
            text = file.read_text()
            mark = "    point_of_no_return"
            if mark not in text:
                raise LabError("the runbook has no point of no return")
            file.write_text(text.replace(mark, '    step "Fail" { throw "injected"; }\n' + mark, 1))
        customer = Customer(every_ms)
        try:
            customer.wait_for_orders()
            env = ENVIRONMENTS[kind]
            started = time.monotonic()
            runbook(binary, folder, "run", RUNBOOK, "--env", env, "--yes", status=1 if rollback else 0)
            if rollback:
                runbook(binary, folder, "rollback", status=6)
            took = time.monotonic() - started
            customer.wait_for_orders()
            seen = customer.end()
        except BaseException:
            customer.kill()
            keep = RUN / "failed-cutover"
            shutil.rmtree(keep, ignore_errors=True)
            shutil.copytree(folder, keep)
            say(f"the project of the failed run is {keep}")
            raise
        runbook(binary, folder, "audit", "verify")
        seen["run_s"] = round(took, 1)
        seen["kind"] = kind
        seen["rolled_back"] = rollback
        seen["served_by"] = served_by()
        seen["window"] = window(runbook(binary, folder, "log", "--json"))
    return seen


def served_by():
    """The host whose shop the public name leads to, by the shop's own word."""
    import http.client
    import runpy

    name = "shop.example.test"
    address = runpy.run_path(str(PARTS / "customer"), run_name="customer")["ask"](name, HOSTS["edge"].address)[0]
    connection = http.client.HTTPConnection(address, 80, timeout=5)
    connection.request("GET", "/health", headers={"Host": name})
    return json.loads(connection.getresponse().read())["host"]


def window(log):
    """Milliseconds of the downtime window and of each of its steps, by the journal."""
    steps, inside = {}, False
    for line in log.splitlines():
        entry = json.loads(line)
        kind, data = entry["kind"], entry["data"]
        if kind == "window_opened":
            inside = True
        elif kind == "window_closed":
            inside = False
            steps["all of it"] = data["ms"]
        elif inside and kind == "step_ended":
            steps[data["path"].partition("/")[2]] = data["ms"]
    return steps


def default_binary():
    for candidate in (os.environ.get("RUNBOOK"), CHECKOUT / "target/release/runbook", CHECKOUT / "target/debug/runbook"):
        if candidate and Path(candidate).exists():
            return Path(candidate).resolve()
    raise LabError("there is no runbook to try: cargo build --release, or RUNBOOK=PATH")
