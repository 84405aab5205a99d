// One scenario of a Node client, and a Python server: node client.mjs SCENARIO ROAD WHERE...
//
// `stdio PROGRAM ARGUMENTS...` starts the server as a child, `websocket PROGRAM ARGUMENTS...` one that
// prints the url where it listens. Without a scenario it lists them.
// After each the tables of both sides are quiet.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { RpcPromise, RpcSession, RpcStub, WebSocketTransport } from "capnweb";
import { WebSocket } from "ws";
import { Api, Counter } from "./api.mjs";
import { Lines } from "./lines.mjs";

globalThis.WebSocket ??= WebSocket; // which Node has from version 22 on
const QUIET = { imports: 1, exports: 1 };

const roads = {
  stdio(program, ...args) {
    const child = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
    const ended = new Promise((resolve) => child.on("exit", (code, signal) => resolve(code ?? signal)));
    const transport = new Lines(child.stdout, child.stdin);
    return { transport, ended, close: () => transport.abort(), kill: () => child.kill() };
  },

  async websocket(program, ...args) {
    const child = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
    const ended = new Promise((resolve) => child.on("exit", (code, signal) => resolve(code ?? signal)));
    const [url] = await once(child.stdout, "data");
    const socket = new WebSocket(url.toString().trim());
    const transport = new WebSocketTransport(socket);
    return { transport, ended, close: () => socket.close(), kill: () => child.kill() };
  },
};

async function connect(road, ...where) {
  const main = new Api();
  const { transport, ...rest } = await roads[road](...where);
  main.session = new RpcSession(transport, main);
  return { api: main.session.getRemoteMain(), session: main.session, transport, ...rest };
}

// The promises of the package are functions, which assert.rejects takes for something else.
const rejects = (promise, ...expected) => assert.rejects(async () => await promise, ...expected);

const pause = () => new Promise((resolve) => setTimeout(resolve, 2));

async function check(side) {
  assert.deepEqual(await side.api.quiet(), QUIET);
  const giveUp = Date.now() + 2000;
  let stats = side.session.getStats();
  while ((stats.imports > 1 || stats.exports > 1) && Date.now() < giveUp) {
    await pause();
    stats = side.session.getStats();
  }
  assert.deepEqual({ ...stats }, QUIET);
}

