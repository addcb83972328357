'use strict'
// What the driver scripts share: options in, JSON events out, commands in, an orderly end.
//
// A script gets its options as one JSON object in its first argument. It prints one JSON object per
// line; the first is {"event":"ready",...}. Commands are JSON objects, one per line on stdin. It ends
// on SIGTERM, SIGINT or when stdin is closed, after {"event":"stopped"}.

const { Console } = require('console')
const fs = require('fs')
const readline = require('readline')

const CLOSE_LIMIT = 2000 // ms; a peer or test network that is gone must not hold the process

const options = JSON.parse(process.argv[2] || '{}')

function send (event, fields = {}) {
  process.stdout.write(JSON.stringify({ event, ...fields }) + '\n')
}

// The stock server prints each trace. stdout belongs to the events, so console goes to the null
// device: the cost of formatting and writing stays, as when a user redirects it.
function discardConsole () {
  const fd = fs.openSync('/dev/null', 'w')
  const stdout = { write: text => fs.writeSync(fd, text), on () {}, removeListener () {}, once () {} }
  globalThis.console = new Console({ stdout, stderr: process.stderr, colorMode: false })
}

function usage () {
  const { userCPUTime, systemCPUTime, maxRSS } = process.resourceUsage()
  return { cpuSeconds: (userCPUTime + systemCPUTime) / 1e6, maxRssBytes: maxRSS * 1024 }
}

// close: async function that releases everything. onCommand: gets each command but {"usage":true}.
function runUntilStopped (close, onCommand = () => {}) {
  let stopping = false

  async function stop () {
    if (stopping) return
    stopping = true
    setTimeout(() => process.exit(0), CLOSE_LIMIT)
    try {
      await close()
    } finally {
      process.stdout.write(JSON.stringify({ event: 'stopped', ...usage() }) + '\n', () => process.exit(0))
    }
  }

  process.on('SIGTERM', stop)
  process.on('SIGINT', stop)
  readline.createInterface({ input: process.stdin })
    .on('line', line => {
      const command = JSON.parse(line)
      if (command.usage) send('usage', usage())
      else onCommand(command)
    })
    .on('close', stop)
}

// Options of createServer() and connect() that JSON cannot carry: relayThrough is a key in hex, and
// refusePunch makes this side refuse every hole punch, so that a relay is what is left. A server must
// say so by `false`: asked by a function, it answers the first probes nevertheless.
function peerOptions ({ relayThrough, refusePunch, ...rest } = {}, isServer = false) {
  if (relayThrough) rest.relayThrough = Buffer.from(relayThrough, 'hex')
  if (refusePunch) rest.holepunch = isServer ? false : () => false
  return rest
}

module.exports = { options, send, discardConsole, peerOptions, runUntilStopped }
