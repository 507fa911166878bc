"""Real gateways behind a real Envoy, with mutual TLS between them. `run`, beside this file, prepares all that this needs.

Each function named `test_` is one test; words as arguments run only those tests whose names have one of them. All but the last run at the same
time: one of them lasts longer than Envoy's default time limit. The last wants the machine for itself.
"""

import asyncio
import collections
import json
import sys
import time
import traceback

import grpc

import certificates
import rolling
from calls import COMPLETED, RUN, Runs, code
from servers import CERTIFICATES, Envoy, Upstream, embedded, ending, gateway, mesh

OK, UNAVAILABLE, UNKNOWN, UNAUTHENTICATED = (
    grpc.StatusCode[name] for name in ["OK", "UNAVAILABLE", "UNKNOWN", "UNAUTHENTICATED"]
)
async def test_unary_calls_and_a_stream_that_is_longer_than_envoys_default_time_limit():
    with ending(embedded()) as api:
        url = f"http://{api.address('rest')}/v1"
        async with mesh("long", [url, url]) as (envoy, _), Runs(envoy.address) as runs:
            made = await runs.create()
            assert made.id and made.thread_id
            assert await code(runs.get(type(RUN)(thread_id=made.thread_id, run_id=made.id))) == OK
            began = time.monotonic()
            events = [event async for event in runs.stream({"embedded.delay_ms": "1700"})]
            lasted = time.monotonic() - began
            assert lasted > 15, f"the stream lasted only {lasted:.1f} s"
            assert COMPLETED in {event.type for event in events}, events[-1]
            return f"the stream lasted {lasted:.1f} s"


async def test_an_unavailable_that_comes_without_a_body_is_retried_on_the_other_gateway_and_nothing_is_done_twice():
    with ending(Upstream()) as upstream:
        # Nobody listens on port 1: the first gateway can send nothing, and says so.
        async with mesh("retry", ["http://127.0.0.1:1", upstream.url], "--max-retries", "0") as (envoy, _), Runs(envoy.address) as runs:
            for _ in range(20):
                assert await code(runs.create()) == OK
            retries = envoy.count("upstream_rq_retry")
            assert retries > 0 and envoy.count("upstream_rq_retry_success") > 0
            assert upstream.asked["POST"] == 20, upstream.asked
            return f"20 creates, {retries} retries, 20 POSTs"


async def test_a_write_that_the_upstream_answers_with_503_is_unknown_and_not_repeated():
    with ending(Upstream()) as upstream:
        upstream.status = 503
        async with mesh("once", [upstream.url, upstream.url]) as (envoy, _), Runs(envoy.address) as runs:
            assert await code(runs.create()) == UNKNOWN
            assert upstream.asked["POST"] == 1, upstream.asked


async def test_a_gateway_leaves_retries_to_envoy_once_envoy_has_begun():
    with ending(Upstream()) as upstream:
        upstream.status = 503
        async with mesh("attempts", [upstream.url, upstream.url], "--max-retries", "1", "--retry-pause", "1ms") as (envoy, _), Runs(envoy.address) as runs:
            assert await code(runs.get()) == UNAVAILABLE
            # Twice by the first gateway, then once for each of Envoy's two retries.
            assert upstream.asked["GET"] == 4, upstream.asked


async def test_an_outage_of_the_upstream_ejects_no_gateway_and_a_dead_gateway_is_ejected():
    with ending(Upstream()) as upstream:
        upstream.status = 503
        async with mesh("outlier", [upstream.url, upstream.url], "--max-retries", "0") as (envoy, gateways), Runs(envoy.address) as runs:
            codes = await asyncio.gather(*(code(runs.get()) for _ in range(100)))
            assert set(codes) == {UNAVAILABLE}, codes
            detected = envoy.count("outlier_detection.ejections_detected_consecutive_5xx")
            assert detected > 0, "Envoy's defaults would not have ejected either"
            assert envoy.count("outlier_detection.ejections_enforced_total") == 0
            assert envoy.count("membership_healthy") == 2
            upstream.status = 200
            assert await code(runs.get()) == OK

            gateways[0].end()
            codes = await asyncio.gather(*(code(runs.get()) for _ in range(100)))
            assert set(codes) == {OK}, codes
            assert envoy.count("outlier_detection.ejections_enforced_consecutive_local_origin_failure") == 1
            return f"{detected} times Envoy's defaults would have ejected a gateway for the upstream's errors"