const scenarios = {
  async calls({ api }) {
    assert.equal(await api.square(5), 25);
    assert.equal(await api.add("a", "b"), "ab");
    assert.equal(await api.greeting, "hello");
    assert.deepEqual(await api.config(), { nested: { n: 5 }, list: [1, [2, []], 3] });
    const config = api.config();
    assert.equal(await config.nested.n, 5);
    config[Symbol.dispose](); // what is neither awaited nor disposed stays
    assert.equal(await api.nothing(), undefined);
    assert.equal(await api.nothingAtAll(), null);
    assert.equal(await api.echo(undefined), undefined);
  },

  async values({ api }) {
    const buffer = new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]).buffer;
    const values = [
      [null, "NoneType"], [undefined, "Undefined"], [true, "bool"], [0, "int"], [1.5, "float"],
      [Number.MAX_SAFE_INTEGER, "int"], [2 ** 60, "float"], [1e300, "float"], [-Infinity, "float"],
      [NaN, "float"], [5n, "BigInt"], [-(2n ** 300n), "BigInt"],
      ["", "str"], ["text \u2603 \u{1f600} \0 \u2028 \ud800", "str"],
      [[], "list"], [[[]], "list"], [[[1, 2], [[3]], []], "list"], [["import", 0], "list"],
      [{}, "dict"], [{ a: { b: [{ c: null }] }, "": 1 }, "dict"],
      [new Uint8Array([1, 255]), "bytes"], [buffer, "Bytes"], [new DataView(buffer), "Bytes"],
      [new Uint8ClampedArray(buffer), "Bytes"], [new Int8Array(buffer), "array"],
      [new Int16Array(buffer), "array"], [new Uint16Array(buffer), "array"],
      [new Int32Array(buffer), "array"], [new Uint32Array(buffer), "array"],
      [new BigInt64Array(buffer), "array"], [new BigUint64Array(buffer), "array"],
      [new Float32Array(buffer), "array"], [new Float64Array([1.1, -2]), "array"],
      [new Date(1764333000500), "datetime"], [new URL("https://example.org/a?b#c"), "URL"],
    ];
    for (const [value, kind] of values) {
      assert.equal(await api.kind(value), kind);
      const back = await api.echo(value);
      if (value instanceof Uint8Array) assert.deepEqual([...back], [...value]); // a Buffer on Node
      else assert.deepEqual(back, value);
    }
    const headers = await api.echo(new Headers({ Accept: "a", "X-One": "1" }));
    assert.deepEqual([...headers], [["accept", "a"], ["x-one", "1"]]);
  },

  async errors({ api }) {
    await rejects(api.fail("TypeError", "no"), (error) => {
      assert.ok(error instanceof TypeError);
      assert.equal(error.message, "no");
      assert.equal(error.cause.message, "because"); // to a parent, as tracebacks
      return true;
    });
    await rejects(api.fail("RangeError", "far"), { py_type: "IndexError" });
    await rejects(api.bankrupt(), { py_type: "BankruptError", py_base: "ValueError" });
    await rejects(api.nope(), { py_type: "AttributeError" });
    await rejects(api.square(1, 2, 3), TypeError);
    const told = await api.describeError(new RangeError("here", { cause: new Error("because") }));
    assert.deepEqual(told, {
      type: "RangeError", message: "RangeError: here", isValueError: true, cause: "because",
    });
    // The error of a callback of ours passes through the other side, and keeps its class.
    const failing = () => { throw Object.assign(new RangeError("mine"), { code: 9 }); };
    await rejects(api.callFunction(failing, 1), { name: "RangeError", message: "mine", code: 9 });
    // That of the other side passes through us.
    await api.bankrupt().catch(async (error) => {
      assert.equal((await api.describeError(error)).type, "BankruptError");
    });
  },

  async callbacks({ api }) {
    assert.deepEqual(await api.callFunction((x) => x + 1, 4), { result: 5 });
    assert.deepEqual(await api.callTimes(async (x) => 2 * x, 4), [0, 2, 4, 6]);
    await api.keep((x) => 2 * x);
    assert.equal(await api.fire(3), 6);
    await api.drop();
  },

  async theirCapabilities({ api }) {
    const counter = await api.makeCounter(4);
    assert.equal(await counter.increment(), 5);
    assert.equal(await counter.increment(5), 10);
    assert.equal(await counter.value, 10);
    assert.equal(await api.incrementCounter(counter, 1), 11);
    const other = api.makeCounter(1);
    assert.equal(await api.incrementCounter(other, 1), 2);
    other[Symbol.dispose]();
    const again = counter.dup();
    counter[Symbol.dispose]();
    assert.equal(await again.increment(), 12);
    again[Symbol.dispose]();
  },

  async ourCapabilities({ api }) {
    const counter = new Counter(1);
    assert.equal(await api.incrementCounter(counter, 2), 3);
    const back = await api.giveBackInside(counter);
    assert.equal(await back.it.increment(), 4);
    back[Symbol.dispose]();
    const same = api.giveBack(counter);
    assert.equal(await same.increment(), 5);
    same[Symbol.dispose]();
    const stub = new RpcStub(counter);
    assert.equal(await api.incrementCounter(stub, 1), 6);
    assert.equal(await api.incrementCounter(stub, 1), 7);
    stub[Symbol.dispose]();
  },

  async pipelining({ api }) {
    const counter = api.makeCounter(4);
    const [one, two] = await Promise.all([counter.increment(), counter.increment()]);
    assert.deepEqual([one, two], [5, 6]);
    counter[Symbol.dispose]();
  },

  async promises({ api }) {
    const four = api.square(2);
    const five = api.later(5);
    assert.equal(await api.add(four, five), 9);
    four[Symbol.dispose]();
    five[Symbol.dispose]();
    const three = new RpcPromise(pause().then(() => 3));
    assert.equal(await api.square(three), 9);
    three[Symbol.dispose]();
    assert.deepEqual(await api.promises((x) => x + 1), { far: 21, near: 5 });
    const failing = api.fail("TypeError", "no");
    await rejects(api.square(failing), TypeError);
    failing[Symbol.dispose]();
  },

  async map({ api }) {
    // What is neither awaited nor disposed stays: the list that is mapped, too.
    const mapped = async (list, f) => {
      try {
        return await list.map(f);
      } finally {
        list[Symbol.dispose]();
      }
    };
    const squares = await mapped(api.fibonacci(6), (n) => api.square(n));
    assert.deepEqual(squares, [0, 1, 1, 4, 9, 25]);
    const nested = await mapped(api.fibonacci(4), (n) => api.fibonacci(n).map((m) => [n, api.add(n, m)]));
    assert.deepEqual(nested, [[], [[1, 1]], [[1, 1]], [[2, 2], [2, 3]]]);
    assert.equal(await mapped(api.config(), (config) => config.nested.n), 5); // no array: once
    assert.equal(await mapped(api.nothingAtAll(), (n) => api.square(n)), null);
    assert.equal(await mapped(api.nothing(), (n) => api.square(n)), undefined);
    assert.deepEqual(await mapped(api.fibonacci(0), (n) => api.square(n)), []);

    const ours = new RpcStub(new Counter(0));
    assert.deepEqual(await mapped(api.fibonacci(3), (n) => api.incrementCounter(ours, n)), [0, 1, 2]);
    ours[Symbol.dispose]();
    const made = await mapped(api.fibonacci(3), (n) => ({ counter: api.makeCounter(n), n }));
    assert.equal(await made[2].counter.increment(), 2);
    made[Symbol.dispose]();

    await rejects(mapped(api.fibonacci(3), (n) => api.fail("TypeError", "no")), TypeError);
    await rejects(mapped(api.fibonacci(3), (n) => n.nothing.there));
    const many = Array.from({ length: 400 }, (_, n) => n);
    const list = api.echo(many);
    const bomb = (_) => list.map((n) => api.square(n));
    await rejects(mapped(api.echo(many), bomb), { py_type: "LimitExceeded" });
    list[Symbol.dispose]();
  },

  async mapOfTheirs({ api }) {
    const theirs = await api.makeCounter(0);
    const list = api.fibonacci(4);
    assert.deepEqual(await list.map((n) => theirs.increment(n)), [0, 1, 2, 4]);
    assert.equal(await theirs.increment(), 5);
    return "not quiet"; // a stub of theirs, used in a map, is never released by the package
  },

  async order({ api }) {
    for (let n = 0; n < 100; n++) api.log(n)[Symbol.dispose]();
    assert.deepEqual(await api.logged(), Array.from({ length: 100 }, (_, n) => n));
  },

  async bothWays({ api }) {
    assert.equal(await api.callYou("square", 6), 36);
    assert.equal(await api.callYou("callYou", "square", 7), 49);
    await rejects(api.callYou("fail", "RangeError", "over"), RangeError);
  },

  async threeParties({ api }, other) {
    const counter = await api.makeCounter(1);
    assert.equal(await other.api.incrementCounter(counter, 1), 2);
    const promised = api.makeCounter(10);
    assert.equal(await other.api.incrementCounter(promised, 1), 11);
    promised[Symbol.dispose]();
    const back = await other.api.giveBackInside(counter);
    assert.equal(await back.it.increment(), 3);
    back[Symbol.dispose]();
    counter[Symbol.dispose]();
    await check(other);
  },

  async givenUp({ api }) {
    const hanging = api.hang();
    const waiting = api.later(hanging);
    waiting[Symbol.dispose]();
    hanging[Symbol.dispose]();
    const late = api.later(5);
    late.then(() => {}, () => {});
    late[Symbol.dispose]();
    await api.log(1);
  },

  async disconnection({ api, close, ended }) {
    const counter = await api.makeCounter(1);
    const hanging = api.hang();
    const broken = new Promise((resolve) => counter.onRpcBroken(resolve));
    close();
    await rejects(hanging);
    await rejects(counter.increment());
    await broken;
    assert.equal(await ended, 0);
    return "not quiet";
  },

  async death({ api, kill }) {
    await api.square(1);
    const hanging = api.hang();
    kill();
    await rejects(hanging);
    return "not quiet";
  },

  async unknown({ api, session, transport }) {
    // An expression that the other side does not know fails that call, and nothing else.
    const failing = api.echo(1);
    transport.send(JSON.stringify(["push", ["pipeline", 0, ["echo"], [["frob", ["export", -9]]]]]));
    assert.equal(await failing, 1);
    assert.equal(session.getStats().imports, 1);
    return "not quiet"; // their ids are one ahead of ours
  },
};

const [name, ...road] = process.argv.slice(2);
if (name === undefined) {
  console.log(JSON.stringify(Object.keys(scenarios)));
} else {
  const sides = [await connect(...road)];
  if (name === "threeParties") sides.push(await connect(...road));
  if ((await scenarios[name](...sides)) !== "not quiet") await check(sides[0]);
  for (const side of sides) {
    side.close();
    await side.ended;
  }
}
