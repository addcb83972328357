'use strict'
// The stock hypertrace-logger server. Options: folder (holds keys.dat, made if missing, and gets the
// log files), bootstrap [{host, port}]. Ready event: publicKey.

const fs = require('fs')
const path = require('path')
const HyperDHT = require('hyperdht')
const { Server } = require('hypertrace-logger')
const { options, send, discardConsole, runUntilStopped } = require('./driver')

function keyPair (filename) {
  if (!fs.existsSync(filename)) {
    const { publicKey, secretKey } = HyperDHT.keyPair()
    fs.writeFileSync(filename, JSON.stringify({
      publicKey: publicKey.toString('hex'),
      secretKey: secretKey.toString('hex')
    }), { mode: 0o600 })
  }
  const keys = JSON.parse(fs.readFileSync(filename))
  return { publicKey: Buffer.from(keys.publicKey, 'hex'), secretKey: Buffer.from(keys.secretKey, 'hex') }
}

async function main () {
  // The server makes its node without options, so the default list itself has to change, in place.
  HyperDHT.BOOTSTRAP.splice(0, HyperDHT.BOOTSTRAP.length, ...options.bootstrap)
  discardConsole()

  const keys = keyPair(path.join(options.folder, 'keys.dat'))
  const server = new Server({ folder: options.folder })
  await server.listen(keys)
  runUntilStopped(() => server.close())
  send('ready', { publicKey: keys.publicKey.toString('hex') })
}

main()