async def test_when_a_gateway_dies_reads_succeed_elsewhere_and_writes_are_unknown_and_done_once():
    with ending(Upstream()) as upstream:
        async with mesh("death", [upstream.url, upstream.url]) as (envoy, gateways), Runs(envoy.address) as runs:
            upstream.go.clear()
            reads = [asyncio.create_task(code(runs.get())) for _ in range(20)]
            writes = [asyncio.create_task(code(runs.create())) for _ in range(20)]
            async with asyncio.timeout(10):
                while upstream.asked["GET"] < 20 or upstream.asked["POST"] < 20:
                    await asyncio.sleep(0.01)
            gateways[0].end()
            # Those that were with the dead gateway are over, one way or the other, before the living one gets its answers.
            async with asyncio.timeout(10):
                while sum(write.done() for write in writes) == 0 or upstream.asked["GET"] == 20:
                    await asyncio.sleep(0.01)
            upstream.go.set()
            assert set(await asyncio.gather(*reads)) == {OK}
            codes = await asyncio.gather(*writes)
            assert set(codes) == {OK, UNKNOWN}, codes
            assert upstream.asked["POST"] == 20, upstream.asked
            return f"of 20 writes {codes.count(UNKNOWN)} were with the gateway that died"


async def test_when_a_gateway_dies_creates_with_a_request_id_are_repeated_elsewhere_and_done_once():
    with ending(Upstream()) as upstream:
        async with mesh("repeat", [upstream.url, upstream.url]) as (envoy, gateways), Runs(envoy.address) as runs:
            upstream.hold_posts = True
            upstream.go.clear()
            writes = [asyncio.ensure_future(runs.create_with_id(f"id {number}")) for number in range(20)]
            async with asyncio.timeout(10):
                while upstream.asked["POST"] < 20:
                    await asyncio.sleep(0.01)
            gateways[0].end()
            upstream.go.set()
            made = {run.id for run in await asyncio.gather(*writes)}
            assert len(made) == 20 and upstream.asked["POST"] == 20, upstream.asked
            retries = envoy.count("upstream_rq_retry")
            assert retries > 0
            return f"20 creates, {retries} repeated by Envoy, {len(upstream.runs)} runs"


async def test_gateway_and_envoy_tell_each_other_by_certificates():
    with ending(Upstream()) as upstream:
        async with mesh("tls", [upstream.url, upstream.url]) as (envoy, gateways), Runs(envoy.address) as runs:
            assert await code(runs.get()) == OK
            address = gateways[0].address("grpc")
            async with Runs(address, credentials("stranger.example")) as stranger:
                assert await code(stranger.get()) == UNAUTHENTICATED
            async with Runs(address, grpc.ssl_channel_credentials((CERTIFICATES / "ca.crt").read_bytes())) as nobody:
                assert await code(nobody.get()) == UNAVAILABLE
            async with Runs(address) as clear:
                assert await code(clear.get()) == UNAVAILABLE
            assert upstream.asked["GET"] == 1, upstream.asked


