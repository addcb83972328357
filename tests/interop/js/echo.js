'use strict'
// A plain HyperDHT connection that carries bytes, as server or as client.
//
// Options:
//   role        "server" or "client"
//   mode        "echo", "sink" (reads) or "source" (writes), each seen from this side; "answer" makes
//               a client the one that echoes
//   bootstrap   [{host, port}]
//   seed        64 hex digits: this side's key pair; random if left out
//   key         public key to connect to, hex (client)
//   bytes       how much to write (source; client in mode echo)
//   chunk       bytes in one write, that is in one message; default 65536
//   checksum    default true; false leaves SHA-256 out for measurements
//   dht, server, connect   further options for the node, createServer() and connect(), the latter
//               two as peerOptions() in driver.js takes them
// Events: ready (publicKey, clientPort of the node), open (remotePublicKey, remotePort, and what the node counted: punches
// and relaying), sent and received (bytes, messages, sha256,
// seconds since open), error (code, message), close. The writer ends its side after its last byte;
// an echo server ends when the other side does.

const crypto = require('crypto')
const HyperDHT = require('hyperdht')
const { options, send, peerOptions, runUntilStopped } = require('./driver')

const CHUNK = options.chunk ?? 65536

const dht = new HyperDHT({
  bootstrap: options.bootstrap,
  host: '127.0.0.1',
  seed: options.seed ? Buffer.from(options.seed, 'hex') : undefined,
  ...options.dht
})

class Tally {
  constructor () {
    this.bytes = 0
    this.messages = 0
    this.hash = options.checksum === false ? null : crypto.createHash('sha256')
    this.begin = process.hrtime.bigint()
  }

  add (data) {
    this.bytes += data.byteLength
    this.messages += 1
    this.hash?.update(data)
  }

  report (event) {
    const seconds = Number(process.hrtime.bigint() - this.begin) / 1e9
    send(event, { bytes: this.bytes, messages: this.messages, sha256: this.hash?.digest('hex'), seconds })
  }
}

// Bytes that differ from chunk to chunk, so that a swapped or repeated chunk changes the checksum.
const noise = crypto.createHash('shake256', { outputLength: CHUNK }).update('hyperlog').digest()

function chunk (index, length) {
  const data = Buffer.from(noise.subarray(0, length))
  if (length >= 4) data.writeUInt32LE(index >>> 0, 0)
  return data
}

function drained (socket) {
  return new Promise(resolve => {
    function settle () {
      socket.off('drain', settle).off('close', settle)
      resolve()
    }
    socket.on('drain', settle).on('close', settle)
  })
}

async function write (socket, bytes) {
  const tally = new Tally()
  for (let index = 0; tally.bytes < bytes && !socket.destroying; index++) {
    const data = chunk(index, Math.min(CHUNK, bytes - tally.bytes))
    tally.add(data)
    if (!socket.write(data)) await drained(socket)
  }
  socket.end()
  tally.report('sent')
}

function read (socket) {
  const tally = new Tally()
  socket.on('data', data => tally.add(data))
  socket.on('end', () => {
    tally.report('received')
    socket.end()
  })
}

function echo (socket) {
  const tally = new Tally()
  socket.on('data', data => {
    tally.add(data)
    if (!socket.write(data)) {
      socket.pause()
      socket.once('drain', () => socket.resume())
    }
  })
  socket.on('end', () => {
    tally.report('received')
    socket.end()
  })
}

function onConnection (socket) {
  const { punches, relaying } = dht.stats
  send('open', {
    remotePublicKey: socket.remotePublicKey.toString('hex'),
    remotePort: socket.rawStream.remotePort,
    punches,
    relaying
  })
  socket.on('error', err => send('error', { code: err.code, message: err.message }))
  socket.on('close', () => send('close'))
  if (options.mode === 'source') {
    socket.resume()
    write(socket, options.bytes)
  } else if (options.mode === 'answer' || (options.mode === 'echo' && options.role === 'server')) {
    echo(socket)
  } else {
    read(socket)
    if (options.mode === 'echo') write(socket, options.bytes)
  }
}

async function main () {
  const { publicKey } = dht.defaultKeyPair
  if (options.role === 'server') {
    const server = dht.createServer(peerOptions(options.server, true), onConnection)
    await server.listen(dht.defaultKeyPair)
  } else {
    const socket = dht.connect(Buffer.from(options.key, 'hex'), peerOptions(options.connect))
    const onFailure = err => {
      send('error', { code: err.code, message: err.message })
      send('close')
    }
    socket.once('error', onFailure)
    socket.once('open', () => {
      socket.off('error', onFailure)
      onConnection(socket)
    })
  }
  runUntilStopped(() => dht.destroy())
  await dht.bind()
  send('ready', { publicKey: publicKey.toString('hex'), clientPort: dht.io.clientSocket.address().port })
}

main()
