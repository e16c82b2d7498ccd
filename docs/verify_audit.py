#!/usr/bin/env python3
"""verify_audit.py LOG [--head HASH]: verifies what `runbook audit export RUN > LOG` wrote.
With --head, that hash (noted earlier, kept elsewhere) must be in the log."""
import hashlib, json, sys
FIELDS = ["seq", "time", "run", "kind", "data", "prev", "hash"]


def canonical(v):  # RFC 8785; entries hold no fractions
    if isinstance(v, dict):
        order = sorted(v.items(), key=lambda kv: kv[0].encode("utf-16-be"))
        return "{" + ",".join(canonical(k) + ":" + canonical(x) for k, x in order) + "}"
    if isinstance(v, list):
        return "[" + ",".join(map(canonical, v)) + "]"
    if isinstance(v, float):
        raise ValueError("a number with a fraction")
    return json.dumps(v, ensure_ascii=False)


def verify(log, head=None):
    lines, hashes, run = log.split(b"\n"), ["0" * 64], None
    if lines.pop() != b"" or not lines:
        raise ValueError("the log is empty or its last line is cut off")
    for seq, line in enumerate(lines):
        e = json.loads(line.decode())
        run = run or e["run"]
        digest = hashlib.sha256(canonical({k: e[k] for k in FIELDS[:-1]}).encode()).hexdigest()
        exact = "{" + ",".join('"%s":%s' % (k, canonical(e[k])) for k in FIELDS) + "}"
        if [e["seq"], e["run"], e["prev"], e["hash"], line] != [seq, run, hashes[-1], digest, exact.encode()]:
            raise ValueError("entry %d was changed, removed, swapped or inserted" % seq)
        hashes.append(digest)
    if head and head.lower() not in hashes:
        raise ValueError("the head is not in the log: entries were cut off at its end or replaced")
    return len(lines), hashes[-1]


if __name__ == "__main__":
    try:
        print("verified: %d entries, head %s" % verify(open(sys.argv[1], "rb").read(), *sys.argv[3:4]))
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        sys.exit("NOT VERIFIED: %s: %s" % (type(e).__name__, e))