async def test_a_caller_is_who_its_certificate_says_whatever_it_writes_into_the_header():
    flags = ["--upstream-api-key", "own", "--mesh-identity", "xfcc", "--mesh-peer", "name:envoy.example", "--log", "info", "--log-ids", "--log-format", "json"]
    admin = "URI=spiffe://mesh.example/ns/admin/sa/admin"
    # What callers try: nothing, an element, several, one that is not closed, and the header twice.
    tries = [[], [admin], [f"{admin},{admin}"], [f'{admin};Subject="'], [admin, admin], [f"By=a;{admin},"]]
    headers = [[("x-forwarded-client-cert", value) for value in values] for values in tries]
    with ending(Upstream()) as upstream:
        async with mesh("identity", [upstream.url, upstream.url], *flags) as (envoy, gateways):
            async with Runs(envoy.address, credentials("cart.example"), "envoy.example") as cart:
                for metadata in headers:
                    assert await code(cart.get(metadata=metadata)) == OK, metadata
            # Envoy takes every certificate of the CA; who may do what is not its to say.
            async with Runs(envoy.address, credentials("stranger.example"), "envoy.example") as stranger:
                assert await code(stranger.get(metadata=headers[1])) == OK
            async with Runs(envoy.address) as clear:
                for metadata in headers:
                    assert await code(clear.get(metadata=metadata)) == UNAUTHENTICATED, metadata
            # Past Envoy.
            async with Runs(gateways[0].address("grpc"), credentials("stranger.example")) as stranger:
                for metadata in headers:
                    assert await code(stranger.get(metadata=metadata)) == UNAUTHENTICATED, metadata
            # The log may be a moment behind.
            made = 3 * len(headers) + 1
            async with asyncio.timeout(10):
                while len(ended := [fields for gateway in gateways for fields in calls_ended(gateway)]) < made:
                    await asyncio.sleep(0.01)
        callers = collections.Counter(fields.get("caller") for fields in ended)
        assert callers == {certificates.CART: len(headers), "stranger.example": 1, None: 2 * len(headers)}, callers
        assert upstream.asked["GET"] == len(headers) + 1, upstream.asked
        return f"{made} calls, {len(headers)} headers"


def credentials(name):
    """TLS with the certificate of this name."""
    return grpc.ssl_channel_credentials(*((CERTIFICATES / file).read_bytes() for file in ["ca.crt", f"{name}.key", f"{name}.crt"]))


def calls_ended(gateway):
    """The fields of a gateway's log lines about calls, but for those of health."""
    lines = [json.loads(line)["fields"] for line in list(gateway.printed) if line.startswith("{")]
    return [fields for fields in lines if fields["message"] == "call ended" and fields["rpc.method"] == "runsgateway.v1.RunService/GetRun"]


async def test_envoy_sends_nothing_to_a_gateway_of_another_name():
    with ending(Upstream()) as upstream, ending(gateway(upstream.url, name="stranger.example")) as stranger:
        envoy = Envoy("stranger", [stranger.address("grpc")] * 2)
        with ending(envoy):
            async with Runs(envoy.address) as runs:
                assert await code(runs.create()) == UNAVAILABLE
            assert envoy.count("ssl.fail_verify_san") > 0 and not upstream.asked


async def test_two_gateways_are_restarted_under_load_and_no_unary_call_fails_and_every_stream_goes_on():
    return await rolling.under_load()


async def main(words):
    certificates.write(CERTIFICATES)
    began, failed = time.monotonic(), 0
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    tests = [test for test in tests if not words or any(word in test[0] for word in words)]

    async def run(name, test):
        nonlocal failed
        try:
            async with asyncio.timeout(80):
                said = await test()
            print(f"[{time.monotonic() - began:4.0f} s] ok      {name[5:].replace('_', ' ')}{f' ({said})' if said else ''}", flush=True)
        except Exception:
            failed += 1
            print(f"[{time.monotonic() - began:4.0f} s] FAILED  {name[5:].replace('_', ' ')}\n{traceback.format_exc(limit=-3)}", flush=True)

    together = [test for test in tests if "under_load" not in test[0]]
    await asyncio.gather(*(run(*test) for test in together))
    for test in tests[len(together) :]:
        await run(*test)
    print(f"\n{len(tests) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main(sys.argv[1:])) else 0)
