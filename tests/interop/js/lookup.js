'use strict'
// A HyperDHT node that announces itself under a topic and looks the topic up.
//
// Options:
//   bootstrap   [{host, port}]
//   topic       64 hex digits
// Commands: {"do": "announce"}, {"do": "unannounce"}, {"do": "lookup"}
// Events: ready (publicKey), done after each of the first two, found (publicKeys, sorted, each once).

const HyperDHT = require('hyperdht')
const { options, send, runUntilStopped } = require('./driver')

const dht = new HyperDHT({ bootstrap: options.bootstrap, host: '127.0.0.1' })
const topic = Buffer.from(options.topic, 'hex')
const keyPair = dht.defaultKeyPair

const commands = {
  async announce () {
    await dht.announce(topic, keyPair, []).finished()
    send('done')
  },
  async unannounce () {
    await dht.unannounce(topic, keyPair)
    send('done')
  },
  async lookup () {
    const keys = new Set()
    for await (const reply of dht.lookup(topic)) {
      for (const peer of reply.peers) keys.add(peer.publicKey.toString('hex'))
    }
    send('found', { publicKeys: [...keys].sort() })
  }
}

async function main () {
  await dht.fullyBootstrapped()
  runUntilStopped(() => dht.destroy(), command => commands[command.do]())
  send('ready', { publicKey: keyPair.publicKey.toString('hex') })
}

main()
