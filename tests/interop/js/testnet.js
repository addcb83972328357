'use strict'
// A private DHT on loopback. Options: size (default 4; every node is persistent: it has an id and
// stores announcements). Ready event: bootstrap and nodes, both [{host, port}].

const createTestnet = require('hyperdht/testnet')
const { options, send, runUntilStopped } = require('./driver')

async function main () {
  const testnet = await createTestnet(options.size ?? 4, { host: '127.0.0.1' })
  runUntilStopped(() => testnet.destroy())
  send('ready', {
    bootstrap: testnet.bootstrap,
    nodes: testnet.nodes.map(node => ({ host: '127.0.0.1', port: node.address().port }))
  })
}

main()
