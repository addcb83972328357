'use strict'
// Child processes for the benchmarks here: the driver scripts of tests/interop/js, and what they cost.

const { spawn } = require('child_process')
const fs = require('fs')
const os = require('os')
const path = require('path')
const readline = require('readline')

const INTEROP = path.join(__dirname, '..', '..', 'tests', 'interop')
const NODE_MODULES = path.resolve(process.env.HYPERLOG_NODE_MODULES || path.join(INTEROP, 'node_modules'))
const TICKS_PER_SECOND = 100 // USER_HZ, fixed on Linux

class Child {
  constructor (script, options) {
    this.events = []
    this.waiting = []
    this.process = spawn(process.execPath, [path.join(INTEROP, 'js', script), JSON.stringify(options)], {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { ...process.env, NODE_PATH: NODE_MODULES }
    })
    this.pid = this.process.pid
    this.exited = new Promise(resolve => this.process.once('exit', resolve))
    readline.createInterface({ input: this.process.stdout }).on('line', line => {
      this.events.push(JSON.parse(line))
      this._deliver()
    })
    this.process.once('exit', status => {
      for (const { name, reject } of this.waiting) reject(new Error(`${script} ended with ${status} before ${name}`))
    })
  }

  _deliver () {
    this.waiting = this.waiting.filter(({ name, resolve }) => {
      const index = this.events.findIndex(event => event.event === name)
      if (index === -1) return true
      resolve(this.events.splice(index, 1)[0])
      return false
    })
  }

  event (name) {
    return new Promise((resolve, reject) => {
      this.waiting.push({ name, resolve, reject })
      this._deliver()
    })
  }

  command (fields) {
    this.process.stdin.write(JSON.stringify(fields) + '\n')
  }

  async stop () {
    this.process.stdin.end()
    await this.exited
  }
}

async function start (script, options) {
  const child = new Child(script, options)
  child.ready = await child.event('ready')
  return child
}

// CPU seconds and peak resident bytes of a process so far; null where /proc does not tell.
function cost (pid) {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    const peak = /VmHWM:\s+(\d+) kB/.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'))
    return { cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND, maxRssBytes: Number(peak[1]) * 1024 }
  } catch {
    return null
  }
}

function median (values) {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

function spread (values) {
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) }
}

function machine () {
  const version = name => JSON.parse(fs.readFileSync(path.join(NODE_MODULES, name, 'package.json'))).version
  return {
    node: process.version,
    hyperdht: version('hyperdht'),
    'udx-native': version('udx-native'),
    'hypertrace-logger': version('hypertrace-logger'),
    cpu: os.cpus()[0].model,
    cores: os.cpus().length,
    load: os.loadavg()
  }
}

module.exports = { start, cost, spread, machine }
