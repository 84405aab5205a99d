// plugin.mjs, with `npm install capnweb` beside it
import { createInterface } from "node:readline";
import { RpcSession } from "capnweb";

async function shout(text, progress) {
  await progress("half way");
  return text.toUpperCase() + "!";
}

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const send = (line) => process.stdout.write(line + "\n");
const receive = async () => (await lines.next()).value ?? Promise.reject(new Error("closed"));
new RpcSession({ send, receive }, { shout });
