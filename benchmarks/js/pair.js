'use strict'
// Lines a second from trace() in a stock JavaScript client into the server's log file, one client,
// loopback, connection already open. One JSON object per run, then one with the spread.
//
// Usage: node pair.js ['{"count": 50000, "repeats": 5, "pad": 0}']
// The server is the stock JavaScript one, or, with {"key", "bootstrap", "folder", "serverPid"}, any
// other that already runs: its key in hex, [{host, port}], its log folder, its process for the costs.

const fs = require('fs')
const os = require('os')
const path = require('path')
const { start, cost, spread, machine } = require('./children')
const LogFile = require('./logfile')

const WARM_UP = 2000 // traces before the clock starts

const options = { count: 50000, repeats: 5, pad: 0, ...JSON.parse(process.argv[2] || '{}') }

function checked (lines, first) {
  lines.forEach((line, index) => {
    const { traceNumber } = JSON.parse(line)
    if (traceNumber !== first + index) throw new Error(`line ${index} has number ${traceNumber}, not ${first + index}`)
  })
}

function microseconds (before, after) {
  return before && after ? (after.cpuSeconds - before.cpuSeconds) * 1e6 / options.count : null
}

async function run (folder, key, bootstrap, serverPid) {
  const client = await start('client.js', { key, bootstrap, pad: options.pad })
  const log = new LogFile(path.join(folder, `${client.ready.publicKey}.log`))
  await client.event('greeting')
  client.command({ send: WARM_UP })
  checked(await log.traces(WARM_UP), 0)

  const before = { server: cost(serverPid), client: cost(client.pid) }
  const begin = process.hrtime.bigint()
  client.command({ send: options.count })
  const lines = await log.traces(options.count)
  const seconds = Number(process.hrtime.bigint() - begin) / 1e9
  const after = { server: cost(serverPid), client: cost(client.pid) }

  checked(lines, WARM_UP)
  await client.stop()
  log.close()
  return {
    seconds,
    linesPerSecond: options.count / seconds,
    bytesPerLine: lines.reduce((sum, line) => sum + Buffer.byteLength(line) + 1, 0) / lines.length,
    serverCpuMicroseconds: microseconds(before.server, after.server),
    clientCpuMicroseconds: microseconds(before.client, after.client),
    serverMaxRssBytes: after.server?.maxRssBytes ?? null,
    clientMaxRssBytes: after.client?.maxRssBytes ?? null
  }
}

async function main () {
  const own = options.key === undefined
  const folder = own ? fs.mkdtempSync(path.join(os.tmpdir(), 'hyperlog-pair-')) : options.folder
  const testnet = own ? await start('testnet.js', { size: 4 }) : null
  const bootstrap = own ? testnet.ready.bootstrap : options.bootstrap
  const server = own ? await start('server.js', { folder, bootstrap }) : null
  const key = own ? server.ready.publicKey : options.key

  const runs = []
  for (let repeat = 0; repeat < options.repeats; repeat++) {
    runs.push(await run(folder, key, bootstrap, own ? server.pid : options.serverPid))
    console.log(JSON.stringify({ benchmark: 'pair', ...runs.at(-1) }))
  }
  console.log(JSON.stringify({
    benchmark: 'pair',
    server: own ? 'hypertrace-logger' : 'given',
    count: options.count,
    linesPerSecond: spread(runs.map(run => run.linesPerSecond)),
    serverCpuMicroseconds: spread(runs.map(run => run.serverCpuMicroseconds)),
    clientCpuMicroseconds: spread(runs.map(run => run.clientCpuMicroseconds)),
    ...machine()
  }))
  if (own) {
    await server.stop()
    await testnet.stop()
    fs.rmSync(folder, { recursive: true })
  }
}

main()
