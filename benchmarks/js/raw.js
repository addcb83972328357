'use strict'
// Throughput of one encrypted connection between two stock HyperDHT nodes on loopback, from open to
// the reader's end of stream: megabytes (10^6 bytes) and messages a second. One JSON object per run,
// then one with the spread.
//
// Usage: node raw.js ['{"megabytes": 100, "chunk": 65536, "repeats": 5}']
// The reader is a JavaScript client. The writer is a JavaScript server, or, with {"key",
// "bootstrap"}, any other server that writes the same amount to each connection and ends it.

const { start, cost, spread, machine } = require('./children')

const options = { megabytes: 100, chunk: 65536, repeats: 5, ...JSON.parse(process.argv[2] || '{}') }

async function main () {
  const own = options.key === undefined
  const bytes = options.megabytes * 1e6
  const testnet = own ? await start('testnet.js', { size: 4 }) : null
  const bootstrap = own ? testnet.ready.bootstrap : options.bootstrap

  const runs = []
  for (let repeat = 0; repeat < options.repeats; repeat++) {
    const writer = own
      ? await start('echo.js', { role: 'server', mode: 'source', bootstrap, bytes, chunk: options.chunk, checksum: false })
      : null
    const key = own ? writer.ready.publicKey : options.key
    const reader = await start('echo.js', { role: 'client', mode: 'sink', bootstrap, key, checksum: false })
    const received = await reader.event('received')
    if (received.bytes !== bytes) throw new Error(`received ${received.bytes} of ${bytes} bytes`)
    runs.push({
      seconds: received.seconds,
      megabytesPerSecond: options.megabytes / received.seconds,
      messagesPerSecond: received.messages / received.seconds,
      readerCpuSeconds: cost(reader.pid)?.cpuSeconds ?? null,
      readerMaxRssBytes: cost(reader.pid)?.maxRssBytes ?? null,
      writerCpuSeconds: own ? cost(writer.pid)?.cpuSeconds ?? null : null
    })
    console.log(JSON.stringify({ benchmark: 'raw', ...runs.at(-1) }))
    await reader.stop()
    await writer?.stop()
  }
  console.log(JSON.stringify({
    benchmark: 'raw',
    writer: own ? 'hyperdht' : 'given',
    megabytes: options.megabytes,
    chunk: options.chunk,
    megabytesPerSecond: spread(runs.map(run => run.megabytesPerSecond)),
    messagesPerSecond: spread(runs.map(run => run.messagesPerSecond)),
    ...machine()
  }))
  await testnet?.stop()
}

main()
