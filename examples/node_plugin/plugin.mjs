// plugin.mjs, with `npm install capnweb` beside it
import { createInterface } from "node:readline";
import { RpcSession, RpcTarget } from "capnweb";

class Plugin extends RpcTarget {
  async shout(text, progress) {
    await progress("half way");
    return text.toUpperCase() + "!";
  }
}

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const send = (text) => process.stdout.write(text + "\n");
const receive = async () => (await lines.next()).value ?? Promise.reject(new Error("closed"));
new RpcSession({ send, receive }, new Plugin());
