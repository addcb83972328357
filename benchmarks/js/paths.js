'use strict'
// One end of connections over one path. Run by paths.py one folder up.
//
// Options: role (server, client or relay), path (direct, lan, punched or relayed), bootstrap, key of
// the server (client), relay (its key, on both ends of a relayed path), count. A server echoes. The
// client opens connections one after the other, sends a message there and back through each, pauses
// (milliseconds), and reports how long each connect took. Events: ready (publicKey), connected
// (milliseconds, and failures: the reasons of those that did not come about).

const path = require('path')
const HyperDHT = require('hyperdht')
const blindRelay = require('blind-relay')
const { options, send, runUntilStopped } = require(path.join(__dirname, '..', '..', 'tests', 'interop', 'js', 'driver'))

const MESSAGE = Buffer.from('through')
const LIMIT = 10000 // ms

const dht = new HyperDHT({
  bootstrap: options.bootstrap,
  host: '127.0.0.1',
  // Nobody may find out that on one machine nothing is firewalled.
  ...(options.role !== 'client' && options.path === 'direct' ? { firewalled: false } : { firewalled: true, quickFirewall: false })
})
const local = options.path === 'lan'
const relayThrough = options.relay ? Buffer.from(options.relay, 'hex') : null
const relayed = options.path === 'relayed'

async function listen () {
  const server = dht.createServer({ shareLocalAddress: local, relayThrough, holepunch: relayed ? false : undefined }, socket => {
    socket.on('error', () => {})
    socket.on('data', data => socket.write(data))
    socket.on('end', () => socket.end())
  })
  await server.listen()
  return server.publicKey
}

async function relay () {
  const relaying = new blindRelay.Server({ createStream: opts => dht.createRawStream({ ...opts, framed: true }) })
  const server = dht.createServer(socket => {
    socket.on('error', () => {})
    relaying.accept(socket, { id: socket.remotePublicKey }).on('error', () => {})
  })
  await server.listen()
  return server.publicKey
}

function once () {
  return new Promise((resolve, reject) => {
    const begin = process.hrtime.bigint()
    const socket = dht.connect(Buffer.from(options.key, 'hex'), {
      localConnection: local,
      ...(relayed ? { fastOpen: false, holepunch: () => false } : {})
    })
    let opened = 0
    const limit = setTimeout(() => socket.destroy(new Error('no echo within 10 s')), LIMIT)
    socket.on('error', reject)
    socket.once('open', () => { opened = Number(process.hrtime.bigint() - begin) / 1e6 })
    socket.once('data', () => socket.end())
    socket.once('close', () => {
      clearTimeout(limit)
      resolve(opened)
    })
    socket.write(MESSAGE)
  })
}

async function connect () {
  const milliseconds = []
  const failures = []
  for (let number = 0; number < options.count; number++) {
    try {
      milliseconds.push(await once())
    } catch (err) {
      failures.push(err.message)
    }
    await new Promise(resolve => setTimeout(resolve, options.pause))
  }
  send('connected', { milliseconds, failures })
}

async function main () {
  await dht.fullyBootstrapped()
  runUntilStopped(() => dht.destroy())
  const key = options.role === 'server' ? await listen() : options.role === 'relay' ? await relay() : null
  send('ready', key ? { publicKey: key.toString('hex') } : {})
  if (options.role === 'client') await connect()
}

main()
