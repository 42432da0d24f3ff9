"""Where a page listens: this machine alone, on a port that is free."""

from __future__ import annotations

import errno
import ipaddress
import socket
from urllib.parse import urlsplit

from prefkit.errors import UserError


def is_loopback(host: str) -> bool:
    """Whether a host name or address reaches only this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(netloc: str) -> str:
    """The host in `host:port` or `[::1]:port`; empty if it is neither."""
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens (port 0: on any free one).

    Raises `UserError` if the port is taken, or others could reach the address: nobody would be asked who they are.
    """
    if not is_loopback(host):
        fix = "leave --host out; from elsewhere use `ssh -L PORT:127.0.0.1:PORT`"
        raise UserError("others could reach this page without a login", f"--host {host}", fix)
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as e:
        listening.close()
        taken = isinstance(e, OSError) and e.errno == errno.EADDRINUSE
        why = f"port {port} is taken" if taken else f"cannot listen on port {port}: {e}"
        raise UserError(why, host, "choose another with --port, or --port 0 for any free one") from None
    return listening


def url(listening: socket.socket) -> str:
    """The address of a listening socket as people type it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
