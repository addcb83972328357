// Prints nat.json: what hyperdht's lib/nat.js makes of 120 sequences of samples.
// Run where the hyperdht package is installed: node make_nat.js > nat.json
const path = require('path')
const root = path.dirname(require.resolve('hyperdht/package.json', { paths: [process.cwd()] }))
const Nat = require(path.join(root, 'lib', 'nat.js'))

let state = 12345
function random(n) {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0
  return Math.floor((state / 2 ** 32) * n)
}

const cases = []
for (let i = 0; i < 120; i++) {
  const firewalled = i % 10 !== 0
  const hosts = 1 + random(3)
  const ports = 1 + random(4)
  const nat = new Nat({ firewalled, nodes: { length: 0, latest: null } }, null, null)
  let settled = false
  nat.analyzing.then(() => {})
  nat._resolve = () => { settled = true }
  const steps = []
  const length = 1 + random(9)
  for (let j = 0; j < length; j++) {
    if (i % 7 === 0 && j === 4) nat.freeze()
    if (i % 7 === 0 && j === 7) nat.unfreeze()
    const to = { host: '1.1.1.' + random(hosts), port: 1000 + random(ports) }
    const from = { host: '2.2.2.' + random(12), port: 2000 }
    nat.add(to, from)
    steps.push({
      to: [to.host, to.port],
      from: [from.host, from.port],
      frozen: !!nat.frozen,
      sampled: nat.sampled,
      firewall: nat.firewall,
      addresses: nat.addresses && nat.addresses.map((a) => [a.host, a.port]),
      settled
    })
  }
  cases.push({ firewalled, steps })
}
const version = require(path.join(root, 'package.json')).version
console.log(JSON.stringify({ package: 'hyperdht ' + version, cases }))
