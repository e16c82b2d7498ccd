#!/usr/bin/env python3
"""Commands on many hosts: runbook beside what a user would take instead, side by side in one run.

    tests/bench/ssh.py [--hosts 10,100] [--rounds 3] [--only NAME,...] [--json]
    tests/bench/ssh.py --prepare            builds and installs what it needs, and measures nothing

Starts real sshd (Debian's openssh-server) on loopback, one process a host, each with a host key of its own, and gives each of the candidates the
same work: log in to every host and run `true` twenty times in order on each, all hosts at once. The whole of each command is timed, from its start
to its end, as a user sees it. The candidates take turns within a round; the median of the rounds counts (the slow ones have one round).

Needs root for sshd, cargo for the release build, and python3-venv with access to PyPI for Ansible, mitogen and pyinfra, which it installs in
a virtual environment of its own under target/bench. Nothing but loopback is contacted by what is measured. Processor time is counted by control
groups, that of the servers apart from that of the candidate with all that it starts: what a run would take with servers on machines of their own
depends on the second alone.
"""
import argparse
import getpass
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
VENV = ROOT / "target/bench/venv"
COMMANDS = 20
USER = getpass.getuser()


def say(text):
    print(text, file=sys.stderr, flush=True)


def call(args, **more):
    done = subprocess.run([str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(map(str, args))} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


class Group:
    """A control group: counts the processor time of everything in it, also of what outlives its parent (the masters of OpenSSH)."""

    def __init__(self, name):
        mounts = [l.split() for l in pathlib.Path("/proc/mounts").read_text().splitlines()]
        root = next((m[1] for m in mounts if m[2] == "cgroup2"), None) or sys.exit("cgroup2 is not mounted: processor time cannot be counted")
        self.path = pathlib.Path(root) / f"runbook-bench-{os.getpid()}-{name}"
        self.path.mkdir()

    def enter(self):
        (self.path / "cgroup.procs").write_text("0")

    def seconds(self):
        words = (self.path / "cpu.stat").read_text().split()
        return int(words[words.index("usage_usec") + 1]) / 1e6

    def remove(self):
        """Ends what is still in it."""
        until = time.time() + 10
        while (left := (self.path / "cgroup.procs").read_text().split()) and time.time() < until:
            for pid in left:
                try:
                    os.kill(int(pid), signal.SIGTERM)
                except ProcessLookupError:
                    pass
            time.sleep(0.05)
        self.path.rmdir()


class Servers:
    """Real sshd processes, stopped at the end."""

    def __init__(self, folder, count):
        self.folder, self.ports, self.children = folder, [], []
        self.group = Group("servers")
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin") or sys.exit("sshd is missing: install openssh-server")
        os.makedirs("/run/sshd", exist_ok=True)
        (folder / "home").mkdir()
        call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"])
        shutil.copy(folder / "key.pub", folder / "authorized_keys")
        held = []
        for _ in range(count):
            s = socket.socket()
            s.bind(("127.0.0.1", 0))
            held.append(s)
        self.ports = [s.getsockname()[1] for s in held]
        for s in held:
            s.close()
        known = []
        for i, port in enumerate(self.ports):
            call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / f"host{i}"])
            known.append(f"[127.0.0.1]:{port} {(folder / f'host{i}.pub').read_text().strip()}")
            config = folder / f"sshd{i}.conf"
            config.write_text(
                f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host{i}\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\n"
                f"StrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\n"
                f"LogLevel ERROR\nSetEnv HOME={folder}/home\nSubsystem sftp internal-sftp\n"
            )
            self.children.append(subprocess.Popen([sshd, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL, preexec_fn=self.group.enter))
        (folder / "known_hosts").write_text("\n".join(known) + "\n")
        for port in self.ports:
            until = time.time() + 20
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if time.time() > until:
                        sys.exit(f"sshd on port {port} does not listen")
                    time.sleep(0.02)

    def stop(self):
        for c in self.children:
            c.send_signal(signal.SIGTERM)
        for c in self.children:
            c.wait()
        self.group.remove()


class Candidate:
    """A way to do the work: `args` is what is timed; `once` where a round takes minutes."""

    def __init__(self, name, args, cwd=None, env=None, once=False, before=None, proof=None):
        self.name, self.args, self.cwd, self.once = name, [str(a) for a in args], cwd, once
        self.env = {**os.environ, **(env or {})}
        self.before, self.proof = before, proof
        self.times, self.peaks, self.cpu, self.servers_cpu = [], [], [], []

    def go(self, servers):
        if self.before:
            self.before()
        group, already = Group("candidate"), servers.group.seconds()
        with tempfile.TemporaryFile() as out:
            began = time.monotonic()
            child = subprocess.Popen(self.args, cwd=self.cwd, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=group.enter)
            _, status, usage = os.wait4(child.pid, 0)
            self.times.append(time.monotonic() - began)
            self.peaks.append(usage.ru_maxrss / 1024)
            self.cpu.append(group.seconds())
            group.remove()
            # The last sessions may still be ending.
            time.sleep(0.3)
            self.servers_cpu.append(servers.group.seconds() - already)
            out.seek(0)
            text = out.read().decode(errors="replace")
        if os.waitstatus_to_exitcode(status) != 0:
            sys.exit(f"{self.name} ended with {os.waitstatus_to_exitcode(status)}:\n{text[-4000:]}")
        if self.proof and not self.proof(text):
            sys.exit(f"{self.name} did not do all of it:\n{text[-4000:]}")


def binaries():
    call(["cargo", "build", "--locked", "--release"], cwd=ROOT)
    lines = call(
        ["cargo", "bench", "--locked", "-p", "runbook-primitives", "--bench", "bare_ssh", "--no-run", "--message-format", "json"], cwd=ROOT
    ).splitlines()
    bare = [m["executable"] for m in map(json.loads, (l for l in lines if l.startswith("{"))) if m.get("target", {}).get("name") == "bare_ssh" and m.get("executable")]
    return TARGET / "release/runbook", bare[-1]


def venv():
    marker = VENV / "ready"
    if not marker.exists():
        say("installing ansible-core, mitogen and pyinfra from PyPI")
        call([sys.executable, "-m", "venv", VENV])
        call([VENV / "bin/pip", "install", "-q", "ansible-core", "mitogen", "pyinfra"])
        marker.touch()
    shown = call([VENV / "bin/pip", "list", "--format", "json"])
    versions = {p["name"].lower(): p["version"] for p in json.loads(shown[shown.index("["):].splitlines()[0])}
    return {n: versions[n] for n in ("ansible-core", "mitogen", "pyinfra")}


def runbook_project(folder, servers, count, call_text):
    """A project whose runbook does the work; a new run each time, in a folder without older runs."""
    folder.mkdir(parents=True)
    hosts = "\n".join(
        f'[environments.bench.hosts.h{i}]\nssh = "{USER}@127.0.0.1:{port}"\nroles = ["web"]\nidentity_file = "{servers.folder}/key"\nknown_hosts = "{servers.folder}/known_hosts"\n'
        for i, port in enumerate(servers.ports[:count])
    )
    (folder / "runbook.toml").write_text(f"[environments.bench]\n\n{hosts}")
    (folder / "work.rhai").write_text(f"hosts(\"web\").each(|h| {{\n    for i in 0..{COMMANDS} {{ {call_text} }}\n}});\n")
    return folder


def candidates(servers, count, folder, runbook, bare):
    ports = servers.ports[:count]
    key, known = servers.folder / "key", servers.folder / "known_hosts"
    site = VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    some = folder / str(count)
    some.mkdir()

    out = [Candidate("bare russh loop", [bare, key, known, USER, COMMANDS, *ports])]
    for name, text in (("runbook, read", 'h.read("true");'), ("runbook, run (supervised)", 'h.run("true");')):
        project = runbook_project(some / name.split()[1].strip(","), servers, count, text)
        wipe = lambda project=project: shutil.rmtree(project / ".runbook", ignore_errors=True)
        out.append(Candidate(name, [runbook, "-C", project, "run", "work.rhai", "--env", "bench", "--yes"], before=wipe))

    config = some / "ssh_config"
    config.write_text(
        "".join(f"Host h{i}\n  Port {p}\n" for i, p in enumerate(ports))
        + f"Host *\n  HostName 127.0.0.1\n  User {USER}\n  IdentityFile {key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n"
        f"  ControlMaster auto\n  ControlPath {some}/cm-%n\n  ControlPersist 30\n  LogLevel ERROR\n"
    )
    script = some / "openssh.sh"
    script.write_text(
        f"for h in $(seq 0 {count - 1}); do (\n  for i in $(seq {COMMANDS}); do ssh -F {config} h$h true </dev/null || exit 1; done\n"
        f"  ssh -F {config} -O exit h$h 2>/dev/null\n) & p=\"$p $!\"; done\nfor q in $p; do wait $q || exit 1; done\n"
    )
    out.append(Candidate("OpenSSH, ControlMaster", ["sh", script]))

    inventory = some / "hosts.ini"
    inventory.write_text(
        "[web]\n" + "".join(f"h{i} ansible_host=127.0.0.1 ansible_port={p}\n" for i, p in enumerate(ports))
        + f"[web:vars]\nansible_user={USER}\nansible_ssh_private_key_file={key}\nansible_python_interpreter={sys.executable}\n"
    )
    tasks = lambda how: "".join(f"    - {how}: /bin/true\n" for _ in range(COMMANDS))
    for how in ("command", "raw"):
        (some / f"{how}.yml").write_text(f"- hosts: web\n  gather_facts: false\n  tasks:\n{tasks(how)}")
    common = {
        "ANSIBLE_SSH_PIPELINING": "1", "ANSIBLE_PIPELINING": "1", "ANSIBLE_FORKS": str(min(count, 50)), "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_SSH_ARGS": f"-o ControlMaster=auto -o ControlPersist=30 -o UserKnownHostsFile={known} -o IdentitiesOnly=yes",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(some / "acp"), "ANSIBLE_LOCALHOST_WARNING": "0", "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "ANSIBLE_HOME": str(some / "ansible"), "LC_ALL": "C.UTF-8", "PATH": f"{VENV}/bin:{os.environ['PATH']}",
    }
    all_ok = lambda text: text.count(f"ok={COMMANDS} ") == count and "failed=0" in text
    play = lambda how: [VENV / "bin/ansible-playbook", "-i", inventory, some / f"{how}.yml"]
    mitogen = {**common, "ANSIBLE_STRATEGY_PLUGINS": str(site / "ansible_mitogen/plugins/strategy"), "ANSIBLE_STRATEGY": "mitogen_linear"}
    out.append(Candidate("mitogen (Ansible), command", play("command"), env=mitogen, once=True, proof=all_ok))
    out.append(Candidate("ansible-core, raw", play("raw"), env=common, once=True, proof=all_ok))
    out.append(Candidate("ansible-core, command", play("command"), env=common, once=True, proof=all_ok))

    deploy = some / "pyinfra"
    deploy.mkdir()
    (deploy / "inventory.py").write_text(
        "web = [\n" + "".join(
            f"    ('h{i}', {{'ssh_hostname': '127.0.0.1', 'ssh_port': {p}, 'ssh_user': {USER!r}, 'ssh_key': {str(key)!r}, 'ssh_known_hosts_file': {str(known)!r}}}),\n"
            for i, p in enumerate(ports)) + "]\n"
    )
    (deploy / "deploy.py").write_text(
        f"from pyinfra.operations import server\nfor i in range({COMMANDS}):\n    server.shell(name=f'command {{i}}', commands=['true'])\n"
    )
    out.append(Candidate("pyinfra", [VENV / "bin/pyinfra", "-y", "inventory.py", "deploy.py"], cwd=deploy, env={"PATH": common["PATH"]}, once=True))
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--hosts", default="10,100")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--only", help="names, or parts of them, separated by commas")
    ap.add_argument("--json", action="store_true")
    ap.add_argument("--prepare", action="store_true")
    o = ap.parse_args()
    counts = [int(n) for n in o.hosts.split(",")]
    runbook, bare = binaries()
    versions = venv()
    if o.prepare:
        return
    versions["openssh"] = subprocess.run(["ssh", "-V"], stderr=subprocess.PIPE, text=True).stderr.strip().split(",")[0]
    results = {}
    # A short name: OpenSSH's control sockets may have about a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="rb", dir="/tmp") as folder:
        folder = pathlib.Path(folder)
        (folder / "servers").mkdir()
        servers = Servers(folder / "servers", max(counts))
        try:
            for count in counts:
                all_of_it = candidates(servers, count, folder, runbook, bare)
                if o.only:
                    all_of_it = [c for c in all_of_it if any(w.strip() in c.name for w in o.only.split(","))]
                for n in range(o.rounds):
                    for c in all_of_it:
                        if n == 0 or not c.once:
                            c.go(servers)
                            say(f"{count} hosts, round {n + 1}: {c.name}: {c.times[-1]:.2f} s")
                results[count] = all_of_it
        finally:
            servers.stop()
    report = {
        "versions": versions,
        "commands": COMMANDS,
        "hosts": {n: {c.name: {"seconds": c.times, "cpu_seconds": c.cpu, "servers_cpu_seconds": c.servers_cpu, "peak_mib": max(c.peaks)} for c in cs} for n, cs in results.items()},
    }
    if o.json:
        print(json.dumps(report, indent=1))
        return
    print("versions: " + ", ".join(f"{n} {v}" for n, v in versions.items()))
    for count, cs in results.items():
        mark = next((c for c in cs if c.name == "runbook, read"), None)
        times = lambda c, what: f"{statistics.median(what(c)) / statistics.median(what(mark)):.2f}" if mark else "-"
        print(f"\n| {count} hosts, {COMMANDS} commands each | seconds | times `read` | commands a second | CPU of the controller, s | times `read` | CPU of the servers, s | peak MiB |\n|---|---:|---:|---:|---:|---:|---:|---:|")
        for c in cs:
            t, cpu, far = (statistics.median(x) for x in (c.times, c.cpu, c.servers_cpu))
            print(f"| {c.name} | {t:.2f} | {times(c, lambda c: c.times)} | {count * COMMANDS / t:.0f} | {cpu:.2f} | {times(c, lambda c: c.cpu)} | {far:.2f} | {max(c.peaks):.0f} |")


if __name__ == "__main__":
    main()
