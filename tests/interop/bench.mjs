// How many calls a second a Node client makes: node bench.mjs CALLS IN_FLIGHT PROGRAM ARGUMENTS...
// The program serves the Api on its stdin and stdout. For benchmarks/web.py.

import { spawn } from "node:child_process";
import { RpcSession } from "capnweb";
import { Lines } from "./lines.mjs";

const [calls, inFlight, program, ...args] = process.argv.slice(2);
const child = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
const transport = new Lines(child.stdout, child.stdin);
const api = new RpcSession(transport).getRemoteMain();

async function caller(n) {
  for (let i = 0; i < n; i++) {
    if ((await api.add(i, 1)) !== i + 1) throw new Error("a wrong sum");
  }
}

async function run(n) {
  await Promise.all(Array.from({ length: Number(inFlight) }, () => caller(n / inFlight)));
}

await run(calls / 5); // warm
const began = performance.now();
await run(Number(calls));
console.log((1000 * calls) / (performance.now() - began));
transport.abort();
