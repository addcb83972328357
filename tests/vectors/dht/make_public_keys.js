// Prints public-keys.json: keys and addresses in the forms that the packages give and take.
// Run where the hyperdht package is installed: node make_public_keys.js > public-keys.json
const z32 = require('z32')
const id = require('hypercore-id-encoding')
const address = require('hyperdht-address')
const { createHash } = require('crypto')

const hash = (text) => createHash('sha256').update(text).digest()
const attempt = (call) => {
  try {
    return call()
  } catch (err) {
    return { error: err.message }
  }
}

const texts = []
for (let size = 0; size <= 48; size++) {
  const data = Buffer.concat([hash('a' + size), hash('b' + size)]).subarray(0, size)
  texts.push({ hex: data.toString('hex'), z32: z32.encode(data) })
}

const key = hash('key')
const z = z32.encode(key)
const keys = [
  key.toString('hex'),
  key.toString('hex').toUpperCase(),
  z,
  'pear://' + z,
  'pear://' + z + '/some/path?x=1',
  'pear://' + key.toString('hex'),
  z.slice(0, 51) + '9', // the last character holds one bit of the key
  z.toUpperCase(),
  z.slice(0, 51),
  z + 'y',
  key.toString('hex').slice(0, 63),
  key.toString('hex').slice(0, 63) + 'g',
  key.toString('hex') + '00',
  'l' + z.slice(1),
  'http://' + z,
  ''
].map((text) => {
  const key = attempt(() => id.decode(text))
  return { text, key: key.error ? null : key.toString('hex') }
})

const nodes = [
  { host: '127.0.0.1', port: 49737 },
  { host: '88.99.3.86', port: 1 },
  { host: '255.255.255.255', port: 65535 }
]
const encoded = [null, [], nodes.slice(0, 1), nodes].map((nodes) => ({
  key: key.toString('hex'),
  nodes,
  hex: address.encode(key, nodes).toString('hex')
}))
const whole = address.encode(key, nodes)
const decoded = [
  key,
  Buffer.concat([key, Buffer.from([0])]),
  Buffer.concat([key, Buffer.from([2])]),
  Buffer.concat([key, Buffer.from([2, 9, 9])]),
  Buffer.concat([key, Buffer.from([1])]),
  Buffer.concat([key, Buffer.from([1, 0])]),
  Buffer.concat([key, Buffer.from([3, 1, 1, 2, 3, 4, 5, 6])]),
  Buffer.concat([whole, Buffer.from([1, 2, 3])]),
  whole.subarray(0, whole.length - 1),
  key.subarray(0, 31),
  Buffer.alloc(0)
].map((data) => {
  const found = attempt(() => address.decode(data))
  return {
    hex: data.toString('hex'),
    key: found.error ? null : found.key.toString('hex'),
    nodes: found.error ? null : (found.nodes || []).map(({ host, port }) => ({ host, port }))
  }
})

console.log(JSON.stringify({ z32: texts, keys, encoded, decoded }, null, 1))
