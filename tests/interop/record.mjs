// Records what the real package says, for the tests in ../capnweb, which need no Node:
//
//     npm ci && node record.mjs
//
// sessions.jsonl: whole sessions, the package at both ends. probes.jsonl: raw messages to a server
// that is the package, each with its answers.

import { writeFileSync } from "node:fs";
import { RpcPromise, RpcSession, RpcStub } from "capnweb";
import { Api, Counter } from "./api.mjs";
import { probes } from "./probes.mjs";

const FOLDER = new URL("../capnweb/recorded/", import.meta.url);
const pause = (ms = 20) => new Promise((resolve) => setTimeout(resolve, ms));

// One end of a wire in memory: what is sent there is told to `heard` first.
class End {
  #waiting = null;
  #messages = [];
  other = null;

  constructor(heard) {
    this.heard = heard;
  }

  send(text) {
    this.heard(JSON.parse(text));
    this.other?.take(text);
  }

  take(text) {
    if (this.#waiting) this.#waiting(text);
    else this.#messages.push(text);
    this.#waiting = null;
  }

  receive() {
    if (this.#messages.length) return Promise.resolve(this.#messages.shift());
    return new Promise((resolve) => (this.#waiting = resolve));
  }

  abort() {}
}

const sessions = {
  async call(api) {
    await api.square(5);
  },

  async read(api) {
    await api.greeting;
    const config = api.config();
    await config.nested.n;
    config[Symbol.dispose]();
  },

  async values(api) {
    const bytes = new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]);
    const values = [
      null, undefined, true, 0, -1.5, 2 ** 53 - 1, 1e300, Infinity, -Infinity, NaN, 5n,
      -(2n ** 70n), "", "text \u2603 \u{1f600}", [], [[1], [[]]], {}, { a: { b: [null] } },
      bytes, bytes.buffer, new DataView(bytes.buffer), new Int16Array(bytes.buffer),
      new BigUint64Array(bytes.buffer), new Float32Array([1.5, -2]), new Date(1764333000500),
      new URL("https://example.org/a?b#c"), new Headers({ Accept: "a" }),
    ];
    for (const value of values) await api.echo(value);
  },

  async nothing(api) {
    await api.nothing();
  },

  async fails(api) {
    await api.fail("TypeError", "no").catch(() => {});
    await api.nope().catch(() => {});
  },

  async pipelined(api) {
    const counter = api.makeCounter(4);
    await counter.increment();
    await counter.increment(5);
    counter[Symbol.dispose]();
  },

  async theirCapability(api) {
    const counter = await api.makeCounter(4);
    await counter.increment();
    await counter.value;
    await api.incrementCounter(counter, 1);
    counter[Symbol.dispose]();
  },

  async callback(api) {
    await api.callFunction((x) => x + 1, 4);
    await api.callTimes((x) => 2 * x, 3);
  },

  async callbackKept(api) {
    await api.keep((x) => 2 * x);
    await api.fire(3);
    await api.drop();
  },

  async callbackFails(api) {
    await api
      .callFunction(() => {
        throw new RangeError("mine");
      }, 1)
      .catch(() => {});
  },

  async ourCapabilityBack(api) {
    const back = await api.giveBackInside(new Counter(1));
    await back.it.increment();
    back[Symbol.dispose]();
  },

  async sameStubTwice(api) {
    const stub = new RpcStub(new Counter(1));
    await api.incrementCounter(stub, 1);
    await api.incrementCounter(stub, 1);
    stub[Symbol.dispose]();
  },

  async promiseArgument(api) {
    const four = api.square(2);
    await api.square(four);
    four[Symbol.dispose]();
  },

  async localPromiseArgument(api) {
    const three = new RpcPromise(pause(1).then(() => 3));
    await api.square(three);
    three[Symbol.dispose]();
  },

  async promiseArgumentFails(api) {
    const failing = api.fail("TypeError", "no");
    await api.square(failing).catch(() => {});
    failing[Symbol.dispose]();
  },

  async promiseInResult(api) {
    await api.promises((x) => x + 1);
  },

  async unawaited(api) {
    const promise = api.square(5);
    await pause(1);
    promise[Symbol.dispose]();
  },

  async givenUpInFlight(api) {
    const promise = api.later(5);
    promise.then(() => {}, () => {});
    await pause(1);
    promise[Symbol.dispose]();
  },

  async map(api) {
    const numbers = api.fibonacci(4);
    await numbers.map((n) => ({ n, square: api.square(n) }));
    numbers[Symbol.dispose]();
  },

  async bothWays(api) {
    await api.callYou("square", 6);
  },
};

async function recordSession(name) {
  const messages = [];
  const client = new End((message) => messages.push({ from: "client", message }));
  const server = new End((message) => messages.push({ from: "server", message }));
  client.other = server;
  server.other = client;
  const [near, far] = [new Api(), new Api()];
  near.session = new RpcSession(client, near);
  far.session = new RpcSession(server, far);
  await sessions[name](near.session.getRemoteMain());
  await pause();
  return { session: name, messages };
}

async function recordProbe({ probe, send }) {
  const answers = [];
  const server = new End((message) => answers.push(message));
  const api = new Api();
  api.session = new RpcSession(server, api);
  const exchange = [];
  for (const message of send) {
    server.take(typeof message === "string" ? message : JSON.stringify(message));
    await pause();
    exchange.push({ send: message, answers: answers.splice(0) });
  }
  return { probe, exchange };
}

function write(name, records) {
  writeFileSync(new URL(name, FOLDER), records.map((r) => JSON.stringify(r) + "\n").join(""));
}

process.on("unhandledRejection", () => {}); // of sessions that a probe has ended
const recorded = [];
for (const name of Object.keys(sessions)) recorded.push(await recordSession(name));
write("sessions.jsonl", recorded);
const probed = [];
for (const probe of probes) probed.push(await recordProbe(probe));
write("probes.jsonl", probed);
