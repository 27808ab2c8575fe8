"""An agent that outlives its link: it listens on an abstract socket, and each new link is handed over to it there.

Nothing is on a disk, and no port is open: the socket's name is a hash of a token that the collector made for this run
and host, only a process of the same user that knows the token gets through, and the socket goes with the agent. Whoever
is started over a link hands its own descriptors over, and stays until the agent lets go of them: sshd waits for it.
"""

import hashlib
import hmac
import os
import socket
import struct
from typing import NamedTuple, Optional

_TOKEN_B = 64
_HANDED = struct.Struct(f">{_TOKEN_B}sQ")  # token, number of the last frame received
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Handed(NamedTuple):
    """A new link. The agent closes `holder` when it lets go of the descriptors."""

    holder: socket.socket
    reads: int
    writes: int
    received: int


def hand_over(token: str, received: int) -> Optional[socket.socket]:
    """Give descriptors 0 and 1 to the agent of this token and wait until it lets go of them; then None.

    Where there is no such agent, one is made: in it, this returns the socket to listen on.
    """
    try:
        holder = _connected(token)
    except ConnectionRefusedError:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(_name(token))
        listening.listen(4)
        if os.fork() == 0:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nothing, descriptor)
            return listening
        listening.close()
        holder, received = _connected(token), 0
    with holder:
        handed = _HANDED.pack(token.encode(), received)
        rights = struct.pack("2i", 0, 1)
        holder.sendmsg([handed], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        holder.recv(1)
    return None


def accept(listening: socket.socket, token: str) -> Optional[Handed]:
    """The next link that is handed over; None when whoever came may not."""
    holder, _ = listening.accept()
    credentials = holder.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    holder.settimeout(2)
    try:
        data, messages, _, _ = holder.recvmsg(_HANDED.size, socket.CMSG_SPACE(8))
        given, received = _HANDED.unpack(data)
        rights = b"".join(rights for _, kind, rights in messages if kind == socket.SCM_RIGHTS)
        reads, writes = struct.unpack("2i", rights)
    except (OSError, struct.error):
        holder.close()
        return None
    if _CREDENTIALS.unpack(credentials)[1] != os.getuid() or not hmac.compare_digest(given, token.encode()):
        os.close(reads)
        os.close(writes)
        holder.close()
        return None
    return Handed(holder, reads, writes, received)


def _connected(token: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.connect(_name(token))
    except OSError:
        client.close()
        raise
    return client


def _name(token: str) -> str:
    return "\0gpu-agent-" + hashlib.sha256(token.encode()).hexdigest()[:32]
