#!/usr/bin/env python3
"""A stateful stand-in for the part of Cloudflare's API (v4) that is about DNS records.

It keeps zones and records in memory and refuses what the service refuses. Shapes of paths, records and answers are those of the types in Cloudflare's own
client (package `cloudflare`), and a test drives this server with that client, so that it is not shaped after our requests.

usage: cloudflare_server.py TOKEN ZONE…      prints its port
"""

import datetime
import ipaddress
import json
import re
import sys
import threading
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = sys.argv[1]
LOCK = threading.RLock()
ZONES = {}
# What a test asks for: `busy` requests are answered 429, lists have at most `page` records, `drop` answers to writes are lost.
KNOBS = {"busy": 0, "page": 100, "drop": 0}
SEEN = []

# The fields of `data` by type; the types without one have `content`.
DATA = {
    "CAA": ("flags", "tag", "value"),
    "CERT": ("type", "key_tag", "algorithm", "certificate"),
    "DNSKEY": ("flags", "protocol", "algorithm", "public_key"),
    "DS": ("key_tag", "algorithm", "digest_type", "digest"),
    "HTTPS": ("priority", "target", "value"),
    "NAPTR": ("order", "preference", "flags", "service", "regex", "replacement"),
    "SMIMEA": ("usage", "selector", "matching_type", "certificate"),
    "SRV": ("priority", "weight", "port", "target"),
    "SSHFP": ("algorithm", "type", "fingerprint"),
    "SVCB": ("priority", "target", "value"),
    "TLSA": ("usage", "selector", "matching_type", "certificate"),
    "URI": ("weight", "target"),
}
CONTENT = {"A", "AAAA", "CNAME", "MX", "NS", "OPENPGPKEY", "PTR", "TXT"}
PROXIABLE = {"A", "AAAA", "CNAME"}


class Refused(Exception):
    def __init__(self, status, code, message, chain=None):
        self.status, self.error = status, {"code": code, "message": message}
        if chain:
            self.error["error_chain"] = [{"code": c, "message": m} for c, m in chain]


def invalid(code, message):
    return Refused(400, code, message)


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def zone(name):
    return {
        "id": uuid.uuid5(uuid.NAMESPACE_DNS, name).hex,
        "name": name,
        "status": "active",
        "paused": False,
        "type": "full",
        "development_mode": 0,
        "name_servers": ["ada.ns.example.net", "bob.ns.example.net"],
        "original_name_servers": [],
        "created_on": now(),
        "modified_on": now(),
        "activated_on": now(),
        "account": {"id": "0" * 32, "name": "tests"},
        "meta": {},
        "owner": {"id": None, "name": None, "type": "user"},
        "plan": {},
        "permissions": ["#dns_records:edit", "#dns_records:read"],
    }


for _name in sys.argv[2:]:
    _z = zone(_name)
    ZONES[_z["id"]] = {"zone": _z, "records": {}}


def number(value, most):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or not 0 <= value <= most:
        raise invalid(9101, f"{value!r} is not a number from 0 to {most}.")
    return int(value)


def host(value, what):
    value = str(value).rstrip(".").lower()
    labels = value.split(".") if value else []
    if len(value) > 253 or any(not re.fullmatch(r"[a-z0-9_*/-]{1,63}", label) for label in labels):
        raise invalid(9000, f"{what} is invalid.")
    return value


