'use strict'
// The stock hypertrace-logger client with hypertrace. It connects, waits for the server's greeting
// (before it the client's ring holds only 2048 traces), sends the traces and stays connected.
//
// Options:
//   key         public key of the trace server, hex
//   bootstrap   [{host, port}]
//   seed        64 hex digits: the client's key pair; random if left out
//   count       traces to send after the greeting, default 0
//   mode        "burst" (as fast as the process can) or "rate"
//   rate        traces a second in mode "rate", default 200
//   shape, pad  content of the traces, see shapes.js
//   props       properties of the client, e.g. {"username": "ann"}
//   reconnect   default true; the stock client waits 10 to 15 s before it tries again
//   dht, connect   further options for the node and for connect(), the latter as peerOptions() in
//               driver.js takes them
// Command {"send": n} sends n more. Events: ready (publicKey, and clientPort of the node), open,
// greeting (the server's first message), sent (count, seconds), reconnect, connection-error.

const HyperDHT = require('hyperdht')
const { createTracer } = require('hypertrace')
const { Client } = require('hypertrace-logger')
const { options, send, peerOptions, runUntilStopped } = require('./driver')
const loadShapes = require('./shapes')

const BURST = 256 // traces per turn of the event loop
const RATE_TICK = 5 // ms

const dht = new HyperDHT({
  bootstrap: options.bootstrap,
  host: '127.0.0.1',
  seed: options.seed ? Buffer.from(options.seed, 'hex') : undefined,
  ...options.dht
})
const client = new Client()

let trace = null
let total = 0
let running = true

function createSocket () {
  const socket = dht.connect(Buffer.from(options.key, 'hex'), peerOptions(options.connect))
  socket.once('data', data => send('greeting', { greeting: JSON.parse(data) }))
  return socket
}

async function sendTraces (count) {
  const perTick = options.mode === 'rate' ? 0 : BURST
  const rate = options.rate ?? 200
  const begin = process.hrtime.bigint()
  const elapsed = () => Number(process.hrtime.bigint() - begin) / 1e9

  for (let sent = 0; sent < count && running;) {
    const due = perTick ? sent + perTick : Math.floor(elapsed() * rate) + 1
    for (; sent < Math.min(due, count); sent++) trace(total++)
    await new Promise(resolve => perTick ? setImmediate(resolve) : setTimeout(resolve, RATE_TICK))
  }
  send('sent', { count, seconds: elapsed() })
}

async function main () {
  client.on('reconnect', () => send('reconnect'))
  client.on('connection-error', err => send('connection-error', { code: err.code, message: err.message }))
  client.on('open', () => send('open'))

  const canSocketReconnect = () => running && options.reconnect !== false
  let greeted
  const greeting = new Promise(resolve => { greeted = resolve })
  await client.start({
    createSocket: () => {
      const socket = createSocket()
      socket.once('data', () => setImmediate(greeted)) // after the client's own handler
      return socket
    },
    canSocketReconnect,
    getInitialProps: () => options.props
  })
  trace = loadShapes(createTracer)(options.shape ?? 'typical', options.pad ?? 0)

  runUntilStopped(
    async () => {
      running = false
      client.stop()
      await dht.destroy()
    },
    command => sendTraces(command.send)
  )
  await dht.bind()
  send('ready', {
    publicKey: dht.defaultKeyPair.publicKey.toString('hex'),
    clientPort: dht.io.clientSocket.address().port
  })
  await greeting
  if (options.count) await sendTraces(options.count)
}

main()
