"""A browser without a picture: what viser's page says to its server, over a real websocket."""

import http.client
import threading

import msgspec.msgpack
import viser
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def enter(port, token):
    """The cookie that the token is worth; "" where it is refused."""
    status, headers, _ = get(port, f"/?token={token}")
    return headers["Set-Cookie"].partition(";")[0] if status == 303 else ""


def get(port, path="/", **headers):
    """Status, headers and body of a page."""
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    asked.request("GET", path, headers=headers)
    answer = asked.getresponse()
    body = answer.read()
    asked.close()
    return answer.status, dict(answer.headers), body


def dial(port, cookie="", origin=None, **rest):
    """A websocket as viser's page opens it."""
    headers = {"Cookie": cookie} if cookie else {}
    protocol = [f"viser-v{viser.__version__}"]
    return connect(
        f"ws://127.0.0.1:{port}",
        subprotocols=protocol,
        origin=origin,
        additional_headers=headers,
        compression=None,
        max_size=None,
        close_timeout=0.5,
        **rest,
    )


class Browser:
    """Connects, shows where its camera is (from then on the server counts it), and listens until it is frozen."""

    def __init__(self, console):
        self.socket = dial(console.port, enter(console.port, console.token), max_queue=1)
        self.frozen = threading.Event()
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        up, zero = (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)
        self.say(
            "ViewerCameraMessage",
            wxyz=(1.0, 0.0, 0.0, 0.0),
            position=(2.0, 0.0, 1.0),
            fov=1.0,
            near=0.1,
            far=100.0,
            image_height=100,
            image_width=100,
            look_at=zero,
            up_direction=up,
        )

    def say(self, kind, **fields):
        self.socket.send(msgspec.msgpack.encode({"type": kind, **fields}))

    def _listen(self):
        """Reading is what answers pings too: who does not read is silent."""
        try:
            while not self.frozen.is_set():
                self.socket.recv()
        except ConnectionClosed:
            pass

    def freeze(self):
        """Connected, and silent."""
        self.frozen.set()

    def close(self):
        self.frozen.set()
        self.socket.close()
