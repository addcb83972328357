'use strict'
// Opens connections to an echo server and tells how long that took. Run by connect.py one folder up.
//
// Options: key, bootstrap, sequential, parallel. Each connection carries one message there and back,
// outside of the time in the sequential ones. Events: ready, sequential (milliseconds of each
// connect, one more than asked for: the first one is apart), parallel (milliseconds until all are
// through, and lost: how many failed or were cut off before their echo, with the first reason), error.

const path = require('path')
const HyperDHT = require('hyperdht')
const { options, send, runUntilStopped } = require(path.join(__dirname, '..', '..', 'tests', 'interop', 'js', 'driver'))

const MESSAGE = Buffer.from('through')
const KEY = Buffer.from(options.key, 'hex')

const dht = new HyperDHT({ bootstrap: options.bootstrap, host: '127.0.0.1' })

function milliseconds (begin) {
  return Number(process.hrtime.bigint() - begin) / 1e6
}

function connect () {
  return new Promise((resolve, reject) => {
    const socket = dht.connect(KEY)
    socket.once('error', reject)
    socket.once('open', () => {
      socket.off('error', reject).on('error', () => {})
      resolve(socket)
    })
  })
}

function echo (socket) {
  return new Promise((resolve, reject) => {
    socket.once('close', () => reject(new Error('closed before the echo')))
    socket.once('data', data => data.equals(MESSAGE) ? resolve() : reject(new Error('the echo is not what was sent')))
    socket.write(MESSAGE)
  })
}

function close (socket) {
  return new Promise(resolve => {
    socket.once('close', resolve)
    socket.end()
  })
}

async function measure () {
  const times = []
  for (let number = 0; number <= options.sequential; number++) {
    const begin = process.hrtime.bigint()
    const socket = await connect()
    times.push(milliseconds(begin))
    await echo(socket)
    await close(socket)
  }
  send('sequential', { milliseconds: times })

  const begin = process.hrtime.bigint()
  const results = await Promise.allSettled(Array.from({ length: options.parallel }, async () => echo(await connect())))
  const failed = results.filter(result => result.status === 'rejected')
  send('parallel', { milliseconds: milliseconds(begin), lost: failed.length, reason: failed[0]?.reason.message })
}

async function main () {
  await dht.fullyBootstrapped()
  runUntilStopped(() => dht.destroy())
  send('ready')
  try {
    await measure()
  } catch (err) {
    send('error', { message: err.message })
  }
}

main()
