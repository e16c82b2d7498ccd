"""Where the lab keeps what, its network and its hosts."""

import os
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent

# Outlives the lab: downloaded packages, and the engine's data with the imported image.
CACHE = Path(os.environ.get("RUNBOOK_LAB_CACHE", "/var/cache/runbook-lab"))
# Lives as long as the lab. Paths of sockets below it must stay short.
RUN = Path(os.environ.get("RUNBOOK_LAB_RUN", "/run/runbook-lab"))

# Addresses for benchmarks of network devices (RFC 2544): nothing real lives there.
NET = os.environ.get("RUNBOOK_LAB_NET", "198.18.77")

SOCKET = RUN / "docker.sock"
KNOWN_HOSTS = RUN / "known_hosts"
IDENTITY = RUN / "id"
SSH_CONFIG = RUN / "ssh_config"
CAPSULE = RUN / "capsule.json"
DISKS = RUN / "disks"

# The lab's side of the cable between this machine and the lab's network.
LINK = os.environ.get("RUNBOOK_LAB_LINK", "rblab")
BRIDGE = "lab0"
NETWORK = "lab"
CGROUP = "runbook-lab"
IMAGE = "runbook-lab"

ME = f"{NET}.1"
GATEWAY = f"{NET}.254"

DISK_SIZE = "8G"


@dataclass(frozen=True)
class Host:
    """A host of the lab: a container that looks like a server."""

    name: str
    number: int
    # Units that start with it, besides sshd.
    units: tuple = ()

    @property
    def address(self):
        return f"{NET}.{self.number}"

    @property
    def own(self):
        """What is the host's own and given to it from outside: keys."""
        return RUN / "hosts" / self.name

    @property
    def disk(self):
        """Its data disk's file."""
        return CACHE / "disks" / f"{self.name}.ext4"


HOSTS = {
    host.name: host
    for host in (
        Host("old", 10),
        Host("new", 11),
        Host("edge", 12, ("named",)),
        Host("vault", 13),
    )
}
