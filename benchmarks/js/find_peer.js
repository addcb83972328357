'use strict'
// Searches for keys one after the other. Run by find_peer.py one folder up.
//
// Options: bootstrap, key (announced, hex), keys (of nobody, hex). Events: ready when the node has joined, then
// `found`: records (of the announced key), requests and milliseconds of each search for the others.

const path = require('path')
const HyperDHT = require('hyperdht')
const { options, send, runUntilStopped } = require(path.join(__dirname, '..', '..', 'tests', 'interop', 'js', 'driver'))

async function main () {
  const dht = new HyperDHT({ bootstrap: options.bootstrap, host: '127.0.0.1' })
  await dht.fullyBootstrapped()
  runUntilStopped(() => dht.destroy())
  send('ready', {})

  const search = async (hex) => {
    let records = 0
    const before = dht.stats.requests.total
    const startedAt = performance.now()
    for await (const _ of dht.findPeer(Buffer.from(hex, 'hex'))) records++
    return { records, requests: dht.stats.requests.total - before, milliseconds: performance.now() - startedAt }
  }
  const { records } = await search(options.key)
  const searches = []
  for (const key of options.keys) searches.push(await search(key))
  send('found', {
    records,
    requests: searches.map((s) => s.requests),
    milliseconds: searches.map((s) => s.milliseconds)
  })
}

main()
