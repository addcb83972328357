'use strict'
// One persistent node of a private network, to be asked by requester.py. Run by node.py one folder up.
//
// Options: bootstrap. Ready event: host, port, nodes (in its routing table).

const path = require('path')
const HyperDHT = require('hyperdht')
const { options, send, runUntilStopped } = require(path.join(__dirname, '..', '..', 'tests', 'interop', 'js', 'driver'))

async function main () {
  const dht = new HyperDHT({ bootstrap: options.bootstrap, host: '127.0.0.1', ephemeral: false, firewalled: false })
  await dht.fullyBootstrapped()
  runUntilStopped(() => dht.destroy())
  send('ready', { host: '127.0.0.1', port: dht.address().port, nodes: dht.toArray().length })
}

main()
