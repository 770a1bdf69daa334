"""PyTorch's TCPStore for pytorch.test.ts: reads commands and writes results as lines of JSON.

Values are hexadecimal. Each line is done in a thread of its own, so that one may wait for another.
"""

import datetime
import json
import sys
import threading

from torch.distributed import TCPStore

stores = {}
output_lock = threading.Lock()


def open_store(name, port, is_master, world_size, timeout_ms, use_libuv=True):
    stores[name] = TCPStore(
        "127.0.0.1",
        port,
        world_size=world_size,
        is_master=is_master,
        timeout=datetime.timedelta(milliseconds=timeout_ms),
        wait_for_workers=world_size is not None,
        use_libuv=use_libuv,
    )
    return stores[name].port


def call(name, method, *args):
    store = stores[name]
    of_hex = bytes.fromhex
    if method in ("set", "append"):
        # PyTorch accepts only str here; each byte is one character below 128.
        return getattr(store, method)(args[0], of_hex(args[1]).decode("ascii"))
    if method == "get":
        return store.get(args[0]).hex()
    if method == "multi_get":
        return [value.hex() for value in store.multi_get(args[0])]
    if method == "multi_set":
        return store.multi_set(args[0], [of_hex(value).decode("ascii") for value in args[1]])
    if method == "compare_set":
        texts = [of_hex(value).decode("ascii") for value in args[1:]]
        return store.compare_set(args[0], *texts).hex()
    if method == "wait":
        return store.wait(args[0], datetime.timedelta(milliseconds=args[1]))
    return getattr(store, method)(*args)


def close(name):
    del stores[name]


def answer(line):
    request = json.loads(line)
    function = {"open": open_store, "call": call, "close": close}[request["do"]]
    try:
        reply = {"value": function(*request["args"])}
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {error}"}
    with output_lock:
        print(json.dumps({"id": request["id"], **reply}), flush=True)


for line in sys.stdin:
    threading.Thread(target=answer, args=(line,), daemon=True).start()
