// Serves the Api on stdin and stdout, until they end; or, as `node server.mjs websocket`, to one who
// connects to the url that is printed, until that one is gone, or stdin ends.

import { RpcSession, WebSocketTransport } from "capnweb";
import { WebSocket, WebSocketServer } from "ws";
import { Api } from "./api.mjs";
import { Lines } from "./lines.mjs";

globalThis.WebSocket ??= WebSocket; // which Node has from version 22 on

function serve(transport) {
  const api = new Api();
  api.session = new RpcSession(transport, api);
}

if (process.argv[2] === "websocket") {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0, path: "/api" });
  server.on("listening", () => console.log(`ws://127.0.0.1:${server.address().port}/api`));
  server.on("connection", (socket) => {
    serve(new WebSocketTransport(socket));
    socket.on("close", () => process.exit(0));
  });
  process.stdin.on("end", () => process.exit(0)).resume();
} else {
  serve(new Lines(process.stdin, process.stdout));
}
