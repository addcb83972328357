'use strict'
// One host of the laboratory: a HyperDHT peer, a relay, or the nodes of a network.
//
// Reads commands, one JSON object a line: {id, command, ...options}; answers each with {id, ...} or
// {id, error, message}, in the order in which they are done. Ends when stdin does. The same commands
// with the same meaning are in ../pyhost.py, where they are explained.

const readline = require('readline')
const HyperDHT = require('hyperdht')
const blindRelay = require('blind-relay')

const CHUNK = 65536 // bytes
const PORT = 49737
const EXCHANGE_TIMEOUT = 10 // seconds that the first byte gets at least
const noop = () => {}

let dht = null
let server = null
let nodes = []
let accepted = [] // what came to the server: {path, remote, ended}
const connections = new Map()
let connectionCount = 0

class Failed extends Error {
  constructor (code, message) {
    super(message)
    this.code = code
  }
}

function describe (stream) {
  const raw = stream.rawStream
  const main = raw.socket === dht.io.serverSocket || raw.socket === dht.io.clientSocket
  return { pool: !main, remote: [raw.remoteHost, raw.remotePort] }
}

function echo (stream) {
  const entry = { ended: null }
  accepted.push(entry)
  entry.stream = stream
  stream.on('error', err => { entry.ended = err.code || err.message })
  stream.on('close', () => { entry.ended = entry.ended || 'closed' })
  stream.on('end', () => stream.end())
  stream.on('data', data => {
    if (!stream.write(data)) {
      stream.pause()
      stream.once('drain', () => stream.resume())
    }
  })
}

function wait (stream, milliseconds) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => fail(new Failed('TIMEOUT', 'it took too long')), milliseconds)
    const fail = err => { settle(); reject(err); stream.destroy() }
    const closed = () => fail(new Failed('CLOSED', 'the stream was closed'))
    const opened = () => { settle(); resolve() }
    function settle () {
      clearTimeout(timer)
      stream.off('open', opened).off('close', closed).off('error', fail).on('error', noop)
    }
    stream.on('open', opened).on('error', fail).on('close', closed)
  })
}

async function exchange (connection, size, seconds) {
  const { stream } = connection
  if (connection.ended) throw new Failed(connection.ended, 'the connection has ended')
  const begin = performance.now()
  let received = 0
  await new Promise((resolve, reject) => {
    const timer = setTimeout(() => fail(new Failed('TIMEOUT', `${received} of ${size} bytes came back`)), seconds * 1000)
    const fail = err => { settle(); reject(err) }
    const closed = () => fail(new Failed(connection.ended || 'CLOSED', `${received} of ${size} bytes came back`))
    function settle () {
      clearTimeout(timer)
      stream.off('data', take).off('close', closed)
    }
    function take (data) {
      for (const byte of data.subarray(0, 16)) {
        if (byte !== size % 251) return fail(new Failed('GARBLED', 'other bytes came back'))
      }
      received += data.byteLength
      if (received >= size) { settle(); resolve() }
    }
    stream.on('data', take).on('close', closed)
    for (let rest = size; rest > 0; rest -= CHUNK) stream.write(Buffer.alloc(Math.min(rest, CHUNK), size % 251))
  })
  return { milliseconds: performance.now() - begin }
}

const commands = {
  async network ({ hosts }) {
    for (const host of hosts) {
      const bootstrap = nodes.length ? [{ host: hosts[0], port: PORT }] : []
      const node = new HyperDHT({ bootstrap, host, port: PORT, ephemeral: false, firewalled: false })
      await node.fullyBootstrapped()
      nodes.push(node)
    }
    return { bootstrap: [[hosts[0], PORT]] }
  },

  async open ({ bootstrap, firewalled, ephemeral, port, random_punch_interval: randomPunchInterval }) {
    const options = { bootstrap: bootstrap.map(([host, port]) => ({ host, port })) }
    if (firewalled !== undefined) options.firewalled = firewalled
    if (ephemeral !== undefined) options.ephemeral = ephemeral
    if (port !== undefined) options.port = port
    if (randomPunchInterval !== undefined) options.randomPunchInterval = randomPunchInterval * 1000
    dht = new HyperDHT(options)
    await dht.fullyBootstrapped()
    return { port: dht.address().port }
  },

  async listen ({ relay, share_local_address: shareLocalAddress }) {
    server = dht.createServer({ shareLocalAddress, relayThrough: relay && Buffer.from(relay, 'hex') }, echo)
    await server.listen()
    return { key: server.publicKey.toString('hex') }
  },

  async relay () {
    const relay = new blindRelay.Server({ createStream: options => dht.createRawStream({ ...options, framed: true }) })
    server = dht.createServer({ shareLocalAddress: false }, stream => {
      stream.on('error', noop)
      relay.accept(stream, { id: stream.remotePublicKey }).on('error', noop)
    })
    await server.listen()
    return { key: server.publicKey.toString('hex') }
  },

  async connect ({ key, timeout, relay, local_connection: localConnection }) {
    const begin = performance.now()
    const stream = dht.connect(Buffer.from(key, 'hex'), {
      localConnection, relayThrough: relay && Buffer.from(relay, 'hex')
    })
    await wait(stream, timeout * 1000)
    const opened = performance.now() - begin
    const connection = { stream, ended: null }
    stream.on('error', err => { connection.ended = err.code || err.message })
    stream.on('close', () => { connection.ended = connection.ended || 'closed' })
    const number = connectionCount++
    connections.set(number, connection)
    const path = describe(stream)
    await exchange(connection, 1, Math.max(timeout - opened / 1000, EXCHANGE_TIMEOUT))
    return { connection: number, opened, milliseconds: performance.now() - begin, ...path }
  },

  exchange ({ connection, size, timeout }) {
    return exchange(connections.get(connection), size, timeout)
  },

  path ({ connection }) {
    return describe(connections.get(connection).stream)
  },

  accepted () {
    return { connections: accepted.map(({ stream, ended }) => ({ ended, ...(ended ? {} : describe(stream)) })) }
  },

  async disconnect ({ connection }) {
    const { stream } = connections.get(connection)
    connections.delete(connection)
    const closed = new Promise(resolve => stream.once('close', resolve))
    stream.end()
    setTimeout(() => stream.destroy(), 1000).unref()
    await closed
    return {}
  },

  async close ({ force }) {
    const ending = dht
    dht = null
    accepted = []
    connections.clear()
    if (ending) await ending.destroy({ force })
    return {}
  }
}

readline.createInterface({ input: process.stdin })
  .on('line', async line => {
    const { id, command, ...options } = JSON.parse(line)
    const begin = performance.now()
    let answer
    try {
      answer = await commands[command](options)
    } catch (err) {
      answer = { error: err.code || 'FAILED', message: err.stack, milliseconds: performance.now() - begin }
    }
    process.stdout.write(JSON.stringify({ id, ...answer }) + '\n')
  })
  .on('close', () => process.exit(0))
