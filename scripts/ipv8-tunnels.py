"""Goodput of one circuit of ipv8's Rust tunnels, which Tribler uses, as one line of JSON.

In: hops, seconds. Out: bytes a second that the exit's answers brought back through the circuit.
Called by: scripts/bench-peers (`cepa rig files`).

All nodes are endpoints of this one process on 127.0.0.1: no cable and no other process in between, which
favours them. Their speed test asks for answers of 1200 bytes, without congestion control.
"""

import asyncio
import json
import os
import sys
import time

from ipv8.messaging.anonymization.tunnel import PEER_FLAG_SPEED_TEST
from ipv8.messaging.interfaces.udp.endpoint import UDPv4Address
from ipv8.test.messaging.anonymization.test_community import TestTunnelCommunity
from ipv8_rust_tunnels import Endpoint

ANSWER = 1200


class Nodes(TestTunnelCommunity):
    """Tunnel communities on loopback, each with an endpoint of its own."""

    __test__ = False

    @property
    def loop(self):
        return asyncio.get_running_loop()

    def create_node(self, *args, **kwargs):
        node = super().create_node(*args, **kwargs)
        endpoint = Endpoint(0, "127.0.0.1")
        endpoint.open()
        endpoint.set_exit_address(("127.0.0.1", 0))
        address = UDPv4Address(*endpoint.get_address())
        overlay = node.overlay
        node.endpoint = endpoint
        node.my_peer.addresses[UDPv4Address] = address
        endpoint.wan_address = endpoint.lan_address = address
        overlay.my_estimated_wan = overlay.my_estimated_lan = address
        overlay.endpoint = overlay.crypto_endpoint = overlay.settings.endpoint = endpoint
        endpoint.setup_tunnels(overlay, overlay.settings)
        endpoint.remove_listener(overlay)
        endpoint.add_prefix_listener(overlay, overlay.get_prefix())
        overlay.circuits = endpoint.circuits
        overlay.relay_from_to = endpoint.relays
        overlay.exit_sockets = endpoint.exit_sockets
        return node


async def measure(hops: int, seconds: float) -> dict:
    nodes = Nodes()
    nodes.setUp()
    # Their scaffold is for tests; the event loop shall not check itself here.
    asyncio.get_running_loop().set_debug(False)
    while len(nodes.nodes) <= hops:
        nodes.add_node_to_experiment(nodes.create_node())
    nodes.settings(hops).peer_flags |= {PEER_FLAG_SPEED_TEST}
    await nodes.introduce_nodes()
    began = time.monotonic()
    circuit = nodes.overlay(0).create_circuit(hops, exit_flags=[PEER_FLAG_SPEED_TEST])
    if circuit is None or not await asyncio.wait_for(circuit.ready, 30):
        raise SystemExit("the circuit was not built")
    setup = time.monotonic() - began
    received: dict[int, tuple[float, int]] = {}
    done = asyncio.get_running_loop().create_future()

    def on_stats(stats, is_done):
        for number, (_, _, at, length) in stats.items():
            if length:
                received[number] = (at, length)
        if is_done and not done.done():
            done.set_result(None)

    endpoint = nodes.overlay(0).endpoint
    endpoint.run_speedtest(circuit.circuit_id, int(seconds * 1000), 50, ANSWER, 100, on_stats, 500)
    await asyncio.wait_for(done, seconds + 30)
    times = [at for at, _ in received.values()]
    span = (max(times) - min(times)) / 1000 if len(times) > 1 else 0
    total = sum(length for _, length in received.values())
    return {"hops": hops, "bytes_per_s": total / span if span else 0, "bytes": total,
            "setup_s": round(setup, 3), "hops_built": len(circuit.hops)}


if __name__ == "__main__":
    result = asyncio.run(measure(int(sys.argv[1]), float(sys.argv[2])))
    print(json.dumps(result), flush=True)
    # The endpoints' threads do not end by themselves.
    os._exit(0)
