'use strict'
// A HyperDHT peer that does what it is told, on any number of named connections.
//
// Options:
//   bootstrap   [{host, port}]
//   seed        64 hex digits: this side's key pair; random if left out
//   refuse      true: the server's firewall refuses everybody
//   echo        true: accepted connections send back what comes, and end when the other side does
//   dht, server further options for the node and createServer(), the latter as peerOptions() in
//               driver.js takes them; without server there is none
// Commands: {connect: key, as: name, options} {send: text, on: name} {end: name} {destroy: name}
// {close: true} (the server). {suspend: true} {resume: true} (the node). Accepted connections are named in0, in1 and so on.
// Events: ready (publicKey), open (name, remotePublicKey, seconds since connect), data (name, text),
// end, close and error (name, code), closed (the server), asked (the firewall), suspended, resumed.

const HyperDHT = require('hyperdht')
const { options, send, peerOptions, runUntilStopped } = require('./driver')

const dht = new HyperDHT({
  bootstrap: options.bootstrap,
  host: '127.0.0.1',
  seed: options.seed ? Buffer.from(options.seed, 'hex') : undefined,
  ...options.dht
})

const sockets = new Map()
let accepted = 0
let server = null

function watch (name, socket, echo) {
  sockets.set(name, socket)
  socket.on('data', data => {
    if (echo) socket.write(data)
    else send('data', { name, text: data.toString() })
  })
  socket.on('end', () => {
    send('end', { name })
    if (echo) socket.end()
  })
  socket.on('error', err => send('error', { name, code: err.code, message: err.message }))
  socket.on('close', () => {
    sockets.delete(name)
    send('close', { name })
  })
}

function opened (name, socket, begin) {
  const seconds = Number(process.hrtime.bigint() - begin) / 1e9
  send('open', { name, remotePublicKey: socket.remotePublicKey.toString('hex'), seconds })
}

function connect (name, key, connectOptions) {
  const begin = process.hrtime.bigint()
  const socket = dht.connect(Buffer.from(key, 'hex'), peerOptions(connectOptions))
  watch(name, socket, false)
  socket.on('open', () => opened(name, socket, begin))
}

async function onCommand (command) {
  if (command.connect) connect(command.as, command.connect, command.options)
  else if (command.send !== undefined) sockets.get(command.on).write(Buffer.from(command.send))
  else if (command.end) sockets.get(command.end).end()
  else if (command.destroy) sockets.get(command.destroy)?.destroy()
  else if (command.suspend) {
    await dht.suspend()
    send('suspended')
  } else if (command.resume) {
    await dht.resume()
    send('resumed')
  } else if (command.close) {
    await server.close()
    send('closed')
  }
}

async function main () {
  if (options.server) {
    server = dht.createServer({
      ...peerOptions(options.server, true),
      firewall: () => {
        send('asked')
        return !!options.refuse
      }
    })
    server.on('connection', socket => {
      const name = `in${accepted++}`
      watch(name, socket, options.echo)
      socket.on('open', () => opened(name, socket, process.hrtime.bigint()))
    })
    await server.listen(dht.defaultKeyPair)
  }
  runUntilStopped(() => dht.destroy(), onCommand)
  send('ready', { publicKey: dht.defaultKeyPair.publicKey.toString('hex') })
}

main()