def checked(z, given, before=None):
    """A whole record from what a request gives (over what it was), or a refusal."""
    r = {k: v for k, v in (before or {}).items() if k in ("name", "type", "content", "data", "priority", "ttl", "proxied", "comment", "tags", "settings")}
    r.update(given)
    kind = str(r.get("type", "")).upper()
    if kind not in DATA and kind not in CONTENT:
        raise invalid(9001, f"Invalid or missing record type: {kind}.")
    apex = z["zone"]["name"]
    name = r.get("name")
    if not isinstance(name, str) or not name:
        raise invalid(9000, "DNS name is invalid.")
    name = apex if name == "@" else host(name, "DNS name")
    if name != apex and not name.endswith("." + apex):
        name = f"{name}.{apex}"
    ttl = r.get("ttl", 1)
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or ttl != int(ttl) or not (ttl == 1 or 60 <= ttl <= 86400):
        raise Refused(400, 1004, "DNS Validation Error", [(9021, "Invalid TTL. Must be between 60 and 86400 seconds, or 1 for Automatic.")])
    proxied = r.get("proxied", False)
    if not isinstance(proxied, bool):
        raise invalid(9003, "Invalid 'proxied' value, must be a boolean.")
    if proxied and kind not in PROXIABLE:
        raise Refused(400, 1004, "DNS Validation Error", [(9004, "This record type cannot be proxied.")])
    out = {
        "id": before["id"] if before else uuid.uuid4().hex,
        "name": name,
        "type": kind,
        "proxiable": kind in PROXIABLE,
        "proxied": proxied,
        # A proxied record has the proxy's own TTL.
        "ttl": 1 if proxied else int(ttl),
        "settings": r.get("settings") or {},
        "meta": {},
        "comment": r.get("comment"),
        "tags": r.get("tags") or [],
        "created_on": before["created_on"] if before else now(),
        "modified_on": now(),
    }
    if kind in DATA:
        # `content` of these types is only shown; `data` counts.
        data = r.get("data")
        if before and "data" in given:
            data = {**(before.get("data") or {}), **given["data"]}
        if not isinstance(data, dict) or any(f not in data for f in DATA[kind]):
            raise invalid(9101, f"{', '.join(DATA[kind])} are required data fields of {kind}.")
        clean = {}
        for field in DATA[kind]:
            v = data[field]
            if field in ("flags", "usage", "selector", "matching_type", "algorithm", "digest_type", "protocol") and kind != "NAPTR":
                v = number(v, 65535 if kind == "DNSKEY" else 255)
            elif field in ("priority", "weight", "port", "key_tag", "order", "preference") or (field == "type"):
                v = number(v, 65535)
            elif not isinstance(v, str):
                raise invalid(9101, f"{field} must be a text.")
            elif field in ("target", "replacement") and kind != "URI":
                v = host(v, "Target") or "."
            elif field in ("certificate", "digest", "fingerprint") and kind != "CERT":
                if not re.fullmatch(r"(?:[0-9a-fA-F]{2})+", v):
                    raise invalid(9101, f"{field} must be hexadecimal.")
                v = v.lower()
            clean[field] = v
        out["data"] = clean
        shown = dict(clean)
        if kind == "URI":
            out["priority"] = number(r.get("priority", 0), 65535)
            shown = {"priority": out["priority"], **clean}
        quoted = {"value", "flags", "service", "regex"} if kind == "NAPTR" else {"value"} if kind == "CAA" else {"target"} if kind == "URI" else set()
        out["content"] = " ".join(json.dumps(v) if k in quoted else str(v) for k, v in shown.items())
        if kind in ("SRV", "HTTPS", "SVCB"):
            out["priority"] = clean["priority"]
        return out
    content = r.get("content")
    if not isinstance(content, str) or not content:
        raise invalid(9002, "Invalid or missing record content.")
    if kind in ("A", "AAAA"):
        family = ipaddress.IPv4Address if kind == "A" else ipaddress.IPv6Address
        try:
            content = str(family(content))
        except ValueError:
            raise invalid(9005, f"Content for {kind} record must be a valid IPv{4 if kind == 'A' else 6} address.")
    elif kind in ("CNAME", "MX", "NS", "PTR"):
        content = host(content, f"Content for {kind} record")
        if kind == "CNAME" and content == name:
            raise invalid(9039, "Content for CNAME record is invalid: it refers to itself.")
    elif kind == "TXT":
        if len(content) > 4096:
            raise invalid(9207, "Content for TXT record is too long.")
        # Text without quotes is stored in quotes.
        if not content.startswith('"'):
            content = " ".join(json.dumps(content[i : i + 255], ensure_ascii=True) for i in range(0, len(content), 255))
    if kind == "MX":
        if "priority" not in r:
            raise invalid(9100, "priority is a required data field.")
        out["priority"] = number(r["priority"], 65535)
    out["content"] = content
    return out


def put(z, r):
    """Adds or replaces a record, if it can stand beside the others."""
    for o in z["records"].values():
        if o["id"] == r["id"] or o["name"] != r["name"]:
            continue
        same = ("type", "content", "data", "priority")
        if all(o.get(k) == r.get(k) for k in same):
            raise invalid(81058, "An identical record already exists.")
        # At the zone's own name a CNAME is flattened, and stands beside what is no address.
        excluded = {"A", "AAAA", "CNAME"} if r["name"] == z["zone"]["name"] else None
        if "CNAME" in (o["type"], r["type"]) and (excluded is None or {o["type"], r["type"]} <= excluded):
            if o["type"] == "CNAME" and r["type"] != "CNAME":
                raise invalid(81054, "A CNAME record with that host already exists.")
            raise invalid(81053, "An A, AAAA, or CNAME record with that host already exists.")
        if {"NS"} & {o["type"], r["type"]} and o["type"] != r["type"] and (o["proxied"] or r["proxied"]):
            raise invalid(81056, "NS records with that host already exist.")
    z["records"][r["id"]] = r


def take(z, rid):
    r = z["records"].get(rid)
    if r is None:
        raise Refused(404, 81044, "Record does not exist.")
    return r


def batch(z, body):
    """Deletes, patches, puts, posts, in this order, all or nothing."""
    before = dict(z["records"])
    done = {}
    if sum(len(body.get(k) or []) for k in ("deletes", "patches", "puts", "posts")) > 200:
        raise invalid(81060, "Too many operations in one batch.")
    try:
        done["deletes"] = []
        for d in body.get("deletes") or []:
            done["deletes"].append(take(z, d.get("id")))
            del z["records"][d["id"]]
        for kind in ("patches", "puts"):
            done[kind] = []
            for p in body.get(kind) or []:
                old = take(z, p.get("id"))
                base = old if kind == "patches" else {"id": old["id"], "created_on": old["created_on"]}
                r = checked(z, {k: v for k, v in p.items() if k != "id"}, base)
                del z["records"][r["id"]]
                put(z, r)
                done[kind].append(r)
        done["posts"] = []
        for p in body.get("posts") or []:
            r = checked(z, p)
            put(z, r)
            done["posts"].append(r)
    except Refused:
        z["records"] = before
        raise
    return done


