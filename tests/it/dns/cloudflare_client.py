#!/usr/bin/env python3
"""Cloudflare's own client against the server of the tests, unchanged: it lists, creates, edits, replaces, deletes and batches.

usage: cloudflare_client.py PORT TOKEN ZONE
"""

import sys

import cloudflare
from cloudflare import Cloudflare

port, token, name = sys.argv[1:4]
cf = Cloudflare(api_token=token, base_url=f"http://127.0.0.1:{port}/client/v4", max_retries=2)

[zone] = list(cf.zones.list(name=name))
assert zone.name == name and zone.status == "active" and zone.name_servers, zone
assert cf.zones.get(zone_id=zone.id).id == zone.id
records = cf.dns.records


def refused(kind, code, call):
    try:
        call()
    except kind as e:
        assert f"{code}" in str(e), (code, e)
        return
    raise AssertionError(f"not refused: {code}")


made = records.create(zone_id=zone.id, name="client", type="A", content="192.0.2.1", ttl=60, comment="by the client")
assert (made.name, made.type, made.content, made.ttl, made.proxied, made.proxiable) == (f"client.{name}", "A", "192.0.2.1", 60, False, True), made
assert made.created_on and made.modified_on
caa = records.create(zone_id=zone.id, name="client", type="CAA", ttl=1, data={"flags": 0, "tag": "issue", "value": "x.org"})
assert caa.data.value == "x.org" and caa.content == '0 issue "x.org"', caa
srv = records.create(zone_id=zone.id, name="_s._tcp", type="SRV", ttl=120, data={"priority": 1, "weight": 2, "port": 3, "target": "client." + name})
assert srv.data.port == 3
mx = records.create(zone_id=zone.id, name="@", type="MX", ttl=120, content="mail." + name, priority=5)
assert mx.priority == 5 and mx.name == name

assert records.get(dns_record_id=made.id, zone_id=zone.id).comment == "by the client"
edited = records.edit(dns_record_id=made.id, zone_id=zone.id, name="client", type="A", ttl=1, content="192.0.2.2", proxied=True)
assert (edited.id, edited.content, edited.proxied, edited.comment) == (made.id, "192.0.2.2", True, "by the client"), edited
replaced = records.update(dns_record_id=made.id, zone_id=zone.id, name="client", type="A", ttl=300, content="192.0.2.3")
assert (replaced.id, replaced.content, replaced.proxied, replaced.comment) == (made.id, "192.0.2.3", False, None), replaced

found = list(records.list(zone_id=zone.id, name={"exact": f"client.{name}"}, type="A"))
assert [r.id for r in found] == [made.id], found
assert [r.type for r in records.list(zone_id=zone.id, name={"startswith": "_s."})] == ["SRV"]

done = records.batch(
    zone_id=zone.id,
    deletes=[{"id": caa.id}],
    patches=[{"id": made.id, "ttl": 600}],
    posts=[{"name": f"b{i}.{name}", "type": "TXT", "ttl": 60, "content": f'"t{i}"'} for i in range(120)],
)
assert len(done.posts) == 120 and done.patches[0].ttl == 600 and done.deletes[0].id == caa.id
# More than a page, and the client walks through all of them.
everything = list(records.list(zone_id=zone.id, per_page=50))
assert len(everything) == 123 and len({r.id for r in everything}) == 123, len(everything)

refused(cloudflare.BadRequestError, 81058, lambda: records.create(zone_id=zone.id, name="client", type="A", content="192.0.2.3", ttl=60))
refused(cloudflare.BadRequestError, 81053, lambda: records.create(zone_id=zone.id, name="client", type="CNAME", content="x.org", ttl=60))
refused(cloudflare.BadRequestError, 9021, lambda: records.create(zone_id=zone.id, name="t", type="A", content="192.0.2.3", ttl=59))
refused(cloudflare.BadRequestError, 9004, lambda: records.create(zone_id=zone.id, name="t", type="TXT", content="x", ttl=60, proxied=True))
refused(cloudflare.BadRequestError, 9005, lambda: records.create(zone_id=zone.id, name="t", type="A", content="192.0.2", ttl=60))
# All or nothing: the good half of a batch is not kept.
post = [{"name": "half", "type": "A", "ttl": 60, "content": "192.0.2.1"}, {"name": "half", "type": "A", "ttl": 5, "content": "192.0.2.2"}]
refused(cloudflare.BadRequestError, 9021, lambda: records.batch(zone_id=zone.id, deletes=[{"id": mx.id}], posts=post))
assert records.get(dns_record_id=mx.id, zone_id=zone.id).id == mx.id and not list(records.list(zone_id=zone.id, name={"exact": f"half.{name}"}))

assert records.delete(dns_record_id=srv.id, zone_id=zone.id).id == srv.id
refused(cloudflare.NotFoundError, 81044, lambda: records.get(dns_record_id=srv.id, zone_id=zone.id))
other = Cloudflare(api_token="x" * 40, base_url=f"http://127.0.0.1:{port}/client/v4", max_retries=0)
refused(cloudflare.PermissionDeniedError, 9109, lambda: list(other.zones.list()))
refused(cloudflare.PermissionDeniedError, 10000, lambda: list(other.dns.records.list(zone_id=zone.id)))
print("client", cloudflare.__version__, "ok")
