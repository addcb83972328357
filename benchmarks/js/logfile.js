'use strict'
// Follows a log file while it grows.

const fs = require('fs')

const POLL = 2 // ms; a few stat calls among thousands of lines

class LogFile {
  constructor (filename) {
    this.filename = filename
    this.fd = null
    this.position = 0
    this.rest = Buffer.alloc(0)
  }

  // The complete lines that came since the last call.
  read () {
    if (this.fd === null) {
      if (!fs.existsSync(this.filename)) return []
      this.fd = fs.openSync(this.filename, 'r')
    }
    const added = fs.fstatSync(this.fd).size - this.position
    if (added <= 0) return []
    const data = Buffer.alloc(added)
    this.position += fs.readSync(this.fd, data, 0, added, this.position)
    const text = Buffer.concat([this.rest, data])
    const end = text.lastIndexOf(10) + 1
    this.rest = text.subarray(end)
    return end ? text.toString('utf8', 0, end - 1).split('\n') : []
  }

  // All lines up to the moment when `count` traces (notes do not count) have come.
  async traces (count, onTrace = () => {}) {
    const lines = []
    while (lines.length < count) {
      for (const line of this.read()) {
        if (/^\{"time":"[^"]*","note":/.test(line)) continue
        lines.push(line)
        onTrace(line)
      }
      await new Promise(resolve => setTimeout(resolve, POLL))
    }
    return lines
  }

  close () {
    if (this.fd !== null) fs.closeSync(this.fd)
  }
}

module.exports = LogFile
