'use strict'
// A persistent, open node that also listens on its own key pair, and closes what it accepts never.
//
// Options: bootstrap ([{host, port}]). Ready event: publicKey, host, port, nodes (in its table).

const HyperDHT = require('hyperdht')
const { options, send, runUntilStopped } = require('./driver')

async function main () {
  const dht = new HyperDHT({ bootstrap: options.bootstrap, host: '127.0.0.1', ephemeral: false, firewalled: false })
  await dht.fullyBootstrapped()
  const server = dht.createServer(socket => socket.on('error', () => {}))
  await server.listen(dht.defaultKeyPair)
  runUntilStopped(() => dht.destroy())
  send('ready', {
    publicKey: dht.defaultKeyPair.publicKey.toString('hex'),
    host: '127.0.0.1',
    port: dht.address().port,
    nodes: dht.toArray().length
  })
}

main()
