"""Records the traffic between PyTorch's TCPStore and its clients for recorded.test.ts.

    python3 test/distributed/record.py     (with torch; writes recorded.json beside this file)

A proxy stands between the server and each client and keeps the bytes in the order they pass. After
each call it waits until nothing passes any more, so that the order is that of the calls. A client
has one call at a time; `began` and `done` say when a call was made and when it returned.
"""

import datetime
import json
import pathlib
import socket
import threading
import time

import torch
from torch.distributed import TCPStore

QUIET_S = 0.1


class Proxy:
    """Connections in the order they are accepted are clients 0, 1, ..."""

    def __init__(self, port, events):
        self.target = port
        self.events = events
        self.lock = threading.Lock()
        self.last = time.monotonic()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        client = 0
        while True:
            near, _ = self.listener.accept()
            far = socket.create_connection(("127.0.0.1", self.target))
            for source, sink, what in ((near, far, "sent"), (far, near, "received")):
                arguments = (source, sink, client, what)
                threading.Thread(target=self.pass_on, args=arguments, daemon=True).start()
            client += 1

    def pass_on(self, source, sink, client, what):
        while data := source.recv(65536):
            self.note(client, what, data.hex())
            sink.sendall(data)
        sink.close()

    def note(self, client, what, detail):
        with self.lock:
            self.last = time.monotonic()
            before = self.events[-1] if self.events else None
            if what in ("sent", "received") and before and before[:2] == [client, what]:
                before[2] += detail
            else:
                self.events.append([client, what, detail])

    def settle(self):
        while time.monotonic() - self.last < QUIET_S:
            time.sleep(QUIET_S / 4)


def seconds(count):
    return datetime.timedelta(seconds=count)


def record(name, use_libuv, script):
    """`script`: each step's client, method and arguments; "&" does not wait for the step."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=use_libuv)
    events = []
    proxy = Proxy(server.port, events)
    clients = []
    for _ in range(1 + max(client for client, *_ in script)):
        clients.append(TCPStore("127.0.0.1", proxy.port, timeout=seconds(30)))
        proxy.settle()
    waiting = []
    for client, method, *arguments in script:
        background = method.endswith("&")
        method = method.rstrip("&")

        def call(client=client, method=method, arguments=arguments):
            if method == "wait" and len(arguments) == 2:
                arguments = [arguments[0], seconds(arguments[1])]
            try:
                value = getattr(clients[client], method)(*arguments)
            except torch.distributed.DistStoreError:
                value = "timeout"
            if isinstance(value, bytes):
                value = value.decode()
            if isinstance(value, list):
                value = [item.decode() for item in value]
            proxy.note(client, "done", value)

        proxy.note(client, "began", [method, *arguments])
        thread = threading.Thread(target=call)
        thread.start()
        if background:
            waiting.append(thread)
        else:
            thread.join()
        proxy.last = time.monotonic()
        proxy.settle()
    for thread in waiting:
        thread.join()
    proxy.settle()
    return {
        "name": name,
        "server": "libuv" if use_libuv else "without libuv",
        "events": events,
    }


SCRIPTS = {
    "set and get": [
        (0, "set", "key", "value"),
        (0, "get", "key"),
        (0, "set", "key", ""),
        (0, "get", "key"),
        (0, "set", "long", "0123456789abcdef" * 250),
        (0, "get", "long"),
    ],
    "add": [
        (0, "add", "count", 5),
        (0, "add", "count", -7),
        (0, "get", "count"),
        (0, "add", "count", 2**40),
        (0, "get", "count"),
    ],
    "compare_set": [
        (0, "compare_set", "key", "old", "new"),
        (0, "check", ["key"]),
        (0, "compare_set", "key", "", "new"),
        (0, "compare_set", "key", "old", "newer"),
        (0, "compare_set", "key", "new", "newer"),
        (0, "get", "key"),
    ],
    "check, num_keys and delete_key": [
        (0, "set", "a", "1"),
        (0, "check", ["a"]),
        (0, "check", ["a", "b"]),
        (0, "num_keys"),
        (0, "set", "b", "2"),
        (0, "check", ["a", "b", "a"]),
        (0, "num_keys"),
        (0, "delete_key", "a"),
        (0, "delete_key", "a"),
        (0, "num_keys"),
    ],
    "append": [
        (0, "append", "key", "one"),
        (0, "append", "key", " two"),
        (0, "get", "key"),
    ],
    "multi_set and multi_get": [
        (0, "multi_set", ["a", "b", "c"], ["1", "", "3"]),
        (0, "multi_get", ["c", "a", "b", "c"]),
        (0, "num_keys"),
    ],
    "wait for another": [
        (0, "wait&", ["a", "b"]),
        (1, "set", "b", "2"),
        (1, "add", "a", 1),
        (0, "num_keys"),
        (1, "get&", "later"),
        (0, "append", "later", "value"),
        (1, "check", ["later"]),
    ],
    "wait that times out": [
        (0, "wait", ["missing"], 0.3),
        (0, "set", "missing", "there"),
        (0, "wait", ["missing"]),
        (0, "get", "missing"),
    ],
}

recorded = [
    record(name, use_libuv, script)
    for name, script in SCRIPTS.items()
    for use_libuv in (True, False)
]
path = pathlib.Path(__file__).with_name("recorded.json")
with path.open("w") as file:
    # One line per event.
    lines = []
    for exchange in recorded:
        events = ",\n  ".join(json.dumps(event) for event in exchange.pop("events"))
        lines.append(json.dumps(exchange)[:-1] + ', "events": [\n  ' + events + "\n]}")
    version = torch.__version__.split("+")[0]
    file.write('{"torch": "%s", "recorded": [\n%s\n]}\n' % (version, ",\n".join(lines)))
print(f"{path}: {len(recorded)} exchanges")
