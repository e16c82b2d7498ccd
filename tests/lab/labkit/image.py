"""The images of all hosts, in the lab's engine. The base is built by `../image/build` and imported; on it lie `../image/files` and what their
`setup` does. Each is made anew when anything that it is made of changes."""

import hashlib
import os
import shutil
import subprocess
import time

from . import locks
from .places import CACHE, IMAGE, SOCKET, SOURCE
from .process import LabError, docker, say

PARTS = SOURCE / "image"
FILES = PARTS / "files"


def _digest(paths, more=b""):
    digest = hashlib.sha256(more)
    for path in sorted(paths):
        digest.update(f"{path.relative_to(PARTS)}\0{path.lstat().st_mode:o}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def base_key():
    """Names the base by the content of all that it is made of, and this machine's release."""
    settings = "".join(f"{n}={os.environ.get(n, '')}\0" for n in ("RUNBOOK_LAB_MIRROR", "RUNBOOK_LAB_SUITE"))
    with open("/etc/os-release", "rb") as release:
        return _digest([PARTS / "build", PARTS / "packages.txt"], settings.encode() + release.read())


def base_tag():
    return f"{IMAGE}-base:{base_key()}"


def tag():
    return f"{IMAGE}:{_digest([p for p in FILES.rglob('*') if p.is_file()], base_key().encode())}"


def _work():
    return CACHE / "build"


def _root():
    """The base's root folder, from when it is whole until the engine has it."""
    return _work() / f"root-{base_key()}"


def _imported_mark():
    return CACHE / "engine" / f".imported-{base_key()}"


def build():
    """Builds the base's root folder unless that has been done. Needs no engine, so that it can go on beside other work."""
    with locks.held(CACHE.with_name(CACHE.name + ".image.lock"), "building the image"):
        if not (_root().exists() or _imported_mark().exists()):
            _build()


def _build():
    started = time.monotonic()
    work = _work()
    shutil.rmtree(work, ignore_errors=True)
    for name in ("upper", "overlay", "mount", "empty"):
        (work / name).mkdir(parents=True)
    (CACHE / "debs").mkdir(parents=True, exist_ok=True)
    say("building the image (once, a few minutes)")
    # `volatile`: nothing is synced while packages are unpacked. What a crash leaves is not used.
    script = (
        'set -e; cd "$1"; mount -t overlay overlay -o volatile,lowerdir=empty,upperdir=upper,workdir=overlay mount; '
        '"$2" "$1/mount/root" "$3"'
    )
    words = ["unshare", "--mount", "sh", "-c", script, "sh", str(work), str(PARTS / "build"), str(CACHE / "debs")]
    if subprocess.run(words, check=False, stdin=subprocess.DEVNULL).returncode != 0:
        raise LabError(f"building the image failed; its log is {work}/upper/root.log")
    # Renamed when whole: a half-built one never counts.
    (work / "upper" / "root").rename(_root())
    say(f"image built in {time.monotonic() - started:.0f} s")


def has(name):
    return docker("image", "inspect", name, check=False).returncode == 0


def ready():
    """Sees to it that the engine, which must be up, has the image."""
    if has(tag()):
        return
    if not has(base_tag()):
        _imported_mark().unlink(missing_ok=True)
        build()
        _import()
        shutil.rmtree(_work(), ignore_errors=True)
    for mark in (CACHE / "engine").glob(".imported-*"):
        mark.unlink()
    _imported_mark().touch()
    _finish()
    _remove_older()


def _import():
    started = time.monotonic()
    tar = subprocess.Popen(["tar", "-C", str(_root()), "--numeric-owner", "--xattrs", "-c", "."], stdout=subprocess.PIPE)
    words = ["docker", "-H", f"unix://{SOCKET}", "import", "-", base_tag()]
    taken = subprocess.run(words, stdin=tar.stdout, capture_output=True, text=True, check=False)
    tar.stdout.close()
    if tar.wait() != 0 or taken.returncode != 0:
        raise LabError(f"the image cannot be imported: {taken.stderr.strip()}")
    say(f"image imported in {time.monotonic() - started:.0f} s")


def _finish():
    """The files and what `setup` does, as a layer of its own: quick to make anew."""
    started = time.monotonic()
    docker("rm", "-f", "finish", check=False)
    script = "cp -r --preserve=mode /from/. / && exec /bin/sh /lab/setup"
    docker("run", "--name", "finish", "--network", "none", "-v", f"{FILES}:/from:ro", base_tag(), "/bin/sh", "-c", script, timeout=300)
    docker("commit", "--change", 'ENTRYPOINT ["/lab/entry"]', "--change", "CMD []", "finish", tag(), timeout=300)
    docker("rm", "finish")
    say(f"image finished in {time.monotonic() - started:.0f} s")


def _remove_older():
    for name, keep in ((IMAGE, tag()), (f"{IMAGE}-base", base_tag())):
        for line in docker("image", "ls", name, "--format", "{{.Repository}}:{{.Tag}}").split():
            if line != keep:
                docker("image", "rm", "-f", line, check=False)


def forget():
    """Removes everything that is kept for the next time. The lab must be down."""
    shutil.rmtree(CACHE, ignore_errors=True)
