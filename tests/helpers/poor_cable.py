"""A switch that delays every frame and loses some: `python poor_cable.py DELAY_MS LOSS PORT PORT …`.

It stands for `tc qdisc … netem`, which kernels without that module refuse. Each frame that enters one port leaves all
others DELAY_MS later, except the fraction LOSS of the frames.
"""

import heapq
import random
import select
import socket
import sys
import time

_ALL_PROTOCOLS = 0x0003
_SOL_PACKET, _VNET_HEADER, _IGNORE_OUTGOING = 263, 15, 23  # of linux/if_packet.h
_LARGEST = 1 << 17  # bytes of a frame that the sender has not yet cut into packets, with its header


def main() -> None:
    """Pass frames on until the process is killed."""
    delay, loss = float(sys.argv[1]) / 1000, float(sys.argv[2])
    draw = random.Random(0)
    ports = [_open(name) for name in sys.argv[3:]]
    print("ready", flush=True)
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for port in select.select(ports, [], [], timeout)[0]:
            frame = port.recv(_LARGEST)
            if draw.random() >= loss:
                number += 1
                heapq.heappush(waiting, (time.monotonic() + delay, number, ports.index(port), frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, source, frame = heapq.heappop(waiting)
            for index, port in enumerate(ports):
                if index != source:
                    port.send(frame)


def _open(name: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    # With this header a frame keeps what the sender has left to its card: checksums and the cutting into packets.
    port.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
    port.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    port.bind((name, _ALL_PROTOCOLS))
    return port


if __name__ == "__main__":
    main()
