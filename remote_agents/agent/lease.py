"""An agent that outlives its link: it listens on an abstract socket, and each new link is handed over to it there.

Nothing is on a disk, and no port is open: the socket's name is a hash of a token that the collector made for this run
and host, only a process of the same user that knows the token gets through, and the socket goes with the agent. Whoever
is started over a link hands its own descriptors over, and stays until the agent lets go of them: sshd waits for it.
"""

import array
import errno
import hashlib
import hmac
import os
import socket
import struct
import sys
import time
from typing import NamedTuple, Optional

_HANDED = struct.Struct(">64s16sQ")  # token; an agent, number of its last frame received
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_TRIES = 3
_WAIT_S = 2.0


class Entry(NamedTuple):
    """In the agent itself `listening`, in whoever was started over a link `holder`, which leads to the agent."""

    listening: Optional[socket.socket]
    holder: Optional[socket.socket]
    is_new: bool  # the agent has just been made


class Handed(NamedTuple):
    """A new link. The agent closes `holder` when it lets go of the descriptors."""

    holder: socket.socket
    reads: int
    writes: int
    agent: str  # whose frames the collector has received, up to number `received`
    received: int


def enter(token: str) -> Entry:
    """The way to the agent of this token. Where there is none, one is made: in it, this returns what it listens on."""
    for _ in range(_TRIES):
        try:
            return Entry(None, _connected(token), False)
        except ConnectionRefusedError:
            pass
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(_name(token))
        except OSError as error:
            listening.close()
            if error.errno != errno.EADDRINUSE:
                raise
            time.sleep(0.1)  # another start is a moment ahead of us: its agent is about to listen
            continue
        listening.listen(4)
        if os.fork() == 0:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nothing, descriptor)
            return Entry(listening, None, True)
        listening.close()
        return Entry(None, _connected(token), True)
    sys.exit("the agent's socket is taken, and nobody listens on it")


def hand_over(holder: socket.socket, token: str, agent: str, received: int) -> None:
    """Give descriptors 0 and 1 to the agent, and wait until it lets go of them."""
    with holder:
        handed = _HANDED.pack(token.encode(), agent.encode(), received)
        rights = struct.pack("2i", 0, 1)
        holder.sendmsg([handed], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        holder.recv(1)


def accept(listening: socket.socket, token: str) -> Optional[Handed]:
    """The next link that is handed over; None when whoever came may not."""
    holder, _ = listening.accept()
    rights = array.array("i")
    try:
        if _user(holder) == os.getuid():  # others are not even waited for
            holder.settimeout(_WAIT_S)
            data, messages, _, _ = holder.recvmsg(_HANDED.size, socket.CMSG_SPACE(2 * rights.itemsize))
            for _, kind, sent in messages:
                if kind == socket.SCM_RIGHTS:
                    rights.frombytes(sent[: len(sent) - len(sent) % rights.itemsize])
            given, agent, received = _HANDED.unpack(data)
            if len(rights) == 2 and hmac.compare_digest(given, token.encode()):
                return Handed(holder, rights[0], rights[1], agent.rstrip(b"\0").decode(), received)
    except (OSError, ValueError, struct.error):
        pass  # it is none of ours, or has gone
    for descriptor in rights:
        os.close(descriptor)
    holder.close()
    return None


def _connected(token: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(_WAIT_S)
        client.connect(_name(token))
        client.settimeout(None)
        if _user(client) != os.getuid():  # the name is no secret once an agent has listened on it
            sys.exit(f"the agent's socket is held by another user of this host (uid {_user(client)})")
    except BaseException:
        client.close()
        raise
    return client


def _user(peer: socket.socket) -> int:
    """Who is at the other end: its uid."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def _name(token: str) -> str:
    return "\0gpu-agent-" + hashlib.sha256(token.encode()).hexdigest()[:32]
