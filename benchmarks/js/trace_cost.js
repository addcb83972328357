'use strict'
// What a call of trace() costs its caller with the stock packages. Run by trace_cost.py one folder up,
// where the names are explained.
//
// Options: key, bootstrap. Events: ready (publicKey), measured (microseconds by name, traced: how
// many by the connected client).

const path = require('path')
const HyperDHT = require('hyperdht')
const { createTracer, setTraceFunction, clearTraceFunction } = require('hypertrace')
const { Client } = require('hypertrace-logger')
const { options, send, runUntilStopped } = require(path.join(__dirname, '..', '..', 'tests', 'interop', 'js', 'driver'))

const OFF_CALLS = 200000
const ALONE_CALLS = 50000
const BURSTS = 20
const BURST = 1000
const LOOP = 20000
const SINGLE = 400
const PAUSE = 5 // ms between single calls
const REST = 250 // ms for the server to take a burst in
const WARM_UP = 2000

let number = 0

class Order {
  constructor () {
    this.tracer = createTracer(this, { props: { region: 'eu-north-1', currency: 'EUR', channel: 'web' } })
  }

  makeProps (count) {
    return Array.from({ length: count }, () => ({
      n: number++, amount: 1999, items: 3, customer: 'c-20381', state: 'accepted', warehouse: 'north-east', vip: false
    }))
  }

  timeCalls (all) {
    const begin = process.hrtime.bigint()
    for (const props of all) this.tracer.trace('order-placed', props)
    return Number(process.hrtime.bigint() - begin) / 1000 / all.length
  }

  timeCallsWithoutId (all) {
    const begin = process.hrtime.bigint()
    for (const props of all) this.tracer.trace(props)
    return Number(process.hrtime.bigint() - begin) / 1000 / all.length
  }

  timeSingleCall (props) {
    const begin = process.hrtime.bigint()
    this.tracer.trace('order-placed', props)
    return Number(process.hrtime.bigint() - begin) / 1000
  }
}

function rest (milliseconds) {
  return new Promise(resolve => setTimeout(resolve, milliseconds))
}

function median (values) {
  return values.sort((a, b) => a - b)[values.length >> 1]
}

async function main () {
  const results = {}
  let order = new Order()
  let all = new Array(OFF_CALLS).fill(order.makeProps(1)[0])
  order.timeCalls(all)
  results['switched off'] = order.timeCalls(all)

  setTraceFunction(() => {})
  order = new Order()
  all = all.slice(0, ALONE_CALLS)
  order.timeCalls(all)
  results['tracer alone, with id'] = order.timeCalls(all)
  order.timeCallsWithoutId(all)
  results['tracer alone, without id'] = order.timeCallsWithoutId(all)
  clearTraceFunction()

  const dht = new HyperDHT({ bootstrap: options.bootstrap, host: '127.0.0.1' })
  const client = new Client()
  let running = true
  let greeted
  const greeting = new Promise(resolve => { greeted = resolve })
  await client.start({
    createSocket: () => {
      const socket = dht.connect(Buffer.from(options.key, 'hex'))
      socket.once('data', () => setImmediate(greeted)) // after the client's own handler
      return socket
    },
    canSocketReconnect: () => running
  })
  runUntilStopped(async () => {
    running = false
    client.stop()
    await dht.destroy()
  })
  send('ready', { publicKey: dht.defaultKeyPair.publicKey.toString('hex') })
  await greeting

  number = 0
  order = new Order()
  order.timeCalls(order.makeProps(WARM_UP))
  const times = []
  for (let burst = 0; burst < BURSTS; burst++) {
    const all = order.makeProps(BURST)
    await rest(REST)
    times.push(order.timeCalls(all))
  }
  results['queued, connected, bursts of 1,000'] = median(times)
  all = order.makeProps(LOOP)
  await rest(2 * REST)
  results['queued, connected, tight loop of 20,000'] = order.timeCalls(all)
  await rest(LOOP / BURST * REST)
  const single = []
  for (const props of order.makeProps(SINGLE)) {
    await rest(PAUSE)
    single.push(order.timeSingleCall(props))
  }
  single.sort((a, b) => a - b)
  results['single calls, connected, p50'] = single[SINGLE >> 1]
  results['single calls, connected, p99'] = single[Math.floor(SINGLE * 0.99)]
  send('measured', { microseconds: results, traced: WARM_UP + BURSTS * BURST + LOOP + SINGLE })
}

main()
