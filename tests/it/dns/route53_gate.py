#!/usr/bin/env python3
"""Stands before moto's Route 53 and checks every request's signature with AWS's own library (botocore), which moto does not.

It also does, on demand, what moto never does: changes that are PENDING for a while, "Rate exceeded", and answers that are lost.

usage: route53_gate.py MOTO_PORT ID KEY [SESSION]      prints its port
"""

import http.client
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

moto, key_id, key = int(sys.argv[1]), sys.argv[2], sys.argv[3]
session = sys.argv[4] if len(sys.argv) > 4 else None
KNOBS = {"throttle": 0, "pending": 0, "drop": 0}
SEEN = []
LOCK = threading.RLock()


def refusal(code, message):
    return (
        '<?xml version="1.0"?>\n<ErrorResponse xmlns="https://route53.amazonaws.com/doc/2013-04-01/"><Error><Type>Sender</Type>'
        f"<Code>{code}</Code><Message>{message}</Message></Error><RequestId>00000000-0000-0000-0000-000000000000</RequestId></ErrorResponse>"
    )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def wrong(self, body):
        """What AWS would say of the signature; nothing when it is right."""
        auth = self.headers.get("Authorization") or ""
        m = re.fullmatch(r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/route53/aws4_request, SignedHeaders=([^,]+), Signature=([0-9a-f]{64})", auth)
        if not m:
            return 403, refusal("MissingAuthenticationToken", "Missing Authentication Token")
        if m[1] != key_id:
            return 403, refusal("InvalidClientTokenId", "The security token included in the request is invalid.")
        if (self.headers.get("X-Amz-Security-Token") or None) != session:
            return 403, refusal("InvalidClientTokenId", "The security token included in the request is invalid.")
        signed = m[4].split(";")
        if not {"host", "x-amz-date"} <= set(signed) or (session and "x-amz-security-token" not in signed):
            return 403, refusal("SignatureDoesNotMatch", "Host and date must be signed.")
        request = AWSRequest(method=self.command, url=f"http://{self.headers['Host']}{self.path}", data=body)
        for h in signed:
            if h != "host":
                request.headers[h] = self.headers[h]
        request.context["timestamp"] = self.headers["X-Amz-Date"]
        signer = SigV4Auth(Credentials(key_id, key, session), "route53", m[3])
        text = signer.string_to_sign(request, signer.canonical_request(request))
        if signer.signature(text, request) != m[5]:
            return 403, refusal("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided.")
        return None

    def handle_one(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/_control":
            KNOBS.update(json.loads(body))
            return self.answer(200, json.dumps({"seen": SEEN}))
        with LOCK:
            SEEN.append(f"{self.command} {self.path}")
            wrong = self.wrong(body)
            if wrong:
                return self.answer(*wrong)
            if KNOBS["throttle"] > 0:
                KNOBS["throttle"] -= 1
                return self.answer(400, refusal("Throttling", "Rate exceeded"))
            forward = http.client.HTTPConnection("127.0.0.1", moto)
            kept = {k: v for k, v in self.headers.items() if k.lower() in ("authorization", "content-type", "x-amz-date")}
            kept["Host"] = "route53.amazonaws.com"
            forward.request(self.command, self.path, body, kept)
            got = forward.getresponse()
            text = got.read()
            change = b"<ChangeInfo>" in text
            if change and KNOBS["pending"] > 0:
                KNOBS["pending"] -= 1
                text = text.replace(b"<Status>INSYNC</Status>", b"<Status>PENDING</Status>")
            if self.command == "POST" and KNOBS["drop"] > 0:
                KNOBS["drop"] -= 1
                self.close_connection = True
                return None
        return self.answer(got.status, text)

    do_GET = do_POST = do_DELETE = handle_one


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(server.server_address[1], flush=True)
server.serve_forever()
