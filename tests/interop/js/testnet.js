'use strict'
// A private DHT. Options: size (default 4; every node is persistent: it has an id and stores
// announcements), host (its address on this machine, by default loopback). Ready event: bootstrap and nodes, both [{host, port}].

const createTestnet = require('hyperdht/testnet')
const { options, send, runUntilStopped } = require('./driver')

async function main () {
  const host = options.host ?? '127.0.0.1'
  const testnet = await createTestnet(options.size ?? 4, { host })
  runUntilStopped(() => testnet.destroy())
  send('ready', {
    bootstrap: testnet.bootstrap,
    nodes: testnet.nodes.map(node => ({ host, port: node.address().port }))
  })
}

main()
