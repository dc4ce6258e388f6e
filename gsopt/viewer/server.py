"""The web server: viser on a port of our choice, or one line that says why not."""

import contextlib
import errno
import io
import socket
import warnings
from typing import TYPE_CHECKING

from gsopt.errors import InputError, MissingExtra

if TYPE_CHECKING:
    import viser

PREFIX = "--viewer-"  # of the flags of `gsopt train`; `gsopt view` has none


def open_server(host: str, port: int, label: str, prefix: str = PREFIX) -> "viser.ViserServer":
    """A server that listens at `host`, `port` (0 for a free one); `address` tells where.

    viser would take the next port where one is in use, and try for ever where the host is not this machine's;
    so the port is tried first. Nothing is printed.

    Raises:
        MissingExtra: viser is not installed.
        InputError: the address cannot be had; the message names the flag, which begins with `prefix`.
    """
    try:
        import viser
    except ImportError:
        raise MissingExtra("viser", "viewer", "the viewer") from None
    port = _free(host, port, prefix)
    # A browser may leave while a picture is made for it.
    warnings.filterwarnings("ignore", message="Queued a .* on a closed connection", category=UserWarning)
    with contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host=host, port=port, label=label, verbose=False)
    if server.get_port() != port:  # taken since it was tried
        close_server(server)
        raise _in_use(host, port, prefix)
    # A click on "share" would make the run public through a server of viser's makers.
    server.gui.configure_theme(show_share_button=False, show_logo=False)
    server.gui.main_panel.dock_right()
    return server


def close_server(server: "viser.ViserServer") -> None:
    """Disconnect all browsers and free the port."""
    with contextlib.redirect_stdout(io.StringIO()):
        server.stop()


def address(server: "viser.ViserServer") -> str:
    """What to type into a browser."""
    host = server.get_host()
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{server.get_port()}"


def _free(host: str, port: int, prefix: str) -> int:
    """The port, which is free, as a number. Raises InputError."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InputError(
            f"{prefix}host {host}: no address of a machine ({error.strerror or error})"
        ) from None
    try:
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
            return trial.getsockname()[1]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use(host, port, prefix) from None
        raise InputError(
            f"{prefix}host {host}, {prefix}port {port}: cannot listen there ({error.strerror}); "
            "give an address of this machine, and a port of 1024 or more"
        ) from None


def _in_use(host: str, port: int, prefix: str) -> InputError:
    return InputError(
        f"{prefix}port {port}: in use by another program on {host}; give another, or 0 for one that is free"
    )
