"""Several gateways that share a Redis, and all that can happen to them. `run`, beside this file,
prepares all that this needs.

Each function named `test_` is one test. All but the storms run at the same time; those want the
machine for themselves.
"""

import argparse
import asyncio
import random
import secrets
import sys
import time
import traceback

import storm
from servers import OUT


async def test_two_replicas_in_a_storm_of_kills_and_cuts(options):
    return await storm.storm(2, options.streams, options.seconds, options.seed)


async def test_three_replicas_in_a_storm_of_kills_and_cuts(options):
    return await storm.storm(3, options.streams, options.seconds, options.seed + 1)


async def main(options):
    (OUT / "log.key").write_text(secrets.token_hex(32))
    began, failed = time.monotonic(), 0
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    words = options.words
    tests = [it for it in tests if not words or any(word in it[0] for word in words)]

    async def run(name, test):
        nonlocal failed
        name = name[5:].replace("_", " ")
        try:
            async with asyncio.timeout(options.seconds + 180):
                said = await test(options)
            said = f" ({said})" if said else ""
            print(f"[{time.monotonic() - began:4.0f} s] ok      {name}{said}", flush=True)
        except Exception:
            failed += 1
            words = traceback.format_exc(limit=-3)
            print(f"[{time.monotonic() - began:4.0f} s] FAILED  {name}\n{words}", flush=True)

    together = [it for it in tests if "storm" not in it[0]]
    await asyncio.gather(*(run(*it) for it in together))
    for it in tests:
        if it not in together:
            await run(*it)
    print(f"\n{len(tests) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    sys.exit(1 if asyncio.run(main(parser.parse_args())) else 0)
