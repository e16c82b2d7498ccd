# The blocks of large files, all by one process (blocks.rs): their sums, what of them is sent, and what of them has come.
# Argument: sum, send, take or check. Descriptor 3, a line a file: its path and that of its part (hexadecimal; - for none), its size,
# the size of a block, and the pieces that are meant, as blocks to skip and blocks to take: 0+2,17+1 (- for none).
import sys

try:
    import errno
    import fcntl
    import hashlib
    import os
    import stat
    import threading

    hashlib.sha256()
    WORKERS = min(4, len(os.sched_getaffinity(0)))
except Exception:
    sys.exit(97)

BUFFER = 1 << 18
FICLONE = 0x40049409


def fill(fd, view, at):
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], at)
    got = os.pread(fd, len(view), at)
    view[: len(got)] = got
    return len(got)


def put(fd, view, at):
    while view:
        n = os.pwrite(fd, view, at)
        view, at = view[n:], at + n


def sums(fd, to, block, wanted):
    """The sums of these blocks. What is read is written into another file as well: the very bytes that were summed."""
    out, todo, lock, bad = [""] * len(wanted), iter(range(len(wanted))), threading.Lock(), []

    def work():
        view = memoryview(bytearray(min(block, BUFFER)))
        try:
            while not bad:
                with lock:
                    i = next(todo, None)
                if i is None:
                    return
                at, end, h = wanted[i] * block, (wanted[i] + 1) * block, hashlib.sha256()
                while at < end:
                    n = fill(fd, view[: min(len(view), end - at)], at)
                    if n == 0:
                        break
                    h.update(view[:n])
                    if to is not None:
                        put(to, view[:n], at)
                    at += n
                out[i] = h.hexdigest()
        except OSError as e:
            bad.append(e)

    all = [threading.Thread(target=work) for _ in range(WORKERS)]
    for t in all:
        t.start()
    for t in all:
        t.join()
    if bad:
        raise bad[0]
    sys.stdout.write("".join(s + "\n" for s in out))


def base(path, part):
    """What the target can build on: the part that an earlier try has left, or a copy of the file that is there, yet to be filled."""
    try:
        mode = os.lstat(part).st_mode
        if stat.S_ISREG(mode):
            return os.open(part, os.O_RDONLY | os.O_NOFOLLOW), None
        if stat.S_ISDIR(mode):
            import shutil

            shutil.rmtree(part)
        else:
            os.unlink(part)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(part), exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    to = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.ioctl(to, FICLONE, fd)
        return to, None
    except OSError:
        return fd, to


def pieces(text):
    at = 0
    for piece in text.split(",") if text != "-" else []:
        skip, n = piece.split("+")
        at += int(skip)
        yield at, int(n)
        at += int(n)


def one(what, path, part, size, block, wanted):
    if what == "sum":
        print("@")
        fd, to = base(path, part) if part else (os.open(path, os.O_RDONLY | os.O_NOFOLLOW), None)
        try:
            sums(fd, to, block, range(-(-os.fstat(fd).st_size // block)))
        except OSError:
            if to is not None:
                os.unlink(part)
            raise
    elif what == "check":
        print("@")
        fd, to = os.open(part, os.O_RDONLY | os.O_NOFOLLOW), None
        sums(fd, None, block, [b for at, n in pieces(wanted) for b in range(at, at + n)])
    elif what == "send":
        fd, to = os.open(path, os.O_RDONLY | os.O_NOFOLLOW), None
        view = memoryview(bytearray(BUFFER))
        for at, n in pieces(wanted):
            at, end = at * block, min((at + n) * block, size)
            while at < end:
                n = fill(fd, view[: min(len(view), end - at)], at)
                if n == 0:
                    # It is shorter than it was.
                    sys.exit(74)
                at += n
                rest = view[:n]
                while rest:
                    rest = rest[os.write(1, rest) :]
    else:
        fd, to = os.open(part, os.O_WRONLY | os.O_NOFOLLOW), None
        for at, n in pieces(wanted):
            at, end = at * block, min((at + n) * block, size)
            while at < end:
                # Not a byte more than that: an archive follows.
                got = os.read(0, min(BUFFER, end - at))
                if not got:
                    sys.exit("unexpected end of file")
                put(fd, memoryview(got), at)
                at += len(got)
        os.ftruncate(fd, size)
    os.close(fd)
    if to is not None:
        os.close(to)


os.umask(0o077)
for line in os.fdopen(3):
    path, part, size, block, wanted = line.split()
    path, part = bytes.fromhex(path), b"" if part == "-" else bytes.fromhex(part)
    try:
        one(sys.argv[1], path, part, int(size), int(block), wanted)
    except BrokenPipeError:
        # Whoever reads on has a reason of its own.
        sys.exit(1)
    except OSError as e:
        sys.stderr.write("%s: %s\n" % (os.fsdecode(path), e.strerror))
        if sys.argv[1] == "send":
            # Gone, or something else by now: another round sees to it.
            sys.exit(74 if e.errno in (errno.ENOENT, errno.ELOOP) else 1)
        if sys.argv[1] == "take" or part and sys.argv[1] == "sum":
            sys.exit(1)
