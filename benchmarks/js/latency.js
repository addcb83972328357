'use strict'
// Milliseconds from trace() in a stock JavaScript client to the line in the server's log file, as a
// reader of the file sees it, at a steady rate on loopback. One JSON object.
//
// Usage: node latency.js ['{"rate": 200, "seconds": 20}']; a given server as in pair.js.
// Both ends of the interval are read from the system's monotonic clock, in different processes.

const fs = require('fs')
const os = require('os')
const path = require('path')
const { start, cost, machine } = require('./children')
const LogFile = require('./logfile')

const options = { rate: 200, seconds: 20, ...JSON.parse(process.argv[2] || '{}') }

function percentile (sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]
}

async function main () {
  const own = options.key === undefined
  const folder = own ? fs.mkdtempSync(path.join(os.tmpdir(), 'hyperlog-latency-')) : options.folder
  const testnet = own ? await start('testnet.js', { size: 4 }) : null
  const bootstrap = own ? testnet.ready.bootstrap : options.bootstrap
  const server = own ? await start('server.js', { folder, bootstrap }) : null
  const key = own ? server.ready.publicKey : options.key
  const serverPid = own ? server.pid : options.serverPid

  const client = await start('client.js', { key, bootstrap, shape: 'stamped', mode: 'rate', rate: options.rate })
  await client.event('greeting')
  const log = new LogFile(path.join(folder, `${client.ready.publicKey}.log`))
  const count = options.rate * options.seconds
  const latencies = []
  client.command({ send: options.rate }) // warm-up
  await log.traces(options.rate)

  // inotify tells of each append; polling would add its own period to every figure.
  const before = cost(serverPid)
  const done = new Promise(resolve => {
    const watcher = fs.watch(log.filename, () => {
      const lines = log.read()
      const now = Number(process.hrtime.bigint())
      for (const line of lines) latencies.push((now - JSON.parse(line).caller.props.sentAt) / 1e6)
      if (latencies.length === count) {
        watcher.close()
        resolve()
      }
    })
  })
  client.command({ send: count })
  await done
  const after = cost(serverPid)

  latencies.sort((a, b) => a - b)
  console.log(JSON.stringify({
    benchmark: 'latency',
    server: own ? 'hypertrace-logger' : 'given',
    rate: options.rate,
    count,
    milliseconds: {
      p50: percentile(latencies, 0.5),
      p90: percentile(latencies, 0.9),
      p99: percentile(latencies, 0.99),
      max: latencies.at(-1)
    },
    serverCpuMicroseconds: before && after ? (after.cpuSeconds - before.cpuSeconds) * 1e6 / count : null,
    ...machine()
  }))
  await client.stop()
  log.close()
  if (own) {
    await server.stop()
    await testnet.stop()
    fs.rmSync(folder, { recursive: true })
  }
}

main()