def listed(z, query):
    found = list(z["records"].values())
    for key, values in query.items():
        want = values[-1]
        field, _, how = key.partition(".")
        if field in ("name", "content"):
            tests = {
                "": lambda v: v == want,
                "exact": lambda v: v == want,
                "contains": lambda v: want in v,
                "startswith": lambda v: v.startswith(want),
                "endswith": lambda v: v.endswith(want),
            }
            if how not in tests:
                raise invalid(9101, f"Unknown filter {key}.")
            want = want.lower().rstrip(".") if field == "name" else want
            found = [r for r in found if tests[how](r[field])]
        elif field == "type":
            found = [r for r in found if r["type"] == want]
        elif field == "proxied":
            found = [r for r in found if r["proxied"] == (want == "true")]
    return sorted(found, key=lambda r: (r["name"], r["type"], r["id"]))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are written apart; waiting to join them costs 40 ms an answer.
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=()):
        text = json.dumps(body).encode()
        self.send_response(status)
        for k, v in headers:
            self.send_header(k, v)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def handle_one(self):
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        if url.path == "/_control":
            KNOBS.update(json.loads(raw))
            return self.answer(200, {"seen": SEEN})
        with LOCK:
            SEEN.append(f"{self.command} {url.path}")
            writes = self.command != "GET"
            try:
                if KNOBS["busy"] > 0:
                    KNOBS["busy"] -= 1
                    error = {"code": 971, "message": "Please wait and consider throttling your request speed"}
                    body = {"success": False, "errors": [error], "messages": [], "result": None}
                    return self.answer(429, body, [("Retry-After", "1")])
                auth = self.headers.get("Authorization") or ""
                if not auth.startswith("Bearer ") or not re.fullmatch(r"[A-Za-z0-9_-]{20,}", auth[7:]):
                    raise Refused(400, 6003, "Invalid request headers", [(6111, "Invalid format for Authorization header")])
                if auth[7:] != TOKEN:
                    if url.path.endswith("/zones"):
                        raise Refused(403, 9109, "Invalid access token")
                    raise Refused(403, 10000, "Authentication error")
                try:
                    body = json.loads(raw) if raw else {}
                except ValueError:
                    raise Refused(400, 6007, "Malformed JSON in request body")
                result, info = self.route(url.path, query, body)
            except Refused as e:
                return self.answer(e.status, {"success": False, "errors": [e.error], "messages": [], "result": None})
            if writes and KNOBS["drop"] > 0:
                KNOBS["drop"] -= 1
                self.close_connection = True
                return None
        whole = {"success": True, "errors": [], "messages": [], "result": result}
        if info:
            whole["result_info"] = info
        return self.answer(200, whole)

    def route(self, path, query, body):
        parts = path.removeprefix("/client/v4").strip("/").split("/")
        if parts == ["zones"] and self.command == "GET":
            zones = [z["zone"] for z in ZONES.values() if query.get("name", [z["zone"]["name"]])[-1] == z["zone"]["name"]]
            return self.page(zones, query, 50)
        if len(parts) >= 2 and parts[0] == "zones":
            z = ZONES.get(parts[1])
            if z is None:
                raise Refused(404, 7003, "Could not route to the zone, perhaps your object identifier is invalid?")
            rest = parts[2:]
            if rest == [] and self.command == "GET":
                return z["zone"], None
            if rest == ["dns_records"]:
                if self.command == "GET":
                    return self.page(listed(z, query), query, KNOBS["page"])
                if self.command == "POST":
                    r = checked(z, body)
                    put(z, r)
                    return r, None
            if rest == ["dns_records", "batch"] and self.command == "POST":
                return batch(z, body), None
            if len(rest) == 2 and rest[0] == "dns_records":
                old = take(z, rest[1])
                if self.command == "GET":
                    return old, None
                if self.command == "DELETE":
                    del z["records"][old["id"]]
                    return {"id": old["id"]}, None
                if self.command in ("PATCH", "PUT"):
                    base = old if self.command == "PATCH" else {"id": old["id"], "created_on": old["created_on"]}
                    r = checked(z, body, base)
                    put(z, r)
                    return r, None
        raise Refused(404, 7000, "No route for that URI")

    def page(self, found, query, most):
        page = int(float(query.get("page", ["1"])[-1]))
        size = min(int(float(query.get("per_page", ["100"])[-1])), most)
        part = found[(page - 1) * size : page * size]
        pages = -(-len(found) // size)
        return part, {"page": page, "per_page": size, "count": len(part), "total_count": len(found), "total_pages": pages}

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_address[1], flush=True)
server.serve_forever()
