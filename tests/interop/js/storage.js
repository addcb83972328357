'use strict'
// A HyperDHT client that puts values, gets them, and announces and looks up topics.
//
// Options: bootstrap ([{host, port}]), seed (64 hex digits, of the key pair that owns the values)
// Commands, each answered by one event `done` (bytes are hex):
//   {"do": "mutablePut", value, seq}         seq, signature, nodes (how many took part)
//   {"do": "mutableGet", key, seq?, latest?} found: {seq, value, signature} or null
//   {"do": "immutablePut", value}            target
//   {"do": "immutableGet", target}           found: {value} or null
//   {"do": "announce", topic, seed, relays?, bump?}, {"do": "unannounce", topic, seed}
//   {"do": "lookup", topic}                  peers: [{publicKey, relays}], bump
//   {"do": "findPeer", keys: [...]}          found: how many of the keys, one after the other

const HyperDHT = require('hyperdht')
const { options, send, runUntilStopped } = require('./driver')

const dht = new HyperDHT({ bootstrap: options.bootstrap, host: '127.0.0.1' })
const keyPair = HyperDHT.keyPair(Buffer.from(options.seed, 'hex'))

const bytes = hex => Buffer.from(hex, 'hex')
const hex = buffer => buffer.toString('hex')

const commands = {
  async mutablePut ({ value, seq }) {
    const { signature, closestNodes } = await dht.mutablePut(keyPair, bytes(value), { seq })
    return { seq, signature: hex(signature), nodes: closestNodes.length }
  },
  async mutableGet ({ key, seq, latest }) {
    const found = await dht.mutableGet(bytes(key), { seq, latest })
    return { found: found && { seq: found.seq, value: hex(found.value), signature: hex(found.signature) } }
  },
  async immutablePut ({ value }) {
    return { target: hex((await dht.immutablePut(bytes(value))).hash) }
  },
  async immutableGet ({ target }) {
    const found = await dht.immutableGet(bytes(target))
    return { found: found && { value: hex(found.value) } }
  },
  async announce ({ topic, seed, relays = [], bump = 0 }) {
    await dht.announce(bytes(topic), HyperDHT.keyPair(bytes(seed)), relays, { bump }).finished()
    return {}
  },
  async unannounce ({ topic, seed }) {
    await dht.unannounce(bytes(topic), HyperDHT.keyPair(bytes(seed)))
    return {}
  },
  async lookup ({ topic }) {
    const peers = new Map()
    let bump = 0
    for await (const reply of dht.lookup(bytes(topic))) {
      bump = Math.max(bump, reply.bump)
      for (const peer of reply.peers) peers.set(hex(peer.publicKey), peer.relayAddresses)
    }
    return { peers: [...peers].map(([publicKey, relays]) => ({ publicKey, relays })), bump }
  },
  async findPeer ({ keys }) {
    let found = 0
    for (const key of keys) {
      const query = dht.findPeer(bytes(key))
      for await (const reply of query) {
        if (hex(reply.peer.publicKey) === key) {
          found++
          break
        }
      }
    }
    return { found }
  }
}

async function main () {
  await dht.fullyBootstrapped()
  runUntilStopped(() => dht.destroy(), async command => {
    try {
      send('done', await commands[command.do](command))
    } catch (err) {
      send('failed', { message: err.message, code: err.code })
    }
  })
  send('ready', { publicKey: hex(keyPair.publicKey) })
}

main()
