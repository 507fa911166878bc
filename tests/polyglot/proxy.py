"""A proxy that ends connections in the middle of what they send back.

Must hold: a caller can read all that was sent before the end. (A reset would take that back.) So the proxy closes its side alone, and reads on.
"""

import socket
import threading


class Proxy:
    """Passes connections on to `to`. The first ones of each client end after so many bytes to it as `limits` say; `cuts` counts them."""

    def __init__(self, to, limits):
        self.to, self.limits = to, limits
        self.begin()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.listener.getsockname())
        threading.Thread(target=self.accept, daemon=True).start()

    def begin(self):
        """Another client comes."""
        self.left, self.cuts = list(self.limits), 0

    def accept(self):
        host, port = self.to.rsplit(":", 1)
        while True:
            caller, _ = self.listener.accept()
            server = socket.create_connection((host, int(port)))
            limit = self.left.pop(0) if self.left else 1 << 30
            threading.Thread(target=self.up, args=(caller, server), daemon=True).start()
            threading.Thread(target=self.down, args=(caller, server, limit), daemon=True).start()

    def up(self, caller, server):
        try:
            while data := caller.recv(65536):
                try:
                    server.sendall(data)
                except OSError:
                    pass
        except OSError:
            pass
        caller.close()
        end(server)

    def down(self, caller, server, left):
        try:
            while left and (data := server.recv(min(left, 65536))):
                caller.sendall(data)
                left -= len(data)
        except OSError:
            pass
        self.cuts += not left
        end(server)
        try:
            caller.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def end(server):
    try:
        server.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    server.close()
