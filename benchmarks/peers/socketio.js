// Socket.IO: a server that emits to all clients.
const { createServer } = require("node:http");
const { Server } = require("socket.io");

const http = createServer();
const io = new Server(http);

io.on("connection", (socket) => {
  socket.on("bench", (text) => io.emit("bench", text));
});

http.listen(process.env.PORT, "127.0.0.1");
