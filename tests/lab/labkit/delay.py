"""Holds packets back for a while: what tc's netem does, for kernels without it. Runs in the lab's network, fed by the kernel's packet queue.

    delay.py QUEUE '{"198.18.77.10": 50}'      milliseconds by destination

The packets stay in the kernel; this program only says when each may go on (netfilter's NFQUEUE, by raw netlink messages).
"""

import heapq
import json
import select
import socket
import struct
import sys
import time

NETLINK_NETFILTER = 12
SUBSYSTEM = 3  # NFNL_SUBSYS_QUEUE
PACKET, VERDICT, CONFIG = 0, 1, 2
REQUEST, ACK = 1, 4
ACCEPT = 1
COPY_PACKET = 2
QUEUE_MAX = 20_000


def attribute(kind, data):
    return struct.pack("HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def message(kind, queue, attributes, flags=REQUEST, family=socket.AF_UNSPEC):
    body = struct.pack("BBH", family, 0, socket.htons(queue)) + attributes
    return struct.pack("IHHII", 16 + len(body), SUBSYSTEM << 8 | kind, flags, 0, 0) + body


def attributes(data):
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("HH", data)
        if length < 4:
            break
        found[kind & 0x7FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


class Queue:
    """The kernel's queue of waiting packets."""

    def __init__(self, number):
        self.number = number
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        # A lost notice must not end the program (NETLINK_NO_ENOBUFS).
        self.socket.setsockopt(270, 5, 1)
        self.socket.bind((0, 0))
        for config in (
            attribute(1, struct.pack(">BxH", 1, 0)),  # bind
            # As much of each packet as its destination address.
            attribute(2, struct.pack(">IB", 20, COPY_PACKET)),
            attribute(3, struct.pack(">I", QUEUE_MAX)),
            # Accept packets that the card would cut up, and let those pass that find the queue full.
            attribute(4, struct.pack(">I", 4 | 1)) + attribute(5, struct.pack(">I", 4 | 1)),
        ):
            self.socket.send(message(CONFIG, number, config, REQUEST | ACK))
            self.acknowledged()

    def acknowledged(self):
        reply = self.socket.recv(65536)
        error = struct.unpack_from("i", reply, 16)[0]
        if error:
            raise OSError(-error, "the kernel's packet queue cannot be used")

    def packets(self):
        """The packets that came: id and destination."""
        data = self.socket.recv(1 << 20)
        while len(data) >= 16:
            length, kind = struct.unpack_from("IH", data)
            if length < 20:
                return
            if kind == SUBSYSTEM << 8 | PACKET:
                found = attributes(data[20:length])
                identity = struct.unpack_from(">I", found[1])[0]
                payload = found.get(10, b"")
                yield identity, socket.inet_ntoa(payload[16:20]) if len(payload) >= 20 else ""
            data = data[(length + 3) & ~3 :]

    def release(self, identity):
        self.socket.send(message(VERDICT, self.number, attribute(2, struct.pack(">II", ACCEPT, identity))))


def main():
    queue = Queue(int(sys.argv[1]))
    delays = {address: ms / 1000 for address, ms in json.loads(sys.argv[2]).items()}
    waiting = []
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        # `select` wakes up late by a fraction of a millisecond, which is what a real line does as well.
        if select.select([queue.socket], [], [], patience)[0]:
            now = time.monotonic()
            for identity, destination in queue.packets():
                heapq.heappush(waiting, (now + delays.get(destination, 0), identity))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            queue.release(heapq.heappop(waiting)[1])


if __name__ == "__main__":
    main()
