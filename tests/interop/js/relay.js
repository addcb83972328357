'use strict'
// A blind relay made of the stock blind-relay server.
//
// Options:
//   bootstrap   [{host, port}]
//   seed        64 hex digits: the relay's key pair; random if left out
//   dht         further options for the node
// Command {"stats": true} asks for the event stats with what blind-relay counts. Events: ready
// (publicKey), stats, error (code, message).

const HyperDHT = require('hyperdht')
const { Server } = require('blind-relay')
const { options, send, runUntilStopped } = require('./driver')

const dht = new HyperDHT({
  bootstrap: options.bootstrap,
  host: '127.0.0.1',
  seed: options.seed ? Buffer.from(options.seed, 'hex') : undefined,
  ...options.dht
})

const relay = new Server({
  createStream: opts => dht.createRawStream({ ...opts, framed: true })
})

function onConnection (socket) {
  const onError = err => send('error', { code: err.code, message: err.message })
  socket.on('error', onError)
  relay.accept(socket, { id: socket.remotePublicKey }).on('error', onError)
}

async function main () {
  const server = dht.createServer(onConnection)
  await server.listen(dht.defaultKeyPair)
  runUntilStopped(
    async () => {
      await relay.close()
      await dht.destroy()
    },
    command => {
      const { sessions, pairings, streams } = relay.stats
      if (command.stats) send('stats', { sessions: { ...sessions }, pairings, streams: { ...streams } })
    }
  )
  send('ready', { publicKey: dht.defaultKeyPair.publicKey.toString('hex') })
}

main()
